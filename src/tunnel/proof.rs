//! Binds a worker's connection to the worker's key: the hello carries a signature over something that only this one TLS
//! connection yields on both of its ends. Signed by the worker's side, checked by the controller's [`Gatekeeper`].
//!
//! A stolen session secret opens nothing without the key, and a hello that was recorded (or passed on by a relay in the
//! middle) opens nothing on another connection.
//!
//! [`Gatekeeper`]: super::relay::Gatekeeper

use data_encoding::BASE64URL_NOPAD;
use nkeys::KeyPair;
use quinn::Connection;

use super::header::WorkerHello;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::secret::Secret;

/// Label of the TLS exporter; RFC 8446, 7.5 and RFC 5705, 4.
pub const LABEL: &[u8] = b"EXPORTER-orchard-worker-hello";

/// What the signature begins with, so that it is good for nothing else that the key may sign.
const DOMAIN: &[u8] = b"orchard tunnel worker hello, version 1\0";

/// Bytes that both ends of one TLS connection know, and nobody else, ever.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Exported([u8; 32]);

impl std::fmt::Debug for Exported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Exported(…)")
    }
}

impl Exported {
    /// Of this connection.
    pub(super) fn of(connection: &Connection) -> Result<Self, ApiError> {
        let mut bytes = [0; 32];
        connection
            .export_keying_material(&mut bytes, LABEL, b"")
            .map_err(|_| ApiError::new(ErrorCode::Internal, "the connection has no keying material to sign"))?;
        Ok(Self(bytes))
    }

    /// Given bytes, for tests of gatekeepers.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// Signs `hello` for the connection that `exported` comes from, with an nkey seed (`SU…`).
///
/// # Errors
/// [`ErrorCode::Internal`] when the seed is none.
pub fn sign(seed: &Secret, exported: Exported, hello: &WorkerHello) -> Result<String, ApiError> {
    let unusable = |_| ApiError::new(ErrorCode::Internal, "the worker's key cannot be used");
    let pair = KeyPair::from_seed(seed.expose()).map_err(unusable)?;
    Ok(BASE64URL_NOPAD.encode(&pair.sign(&signed(exported, hello)).map_err(unusable)?))
}

/// Whether `hello` carries the signature of the owner of `public_key` (`U…`) for the connection that `exported` comes
/// from.
///
/// # Errors
/// [`ErrorCode::Unauthenticated`], for the worker to read.
pub fn verify(public_key: &str, exported: Exported, hello: &WorkerHello) -> Result<(), ApiError> {
    let refuse = |why: &str| {
        ApiError::new(ErrorCode::Unauthenticated, format!("worker {} did not prove its key: {why}", hello.worker))
    };
    let proof = hello.proof.as_deref().ok_or_else(|| refuse("its hello is not signed"))?;
    let proof = BASE64URL_NOPAD.decode(proof.as_bytes()).map_err(|_| refuse("its signature is unreadable"))?;
    let pair = KeyPair::from_public_key(public_key).map_err(|_| refuse("the key kept for it is unreadable"))?;
    let wrong = |_| refuse("its hello is not signed by the key with which it joined, or for another connection");
    pair.verify(&signed(exported, hello), &proof).map_err(wrong)
}

/// What is signed. The name stands last, so that no two hellos read the same.
fn signed(exported: Exported, hello: &WorkerHello) -> Vec<u8> {
    [DOMAIN, &exported.0, hello.session.0.as_bytes(), hello.worker.as_str().as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SessionId;

    #[test]
    fn a_signature_is_good_for_its_key_its_connection_its_session_and_its_worker_only() {
        let (ours, other) = (KeyPair::new_user(), KeyPair::new_user());
        let seed = Secret::new(ours.seed().unwrap());
        let mut hello = WorkerHello {
            worker: "w1".parse().unwrap(),
            session: SessionId(uuid::Uuid::from_u128(1)),
            secret: Secret::new("s"),
            proof: None,
        };
        let here = Exported::new([1; 32]);
        assert!(verify(&ours.public_key(), here, &hello).is_err(), "not signed");
        hello.proof = Some(sign(&seed, here, &hello).unwrap());
        verify(&ours.public_key(), here, &hello).unwrap();
        for (key, exported, hello) in [
            (other.public_key(), here, hello.clone()),
            (ours.public_key(), Exported::new([2; 32]), hello.clone()),
            (ours.public_key(), here, WorkerHello { worker: "w2".parse().unwrap(), ..hello.clone() }),
            (ours.public_key(), here, WorkerHello { session: SessionId(uuid::Uuid::from_u128(2)), ..hello.clone() }),
            (ours.public_key(), here, WorkerHello { proof: Some("?".into()), ..hello.clone() }),
            (ours.public_key(), here, WorkerHello { proof: Some(String::new()), ..hello.clone() }),
            ("UNKNOWN".to_owned(), here, hello.clone()),
        ] {
            assert_eq!(verify(&key, exported, &hello).unwrap_err().code, ErrorCode::Unauthenticated);
        }
    }
}
