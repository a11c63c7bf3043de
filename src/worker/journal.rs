//! What the worker must remember of a copy beyond what the runtime can tell: whether its startup script was begun and
//! how it ended. One small file per copy; without it, adopting a VM would have to guess or run the script again.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::StartError;
use crate::identity;
use crate::model::CopyId;

/// How far a copy's startup script is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScriptState {
    /// Not begun.
    Unstarted,
    /// Begun; if nobody runs it now, it was interrupted.
    Begun,
    /// Ended well.
    Done,
}

/// The folder of such files, locked against other workers.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    folder: PathBuf,
    _lock: Arc<File>,
}

impl Journal {
    pub(super) fn open(data_dir: &Path) -> Result<Self, StartError> {
        let folder_error = |source| StartError::Folder { path: data_dir.to_owned(), source };
        identity::make_private_dir(data_dir).map_err(folder_error)?;
        let lock = File::create(data_dir.join("worker.lock")).map_err(folder_error)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StartError::InUse(data_dir.to_owned())),
            Err(TryLockError::Error(source)) => return Err(folder_error(source)),
        }
        let folder = data_dir.join("copies");
        identity::make_private_dir(&folder).map_err(folder_error)?;
        Ok(Self { folder, _lock: lock.into() })
    }

    fn path(&self, id: CopyId) -> PathBuf {
        self.folder.join(format!("{id}.script"))
    }

    pub(super) fn script(&self, id: CopyId) -> ScriptState {
        match std::fs::read(self.path(id)).as_deref() {
            Ok(b"done") => ScriptState::Done,
            Ok(_) => ScriptState::Begun,
            Err(_) => ScriptState::Unstarted,
        }
    }

    pub(super) fn set_script(&self, id: CopyId, state: ScriptState) {
        let written = match state {
            ScriptState::Unstarted => match std::fs::remove_file(self.path(id)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
            ScriptState::Begun => identity::write_private(&self.path(id), b"begun"),
            ScriptState::Done => identity::write_private(&self.path(id), b"done"),
        };
        if let Err(error) = written {
            // The VM is worth more than the note: after a restart the script counts as interrupted.
            tracing::warn!("cannot note the state of the startup script of {id}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::VmUid;

    #[test]
    fn remembers_across_processes_and_locks_out_a_second_worker() {
        let dir = tempfile::tempdir().unwrap();
        let id = CopyId { uid: VmUid(uuid::Uuid::now_v7()), attempt: 2 };
        let journal = Journal::open(dir.path()).unwrap();
        assert!(matches!(Journal::open(dir.path()), Err(StartError::InUse(_))));
        assert_eq!(journal.script(id), ScriptState::Unstarted);
        for state in [ScriptState::Begun, ScriptState::Done, ScriptState::Unstarted] {
            journal.set_script(id, state);
            assert_eq!(journal.script(id), state);
        }
        journal.set_script(id, ScriptState::Done);
        // What the next process would read; opening it here for real could meet the lock in a child that another test is
        // about to start.
        let next = Journal { folder: journal.folder.clone(), _lock: journal._lock.clone() };
        drop(journal);
        assert_eq!(next.script(id), ScriptState::Done);
    }
}
