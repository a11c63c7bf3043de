//! Files that the broker is told to read: users, certificates, keys. Called by `auth` and `tls`.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

/// The largest file that is read: some hundred thousand users.
const MAX_BYTES: u64 = 32 * 1024 * 1024;

/// Reads the regular file at `path`, where a link may lead to it. Never waits for a writer, as reading a named pipe would;
/// blocks for as long as the disk takes.
///
/// # Errors
/// Whatever the file system says, and what stands against the file.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidInput, what);
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let about = file.metadata()?;
    if !about.is_file() {
        return Err(wrong("it is no regular file".to_owned()));
    }
    let mut contents = Vec::with_capacity(usize::try_from(about.len().min(MAX_BYTES)).unwrap_or_default());
    if file.take(MAX_BYTES + 1).read_to_end(&mut contents)? as u64 > MAX_BYTES {
        return Err(wrong(format!("it is larger than {} MiB", MAX_BYTES >> 20)));
    }
    Ok(contents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_a_reasonable_size_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "text").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(read(&link).unwrap(), b"text");
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for wrong in [&pipe, folder.path(), Path::new("/dev/zero")] {
            let error = read(wrong).unwrap_err();
            assert!(error.to_string().contains("regular"), "{}: {error}", wrong.display());
        }
        let large = folder.path().join("large");
        File::create(&large).unwrap().set_len(MAX_BYTES + 1).unwrap();
        assert!(read(&large).unwrap_err().to_string().contains("32 MiB"));
        assert_eq!(read(&folder.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
