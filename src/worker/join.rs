//! Joining: how a machine becomes a worker of a cluster, once, and who it is there ever after. Called by the command line
//! before the worker starts.
//!
//! The machine makes a key pair and exchanges a bootstrap token for the right to log in with it. The seed never leaves
//! the data folder; the controller learns the public half only. What is kept: `worker.nk`, the seed; `worker.join`, where
//! it joined and how to know the controller there; `worker.nk.next`, the key of an exchange that is under way, so that
//! one that was cut short is taken up again with the same key, which costs no further use of the token.
//!
//! The order of the exchange: the next key is written, the controller asked, `worker.join` written, and last the next key
//! renamed to `worker.nk`. A process may be killed between any two of these: once the controller has agreed, the next key
//! is good, and the next start finds that out even without the token as soon as `worker.join` is there.

mod controller;
mod files;

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use self::controller::{Controller, OnBus};
use self::files::{io_error, new_seed, public_key, read, read_seed, remove, rename};
use crate::bus::access::Join;
use crate::bus::client::{BusOptions, Login, Trust};
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
        self.admit(None, &OnBus).await
    }

    /// As [`Candidate::become_member`], for a caller who knows better than what was saved where the controller is now that
    /// this machine joined.
    ///
    /// # Errors
    /// As for [`Candidate::become_member`].
    pub async fn become_member_at(self, url: String, fingerprint: Option<Fingerprint>) -> Result<Member, JoinError> {
        self.admit(Some((url, fingerprint)), &OnBus).await
    }

    async fn admit(self, place: Option<Place>, controller: &impl Controller) -> Result<Member, JoinError> {
        identity::refuse_foreign(self.data_dir).map_err(io_error("trust", self.data_dir))?;
        identity::remove_leftovers(self.data_dir).map_err(io_error("clean", self.data_dir))?;
        let Some(member) = self.load(place)? else { return self.exchange(controller).await };
        if let Some(asked) = self.name.clone().filter(|asked| *asked != member.name) {
            let folder = self.data_dir.to_owned();
            return Err(JoinError::OtherName { folder, known: member.name, asked });
        }
        match controller.knows(&member).await {
            Ok(()) => {
                if self.token.is_some() {
                    tracing::info!("this machine has joined already; the bootstrap token is not used");
                }
                // A worker has one key: the other one is not good, and must not be taken for a later exchange.
                remove(&self.data_dir.join(NEXT_KEY_FILE))?;
                Ok(member)
            }
            Err(error) if error.code == ErrorCode::Unauthenticated => {
                if let Some(next) = read_seed(&self.data_dir.join(NEXT_KEY_FILE))? {
                    let member = Member { seed: next, ..member.clone() };
                    if controller.knows(&member).await.is_ok() {
                        self.promote()?;
                        return Ok(member);
                    }
                }
                match self.token {
                    Some(_) => self.exchange(controller).await,
                    None => Err(JoinError::Revoked { name: member.name, url: member.url }),
                }
            }
            Err(error) => match self.token.clone() {
                Some(token) if (&token.url, token.fingerprint) != (&member.url, member.fingerprint) => {
                    tracing::info!("{error}; going where the bootstrap token says");
                    self.follow(member, token, controller).await
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
    async fn follow(
        self,
        member: Member,
        token: BootstrapToken,
        controller: &impl Controller,
    ) -> Result<Member, JoinError> {
        let moved = Member { url: token.url, fingerprint: token.fingerprint, ..member };
        match controller.knows(&moved).await {
            Ok(()) => {
                self.save(&moved)?;
                Ok(moved)
            }
            Err(error) if error.code == ErrorCode::Unauthenticated => self.exchange(controller).await,
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

    /// What an earlier exchange has left; none if there was none, or it was cut short before the controller had agreed for
    /// certain.
    fn load(&self, place: Option<Place>) -> Result<Option<Member>, JoinError> {
        let path = self.data_dir.join(JOIN_FILE);
        let Some(text) = read(&path)? else { return Ok(None) };
        let seed = match read_seed(&self.data_dir.join(KEY_FILE))? {
            Some(seed) => seed,
            None => match read_seed(&self.data_dir.join(NEXT_KEY_FILE))? {
                Some(seed) => {
                    self.promote()?;
                    seed
                }
                None => return Ok(None),
            },
        };
        let damaged = |why| JoinError::Damaged { path: path.clone(), why };
        let record: Record = serde_json::from_str(&text).map_err(|_| damaged("it cannot be read"))?;
        let (url, fingerprint) = place.unwrap_or((record.url, record.fingerprint));
        let url = address::normalise_bus_url(&url).map_err(|_| damaged("the address in it is none"))?;
        Ok(Some(Member { name: record.worker, url, fingerprint, seed }))
    }

    /// Exchanges the token for the right to log in with a new key.
    async fn exchange(self, controller: &impl Controller) -> Result<Member, JoinError> {
        let token = self.token.clone().ok_or_else(|| JoinError::NoToken(self.data_dir.to_owned()))?;
        let next = self.data_dir.join(NEXT_KEY_FILE);
        let known = match read(&self.data_dir.join(JOIN_FILE))? {
            Some(text) => serde_json::from_str::<Record>(&text).ok().map(|record| record.worker),
            None => None,
        };
        let name = self.name.clone().or(known).or(self.default_name.clone()).ok_or(JoinError::NoName)?;
        let seed = match read_seed(&next)? {
            // Never the one that was taken away.
            Some(seed) if read_seed(&self.data_dir.join(KEY_FILE))?.as_ref() != Some(&seed) => seed,
            _ => new_seed(&next)?,
        };
        let request = Join {
            worker: name.clone(),
            public_key: public_key(&seed, &next)?,
            machine_id: self.machine_id.to_owned(),
        };
        controller.join(&token, &request).await?;
        let member = Member { name, url: token.url, fingerprint: token.fingerprint, seed };
        self.save(&member)?;
        self.promote()?;
        tracing::info!(worker = %member.name, "joined the cluster at {}", member.url);
        Ok(member)
    }

    /// Makes the next key the worker's; it is on the disk already.
    fn promote(&self) -> Result<(), JoinError> {
        rename(&self.data_dir.join(NEXT_KEY_FILE), &self.data_dir.join(KEY_FILE))
    }
}

#[cfg(test)]
mod tests;
