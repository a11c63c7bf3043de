//! The form of a backup file: [`MAGIC`], the length of the manifest and the manifest, the database, and at the end its
//! length and the SHA-256 of all before. So a file that was cut short, or changed anywhere, is known as such.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::FILES;
use crate::model::Timestamp;

/// What a backup begins with, the version of its form included.
const MAGIC: &[u8] = b"orchard-backup/1\n";
/// What every version's begins with.
const ANY_MAGIC: &[u8] = b"orchard-backup/";
/// The longest manifest: some small files.
const MAX_MANIFEST: u32 = 1 << 20;
/// What is read at a time.
const BLOCK: usize = 64 * 1024;
/// Bytes of a length.
const LENGTH: u64 = 8;
/// Bytes of the hash.
const HASH: u64 = 32;

/// What a backup says of itself, and the small files.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// When it was made.
    pub(super) created: Timestamp,
    /// By which release.
    pub(super) release: String,
    /// The files by name.
    pub(super) files: BTreeMap<String, Vec<u8>>,
}

/// Why a file is not taken for a backup.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// Reading failed.
    #[error("it cannot be read")]
    Read(#[from] io::Error),
    /// It is something else.
    #[error("it is no backup of an Orchard controller")]
    NotABackup,
    /// A newer release made it.
    #[error("a newer release made it; restore it with that release")]
    Newer,
    /// It ends too early.
    #[error("it is incomplete: it was not written or not copied to its end; use another backup")]
    Incomplete,
    /// The checksum does not fit.
    #[error("it is damaged: its contents do not fit its checksum; use another backup")]
    Damaged,
}

impl Manifest {
    /// The files that are in `folder` now.
    pub(super) fn of(folder: &Path, created: Timestamp) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        for name in FILES {
            match std::fs::read(folder.join(name)) {
                Ok(bytes) => drop(files.insert((*name).to_owned(), bytes)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self { created, release: env!("CARGO_PKG_VERSION").to_owned(), files })
    }

    /// How a backup with it begins.
    pub(super) fn head(&self) -> io::Result<Vec<u8>> {
        let body = rmp_serde::to_vec_named(self).map_err(io::Error::other)?;
        let length = u32::try_from(body.len()).ok().filter(|length| *length <= MAX_MANIFEST);
        let length = length.ok_or_else(|| io::Error::other("the files beside the database are too large"))?;
        Ok([MAGIC, &length.to_be_bytes(), &body].concat())
    }
}

/// Ends a backup whose database has `length` bytes; all is on the disk on return. Yields the size of the whole.
pub(super) fn finish(out: &mut File, length: u64) -> io::Result<u64> {
    out.write_all(&length.to_be_bytes())?;
    out.rewind()?;
    let mut hash = Sha256::new();
    io::copy(out, &mut Hashing { hash: &mut hash, to: io::sink() })?;
    out.write_all(&hash.finalize())?;
    out.sync_all()?;
    out.stream_position()
}

/// A backup whose manifest was read, and whose database comes next.
pub(super) struct Reading {
    file: File,
    hash: Sha256,
    length: u64,
    pub(super) manifest: Manifest,
}

impl Reading {
    /// Begins to read. Nothing of it is proven right before [`Reading::copy_database`] says so.
    pub(super) fn begin(mut file: File) -> Result<Self, FormError> {
        let mut magic = vec![0; MAGIC.len()];
        let got = read_up_to(&mut file, &mut magic)?;
        if !magic.starts_with(ANY_MAGIC) {
            return Err(FormError::NotABackup);
        }
        if got < magic.len() {
            return Err(FormError::Incomplete);
        }
        if magic != MAGIC {
            return Err(FormError::Newer);
        }
        let mut length = [0; 4];
        exactly(&mut file, &mut length)?;
        if u32::from_be_bytes(length) > MAX_MANIFEST {
            return Err(FormError::Damaged);
        }
        let mut body = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap_or(0)];
        exactly(&mut file, &mut body)?;
        let manifest: Manifest = rmp_serde::from_slice(&body).map_err(|_| FormError::Damaged)?;
        let mut hash = Sha256::new();
        for part in [magic.as_slice(), &length, &body] {
            hash.update(part);
        }
        let (begin, end) = (file.stream_position()?, file.seek(SeekFrom::End(0))?);
        let length = end.checked_sub(begin + LENGTH + HASH).ok_or(FormError::Incomplete)?;
        file.seek(SeekFrom::Start(begin))?;
        Ok(Self { file, hash, length, manifest })
    }

    /// Writes the database to `to`, and says whether the whole backup is as it was made.
    pub(super) fn copy_database(mut self, to: &mut impl Write) -> Result<(), CopyError> {
        let mut block = vec![0; BLOCK];
        let mut left = self.length;
        while left > 0 {
            let size = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
            let Some(part) = block.get_mut(..size) else { break };
            exactly(&mut self.file, part)?;
            self.hash.update(&*part);
            to.write_all(part).map_err(CopyError::Write)?;
            left = left.saturating_sub(size as u64);
        }
        let mut length = [0; LENGTH as usize];
        exactly(&mut self.file, &mut length)?;
        self.hash.update(length);
        let mut hash = [0; HASH as usize];
        exactly(&mut self.file, &mut hash)?;
        // Cut short, it ends with other bytes than its own length.
        match (u64::from_be_bytes(length) == self.length, self.hash.finalize().as_slice() == hash) {
            (true, true) => Ok(()),
            (true, false) => Err(FormError::Damaged.into()),
            (false, _) => Err(FormError::Incomplete.into()),
        }
    }
}

/// Why a database could not be copied out of a backup.
#[derive(Debug, thiserror::Error)]
pub(super) enum CopyError {
    #[error(transparent)]
    Form(#[from] FormError),
    #[error(transparent)]
    Write(io::Error),
}

fn exactly(file: &mut File, to: &mut [u8]) -> Result<(), FormError> {
    file.read_exact(to).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => FormError::Incomplete,
        _ => FormError::Read(error),
    })
}

fn read_up_to(file: &mut File, to: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = to.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

struct Hashing<'a, W> {
    hash: &'a mut Sha256,
    to: W,
}

impl<W: Write> Write for Hashing<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.to.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
