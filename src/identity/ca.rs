//! The controller's own certificate: made at the first start, loaded at every later one. Workers and clients know the
//! controller by the SHA-256 of this certificate and by nothing else, so it must outlive every restart.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::{make_private_dir, write_private};

/// The DNS name in the certificate; every client asks for it, whatever address it dials.
pub const SERVER_NAME: &str = "orchard-controller";

/// File name of the certificate, in PEM.
pub const CERTIFICATE_FILE: &str = "controller.crt";

/// File name of its private key, in PEM (PKCS #8), readable by the owner only.
pub const KEY_FILE: &str = "controller.key";

/// First and last year of validity. Fixed and wide: trust hangs on the fingerprint, and a worker whose clock is wrong
/// must still be able to come.
const VALID_YEARS: (i32, i32) = (2020, 2120);

/// A certificate with its private key.
pub struct Identity {
    certificate: CertificateDer<'static>,
    /// Those that lead from it to a CA, if it is a given one.
    intermediates: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Makes a new self-signed identity (ECDSA P-256) and keeps it in memory only.
    ///
    /// # Errors
    /// [`CaError::Generate`]; needs a broken system.
    pub fn generate() -> Result<Self, CaError> {
        let (certificate, key) = generate_pem(&[])?;
        let memory = Path::new("(memory)");
        Self::from_pem(certificate.as_bytes(), key.as_bytes(), memory, memory)
    }

    /// Reads an identity that somebody else made: the certificate, with those that lead from it to its CA behind it, and
    /// its key, both in PEM.
    ///
    /// # Errors
    /// When a file cannot be read or is none, when they do not belong together, or when others may read the key.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, CaError> {
        let chain = std::fs::read(certificate).map_err(CaError::io("read", certificate))?;
        let secret = Zeroizing::new(std::fs::read(key).map_err(CaError::io("read", key))?);
        tell_apart((certificate, &chain), (key, &secret))?;
        refuse_readable_key(key)?;
        Self::from_pem(&chain, &secret, certificate, key)
    }

    /// Loads the identity kept in `folder`, or makes a new one there if there is none; a new one is also good for `names`
    /// (hosts and addresses), for clients that look at them.
    ///
    /// # Errors
    /// When only one of the two files is there, when one cannot be read or written, when they do not belong together,
    /// or when others may read the key.
    pub fn load_or_create(folder: &Path, names: &[String]) -> Result<Self, CaError> {
        let (certificate_path, key_path) = (folder.join(CERTIFICATE_FILE), folder.join(KEY_FILE));
        match (read(&certificate_path)?, read(&key_path)?) {
            (Some(certificate), Some(key)) => {
                refuse_readable_key(&key_path)?;
                Self::from_pem(&certificate, &Zeroizing::new(key), &certificate_path, &key_path)
            }
            (None, None) => {
                let (certificate, key) = generate_pem(names)?;
                make_private_dir(folder).map_err(CaError::io("make", folder))?;
                write_private(&key_path, key.as_bytes()).map_err(CaError::io("write", &key_path))?;
                write_private(&certificate_path, certificate.as_bytes())
                    .map_err(CaError::io("write", &certificate_path))?;
                Self::from_pem(certificate.as_bytes(), key.as_bytes(), &certificate_path, &key_path)
            }
            (Some(_), None) => Err(CaError::Half { found: certificate_path, missing: key_path }),
            (None, Some(_)) => Err(CaError::Half { found: key_path, missing: certificate_path }),
        }
    }

    fn from_pem(chain: &[u8], key: &[u8], chain_path: &Path, key_path: &Path) -> Result<Self, CaError> {
        let unreadable = |path: &Path, why: String| CaError::Unreadable { path: path.to_owned(), why };
        let mut chain = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| unreadable(chain_path, error.to_string()))?;
        if chain.is_empty() {
            return Err(unreadable(chain_path, "there is no certificate in it".to_owned()));
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| unreadable(key_path, error.to_string()))?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        rustls::sign::CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider).map_err(|source| {
            CaError::Mismatch { certificate: chain_path.to_owned(), key: key_path.to_owned(), source }
        })?;
        let intermediates = chain.split_off(1);
        let certificate =
            chain.pop().ok_or_else(|| unreadable(chain_path, "there is no certificate in it".to_owned()))?;
        Ok(Self { certificate, intermediates, key })
    }

    /// The certificate and those that lead from it to its CA.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        std::iter::once(&self.certificate).chain(&self.intermediates).cloned().collect()
    }

    /// The certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A copy of the private key.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    /// What workers and clients know it by.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("fingerprint", &self.fingerprint()).finish_non_exhaustive()
    }
}

/// The SHA-256 of a certificate's DER form; written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of a certificate.
    pub fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

/// The fingerprint of a certificate (DER) as text.
pub fn fingerprint(certificate: &[u8]) -> String {
    Fingerprint::of(certificate).to_string()
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> String {
        fingerprint.to_string()
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = FingerprintError;
    fn try_from(text: String) -> Result<Self, FingerprintError> {
        text.parse()
    }
}

/// A text is not a fingerprint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a certificate fingerprint; expected are 64 hexadecimal digits (SHA-256)")]
pub struct FingerprintError(String);

impl FromStr for Fingerprint {
    type Err = FingerprintError;

    /// Reads 64 hexadecimal digits; colons between bytes and capitals are accepted, as `openssl` prints them.
    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let digits = text.replace(':', "");
        HEXLOWER_PERMISSIVE
            .decode(digits.as_bytes())
            .ok()
            .and_then(|bytes| <[u8; 32]>::try_from(bytes).ok())
            .map(Self)
            .ok_or_else(|| FingerprintError(text.chars().take(80).collect()))
    }
}

/// Why the identity cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The file system refused.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// One of the two files is missing; making it anew would silently change who the controller is.
    #[error(
        "{} is there but {} is not; workers and clients know the controller by this certificate, so restore the \
         missing file from a backup, or remove both to start over with a new certificate",
        found.display(), missing.display()
    )]
    Half {
        /// The file that is there.
        found: PathBuf,
        /// The one that is not.
        missing: PathBuf,
    },
    /// A file is not PEM of the right kind.
    #[error("{} is not usable: {why}; restore it from a backup, or name another", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Each is where the other should be.
    #[error(
        "they are swapped: {}, given as the certificate, holds a private key, and {}, given as the key, a certificate",
        certificate.display(), key.display()
    )]
    Swapped {
        /// What was given as the certificate.
        certificate: PathBuf,
        /// What was given as the key.
        key: PathBuf,
    },
    /// Nobody is there to type the passphrase.
    #[error(
        "the key {path} is encrypted, and nobody is there to type its passphrase when the controller starts; decrypt it: \
         openssl pkey -in {path} -out NEW.key && chmod 600 NEW.key", path = .0.display()
    )]
    Encrypted(PathBuf),
    /// Key and certificate are not a pair.
    #[error("{} and {} do not belong together; restore both from one backup, or name others", certificate.display(), key.display())]
    Mismatch {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
        /// What the TLS library said.
        source: rustls::Error,
    },
    /// Others than the owner may read the key.
    #[error("{} may be read by others (mode {mode:04o}); run: chmod 600 {}", path.display(), path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// No certificate could be made.
    #[error("cannot make a certificate")]
    Generate(#[from] rcgen::Error),
}

impl CaError {
    fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}

/// Says what was mixed up, by the lines that begin each part of a PEM file.
fn tell_apart((certificate, chain): (&Path, &[u8]), (key, secret): (&Path, &[u8])) -> Result<(), CaError> {
    let holds = |pem: &[u8], what: &str| pem.windows(what.len()).any(|part| part == what.as_bytes());
    let has_certificate = |pem| holds(pem, "-----BEGIN CERTIFICATE-----");
    let has_key = |pem| holds(pem, "PRIVATE KEY-----");
    let unreadable = |path: &Path, why: &str| CaError::Unreadable { path: path.to_owned(), why: why.to_owned() };
    match (has_certificate(chain), has_key(secret)) {
        (false, false) if has_key(chain) && has_certificate(secret) => {
            Err(CaError::Swapped { certificate: certificate.to_owned(), key: key.to_owned() })
        }
        (false, _) if has_key(chain) => Err(unreadable(certificate, "it holds a private key and no certificate")),
        (_, false) if has_certificate(secret) => Err(unreadable(key, "it holds a certificate and no private key")),
        _ if holds(secret, "BEGIN ENCRYPTED PRIVATE KEY") || holds(secret, "Proc-Type: 4,ENCRYPTED") => {
            Err(CaError::Encrypted(key.to_owned()))
        }
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, CaError> {
    match std::fs::read(path) {
        Ok(contents) => Ok(Some(contents)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(CaError::io("read", path)(error)),
    }
}

fn refuse_readable_key(path: &Path) -> Result<(), CaError> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(path).map_err(CaError::io("inspect", path))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(CaError::Exposed { path: path.to_owned(), mode });
        }
    }
    Ok(())
}

/// A new certificate and its key, both in PEM. Names that no certificate can hold are left out: those who look at the
/// fingerprint need none.
fn generate_pem(names: &[String]) -> Result<(String, Zeroizing<String>), CaError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()])?;
    let more = names.iter().filter_map(|name| CertificateParams::new(vec![name.clone()]).ok());
    params.subject_alt_names.extend(more.flat_map(|of_name| of_name.subject_alt_names));
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, SERVER_NAME);
    params.distinguished_name = name;
    params.not_before = rcgen::date_time_ymd(VALID_YEARS.0, 1, 1);
    params.not_after = rcgen::date_time_ymd(VALID_YEARS.1, 1, 1);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.self_signed(&key)?;
    Ok((certificate.pem(), Zeroizing::new(key.serialize_pem())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_survives_a_restart_and_its_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("new");
        let made = Identity::load_or_create(&folder, &[]).unwrap();
        let loaded = Identity::load_or_create(&folder, &[]).unwrap();
        assert_eq!(made.fingerprint(), loaded.fingerprint());
        assert_ne!(made.fingerprint(), Identity::generate().unwrap().fingerprint());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let key = folder.join(KEY_FILE);
            assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
            std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
            assert!(matches!(Identity::load_or_create(&folder, &[]), Err(CaError::Exposed { mode: 0o644, .. })));
        }
    }

    #[test]
    fn a_missing_damaged_or_foreign_half_is_refused_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        Identity::load_or_create(dir.path(), &[]).unwrap();
        let other = tempfile::tempdir().unwrap();
        Identity::load_or_create(other.path(), &[]).unwrap();
        let certificate = dir.path().join(CERTIFICATE_FILE);

        std::fs::copy(other.path().join(CERTIFICATE_FILE), &certificate).unwrap();
        assert!(matches!(Identity::load_or_create(dir.path(), &[]), Err(CaError::Mismatch { .. })));
        std::fs::write(&certificate, "nonsense").unwrap();
        assert!(matches!(Identity::load_or_create(dir.path(), &[]), Err(CaError::Unreadable { .. })));
        std::fs::remove_file(&certificate).unwrap();
        assert!(matches!(Identity::load_or_create(dir.path(), &[]), Err(CaError::Half { .. })));
        assert!(!certificate.exists());
    }

    #[test]
    fn fingerprints_are_hex_and_forgive_how_tools_print_them() {
        let print = Fingerprint::of(b"abc");
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!((print.to_string(), fingerprint(b"abc")), (text.to_owned(), text.to_owned()));
        let shouted: Vec<String> =
            text.to_uppercase().as_bytes().chunks(2).map(|c| String::from_utf8_lossy(c).into_owned()).collect();
        assert_eq!(shouted.join(":").parse::<Fingerprint>().unwrap(), print);
        for bad in ["", "ba78", &format!("{text}00"), "zz", &"ä".repeat(64)] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad:?}");
        }
    }
}
