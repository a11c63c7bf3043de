//! The saved contexts: which controllers this user knows and who to be there, in `orchard.yml` of the home folder.
//!
//! Changes are made under a lock and written whole, so that two commands at once lose nothing and a reader never sees
//! half a file. What a newer release wrote and this one does not know is kept.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Home, HomeError};
use crate::identity;
use crate::identity::ca::{Fingerprint, FingerprintError};
use crate::model::AccountName;
use crate::model::secret::Secret;

/// The file's name in the home folder.
const FILE_NAME: &str = "orchard.yml";
/// The lock beside it: the file itself is replaced by each change, so it cannot carry the lock.
const LOCK_NAME: &str = "orchard.yml.lock";
/// How long to wait for another command's change: each takes milliseconds, so this is only met by a stuck one.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the lock is asked for meanwhile.
const LOCK_PERIOD: Duration = Duration::from_millis(10);
/// A larger file is not one of ours; keeps a mistake such as a device or a disk image from being read whole.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

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
    /// A context lacks something.
    #[error("{of} has no {what}; set {variable}")]
    Incomplete {
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

/// The file of contexts in a home folder.
#[derive(Clone, Debug)]
pub struct ContextFile {
    home: Home,
}

impl ContextFile {
    /// The one in `home`.
    pub fn new(home: Home) -> Self {
        Self { home }
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        self.home.path().join(FILE_NAME)
    }

    /// Reads it; no file means no contexts.
    ///
    /// # Errors
    /// [`ContextError::Io`], [`ContextError::Syntax`].
    pub fn load(&self) -> Result<Contexts, ContextError> {
        let path = self.path();
        let read = match fs::metadata(&path) {
            Ok(about) if about.len() > MAX_FILE_BYTES => {
                let reason = format!("it has {} bytes", about.len());
                return Err(ContextError::Syntax { path, reason });
            }
            Ok(_) => fs::read_to_string(&path),
            Err(error) => Err(error),
        };
        let text = match read {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contexts::default()),
            Err(source) => return Err(ContextError::Io { what: "read", path, source }),
        };
        if text.trim().is_empty() {
            return Ok(Contexts::default());
        }
        serde_saphyr::from_str(&text).map_err(|error| ContextError::Syntax { path, reason: first_line(&error) })
    }

    /// Reads, changes and writes it under the lock, with mode 0600. Blocks for at most 5 s.
    ///
    /// # Errors
    /// Any of loading, [`ContextError::Locked`], [`ContextError::Home`]; the file is then as before.
    pub fn update(&self, change: impl FnOnce(&mut Contexts)) -> Result<(), ContextError> {
        self.try_update(|contexts| {
            change(contexts);
            Ok(())
        })
    }

    /// As [`ContextFile::update`], for a change that may be refused.
    ///
    /// # Errors
    /// As for [`ContextFile::update`], and what `change` says; the file is then as before.
    pub fn try_update(
        &self,
        change: impl FnOnce(&mut Contexts) -> Result<(), ContextError>,
    ) -> Result<(), ContextError> {
        self.home.prepare()?;
        let _lock = lock(&self.home.path().join(LOCK_NAME))?;
        let mut contexts = self.load()?;
        change(&mut contexts)?;
        let path = self.path();
        let text = serde_saphyr::to_string(&contexts)
            .map_err(|error| ContextError::Syntax { path: path.clone(), reason: first_line(&error) })?;
        identity::write_private(&path, text.as_bytes()).map_err(|source| ContextError::Io {
            what: "write",
            path,
            source,
        })
    }
}

/// The parser adds a picture of the place to its first line; that picture would show tokens.
fn first_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

fn lock(path: &Path) -> Result<File, ContextError> {
    let failed = |source| ContextError::Io { what: "lock", path: path.to_owned(), source };
    let file = File::options().create(true).truncate(false).write(true).open(path).map_err(failed)?;
    let deadline = Instant::now() + LOCK_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(LOCK_PERIOD),
            Err(TryLockError::WouldBlock) => return Err(ContextError::Locked { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(url: &str) -> Context {
        Context {
            url: url.to_owned(),
            account: Some("bootstrap-admin".parse().unwrap()),
            token: Some(Secret::new("tök: #en")),
            fingerprint: Some(Fingerprint::of(b"certificate")),
            other: BTreeMap::new(),
        }
    }

    fn file() -> (tempfile::TempDir, ContextFile) {
        let dir = tempfile::tempdir().unwrap();
        let file = ContextFile::new(Home::at(dir.path().join("home")));
        (dir, file)
    }

    #[test]
    fn contexts_survive_the_file_and_the_first_is_the_default() {
        let (_dir, file) = file();
        assert_eq!(file.load().unwrap(), Contexts::default());
        file.update(|all| all.put("a", context("nats://a"), false)).unwrap();
        file.update(|all| all.put("b", context("nats://b"), false)).unwrap();
        let loaded = file.load().unwrap();
        assert_eq!(loaded.default.as_deref(), Some("a"));
        assert_eq!(loaded.contexts["b"], context("nats://b"));
        file.update(|all| all.put("b", context("nats://b2"), true)).unwrap();
        assert_eq!(file.load().unwrap().default.as_deref(), Some("b"));
    }

    #[cfg(unix)]
    #[test]
    fn the_file_is_readable_by_its_owner_only_even_if_it_was_not_before() {
        use std::os::unix::fs::PermissionsExt;
        let (_dir, file) = file();
        file.update(|all| all.put("a", context("a"), false)).unwrap();
        fs::set_permissions(file.path(), PermissionsExt::from_mode(0o644)).unwrap();
        file.update(|all| all.put("b", context("b"), false)).unwrap();
        assert_eq!(fs::metadata(file.path()).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_other_releases_wrote_is_kept() {
        let (_dir, file) = file();
        file.home.prepare().unwrap();
        let old = "default-context: x\nfuture: [1, {a: b}]\ncontexts:\n  x:\n    url: ctl\n    certificate: QUJD\n";
        fs::write(file.path(), old).unwrap();
        file.update(|all| all.put("y", context("y"), false)).unwrap();
        let loaded = file.load().unwrap();
        assert_eq!(loaded.other["future"], serde_json::json!([1, {"a": "b"}]));
        assert_eq!(loaded.contexts["x"].other["certificate"], "QUJD");
        assert_eq!(loaded.default.as_deref(), Some("x"));
    }

    #[test]
    fn a_broken_file_is_refused_without_showing_its_secrets_and_left_as_it_is() {
        let (_dir, file) = file();
        file.home.prepare().unwrap();
        let broken = "contexts:\n  x:\n    serviceAccountToken: hunter2\n    url: [\n";
        fs::write(file.path(), broken).unwrap();
        let error = file.update(|all| all.default = None).unwrap_err();
        assert!(matches!(error, ContextError::Syntax { .. }), "{error}");
        assert!(!error.to_string().contains("hunter2") && !error.to_string().contains('\n'), "{error}");
        assert_eq!(fs::read_to_string(file.path()).unwrap(), broken);
    }

    #[test]
    fn changes_at_the_same_time_all_remain() {
        let (_dir, file) = file();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let file = &file;
                scope.spawn(move || file.update(|all| all.put(&format!("c{number}"), context("u"), false)).unwrap());
            }
        });
        assert_eq!(file.load().unwrap().contexts.len(), 8);
        let left: Vec<_> = fs::read_dir(file.home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left.len(), 2, "the file and its lock: {left:?}");
    }

    #[test]
    fn a_context_of_an_older_release_is_read_and_a_broken_fingerprint_is_never_taken_for_none() {
        let (_dir, file) = file();
        file.home.prepare().unwrap();
        let old = "contexts:\n  x:\n    url: nats://127.0.0.1:4222\n    serviceAccountName: a\n";
        fs::write(file.path(), old).unwrap();
        assert_eq!(file.load().unwrap().contexts["x"].fingerprint, None);
        fs::write(file.path(), format!("{old}    fingerprint: abc\n")).unwrap();
        assert!(matches!(file.load(), Err(ContextError::Syntax { .. })));
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
