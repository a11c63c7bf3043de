//! The one kinded error that crosses the wire. A code for programs, a message for people.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why a request was refused or failed; programs match on this and never on the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = super::schema::open_enum)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The request itself is wrong; sending it again changes nothing.
    Invalid,
    /// The object asked for does not exist.
    NotFound,
    /// The name is taken, or the object is in a state that forbids this.
    Conflict,
    /// The caller may not do this.
    Forbidden,
    /// The caller is not who it says, or its session is over.
    Unauthenticated,
    /// What is needed cannot be reached now; trying again later can help.
    Unavailable,
    /// The time given ran out.
    Timeout,
    /// A bound was reached: too many, too large, too often.
    LimitExceeded,
    /// This controller does not know the resource or verb.
    UnknownVerb,
    /// Something broke on our side; the log says what.
    #[serde(other)]
    Internal,
}

/// An error as the bus carries it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// The kind.
    pub code: ErrorCode,
    /// What was asked, what was found, what to do.
    pub message: String,
}

impl ApiError {
    /// An error of the kind `code` that tells people `message`.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}
