//! Why the store cannot be opened, and why reading or writing it fails.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::pages::PagesError;
use super::seal::{KeyError, NotSealed};
use super::tables::SCHEMA;
use crate::identity::folder::LockError;

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be made or entered.
    #[error("cannot use the data folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Another process has it, or it cannot be locked.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A newer release wrote it.
    #[error("the data folder {} was written by a newer release (schema {found}, this one knows up to {SCHEMA}); use that release, or another --data-dir", path.display())]
    Newer {
        /// The folder.
        path: PathBuf,
        /// Its schema.
        found: u32,
    },
    /// The key that opens its records.
    #[error("cannot open the stored records")]
    Key(#[from] KeyError),
    /// It may be read but not written.
    #[error("the database in {} cannot be written; let the user that runs the controller write it, on a file system that is not read-only", path.display())]
    ReadOnly {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: StoreError,
    },
    /// LMDB refuses it, or a record cannot be read.
    #[error("the database in {} cannot be read", path.display())]
    Database {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
}

impl OpenError {
    /// Why the database in `path` cannot be opened.
    pub(super) fn database(path: &Path, source: StoreError) -> Self {
        let path = path.to_owned();
        match &source {
            StoreError::Lmdb(heed::Error::Io(error))
                if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) =>
            {
                Self::ReadOnly { path, source }
            }
            _ => Self::Database { source: source.at(&path), path },
        }
    }
}

/// Why reading or writing failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// LMDB or the system under it.
    #[error("the database failed")]
    Lmdb(#[from] heed::Error),
    /// Its pages are not sound.
    #[error(transparent)]
    Pages(#[from] PagesError),
    /// There is no room on the disk.
    #[error("the disk is full: {} has {} KiB left; make room there, and it goes on by itself", path.display(), left / 1024)]
    DiskFull {
        /// Where the database is.
        path: PathBuf,
        /// What is left there, in bytes.
        left: u64,
    },
    /// It may not be written now.
    #[error("the database in {} cannot be written: {why}; make it writable again (mount the disk to write, mend its permissions), and it goes on by itself", path.display())]
    NotWritable {
        /// Where the database is.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// A record is not what this release expects.
    #[error("record {key} of table {table} is damaged or of another release")]
    Damaged {
        /// Where.
        table: &'static str,
        /// Which.
        key: String,
        /// How.
        #[source]
        source: rmp_serde::decode::Error,
    },
    /// A record that should be sealed does not open.
    #[error("record {key} of table {table} cannot be read; restore database and key from one backup")]
    Sealed {
        /// Where.
        table: &'static str,
        /// Which.
        key: String,
        /// Why.
        #[source]
        source: NotSealed,
    },
    /// A record cannot be sealed.
    #[error("a record cannot be sealed")]
    Seal(#[from] KeyError),
    /// A record cannot be written as MessagePack.
    #[error("a record cannot be encoded")]
    Encode(#[from] rmp_serde::encode::Error),
}

impl StoreError {
    /// As a full disk what is one. LMDB tells a write that the system cut short, which is how a full disk shows first, as an
    /// input/output error.
    pub(super) fn at(self, folder: &Path) -> Self {
        let Self::Lmdb(heed::Error::Io(error)) = &self else { return self };
        if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) {
            return Self::NotWritable { path: folder.to_owned(), why: error.to_string() };
        }
        let left = rustix::fs::statvfs(folder).map_or(u64::MAX, |about| about.f_bavail.saturating_mul(about.f_frsize));
        let full = matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        let cut_short = error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) && left < NO_ROOM;
        match full || cut_short {
            true => Self::DiskFull { path: folder.to_owned(), left },
            false => self,
        }
    }
}

/// With less room than this a write that was cut short was so for want of it: the largest transaction takes some MiB.
const NO_ROOM: u64 = 16 << 20;
