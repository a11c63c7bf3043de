//! Sealing of records that hold secrets: whole values of the table `vms` (guest passwords, environments of scripts),
//! encrypted before LMDB sees them. Used by the store for each such value it writes or reads, and by its migration.
//!
//! AES-256-GCM-SIV, so that even a nonce drawn twice gives away no more than that two plain texts are equal. A value is
//! bound to its table and key: one that was copied to another record does not open there. The key lies in [`KEY_FILE`] in
//! the data folder, readable by the owner only; a copy of the database alone tells nothing.
//!
//! Cost: 29 bytes a record, and of the 0.75 s that loading 10,000 VMs with a password and a variable each takes (debug
//! build, busy machine), 0.22 s are opening and the rest is decoding.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use zeroize::{Zeroize, Zeroizing};

use crate::identity::write_private;

/// File name of the key, beside the database: its bytes and nothing else.
pub const KEY_FILE: &str = "store.key";

/// Length of the key.
const KEY_LEN: usize = 32;

/// First byte of a sealed value: how the rest is to be read.
const FORM: u8 = 1;

/// What stands before the sealed text: that byte and the nonce.
pub(super) const HEAD: usize = 1 + NONCE_LEN;

/// Why there is no key to seal with.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file system refused.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is a link, a folder or something else.
    #[error("{} is not an ordinary file; restore it from a backup", .0.display())]
    NotAFile(PathBuf),
    /// Others than the owner may read it.
    #[error("{} may be read by others (mode {mode:04o}); run: chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is not a key.
    #[error("{} has {found} bytes instead of {KEY_LEN}; restore it from a backup", path.display())]
    Length {
        /// Which file.
        path: PathBuf,
        /// Its length.
        found: u64,
    },
    /// Records are there that only the missing key opens.
    #[error(
        "{} is missing, and the stored VMs cannot be read without it; restore it from a backup of the data folder (a new \
         key would not open them)",
        .0.display()
    )]
    Missing(PathBuf),
    /// The system has no randomness, or the library refuses the key.
    #[error("no key can be made")]
    Make,
}

/// A value was not sealed with this key for this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it does not open with {KEY_FILE}: the key is another one, or the record was changed")]
pub struct NotSealed;

/// The key in use.
pub struct Seal {
    key: RandomizedNonceKey,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal(…)")
    }
}

impl Seal {
    /// Loads the key kept in `folder`. Without one, a new key is made and kept there if `fresh` says that nothing was
    /// sealed with the one that is not there.
    ///
    /// # Errors
    /// [`KeyError`]; nothing was written then.
    pub fn load(folder: &Path, fresh: bool) -> Result<Self, KeyError> {
        let path = folder.join(KEY_FILE);
        match read(&path)? {
            Some(bytes) => Self::from_bytes(&bytes),
            None if fresh => {
                let mut bytes = Zeroizing::new([0u8; KEY_LEN]);
                getrandom::fill(bytes.as_mut_slice()).map_err(|_| KeyError::Make)?;
                write_private(&path, bytes.as_slice()).map_err(|source| KeyError::Io {
                    doing: "write",
                    path,
                    source,
                })?;
                Self::from_bytes(bytes.as_slice())
            }
            None => Err(KeyError::Missing(path)),
        }
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        Ok(Self { key: RandomizedNonceKey::new(&AES_256_GCM_SIV, bytes).map_err(|_| KeyError::Make)? })
    }

    /// Seals `plain`, which stands at `key` of `table`.
    ///
    /// # Errors
    /// [`KeyError::Make`] when the system has no randomness.
    pub fn seal(&self, table: &str, key: &[u8], plain: &[u8]) -> Result<Vec<u8>, KeyError> {
        let mut value = Vec::with_capacity(HEAD + plain.len() + AES_256_GCM_SIV.tag_len());
        value.resize(HEAD, 0);
        value.extend_from_slice(plain);
        self.seal_in_place(table, key, &mut value)?;
        Ok(value)
    }

    /// The same in place: `value` is [`HEAD`] bytes and the plain text, of which nothing is left in it whatever happens.
    ///
    /// # Errors
    /// As for [`Seal::seal`].
    pub(super) fn seal_in_place(&self, table: &str, key: &[u8], value: &mut Vec<u8>) -> Result<(), KeyError> {
        let aad = Aad::from(place(table, key));
        let sealed = value.split_at_mut_checked(HEAD).and_then(|(head, body)| {
            let (nonce, tag) = self.key.seal_in_place_separate_tag(aad, body).ok()?;
            let (form, room) = head.split_first_mut()?;
            *form = FORM;
            room.copy_from_slice(nonce.as_ref());
            Some(tag)
        });
        let Some(tag) = sealed else {
            value.zeroize();
            return Err(KeyError::Make);
        };
        value.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// The plain text of `sealed`, as found at `key` of `table`.
    ///
    /// # Errors
    /// [`NotSealed`] when anything about it is not as it was sealed.
    pub fn open(&self, table: &str, key: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, NotSealed> {
        let Some((&FORM, rest)) = sealed.split_first() else { return Err(NotSealed) };
        let (nonce, body) = rest.split_at_checked(NONCE_LEN).ok_or(NotSealed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| NotSealed)?;
        let mut body = Zeroizing::new(body.to_vec());
        let length = self
            .key
            .open_in_place(nonce, Aad::from(place(table, key)), body.as_mut_slice())
            .map_err(|_| NotSealed)?
            .len();
        body.truncate(length);
        Ok(body)
    }
}

/// What a value is bound to. No table's name holds a zero byte, so that two places never read the same.
fn place(table: &str, key: &[u8]) -> Vec<u8> {
    [table.as_bytes(), &[0], key].concat()
}

fn read(path: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, KeyError> {
    let io = |doing: &'static str| {
        let path = path.to_owned();
        move |source| KeyError::Io { doing, path, source }
    };
    // Not followed: a link could lead to a file that somebody else chooses and reads.
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io("inspect")(error)),
    };
    if !found.is_file() {
        return Err(KeyError::NotAFile(path.to_owned()));
    }
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.to_owned(), mode });
        }
    }
    if found.len() != KEY_LEN as u64 {
        return Err(KeyError::Length { path: path.to_owned(), found: found.len() });
    }
    Ok(Some(Zeroizing::new(std::fs::read(path).map_err(io("read"))?)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seal() -> Seal {
        Seal::from_bytes(&[7; KEY_LEN]).unwrap()
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens_in_its_place_only(plain in prop::collection::vec(any::<u8>(), 0..500), flipped in any::<prop::sample::Index>()) {
            let seal = seal();
            let sealed = seal.seal("vms", b"key", &plain).unwrap();
            prop_assert_eq!(seal.open("vms", b"key", &sealed), Ok(Zeroizing::new(plain)));
            prop_assert_eq!(seal.open("vms", b"kez", &sealed), Err(NotSealed));
            prop_assert_eq!(seal.open("vm", b"skey", &sealed), Err(NotSealed));
            let mut changed = sealed.clone();
            let place = flipped.index(changed.len());
            changed[place] ^= 1;
            prop_assert_eq!(seal.open("vms", b"key", &changed), Err(NotSealed));
            prop_assert_eq!(seal.open("vms", b"key", &sealed[..place]), Err(NotSealed));
            let other = Seal::from_bytes(&[8; KEY_LEN]).unwrap();
            prop_assert_eq!(other.open("vms", b"key", &sealed), Err(NotSealed));
        }
    }

    #[test]
    fn the_same_plain_text_never_looks_the_same() {
        let seal = seal();
        assert_ne!(seal.seal("vms", b"key", b"plain").unwrap(), seal.seal("vms", b"key", b"plain").unwrap());
    }

    #[cfg(unix)]
    #[test]
    fn a_key_that_is_missing_readable_by_others_too_short_or_a_link_is_refused() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(KEY_FILE);
        assert!(matches!(Seal::load(dir.path(), false), Err(KeyError::Missing(_))));
        Seal::load(dir.path(), true).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let key = std::fs::read(&path).unwrap();
        Seal::load(dir.path(), true).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), key, "a key that is there stays");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(matches!(Seal::load(dir.path(), true), Err(KeyError::Exposed { mode: 0o640, .. })));
        write_private(&path, b"short").unwrap();
        assert!(matches!(Seal::load(dir.path(), true), Err(KeyError::Length { found: 5, .. })));
        let elsewhere = dir.path().join("elsewhere");
        write_private(&elsewhere, &key).unwrap();
        std::fs::remove_file(&path).unwrap();
        symlink(&elsewhere, &path).unwrap();
        assert!(matches!(Seal::load(dir.path(), true), Err(KeyError::NotAFile(_))));
    }
}
