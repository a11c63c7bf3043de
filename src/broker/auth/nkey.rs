//! Clients that prove who they are with a key pair: the broker sends a nonce in INFO, they sign it. Used by the list of users
//! and by embedders' own authenticators.

use data_encoding::{BASE64, BASE64URL_NOPAD};
use nkeys::{KeyPair, KeyPairType};

use super::{Credentials, Denied};

/// Whether `text` is the public key of a user (`U…`).
pub fn is_public_key(text: &str) -> bool {
    KeyPair::from_public_key(text).is_ok_and(|key| matches!(key.key_pair_type(), KeyPairType::User))
}

/// The public key that the client owns: the one it names, if it signed this connection's nonce with it.
///
/// # Errors
/// [`Denied`] when key or signature are missing, are none, or do not fit together.
pub fn proven<'a>(credentials: &Credentials<'a>) -> Result<&'a str, Denied> {
    let (Some(key), Some(signature)) = (credentials.nkey, credentials.sig) else {
        return Err(Denied::because("no signed nonce given"));
    };
    let nonce = credentials.nonce.filter(|nonce| !nonce.is_empty());
    let nonce = nonce.ok_or_else(|| Denied::because("there was no nonce to sign"))?;
    // As nats-server reads it: the URL-safe alphabet, and the other one for old clients.
    let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).or_else(|_| BASE64.decode(signature.as_bytes()));
    let signature = signature.map_err(|_| Denied::because("the signature is not base64"))?;
    if !is_public_key(key) {
        return Err(Denied::because("the nkey is not a user's public key"));
    }
    let pair = KeyPair::from_public_key(key).map_err(|error| Denied::because(error.to_string()))?;
    pair.verify(nonce.as_bytes(), &signature).map_err(|_| Denied::because(format!("wrong signature for {key}")))?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_of_the_key_can_sign() {
        let (ours, other) = (KeyPair::new_user(), KeyPair::new_user());
        let key = ours.public_key();
        let sign = |pair: &KeyPair, text: &str| pair.sign(text.as_bytes()).unwrap();
        let url = |bytes: Vec<u8>| BASE64URL_NOPAD.encode(&bytes);
        let ask = |nkey: Option<&str>, sig: Option<&str>, nonce: Option<&str>| {
            let peer = std::net::SocketAddr::from(([127, 0, 0, 1], 1));
            let credentials =
                Credentials { nkey, sig, nonce, user: None, password: None, token: None, jwt: None, peer };
            proven(&credentials).map(str::to_owned).ok()
        };
        let good = url(sign(&ours, "abc"));
        assert_eq!(ask(Some(&key), Some(&good), Some("abc")).as_ref(), Some(&key));
        let old = BASE64.encode(&sign(&ours, "abc"));
        assert_eq!(ask(Some(&key), Some(&old), Some("abc")).as_ref(), Some(&key));
        let account = KeyPair::new_account();
        for (nkey, sig, nonce) in [
            (Some(key.as_str()), Some(url(sign(&other, "abc"))), Some("abc")),
            (Some(&key), Some(good.clone()), Some("abd")),
            (Some(&key), Some(good.clone()), None),
            (Some(&key), Some(url(sign(&ours, ""))), Some("")),
            (Some(&key), None, Some("abc")),
            (None, Some(good.clone()), Some("abc")),
            (Some(&key), Some("%".into()), Some("abc")),
            (Some(&key), Some("AAAA".into()), Some("abc")),
            (Some("UABC"), Some(good.clone()), Some("abc")),
            (Some(&account.public_key()), Some(url(sign(&account, "abc"))), Some("abc")),
        ] {
            assert_eq!(ask(nkey, sig.as_deref(), nonce), None, "{nkey:?} {sig:?} {nonce:?}");
        }
    }
}
