//! What is kept beside the tool's own files, by the name that the tool knows a copy by: what the tool cannot tell, and what
//! a worker process must leave to the next.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::identity::{make_private_dir, write_private};
use crate::worker::runtime::RuntimeError;
use crate::worker::runtime::process::Process;

/// One kind of note.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Note {
    /// It was never started.
    Unstarted,
    /// Its guest is part of another network.
    Bridged,
    /// The image by its digest.
    Fqn,
    /// The process of the call that makes it.
    Making,
    /// The process of `run`.
    Process,
    /// The exit code of `run`.
    Exit,
    /// The output of `run`.
    Log,
}

/// Those about one start.
pub(super) const OF_A_START: [Note; 3] = [Note::Process, Note::Exit, Note::Log];
const ALL: [Note; 7] = [Note::Unstarted, Note::Bridged, Note::Fqn, Note::Making, Note::Process, Note::Exit, Note::Log];

impl Note {
    fn suffix(self) -> &'static str {
        match self {
            Note::Unstarted => "unstarted",
            Note::Bridged => "bridged",
            Note::Fqn => "fqn",
            Note::Making => "making",
            Note::Process => "json",
            Note::Exit => "exit",
            Note::Log => "log",
        }
    }
}

/// The folder of all notes.
#[derive(Clone, Debug)]
pub(super) struct Notes(PathBuf);

impl Notes {
    pub(super) fn open(folder: &Path) -> Result<Self, RuntimeError> {
        make_private_dir(folder).map_err(RuntimeError::io(format!("cannot make {}", folder.display())))?;
        Ok(Self(folder.to_owned()))
    }

    pub(super) fn folder(&self) -> &Path {
        &self.0
    }

    pub(super) fn path(&self, name: &str, note: Note) -> PathBuf {
        self.0.join(format!("{name}.{}", note.suffix()))
    }

    pub(super) fn has(&self, name: &str, note: Note) -> bool {
        self.path(name, note).exists()
    }

    pub(super) fn write(&self, name: &str, note: Note, text: &[u8]) -> Result<(), RuntimeError> {
        let path = self.path(name, note);
        write_private(&path, text).map_err(RuntimeError::io(format!("cannot write {}", path.display())))
    }

    /// What it says; empty if it is not there.
    pub(super) fn read(&self, name: &str, note: Note) -> String {
        std::fs::read_to_string(self.path(name, note)).unwrap_or_default()
    }

    pub(super) fn remove(&self, name: &str, notes: &[Note]) {
        for note in notes {
            let _ = std::fs::remove_file(self.path(name, *note));
        }
    }

    pub(super) fn remove_all(&self, name: &str) {
        self.remove(name, &ALL);
    }

    /// The living process that is noted.
    pub(super) async fn process(&self, name: &str, note: Note) -> Option<Process> {
        let process: Process = serde_json::from_str(&self.read(name, note)).ok()?;
        process.alive().await.then_some(process)
    }

    /// The copies with any note.
    pub(super) fn names(&self) -> BTreeSet<String> {
        ALL.into_iter().flat_map(|note| self.all_with(note)).collect()
    }

    /// The copies with such a note.
    pub(super) fn all_with(&self, note: Note) -> Vec<String> {
        let suffix = format!(".{}", note.suffix());
        let entries = std::fs::read_dir(&self.0).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| name.strip_suffix(&suffix).map(str::to_owned)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_note_has_a_name_of_its_own_and_is_found_by_it() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::open(&dir.path().join("notes")).unwrap();
        for note in ALL {
            notes.write("orchard-a.b", note, note.suffix().as_bytes()).unwrap();
            assert_eq!(notes.read("orchard-a.b", note), note.suffix());
            assert_eq!(notes.all_with(note), ["orchard-a.b"]);
        }
        assert_eq!(std::fs::read_dir(notes.folder()).unwrap().count(), ALL.len());
        notes.remove_all("orchard-a.b");
        assert!(!notes.has("orchard-a.b", Note::Log) && notes.read("orchard-a.b", Note::Log).is_empty());
        assert_eq!(std::fs::read_dir(notes.folder()).unwrap().count(), 0);
    }
}
