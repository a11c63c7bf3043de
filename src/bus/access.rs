//! Payloads that concern who may do what: service accounts, joining workers, the audit trail. Pure.
//!
//! Secrets stand only in the answer to the one who asked for them to be made; nothing here reads one back.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::message::{ApiCall, Done, api_call};
use crate::model::access::Roles;
use crate::model::account::{AccountView, JoinId, JoinTokenView};
use crate::model::audit::{AuditNumber, AuditRecord};
use crate::model::secret::Secret;
use crate::model::ssh_key::SshKey;
use crate::model::{AccountName, Timestamp, WorkerName};

/// `service-account.create`: a new account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CreateAccount {
    /// Its name, free among accounts.
    pub name: AccountName,
    /// What it may do.
    pub roles: Roles,
    /// When it ends; none = never.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    /// Its token, at least [`MIN_TOKEN_LEN`] characters; none = the controller makes one, which is better.
    #[serde(default)]
    pub token: Option<Secret>,
    /// Public keys with which it may log in to the SSH jump host, beside the token; at most [`MAX_SSH_KEYS`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<SshKey>,
}
api_call!(CreateAccount => NewToken, "service-account", "create");

/// The most SSH keys of one account: one for each machine that a person works at, and some.
pub const MAX_SSH_KEYS: usize = 16;

/// The shortest token that may be chosen by hand: 256 bits in hexadecimal digits or more.
pub const MIN_TOKEN_LEN: usize = 32;

/// An account with its token, which is shown this once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NewToken {
    /// The account.
    pub account: AccountView,
    /// Its token.
    pub token: Secret,
}

/// `service-account.get`: one account by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GetAccount {
    /// Its name.
    pub name: AccountName,
}
api_call!(GetAccount => AccountView, "service-account", "get");

/// `service-account.list`: all accounts, in name order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListAccounts {
    /// Only names after this one.
    #[serde(default)]
    pub after: Option<AccountName>,
    /// At most so many; 0 = as many as fit a page.
    #[serde(default)]
    pub limit: u32,
}
api_call!(ListAccounts => AccountPage, "service-account", "list");

/// A page of accounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AccountPage {
    /// In name order.
    pub accounts: Vec<AccountView>,
    /// There are more: ask for those after the last one here.
    pub more: bool,
}

/// `service-account.update`: other roles, another end. What is absent stays.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UpdateAccount {
    /// Which account.
    pub name: AccountName,
    /// Its roles from now on.
    #[serde(default)]
    pub roles: Option<Roles>,
    /// When it ends from now on.
    #[serde(default)]
    pub expiry: Option<Expiry>,
    /// The public keys with which it may log in to the SSH jump host from now on; those it had are gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh_keys: Option<Vec<SshKey>>,
}
api_call!(UpdateAccount => AccountView, "service-account", "update");

/// When an account ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Expiry {
    /// Not by itself.
    Never,
    /// Then.
    At(Timestamp),
}

/// `service-account.rotate`: a new token; the old one is refused at once and its connections are closed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RotateAccount {
    /// Which account.
    pub name: AccountName,
}
api_call!(RotateAccount => NewToken, "service-account", "rotate");

/// `service-account.delete`: the account, its connections and its tunnels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeleteAccount {
    /// Which account.
    pub name: AccountName,
}
api_call!(DeleteAccount => Done, "service-account", "delete");

/// `bootstrap-token.create`: a secret with which machines may join as workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CreateJoinToken {
    /// How long it is good, in seconds: 1 to [`MAX_JOIN_TTL_S`].
    pub ttl_s: u64,
    /// How many machines may join with it: 1 to [`MAX_JOIN_USES`].
    pub uses: u32,
    /// Only this worker may join with it; it may then also replace the key of a worker that lost it.
    #[serde(default)]
    pub worker: Option<WorkerName>,
}
api_call!(CreateJoinToken => NewJoinToken, "bootstrap-token", "create");

/// The longest life of a join token, in seconds: a year. Who needs machines to join for ever makes another one then.
pub const MAX_JOIN_TTL_S: u64 = 366 * 24 * 3600;
/// The most machines that may join with one token.
pub const MAX_JOIN_USES: u32 = 10_000;

/// `bootstrap-token.list`: the join tokens that there are, in the order of their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListJoinTokens {
    /// Only ids after this one.
    #[serde(default)]
    pub after: Option<JoinId>,
    /// At most so many; 0 = as many as fit a page.
    #[serde(default)]
    pub limit: u32,
}
api_call!(ListJoinTokens => JoinTokenPage, "bootstrap-token", "list");

/// A page of join tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct JoinTokenPage {
    /// In the order of their ids.
    pub tokens: Vec<JoinTokenView>,
    /// There are more: ask for those after the last one here.
    pub more: bool,
}

/// `bootstrap-token.delete`: no machine joins with it any more; workers that did stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeleteJoinToken {
    /// Which token.
    pub id: JoinId,
}
api_call!(DeleteJoinToken => Done, "bootstrap-token", "delete");

/// A join token, shown this once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NewJoinToken {
    /// Its public part.
    pub id: String,
    /// Its secret part.
    pub secret: Secret,
    /// From when on it is refused.
    pub expires_at: Timestamp,
    /// Where the controller says that others reach its bus; none = it does not know.
    #[serde(default)]
    pub bus_url: Option<String>,
    /// SHA-256 of the certificate that the bus shows there, in lower-case hex; none = a public CA vouches for it, or
    /// there is no TLS.
    #[serde(default)]
    pub fingerprint: Option<String>,
}

/// Sent to the subject of a join token by a machine that is logged in with its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Join {
    /// The name it wants.
    pub worker: WorkerName,
    /// The public half of its nkey (`U…`).
    pub public_key: String,
    /// Identity of the host, as in `WorkerInfo`.
    pub machine_id: String,
}

/// The machine is known from now on by its key. Asking again with the same key is answered the same, and is no further
/// use of the token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Joined {}

/// `worker.delete`: the worker is not let in any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeleteWorker {
    /// Which worker.
    pub name: WorkerName,
    /// Also while VMs are placed on it: they fail, as nobody can say what becomes of them.
    #[serde(default)]
    pub force: bool,
}
api_call!(DeleteWorker => Done, "worker", "delete");

/// `audit.list`: stored audit records in order. Numbers only grow, but they need not follow one another: when the trail is
/// full, the oldest record of whoever holds the most goes (all who have not proven to be an account count as one), so that
/// nobody pushes out what another did; and each goes when it has become too old. `first_kept` is the lowest number there
/// is; between it and `last`, missing numbers are records that went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListAudit {
    /// Only numbers above this one.
    #[serde(default)]
    pub after: AuditNumber,
    /// At most so many; 0 = as many as fit a page.
    #[serde(default)]
    pub limit: u32,
}
api_call!(ListAudit => AuditPage, "audit", "list");

/// A page of audit records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AuditPage {
    /// In number order.
    pub records: Vec<AuditRecord>,
    /// Ask for those after this number to go on. Equal to `last` at the end.
    pub next: AuditNumber,
    /// The highest number given out so far.
    pub last: AuditNumber,
    /// The lowest number still kept.
    pub first_kept: AuditNumber,
}
