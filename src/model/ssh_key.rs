//! Public keys as people have them in `~/.ssh/*.pub` (RFC 4253 section 6.6, in OpenSSH's form of a line).

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64, BASE64_NOPAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The longest line in bytes: an RSA key of 8,192 bits and its comment have room.
pub const MAX_LINE: usize = 4096;

/// Kinds of keys with which OpenSSH clients of this decade sign. SHA-1 signatures are refused when they come.
const KINDS: &[&str] = &[
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// A public key, without options and comment: kind and bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SshKey {
    kind: String,
    bytes: Vec<u8>,
}

/// Why a text is no public key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SshKeyError {
    /// It is the other half.
    #[error(
        "this is a private key, which belongs to nobody but its owner; give the public one, as in ~/.ssh/id_ed25519.pub"
    )]
    Private,
    /// Longer than [`MAX_LINE`].
    #[error("a public key of {0} bytes; at most {MAX_LINE} are taken")]
    TooLong(usize),
    /// Not of this form.
    #[error("{0:?} is not a public key as in ~/.ssh/id_ed25519.pub: KIND BASE64 [COMMENT]")]
    Form(String),
    /// Of a kind that is not taken.
    #[error("a key of kind {0:?}; taken are {kinds}", kinds = KINDS.join(", "))]
    Kind(String),
}

impl SshKey {
    /// From what came over a connection: the bytes that name their kind.
    ///
    /// # Errors
    /// [`SshKeyError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SshKeyError> {
        let kind = kind_of(bytes).ok_or_else(|| SshKeyError::Form("…".to_owned()))?;
        if !KINDS.contains(&kind) {
            return Err(SshKeyError::Kind(kind.to_owned()));
        }
        Ok(Self { kind: kind.to_owned(), bytes: bytes.to_vec() })
    }

    /// What `ssh-keygen -l` shows.
    pub fn fingerprint(&self) -> String {
        format!("SHA256:{}", BASE64_NOPAD.encode(&Sha256::digest(&self.bytes)))
    }
}

/// The first string of a key's bytes.
fn kind_of(bytes: &[u8]) -> Option<&str> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    // A kind alone is no key.
    (rest.len() > length).then(|| rest.get(..length)).flatten().and_then(|kind| std::str::from_utf8(kind).ok())
}

impl FromStr for SshKey {
    type Err = SshKeyError;

    fn from_str(text: &str) -> Result<Self, SshKeyError> {
        let text = text.trim();
        if text.contains("PRIVATE KEY") {
            return Err(SshKeyError::Private);
        }
        if text.len() > MAX_LINE {
            return Err(SshKeyError::TooLong(text.len()));
        }
        let form = || SshKeyError::Form(text.chars().take(60).collect());
        if text.contains(['\n', '\r']) {
            return Err(form());
        }
        let (kind, rest) = text.split_once([' ', '\t']).ok_or_else(form)?;
        let encoded = rest.split_ascii_whitespace().next().ok_or_else(form)?;
        if !KINDS.contains(&kind) {
            // What looks like one may have options in front; those would not be kept to.
            return Err(if BASE64.decode(encoded.as_bytes()).is_ok() {
                SshKeyError::Kind(kind.to_owned())
            } else {
                form()
            });
        }
        let bytes = BASE64.decode(encoded.as_bytes()).map_err(|_| form())?;
        let key = Self::from_bytes(&bytes).map_err(|_| form())?;
        if key.kind == kind { Ok(key) } else { Err(form()) }
    }
}

impl fmt::Display for SshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, BASE64.encode(&self.bytes))
    }
}

impl fmt::Debug for SshKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SshKey({} {})", self.kind, self.fingerprint())
    }
}

impl TryFrom<String> for SshKey {
    type Error = SshKeyError;

    fn try_from(text: String) -> Result<Self, SshKeyError> {
        text.parse()
    }
}

text_schema! {
    SshKey { "description": "A public key as OpenSSH writes it, without comment: KIND BASE64." }
}

impl From<SshKey> for String {
    fn from(key: SshKey) -> Self {
        key.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LINE: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

    #[test]
    fn a_line_is_read_without_its_comment_and_written_again() {
        for line in [LINE.to_owned(), format!("{LINE} ann@laptop, the old one\n"), format!("  {LINE}\t")] {
            let key: SshKey = line.parse().unwrap();
            assert_eq!(key.to_string(), LINE);
            assert_eq!(SshKey::from_bytes(&key.bytes), Ok(key));
        }
        let shown = LINE.parse::<SshKey>().unwrap().fingerprint();
        assert!(shown.starts_with("SHA256:") && shown.len() == 50, "{shown}");
    }

    #[test]
    fn what_is_no_public_key_is_told_why() {
        let why = |text: &str| text.parse::<SshKey>().unwrap_err().to_string();
        assert!(why("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blbg==").contains("private key"));
        assert!(why("").contains("not a public key"));
        assert!(why("ssh-ed25519").contains("not a public key"));
        assert!(why("ssh-ed25519 ????").contains("not a public key"));
        assert!(why("ssh-dss AAAAB3NzaC1kc3MAAAAA").contains("ssh-dss"));
        assert!(why(&LINE.replace("ssh-ed25519 ", "ssh-rsa ")).contains("not a public key"), "of another kind");
        assert!(why(&format!("command=\"ls\" {LINE}")).contains("not a public key"), "options would not be kept to");
        assert!(why(&format!("{LINE}\n{LINE}")).contains("not a public key"), "two at once");
        assert!(why(&"x".repeat(MAX_LINE + 1)).contains("at most"));
    }

    proptest! {
        #[test]
        fn nothing_upsets_the_reader(text in ".{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = text.parse::<SshKey>();
            let _ = SshKey::from_bytes(&bytes);
        }
    }
}
