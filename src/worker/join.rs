//! Joining: how a machine becomes a worker of a cluster, once, and who it is there ever after. Called by the command line
//! before the worker starts.
//!
//! The machine makes a key pair and exchanges a bootstrap token for the right to log in with it. The seed never leaves
//! the data folder; the controller learns the public half only. What is kept: `worker.nk`, the seed; `worker.join`, where
//! it joined and how to know the controller there; `worker.nk.next`, the key of an exchange that is under way, so that
//! one that was cut short is taken up again with the same key, which costs no further use of the token.

mod files;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use self::files::{io_error, new_seed, public_key, read, read_seed};
use crate::bus::access::{Join, Joined};
use crate::bus::client::{Bus, BusOptions, Login, REQUEST_TIMEOUT, Trust};
use crate::bus::subject;
use crate::config::address;
use crate::config::join::BootstrapToken;
use crate::identity;
use crate::identity::ca::Fingerprint;
use crate::model::WorkerName;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::secret::Secret;

/// The seed of the worker's key pair.
pub const KEY_FILE: &str = "worker.nk";
/// The seed of a key pair that is not yet known to be accepted.
const NEXT_KEY_FILE: &str = "worker.nk.next";
/// Where the worker joined, as JSON.
pub const JOIN_FILE: &str = "worker.join";
/// How long a controller that cannot be reached is waited for before joining is given up: it may be starting, too.
const JOIN_PATIENCE: Duration = Duration::from_secs(60);
/// The pause between two attempts.
const JOIN_PAUSE: Duration = Duration::from_secs(1);

/// A machine that wants to be a worker.
#[derive(Clone, Debug)]
pub struct Candidate<'a> {
    /// Holds the key; there already, and closed to others.
    pub data_dir: &'a Path,
    /// The name to join under; none = the one it joined under, and `default_name` if it never did.
    pub name: Option<WorkerName>,
    /// See `name`.
    pub default_name: Option<WorkerName>,
    /// Identity of the host, as in `WorkerInfo`.
    pub machine_id: &'a str,
    /// What to join with if that is needed.
    pub token: Option<BootstrapToken>,
}

/// Where a controller is, and its certificate, as in [`BootstrapToken`].
type Place = (String, Option<Fingerprint>);

/// Who this machine is as a worker, and where.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name in the cluster.
    pub name: WorkerName,
    /// Where the bus is.
    pub url: String,
    /// The certificate to expect there, as in `BootstrapToken::fingerprint`.
    pub fingerprint: Option<Fingerprint>,
    seed: Secret,
}

/// Why a machine does not become a worker.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The file system.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others may read the key.
    #[error(
        "others may read {} (its mode is {mode:o}), and whoever has it can be this worker; close it with: chmod 600 {}",
        path.display(), path.display()
    )]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file is not what it should be.
    #[error(
        "{} is damaged ({why}); remove it and join again with a token of `orchard get bootstrap-token --worker NAME`",
        path.display()
    )]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It never joined, and has nothing to join with.
    #[error(
        "this machine has not joined a cluster yet ({} holds no key): run `orchard get bootstrap-token` on a machine that \
         may, and give what it prints to `orchard worker run --bootstrap-token-stdin` here",
        .0.display()
    )]
    NoToken(PathBuf),
    /// Its machine has no name that a worker could have.
    #[error("this machine's name cannot be a worker's; give one with --name")]
    NoName,
    /// The folder is another worker's.
    #[error("the data folder {} belongs to worker {known}, not {asked}; choose another with --data-dir", folder.display())]
    OtherName {
        /// The folder.
        folder: PathBuf,
        /// Who joined with it.
        known: WorkerName,
        /// Who is asked to run.
        asked: WorkerName,
    },
    /// The controller does not know its key any more.
    #[error(
        "worker {name} is not let in at {url} any more: it was deleted, or its name was given to another machine. Its VMs \
         go on here. To let it join again, run `orchard get bootstrap-token` on a machine that may, and give what it \
         prints to `orchard worker run --bootstrap-token-stdin` here"
    )]
    Revoked {
        /// Its name.
        name: WorkerName,
        /// Where.
        url: String,
    },
    /// The token is not accepted.
    #[error(
        "the bootstrap token is refused at {url}: it has ended, is used up, or is of another controller; get another with \
         `orchard get bootstrap-token`"
    )]
    TokenRefused {
        /// Where.
        url: String,
    },
    /// The bus or the controller says no.
    #[error("cannot join")]
    Bus(#[source] ApiError),
}

/// What [`JOIN_FILE`] holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    worker: WorkerName,
    url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fingerprint: Option<Fingerprint>,
}

impl Member {
    /// How it logs in to the bus.
    pub fn bus(&self) -> BusOptions {
        BusOptions {
            url: self.url.clone(),
            trust: Trust::of(&self.url, self.fingerprint),
            user: subject::worker_user(&self.name),
            login: Login::Key(self.seed.clone()),
            client_name: format!("orchard worker {}", self.name),
            patient: true,
        }
    }
}

impl Candidate<'_> {
    /// Finds out who this machine is, and joins if it is nobody yet or nobody any more. A token is used only then. While
    /// the controller that it joined cannot be reached, its key is taken to be good.
    ///
    /// # Errors
    /// See [`JoinError`]. Cancel safe: what was begun is taken up again by the next call.
    pub async fn become_member(self) -> Result<Member, JoinError> {
        self.admit(None).await
    }

    /// As [`Candidate::become_member`], for a caller who knows better than what was saved where the controller is now that
    /// this machine joined.
    ///
    /// # Errors
    /// As for [`Candidate::become_member`].
    pub async fn become_member_at(self, url: String, fingerprint: Option<Fingerprint>) -> Result<Member, JoinError> {
        self.admit(Some((url, fingerprint))).await
    }

    async fn admit(self, place: Option<Place>) -> Result<Member, JoinError> {
        let Some(member) = self.load(place)? else { return self.exchange().await };
        if let Some(asked) = self.name.clone().filter(|asked| *asked != member.name) {
            let folder = self.data_dir.to_owned();
            return Err(JoinError::OtherName { folder, known: member.name, asked });
        }
        match Bus::connect(BusOptions { patient: false, ..member.bus() }).await {
            Ok(_) => {
                if self.token.is_some() {
                    tracing::info!("this machine has joined already; the bootstrap token is not used");
                }
                Ok(member)
            }
            Err(error) if error.code == ErrorCode::Unauthenticated => match self.token {
                Some(_) => self.exchange().await,
                None => Err(JoinError::Revoked { name: member.name, url: member.url }),
            },
            Err(error) => match self.token.clone() {
                Some(token) if (&token.url, token.fingerprint) != (&member.url, member.fingerprint) => {
                    tracing::info!("{error}; going where the bootstrap token says");
                    self.follow(member, token).await
                }
                _ => {
                    tracing::warn!("{error}; trying again until it can be reached");
                    Ok(member)
                }
            },
        }
    }

    /// The controller is not where `member` joined it. At the token's place is either the same, which knows its key, or one
    /// that was set up anew, which does not.
    async fn follow(self, member: Member, token: BootstrapToken) -> Result<Member, JoinError> {
        let moved = Member { url: token.url, fingerprint: token.fingerprint, ..member };
        match Bus::connect(BusOptions { patient: false, ..moved.bus() }).await {
            Ok(_) => {
                self.save(&moved)?;
                Ok(moved)
            }
            Err(error) if error.code == ErrorCode::Unauthenticated => self.exchange().await,
            Err(error) => Err(JoinError::Bus(error)),
        }
    }

    /// Writes down where it joined.
    fn save(&self, member: &Member) -> Result<(), JoinError> {
        let record = Record { worker: member.name.clone(), url: member.url.clone(), fingerprint: member.fingerprint };
        let path = self.data_dir.join(JOIN_FILE);
        let text = serde_json::to_string_pretty(&record).map_err(io::Error::other);
        text.and_then(|text| identity::write_private(&path, text.as_bytes())).map_err(io_error("write", &path))
    }

    /// What an earlier exchange has left; none if there was none.
    fn load(&self, place: Option<Place>) -> Result<Option<Member>, JoinError> {
        let Some(seed) = read_seed(&self.data_dir.join(KEY_FILE))? else { return Ok(None) };
        let path = self.data_dir.join(JOIN_FILE);
        let Some(text) = read(&path)? else { return Ok(None) };
        let damaged = |why| JoinError::Damaged { path: path.clone(), why };
        let record: Record = serde_json::from_str(&text).map_err(|_| damaged("it cannot be read"))?;
        let (url, fingerprint) = place.unwrap_or((record.url, record.fingerprint));
        let url = address::normalise_bus_url(&url).map_err(|_| damaged("the address in it is none"))?;
        Ok(Some(Member { name: record.worker, url, fingerprint, seed }))
    }

    /// Exchanges the token for the right to log in with a new key.
    async fn exchange(self) -> Result<Member, JoinError> {
        let token = self.token.clone().ok_or_else(|| JoinError::NoToken(self.data_dir.to_owned()))?;
        let next = self.data_dir.join(NEXT_KEY_FILE);
        let known = match read(&self.data_dir.join(JOIN_FILE))? {
            Some(text) => serde_json::from_str::<Record>(&text).ok().map(|record| record.worker),
            None => None,
        };
        let name = self.name.clone().or(known).or(self.default_name.clone()).ok_or(JoinError::NoName)?;
        let seed = match read_seed(&next)? {
            Some(seed) => seed,
            None => new_seed(&next)?,
        };
        let request = Join {
            worker: name.clone(),
            public_key: public_key(&seed, &next)?,
            machine_id: self.machine_id.to_owned(),
        };
        ask(&token, &request).await?;
        let member = Member { name, url: token.url, fingerprint: token.fingerprint, seed };
        self.save(&member)?;
        let path = self.data_dir.join(KEY_FILE);
        // Written and not renamed: it is on the disk for certain before the worker goes on.
        identity::write_private(&path, member.seed.expose().as_bytes()).map_err(io_error("write", &path))?;
        fs::remove_file(&next).map_err(io_error("remove", &next))?;
        tracing::info!(worker = %member.name, "joined the cluster at {}", member.url);
        Ok(member)
    }
}

/// Logs in with the token's secret and asks to join.
async fn ask(token: &BootstrapToken, request: &Join) -> Result<(), JoinError> {
    let deadline = Instant::now() + JOIN_PATIENCE;
    let mut told = false;
    loop {
        let asked = async {
            let bus = Bus::connect(BusOptions {
                url: token.url.clone(),
                trust: Trust::of(&token.url, token.fingerprint),
                user: subject::join_user(&token.id),
                login: Login::Password(token.secret.clone()),
                client_name: format!("orchard worker {} (joining)", request.worker),
                patient: false,
            })
            .await?;
            bus.request::<_, Joined>(subject::join(&token.id), request, REQUEST_TIMEOUT).await
        };
        match asked.await {
            Ok(Joined {}) => return Ok(()),
            Err(error) if error.code == ErrorCode::Unauthenticated => {
                return Err(JoinError::TokenRefused { url: token.url.clone() });
            }
            Err(error)
                if matches!(error.code, ErrorCode::Unavailable | ErrorCode::Timeout)
                    && Instant::now() + JOIN_PAUSE < deadline =>
            {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!("{error}; trying again for {JOIN_PATIENCE:?}");
                }
                tokio::time::sleep(JOIN_PAUSE).await;
            }
            Err(error) => return Err(JoinError::Bus(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use nkeys::KeyPair;

    use super::*;

    fn candidate(dir: &Path) -> Candidate<'_> {
        Candidate { data_dir: dir, name: None, default_name: None, machine_id: "m", token: None }
    }

    /// A folder as a machine that has joined has it.
    fn joined() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        new_seed(&dir.path().join(KEY_FILE)).unwrap();
        let record = r#"{"worker": "w", "url": "tls://ctl:4222", "future": 1}"#;
        identity::write_private(&dir.path().join(JOIN_FILE), record.as_bytes()).unwrap();
        dir
    }

    #[tokio::test]
    async fn a_machine_that_never_joined_says_how_to() {
        let dir = tempfile::tempdir().unwrap();
        let error = candidate(dir.path()).become_member().await.unwrap_err();
        assert!(error.to_string().contains("--bootstrap-token-stdin"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_data_folder_belongs_to_one_name() {
        let dir = joined();
        let asked = Candidate { name: Some("x".parse().unwrap()), ..candidate(dir.path()) };
        assert!(matches!(asked.become_member().await, Err(JoinError::OtherName { .. })));
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_none_is_refused_and_not_shown() {
        let dir = joined();
        let member = candidate(dir.path()).load(None).unwrap().unwrap();
        assert_eq!((member.name.as_str(), member.fingerprint), ("w", None));
        let key = dir.path().join(KEY_FILE);
        let seed = fs::read_to_string(&key).unwrap();
        assert!(seed.starts_with("SU") && !format!("{member:?}").contains(&seed));
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);

        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        let error = candidate(dir.path()).load(None).unwrap_err();
        assert!(matches!(error, JoinError::Exposed { mode: 0o640, .. }), "{error}");
        assert!(error.to_string().contains("chmod 600"), "{error}");
        identity::write_private(&key, KeyPair::new_account().seed().unwrap().as_bytes()).unwrap();
        assert!(matches!(candidate(dir.path()).load(None), Err(JoinError::Damaged { .. })));
        identity::write_private(&key, seed.as_bytes()).unwrap();
        identity::write_private(&dir.path().join(JOIN_FILE), b"{}").unwrap();
        assert!(matches!(candidate(dir.path()).load(None), Err(JoinError::Damaged { .. })));
    }
}
