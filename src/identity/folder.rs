//! The lock of a data folder, so that one process at a time uses it. Taken by the controller's store, the worker and
//! `orchard dev`; held by the system, so that a process that was killed leaves none behind.

use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The file in the folder that is locked.
const LOCK_NAME: &str = "serve.lock";

/// The lock of a folder, until the last clone is dropped.
#[derive(Clone, Debug)]
pub struct FolderLock(#[allow(dead_code)] Arc<File>); // never read: it is held

/// Why a folder is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("the data folder {} is in use by {holder}; stop that, or choose another folder with --data-dir", folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// Who has it.
        holder: Holder,
    },
    /// The lock's file cannot be used.
    #[error("cannot lock the data folder {}", folder.display())]
    Io {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The process that has a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder(
    /// Its id, if it is known.
    pub Option<u32>,
);

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(id) => write!(f, "process {id}"),
            None => f.write_str("another process"),
        }
    }
}

/// How long a folder in use is asked for again: a child that its process was just starting holds what that one had open until it
/// runs its own program, on a busy machine for some time after it.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// Locks `folder` by the file `serve.lock` in it, which is made if it is not there, belongs to its owner alone, and holds the id of
/// this process for the error that another one gets. Blocks the thread for a second while the folder is in use.
///
/// # Errors
/// [`LockError`].
pub fn lock(folder: &Path) -> Result<FolderLock, LockError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match try_lock(folder) {
            Err(LockError::InUse { .. }) if Instant::now() < deadline => std::thread::sleep(PAUSE),
            other => return other,
        }
    }
}

/// The same without waiting, for those who try again themselves.
///
/// # Errors
/// [`LockError`].
pub fn try_lock(folder: &Path) -> Result<FolderLock, LockError> {
    let failed = |source| LockError::Io { folder: folder.to_owned(), source };
    let path = folder.join(LOCK_NAME);
    super::refuse_link(&path).map_err(failed)?;
    let mut options = File::options();
    options.create(true).truncate(false).read(true).write(true);
    #[cfg(unix)]
    {
        let nofollow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default();
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, nofollow);
    }
    let mut file = options.open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = (&mut file).take(MAX_ID).read_to_string(&mut holder);
            return Err(LockError::InUse { folder: folder.to_owned(), holder: Holder(holder.trim().parse().ok()) });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
        // One of an earlier release may be open to others. That of another owner is refused when the folder is looked at.
        let about = file.metadata().map_err(failed)?;
        if about.mode() & 0o777 != 0o600 && about.uid() == rustix::process::geteuid().as_raw() {
            file.set_permissions(std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        }
    }
    let written = file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "{}", std::process::id()));
    written.map_err(failed)?;
    Ok(FolderLock(file.into()))
}

/// Bytes of the id of a process.
const MAX_ID: u64 = 32;

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_folder_belongs_to_one_process_whose_id_the_other_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOCK_NAME);
        std::fs::write(&path, "left by another").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        let first = lock(dir.path()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let error = lock(dir.path()).unwrap_err().to_string();
        for hint in [&format!("process {};", std::process::id()), "--data-dir", &dir.path().display().to_string()] {
            assert!(error.contains(hint), "{error}");
        }
        drop(first);
        lock(dir.path()).unwrap();
        // One who is about to let go is waited for.
        let held = lock(dir.path()).unwrap();
        let letting_go = std::thread::spawn(move || {
            std::thread::sleep(PAUSE * 3);
            drop(held);
        });
        lock(dir.path()).unwrap();
        letting_go.join().unwrap();
    }

    #[test]
    fn a_link_in_the_place_of_the_lock_is_refused_and_what_it_leads_to_left_alone() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let victim = other.path().join("victim");
        std::fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join(LOCK_NAME)).unwrap();
        assert!(matches!(lock(dir.path()), Err(LockError::Io { .. })));
        assert_eq!(std::fs::read(&victim).unwrap(), b"precious");
    }
}
