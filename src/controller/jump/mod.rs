//! The SSH jump host: `ssh -J ACCOUNT@CONTROLLER USER@VM` with any stock client, for machines without this program. An account
//! logs in with its token as the password, or with a key that was attached to it; then it can open ports of VMs and nothing
//! else: no shell, no other host. Who asks for one is told how to get further.
//!
//! A session takes the same way as one over QUIC, from the relay on: the same rights, limits, cuts and records. Only the
//! way from client to controller is SSH's.

mod key;
mod login;
mod visitor;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use russh::keys::HashAlg;
use russh::{MethodKind, MethodSet, server};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info, info_span};

pub use self::key::HostKeyError;
use self::login::Logins;
use self::visitor::Visitor;
use super::service::Context;
use crate::model::network::{PerNetwork, Place, share_of_strangers};
use crate::ssh::cut::Cut;
use crate::task::{self, Task};

/// Connections at once; more are closed.
const CONNECTIONS: usize = 1_024;
/// Of those, connections of one network that have not logged in.
const STRANGERS: usize = 32;
/// How long a client may take to log in; people type passwords.
const LOGIN: Duration = Duration::from_secs(60);
/// Failed logins on one connection.
const ATTEMPTS: usize = 6;
/// The answer to a wrong password takes at least so long.
const REJECTION: Duration = Duration::from_millis(500);
/// A client is asked whether it is there so often, and gone when it has not answered three times.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// A connection over which nothing comes and goes, not even an answer to that, ends.
const IDLE: Duration = Duration::from_secs(600);
/// Pause after a failed accept: gives others time to free what is missing.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked whether what a client has logged in by still holds.
const LOOK: Duration = Duration::from_secs(1);

/// Where the jump host listens, and as whom.
#[derive(Clone, Debug)]
pub struct JumpOptions {
    /// Address and TCP port; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Its private key; none = one in the data folder, made at the first start.
    pub host_key: Option<PathBuf>,
}

/// Why the jump host does not start.
#[derive(Debug, thiserror::Error)]
pub enum JumpError {
    /// The address cannot be had.
    #[error("cannot listen for SSH on {address} (another address is given with --listen-ssh)")]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// There is no host key.
    #[error(transparent)]
    Key(#[from] HostKeyError),
}

/// The running jump host. Dropping it ends every connection.
pub(super) struct JumpHost {
    _accepting: Task,
    sessions: Arc<Mutex<JoinSet<()>>>,
    local: SocketAddr,
    fingerprint: String,
}

impl fmt::Debug for JumpHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JumpHost").field("local", &self.local).finish_non_exhaustive()
    }
}

/// What each connection needs.
struct Shared {
    config: Arc<server::Config>,
    logins: Logins,
    strangers: PerNetwork,
    context: Arc<Context>,
    /// Open ports, which outlive their connection for a moment. Bounded by the accounts' limits.
    sessions: Arc<Mutex<JoinSet<()>>>,
}

impl Drop for JumpHost {
    fn drop(&mut self) {
        // Each of them holds what holds them.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

impl JumpHost {
    /// Listens. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`JumpError`].
    pub(super) async fn start(
        options: &JumpOptions,
        data_dir: &Path,
        context: Arc<Context>,
    ) -> Result<Self, JumpError> {
        let key = key::load_or_make(data_dir, options.host_key.as_deref())?;
        let fingerprint = key.public_key().fingerprint(HashAlg::Sha256).to_string();
        let failed = |source| JumpError::Bind { address: options.listen, source };
        let listener = TcpListener::bind(options.listen).await.map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        let config = server::Config {
            methods: MethodSet::from([MethodKind::PublicKey, MethodKind::Password].as_slice()),
            auth_rejection_time: REJECTION,
            auth_rejection_time_initial: Some(Duration::ZERO),
            keys: vec![key],
            max_auth_attempts: ATTEMPTS,
            keepalive_interval: Some(KEEP_ALIVE),
            inactivity_timeout: Some(IDLE),
            nodelay: true,
            ..server::Config::default()
        };
        let sessions = Arc::<Mutex<JoinSet<()>>>::default();
        let shared = Arc::new(Shared {
            config: Arc::new(config),
            logins: Logins::new(context.access.clone(), context.clock, context.auditor.clone()),
            strangers: PerNetwork::new(STRANGERS, share_of_strangers(CONNECTIONS)),
            context,
            sessions: sessions.clone(),
        });
        info!(address = %local, host_key = fingerprint, "the SSH jump host is listening");
        Ok(Self { _accepting: task::spawn(accept(listener, shared)), sessions, local, fingerprint })
    }

    /// The address it listens on.
    pub(super) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// What clients know its key by, as `ssh-keygen -l` shows it.
    pub(super) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// Takes connections in; never waits for one of them.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "cannot accept an SSH connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if connections.len() >= CONNECTIONS {
            debug!(%peer, "refused an SSH connection: too many are open");
            continue;
        }
        let Some(place) = shared.strangers.enter(peer.ip()) else {
            debug!(%peer, "refused an SSH connection: too many, of its network or in all, have not logged in");
            continue;
        };
        let serving = serve(stream, peer, place, shared.clone());
        connections.spawn(serving.instrument(info_span!("ssh", %peer)));
    }
}

/// Serves one connection until it ends, or its client takes too long to log in.
async fn serve(stream: TcpStream, peer: SocketAddr, place: Place, shared: Arc<Shared>) {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "small packets of an SSH connection may be held back");
    }
    let Ok(here) = stream.local_addr() else { return };
    // The library's task owns the stream; this ends it, and with that the task.
    let token = CancellationToken::new();
    let _cut = token.clone().drop_guard();
    let (logged_in, told) = (Arc::new(OnceLock::new()), CancellationToken::new());
    let visitor = Visitor::new((peer, here), place, shared.clone(), logged_in.clone(), told.clone());
    let stream = Cut::new(stream, &token);
    let session = async {
        let running = server::run_stream(shared.config.clone(), stream, visitor).await?;
        running.await
    };
    let mut session = std::pin::pin!(session);
    let over = async {
        if timeout(LOGIN, told.cancelled()).await.is_err() {
            return "it took too long to log in";
        }
        while logged_in.get().is_none_or(|login| shared.logins.holds(login)) {
            tokio::time::sleep(LOOK).await;
        }
        "what it logged in by was taken away"
    };
    tokio::select! {
        ended = &mut session => match ended {
            Ok(()) => debug!("an SSH connection has ended"),
            Err(error) => debug!(%error, "an SSH connection broke off"),
        },
        why = over => debug!(why, "an SSH connection is ended"),
    }
}
