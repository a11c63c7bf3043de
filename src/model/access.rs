//! Who may do what: the five roles, and the one table that says which verb and which events need which of them. Pure.
//!
//! The broker's permissions and the controller's second check are both derived from [`VERBS`] and [`EVENTS`]; a verb that
//! does not stand there is nobody's. No role implies another, and all roles are over the whole cluster.

use std::collections::BTreeSet;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::AccountName;

/// A right that a service account may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = super::schema::open_enum)]
pub enum Role {
    /// See VMs, workers and what happens to them.
    #[serde(rename = "compute:read")]
    ComputeRead,
    /// Create, change and delete VMs, manage workers, and open connections into VMs.
    #[serde(rename = "compute:write")]
    ComputeWrite,
    /// Open connections into VMs.
    #[serde(rename = "compute:connect")]
    ComputeConnect,
    /// See service accounts, bootstrap tokens and the audit trail.
    #[serde(rename = "admin:read")]
    AdminRead,
    /// Manage service accounts, let workers join, and open connections to workers' own machines.
    #[serde(rename = "admin:write")]
    AdminWrite,
    /// One of a newer release: whoever holds it may do more than is known here.
    #[serde(rename = "unknown", other)]
    Unknown,
}

text_enum!(Role:
    ComputeRead = "compute:read",
    ComputeWrite = "compute:write",
    ComputeConnect = "compute:connect",
    AdminRead = "admin:read",
    AdminWrite = "admin:write";
    else Unknown
);

/// The roles of one account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Roles(BTreeSet<Role>);

impl Roles {
    /// All five.
    pub fn all() -> Self {
        Role::ALL.iter().copied().collect()
    }

    /// Whether `role` is among them.
    pub fn has(&self, role: Role) -> bool {
        self.0.contains(&role)
    }

    /// Each of them, in the order of [`Role::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = Role> + '_ {
        self.0.iter().copied()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether they satisfy `needs`.
    pub fn satisfy(&self, needs: Needs) -> bool {
        match needs {
            Needs::Nothing => true,
            Needs::AnyOf(roles) => roles.iter().any(|role| self.has(*role)),
        }
    }
}

/// How somebody with `admin:write` lets `account`, which has `roles`, do what has `needs`: the whole list, since it replaces
/// the roles there were. Of several that would do, the last of the table, which opens least. None when nothing is missing,
/// or the account has a role of a newer release.
pub fn grant_command(account: &AccountName, roles: &Roles, needs: Needs) -> Option<String> {
    let Needs::AnyOf(any) = needs else { return None };
    // A list that leaves out what is not known here would take it away.
    let missing = *any.last().filter(|_| !roles.satisfy(needs) && !roles.has(Role::Unknown))?;
    let all: Roles = roles.iter().chain([missing]).collect();
    let names: Vec<&str> = all.iter().map(Role::as_str).collect();
    Some(format!("orchard update service-account {account} --roles {}", names.join(",")))
}

impl FromIterator<Role> for Roles {
    fn from_iter<I: IntoIterator<Item = Role>>(roles: I) -> Self {
        Self(roles.into_iter().collect())
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.iter().map(Role::as_str).collect();
        f.pad(&names.join(", "))
    }
}

/// What an account must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing but to be an account.
    Nothing,
    /// One of these roles.
    AnyOf(&'static [Role]),
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Needs::Nothing => f.write_str("no role"),
            Needs::AnyOf(roles) => {
                let names: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
                write!(f, "the role {}", names.join(" or "))
            }
        }
    }
}

/// One verb of the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verb {
    /// The resource token of its subject.
    pub resource: &'static str,
    /// The verb token of its subject.
    pub verb: &'static str,
    /// Who may call it.
    pub needs: Needs,
    /// Whether it changes anything, and so belongs in the audit trail when it is done; refusals always do. Tunnels have
    /// records of their own.
    pub changes: bool,
}

const READ: Needs = Needs::AnyOf(&[Role::ComputeRead]);
const WRITE: Needs = Needs::AnyOf(&[Role::ComputeWrite]);
const CONNECT: Needs = Needs::AnyOf(&[Role::ComputeWrite, Role::ComputeConnect]);
const ADMIN_READ: Needs = Needs::AnyOf(&[Role::AdminRead]);
const ADMIN_WRITE: Needs = Needs::AnyOf(&[Role::AdminWrite]);

const fn reads(resource: &'static str, verb: &'static str, needs: Needs) -> Verb {
    Verb { resource, verb, needs, changes: false }
}

const fn changes(resource: &'static str, verb: &'static str, needs: Needs) -> Verb {
    Verb { resource, verb, needs, changes: true }
}

/// Every verb and what it needs.
pub const VERBS: &[Verb] = &[
    reads("controller", "info", Needs::Nothing),
    reads("controller", "status", ADMIN_READ),
    changes("vm", "create", WRITE),
    reads("vm", "get", READ),
    reads("vm", "list", READ),
    changes("vm", "update", WRITE),
    changes("vm", "delete", WRITE),
    reads("vm", "explain", READ),
    reads("worker", "get", READ),
    reads("worker", "list", READ),
    changes("worker", "delete", WRITE),
    changes("worker", "pause", WRITE),
    changes("worker", "resume", WRITE),
    changes("worker", "drain", WRITE),
    reads("worker", "list-strays", READ),
    changes("worker", "delete-stray", WRITE),
    reads("image", "list", READ),
    reads("image", "list-held", READ),
    reads("image", "list-pulls", READ),
    reads("image", "get-pull", READ),
    changes("image", "pull", WRITE),
    changes("image", "cancel-pull", WRITE),
    reads("cluster-settings", "get", ADMIN_READ),
    changes("cluster-settings", "set", ADMIN_WRITE),
    reads("event", "list", READ),
    reads("connect", "open", CONNECT),
    reads("connect", "address", CONNECT),
    // A worker's machine belongs to its operator, not to whoever uses VMs on it.
    reads("connect", "host", ADMIN_WRITE),
    changes("service-account", "create", ADMIN_WRITE),
    reads("service-account", "get", ADMIN_READ),
    reads("service-account", "list", ADMIN_READ),
    changes("service-account", "update", ADMIN_WRITE),
    changes("service-account", "rotate", ADMIN_WRITE),
    changes("service-account", "delete", ADMIN_WRITE),
    changes("bootstrap-token", "create", ADMIN_WRITE),
    reads("bootstrap-token", "list", ADMIN_READ),
    changes("bootstrap-token", "delete", ADMIN_WRITE),
    reads("audit", "list", ADMIN_READ),
];

/// Kinds of events, as the token after `orchard.v1.events` and `orchard.v1.events-json`, and who may follow them.
pub const EVENTS: &[(&str, Needs)] = &[("vm", READ), ("worker", READ), ("audit", ADMIN_READ)];

/// What the table says of `resource.verb`.
pub fn rule(resource: &str, verb: &str) -> Option<&'static Verb> {
    VERBS.iter().find(|rule| rule.resource == resource && rule.verb == verb)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verb_stands_there_once_and_its_tokens_fit_a_subject() {
        for (index, verb) in VERBS.iter().enumerate() {
            assert!(rule(verb.resource, verb.verb) == Some(verb), "{verb:?} stands there twice");
            assert!(index < 100);
            for token in [verb.resource, verb.verb] {
                assert!(token.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{token}");
            }
        }
        assert_eq!(rule("vm", "explode"), None);
    }

    #[test]
    fn no_role_implies_another() {
        for role in Role::ALL {
            let one: Roles = [*role].into_iter().collect();
            for verb in VERBS {
                let expected = match verb.needs {
                    Needs::Nothing => true,
                    Needs::AnyOf(roles) => roles.contains(role),
                };
                assert_eq!(one.satisfy(verb.needs), expected, "{role} {verb:?}");
            }
        }
        assert!(!Roles::default().satisfy(READ) && Roles::all().satisfy(ADMIN_WRITE));
    }

    #[test]
    fn what_grants_a_role_keeps_those_there_are() {
        let ann: AccountName = "ann".parse().unwrap();
        let has: Roles = [Role::AdminRead, Role::ComputeRead].into_iter().collect();
        assert_eq!(
            grant_command(&ann, &has, CONNECT).as_deref(),
            Some("orchard update service-account ann --roles compute:read,compute:connect,admin:read")
        );
        assert_eq!(grant_command(&ann, &has, READ), None);
        assert_eq!(grant_command(&ann, &[Role::Unknown].into_iter().collect(), READ), None);
        assert_eq!(grant_command(&ann, &Roles::default(), Needs::Nothing), None);
    }

    #[test]
    fn roles_are_a_list_of_their_names() {
        let roles: Roles = [Role::AdminRead, Role::ComputeRead].into_iter().collect();
        let json = serde_json::to_string(&roles).unwrap();
        assert_eq!(json, r#"["compute:read","admin:read"]"#);
        assert_eq!(serde_json::from_str::<Roles>(&json).unwrap(), roles);
        assert_eq!(roles.to_string(), "compute:read, admin:read");
        for role in Role::ALL {
            assert_eq!(serde_json::to_string(role).unwrap(), format!("{:?}", role.as_str()));
        }
    }
}
