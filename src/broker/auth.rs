//! Who may connect: the trait through which the embedder decides, and a ready-made list of users.

use std::net::SocketAddr;

use crate::identity::same_secret;
use crate::model::secret::Secret;

use super::permission::Permissions;

/// Decides who a client is. Called in the connection's own task, so it may compute but must not block on I/O.
pub trait Authenticator: Send + Sync + 'static {
    /// Who presents these credentials.
    ///
    /// # Errors
    /// [`Denied`]: the client is told "Authorization Violation" and no more.
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<User, Denied>;

    /// Whether INFO must carry a nonce for clients to sign.
    fn wants_nonce(&self) -> bool {
        false
    }
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
}

impl User {
    /// The user of a broker without authentication.
    pub fn anonymous() -> Self {
        Self { name: String::new(), permissions: Permissions::default() }
    }
}

/// The credentials were not accepted; the reason is for the log only.
#[derive(Debug, thiserror::Error)]
#[error("credentials refused: {reason}")]
pub struct Denied {
    /// Why, without secrets.
    pub reason: String,
}

impl Denied {
    /// Refuses with `reason`.
    pub fn because(reason: impl Into<String>) -> Self {
        Self { reason: reason.into() }
    }
}

/// Users with passwords, fixed at start.
///
/// ```
/// use orchard::broker::auth::{Authenticator, StaticUsers, User};
///
/// let users = StaticUsers::default().with("ann", "s3cret", Default::default());
/// # let _: &dyn Authenticator = &users;
/// ```
#[derive(Debug, Default)]
pub struct StaticUsers {
    users: Vec<(User, Secret)>,
}

impl StaticUsers {
    /// The same list and one more.
    #[must_use]
    pub fn with(mut self, name: &str, password: &str, permissions: Permissions) -> Self {
        self.users.push((User { name: name.to_owned(), permissions }, Secret::new(password)));
        self
    }
}

impl Authenticator for StaticUsers {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<User, Denied> {
        let (Some(name), Some(password)) = (credentials.user, credentials.password) else {
            return Err(Denied::because("neither user nor password given"));
        };
        let known = self.users.iter().find(|(user, _)| user.name == name);
        // Compare in any case, so that time does not tell which users exist.
        let same = same_secret(password, known.map_or("", |(_, secret)| secret.expose()));
        match known {
            Some((user, _)) if same => Ok(user.clone()),
            Some(_) => Err(Denied::because(format!("wrong password for {name:?}"))),
            None => Err(Denied::because(format!("unknown user {name:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(users: &StaticUsers, user: Option<&str>, password: Option<&str>) -> bool {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let credentials = Credentials { user, password, token: None, nkey: None, sig: None, nonce: None, peer };
        users.authenticate(&credentials).is_ok()
    }

    #[test]
    fn only_the_right_password_opens() {
        let users = StaticUsers::default().with("ann", "x", Permissions::default());
        assert!(ask(&users, Some("ann"), Some("x")));
        for (user, password) in [
            (Some("ann"), Some("y")),
            (Some("ann"), Some("")),
            (Some("bob"), Some("x")),
            (Some("bob"), Some("")),
            (Some("ann"), None),
            (None, Some("x")),
            (None, None),
        ] {
            assert!(!ask(&users, user, password), "{user:?} {password:?}");
        }
    }
}
