//! The audit trail: who asked for what, from where, and what came of it. Pure.
//!
//! It has numbers of its own, apart from those of events: whoever may follow events but not the audit trail would
//! otherwise see gaps at every step and could not tell them from losses.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Timestamp;

/// An audit record's number: one more than the one before, for ever. Numbers of records that are no longer kept are
/// missing, and not only the lowest ones: see `audit.list`.
pub type AuditNumber = u64;

/// What kind of thing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = super::schema::open_enum)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum AuditType {
    /// A request to the API that changes something, or was refused.
    Request,
    /// Somebody was not let in.
    LoginFailed,
    /// A machine joined as a worker, or was not allowed to.
    Join,
    /// A tunnel stream was opened.
    TunnelOpened,
    /// A tunnel stream ended.
    TunnelClosed,
    /// A type of a newer release.
    #[serde(other)]
    Unknown,
}

impl AuditType {
    /// The type as it stands in the subject.
    pub fn as_str(self) -> &'static str {
        match self {
            AuditType::Request => "request",
            AuditType::LoginFailed => "login-failed",
            AuditType::Join => "join",
            AuditType::TunnelOpened => "tunnel-opened",
            AuditType::TunnelClosed => "tunnel-closed",
            AuditType::Unknown => "unknown",
        }
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = super::schema::open_enum)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Outcome {
    /// Done.
    Done,
    /// Not allowed.
    Refused,
    /// Allowed, but it did not work.
    Failed,
    /// An outcome of a newer release.
    #[serde(other)]
    Unknown,
}

impl Outcome {
    /// As it is shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Done => "done",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
            Outcome::Unknown => "unknown",
        }
    }
}

/// The longest text in a record, in bytes: what strangers send must not fill the store.
pub const MAX_TEXT: usize = 256;

/// The account of what the controller does by itself; `/` stands in no account's name.
pub const CONTROLLER: &str = "controller/self";

/// What happened, before it has a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deed {
    /// What kind of thing.
    pub kind: AuditType,
    /// The account or worker, as it calls itself: after [`AuditType::LoginFailed`] it need not exist.
    pub account: String,
    /// Where it is connected from, if that is known; several addresses are separated by commas.
    pub address: String,
    /// `resource.verb`, or what else was tried.
    pub verb: String,
    /// On what.
    pub target: String,
    /// What came of it.
    pub outcome: Outcome,
    /// Why, or how much.
    pub message: String,
    /// The request that it was, by the name that who asked gave it; empty when it has none.
    pub request: String,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditRecord {
    /// Its number.
    pub number: AuditNumber,
    /// When, by the controller's clock.
    pub time: Timestamp,
    /// What kind of thing.
    #[serde(rename = "type")]
    pub kind: AuditType,
    /// As in [`Deed::account`].
    pub account: String,
    /// As in [`Deed::address`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub address: String,
    /// As in [`Deed::verb`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub verb: String,
    /// As in [`Deed::target`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// What came of it.
    pub outcome: Outcome,
    /// As in [`Deed::message`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// As in [`Deed::request`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request: String,
    /// Whoever did it has not proven to be that account, worker or token: the name is only a claim.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stranger: bool,
}

impl AuditRecord {
    /// The record of `deed`, its texts cut to [`MAX_TEXT`].
    pub fn new(number: AuditNumber, time: Timestamp, deed: Deed) -> Self {
        Self {
            stranger: deed.kind == AuditType::LoginFailed || deed.account.is_empty(),
            number,
            time,
            kind: deed.kind,
            account: cut(deed.account),
            address: cut(deed.address),
            verb: cut(deed.verb),
            target: cut(deed.target),
            outcome: deed.outcome,
            message: cut(deed.message),
            request: deed.request,
        }
    }
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_strangers_send_is_cut_short() {
        let deed = Deed {
            kind: AuditType::LoginFailed,
            account: "ä".repeat(10_000),
            address: String::new(),
            verb: String::new(),
            target: String::new(),
            outcome: Outcome::Refused,
            message: "short".to_owned(),
            request: String::new(),
        };
        let record = AuditRecord::new(1, Timestamp::default(), deed);
        assert!(record.account.len() <= MAX_TEXT + '…'.len_utf8());
        assert_eq!(record.message, "short");
    }
}
