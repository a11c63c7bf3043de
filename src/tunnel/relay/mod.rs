//! The relay in the controller: takes connections from workers and clients and joins their streams. The controller
//! binds one, gives it a [`Gatekeeper`], and asks it which workers are connected.
//!
//! `connection` takes one connection from its handshake to its first header and serves workers, `client` serves clients,
//! `session` opens one client stream, `links` knows the workers' connections and `reach` whether they answer (`prober`
//! asks), `accounts` whose streams are open, `holders` sees to what runs on without a stream.

mod accounts;
mod client;
mod connection;
mod holders;
mod links;
mod prober;
mod reach;
mod session;
mod socket;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quinn::{Endpoint, Incoming};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::{Instrument, debug, info, info_span};

use self::accounts::{Accounts, Entry, Most};
pub use self::links::LinkInfo;
use self::links::Links;
pub use self::socket::Socket;
use super::MAX_SESSIONS;
use super::endpoint::{ServerConfigs, Transport};
use super::header::WorkerHello;
use super::proof::Exported;
use super::reason::Reason;
use super::ticket::{Grant, TargetKind};
use crate::identity::ca::{Fingerprint, Identity};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::network::{PerNetwork, share_of_strangers};
use crate::model::{AccountName, CopyId, Timestamp, WorkerName};
use crate::task::{self, Task};

/// Decides who may come in. Called from the tasks of connections: the answers must come at once, from memory.
pub trait Gatekeeper: Send + Sync + 'static {
    /// Whether the secret in `hello` is the one that the worker got for its session, the session is the worker's
    /// present one, and the hello is signed with the worker's key for the connection that `exported` comes from (see
    /// [`proof`](super::proof)), if the worker has a key. Asked once more when [`Control::disconnect`] would already find the
    /// connection, and before the worker is told: so whoever takes its rights away in between is seen there, or finds it.
    ///
    /// # Errors
    /// The refusal that the worker is told.
    fn admit(&self, hello: &WorkerHello, exported: Exported) -> Result<(), ApiError>;

    /// Takes a ticket; each is good once.
    ///
    /// # Errors
    /// The refusal that the client is told.
    fn redeem(&self, ticket: &str) -> Result<Grant, ApiError>;

    /// Whether the account that got a ticket may open streams to targets of this kind at this moment. Asked when
    /// [`Control::cut_account`] would already find the stream, so that none slips through between.
    ///
    /// # Errors
    /// The refusal that the client is told.
    fn permits(&self, account: &AccountName, to: TargetKind) -> Result<(), ApiError>;

    /// Since when `account` has had its present token, as far as that is known: what was begun with another one is not its any
    /// more. Changes before [`Control::cut_account`] is called for it.
    fn token_since(&self, account: &AccountName) -> Option<Timestamp> {
        let _ = account;
        None
    }

    /// What happened to a stream, for the record. Must not wait.
    fn note(&self, note: Note<'_>);
}

/// What happened to a client's stream.
#[derive(Clone, Copy, Debug)]
pub struct Note<'a> {
    /// Where the client is.
    pub peer: SocketAddr,
    /// What it was granted; none when its ticket was refused.
    pub grant: Option<&'a Grant>,
    /// What came of it.
    pub event: NoteEvent<'a>,
}

/// What came of a stream, or of a worker's data path.
#[derive(Clone, Copy, Debug)]
pub enum NoteEvent<'a> {
    /// Ticket or account were refused.
    Refused(&'a ApiError),
    /// A worker's data path was refused; nothing proves that it is that worker.
    WorkerRefused(&'a WorkerName, &'a ApiError),
    /// The worker or the guest could not be reached.
    Failed(&'a ApiError),
    /// It is connected to the guest.
    Opened,
    /// It has ended.
    Closed {
        /// Bytes to the guest or host.
        to_vm: u64,
        /// Bytes from it.
        from_vm: u64,
        /// How long it was open.
        lasted: Duration,
        /// Why it ended before both ways had; none = properly.
        broken: Option<Reason>,
    },
}

/// Bounds on what peers can cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once, of workers and clients together; more are refused.
    pub connections: usize,
    /// Of those, connections of one network (an IPv4 address, a /64 of IPv6) that have not proven who they are; more are
    /// refused, so that a stranger cannot take the room of all. A /48 has four times as many, and all networks together a
    /// quarter of `connections`, or 64.
    pub unproven_per_network: usize,
    /// Streams a client may have open at once on one connection, once a ticket was accepted.
    pub sessions_per_client: u32,
    /// Streams an account may have open at once, over all its connections. It bounds what the account can have the relay
    /// hold, too: 2 MiB of each stream and way, where nobody reads, and 2 MiB more for each that is yet to show its ticket
    /// (`allowance::Room`).
    pub sessions_per_account: usize,
    /// Streams that may be open at once into one VM, or to one worker's host, of all accounts together.
    pub sessions_per_target: usize,
    /// Connections an account may have, whether or not streams are open on them: one account cannot take the room of all.
    pub connections_per_account: usize,
    /// How long a connection may last before it has proven who it is, from the first packet on.
    pub unproven: Duration,
    /// How long a client's connection may last without a session.
    pub idle_client: Duration,
    /// With more handshakes than this under way, addresses must be validated first (QUIC retry), so that forged
    /// senders cost neither memory nor a signature.
    pub handshakes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // Some 2,000 workers and as many people; each idle connection costs about 20 KiB.
            connections: 4_096,
            // A fleet behind one address that comes back at once is in after a few attempts.
            unproven_per_network: 256,
            sessions_per_client: MAX_SESSIONS,
            // Far more than people or a build farm have; one account cannot take the memory of all.
            sessions_per_account: 1_000,
            sessions_per_target: SESSIONS_PER_TARGET,
            connections_per_account: 1_000,
            unproven: Duration::from_secs(10),
            idle_client: Duration::from_secs(120),
            // A signature takes about 0.1 ms: this many are worked off in a few milliseconds.
            handshakes: 64,
        }
    }
}

/// Streams into one VM, of all accounts together, unless other limits are given: what one `port-forward` carries at most, and what
/// its worker's session keeper holds of one VM. Each costs the worker a connection into the guest, through QEMU's
/// network a descriptor of the hypervisor, too, and one VM must not take what its neighbours need.
pub const SESSIONS_PER_TARGET: usize = 256;

/// A running relay. Dropping it ends it at once; [`Relay::shutdown`] tells the peers why.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    accepting: Task,
    _probing: Task,
    local: SocketAddr,
    fingerprint: Fingerprint,
}

/// Why the relay does not start.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The address cannot be had.
    #[error("cannot listen for tunnels on UDP {address} (another address is given with --listen)")]
    Bind {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The identity cannot be used.
    #[error("cannot set up the tunnel endpoint")]
    Setup(#[source] rustls::Error),
}

/// What every connection's task needs.
pub(super) struct Shared {
    gate: Arc<dyn Gatekeeper>,
    limits: Limits,
    links: Links,
    accounts: Arc<Accounts>,
    configs: ServerConfigs,
    handshakes: AtomicUsize,
    unproven: PerNetwork,
    /// An account has lost rights.
    rights_changed: Notify,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Shared {
    /// A place for a stream that was granted: first among the account's streams, then asked whether it may be there, so that what
    /// is taken away between is noticed. What was granted to somebody with another token is not granted any more.
    fn enter(&self, grant: &Grant) -> Result<Entry<'_>, ApiError> {
        let entry = self.accounts.enter(grant)?;
        self.gate.permits(&grant.account, grant.target.kind())?;
        match self.gate.token_since(&grant.account) == grant.since {
            true => Ok(entry),
            false => Err(ApiError::new(ErrorCode::Unauthenticated, Reason::Rotated.to_string())),
        }
    }
}

/// Connections of one network that have not proven who they are from which on its addresses must be validated first.
const UNVALIDATED_PER_NETWORK: usize = 16;

/// How long the farewell to the peers may take.
const FAREWELL: Duration = Duration::from_secs(2);

impl Relay {
    /// Listens on `address` (UDP; port 0 takes a free one) and presents `identity`. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the address is taken, or rustls cannot use the identity.
    pub fn bind(
        address: SocketAddr,
        identity: &Identity,
        gate: Arc<dyn Gatekeeper>,
        limits: Limits,
        transport: Transport,
    ) -> Result<Self, RelayError> {
        Ok(Self::start(Socket::bind(address, identity, transport)?, gate, limits))
    }

    /// Listens on a socket that is bound already. Needs a tokio runtime.
    pub fn start(socket: Socket, gate: Arc<dyn Gatekeeper>, limits: Limits) -> Self {
        let Socket { endpoint, configs, local, fingerprint } = socket;
        let links = Links::default();
        let Limits { connections, .. } = limits;
        // What is left is for workers.
        let of_all = connections.div_ceil(4) * 3;
        let accounts = Arc::new(Accounts::new(Most {
            streams: limits.sessions_per_account,
            into_target: limits.sessions_per_target,
            connections: limits.connections_per_account,
            connections_of_all: of_all,
        }));
        let unproven = PerNetwork::new(limits.unproven_per_network, share_of_strangers(limits.connections));
        let handshakes = AtomicUsize::new(0);
        let rights_changed = Notify::new();
        let shared = Arc::new(Shared { gate, limits, links, accounts, configs, handshakes, unproven, rights_changed });
        let accepting = task::spawn(accept(endpoint.clone(), shared.clone()));
        let probing = shared.clone();
        let _probing = task::spawn(async move { match prober::run(probing).await {} });
        info!(address = %local, "tunnel endpoint is listening");
        Self { shared, endpoint, accepting, _probing, local, fingerprint }
    }

    /// The address it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// What peers know its certificate by.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Whether the worker has a living connection now.
    pub fn connected(&self, worker: &WorkerName) -> bool {
        self.shared.links.get(worker).is_ok()
    }

    /// What is known of the worker's connection; none without one.
    pub fn link(&self, worker: &WorkerName) -> Option<LinkInfo> {
        self.shared.links.info(worker)
    }

    /// Asks the worker to answer over its data path, and yields how long that took. The only proof that a stream to it
    /// would be served.
    ///
    /// # Errors
    /// [`Unavailable`](crate::model::error::ErrorCode::Unavailable) or
    /// [`Timeout`](crate::model::error::ErrorCode::Timeout) with the reason.
    pub async fn probe(&self, worker: &WorkerName, deadline: Duration) -> Result<Duration, ApiError> {
        session::probe(&self.shared, worker, deadline).await
    }

    /// A handle for those who take rights away.
    pub fn control(&self) -> Control {
        Control(self.shared.clone())
    }

    /// Ends every session, tells the peers, and returns once the port is free or the farewell took too long.
    pub async fn shutdown(self) {
        self.endpoint.close(Reason::ShuttingDown.code(), b"");
        self.accepting.stop_within(FAREWELL).await;
        if tokio::time::timeout(FAREWELL, self.endpoint.wait_idle()).await.is_err() {
            debug!("some tunnel connections did not take leave in time");
        }
    }
}

/// Cuts what is open, tells what is, and asks workers over their data path. Of no use once the relay has ended.
#[derive(Clone, Debug)]
pub struct Control(Arc<Shared>);

impl Control {
    /// Ends the worker's connection and all sessions over it, and tells it why. Whoever calls this has the
    /// [`Gatekeeper`] refuse it first, or it comes straight back.
    pub fn disconnect(&self, worker: &WorkerName, reason: Reason) {
        self.0.links.disconnect(worker, reason);
    }

    /// Whether a stream to the worker would be served, as far as is known: it is connected, and answers when it is asked now and
    /// then.
    ///
    /// # Errors
    /// [`Unavailable`](crate::model::error::ErrorCode::Unavailable) with the reason.
    pub fn reaches(&self, worker: &WorkerName) -> Result<(), ApiError> {
        self.0.links.answering(worker).map(drop)
    }

    /// What is known of the worker's connection; none without one.
    pub fn link(&self, worker: &WorkerName) -> Option<LinkInfo> {
        self.0.links.info(worker)
    }

    /// Joins a stream of this process, of a client at `peer`, to the port that `grant` names, as if it had come with a ticket:
    /// within the account's limits, cut with its rights, and recorded. `answer` is told whether the port is open, and yields
    /// the stream to join, if its client is still there. Returns when the session has ended; dropping the future ends it.
    pub async fn join<S, F>(&self, grant: &Grant, peer: SocketAddr, answer: impl FnOnce(Result<(), ApiError>) -> F)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin,
        F: Future<Output = Option<S>>,
    {
        match self.0.enter(grant) {
            Ok(entry) => session::join(&self.0, grant, entry, peer, answer).await,
            Err(refusal) => {
                self.0.gate.note(Note { peer, grant: Some(grant), event: NoteEvent::Refused(&refusal) });
                answer(Err(refusal)).await;
            }
        }
    }

    /// Breaks off every stream of `account`, and tells both ends why; says how many there were. Its exec sessions end soon
    /// after. Whoever calls this has the [`Gatekeeper`] refuse it first.
    pub fn cut_account(&self, account: &AccountName, reason: Reason) -> usize {
        self.0.rights_changed.notify_one();
        self.0.accounts.cut(account, None, reason)
    }

    /// The same for the streams to targets of one kind only.
    pub fn cut_streams(&self, account: &AccountName, to: TargetKind, reason: Reason) -> usize {
        self.0.rights_changed.notify_one();
        self.0.accounts.cut(account, Some(to), reason)
    }

    /// Asks the worker, over its data path, which address the guest of a copy has.
    ///
    /// # Errors
    /// The worker's refusal; [`Unavailable`](crate::model::error::ErrorCode::Unavailable) or
    /// [`Timeout`](crate::model::error::ErrorCode::Timeout) when it does not answer.
    pub async fn locate(&self, worker: &WorkerName, copy: CopyId) -> Result<IpAddr, ApiError> {
        session::locate(&self.0, worker, copy).await
    }

    /// How many streams `account` has open, or is opening.
    pub fn sessions_of(&self, account: &AccountName) -> usize {
        self.0.accounts.count(account)
    }

    /// The accounts that have streams open, or are opening some, each with the kinds of targets that these lead to.
    pub fn accounts(&self) -> Vec<(AccountName, TargetKind)> {
        self.0.accounts.held()
    }
}

/// Takes connections in; never waits for one of them.
async fn accept(endpoint: Endpoint, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        // Both arms are cancel safe and nothing is awaited in their bodies.
        tokio::select! {
            incoming = endpoint.accept() => match incoming {
                Some(incoming) => admit(incoming, &shared, &mut connections),
                None => break,
            },
            Some(_) = connections.join_next() => {}
        }
    }
    while connections.join_next().await.is_some() {}
}

fn admit(incoming: Incoming, shared: &Arc<Shared>, connections: &mut JoinSet<()>) {
    let peer = incoming.remote_address();
    if connections.len() >= shared.limits.connections {
        debug!(%peer, "refused a tunnel connection: too many are open");
        return incoming.refuse();
    }
    let busy = shared.handshakes.load(Ordering::Relaxed) >= shared.limits.handshakes;
    // Forged senders must not use up the places of somebody else's network.
    let most_unvalidated = shared.limits.unproven_per_network.min(UNVALIDATED_PER_NETWORK);
    let crowded = shared.unproven.is_crowded(peer.ip()) || shared.unproven.count(peer.ip()) >= most_unvalidated;
    if (busy || crowded) && !incoming.remote_address_validated() && incoming.may_retry() {
        let _ = incoming.retry();
        return;
    }
    let Some(place) = shared.unproven.enter(peer.ip()) else {
        debug!(%peer, "refused a tunnel connection: too many, of its network or in all, have not proven who they are");
        return incoming.refuse();
    };
    let shared = shared.clone();
    connections.spawn(connection::serve(incoming, place, shared).instrument(info_span!("tunnel", %peer)));
}
