//! A list of users in JSON: its form, and what is refused at reading, because a slip there must not open a door. Called by
//! `users`.

use std::collections::HashSet;
use std::mem;
use std::path::PathBuf;

use serde::Deserialize;

use super::users::{Proof, REDACTED};
use super::{User, nkey};
use crate::broker::permission::{Impossible, Permissions};
use crate::model::secret::Secret;

/// A list of users cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// The file cannot be read.
    #[error("cannot read the users file {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// It is not JSON of the right shape.
    #[error("the list of users is not in the expected form")]
    Form(#[from] serde_json::Error),
    /// A user has no name and secret, or too many of them.
    #[error("user number {number} must have either \"user\" and \"password\", \"token\" or \"nkey\"")]
    Proof {
        /// Counted from 1.
        number: usize,
    },
    /// A permission is no pattern, and would never hold.
    #[error("{whose}: {rules} {list} entry {entry:?} is not {expected}")]
    Pattern {
        /// The user at fault, or `default_permissions`.
        whose: String,
        /// `publish` or `subscribe`.
        rules: &'static str,
        /// `allow` or `deny`.
        list: &'static str,
        /// What stands there.
        entry: String,
        /// What might.
        expected: &'static str,
    },
    /// Two users are told apart by nothing.
    #[error("user number {number} ({name}) is in the list already: each name, nkey and token may stand there once")]
    Twice {
        /// Counted from 1, the second of them.
        number: usize,
        /// Its name; never its token.
        name: String,
    },
    /// A secret that anybody knows.
    #[error("user number {number}: the {what} is empty; give one, or leave the user out")]
    Empty {
        /// Counted from 1.
        number: usize,
        /// `password` or `token`.
        what: &'static str,
    },
    /// The nkey is none.
    #[error("user number {number}: {nkey:?} is not a user's public key (U and 55 more letters and digits)")]
    Nkey {
        /// Counted from 1.
        number: usize,
        /// What stands there.
        nkey: String,
    },
    /// The time is none.
    #[error("user number {number}: {expires:?} is not a time such as 2030-01-01T00:00:00Z")]
    Expires {
        /// Counted from 1.
        number: usize,
        /// What stands there.
        expires: String,
    },
}

/// Reads a list of users.
pub(super) fn read(json: &str) -> Result<Vec<(User, Proof)>, UsersError> {
    let form: Form = serde_json::from_str(json)?;
    check(&form.default_permissions, || "default_permissions".to_owned())?;
    let mut users = Vec::with_capacity(form.users.len());
    for (number, entry) in (1..).zip(form.users) {
        let (user, proof) = entry.read(number, &form.default_permissions)?;
        users.push((user, proof));
    }
    let mut known = HashSet::with_capacity(users.len());
    for (number, (user, proof)) in (1..).zip(&users) {
        let key = match proof {
            Proof::Token(token) => token.expose(),
            Proof::Password(_) | Proof::Nkey => &user.name,
        };
        if !known.insert((mem::discriminant(proof), key)) {
            return Err(UsersError::Twice { number, name: user.name.clone() });
        }
    }
    Ok(users)
}

/// `Err` for an entry that no subject can match; `whose` names the user.
fn check(permissions: &Permissions, whose: impl Fn() -> String) -> Result<(), UsersError> {
    match permissions.impossible() {
        None => Ok(()),
        Some(Impossible { rules, list, entry, expected }) => {
            Err(UsersError::Pattern { whose: whose(), rules, list, entry, expected })
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    users: Vec<Entry>,
    #[serde(default)]
    default_permissions: Permissions,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(alias = "username")]
    user: Option<String>,
    #[serde(alias = "pass")]
    password: Option<Secret>,
    token: Option<Secret>,
    nkey: Option<String>,
    permissions: Option<Permissions>,
    expires: Option<String>,
}

impl Entry {
    fn read(self, number: usize, default: &Permissions) -> Result<(User, Proof), UsersError> {
        let (name, proof) = match (self.user, self.password, self.token, self.nkey) {
            (Some(name), Some(password), None, None) => (name, Proof::Password(password)),
            (None, None, Some(token), None) => (REDACTED.to_owned(), Proof::Token(token)),
            (None, None, None, Some(key)) if nkey::is_public_key(&key) => (key, Proof::Nkey),
            (None, None, None, Some(nkey)) => return Err(UsersError::Nkey { number, nkey }),
            _ => return Err(UsersError::Proof { number }),
        };
        if let Some(permissions) = &self.permissions {
            check(permissions, || format!("user number {number} ({name})"))?;
        }
        match &proof {
            Proof::Password(secret) if secret.expose().is_empty() => {
                return Err(UsersError::Empty { number, what: "password" });
            }
            Proof::Token(secret) if secret.expose().is_empty() => {
                return Err(UsersError::Empty { number, what: "token" });
            }
            _ => {}
        }
        let mut user = User::new(name, self.permissions.unwrap_or_else(|| default.clone()));
        if let Some(expires) = self.expires {
            let time = expires.parse::<jiff::Timestamp>();
            user.expires = Some(time.map_err(|_| UsersError::Expires { number, expires })?.into());
        }
        Ok((user, proof))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_list_says_which_user() {
        for (json, part) in [
            ("{", "form"),
            (r#"{"users": [{"user": "ann"}]}"#, "number 1"),
            (r#"{"users": [{"token": "t"}, {"user": "ann", "password": "x", "token": "t"}]}"#, "number 2"),
            (r#"{"users": [{"nkey": "UABC"}]}"#, "UABC"),
            (r#"{"users": [{"user": "ann", "password": ""}]}"#, "password is empty"),
            (r#"{"users": [{"token": ""}]}"#, "token is empty"),
            (r#"{"users": [{"token": "t", "expires": "soon"}]}"#, "soon"),
            (r#"{"users": [{"token": "t", "permission": {}}]}"#, "form"),
        ] {
            let error = read(json).unwrap_err().to_string();
            assert!(error.contains(part), "{json}: {error}");
        }
    }

    #[test]
    fn a_permission_that_can_never_hold_is_refused() {
        let list = |kind: &str, list: &str, entry: &str| {
            let rules = serde_json::json!({ kind: { list: [entry] } });
            serde_json::json!({ "users": [{ "user": "ann", "password": "x", "permissions": rules }] }).to_string()
        };
        for entry in ["", "jobs. secret", "x..y", ">.a", "a.", "jobs.> ", " jobs", "a\tb", "a b c", "a q..x", "a\u{c}"]
        {
            for kind in ["publish", "subscribe"] {
                for side in ["allow", "deny"] {
                    let error = read(&list(kind, side, entry)).unwrap_err().to_string();
                    let named = [kind, side, "ann", &format!("{entry:?}")].iter().all(|part| error.contains(part));
                    assert!(named, "{entry:?}: {error}");
                }
            }
        }
        for entry in ["jobs q", "a.> q.*"] {
            assert!(read(&list("publish", "deny", entry)).is_err() && read(&list("subscribe", "deny", entry)).is_ok());
        }
        let error = read(r#"{"users": [], "default_permissions": {"publish": "a..b"}}"#).unwrap_err().to_string();
        assert!(error.contains("default_permissions"), "{error}");
    }

    #[test]
    fn nobody_stands_in_the_list_twice() {
        let key = "UCNGL4W5QX66CFX6A6DCBVDH5VOHMI7B2UZZU7TXAUQQSI2JPHULCKBR";
        for one in [r#"{"user":"a","password":"%"}"#, r#"{"token":"t0ken"}"#, &format!(r#"{{"nkey":"{key}"}}"#)] {
            let both = format!(r#"{{"users":[{},{}]}}"#, one.replace('%', "x"), one.replace('%', "y"));
            let error = read(&both).unwrap_err().to_string();
            assert!(error.contains("number 2") && !error.contains("t0ken"), "{error}");
        }
        let apart = r#"{"users":[{"user":"a","password":"x"},{"token":"a"},{"user":"b","password":"x"}]}"#;
        assert!(read(apart).is_ok());
    }
}
