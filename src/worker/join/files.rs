//! The private files of a machine that joins: seeds of key pairs, and what else nobody but the worker may read. Used by
//! [`super::Candidate`].

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use nkeys::{KeyPair, KeyPairType};

use super::JoinError;
use crate::identity::{self, crash};
use crate::model::secret::Secret;

/// A larger file is none of ours.
const MAX_FILE_BYTES: u64 = 16 * 1024;

/// Makes a key pair and keeps its seed in `path`.
pub(super) fn new_seed(path: &Path) -> Result<Secret, JoinError> {
    let seed = KeyPair::new_user().seed().map(Secret::new);
    let seed = seed.map_err(|error| io_error("make a key for", path)(io::Error::other(error.to_string())))?;
    identity::write_private(path, seed.expose().as_bytes()).map_err(io_error("write", path))?;
    Ok(seed)
}

/// The public half of the key pair with this seed, which was read from `path`.
pub(super) fn public_key(seed: &Secret, path: &Path) -> Result<String, JoinError> {
    let damaged = || JoinError::Damaged { path: path.to_owned(), why: "it holds no seed of a user's key" };
    let pair = KeyPair::from_seed(seed.expose()).map_err(|_| damaged())?;
    match pair.key_pair_type() {
        KeyPairType::User => Ok(pair.public_key()),
        _ => Err(damaged()),
    }
}

/// The seed in `path`; none if the file is not there.
pub(super) fn read_seed(path: &Path) -> Result<Option<Secret>, JoinError> {
    let Some(text) = read(path)? else { return Ok(None) };
    let seed = Secret::new(text.trim());
    public_key(&seed, path)?;
    Ok(Some(seed))
}

/// The text of a private file; none if it is not there.
pub(super) fn read(path: &Path) -> Result<Option<zeroize::Zeroizing<String>>, JoinError> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    // Of the file that is open, not of whatever the path leads to by then.
    let about = file.metadata().map_err(io_error("read", path))?;
    let mode = std::os::unix::fs::PermissionsExt::mode(&about.permissions()) & 0o777;
    if mode & 0o077 != 0 {
        return Err(JoinError::Exposed { path: path.to_owned(), mode });
    }
    let mut text = zeroize::Zeroizing::new(String::new());
    file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(io_error("read", path))?;
    Ok(Some(text))
}

/// Removes a private file, if it is there.
pub(super) fn remove(path: &Path) -> Result<(), JoinError> {
    crash::point().map_err(io_error("remove", path))?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Puts `from` in the place of `to`, for certain once this returns.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), JoinError> {
    let renamed = || {
        crash::point()?;
        fs::rename(from, to)?;
        crash::point()?;
        fs::File::open(to.parent().unwrap_or(Path::new(".")))?.sync_all()
    };
    renamed().map_err(io_error("write", to))
}

/// What the file system said when `doing` something with `path`.
pub(super) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JoinError {
    let path = path.to_owned();
    move |source| JoinError::Io { doing, path, source }
}
