//! Who may log in to the embedded broker, and what each may do there: accounts by their token, workers by their key,
//! machines that join by the secret of a join token, and the controller itself by a secret of this start.
//!
//! Everything is looked up in the [`AccessView`]; `permissions` says which subjects that opens, `paces` how fast they may
//! be used, `attempts` what to do about failed logins.

mod attempts;
mod paces;
mod permissions;
mod view;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use self::attempts::{Attempts, Verdict};
use self::paces::Paces;
pub use self::view::AccessView;
use crate::broker::auth::{Authenticator, Credentials, Denied, User, nkey, shown};
use crate::broker::pace::Rates;
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
/// How long a wrong token waits for its answer, once there were too many: shorter than clients take for a broken network.
const PENALTY: Duration = Duration::from_secs(2);

/// The embedded broker's authenticator.
#[derive(Debug)]
pub(super) struct BusUsers {
    access: Arc<AccessView>,
    clock: Clock,
    /// What the controller presents to its own broker.
    own: Secret,
    failures: Failures,
    paces: Paces,
}

/// Logins that failed, of one door.
#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<Attempts>);

impl Failures {
    /// The refusal of a login from `address` as `known`, or as somebody who is not known here.
    pub(super) fn denied(&self, why: String, address: IpAddr, known: Option<&str>, now: Duration) -> Denied {
        // Counts of failures: whatever a panic left there does no harm.
        let verdict = self.0.lock().unwrap_or_else(PoisonError::into_inner).failed(address, known, now);
        let reason = match verdict {
            Verdict::LateWith(untold) => format!("{why}; and {untold} more like it from {address} in the last minute"),
            Verdict::Single | Verdict::Late => why,
        };
        let delay = if verdict == Verdict::Single { Duration::ZERO } else { PENALTY };
        Denied { reason, delay, quiet: verdict == Verdict::Late, known: known.is_some() }
    }
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
        Self { access, clock, own, failures: Failures::default(), paces: Paces::default() }
    }

    fn by_password(&self, name: &str, password: &str, address: IpAddr) -> Result<User, Denied> {
        let now = self.clock.now();
        let claimed = self.claimed(name);
        let known = (!matches!(claimed, Claimed::Nobody)).then_some(name);
        let user = match &claimed {
            Claimed::Controller => same_secret(self.own.expose(), password).then(controller),
            Claimed::Account(account) => {
                let user = self.account_user(account, now.wall);
                is_hash_of(&account.token_hash, password).then_some(user).flatten()
            }
            Claimed::Joining(token) => {
                is_hash_of(&token.secret_hash, password).then(|| self.joining_user(token, now.wall)).flatten()
            }
            Claimed::Nobody => is_hash_of(&NOBODY, password).then_some(None).flatten(),
        };
        user.ok_or_else(|| {
            let name = shown(name);
            let why = match claimed {
                Claimed::Nobody => format!("there is no {name} that logs in with a password"),
                _ => format!("wrong token for {name}, or it has ended"),
            };
            self.denied(why, address, known)
        })
    }

    /// The refusal of a login as `known`, or as somebody who is not known here.
    fn denied(&self, why: String, address: IpAddr, known: Option<&str>) -> Denied {
        self.failures.denied(why, address, known, self.clock.now().mono)
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
        Ok(self.paced(User { credential: Some(Secret::new(public_key)), ..user }, paces::OF_WORKER))
    }

    /// What a connection of `account` is; none once the account is over. Its credential is the hash of the token: another
    /// one means that the token was changed.
    fn account_user(&self, account: &Account, now: Timestamp) -> Option<User> {
        let view = &account.view;
        let user = (!view.is_expired(now)).then(|| User {
            expires: view.expires_at.map(system_time),
            credential: Some(Secret::new(String::from(account.token_hash))),
            ..User::new(view.name.as_str(), permissions::of_account(&view.name, &view.roles))
        });
        user.map(|user| self.paced(user, paces::OF_ACCOUNT))
    }

    /// The same for a machine that joins.
    fn joining_user(&self, token: &JoinToken, now: Timestamp) -> Option<User> {
        let user = (token.ends_at() > now).then(|| User {
            expires: Some(system_time(token.ends_at())),
            credential: Some(Secret::new(String::from(token.secret_hash))),
            ..User::new(subject::join_user(&token.id), permissions::of_joining(&token.id))
        });
        user.map(|user| self.paced(user, paces::OF_JOINING))
    }

    fn paced(&self, user: User, rates: Rates) -> User {
        User { pace: Some(self.paces.of(&user.name, rates, Instant::now())), ..user }
    }
}

impl Authenticator for BusUsers {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<User, Denied> {
        let address = credentials.peer.ip();
        if credentials.nkey.is_some() {
            let user = nkey::proven(credentials).and_then(|key| self.by_key(key));
            return user.map_err(|denied| self.denied(denied.reason, address, None));
        }
        let (Some(name), Some(password)) = (credentials.user, credentials.password) else {
            return Err(self.denied("neither user and password nor a key given".to_owned(), address, None));
        };
        self.by_password(name, password, address)
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
            token.and_then(|token| self.joining_user(&token, now))
        } else {
            let account = user.name.parse().ok().and_then(|name| self.access.account(&name));
            account.and_then(|account| self.account_user(&account, now))
        };
        current.filter(|current| current.name == user.name && current.credential.as_ref() == Some(shown))
    }

    fn wants_nonce(&self) -> bool {
        true
    }
}

fn controller() -> User {
    let user = User::new(CONTROLLER_USER, permissions::of_controller(CONTROLLER_USER));
    // What stops reaching it stops the whole cluster.
    User { vital: true, ..user }
}

fn system_time(time: Timestamp) -> SystemTime {
    let millis = u64::try_from(time.as_millis()).unwrap_or(0);
    // A time that no clock can show is as good as never; the account's own check still holds.
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or_else(SystemTime::now)
}

#[cfg(test)]
mod tests;
