//! The accept loop, and the ways in which a broker takes leave of its clients.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use super::backlog::Batch;
use super::client::Client;
use super::connection::{self, Peer};
use super::limits::after;
use super::protocol::encode;
use super::router::{Greeting, Router};

/// First pause after a failed accept (usually: out of file descriptors); it doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_millis(10);
/// Longest pause after a failed accept.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// How long a lame duck lets clients leave by themselves, as in nats-server; a quarter of its time at most.
const GRACE: Duration = Duration::from_secs(10);
/// How often a lame duck looks whether everybody has left.
const LOOK: Duration = Duration::from_millis(20);
/// Clients told in one go, before others get to run.
const TOLD_PER_TURN: usize = 256;

/// Where clients come from.
#[derive(Debug)]
pub struct Doors {
    /// The one that everybody is told of.
    pub public: TcpListener,
    /// The embedder's own.
    pub private: Option<TcpListener>,
}

impl Doors {
    /// The next one who comes, and through which door. Cancel safe.
    async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        let private = async {
            match &self.private {
                Some(private) => private.accept().await,
                None => std::future::pending().await,
            }
        };
        // In no order: a flood at one door must not close the other. Both are cancel safe.
        let (accepted, is_private) = tokio::select! {
            accepted = self.public.accept() => (accepted, false),
            accepted = private => (accepted, true),
        };
        accepted.map(|(stream, address)| (stream, Peer { address, is_private }))
    }
}

/// Accepts until `closed`, then only looks after the connections until `stop`, and hands over their tasks. Dropping it ends
/// them.
pub async fn accept(
    doors: Doors,
    router: Arc<Router>,
    closed: CancellationToken,
    stop: CancellationToken,
) -> JoinSet<()> {
    let mut connections = JoinSet::new();
    let mut pause = MIN_PAUSE;
    let mut retry_at = Instant::now();
    let mut doors = Some(doors);
    loop {
        let next = async {
            sleep_until(retry_at).await;
            match &doors {
                Some(doors) => doors.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return connections,
            () = closed.cancelled(), if doors.is_some() => doors = None, // frees the port
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "a connection's task panicked; the others are unharmed");
                }
            }
            accepted = next => match accepted {
                Ok((stream, peer)) => {
                    pause = MIN_PAUSE;
                    connections.spawn(connection::serve(router.clone(), stream, peer, stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, ?pause, "cannot accept a client");
                    retry_at = Instant::now() + pause;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        }
    }
}

/// Tells every client that can hear it that the broker is about to go.
pub async fn announce_leave(router: &Router) {
    router.set_lame();
    for (count, client) in router.clients().iter().enumerate() {
        tell(router, client);
        if count % TOLD_PER_TURN == TOLD_PER_TURN - 1 {
            tokio::task::yield_now().await;
        }
    }
}

fn tell(router: &Router, client: &Client) {
    if !client.late_info.load(Ordering::Relaxed) {
        return;
    }
    let greeting = Greeting { client: client.id, ip: client.ip, nonce: None, tls: client.outbound.is_tls() };
    let mut batch = Batch::default();
    encode::info(batch.tail(), &router.info_for(&greeting));
    if client.outbound.enqueue(&mut batch).is_ok() {
        client.outbound.flush_now(); // whoever has no room for it is cut off anyway
    }
}

/// Lets clients leave, then sends the rest away one by one, all within `duration`. Cancel safe.
pub async fn send_away(router: &Router, duration: Duration) {
    let begun = Instant::now();
    let grace = begun + GRACE.min(duration / 4);
    let everybody_left = async {
        while router.client_count() > 0 {
            sleep(LOOK).await;
        }
    };
    if timeout_at(grace, everybody_left).await.is_ok() {
        return;
    }
    let clients = router.clients(); // in no order
    let span = after(begun, duration).saturating_duration_since(Instant::now());
    let (start, count) = (Instant::now(), u32::try_from(clients.len()).unwrap_or(u32::MAX).max(1));
    for (number, client) in (0..).zip(clients) {
        if !client.outbound.is_closed() {
            sleep_until(start + span.mul_f64(f64::from(number) / f64::from(count))).await;
            client.outbound.finish(None);
        }
    }
    for late in router.clients() {
        late.outbound.finish(None); // whose handshake was under way
    }
}
