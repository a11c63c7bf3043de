//! `DATA/guard/`, the files that worker and guard share:
//!
//! | file | written by | what |
//! |---|---|---|
//! | `lease` | the worker | [`Written`], in place |
//! | `<copy>.replace` | the worker | the copy may be started elsewhere when the lease is over |
//! | `<copy>.fenced` | whoever ends it | why, for people; told of as fenced, and started again only if the controller, once it knows, wishes for another boot |
//! | `serve.lock` | the guard | held by the one that watches |
//! | `beat` | the guard | that it goes on; see [`super::beat`] |
//! | `guard.log` | the guard | what it did |
//!
//! All but the lease count by being there, so none is ever seen half-written; none is synced, see the module's own text.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::identity;
use crate::model::CopyId;
use crate::worker::lease::{Moment, Written};

const REPLACE: &str = "replace";
const FENCED: &str = "fenced";
/// More than any note has.
const MAX_NOTE: u64 = 1024;
/// How often a lease is read that is just being written.
const TRIES: usize = 3;

/// The folder of such files.
#[derive(Clone, Debug)]
pub(in crate::worker) struct Notes {
    folder: PathBuf,
}

impl Notes {
    /// Those of the worker in `data_dir`, whether they are there or not.
    pub(super) fn of(data_dir: &Path) -> Self {
        Self { folder: data_dir.join("guard") }
    }

    /// The same, and the folder is made if it is not there, closed to others.
    ///
    /// # Errors
    /// Whatever the file system says; that it holds what others could have put there.
    pub(in crate::worker) fn open(data_dir: &Path) -> io::Result<Self> {
        let notes = Self::of(data_dir);
        identity::refuse_link(&notes.folder)?;
        identity::make_private_dir(&notes.folder)?;
        identity::refuse_foreign(&notes.folder)?;
        Ok(notes)
    }

    /// Where they are.
    pub(in crate::worker) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes the end of the lease.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub(super) fn write_lease(&self, lease: &Written) -> io::Result<()> {
        let mut options = File::options();
        options.write(true).create(true).truncate(false).mode(0o600);
        options.open(self.folder.join("lease"))?.write_all_at(lease.to_string().as_bytes(), 0)
    }

    /// The end of the lease, if it is of the start of the machine named `boot`; `None` when there is none or it cannot be
    /// read.
    pub(super) fn lease(&self, boot: &str) -> Option<Moment> {
        self.written_lease()?.until_in(boot)
    }

    /// The lease as it was written last, perhaps before the machine was started anew.
    pub(super) fn written_lease(&self) -> Option<Written> {
        let read = || Written::read(&std::fs::read_to_string(self.folder.join("lease")).ok()?);
        (0..TRIES).find_map(|_| read())
    }

    /// Marks a copy as one that may be started elsewhere, or takes that back.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub(super) fn mark(&self, id: CopyId, replaceable: bool) -> io::Result<()> {
        match replaceable {
            true => self.write(id, REPLACE, ""),
            false => self.remove(id, REPLACE),
        }
    }

    pub(super) fn is_marked(&self, id: CopyId) -> bool {
        self.path(id, REPLACE).exists()
    }

    /// All copies so marked; none when the folder is gone.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub(super) fn marked(&self) -> io::Result<BTreeSet<CopyId>> {
        Ok(self.listed()?.into_iter().filter(|(_, what)| what == REPLACE).map(|(id, _)| id).collect())
    }

    /// Notes that a copy is ended because the lease is over.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub(super) fn note_fenced(&self, id: CopyId, why: &str) -> io::Result<()> {
        match self.path(id, FENCED).exists() {
            true => Ok(()),
            false => self.write(id, FENCED, why),
        }
    }

    /// Why a copy was fenced; `None` when it was not.
    pub(in crate::worker) fn fenced(&self, id: CopyId) -> Option<String> {
        let mut why = String::new();
        let file = File::open(self.path(id, FENCED)).ok()?;
        let _ = file.take(MAX_NOTE).read_to_string(&mut why);
        Some(if why.trim().is_empty() { FENCED_MESSAGE.to_owned() } else { why.trim().to_owned() })
    }

    /// Takes back that a copy was fenced.
    pub(super) fn forget_fenced(&self, id: CopyId) {
        self.drop_note(id, FENCED);
    }

    /// Knows nothing of a copy any more, of which nothing is left.
    pub(in crate::worker) fn forget(&self, id: CopyId) {
        self.drop_note(id, REPLACE);
        self.drop_note(id, FENCED);
    }

    /// Forgets all copies but those for which `keep` says yes.
    pub(in crate::worker) fn retain(&self, keep: impl Fn(CopyId) -> bool) {
        for (id, what) in self.listed().unwrap_or_default() {
            if !keep(id) {
                self.drop_note(id, &what);
            }
        }
    }

    fn listed(&self) -> io::Result<Vec<(CopyId, String)>> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut listed = Vec::new();
        for entry in entries {
            let name = entry?.file_name();
            let Some((id, what)) = name.to_str().and_then(|name| name.rsplit_once('.')) else { continue };
            if matches!(what, REPLACE | FENCED)
                && let Some(id) = parse_id(id)
            {
                listed.push((id, what.to_owned()));
            }
        }
        Ok(listed)
    }

    fn path(&self, id: CopyId, what: &str) -> PathBuf {
        self.folder.join(format!("{id}.{what}"))
    }

    fn write(&self, id: CopyId, what: &str, text: &str) -> io::Result<()> {
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(self.path(id, what))?.write_all(text.as_bytes())
    }

    fn remove(&self, id: CopyId, what: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(id, what)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn drop_note(&self, id: CopyId, what: &str) {
        if let Err(error) = self.remove(id, what) {
            tracing::warn!("cannot remove the note {}: {error}", self.path(id, what).display());
        }
    }
}

/// What is said of a copy that was fenced if nothing else is known.
pub(super) const FENCED_MESSAGE: &str =
    "ended by its worker, which had not reached the controller for so long that the VM may be started elsewhere";

fn parse_id(text: &str) -> Option<CopyId> {
    let (uid, attempt) = text.rsplit_once('-')?;
    let id = CopyId { uid: uid.parse().ok()?, attempt: attempt.parse().ok()? };
    (id.to_string() == text).then_some(id)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::VmUid;

    fn id(n: u128) -> CopyId {
        CopyId { uid: VmUid(uuid::Uuid::from_u128(n)), attempt: 3 }
    }

    #[test]
    fn marks_and_notes_are_seen_by_whoever_looks_and_go_with_the_copy() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Notes::of(dir.path()).marked().unwrap().is_empty(), "there is no folder yet");
        let (worker, guard) = (Notes::open(dir.path()).unwrap(), Notes::of(dir.path()));
        for n in 1..=3 {
            worker.mark(id(n), true).unwrap();
        }
        worker.mark(id(3), false).unwrap();
        worker.mark(id(4), false).unwrap();
        std::fs::write(worker.folder().join("odd.replace"), "").unwrap();
        assert_eq!(guard.marked().unwrap(), [id(1), id(2)].into());
        assert!(guard.is_marked(id(1)) && !guard.is_marked(id(3)));

        guard.note_fenced(id(1), "first").unwrap();
        guard.note_fenced(id(1), "second").unwrap();
        assert_eq!((worker.fenced(id(1)).as_deref(), worker.fenced(id(2))), (Some("first"), None));
        worker.forget_fenced(id(1));
        assert_eq!((worker.fenced(id(1)), worker.is_marked(id(1))), (None, true));
        // A process that was killed in the middle.
        std::fs::write(worker.path(id(2), FENCED), "").unwrap();
        assert_eq!(worker.fenced(id(2)).as_deref(), Some(FENCED_MESSAGE));
        worker.retain(|kept| kept == id(1));
        assert_eq!((guard.marked().unwrap(), guard.fenced(id(2))), ([id(1)].into(), None));
        worker.forget(id(1));
        assert!(guard.marked().unwrap().is_empty());
    }

    #[test]
    fn a_lease_is_read_in_the_same_start_of_the_machine_only() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::open(dir.path()).unwrap();
        assert_eq!(notes.lease("a"), None);
        for seconds in [5, 500_000, 7] {
            let until = Moment::since_boot(Duration::from_secs(seconds));
            notes.write_lease(&Written { boot: "a".into(), until }).unwrap();
            assert_eq!((notes.lease("a"), notes.lease("b")), (Some(until), None));
        }
        std::fs::write(notes.folder().join("lease"), "rubbish").unwrap();
        assert_eq!(notes.lease("a"), None);
    }
}
