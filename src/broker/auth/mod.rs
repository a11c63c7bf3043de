//! Who may connect: the trait through which the embedder decides. The ready-made list of users stands in
//! `users`, its form in JSON in `form`, what a signed nonce proves in `nkey`.

mod form;
pub mod nkey;
mod users;

pub use form::UsersError;
pub use users::{Exchangeable, StaticUsers};

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::model::secret::Secret;

use super::pace::Pace;
use super::permission::Permissions;

/// Decides who a client is. Called in the connection's own task, so it may compute but must not block on I/O.
pub trait Authenticator: Send + Sync + 'static {
    /// Who presents these credentials.
    ///
    /// # Errors
    /// [`Denied`]: the client is told "Authorization Violation" and no more.
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<User, Denied>;

    /// What has become of a user that was let in before; `None` when it may no longer be here. Asked for each of the user's
    /// connections by [`super::Broker::recheck_user`].
    fn current(&self, user: &User) -> Option<User> {
        Some(user.clone())
    }

    /// Told when `user`, connected from `peer`, tried what its permissions forbid and was refused. Called in the
    /// connection's own task, as often as clients try: it must cost little.
    fn violated(&self, user: &User, peer: SocketAddr, violation: Violation<'_>) {
        let _ = (user, peer, violation);
    }

    /// Whether what `user` publishes to `subject` shall carry from where it is connected, in the header
    /// [`super::stamp::CLIENT_ADDRESS`] and in place of all headers of its own. Asked for every message: must cost little.
    fn stamps(&self, user: &User, subject: &[u8]) -> bool {
        let _ = (user, subject);
        false
    }

    /// Whether INFO must carry a nonce for clients to sign.
    fn wants_nonce(&self) -> bool {
        false
    }
}

/// What permissions forbade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation<'a> {
    /// To publish to this subject.
    Publish {
        /// The subject.
        to: &'a str,
        /// What was to be published, without headers.
        payload: &'a [u8],
    },
    /// To listen to this subject.
    Subscribe(&'a str),
}

/// What a client presents. Absent means that CONNECT did not name it.
#[derive(Debug, Clone, Copy)]
pub struct Credentials<'a> {
    /// User name.
    pub user: Option<&'a str>,
    /// Password.
    pub password: Option<&'a str>,
    /// Token.
    pub token: Option<&'a str>,
    /// Public key.
    pub nkey: Option<&'a str>,
    /// Signature of `nonce`, in URL-safe base64.
    pub sig: Option<&'a str>,
    /// Signed claims, for authenticators that understand them.
    pub jwt: Option<&'a str>,
    /// What this connection was asked to sign.
    pub nonce: Option<&'a str>,
    /// Where the client connects from.
    pub peer: SocketAddr,
}

/// A client whose credentials were accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Name for logs, `$SYS.REQ.USER.INFO` and [`super::Broker::disconnect_user`]; empty when nobody in particular.
    pub name: String,
    /// What the user may do.
    pub permissions: Permissions,
    /// When the credentials end, and with them the connection.
    pub expires: Option<SystemTime>,
    /// What the authenticator wants to see again in [`Authenticator::current`], such as the password shown.
    pub credential: Option<Secret>,
    /// How fast the user may send, over all its connections: whoever is too fast is read from more slowly. All of them are
    /// given the same one, those of [`Authenticator::current`] too. `None` sets no bound and costs nothing.
    pub pace: Option<Arc<Pace>>,
    /// Whether others wait for this one: who has a [`User::pace`] and publishes to it is not read from while more than half
    /// of what may be pending waits for it, so that it is not cut off as a slow consumer for the haste of others.
    pub vital: bool,
}

impl User {
    /// A user whose credentials do not expire.
    pub fn new(name: impl Into<String>, permissions: Permissions) -> Self {
        Self { name: name.into(), permissions, expires: None, credential: None, pace: None, vital: false }
    }

    /// The user of a broker without authentication.
    pub fn anonymous() -> Self {
        Self::new("", Permissions::default())
    }
}

/// The credentials were not accepted; the reason is for the log only.
#[derive(Debug, thiserror::Error)]
#[error("credentials refused: {reason}")]
pub struct Denied {
    /// Why, without secrets.
    pub reason: String,
    /// How long the client waits for its answer. Only so many of one network wait; the others are answered at once.
    pub delay: Duration,
    /// Whether it is not worth a line in the log: it is one of many.
    pub quiet: bool,
    /// Whether there is a user of the name that was given.
    pub known: bool,
}

impl Denied {
    /// Refuses with `reason`.
    pub fn because(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), delay: Duration::ZERO, quiet: false, known: false }
    }
}

/// Characters of what a stranger calls itself that are shown.
const SHOWN: usize = 64;

/// What a stranger calls itself, quoted, as text for one line of a log: cut where it is long, and with what cannot be
/// printed escaped.
pub fn shown(name: &str) -> String {
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}...", name.get(..end).unwrap_or_default()),
        None => format!("{name:?}"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_strangers_call_themselves_fits_on_a_line() {
        assert_eq!(super::shown("ann"), "\"ann\"");
        assert_eq!(super::shown("a\r\nb\u{1b}[2J"), r#""a\r\nb\u{1b}[2J""#);
        assert_eq!(super::shown(&"ä".repeat(5_000)), format!("\"{}\"...", "ä".repeat(64)));
        assert!(super::shown(&"\u{1b}".repeat(5_000)).len() < 500);
    }
}
