//! Who may log in to the embedded broker, and what each may do there: accounts by their token, workers by their key,
//! machines that join by the secret of a join token, and the controller itself by a secret of this start.
//!
//! Everything is looked up in the [`AccessView`]; `permissions` says which subjects that opens, `attempts` slows guessing
//! down.

mod attempts;
mod permissions;
mod view;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use self::attempts::Attempts;
pub use self::view::AccessView;
use crate::broker::auth::{Authenticator, Credentials, Denied, User, nkey};
use crate::bus::subject;
use crate::identity::{is_hash_of, same_secret};
use crate::model::account::{Account, JoinToken, SecretHash};
use crate::model::secret::Secret;
use crate::model::{AccountName, Clock, Timestamp};

/// The account that exists from the first start on.
pub const BOOTSTRAP_ADMIN: &str = "bootstrap-admin";
/// The bus user of the controller itself; `/` stands in no account's name.
pub(super) const CONTROLLER_USER: &str = crate::model::audit::CONTROLLER;
/// Compared with when there is no such account, so that time does not tell which there are. Nothing known has it.
const NOBODY: SecretHash = SecretHash([0; 32]);

/// The embedded broker's authenticator.
#[derive(Debug)]
pub(super) struct BusUsers {
    access: Arc<AccessView>,
    clock: Clock,
    /// What the controller presents to its own broker.
    own: Secret,
    attempts: Mutex<Attempts>,
}

/// Whom a password could be for.
enum Claimed {
    Account(Account),
    Joining(JoinToken),
    Controller,
    Nobody,
}

impl BusUsers {
    pub(super) fn new(access: Arc<AccessView>, clock: Clock, own: Secret) -> Self {
        Self { access, clock, own, attempts: Mutex::default() }
    }

    fn by_password(&self, name: &str, password: &str, address: IpAddr) -> Result<User, Denied> {
        let now = self.clock.now();
        let claimed = self.claimed(name);
        let known = (!matches!(claimed, Claimed::Nobody)).then_some(name);
        // The controller's own secret cannot be guessed, and it must get in whatever others on this machine try.
        if !matches!(claimed, Claimed::Controller) && !self.attempts().may_try(address, known, now.mono) {
            return Err(Denied::because(format!("too many failed logins as {name:?} from {address}; a pause helps")));
        }
        let user = match &claimed {
            Claimed::Controller => same_secret(self.own.expose(), password).then(controller),
            Claimed::Account(account) => {
                let user = account_user(account, now.wall);
                is_hash_of(&account.token_hash, password).then_some(user).flatten()
            }
            Claimed::Joining(token) => {
                is_hash_of(&token.secret_hash, password).then(|| joining_user(token, now.wall)).flatten()
            }
            Claimed::Nobody => is_hash_of(&NOBODY, password).then_some(None).flatten(),
        };
        user.ok_or_else(|| {
            self.attempts().failed(address, known, now.mono);
            Denied::because(match claimed {
                Claimed::Nobody => format!("there is no {name:?} that logs in with a password"),
                _ => format!("wrong token for {name:?}, or it has ended"),
            })
        })
    }

    fn claimed(&self, name: &str) -> Claimed {
        if name == CONTROLLER_USER {
            return Claimed::Controller;
        }
        if let Some(id) = subject::parse_join_user(name) {
            return self.access.join_token(&id).map_or(Claimed::Nobody, Claimed::Joining);
        }
        let account = name.parse::<AccountName>().ok().and_then(|name| self.access.account(&name));
        account.map_or(Claimed::Nobody, Claimed::Account)
    }

    fn by_key(&self, public_key: &str) -> Result<User, Denied> {
        let worker = self.access.owner_of(public_key);
        let worker = worker.ok_or_else(|| Denied::because(format!("no worker has the key {public_key}")))?;
        let user = User::new(subject::worker_user(&worker), permissions::of_worker(&worker));
        Ok(User { credential: Some(Secret::new(public_key)), ..user })
    }

    fn attempts(&self) -> std::sync::MutexGuard<'_, Attempts> {
        // Counts of failures: whatever a panic left there does no harm.
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Authenticator for BusUsers {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<User, Denied> {
        if credentials.nkey.is_some() {
            return self.by_key(nkey::proven(credentials)?);
        }
        let (Some(name), Some(password)) = (credentials.user, credentials.password) else {
            return Err(Denied::because("neither user and password nor a key given"));
        };
        self.by_password(name, password, credentials.peer.ip())
    }

    /// What the user may do now; none when what it showed would not let it in any more.
    fn current(&self, user: &User) -> Option<User> {
        let now = self.clock.now().wall;
        if user.name == CONTROLLER_USER {
            return Some(controller());
        }
        let shown = user.credential.as_ref()?;
        let current = if subject::parse_worker_user(&user.name).is_some() {
            self.by_key(shown.expose()).ok()
        } else if let Some(id) = subject::parse_join_user(&user.name) {
            // One that is used up is open to those who come anew alone, to repeat what they asked: see `JOIN_GRACE`.
            let token = self.access.join_token(&id).filter(|token| token.uses_left > 0);
            token.and_then(|token| joining_user(&token, now))
        } else {
            let account = user.name.parse().ok().and_then(|name| self.access.account(&name));
            account.and_then(|account| account_user(&account, now))
        };
        current.filter(|current| current.name == user.name && current.credential.as_ref() == Some(shown))
    }

    fn wants_nonce(&self) -> bool {
        true
    }
}

fn controller() -> User {
    User::new(CONTROLLER_USER, permissions::of_controller(CONTROLLER_USER))
}

/// What a connection of `account` is; none once the account is over. Its credential is the hash of the token: another one
/// means that the token was changed.
fn account_user(account: &Account, now: Timestamp) -> Option<User> {
    let view = &account.view;
    (!view.is_expired(now)).then(|| User {
        expires: view.expires_at.map(system_time),
        credential: Some(Secret::new(String::from(account.token_hash))),
        ..User::new(view.name.as_str(), permissions::of_account(&view.name, &view.roles))
    })
}

/// The same for a machine that joins.
fn joining_user(token: &JoinToken, now: Timestamp) -> Option<User> {
    (token.ends_at() > now).then(|| User {
        expires: Some(system_time(token.ends_at())),
        credential: Some(Secret::new(String::from(token.secret_hash))),
        ..User::new(subject::join_user(&token.id), permissions::of_joining(&token.id))
    })
}

fn system_time(time: Timestamp) -> SystemTime {
    let millis = u64::try_from(time.as_millis()).unwrap_or(0);
    // A time that no clock can show is as good as never; the account's own check still holds.
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or_else(SystemTime::now)
}

#[cfg(test)]
mod tests;
