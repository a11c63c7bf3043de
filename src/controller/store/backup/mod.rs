//! Backups: all that makes a controller itself, in one file. `orchard controller backup` calls [`write()`], `orchard
//! controller restore` calls [`restore::restore`].
//!
//! # Who writes it
//!
//! The command itself, as a second reader of the database, and not the controller on request. LMDB is made for this: a
//! reader of another process sees one committed state, whole, and holds up no writer, so the backup is hot. It takes no
//! account, no verb and no path that comes over the bus: whoever may enter the data folder may copy it, and nobody else
//! learns of it. It works the same while the controller is stopped, hangs or cannot start, which is when a backup is wanted
//! most. The one price: pages that the snapshot still needs are not used anew while it is read.
//!
//! # What is in it
//!
//! The database without its free pages, the key that opens its records, the certificate and its key, and the tokens of the
//! folder. What a controller was given with `--controller-cert` lies elsewhere and stays there. Whoever has the file has the
//! cluster: it is of mode 0600, and there is no use in sealing it with a key that it holds.
//!
//! # After restoring
//!
//! Everything is as it was when the backup was made: what was changed later is not known any more, and VMs of later are
//! strays on their workers: told of and left alone. No VM that came with the backup starts before every worker that the
//! backup knows has told what it has, see `cluster::restored`. Sessions and leases begin anew, as after every start. Numbers of events
//! and of audit records go on from the microseconds since 1970 at the time of restoring, far above all that were ever given
//! out: no subscriber ever sees two things under one number, or numbers going back, however often and from whatever backup
//! is restored (at less than a million events a second). The gap before them is passed over like that of events that are
//! no longer kept.

mod form;
pub mod restore;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use heed::CompactionOption;

use self::form::Manifest;
use super::tables;
use crate::identity;
use crate::model::Timestamp;

/// The folder of the database, in the data folder.
const DATABASE: &str = "db";
/// The file of it.
const DATABASE_FILE: &str = "data.mdb";
/// The other files that are kept, where they are there: the store's key, the certificate with its key, the token for an
/// outside bus, and the first account's until somebody has saved it.
const FILES: &[&str] = &["store.key", "controller.key", "controller.crt", "token", "bootstrap-admin.token"];

/// Why no backup was made; no file is left then.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The data folder is not there, or not ours.
    #[error("cannot back up the data folder {}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// There is nothing to back up.
    #[error("{} holds no controller's database; name its data folder with --data-dir", .0.display())]
    Nothing(PathBuf),
    /// Something is there already.
    #[error("{} is there already, and a backup replaces none; choose another name", .0.display())]
    Exists(PathBuf),
    /// The file cannot be written.
    #[error("cannot write the backup {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The database cannot be read.
    #[error("cannot copy the database in {}", path.display())]
    Database {
        /// The data folder.
        path: PathBuf,
        /// What LMDB said.
        source: heed::Error,
    },
    /// Keys became others meanwhile.
    #[error("the keys in {} were changed while they were copied; try again", .0.display())]
    Changed(PathBuf),
}

/// Writes a backup of the controller in `folder`, which may be serving, to `file`, made at `now`. Yields its size in bytes.
/// Blocks.
///
/// # Errors
/// [`BackupError`].
pub fn write(folder: &Path, file: &Path, now: Timestamp) -> Result<u64, BackupError> {
    let folder_error = |source| BackupError::Folder { path: folder.to_owned(), source };
    let file_error = |source| BackupError::File { path: file.to_owned(), source };
    let database = folder.join(DATABASE);
    for path in [folder, &database] {
        identity::refuse_foreign(path).map_err(folder_error)?;
    }
    if !database.join(DATABASE_FILE).exists() || folder.join(restore::READY).exists() {
        return Err(BackupError::Nothing(folder.to_owned()));
    }
    if file.symlink_metadata().is_ok() {
        return Err(BackupError::Exists(file.to_owned()));
    }
    let part = part_of(file).map_err(file_error)?;
    let written = open_new(&part).map_err(file_error).and_then(|out| {
        let size = fill(out, folder, file, now)?;
        std::fs::rename(&part, file).and_then(|()| sync_folder_of(file)).map_err(file_error)?;
        Ok(size)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}

fn fill(mut out: File, folder: &Path, file: &Path, now: Timestamp) -> Result<u64, BackupError> {
    let folder_error = |source| BackupError::Folder { path: folder.to_owned(), source };
    let file_error = |source| BackupError::File { path: file.to_owned(), source };
    let database_error = |source| BackupError::Database { path: folder.to_owned(), source };
    let manifest = Manifest::of(folder, now).map_err(folder_error)?;
    out.write_all(&manifest.head().map_err(file_error)?).map_err(file_error)?;
    let begin = out.stream_position().map_err(file_error)?;
    let env = tables::open_to_read(&folder.join(DATABASE)).map_err(database_error)?;
    env.copy_to_file(&mut out, CompactionOption::Enabled).map_err(|error| match error {
        heed::Error::Io(source) => file_error(source),
        other => database_error(other),
    })?;
    env.prepare_for_closing().wait();
    if Manifest::of(folder, now).map_err(folder_error)?.files != manifest.files {
        return Err(BackupError::Changed(folder.to_owned()));
    }
    let end = out.seek(SeekFrom::End(0)).map_err(file_error)?;
    form::finish(&mut out, end.saturating_sub(begin)).map_err(file_error)
}

/// Where it grows until it is whole, beside its place.
fn part_of(file: &Path) -> io::Result<PathBuf> {
    let name = file.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file name"))?;
    let mut part = name.to_owned();
    part.push(format!(".{}.part", std::process::id()));
    Ok(file.with_file_name(part))
}

fn open_new(path: &Path) -> io::Result<File> {
    // Of a process of the same id that was killed.
    let _ = std::fs::remove_file(path);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

fn sync_folder_of(file: &Path) -> io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    identity::sync_folder(folder)
}
