//! Records logins that fail and what the broker itself refuses, around whoever decides about logins.

use std::net::SocketAddr;
use std::sync::Arc;

use super::{Auditor, target_of};
use crate::broker::auth::{Authenticator, Credentials, Denied, User, Violation};
use crate::bus::subject;
use crate::model::audit::{AuditType, CONTROLLER, Deed, Outcome};

/// Asks another authenticator, and records what it refuses.
pub(in crate::controller) struct Logins {
    decides: Arc<dyn Authenticator>,
    auditor: Auditor,
}

impl Logins {
    /// Records what `decides` refuses.
    pub(in crate::controller) fn new(decides: Arc<dyn Authenticator>, auditor: Auditor) -> Self {
        Self { decides, auditor }
    }
}

impl Authenticator for Logins {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<User, Denied> {
        self.decides.authenticate(credentials).inspect_err(|denied| {
            if denied.quiet {
                return; // it is told how many there were
            }
            let account = credentials.user.or(credentials.nkey).unwrap_or_default();
            let deed = Deed {
                kind: AuditType::LoginFailed,
                account: account.to_owned(),
                address: credentials.peer.to_string(),
                verb: String::new(),
                target: String::new(),
                outcome: Outcome::Refused,
                message: denied.reason.clone(),
                request: String::new(),
            };
            self.auditor.record_login(deed, denied.known);
        })
    }

    fn current(&self, user: &User) -> Option<User> {
        self.decides.current(user)
    }

    /// Everything that is for the controller, which then knows from which of an account's connections it comes. What the
    /// controller itself publishes, events among it, keeps its headers.
    fn stamps(&self, user: &User, subject: &[u8]) -> bool {
        let ours = subject.starts_with(b"orchard.v1.") || subject.starts_with(b"$SRV.");
        ours && user.name != CONTROLLER
    }

    fn wants_nonce(&self) -> bool {
        self.decides.wants_nonce()
    }

    fn violated(&self, user: &User, peer: SocketAddr, violation: Violation<'_>) {
        let (verb, target, message) = match violation {
            Violation::Publish { to, payload } => match subject::parse_api(to) {
                Some((_, resource, verb)) => {
                    (format!("{resource}.{verb}"), target_of(payload, to), "the account may not send this")
                }
                None => ("publish".to_owned(), to.to_owned(), "the user may not publish there"),
            },
            Violation::Subscribe(to) => ("subscribe".to_owned(), to.to_owned(), "the user may not listen there"),
        };
        self.auditor.record(Deed {
            kind: AuditType::Request,
            account: user.name.clone(),
            address: peer.to_string(),
            verb,
            target,
            outcome: Outcome::Refused,
            message: message.to_owned(),
            request: String::new(),
        });
    }
}
