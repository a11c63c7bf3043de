//! The saved contexts: which controllers this user knows and who to be there. [`mod@super::file`] reads and writes them.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{HomeError, VariableError};
use crate::identity::ca::{Fingerprint, FingerprintError};
use crate::model::AccountName;
use crate::model::secret::Secret;

/// How long to wait for another command's change: each takes milliseconds, so this is only met by a stuck one.
pub(super) const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Why contexts cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The home folder.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The file system refuses.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{path} is not a file of contexts ({reason}); mend it, or move it away and make the contexts again")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
    /// Another process keeps the lock.
    #[error("{path} has been locked by another process for {LOCK_TIMEOUT:?}; end that process and try again")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The context asked for does not exist.
    #[error("there is no context {name:?} (known: {known}); `orchard context create URL --name {name}` makes it")]
    Unknown {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// The name of a new context is taken.
    #[error("there is a context {name:?} already, for {url}; replace it with --force, or choose another --name")]
    Exists {
        /// The name.
        name: String,
        /// Where the one there leads to.
        url: String,
    },
    /// Neither a context nor variables say where the controller is.
    #[error(
        "no controller is known: start one with `orchard dev`, or make one known with `orchard context create URL`, or \
         set ORCHARD_URL, ORCHARD_SERVICE_ACCOUNT_NAME and ORCHARD_SERVICE_ACCOUNT_TOKEN"
    )]
    NoDefault,
    /// A variable holds what it cannot.
    #[error(transparent)]
    Variable(#[from] VariableError),
    /// Of two variables that go together, one is set.
    #[error(
        "{given} is set and {missing} is not: an account and its token go together. Set both, or neither to use a saved \
         context"
    )]
    HalfSet {
        /// The one that is set.
        given: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
    /// A context lacks something.
    #[error("for {of} there is no {what}; set {variable}")]
    Incomplete {
        /// Whether it is the environment that says where to go.
        from_environment: bool,
        /// Which context.
        of: String,
        /// What is missing.
        what: &'static str,
        /// The variable that can give it.
        variable: &'static str,
    },
    /// The controller's address cannot be understood.
    #[error("{of}: {reason}")]
    Address {
        /// Which context.
        of: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The account's name breaks the naming rule.
    #[error("ORCHARD_SERVICE_ACCOUNT_NAME: {0}")]
    Account(crate::model::error::ApiError),
    /// The fingerprint in the environment is none.
    #[error("ORCHARD_FINGERPRINT: {0}")]
    Fingerprint(FingerprintError),
}

impl ContextError {
    /// Whether the environment is to blame: then the command was asked for wrongly.
    pub fn is_usage(&self) -> bool {
        match self {
            ContextError::Variable(_) | ContextError::HalfSet { .. } => true,
            ContextError::Account(_) | ContextError::Fingerprint(_) => true,
            ContextError::Incomplete { from_environment, .. } => *from_environment,
            ContextError::Address { of, .. } => of == super::target::URL,
            _ => false,
        }
    }
}

/// One controller and who to be there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Context {
    /// Where the controller's bus is.
    pub url: String,
    /// The account to log in as.
    #[serde(rename = "serviceAccountName", default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountName>,
    /// Its token.
    #[serde(rename = "serviceAccountToken", default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
    /// The certificate to expect there; none = one that a public CA vouches for, or none at all with `nats://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// Keys of other releases, kept as they are.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// All contexts, and which is used when none is named.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Contexts {
    /// The name of the default one.
    #[serde(rename = "default-context", default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// By name.
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
    /// Keys of other releases, kept as they are.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

impl Contexts {
    /// Adds or replaces `name`; it becomes the default if `make_default` or if there is none.
    pub fn put(&mut self, name: &str, context: Context, make_default: bool) {
        self.contexts.insert(name.to_owned(), context);
        if make_default || self.default.is_none() {
            self.default = Some(name.to_owned());
        }
    }

    /// Adds `name`, as [`Contexts::put`] does, unless there is one of that name already.
    ///
    /// # Errors
    /// [`ContextError::Exists`].
    pub fn add(&mut self, name: &str, context: Context) -> Result<(), ContextError> {
        if let Some(there) = self.contexts.get(name) {
            return Err(ContextError::Exists { name: name.to_owned(), url: there.url.clone() });
        }
        self.put(name, context, false);
        Ok(())
    }

    /// The context `name`.
    ///
    /// # Errors
    /// [`ContextError::Unknown`] with the names there are.
    pub fn get(&self, name: &str) -> Result<&Context, ContextError> {
        self.contexts.get(name).ok_or_else(|| {
            let names: Vec<_> = self.contexts.keys().map(String::as_str).collect();
            let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            ContextError::Unknown { name: name.to_owned(), known }
        })
    }

    /// Makes `name` the default.
    ///
    /// # Errors
    /// [`ContextError::Unknown`].
    pub fn set_default(&mut self, name: &str) -> Result<(), ContextError> {
        self.get(name)?;
        self.default = Some(name.to_owned());
        Ok(())
    }

    /// Forgets `name`. Another one becomes the default only if it is the only one left: a command must not go to a
    /// controller that nobody chose.
    ///
    /// # Errors
    /// [`ContextError::Unknown`].
    pub fn remove(&mut self, name: &str) -> Result<(), ContextError> {
        self.get(name)?;
        self.contexts.remove(name);
        if self.default.as_deref() == Some(name) {
            let mut left = self.contexts.keys();
            self.default = left.next().filter(|_| left.next().is_none()).cloned();
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A context of the tests.
    pub(in crate::config) fn context(url: &str) -> Context {
        Context {
            url: url.to_owned(),
            account: Some("bootstrap-admin".parse().unwrap()),
            token: Some(Secret::new("tök: #en")),
            fingerprint: Some(Fingerprint::of(b"certificate")),
            other: BTreeMap::new(),
        }
    }

    #[test]
    fn a_name_is_not_taken_over_and_the_default_is_never_guessed() {
        let mut all = Contexts::default();
        all.add("a", context("a")).unwrap();
        assert!(matches!(all.add("a", context("b")), Err(ContextError::Exists { url, .. }) if url == "a"));
        all.add("b", context("b")).unwrap();
        all.add("c", context("c")).unwrap();
        all.set_default("b").unwrap();
        assert!(all.set_default("x").is_err() && all.remove("x").is_err());
        all.remove("b").unwrap();
        assert_eq!(all.default, None);
        all.set_default("a").unwrap();
        all.remove("a").unwrap();
        assert_eq!(all.default.as_deref(), Some("c"));
        all.remove("c").unwrap();
        assert_eq!(all.default, None);
    }
}
