//! Key pairs in files, with the certificates beside them, as OpenSSH's tools make them. The command line reads them,
//! [`auth`](super::auth) proves them.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use russh::keys::{Certificate, PrivateKey, PublicKey, decode_secret_key};
use zeroize::Zeroizing;

use crate::model::secret::Secret;

/// A larger file is no key: RSA ones of 16,384 bits have some 13 KB.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// A key from a file: a pair, a pair that is locked with a passphrase, or only the public half of one that an agent holds.
#[derive(Clone, Debug)]
pub struct Key {
    path: PathBuf,
    public: PublicKey,
    private: Option<Arc<PrivateKey>>,
    /// What an authority has signed for it.
    certificate: Option<Arc<Certificate>>,
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read the key {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It holds no key that is understood.
    #[error("{} holds no key that can be used: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// It was another passphrase.
    #[error("this passphrase does not unlock {}", path.display())]
    Passphrase {
        /// The file.
        path: PathBuf,
    },
}

impl Key {
    /// Reads the key in `path`, private or public, and the certificate beside it (`id_ed25519-cert.pub`), if there is one. Blocks.
    ///
    /// # Errors
    /// [`KeyError::Io`] and [`KeyError::Content`].
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let key = Self::read_alone(path)?;
        let certificate = certificate_of(path, &key.public)?.map(Arc::new);
        Ok(Self { certificate, ..key })
    }

    fn read_alone(path: &Path) -> Result<Self, KeyError> {
        let unusable = |reason: String| KeyError::Content { path: path.to_owned(), reason };
        let text = text_of(path)?;
        if !text.contains("PRIVATE KEY-----") {
            let public = PublicKey::from_openssh(text.trim()).map_err(|error| unusable(error.to_string()))?;
            return Ok(Self { path: path.to_owned(), public, private: None, certificate: None });
        }
        let private = match PrivateKey::from_openssh(text.as_bytes()) {
            Ok(private) => private,
            // Older forms, whose public half cannot be seen while they are locked.
            Err(_) => decode_secret_key(&text, None).map_err(|error| match error {
                russh::keys::Error::KeyIsEncrypted => {
                    let file = path.display();
                    unusable(format!(
                        "it is locked in an old form; `ssh-keygen -p -f {file}` writes it in the present one"
                    ))
                }
                error => unusable(error.to_string()),
            })?,
        };
        let public = private.public_key().clone();
        Ok(Self { path: path.to_owned(), public, private: Some(Arc::new(private)), certificate: None })
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it takes a passphrase to use it.
    pub fn is_locked(&self) -> bool {
        self.private.as_ref().is_some_and(|private| private.is_encrypted())
    }

    /// The same key, unlocked. Blocks for some hundred milliseconds, so that guessing takes long.
    ///
    /// # Errors
    /// [`KeyError::Passphrase`].
    pub fn unlock(&self, passphrase: &Secret) -> Result<Self, KeyError> {
        let Some(locked) = self.private.as_ref().filter(|private| private.is_encrypted()) else {
            return Ok(self.clone());
        };
        match locked.decrypt(passphrase.expose()) {
            Ok(private) => Ok(Self { private: Some(Arc::new(private)), ..self.clone() }),
            Err(_) => Err(KeyError::Passphrase { path: self.path.clone() }),
        }
    }

    pub(super) fn certificate(&self) -> Option<&Certificate> {
        self.certificate.as_deref()
    }

    pub(super) fn public(&self) -> &PublicKey {
        &self.public
    }

    /// The private half, if it is there and not locked.
    pub(super) fn private(&self) -> Option<Arc<PrivateKey>> {
        self.private.clone().filter(|private| !private.is_encrypted())
    }
}

/// The certificate beside the key in `path`, which must be of that key.
fn certificate_of(path: &Path, public: &PublicKey) -> Result<Option<Certificate>, KeyError> {
    let mut name = match path.extension() {
        Some(extension) if extension == "pub" => path.with_extension("").into_os_string(),
        _ => path.as_os_str().to_owned(),
    };
    name.push("-cert.pub");
    let path = PathBuf::from(name);
    let text = match text_of(&path) {
        Err(KeyError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read?,
    };
    let unusable = |reason: String| KeyError::Content { path: path.clone(), reason };
    let certificate = Certificate::from_openssh(text.trim()).map_err(|error| unusable(error.to_string()))?;
    if certificate.public_key() != public.key_data() {
        return Err(unusable("it is a certificate of another key than the one that it lies beside".to_owned()));
    }
    Ok(Some(certificate))
}

fn text_of(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    let failed = |source| KeyError::Io { path: path.to_owned(), source };
    // Room from the start: a buffer that grows leaves copies of the secret behind.
    let mut text = Zeroizing::new(String::with_capacity(MAX_FILE_BYTES as usize + 1));
    File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text)).map_err(failed)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        let reason = format!("it has more than {MAX_FILE_BYTES} bytes");
        return Err(KeyError::Content { path: path.to_owned(), reason });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use russh::keys::ssh_key::LineEnding;
    use russh::keys::ssh_key::private::Ed25519Keypair;

    use super::*;

    fn pair() -> PrivateKey {
        PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]))
    }

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("id");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn a_pair_and_a_public_half_are_read() {
        let (_dir, path) = file(&pair().to_openssh(LineEnding::LF).unwrap());
        let key = Key::read(&path).unwrap();
        assert!(key.private().is_some() && !key.is_locked());
        let (_dir, path) = file(&format!("{} me@here\n", pair().public_key().to_openssh().unwrap()));
        let half = Key::read(&path).unwrap();
        assert!(half.private().is_none() && !half.is_locked());
        assert_eq!(half.public().key_data(), key.public().key_data());
    }

    #[test]
    fn a_locked_pair_shows_its_public_half_and_is_unlocked_by_its_passphrase_alone() {
        let locked = pair().encrypt(&mut russh::keys::key::safe_rng(), "open sesame").unwrap();
        let (_dir, path) = file(&locked.to_openssh(LineEnding::LF).unwrap());
        let key = Key::read(&path).unwrap();
        assert!(key.is_locked() && key.private().is_none());
        assert_eq!(key.public().key_data(), pair().public_key().key_data());
        assert!(matches!(key.unlock(&Secret::new("wrong")), Err(KeyError::Passphrase { .. })));
        let open = key.unlock(&Secret::new("open sesame")).unwrap();
        assert!(open.private().is_some() && !open.is_locked());
    }

    #[test]
    fn what_is_no_key_is_said_to_be_none() {
        for text in ["", "hello", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"] {
            let (_dir, path) = file(text);
            assert!(matches!(Key::read(&path), Err(KeyError::Content { .. })), "{text:?}");
        }
        let (_dir, path) = file(&"x".repeat(100_000));
        assert!(Key::read(&path).unwrap_err().to_string().contains("bytes"));
        assert!(matches!(Key::read(Path::new("/nowhere/id")), Err(KeyError::Io { .. })));
    }
}
