//! Nkeys of the scripts: a key pair from a fixed seed, its public text, signatures of nonces.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};

/// Seeds of the key that the servers know and of another one.
const KNOWN: [u8; 32] = [7; 32];
const OTHER: [u8; 32] = [9; 32];
/// First byte of a user's public key before encoding: the text begins with U.
const USER: u8 = 20 << 3;

/// The public key that the servers know, as text.
pub fn public() -> String {
    text(KNOWN)
}

/// What `{sig}` and the like stand for.
pub fn fill(what: &str, nonce: &str) -> String {
    match what {
        "key" => text(KNOWN),
        "otherkey" => text(OTHER),
        "sig" => sign(KNOWN, nonce),
        "badsig" => sign(OTHER, nonce),
        other => panic!("nothing is called {other:?}"),
    }
}

fn pair(seed: [u8; 32]) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&seed).unwrap()
}

fn sign(seed: [u8; 32], nonce: &str) -> String {
    data_encoding::BASE64URL_NOPAD.encode(pair(seed).sign(nonce.as_bytes()).as_ref())
}

fn text(seed: [u8; 32]) -> String {
    let mut bytes = [&[USER], pair(seed).public_key().as_ref()].concat();
    let sum = crc16(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    data_encoding::BASE32_NOPAD.encode(&bytes)
}

/// CRC-16/XMODEM, which ends every nkey.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| (crc << 1) ^ if crc & 0x8000 == 0 { 0 } else { 0x1021 })
    })
}
