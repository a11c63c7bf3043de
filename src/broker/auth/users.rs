//! Ready-made authenticators: a list of users with passwords, tokens or nkeys, built in code or read from JSON, and one
//! that can be exchanged while the broker runs.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use super::form::{self, UsersError};
use super::{Authenticator, Credentials, Denied, User, nkey, shown};
use crate::broker::file;
use crate::broker::permission::Permissions;
use crate::identity::same_secret;
use crate::model::secret::Secret;

/// What `$SYS.REQ.USER.INFO` and logs call users who have a token instead of a name, as in nats-server.
pub(super) const REDACTED: &str = "[REDACTED]";

/// How credentials begin that hold a password or a token: the name alone does not tell, since a user may be called
/// [`REDACTED`].
const BY_PASSWORD: &str = "password:";
const BY_TOKEN: &str = "token:";

/// What a user shows.
#[derive(Debug, Clone)]
pub(super) enum Proof {
    /// The password to the user's name.
    Password(Secret),
    /// A token, whatever the name.
    Token(Secret),
    /// A signature with the key whose public half is the user's name.
    Nkey,
}

/// Users known by password, token or nkey. In code:
///
/// ```
/// use orchard::broker::auth::StaticUsers;
///
/// let users = StaticUsers::default()
///     .with("ann", "s3cret", Default::default())
///     .with_token("t0ken", Default::default());
/// # let _: &dyn orchard::broker::auth::Authenticator = &users;
/// ```
///
/// or from JSON, in the shape of the `authorization` block of nats-server. A user has `user` and `password` (in plain
/// text), `token`, or `nkey`; `permissions` and `expires` (RFC 3339) may be absent. A user without permissions of its own
/// has `default_permissions`, and without those may do everything.
///
/// ```
/// # use orchard::broker::auth::StaticUsers;
/// let users = StaticUsers::from_json(r#"{
///     "default_permissions": { "subscribe": "public.>" },
///     "users": [
///         { "user": "ann", "password": "s3cret", "expires": "2030-01-01T00:00:00Z" },
///         { "nkey": "UCNGL4W5QX66CFX6A6DCBVDH5VOHMI7B2UZZU7TXAUQQSI2JPHULCKBR",
///           "permissions": { "publish": { "allow": ["a.>"], "deny": "a.b" }, "allow_responses": true } }
///     ]
/// }"#)?;
/// # Ok::<(), orchard::broker::auth::UsersError>(())
/// ```
#[derive(Debug, Default, Clone)]
pub struct StaticUsers {
    users: Vec<(User, Proof)>,
}

impl StaticUsers {
    /// The same list and a user with a password.
    #[must_use]
    pub fn with(mut self, name: &str, password: &str, permissions: Permissions) -> Self {
        self.users.push((User::new(name, permissions), Proof::Password(Secret::new(password))));
        self
    }

    /// The same list and whoever has `token`.
    #[must_use]
    pub fn with_token(mut self, token: &str, permissions: Permissions) -> Self {
        self.users.push((User::new(REDACTED, permissions), Proof::Token(Secret::new(token))));
        self
    }

    /// The same list and the owner of the nkey with this public half. One that is no public key opens nothing.
    #[must_use]
    pub fn with_nkey(mut self, public_key: &str, permissions: Permissions) -> Self {
        self.users.push((User::new(public_key, permissions), Proof::Nkey));
        self
    }

    /// Reads a list of users; see the type for the form.
    ///
    /// # Errors
    /// [`UsersError`], which names the user at fault.
    pub fn from_json(json: &str) -> Result<Self, UsersError> {
        Ok(Self { users: form::read(json)? })
    }

    /// Reads the regular file at `path`; blocks for as long as the disk takes.
    ///
    /// # Errors
    /// [`UsersError`].
    pub fn read(path: &Path) -> Result<Self, UsersError> {
        let json = file::read(path)
            .and_then(|json| String::from_utf8(json).map_err(|_| std::io::Error::other("it is not UTF-8 text")));
        let json = Secret::new(json.map_err(|source| UsersError::Read { path: path.to_owned(), source })?);
        Self::from_json(json.expose())
    }

    fn by_password(&self, name: &str, password: &str) -> Result<User, Denied> {
        let known = self.users.iter().find_map(|(user, proof)| match proof {
            Proof::Password(secret) if user.name == name => Some((user, secret)),
            _ => None,
        });
        // Compare in any case, so that time does not tell which users exist.
        let same = same_secret(password, known.map_or("", |(_, secret)| secret.expose()));
        match known {
            Some((user, _)) if same => Ok(with_credential(user, BY_PASSWORD, password)),
            Some(_) => Err(Denied::because(format!("wrong password for {}", shown(name)))),
            None => Err(Denied::because(format!("unknown user {}", shown(name)))),
        }
    }

    fn by_token(&self, token: &str) -> Result<User, Denied> {
        let known = self.users.iter().find_map(|(user, proof)| match proof {
            Proof::Token(secret) if same_secret(secret.expose(), token) => Some(with_credential(user, BY_TOKEN, token)),
            _ => None,
        });
        known.ok_or_else(|| Denied::because("unknown token"))
    }

    fn by_nkey(&self, public_key: &str) -> Result<User, Denied> {
        let known = self.users.iter().find(|(user, proof)| matches!(proof, Proof::Nkey) && user.name == public_key);
        known
            .map(|(user, _)| user.clone())
            .ok_or_else(|| Denied::because(format!("unknown nkey {}", shown(public_key))))
    }

    fn has_nkeys(&self) -> bool {
        self.users.iter().any(|(_, proof)| matches!(proof, Proof::Nkey))
    }
}

fn with_credential(user: &User, how: &str, shown: &str) -> User {
    User { credential: Some(Secret::new([how, shown].concat())), ..user.clone() }
}

/// `Err` when the user's time is over.
fn in_time(user: User) -> Result<User, Denied> {
    if user.expires.is_some_and(|end| end <= SystemTime::now()) {
        return Err(Denied::because(format!("the credentials of {:?} have expired", user.name)));
    }
    Ok(user)
}

impl Authenticator for StaticUsers {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<User, Denied> {
        let user = if credentials.nkey.is_some() && self.has_nkeys() {
            self.by_nkey(nkey::proven(credentials)?)
        } else if let (Some(name), Some(password)) = (credentials.user, credentials.password) {
            self.by_password(name, password)
        } else if let Some(token) = credentials.token {
            self.by_token(token)
        } else {
            Err(Denied::because("neither user and password, nor token, nor nkey given"))
        };
        in_time(user?)
    }

    /// The user as it stands in the list now, if it would still get in with what it showed.
    fn current(&self, user: &User) -> Option<User> {
        let current = match user.credential.as_ref().map(Secret::expose) {
            None => self.by_nkey(&user.name),
            Some(shown) => match (shown.strip_prefix(BY_TOKEN), shown.strip_prefix(BY_PASSWORD)) {
                (Some(token), _) => self.by_token(token),
                (_, Some(password)) => self.by_password(&user.name, password),
                _ => return None,
            },
        };
        current.ok()
    }

    fn wants_nonce(&self) -> bool {
        self.has_nkeys()
    }
}

/// An authenticator that can be exchanged for another of its kind while the broker runs. Call
/// [`crate::broker::Broker::recheck_all`] behind [`Exchangeable::replace`], so that it counts for those who are connected.
pub struct Exchangeable<A> {
    current: RwLock<Arc<A>>,
}

impl<A> fmt::Debug for Exchangeable<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchangeable").finish_non_exhaustive()
    }
}

impl<A> Exchangeable<A> {
    /// Begins with `first`.
    pub fn new(first: A) -> Self {
        Self { current: RwLock::new(Arc::new(first)) }
    }

    /// From now on, `next` decides.
    pub fn replace(&self, next: A) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
    }

    fn get(&self) -> Arc<A> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<A: Authenticator> Authenticator for Exchangeable<A> {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<User, Denied> {
        self.get().authenticate(credentials)
    }

    fn current(&self, user: &User) -> Option<User> {
        self.get().current(user)
    }

    fn wants_nonce(&self) -> bool {
        self.get().wants_nonce()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::broker::permission::Rules;

    fn credentials<'a>(user: Option<&'a str>, password: Option<&'a str>, token: Option<&'a str>) -> Credentials<'a> {
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        Credentials { user, password, token, nkey: None, sig: None, nonce: None, jwt: None, peer }
    }

    #[test]
    fn only_the_right_password_opens() {
        let users = StaticUsers::default().with("ann", "x", Permissions::default());
        let ask = |user, password| users.authenticate(&credentials(user, password, None)).is_ok();
        assert!(ask(Some("ann"), Some("x")));
        for (user, password) in [
            (Some("ann"), Some("y")),
            (Some("ann"), Some("")),
            (Some("bob"), Some("x")),
            (Some("bob"), Some("")),
            (Some("ann"), None),
            (None, Some("x")),
            (None, None),
        ] {
            assert!(!ask(user, password), "{user:?} {password:?}");
        }
    }

    #[test]
    fn only_a_known_token_opens() {
        let users = StaticUsers::default().with("ann", "x", Permissions::default());
        let users = users.with_token("t", Permissions::default());
        let ask = |user, password, token| users.authenticate(&credentials(user, password, token)).is_ok();
        assert!(ask(None, None, Some("t")) && ask(Some("who"), None, Some("t")));
        assert!(!ask(None, None, Some("x")) && !ask(None, None, Some("")) && !ask(Some("[REDACTED]"), Some("t"), None));
    }

    #[test]
    fn users_are_read_from_json() {
        let users = StaticUsers::from_json(
            r#"{"default_permissions": {"publish": "d"}, "users": [
                {"user": "ann", "password": "x", "permissions": {"publish": ["a", "b"], "responses": true}},
                {"username": "bob", "pass": "y", "expires": "2001-01-01T00:00:00Z"},
                {"token": "t"}]}"#,
        )
        .unwrap();
        let ann = users.authenticate(&credentials(Some("ann"), Some("x"), None)).unwrap();
        assert_eq!(ann.permissions.publish, Rules::allow(["a", "b"]));
        assert!(ann.permissions.allow_responses.is_some() && ann.expires.is_none());
        let bob = users.authenticate(&credentials(Some("bob"), Some("y"), None)).unwrap_err();
        assert!(bob.reason.contains("expired"), "{bob}");
        let token = users.authenticate(&credentials(None, None, Some("t"))).unwrap();
        assert_eq!(token.permissions.publish, Rules::allow(["d"]));
        assert!(!users.wants_nonce());
    }

    #[test]
    fn a_user_called_like_the_holders_of_tokens_is_none() {
        let none = Permissions { publish: Rules::allow(["a"]), ..Permissions::default() };
        let users = StaticUsers::default().with(REDACTED, "x", none).with_token("t", Permissions::default());
        let named = users.authenticate(&credentials(Some(REDACTED), Some("x"), None)).unwrap();
        let token = users.authenticate(&credentials(None, None, Some("t"))).unwrap();
        assert_eq!(users.current(&named), Some(named.clone()));
        assert_eq!(users.current(&token), Some(token));
        let swapped = StaticUsers::default().with_token("x", Permissions::default());
        assert_eq!(swapped.current(&named), None, "a password is no token");
    }

    #[test]
    fn who_is_still_in_the_list_with_the_same_secret_stays() {
        let list = |password: &str| {
            StaticUsers::default()
                .with("ann", password, Permissions::default())
                .with_token("t", Permissions::default())
                .with_nkey("UKEY", Permissions::default())
        };
        let users = Exchangeable::new(list("x"));
        let ann = users.authenticate(&credentials(Some("ann"), Some("x"), None)).unwrap();
        let token = users.authenticate(&credentials(None, None, Some("t"))).unwrap();
        let key = User::new("UKEY", Permissions::default());
        assert!([&ann, &token, &key].iter().all(|user| users.current(user).as_ref() == Some(*user)));
        users.replace(list("y"));
        assert_eq!(users.current(&ann), None, "the password is another now");
        assert!(users.current(&token).is_some() && users.current(&key).is_some());
        users.replace(StaticUsers::default().with("ann", "x", Permissions::default()));
        assert!(users.current(&ann).is_some() && users.current(&token).is_none() && users.current(&key).is_none());
    }
}
