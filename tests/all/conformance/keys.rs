//! Nkeys of the scripts: key pairs from fixed seeds, their public texts, signatures of nonces.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

use super::claims;

/// The key pairs there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// A user that the servers know.
    Known,
    /// One that they do not.
    Other,
    /// Who signs for users, and who else might like to.
    Account,
    OtherAccount,
    /// Who signs for accounts.
    Operator,
}

impl Key {
    /// The public key as text.
    pub fn public(self) -> String {
        // The first five bits are the first letter: U, A or O.
        let kind = match self {
            Self::Known | Self::Other => 20 << 3,
            Self::Account | Self::OtherAccount => 0,
            Self::Operator => 14 << 3,
        };
        let mut bytes = [&[kind], self.pair().public_key().as_ref()].concat();
        let sum = crc16(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        data_encoding::BASE32_NOPAD.encode(&bytes)
    }

    fn pair(self) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[7 + self as u8; 32]).unwrap()
    }
}

/// What `{sig}` and the like stand for.
pub fn fill(what: &str, nonce: &str) -> String {
    match what {
        "key" => Key::Known.public(),
        "otherkey" => Key::Other.public(),
        "sig" => sign(Key::Known, nonce),
        "badsig" => sign(Key::Other, nonce),
        other => claims::fill(other),
    }
}

/// The signature of `text` by `key`, in URL-safe base64.
pub fn sign(key: Key, text: &str) -> String {
    data_encoding::BASE64URL_NOPAD.encode(key.pair().sign(text.as_bytes()).as_ref())
}

/// CRC-16/XMODEM, which ends every nkey.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| (crc << 1) ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 })
    })
}
