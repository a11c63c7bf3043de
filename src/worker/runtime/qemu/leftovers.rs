//! What lies in the image store and is of no use any more: beginnings of downloads that nobody asks for, copies that a process
//! did not finish, and entries of images that were removed. Called by `image.rs`.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::image::read_entry;

/// For how long the beginning of a download is kept that nobody asks for.
pub(super) const PART_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// The same when the disk is short of room: far longer than a download is ever silent before it is given up.
pub(super) const PART_AGE_IN_NEED: Duration = Duration::from_secs(600);

/// Removes beginnings of downloads to which nothing was added for `older`; yields how many bytes that freed.
pub(super) fn remove_begun(folder: &Path, older: Duration) -> u64 {
    let mut freed = 0u64;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        // The note beside it is written once, when the download begins, and goes with it.
        let key = name.strip_suffix(".part").filter(|key| !key.contains('-'));
        let lonely =
            || name.strip_suffix(".json").is_some_and(|part| part.ends_with(".part") && !folder.join(part).exists());
        if (key.is_some() || lonely()) && age(&path).is_some_and(|age| age > older) {
            let bytes = entry.metadata().map_or(0, |about| about.len());
            if let Some(key) = key {
                let _ = std::fs::remove_file(folder.join(format!("{key}.part.json")));
            }
            if std::fs::remove_file(&path).is_ok() {
                freed = freed.saturating_add(bytes);
            }
        }
    }
    freed
}

/// Removes copies that another process was making: only one has the store, so that is gone.
pub(super) fn remove_unfinished(folder: &Path) {
    let ours = format!("{}-", std::process::id());
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(".part") && name.contains('-') && !name.starts_with(&ours) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Removes entries whose image is not there any more. Only while no image can be removed or brought in by others.
pub(super) fn remove_entries(folder: &Path) {
    for path in std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
        let is_gone = |file: &str| matches!(folder.join(file).try_exists(), Ok(false));
        if read_entry(&path).is_some_and(|entry| is_gone(&entry.file)) {
            let _ = std::fs::remove_file(&path);
        }
    }
}

fn age(path: &Path) -> Option<Duration> {
    SystemTime::now().duration_since(std::fs::metadata(path).ok()?.modified().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names(folder: &Path) -> BTreeSet<String> {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn put(folder: &Path, name: &str, text: &str, age: Duration) {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        let file = std::fs::File::options().append(true).open(path).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
    }

    #[test]
    fn what_is_of_no_use_goes_and_all_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (hour, now) = (Duration::from_secs(3600), Duration::ZERO);
        put(dir.path(), "old.part", "12345", hour);
        put(dir.path(), "old.part.json", "{}", hour);
        // Its note is as old as the download, which goes on.
        put(dir.path(), "new.part", "12345", now);
        put(dir.path(), "new.part.json", "{}", hour);
        put(dir.path(), "lonely.part.json", "{}", hour);
        put(dir.path(), "1-1.part", "another process", now);
        let ours = format!("{}-1.part", std::process::id());
        put(dir.path(), &ours, "in the making", hour);
        let entry = |file: &str| format!(r#"{{"source":"s","sha256":"0","file":"{file}","size":1,"stamp":null}}"#);
        put(dir.path(), "gone.json", &entry("sha256-0.raw"), now);
        put(dir.path(), "here.json", &entry("sha256-1.raw"), now);
        put(dir.path(), "sha256-1.raw", "image", hour);
        put(dir.path(), "foreign.json", "{}", hour);

        assert_eq!(remove_begun(dir.path(), 2 * hour), 0);
        assert_eq!(remove_begun(dir.path(), PART_AGE_IN_NEED), 5 + 2);
        remove_unfinished(dir.path());
        remove_entries(dir.path());
        let left = ["new.part", "new.part.json", &ours, "here.json", "sha256-1.raw", "foreign.json"];
        assert_eq!(names(dir.path()), left.map(str::to_owned).into());
    }
}
