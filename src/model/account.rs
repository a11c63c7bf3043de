//! Service accounts, the tokens that let workers join, and their keys: what is stored of them, and what readers see. Pure.
//!
//! Of a secret only its SHA-256 is kept. That is enough for 256 random bits, which nobody can guess however fast a hash is;
//! a slow one would only let strangers keep the controller busy.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::access::Roles;
use super::ssh_key::SshKey;
use super::{AccountName, Timestamp, WorkerName};

/// The SHA-256 of a secret, as 64 lower-case hexadecimal digits. Made by `identity::hash_of`.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretHash(pub [u8; 32]);

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(…)")
    }
}

impl From<SecretHash> for String {
    fn from(hash: SecretHash) -> String {
        data_encoding::HEXLOWER.encode(&hash.0)
    }
}

impl TryFrom<String> for SecretHash {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(|_| "not a hash in hexadecimal digits")?;
        bytes.try_into().map(Self).map_err(|_| "not a hash of 32 bytes")
    }
}

/// A service account as the controller keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// What readers see.
    #[serde(flatten)]
    pub view: AccountView,
    /// Of its token.
    pub token_hash: SecretHash,
}

/// A service account as readers see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AccountView {
    /// Its name.
    pub name: AccountName,
    /// What it may do.
    pub roles: Roles,
    /// When it was made.
    #[serde(rename = "createdAt")]
    pub created_at: Timestamp,
    /// When its token was last changed.
    #[serde(default, rename = "rotatedAt", skip_serializing_if = "Option::is_none")]
    pub rotated_at: Option<Timestamp>,
    /// From when on it is not let in any more; none = never.
    #[serde(default, rename = "expiresAt", skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Public keys with which it may log in to the SSH jump host, beside its token.
    #[serde(default, rename = "sshKeys", skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<SshKey>,
}

impl AccountView {
    /// Whether it is over at `now`.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }
}

/// Which join token: the public part of it, 16 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JoinId(String);

impl JoinId {
    /// From eight random bytes.
    pub fn new(bytes: [u8; 8]) -> Self {
        Self(data_encoding::HEXLOWER.encode(&bytes))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for JoinId {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        good.then(|| Self(text.to_owned())).ok_or("not 16 hexadecimal digits")
    }
}

impl TryFrom<String> for JoinId {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<JoinId> for String {
    fn from(id: JoinId) -> String {
        id.0
    }
}

impl fmt::Display for JoinId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A token that lets machines join as workers, as the controller keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Which.
    pub id: JoinId,
    /// Of its secret.
    pub secret_hash: SecretHash,
    /// Who made it.
    pub created_by: AccountName,
    /// When.
    pub created_at: Timestamp,
    /// From when on it is refused.
    pub expires_at: Timestamp,
    /// How many more machines may join with it.
    pub uses_left: u32,
    /// Only this worker may join with it, and may get a new key for a name that it holds already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerName>,
    /// When its last use was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_up_at: Option<Timestamp>,
}

/// How long a token that is used up still opens: the machine that made the last use asks again when its answer was lost.
/// Twice as long as a machine goes on asking by itself, so that it may also have been started over; nobody else can join
/// meanwhile.
pub const JOIN_GRACE: Duration = Duration::from_secs(120);

impl JoinToken {
    /// From when on it opens nothing at all.
    pub fn ends_at(&self) -> Timestamp {
        if self.uses_left > 0 {
            return self.expires_at;
        }
        let grace = i64::try_from(JOIN_GRACE.as_millis()).unwrap_or(i64::MAX);
        let end = self.used_up_at.map_or(self.created_at.as_millis(), |then| then.as_millis().saturating_add(grace));
        self.expires_at.min(Timestamp::from_millis(end))
    }

    /// What readers see of it.
    pub fn view(&self) -> JoinTokenView {
        JoinTokenView {
            id: self.id.clone(),
            created_by: self.created_by.clone(),
            created_at: self.created_at,
            expires_at: self.ends_at(),
            uses_left: self.uses_left,
            worker: self.worker.clone(),
        }
    }
}

/// A token to join with as readers see it: nothing of its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JoinTokenView {
    /// Which.
    pub id: JoinId,
    /// Who made it.
    #[serde(rename = "createdBy")]
    pub created_by: AccountName,
    /// When.
    #[serde(rename = "createdAt")]
    pub created_at: Timestamp,
    /// From when on it opens nothing.
    #[serde(rename = "expiresAt")]
    pub expires_at: Timestamp,
    /// How many more machines may join with it.
    #[serde(rename = "usesLeft")]
    pub uses_left: u32,
    /// Only this worker may join with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerName>,
}

/// How a worker is known: by the public half of a key whose private half never leaves its machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerKey {
    /// Whose.
    pub worker: WorkerName,
    /// As NATS writes it (`U…`).
    pub public_key: String,
    /// The machine that joined with it, as in `WorkerInfo`.
    pub machine_id: String,
    /// When it joined.
    pub joined_at: Timestamp,
    /// With which token.
    pub joined_with: JoinId,
    /// Where it was last used, as in `Hello`; empty = not yet, or not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub place: String,
}

text_schema! {
    JoinId { "description": "The public part of a join token.", "pattern": "^[0-9a-f]{16}$" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_survive_and_are_not_printed() {
        let hash = SecretHash([0xab; 32]);
        let json = serde_json::to_string(&hash).unwrap();
        assert_eq!(json, format!("\"{}\"", "ab".repeat(32)));
        assert_eq!(serde_json::from_str::<SecretHash>(&json).unwrap(), hash);
        assert!(!format!("{hash:?}").contains("ab"));
        assert!(serde_json::from_str::<SecretHash>("\"abcd\"").is_err());
    }

    #[test]
    fn join_ids_are_tokens_of_a_subject() {
        let id = JoinId::new([1, 2, 3, 4, 5, 6, 7, 0xff]);
        assert_eq!(id.as_str(), "01020304050607ff");
        assert_eq!(id.as_str().parse(), Ok(id));
        for bad in ["", "01020304050607fg", "01020304050607FF", "0102.304050607ff", "01020304050607ff0"] {
            assert!(bad.parse::<JoinId>().is_err(), "{bad}");
        }
    }
}
