//! An embeddable NATS server: the client protocol over TCP, core NATS only, for stock clients.
//!
//! Knows nothing of virtual machines and could be lifted out of this crate. Several brokers in one process do not know of
//! each other: there is no global state and no signal handler.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use orchard::broker::{Broker, Limits, auth::StaticUsers};
//!
//! let broker = Broker::builder()
//!     .server_name("example")
//!     .limits(Limits { max_payload: 64 * 1024, ..Limits::default() })
//!     .authenticator(Arc::new(StaticUsers::default().with("ann", "s3cret", Default::default())))
//!     .bind("127.0.0.1:0".parse()?)
//!     .await?;
//! println!("listening on {}", broker.local_addr());
//! assert_eq!(broker.stats().connections, 0);
//! broker.shutdown().await;
//! # Ok(())
//! # }
//! ```
//!
//! # From socket to socket
//!
//! `connection` reads and owns everything of one client → `protocol::parse` finds operations in the bytes → `session` says
//! what they mean (`permission`, `subject`) → `delivery` writes frames for everyone who listens (`router`, `trie`) →
//! `outbound` of each receiver → `transport`, plain or through `tls`.
//!
//! # Why it is fast
//!
//! * A publisher fills one batch per receiver for each read of its socket and hands it over under one lock: no lock,
//!   allocation or task wake-up per message. Smaller batches show what that is worth: handing over every 2.5 KiB for each
//!   of 100 receivers took four times the CPU of 64 KiB (1.31 to 0.33 s per million messages).
//! * Whoever publishes to many reads 256 KiB at a time in place of 64, which makes longer writes: 2.6 to 4.8 million
//!   messages/s for 256 B to 100 receivers. With few receivers it only costs cache, so there it stays at 64.
//! * Whoever hands over also tries to write; the receiver's own task is woken only when the socket is full.
//! * Who listens to a subject is remembered per connection and checked against a generation counter; the shared tree is
//!   locked on a miss only. What is remembered has a budget in bytes (`route`), not in subjects: going through 10,000
//!   subjects with room for 2,048 missed every time, and the budget made that row nearly four times as fast (0.48 to
//!   1.79 million messages/s) at a quarter of the CPU.
//! * Sizes are passed on as text, and small bodies are copied once per receiver straight into its batch. Sharing bodies of
//!   4 KiB instead halved the rate of that row: counting references and writing in pieces costs more than the copy.
//! * After a read that left room nothing is read again until there is news: one system call of four less for each hop of
//!   a lone request.
//!
//! `cargo bench --bench broker` against nats-server 2.15.1 (in brackets 2.9.10), two cores, everything at the highest
//! priority, medians of three runs, ours/theirs. Single runs differ by a third in both directions; CPU is for a message in
//! or out, p99 that of the round trip.
//!
//! | row | messages/s | CPU | RSS | p99 |
//! |---|---|---|---|---|
//! | 1→1 16 B | 4.2x (3.2x) | 0.20x | 0.22x | |
//! | 4→4 16 B | 5.5x (4.1x) | 0.22x | 0.17x | |
//! | 1→1 256 B | 2.7x (2.1x) | 0.31x | 0.42x | |
//! | 4→4 256 B | 3.7x (4.0x) | 0.26x | 0.07x | |
//! | 1→1 4 KiB | 1.8x (2.8x) | 0.44x | 0.14x | |
//! | 4→4 4 KiB | 1.7x (1.7x) | 0.63x | 0.05x | |
//! | 1→10 16 B | 5.3x (2.8x) | 0.14x | 0.35x | |
//! | 1→100 16 B | 5.2x (3.2x) | 0.15x | 1.29x | |
//! | 1→100 256 B | 2.9x (2.2x) | 0.27x | 0.85x | |
//! | request/reply x1 | 1.6x (1.3x) | 0.49x | 0.22x | 0.57x |
//! | request/reply x1, 1 CPU | 1.2x (1.2x) | 0.72x | 0.22x | 0.71x |
//! | request/reply x64 | 1.9x (1.9x) | 0.33x | 0.21x | 0.52x |
//! | request/reply x64, 1 CPU | 1.6x (1.5x) | 0.36x | 0.22x | 0.70x |
//! | 1,000 idle | | | 0.18x | |
//! | 1,000 idle + 10 busy | 3.7x (3.2x) | 0.23x | 0.12x | |
//! | 10,000 wildcards | 9.3x (5.2x) | 0.09x | 0.47x | |
//!
//! Two rows miss 0.6x of nats-server's CPU, because there is nothing but the system left in them. At 4 KiB the bench shows
//! the limit: a relay that copies bytes from socket to socket without looking at them takes 1.0 to 1.4 CPU seconds per
//! million, the broker 1.3 to 1.8 (1.05x of nats-server's messages/s and 0.82x of its CPU in the worst run, 1.3x those of
//! the relay). A lone request pinned to one CPU costs 27 µs of the broker's CPU for its two messages in and two out; with
//! 64 in flight, where they share system calls and wake-ups, one costs 0.6.
//!
//! # What hostile peers cost the others
//!
//! Rows of the bench named "hostile": a request/reply beside a subscriber that never reads, 1,000 connections that send a
//! byte at a time, floods of SUB and UNSUB, oversized lines, 10,000 idle connections. Median round trips stay within a
//! third of those without; p99 within twice. The flood of subscriptions is the worst: four connections take both cores,
//! 1,500 requests/s remain where nats-server leaves 560 (p99 9 ms, theirs 28). `COSTLY_PER_TURN` is what does it: before,
//! 5 remained.
//!
//! Subscriptions cost memory, so they are bounded by what they cost: subjects of many tokens or bytes count as several
//! against [`Limits::max_subscriptions`]. A client at its maximum takes some 2 KiB for each at worst, 200 MB by default,
//! with subjects made for it; some 650 B each with usual ones. Making or ending one costs about the same however many
//! there are, on the same subject or in other queue groups; a client that leaves ends them 256 at a time.
//!
//! # Slow receivers
//!
//! A receiver has a bound on pending bytes; over it, it is cut off. A publisher that is too fast for most of its receivers
//! waits for them a few milliseconds at a time, as long as they keep up a good rate. For the slower ones among them it does
//! not wait: one that reads slowly on purpose costs the others nothing but the copy of its messages.
//!
//! The embedder can give users a [`pace`], over which they are read from more slowly, and name receivers that are vital:
//! for those, publishers with a pace wait however slow they are, so that no flood has them cut off.

mod accept;
pub mod auth;
mod backlog;
mod bind_error;
mod client;
mod connection;
mod delivery;
mod file;
mod limits;
mod outbound;
pub mod pace;
pub mod permission;
mod private;
pub mod protocol;
mod replies;
mod route;
mod router;
mod session;
pub mod stamp;
pub mod subject;
pub mod tls;
mod transport;
pub mod trie;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::task::{self, Task};

pub use bind_error::BindError;
pub use limits::Limits;

use accept::Doors;
use auth::Authenticator;
use protocol::ServerInfo;
use router::Router;
use tls::Tls;

/// The nats-server release whose core features are here; clients choose what they may use by it.
pub const COMPATIBLE_VERSION: &str = "2.10.29";
/// Connections that may wait to be accepted: a reconnect storm of four thousand workers fits, as much as Linux grants. Whoever
/// finds no place is not told so, and asks again after 1, 3 and 7 s.
const BACKLOG: u32 = 4_096;
/// How long a shutdown waits for clients to take their last bytes.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);

/// Addresses told of one user: enough to see where it is, little enough to be written down with each thing it does.
const MAX_ADDRESSES: usize = 4;

/// Says from where users are connected. From [`Broker::addresses`].
#[derive(Clone)]
pub struct Addresses(Weak<Router>);

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Addresses").finish_non_exhaustive()
    }
}

impl Addresses {
    /// As [`Broker::addresses_of`].
    pub fn of(&self, name: &str) -> Vec<IpAddr> {
        self.0.upgrade().map_or_else(Vec::new, |router| router.addresses_of(name, MAX_ADDRESSES))
    }
}

/// Says whether anybody listens to a subject, so that whoever would publish there in vain can leave it. From
/// [`Broker::listeners`].
#[derive(Clone)]
pub struct Listeners(Weak<Router>);

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listeners").finish_non_exhaustive()
    }
}

impl Listeners {
    /// Whether there is a subscription now that a message to the literal `subject` would go to. A subscription that the
    /// broker has confirmed is seen from then on.
    pub fn has(&self, subject: &str) -> bool {
        self.0.upgrade().is_some_and(|router| router.has_listener(subject.as_bytes()))
    }
}

/// What to start. From [`Broker::builder`].
#[must_use]
pub struct Builder {
    server_name: Option<String>,
    limits: Limits,
    authenticator: Option<Arc<dyn Authenticator>>,
    tls: Option<Tls>,
    private_door: bool,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("server_name", &self.server_name)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// The name that clients see; without one, the random server id.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// What clients may use.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Who decides who may connect. Without one, everybody may, and may do everything.
    pub fn authenticator(mut self, authenticator: Arc<dyn Authenticator>) -> Self {
        self.authenticator = Some(authenticator);
        self
    }

    /// Has every connection be TLS, but those through the private door. Without, none is.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Also listens on a free port of the loopback address, see [`Broker::private_addr`]: for the embedder's own
    /// connections, which strangers at the public one then cannot keep out. Who connects there must say who it is as
    /// anywhere else. It is in plain text, also where everything else is TLS.
    pub fn private_door(mut self) -> Self {
        self.private_door = true;
        self
    }

    /// Listens on `address` (port 0 chooses a free one) and serves clients on the current runtime.
    ///
    /// # Errors
    /// [`BindError`] when the address cannot be had, or the limits allow no message at all.
    pub async fn bind(mut self, address: SocketAddr) -> Result<Broker, BindError> {
        let most = self.limits.most_payload();
        if most == 0 {
            let Limits { max_pending, max_control_line, .. } = self.limits;
            return Err(BindError::NoRoom { max_pending, max_control_line });
        }
        if self.limits.max_payload > most {
            tracing::warn!(max_payload = self.limits.max_payload, most, "no larger messages fit into max_pending");
            self.limits.max_payload = most;
        }
        let listen = |address: SocketAddr| -> io::Result<(TcpListener, SocketAddr)> {
            let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            socket.set_reuseaddr(true)?; // come back on the same port at once after a restart
            socket.bind(address)?;
            let listener = socket.listen(BACKLOG)?;
            let local = listener.local_addr()?;
            Ok((listener, local))
        };
        let bound = |address| listen(address).map_err(|source| BindError::Listen { address, source });
        let (public, local) = bound(address)?;
        let (private, private_local) = match self.private_door.then(|| bound(loopback_of(address))).transpose()? {
            Some((private, local)) => (Some(private), Some(local)),
            None => (None, None),
        };
        let server_id = uuid::Uuid::new_v4().simple().to_string().to_uppercase();
        let info = ServerInfo {
            server_name: self.server_name.unwrap_or_else(|| server_id.clone()),
            server_id,
            version: COMPATIBLE_VERSION.to_owned(),
            proto: 1,
            go: "rust".to_owned(),
            host: local.ip().to_string(),
            port: local.port(),
            headers: true,
            auth_required: self.authenticator.is_some(),
            tls_required: false,
            tls_verify: false,
            max_payload: self.limits.max_payload,
            client_id: 0,
            client_ip: String::new(),
            nonce: None,
            ldm: false,
        };
        let router = Arc::new(Router::new(info, self.limits, self.authenticator, self.tls));
        let (closed, stop) = (CancellationToken::new(), CancellationToken::new());
        let accepting =
            task::spawn(accept::accept(Doors { public, private }, router.clone(), closed.clone(), stop.clone()));
        Ok(Broker { router, closed, stop, accepting, local, private_local })
    }
}

/// A free port of the loopback address of the same family.
fn loopback_of(address: SocketAddr) -> SocketAddr {
    let loopback = if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    SocketAddr::new(loopback, 0)
}

/// A running broker. Dropping it ends every connection at once; [`Broker::shutdown`] is the polite way.
#[must_use = "dropping a broker stops it"]
pub struct Broker {
    router: Arc<Router>,
    /// No new clients.
    closed: CancellationToken,
    /// No clients at all.
    stop: CancellationToken,
    accepting: Task<JoinSet<()>>,
    local: SocketAddr,
    private_local: Option<SocketAddr>,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("local_addr", &self.local).finish_non_exhaustive()
    }
}

/// How a broker is doing; counters run since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Clients connected now.
    pub connections: usize,
    /// Clients accepted so far.
    pub total_connections: u64,
    /// Subscriptions now.
    pub subscriptions: usize,
    /// Messages published.
    pub messages_in: u64,
    /// Bytes of their bodies.
    pub bytes_in: u64,
    /// Messages delivered.
    pub messages_out: u64,
    /// Bytes of their bodies.
    pub bytes_out: u64,
    /// Clients cut off because they did not read.
    pub slow_consumers: u64,
}

/// Says how a broker is doing. From [`Broker::meter`].
#[derive(Clone)]
pub struct Meter(Weak<Router>);

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").finish_non_exhaustive()
    }
}

impl Meter {
    /// As [`Broker::stats`]; none once the broker has ended.
    pub fn stats(&self) -> Option<Stats> {
        self.0.upgrade().map(|router| router.stats())
    }
}

impl Broker {
    /// Starts to describe a broker.
    pub fn builder() -> Builder {
        Builder { server_name: None, limits: Limits::default(), authenticator: None, tls: None, private_door: false }
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Where it listens for the embedder; none without [`Builder::private_door`].
    pub fn private_addr(&self) -> Option<SocketAddr> {
        self.private_local
    }

    /// How it is doing.
    pub fn stats(&self) -> Stats {
        self.router.stats()
    }

    /// A handle that says how the broker is doing for as long as it runs.
    pub fn meter(&self) -> Meter {
        Meter(Arc::downgrade(&self.router))
    }

    /// Ends every connection of the user `name` now, as when its rights are taken away; says how many there were. The
    /// authenticator should refuse the user first, or its clients come straight back.
    pub fn disconnect_user(&self, name: &str) -> usize {
        self.router.disconnect(name)
    }

    /// Asks the authenticator ([`Authenticator::current`]) what each connection of the user `name` may do now; says how many
    /// there are. Each does so in its own task before it performs anything else: new permissions hold from then on,
    /// subscriptions no longer allowed end with the permissions error, and a user who may not be here at all is sent off
    /// with "Authorization Violation".
    pub fn recheck_user(&self, name: &str) -> usize {
        self.router.recheck(Some(name))
    }

    /// The same for every connection.
    pub fn recheck_all(&self) -> usize {
        self.router.recheck(None)
    }

    /// From where the user `name` is connected now: at most a few addresses, each once.
    pub fn addresses_of(&self, name: &str) -> Vec<IpAddr> {
        self.router.addresses_of(name, MAX_ADDRESSES)
    }

    /// A handle that answers as [`Broker::addresses_of`] for as long as the broker runs, and knows nobody afterwards.
    pub fn addresses(&self) -> Addresses {
        Addresses(Arc::downgrade(&self.router))
    }

    /// A handle that says who is listened to for as long as the broker runs; afterwards nobody is.
    pub fn listeners(&self) -> Listeners {
        Listeners(Arc::downgrade(&self.router))
    }

    /// From now on, new connections become TLS as `tls` says; those that are open stay as they are.
    pub fn reload_tls(&self, tls: Tls) {
        self.router.set_tls(tls);
    }

    /// Makes room for another server without a rush: stops accepting, tells clients to go elsewhere, lets them for a while,
    /// then sends off those who are left one by one, all within `duration`. The broker serves whoever is left until then;
    /// call [`Broker::shutdown`] afterwards. Cancel safe: dropping the future stops the sending off, but there is no way
    /// back.
    pub async fn lame_duck(&self, duration: Duration) {
        self.closed.cancel();
        accept::announce_leave(&self.router).await;
        accept::send_away(&self.router, duration).await;
    }

    /// Stops accepting, tells clients to go elsewhere, writes out what waits for them and closes. Takes no longer than a
    /// few seconds. Cancel safe: dropping the future ends everything at once.
    pub async fn shutdown(self) {
        self.stop.cancel();
        let Some(mut connections) = self.accepting.join().await else { return };
        if !self.router.is_lame() {
            accept::announce_leave(&self.router).await;
        }
        for client in self.router.clients() {
            client.outbound.finish(None);
        }
        let all = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(SHUTDOWN_GRACE, all).await;
        connections.shutdown().await;
    }
}
