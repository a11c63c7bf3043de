//! Users known by signed claims (JWT), as nats-server has them in operator mode: the only ones there whose credentials end
//! with a time. Ours leaves claims to the embedder, who here is [`Claims`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use orchard::broker::auth::{Authenticator, Credentials, Denied, User, nkey};
use serde_json::{Value, json};

use super::keys::{self, Key};

/// How long claims hold that end while a script runs. They count whole seconds.
const BRIEF: u64 = 8;

/// What `{jwt}` and the like stand for.
pub fn fill(what: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    match what {
        "jwt" => user(Key::Account, Some(now + 3_600)),
        "endlessjwt" => user(Key::Account, None),
        "briefjwt" => user(Key::Account, Some(now + BRIEF)),
        "oldjwt" => user(Key::Account, Some(now - 1)),
        "strangejwt" => user(Key::OtherAccount, None),
        other => panic!("nothing is called {other:?}"),
    }
}

fn user(signer: Key, ends: Option<u64>) -> String {
    let mut claims = json!({
        "jti": "user", "iss": signer.public(), "sub": Key::Known.public(), "iat": 0,
        "nats": { "type": "user", "version": 2, "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1 },
    });
    if let Some(ends) = ends {
        claims["exp"] = ends.into();
    }
    sign(signer, &claims)
}

/// Operator mode with one account.
pub fn nats_config() -> String {
    let (operator, account) = (Key::Operator.public(), Key::Account.public());
    let about_operator = sign(
        Key::Operator,
        &json!({ "jti": "operator", "iss": operator, "sub": operator, "iat": 0, "nats": { "type": "operator", "version": 2 } }),
    );
    let about_account = sign(
        Key::Operator,
        &json!({
            "jti": "account", "iss": operator, "sub": account, "iat": 0,
            "nats": {
                "type": "account", "version": 2, "default_permissions": { "pub": {}, "sub": {} },
                "limits": {
                    "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
                    "leaf": -1,
                },
            },
        }),
    );
    format!("operator: {about_operator}\nresolver: MEMORY\nresolver_preload: {{ {account}: {about_account} }}\n")
}

fn sign(signer: Key, claims: &Value) -> String {
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let text = format!("{}.{}", part(&json!({ "typ": "JWT", "alg": "ed25519-nkey" })), part(claims));
    let signature = keys::sign(signer, &text);
    format!("{text}.{signature}")
}

/// Lets in whoever shows claims that the account has signed, and signs the nonce with the key that they name.
pub struct Claims;

impl Authenticator for Claims {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<User, Denied> {
        let jwt = credentials.jwt.ok_or_else(|| Denied::because("no claims"))?;
        let (text, signature) = jwt.rsplit_once('.').ok_or_else(|| Denied::because("no JWT"))?;
        if keys::sign(Key::Account, text) != signature {
            return Err(Denied::because("not signed by the account")); // signatures of this kind are always the same
        }
        let decoded = text.split_once('.').and_then(|(_, claims)| BASE64URL_NOPAD.decode(claims.as_bytes()).ok());
        let claims: Value = decoded
            .and_then(|json| serde_json::from_slice(&json).ok())
            .ok_or_else(|| Denied::because("claims that are none"))?;
        let expires = claims["exp"].as_u64().map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
        if expires.is_some_and(|end| end <= SystemTime::now()) {
            return Err(Denied::because("expired"));
        }
        let name = nkey::proven(&Credentials { nkey: claims["sub"].as_str(), ..*credentials })?.to_owned();
        Ok(User { expires, ..User::new(name, Default::default()) })
    }

    fn wants_nonce(&self) -> bool {
        true
    }
}
