//! The host key of the jump host: made once, in the form of OpenSSH, and kept in the data folder; or the operator's.

use std::io;
use std::path::{Path, PathBuf};

use russh::keys::ssh_key::LineEnding;
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{PrivateKey, load_secret_key};
use zeroize::Zeroizing;

use crate::identity::write_private;

/// In the data folder, as the system has it that users come from.
const NAME: &str = "ssh_host_ed25519_key";

/// Why there is no host key.
#[derive(Debug, thiserror::Error)]
pub enum HostKeyError {
    /// It cannot be read, or is none.
    #[error("cannot use the SSH host key {}; it must be a private key in OpenSSH's form, without a passphrase", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: russh::keys::Error,
    },
    /// It cannot be kept.
    #[error("cannot keep the SSH host key in {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no randomness to make one of.
    #[error("cannot make an SSH host key: {0}")]
    Make(String),
}

/// The key in `given`; without that, the one in `data_dir`, which is made if it is not there.
///
/// # Errors
/// [`HostKeyError`].
pub(super) fn load_or_make(data_dir: &Path, given: Option<&Path>) -> Result<PrivateKey, HostKeyError> {
    let path = given.map_or_else(|| data_dir.join(NAME), Path::to_owned);
    if given.is_none() && !path.exists() {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(seed.as_mut()).map_err(|error| HostKeyError::Make(error.to_string()))?;
        let key = PrivateKey::from(Ed25519Keypair::from_seed(&seed));
        let text = key.to_openssh(LineEnding::LF).map_err(|error| HostKeyError::Make(error.to_string()))?;
        let written = write_private(&path, text.as_bytes());
        written.map_err(|source| HostKeyError::Write { path: path.clone(), source })?;
    }
    load_secret_key(&path, None).map_err(|source| HostKeyError::Read { path, source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_one_that_is_given_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let made = load_or_make(dir.path(), None).unwrap();
        let path = dir.path().join(NAME);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(load_or_make(dir.path(), None).unwrap().public_key(), made.public_key());
        let other = tempfile::tempdir().unwrap();
        assert_eq!(load_or_make(other.path(), Some(&path)).unwrap().public_key(), made.public_key());
        assert!(!other.path().join(NAME).exists());
    }

    #[test]
    fn what_is_no_key_is_told_of_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        std::fs::write(&path, "nonsense").unwrap();
        let error = load_or_make(dir.path(), None).unwrap_err().to_string();
        assert!(error.contains(NAME) && error.contains("passphrase"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"nonsense");
        assert!(load_or_make(dir.path(), Some(Path::new("/nowhere/key"))).is_err());
    }
}
