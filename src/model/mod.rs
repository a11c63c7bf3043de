//! The vocabulary: names, ids and times that every part shares. Pure data; names nothing else of the crate.
//!
//! Ids are newtypes that can only be made by parsing, so a name that reached a struct is a valid one. Times and ids
//! are written as strings in MessagePack and JSON alike: one schema serves both, and any language reads them.

/// Gives an enum of plain values its one spelling, on the wire and the command line alike.
macro_rules! text_enum {
    ($type:ident: $($variant:ident = $text:literal),+ $(,)? $(; else $unknown:ident)?) => {
        impl $type {
            /// Every value that this release knows, in order.
            pub const ALL: &'static [$type] = &[$($type::$variant),+];

            /// The value as written on the wire and the command line.
            pub fn as_str(self) -> &'static str {
                match self { $($type::$variant => $text,)+ $($type::$unknown => "unknown",)? }
            }
        }
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
        impl std::str::FromStr for $type {
            type Err = $crate::model::error::ApiError;
            // People need not mind capitals; what programs write is the exact form.
            fn from_str(text: &str) -> Result<Self, $crate::model::error::ApiError> {
                match text {
                    $(_ if text.eq_ignore_ascii_case($text) => Ok($type::$variant),)+
                    _ => Err($crate::model::error::ApiError::new(
                        $crate::model::error::ErrorCode::Invalid,
                        format!("{text:?} is not one of {}", [$($text),+].join(", ")),
                    )),
                }
            }
        }
    };
}

#[macro_use]
mod schema;

pub mod access;
pub mod account;
pub mod audit;
pub mod condition;
pub mod error;
pub mod event;
pub mod features;
pub mod image;
pub mod network;
pub mod place;
pub mod planted;
pub mod request;
pub mod resources;
pub mod secret;
pub mod settings;
pub mod ssh_key;
pub mod vm;
pub mod worker;

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use self::error::{ApiError, ErrorCode};

/// The longest name in bytes: long enough for a fully qualified host name in use, short enough for a NATS subject.
pub const MAX_NAME_LEN: usize = 128;

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ApiError;

            /// Checks the naming rule.
            ///
            /// # Errors
            /// [`ErrorCode::Invalid`] with the offending part named.
            fn from_str(text: &str) -> Result<Self, ApiError> {
                check_name($what, text)?;
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = ApiError;
            fn try_from(text: String) -> Result<Self, ApiError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name_type!(
    /// The name of a VM, unique among live VMs.
    VmName, "VM name"
);
name_type!(
    /// The name of a worker.
    WorkerName, "worker name"
);
name_type!(
    /// The name of a service account.
    AccountName, "service account name"
);

text_schema! {
    VmName { "description": "The name of a VM.", "pattern": NAME_PATTERN, "maxLength": MAX_NAME_LEN }
    WorkerName { "description": "The name of a worker.", "pattern": NAME_PATTERN, "maxLength": MAX_NAME_LEN }
    AccountName { "description": "The name of a service account.", "pattern": NAME_PATTERN, "maxLength": MAX_NAME_LEN }
    VmUid { "description": "The identity of one VM over its whole life.", "format": "uuid" }
    SessionId { "description": "Which process life of a worker speaks.", "format": "uuid" }
    Timestamp { "description": "A point in time, RFC 3339 in UTC.", "format": "date-time" }
}

/// The rule of [`check_name`] as a regular expression.
const NAME_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9:_.-]*$";

fn check_name(what: &str, text: &str) -> Result<(), ApiError> {
    let refuse = |why: String| Err(ApiError::new(ErrorCode::Invalid, format!("{what} {text:?} {why}")));
    if text.is_empty() {
        return Err(ApiError::new(
            ErrorCode::Invalid,
            format!("the {what} is empty; give it at least one letter or digit"),
        ));
    }
    if text.len() > MAX_NAME_LEN {
        let shown: String = text.chars().take(24).collect();
        return Err(ApiError::new(
            ErrorCode::Invalid,
            format!("{what} {shown:?}… has {} bytes; at most {MAX_NAME_LEN} are allowed", text.len()),
        ));
    }
    if let Some(bad) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, ':' | '-' | '_' | '.'))) {
        return refuse(format!("contains {bad:?}; allowed are A-Z a-z 0-9 : - _ ."));
    }
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return refuse("does not start with a letter or digit".to_owned());
    }
    Ok(())
}

/// The identity of one VM over its whole life; a new VM of the same name has another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmUid(pub Uuid);

/// Which process life of a worker speaks: made anew at each start and each re-registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub Uuid);

/// Which cluster: what a controller's data is of, wherever it is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub Uuid);

macro_rules! uuid_text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }
        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                Uuid::try_parse(text).map(Self)
            }
        }
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.serialize_str(self.0.hyphenated().encode_lower(&mut Uuid::encode_buffer()))
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
uuid_text!(VmUid);
uuid_text!(SessionId);
uuid_text!(ClusterId);

/// How many times a VM has been started over (0 = first start): with the uid, the fencing token of one copy.
pub type Attempt = u32;

/// How many times a copy was told to boot again from its own disk (0 = its first boot).
pub type Boot = u32;

/// One copy of a VM on one worker: the unit that is placed, run and removed. At most one copy of a VM ever runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub struct CopyId {
    /// Which VM.
    pub uid: VmUid,
    /// Which start of it.
    pub attempt: Attempt,
}

impl CopyId {
    /// All copies that a VM can have, in their order.
    pub fn all_of(uid: VmUid) -> RangeInclusive<Self> {
        Self { uid, attempt: 0 }..=Self { uid, attempt: Attempt::MAX }
    }
}

impl fmt::Display for CopyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.uid, self.attempt)
    }
}

/// A point in wall-clock time, in milliseconds since the Unix epoch; written as RFC 3339 in UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From milliseconds since the Unix epoch.
    pub fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    pub fn as_millis(self) -> i64 {
        self.0
    }

    /// How long before `later` this was; zero if it was not before.
    pub fn until(self, later: Timestamp) -> Duration {
        Duration::from_millis(u64::try_from(later.0.saturating_sub(self.0)).unwrap_or(0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = jiff::Timestamp::from_millisecond(self.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        write!(f, "{time:.3}")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        let time: jiff::Timestamp = text.parse().map_err(serde::de::Error::custom)?;
        Ok(Self(time.as_millisecond()))
    }
}

/// The two clocks as one value, passed into every decision. `mono` never jumps and serves leases and delays; `wall`
/// is for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// Wall-clock time.
    pub wall: Timestamp,
    /// Time since the process started.
    pub mono: Duration,
}

/// Reads both clocks. The single place where a [`Now`] is made outside tests.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: std::time::Instant,
}

impl Clock {
    /// A clock whose monotonic part counts from now.
    pub fn start() -> Self {
        Self { started: std::time::Instant::now() }
    }

    /// The present moment.
    pub fn now(&self) -> Now {
        Now { wall: Timestamp(jiff::Timestamp::now().as_millisecond()), mono: self.started.elapsed() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rule() {
        for good in ["a", "mac-mini.local", "A:b_c-9.", &"x".repeat(MAX_NAME_LEN)] {
            assert_eq!(good.parse::<VmName>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "-x", "a b", "a/b", "ä", "a*", ">", &"x".repeat(MAX_NAME_LEN + 1)] {
            assert_eq!(bad.parse::<VmName>().unwrap_err().code, ErrorCode::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn times_are_rfc_3339_in_both_encodings() {
        let time = Timestamp::from_millis(1_700_000_000_123);
        assert_eq!(serde_json::to_string(&time).unwrap(), "\"2023-11-14T22:13:20.123Z\"");
        let bytes = rmp_serde::to_vec_named(&time).unwrap();
        assert_eq!(rmp_serde::from_slice::<Timestamp>(&bytes).unwrap(), time);
    }

    #[test]
    fn an_invalid_name_does_not_deserialize() {
        assert!(serde_json::from_str::<WorkerName>("\"..\"").is_err());
    }
}
