//! Who may log in to the jump host: accounts, by token or by a key that is attached to them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::controller::audit::Auditor;
use crate::controller::auth::{AccessView, Failures};
use crate::identity::is_hash_of;
use crate::model::account::{Account, SecretHash};
use crate::model::audit::{AuditType, Deed, Outcome};
use crate::model::ssh_key::SshKey;
use crate::model::{AccountName, Clock};

/// Compared with when there is no such account, so that time does not tell which there are. Nothing known has it.
const NOBODY: SecretHash = SecretHash([0; 32]);

/// Who has logged in, and by what, which may be taken away while the connection lasts.
#[derive(Clone, Debug)]
pub(super) struct Login {
    pub(super) account: AccountName,
    proof: Proof,
}

#[derive(Clone, Debug)]
enum Proof {
    Token(SecretHash),
    Key(SshKey),
}

pub(super) struct Logins {
    access: Arc<AccessView>,
    clock: Clock,
    auditor: Auditor,
    failures: Failures,
}

impl Logins {
    pub(super) fn new(access: Arc<AccessView>, clock: Clock, auditor: Auditor) -> Self {
        Self { access, clock, auditor, failures: Failures::default() }
    }

    /// The account whose token this is; or how long its answer is to wait.
    pub(super) fn by_token(&self, user: &str, token: &str, peer: SocketAddr) -> Result<Login, Duration> {
        let account = self.account(user);
        let hash = account.as_ref().map_or(NOBODY, |account| account.token_hash);
        let right = is_hash_of(&hash, token);
        match account {
            Some(account) if right => Ok(Login { account: account.view.name, proof: Proof::Token(hash) }),
            account => Err(self.refuse(user, "wrong token for", account.is_some(), peer)),
        }
    }

    /// Whether a signature of this key would let `user` in. Clients offer one after the other, so that a wrong one is no
    /// failure yet.
    pub(super) fn knows(&self, user: &str, key: &SshKey) -> bool {
        self.account(user).is_some_and(|account| account.view.ssh_keys.contains(key))
    }

    /// The account to which the key is attached with which the client has signed.
    pub(super) fn by_key(&self, user: &str, key: &SshKey, peer: SocketAddr) -> Result<Login, Duration> {
        match self.account(user) {
            Some(account) if account.view.ssh_keys.contains(key) => {
                Ok(Login { account: account.view.name, proof: Proof::Key(key.clone()) })
            }
            account => Err(self.refuse(user, "a key that is not attached to", account.is_some(), peer)),
        }
    }

    /// Whether it would be let in again.
    pub(super) fn holds(&self, login: &Login) -> bool {
        self.account(login.account.as_str()).is_some_and(|account| match &login.proof {
            Proof::Token(hash) => account.token_hash == *hash,
            Proof::Key(key) => account.view.ssh_keys.contains(key),
        })
    }

    /// The account, unless it has ended.
    fn account(&self, user: &str) -> Option<Account> {
        let account = user.parse().ok().and_then(|name| self.access.account(&name));
        account.filter(|account| !account.view.is_expired(self.clock.now().wall))
    }

    fn refuse(&self, user: &str, what: &str, known: bool, peer: SocketAddr) -> Duration {
        let name = crate::broker::auth::shown(user);
        let why = match known {
            true => format!("{what} {name}"),
            false => format!("there is no account {name}, or it has ended"),
        };
        let denied = self.failures.denied(why, peer.ip(), known.then_some(user), self.clock.now().mono);
        if !denied.quiet {
            tracing::info!(%peer, why = denied.reason, "refused an SSH login");
            let deed = Deed {
                kind: AuditType::LoginFailed,
                account: user.to_owned(),
                address: peer.to_string(),
                verb: "ssh".to_owned(),
                target: String::new(),
                outcome: Outcome::Refused,
                message: denied.reason,
                request: String::new(),
            };
            self.auditor.record_login(deed, known);
        }
        denied.delay
    }
}
