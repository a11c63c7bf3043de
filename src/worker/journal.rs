//! What the worker must remember of a copy beyond what the runtime can tell: which boot of it was begun last, whether its
//! startup script was begun in that, and how it ended, and whether the worker itself ended it. Small files for each copy;
//! without them, adopting a VM would have to guess, boot it or run the script again.

use std::path::{Path, PathBuf};

use super::StartError;
use super::guard::Notes;
use crate::identity;
use crate::identity::folder::{self, FolderLock};
use crate::model::{Boot, CopyId};

/// How far a copy's startup script is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ScriptState {
    /// Not begun.
    Unstarted,
    /// Begun; if nobody runs it now, it was interrupted.
    Begun,
    /// Ended well.
    Done,
    /// Failed, with what to say of it.
    Failed(String),
}

/// How a note of a failed script begins; what to say of it follows.
const FAILED: &[u8] = b"failed: ";

/// The folder of such files, locked against other workers.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    folder: PathBuf,
    notes: Notes,
    _lock: FolderLock,
}

/// Makes the worker's data folder if it is not there, closed to others, and locks it against other workers.
pub(super) fn claim(data_dir: &Path) -> Result<FolderLock, StartError> {
    let folder_error = |source| StartError::Folder { path: data_dir.to_owned(), source };
    identity::refuse_link(data_dir).map_err(folder_error)?;
    identity::make_private_dir(data_dir).map_err(folder_error)?;
    let lock = folder::lock(data_dir)?;
    identity::refuse_foreign(data_dir).map_err(folder_error)?;
    Ok(lock)
}

impl Journal {
    /// The journal in a data folder whose `lock` this process holds.
    pub(super) fn open(data_dir: &Path, lock: FolderLock) -> Result<Self, StartError> {
        let folder = data_dir.join("copies");
        let folder_error = |source| StartError::Folder { path: folder.clone(), source };
        identity::refuse_link(&folder).map_err(folder_error)?;
        identity::make_private_dir(&folder).map_err(folder_error)?;
        identity::refuse_foreign(&folder).map_err(folder_error)?;
        identity::remove_leftovers(&folder).map_err(folder_error)?;
        let guarded = |source| StartError::Folder { path: data_dir.join("guard"), source };
        Ok(Self { folder, notes: Notes::open(data_dir).map_err(guarded)?, _lock: lock })
    }

    /// What worker and guard tell each other.
    pub(super) fn notes(&self) -> &Notes {
        &self.notes
    }

    /// Why a copy that ended was ended by the guard; `None` when it was not.
    pub(super) fn fenced(&self, id: CopyId) -> Option<String> {
        self.notes.fenced(id)
    }

    /// The same, for tests that need no lock besides.
    #[cfg(test)]
    pub(super) fn at(data_dir: &Path) -> Self {
        Self::open(data_dir, claim(data_dir).unwrap()).unwrap()
    }

    fn path(&self, id: CopyId) -> PathBuf {
        self.folder.join(format!("{id}.script"))
    }

    fn boot_path(&self, id: CopyId) -> PathBuf {
        self.folder.join(format!("{id}.boot"))
    }

    fn halted_path(&self, id: CopyId) -> PathBuf {
        self.folder.join(format!("{id}.halted"))
    }

    /// Whether this worker ended the copy's process, in its last boot, as the worker was to end itself.
    pub(super) fn halted(&self, id: CopyId) -> bool {
        let noted = std::fs::read_to_string(self.halted_path(id)).ok();
        noted.and_then(|text| text.trim().parse().ok()) == Some(self.boot(id).unwrap_or(0))
    }

    /// Notes that the copy's process of `boot` is ended, as the worker is to end itself. If that cannot be noted, the copy
    /// counts as ended by itself, and its restart policy decides.
    pub(super) fn set_halted(&self, id: CopyId, boot: Boot) {
        if let Err(error) = identity::write_private(&self.halted_path(id), boot.to_string().as_bytes()) {
            tracing::warn!("cannot note that {id} is ended with its worker: {error}");
        }
    }

    /// Takes that back: it goes on, or is about to begin anew.
    pub(super) fn forget_halted(&self, id: CopyId) {
        remove(&self.halted_path(id));
    }

    /// The last boot of a copy that was begun; none if there was none, or it was not noted.
    pub(super) fn boot(&self, id: CopyId) -> Option<Boot> {
        std::fs::read_to_string(self.boot_path(id)).ok()?.trim().parse().ok()
    }

    /// Notes that `boot` has begun. If that cannot be noted, a worker that starts later has the copy boot once more.
    pub(super) fn set_boot(&self, id: CopyId, boot: Boot) {
        if let Err(error) = identity::write_private(&self.boot_path(id), boot.to_string().as_bytes()) {
            tracing::warn!("cannot note the boot of {id}: {error}");
        }
    }

    /// Forgets all of a copy.
    pub(super) fn forget(&self, id: CopyId) {
        self.set_script(id, ScriptState::Unstarted);
        remove(&self.boot_path(id));
        self.forget_halted(id);
    }

    pub(super) fn script(&self, id: CopyId) -> ScriptState {
        match std::fs::read(self.path(id)).as_deref() {
            Ok(b"done") => ScriptState::Done,
            Ok(note) if note.starts_with(FAILED) => {
                let message = note.strip_prefix(FAILED).unwrap_or_default();
                ScriptState::Failed(String::from_utf8_lossy(message).into_owned())
            }
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
            ScriptState::Failed(why) => identity::write_private(&self.path(id), &[FAILED, why.as_bytes()].concat()),
        };
        if let Err(error) = written {
            // The VM is worth more than the note: after a restart the script counts as interrupted.
            tracing::warn!("cannot note the state of the startup script of {id}: {error}");
        }
    }
}

fn remove(note: &Path) {
    if let Err(error) = std::fs::remove_file(note)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!("cannot remove {}: {error}", note.display());
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
        let journal = Journal::at(dir.path());
        assert!(matches!(claim(dir.path()), Err(StartError::Lock(_))));
        assert_eq!((journal.script(id), journal.boot(id)), (ScriptState::Unstarted, None));
        journal.set_boot(id, 7);
        let failed = ScriptState::Failed("exit status 3".to_owned());
        for state in [ScriptState::Begun, ScriptState::Done, failed, ScriptState::Unstarted] {
            journal.set_script(id, state.clone());
            assert_eq!(journal.script(id), state);
        }
        journal.set_script(id, ScriptState::Done);
        journal.set_halted(id, 6);
        assert!(!journal.halted(id), "that was an earlier boot");
        journal.set_halted(id, 7);
        // What the next process would read; opening it here for real could meet the lock in a child that another test is
        // about to start.
        let next =
            Journal { folder: journal.folder.clone(), notes: journal.notes.clone(), _lock: journal._lock.clone() };
        drop(journal);
        assert_eq!((next.script(id), next.boot(id)), (ScriptState::Done, Some(7)));
        assert!(next.halted(id));
        next.forget(id);
        assert!(!next.halted(id));
        assert_eq!((next.script(id), next.boot(id)), (ScriptState::Unstarted, None));
    }

    /// These names and texts are never changed: VMs of workers that were updated are gone on with by them.
    #[test]
    fn what_earlier_releases_have_noted_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let id = CopyId { uid: VmUid(uuid::Uuid::from_u128(1)), attempt: 2 };
        let journal = Journal::at(dir.path());
        let note = |kind: &str, text: &str| {
            let name = format!("00000000-0000-0000-0000-000000000001-2.{kind}");
            std::fs::write(dir.path().join("copies").join(name), text).unwrap();
        };
        for (text, state) in [
            ("begun", ScriptState::Begun),
            ("done", ScriptState::Done),
            ("failed: exit status 3", ScriptState::Failed("exit status 3".to_owned())),
        ] {
            note("script", text);
            assert_eq!(journal.script(id), state);
        }
        note("boot", "7");
        note("halted", "7");
        assert_eq!((journal.boot(id), journal.halted(id)), (Some(7), true));
    }

    #[test]
    fn a_folder_with_what_others_could_have_put_there_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        drop(Journal::at(dir.path()));
        let copies = dir.path().join("copies");
        for place in [dir.path().join("worker.nk"), copies.join("x.script"), copies.clone()] {
            let _ = std::fs::remove_dir_all(&copies);
            std::fs::create_dir(&copies).unwrap();
            let _ = std::fs::remove_dir(&place);
            std::os::unix::fs::symlink("/etc/passwd", &place).unwrap();
            let refused = claim(dir.path()).and_then(|lock| Journal::open(dir.path(), lock)).unwrap_err();
            assert!(matches!(refused, StartError::Folder { .. }), "{refused}");
            std::fs::remove_file(&place).unwrap();
        }
    }
}
