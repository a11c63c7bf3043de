//! The file that holds the contexts, `orchard.yml` of the home folder.
//!
//! Changes are made under a lock and written whole, so that two commands at once lose nothing and a reader never sees
//! half a file. What a newer release wrote and this one does not know is kept.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Home;
use super::context::{ContextError, Contexts, LOCK_TIMEOUT};
use crate::identity;

/// The file's name in the home folder.
const FILE_NAME: &str = "orchard.yml";
/// The lock beside it: the file itself is replaced by each change, so it cannot carry the lock.
const LOCK_NAME: &str = "orchard.yml.lock";
/// How often the lock is asked for meanwhile.
const LOCK_PERIOD: Duration = Duration::from_millis(10);
/// A larger file is not one of ours; keeps a mistake such as a device or a disk image from being read whole.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// The file of contexts in a home folder.
#[derive(Clone, Debug)]
pub struct ContextFile {
    home: Home,
}

impl ContextFile {
    /// The one in `home`.
    pub fn new(home: Home) -> Self {
        Self { home }
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.home.path().join(FILE_NAME)
    }

    /// What to tell when others may read the file; none when they may not, or there is none. Not refused, as a private key of
    /// `ssh` is: a secret that is mounted into a container often cannot have another mode, and what was to be read has been.
    pub fn exposure(&self) -> Option<String> {
        let path = self.path();
        let mode = fs::metadata(&path).ok()?.permissions().mode() & 0o777;
        let shown = path.display();
        (mode & 0o077 != 0).then(|| {
            format!(
                "WARNING: others on this machine may read {shown} (its mode is {mode:04o}) and the tokens in it.\nWARNING: \
                 close it with: chmod 600 {shown}; if somebody may have looked, also: orchard rotate service-account NAME"
            )
        })
    }

    /// Reads it; no file means no contexts.
    ///
    /// # Errors
    /// [`ContextError::Io`], [`ContextError::Syntax`].
    pub fn load(&self) -> Result<Contexts, ContextError> {
        let path = self.path();
        let read = match fs::metadata(&path) {
            Ok(about) if about.len() > MAX_FILE_BYTES => {
                let reason = format!("it has {} bytes", about.len());
                return Err(ContextError::Syntax { path, reason });
            }
            Ok(_) => fs::read_to_string(&path),
            Err(error) => Err(error),
        };
        let text = match read {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contexts::default()),
            Err(source) => return Err(ContextError::Io { what: "read", path, source }),
        };
        if text.trim().is_empty() {
            return Ok(Contexts::default());
        }
        serde_saphyr::from_str(&text).map_err(|error| ContextError::Syntax { path, reason: first_line(&error) })
    }

    /// Reads, changes and writes it under the lock, with mode 0600. Blocks for at most 5 s.
    ///
    /// # Errors
    /// Any of loading, [`ContextError::Locked`], [`ContextError::Home`]; the file is then as before.
    pub fn update(&self, change: impl FnOnce(&mut Contexts)) -> Result<(), ContextError> {
        self.try_update(|contexts| {
            change(contexts);
            Ok(())
        })
    }

    /// As [`ContextFile::update`], for a change that may be refused.
    ///
    /// # Errors
    /// As for [`ContextFile::update`], and what `change` says; the file is then as before.
    pub fn try_update(
        &self,
        change: impl FnOnce(&mut Contexts) -> Result<(), ContextError>,
    ) -> Result<(), ContextError> {
        self.home.prepare()?;
        let _lock = lock(&self.home.path().join(LOCK_NAME))?;
        let mut contexts = self.load()?;
        change(&mut contexts)?;
        let path = self.path();
        let text = serde_saphyr::to_string(&contexts)
            .map_err(|error| ContextError::Syntax { path: path.clone(), reason: first_line(&error) })?;
        identity::write_private(&path, text.as_bytes()).map_err(|source| ContextError::Io {
            what: "write",
            path,
            source,
        })
    }
}

/// The parser adds a picture of the place to its first line; that picture would show tokens.
fn first_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

pub(super) fn lock(path: &Path) -> Result<File, ContextError> {
    let failed = |source| ContextError::Io { what: "lock", path: path.to_owned(), source };
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(path).map_err(failed)?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_PERIOD),
            Err(TryLockError::WouldBlock) => return Err(ContextError::Locked { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::context::tests::context;

    fn file() -> (tempfile::TempDir, ContextFile) {
        let dir = tempfile::tempdir().unwrap();
        let file = ContextFile::new(Home::at(dir.path().join("home")));
        (dir, file)
    }

    #[test]
    fn contexts_survive_the_file_and_the_first_is_the_default() {
        let (_dir, file) = file();
        assert_eq!(file.load().unwrap(), Contexts::default());
        file.update(|all| all.put("a", context("nats://a"), false)).unwrap();
        file.update(|all| all.put("b", context("nats://b"), false)).unwrap();
        let loaded = file.load().unwrap();
        assert_eq!(loaded.default.as_deref(), Some("a"));
        assert_eq!(loaded.contexts["b"], context("nats://b"));
        file.update(|all| all.put("b", context("nats://b2"), true)).unwrap();
        assert_eq!(file.load().unwrap().default.as_deref(), Some("b"));
    }

    #[test]
    fn the_file_is_readable_by_its_owner_only_even_if_it_was_not_before() {
        let (_dir, file) = file();
        file.update(|all| all.put("a", context("a"), false)).unwrap();
        assert_eq!(file.exposure(), None);
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();
        let warning = file.exposure().unwrap();
        assert!(warning.contains(&format!("chmod 600 {}", file.path().display())), "{warning}");
        file.update(|all| all.put("b", context("b"), false)).unwrap();
        for private in [file.path(), file.home.path().join(LOCK_NAME)] {
            assert_eq!(fs::metadata(private).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn what_other_releases_wrote_is_kept() {
        let (_dir, file) = file();
        file.home.prepare().unwrap();
        let old = "default-context: x\nfuture: [1, {a: b}]\ncontexts:\n  x:\n    url: ctl\n    certificate: QUJD\n";
        fs::write(file.path(), old).unwrap();
        file.update(|all| all.put("y", context("y"), false)).unwrap();
        let loaded = file.load().unwrap();
        assert_eq!(loaded.other["future"], serde_json::json!([1, {"a": "b"}]));
        assert_eq!(loaded.contexts["x"].other["certificate"], "QUJD");
        assert_eq!(loaded.default.as_deref(), Some("x"));
    }

    #[test]
    fn a_broken_file_is_refused_without_showing_its_secrets_and_left_as_it_is() {
        let (_dir, file) = file();
        file.home.prepare().unwrap();
        let broken = "contexts:\n  x:\n    serviceAccountToken: hunter2\n    url: [\n";
        fs::write(file.path(), broken).unwrap();
        let error = file.update(|all| all.default = None).unwrap_err();
        assert!(matches!(error, ContextError::Syntax { .. }), "{error}");
        assert!(!error.to_string().contains("hunter2") && !error.to_string().contains('\n'), "{error}");
        assert_eq!(fs::read_to_string(file.path()).unwrap(), broken);
    }

    #[test]
    fn changes_at_the_same_time_all_remain() {
        let (_dir, file) = file();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let file = &file;
                scope.spawn(move || file.update(|all| all.put(&format!("c{number}"), context("u"), false)).unwrap());
            }
        });
        assert_eq!(file.load().unwrap().contexts.len(), 8);
        let left: Vec<_> = fs::read_dir(file.home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "the file and its lock: {left:?}");
    }

    #[test]
    fn a_context_of_an_older_release_is_read_and_a_broken_fingerprint_is_never_taken_for_none() {
        let (_dir, file) = file();
        file.home.prepare().unwrap();
        let old = "contexts:\n  x:\n    url: nats://127.0.0.1:4222\n    serviceAccountName: a\n";
        fs::write(file.path(), old).unwrap();
        assert_eq!(file.load().unwrap().contexts["x"].fingerprint, None);
        fs::write(file.path(), format!("{old}    fingerprint: abc\n")).unwrap();
        assert!(matches!(file.load(), Err(ContextError::Syntax { .. })));
    }
}
