//! One client's task: opens the connection, reads and performs what the client sends, writes what waits for it, and looks
//! whether it is still there. Spawned by the accept loop, which knows nothing of handshakes.
//!
//! Three futures run side by side in the one task: reading, writing and the watch over it. The first to end ends the others;
//! then what is still queued goes out within a bounded time. `opening` comes before them; what is read is performed by
//! `operations`, which has `admission` decide who the client is and `services` answer what is for the broker itself; `pacing`
//! says when more may be read.

mod admission;
mod liveness;
mod opening;
mod operations;
mod pacing;
mod services;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::client::{Client, Subscription};
use super::delivery::Delivery;
use super::limits::after;
use super::outbound::{LINGER, Outbound};
use super::pace::Seat;
use super::private::{self, Standing};
use super::protocol::parse::{Bounds, Parser};
use super::protocol::{Fault, ServerInfo, encode};
use super::router::{Greeting, Router};
use super::session::Session;
use super::tls::Tls;
use super::transport::Transport;

use opening::Opening;

/// Room for the first read: enough for CONNECT, little for ten thousand idle clients.
const MIN_READ: usize = 4 * 1024;
/// Room for a read of a client that fills it every time.
const MAX_READ: usize = 64 * 1024;
/// Room for a read of a client whose messages go to many: what one read brings is one write for each of them, and fewer,
/// longer writes nearly doubled the rate of a fan-out to 100. With few receivers it only costs cache.
const MAX_WIDE_READ: usize = 256 * 1024;
/// Receivers from which on messages go to many.
const WIDE: usize = 8;
/// Reads after which a client that always has more lets others run: half a megabyte.
const READS_PER_TURN: u32 = 8;
/// Operations after which it does so too, of those that cost more than passing a message on: subscriptions come and go under
/// a lock, and who listens to a new subject must be looked up. A read full of them would keep others waiting for milliseconds.
const COSTLY_PER_TURN: u32 = 64;
/// Time to say who it is for a client whose network is crowded with strangers: those who stay silent there soon make room.
const CROWDED_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes read and thrown away after a fault, so that the client gets to read why before its own writes fail.
const MAX_DISCARD: usize = 4 * 1024 * 1024;

/// Who connects, as far as is known at once.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// From where.
    pub address: SocketAddr,
    /// Whether through the private door.
    pub is_private: bool,
}

/// Serves `stream` until it ends. Whatever the client does, and even if this panics, its traces vanish from the router.
/// Once `stop` is cancelled, a connection that is not open yet ends at once: it has nothing to lose. Open ones are ended
/// through the router.
pub async fn serve(router: Arc<Router>, stream: TcpStream, peer: Peer, stop: CancellationToken) {
    let ip = peer.address.ip();
    let unproven = match peer.is_private {
        true => Some(Standing::Private(router.private.enter())),
        false => router.unproven.enter(ip).map(|place| Standing::Stranger { _place: place }),
    };
    let crowded = peer.is_private || router.unproven.is_crowded(ip);
    let patience = if crowded { CROWDED_TIMEOUT } else { router.limits.auth_timeout };
    let deadline = after(Instant::now(), patience.min(router.limits.auth_timeout));
    let nonce = router.authenticator.as_ref().filter(|a| a.wants_nonce()).map(|_| new_nonce());
    // What never leaves this machine, and this process, needs no encryption, at four handshakes for each start and twice the
    // work for each message of a worker.
    let tls = router.tls().filter(|_| !peer.is_private);
    let greeting = Greeting { client: router.next_id(), ip: ip.to_canonical(), nonce, tls: tls.is_some() };
    let mut hello = Vec::new();
    encode::info(&mut hello, &router.info_for(&greeting));
    let opening = prepare(&router, stream, tls.as_deref(), &hello, (peer, deadline, unproven.is_some()));
    let displaced = unproven.as_ref().and_then(Standing::displaced);
    // Dropping the opening closes the connection.
    let opened = tokio::select! {
        opened = stop.run_until_cancelled(opening) => opened.flatten(),
        () = private::cancelled(displaced.as_ref()) => None,
    };
    let Some((transport, greeted)) = opened else { return };
    let hello = if greeted { Vec::new() } else { hello };
    converse(router, Arc::new(transport), (greeting, hello), (peer, deadline, unproven), stop).await;
}

/// Opens the connection, if there is room; what it runs over, and whether INFO was sent. Otherwise, lets the client know.
/// Dropping the future closes it.
async fn prepare(
    router: &Router,
    stream: TcpStream,
    tls: Option<&Tls>,
    hello: &[u8],
    (peer, deadline, welcome): (Peer, Instant, bool),
) -> Option<(Transport, bool)> {
    let room = router.room_to_open();
    // The private door has places of its own.
    if !peer.is_private && (!welcome || room.is_none()) {
        drop(room);
        let _turn = router.room_to_refuse()?;
        discard(&opening::turn_away(stream, tls, hello).await).await;
        return None;
    }
    let opened = match tls {
        None => opening::open(stream, None, hello).await,
        Some(tls) => {
            let opened = timeout_at(deadline, opening::open(stream, Some(tls), hello)).await;
            opened.unwrap_or_else(|_| Opening::Failed(std::io::ErrorKind::TimedOut.into()))
        }
    };
    match opened {
        Opening::Open { transport, greeted } => {
            drop(room); // from here on it counts among the clients
            return Some((transport, greeted));
        }
        Opening::Plain(transport) => {
            transport.shutdown_write();
            discard(&transport).await;
        }
        Opening::Failed(error) => tracing::debug!(peer = %peer.address, %error, "handshake failed"),
    }
    None
}

/// Serves a connection that is open, `hello` first.
async fn converse(
    router: Arc<Router>,
    transport: Arc<Transport>,
    (greeting, hello): (Greeting, Vec<u8>),
    (from, deadline, unproven): (Peer, Instant, Option<Standing>),
    stop: CancellationToken,
) {
    let Peer { address: peer, is_private } = from;
    let displaced = unproven.as_ref().and_then(Standing::displaced);
    let outbound = Outbound::new(transport.clone(), router.limits.max_pending);
    let admitted = router.authenticator.is_none();
    let client = Arc::new(Client::new(greeting.client, greeting.ip, outbound, admitted));
    let mut connection = Connection {
        session: Session::new(!admitted, router.limits.max_subscriptions),
        leaving: Vec::new(),
        delivery: Delivery::new(router.clone(), client.clone()),
        bounds: Bounds { control_line: router.limits.max_control_line, payload: router.limits.max_payload },
        parser: Parser::default(),
        allocated: 0,
        costly: 0,
        router: router.clone(),
        client: client.clone(),
        nonce: greeting.nonce,
        peer,
        unproven: unproven.filter(|_| !admitted),
        penalty: Duration::ZERO,
        seat: None,
    };
    connection.delivery.answer(|out| out.extend_from_slice(&hello));
    drop(hello);
    connection.delivery.commit();
    let registered = router.register(&client, is_private);
    if !registered {
        client.outbound.finish(Some(&Fault::Connections));
    }
    if stop.is_cancelled() {
        client.outbound.finish(None); // whoever ends all clients may have looked before it was among them
    }
    drop(stop);
    let writing = async {
        if client.outbound.run(&transport, router.limits.write_deadline).await.is_err() {
            router.counters.slow_consumers.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(client = client.id, %peer, "slow consumer cut off: write deadline");
        }
    };
    tokio::pin!(writing);
    let ended = tokio::select! {
        () = &mut writing => None,
        // Whoever is one too many is only told so: nothing of what it sent is performed.
        fault = connection.read(&transport), if registered => Some(fault),
        fault = liveness::watch(&client, &router, deadline) => Some(Some(fault)),
        // Without a word, for which it would take up a socket longer than its place.
        () = private::cancelled(displaced.as_ref()) => return,
    };
    if let Some(fault) = ended {
        if let Some(fault) = &fault {
            tracing::debug!(client = client.id, %peer, %fault, "closing");
        }
        client.outbound.finish(fault.as_ref());
        let _ = timeout(LINGER, &mut writing).await;
    }
    connection.leave().await;
    drop(connection); // nobody counts or routes to it any more
    transport.shutdown_write();
    discard(&transport).await;
}

/// Waits for the client to read and close, so that what we wrote last is not lost to a reset.
async fn discard(transport: &Transport) {
    let drain = async {
        let mut buffer = BytesMut::new();
        let mut total = 0;
        while total < MAX_DISCARD {
            buffer.clear();
            buffer.reserve(MIN_READ);
            match transport.try_read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => total += count,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    if poll_fn(|cx| transport.poll_readable(cx)).await.is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    };
    let _ = timeout(LINGER, drain).await;
}

/// Where the room of `buffer` ends: elsewhere, once it has another allocation.
fn end_of(buffer: &BytesMut) -> usize {
    buffer.as_ptr().addr() + buffer.capacity()
}

fn new_nonce() -> String {
    let mut bytes = [0u8; 11];
    // Without randomness nobody can sign in; the nonce is then refused by whoever checks it.
    if getrandom::fill(&mut bytes).is_err() {
        return String::new();
    }
    data_encoding::BASE64URL_NOPAD.encode(&bytes)
}

struct Connection {
    router: Arc<Router>,
    client: Arc<Client>,
    peer: SocketAddr,
    nonce: Option<String>,
    session: Session<Arc<Subscription>>,
    /// Subscriptions that are yet to end, once the client has left.
    leaving: Vec<Arc<Subscription>>,
    delivery: Delivery,
    parser: Parser,
    bounds: Bounds,
    /// Bytes of the allocation behind the read buffer, of which what was performed is no longer in it. At least half of
    /// them: a buffer that grows in place does not say how much was in front.
    allocated: usize,
    /// Costly operations in this turn.
    costly: u32,
    /// Its place among the strangers of its network, until it has said who it is.
    unproven: Option<Standing>,
    /// How long the answer to wrong credentials waits.
    penalty: Duration,
    /// The place among the user's connections, if it has a pace.
    seat: Option<Seat>,
}

impl Drop for Connection {
    /// Ends the subscriptions too, when the task ended before [`Connection::leave`] did.
    fn drop(&mut self) {
        self.leaving.append(&mut self.session.take_subscriptions());
        while !self.leaving.is_empty() {
            self.router.unsubscribe_some(&mut self.leaving);
            std::thread::yield_now(); // a lock that is taken again at once starves those who wait for it
        }
        self.client.outbound.abandon();
        self.router.unregister(self.client.id);
    }
}

impl Connection {
    /// Ends the client's subscriptions, some at a time: others run in between. Dropping it leaves the rest to `drop`.
    async fn leave(&mut self) {
        self.leaving = self.session.take_subscriptions();
        loop {
            self.router.unsubscribe_some(&mut self.leaving);
            if self.leaving.is_empty() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    fn info(&self) -> ServerInfo {
        let (client, ip) = (self.client.id, self.client.ip);
        self.router.info_for(&Greeting { client, ip, nonce: None, tls: self.client.outbound.is_tls() })
    }

    fn recheck_if_wanted(&mut self) -> Option<Fault> {
        if !self.client.wants_recheck() {
            return None;
        }
        let fault = self.recheck();
        self.delivery.commit();
        fault
    }

    /// Reads until the peer closes (`None`) or breaks a rule.
    async fn read(&mut self, transport: &Transport) -> Option<Fault> {
        let mut buffer = BytesMut::new();
        let mut room = MIN_READ;
        let mut turns = 0u32;
        loop {
            if let Some(fault) = self.recheck_if_wanted() {
                return Some(fault);
            }
            if self.seat.is_some()
                && let Some(fault) = self.keep_pace().await
            {
                return Some(fault);
            }
            // A body on its way is given room step by step: announcing much costs the peer nothing.
            let missing = self.parser.need().saturating_sub(buffer.len()).min(buffer.len());
            let end = end_of(&buffer);
            buffer.reserve(room.max(missing));
            let known = if end_of(&buffer) == end { self.allocated } else { 0 };
            self.allocated = known.max(buffer.capacity());
            match transport.try_read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => {
                    let most = if self.delivery.width() >= WIDE { MAX_WIDE_READ } else { MAX_READ };
                    room = if count >= room { (room * 4).min(most) } else { room.min(most) };
                    self.client.heard.store(true, Ordering::Relaxed);
                    let mut bytes = count;
                    loop {
                        let before = self.seat.as_ref().map(|_| self.costly);
                        let fault = self.perform(&mut buffer);
                        if self.seat.is_some() {
                            // Unless it has only just logged in, for which the turn was ended.
                            let costly = before.map_or(1, |before| self.costly.saturating_sub(before));
                            self.charge(costly, std::mem::take(&mut bytes));
                        }
                        self.delivery.commit();
                        if fault.is_some() {
                            self.do_penance().await;
                            return fault;
                        }
                        self.delivery.stall().await;
                        if self.costly < COSTLY_PER_TURN {
                            break;
                        }
                        self.costly = 0;
                        tokio::task::yield_now().await;
                        if let Some(fault) = self.recheck_if_wanted() {
                            return Some(fault);
                        }
                        if self.seat.is_some()
                            && let Some(fault) = self.keep_pace().await
                        {
                            return Some(fault);
                        }
                    }
                    turns = turns.wrapping_add(1);
                    if turns.is_multiple_of(READS_PER_TURN) {
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    self.costly = 0;
                    if buffer.is_empty() {
                        buffer = BytesMut::new(); // an idle client holds no buffer
                    }
                    // Who wants a recheck wakes the task, and this looks again.
                    let readable = poll_fn(|cx| match self.client.wants_recheck() {
                        true => Poll::Ready(Ok(())),
                        false => transport.poll_readable(cx),
                    });
                    if readable.await.is_err() {
                        return None;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::broker::{Broker, Limits};

    #[tokio::test]
    async fn nothing_is_performed_for_one_too_many() {
        let limits = Limits { max_connections: 0, ..Limits::default() };
        let broker = Broker::builder().limits(limits).bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        for _ in 0..20 {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (accepted, address) = listener.accept().await.unwrap();
            peer.write_all(b"CONNECT {}\r\nPUB a 1\r\nx\r\nPING\r\n").await.unwrap();
            peer.shutdown().await.unwrap();
            accepted.readable().await.unwrap();
            let transport = Arc::new(Transport::plain(accepted));
            let greeting = Greeting { client: broker.router.next_id(), ip: address.ip(), nonce: None, tls: false };
            let deadline = Instant::now() + broker.router.limits.auth_timeout;
            converse(
                broker.router.clone(),
                transport,
                (greeting, b"INFO {}\r\n".to_vec()),
                (Peer { address, is_private: false }, deadline, None),
                CancellationToken::new(),
            )
            .await;
            let mut seen = String::new();
            peer.read_to_string(&mut seen).await.unwrap();
            assert_eq!(seen, "INFO {}\r\n-ERR 'maximum connections exceeded'\r\n");
        }
        assert_eq!(broker.stats().messages_in, 0);
    }
}
