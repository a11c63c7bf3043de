//! Why the store cannot be opened, and why reading or writing it fails.

use std::path::PathBuf;

use super::seal::{KeyError, NotSealed};
use super::tables::SCHEMA;

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
    /// Another process has it.
    #[error("another controller is running on the data folder {}; stop it or choose another --data-dir", .0.display())]
    InUse(PathBuf),
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

/// Why reading or writing failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// LMDB or the system under it.
    #[error("the database failed")]
    Lmdb(#[from] heed::Error),
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
