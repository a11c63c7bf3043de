//! Who types is not held up by who copies, on one connection over a narrow link.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use orchard::identity::ca::Identity;
use orchard::task::{self, Task};
use orchard::tunnel::client::Client;
use orchard::tunnel::relay::{Limits, Relay};
use orchard::tunnel::stream::TunnelStream;
use orchard::tunnel::worker::WorkerLink;
use orchard::tunnel::{Packets, Transport, Turns};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::world::*;
use crate::wait::until;
use crate::way::{Shape, Way};

/// A narrow link: what is sent to its address reaches `relay`, and the answers whoever was heard last.
struct Narrow {
    address: SocketAddr,
    _carriers: [Task; 2],
}

impl Narrow {
    async fn towards(relay: SocketAddr, shape: Shape) -> Self {
        let [near, far] = [UdpSocket::bind(any()).await.unwrap(), UdpSocket::bind(any()).await.unwrap()].map(Arc::new);
        far.connect(relay).await.unwrap();
        let address = near.local_addr().unwrap();
        let client = Arc::new(Mutex::new(relay));
        let way = |seed| Way::new(shape, seed, Instant::now());
        let carriers = [
            task::spawn(carry(near.clone(), far.clone(), way(1), client.clone(), true)),
            task::spawn(carry(far, near, way(2), client, false)),
        ];
        Self { address, _carriers: carriers }
    }
}

/// One way; `up` is the one from the client.
async fn carry(from: Arc<UdpSocket>, to: Arc<UdpSocket>, mut way: Way, client: Arc<Mutex<SocketAddr>>, up: bool) {
    let mut packet = vec![0; 1 << 16];
    loop {
        while let Some(out) = way.leave(Instant::now()) {
            let heard = *client.lock().unwrap();
            let _ = if up { to.send(&out).await } else { to.send_to(&out, heard).await };
        }
        let read = match way.next() {
            Some(next) => timeout_at(next, from.recv_from(&mut packet)).await.ok(),
            None => Some(from.recv_from(&mut packet).await),
        };
        if let Some(Ok((length, sender))) = read {
            if up {
                *client.lock().unwrap() = sender;
            }
            way.enter(&packet[..length], Instant::now());
        }
    }
}

/// A guest that takes all it can get, and once it has got anything never stops sending.
async fn bulk_guest() -> (u16, Task) {
    guest(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = read.read_u8().await;
        let bytes = vec![7; 64 << 10];
        let send = async { while write.write_all(&bytes).await.is_ok() {} };
        let mut sink = tokio::io::sink();
        let _ = tokio::join!(tokio::io::copy(&mut read, &mut sink), send);
    })
    .await
}

async fn round_trip(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin)) {
    stream.write_all(b"x").await.unwrap();
    stream.read_u8().await.unwrap();
}

/// So many copy, in both directions. With each of them having its turn, a byte would wait for a packet of all others on its way
/// there, and on its way back.
const COPIES: usize = 200;

/// The most bytes of copies that may come while one is typed and comes back: what a full queue holds each way, and what is under way
/// for a bare round trip, are 125 KB; with a turn for each of the others it would be 580 KB more. Counted in bytes, as a machine that
/// is slow is slow in both.
const BOUND: usize = 250_000;

/// Somebody who types, and others who copy over the same connection of a narrow link, both ways and without end.
struct Crowd {
    gate: Arc<Gate>,
    client: Client,
    typing: TunnelStream,
    echo: u16,
    /// Bytes of copies that came.
    moved: Arc<AtomicUsize>,
    _copies: JoinSet<()>,
    _parts: (Relay, WorkerLink, Narrow, Task, Task),
}

impl Crowd {
    /// All have begun, and the link is full.
    async fn with(turns: Turns) -> Self {
        // Packets as on a network, of which this plays one.
        let transport = Transport { packets: Packets::Ethernet, turns };
        let (gate, identity) = (Arc::new(Gate::default()), Identity::generate().unwrap());
        let relay = Relay::bind(any(), &identity, gate.clone(), Limits::default(), transport).unwrap();
        let worker = link_to(&relay, gate.session("w1"), None, Arc::new(Guests), transport);
        wait_connected(&relay, true).await;
        let shape = Shape { rate: Some(10_000_000), delay: Duration::from_millis(10), ..Shape::default() };
        let narrow = Narrow::towards(relay.local_addr(), shape).await;
        let client = Client::connect(narrow.address, relay.fingerprint(), transport).await.unwrap();
        let open = async |port| client.open(&gate.ticket("w1", port), LIMIT).await.unwrap();

        let (echo, echoing) = echo().await;
        let mut typing = open(echo).await;
        timeout(LIMIT, round_trip(&mut typing)).await.expect("a round trip in time");

        let (bulk, flooding) = bulk_guest().await;
        let (mut copies, moved) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
        // All are open before the first one fills the link.
        let mut opened = Vec::new();
        while opened.len() < COPIES {
            opened.extend(join_all((0..20).map(|_| open(bulk))).await);
        }
        for stream in opened {
            copies.spawn(copy(stream, moved.clone()));
        }
        let parts = (relay, worker, narrow, echoing, flooding);
        let crowd = Self { gate, client, typing, echo, moved, _copies: copies, _parts: parts };
        crowd.reach(3 << 20).await;
        crowd
    }

    fn moved(&self) -> usize {
        self.moved.load(Ordering::Relaxed)
    }

    /// Waits until so many bytes of copies have come.
    async fn reach(&self, goal: usize) {
        reach(&self.moved, goal).await;
    }
}

async fn reach(moved: &AtomicUsize, goal: usize) {
    until("the copies to get on", 2 * LIMIT, || async {
        let moved = moved.load(Ordering::Relaxed);
        if moved >= goal { Ok(()) } else { Err(format!("{moved} bytes of {goal}")) }
    })
    .await;
}

/// Copies both ways for ever, and counts what comes.
async fn copy(stream: TunnelStream, moved: Arc<AtomicUsize>) {
    let (mut read, mut write) = tokio::io::split(stream);
    let piece = vec![7; 64 << 10];
    let send = async { while write.write_all(&piece).await.is_ok() {} };
    let mut buffer = vec![0; 64 << 10];
    let receive = async {
        while let Ok(read @ 1..) = read.read(&mut buffer).await {
            moved.fetch_add(read, Ordering::Relaxed);
        }
    };
    tokio::join!(send, receive);
}

/// How many bytes of copies come while one is typed and comes back: sorted, of so many tries.
async fn measured(crowd: &mut Crowd, tries: usize) -> Vec<usize> {
    let mut came = Vec::new();
    for _ in 0..tries {
        let before = crowd.moved();
        if timeout(LIMIT, round_trip(&mut crowd.typing)).await.is_err() {
            // Starved. What is asked now would be answered by what is late.
            came.resize(tries, crowd.moved() - before);
            break;
        }
        came.push(crowd.moved() - before);
    }
    came.sort_unstable();
    println!("{} bytes of copies in a round trip, median; {came:?}", came[tries / 2]);
    came
}

/// Sees that what is measured is `good`, now or when measured once more: what else keeps the machine busy comes and goes.
async fn holds(crowd: &mut Crowd, tries: usize, good: impl Fn(&[usize]) -> bool) {
    if !good(&measured(crowd, tries).await) {
        let came = measured(crowd, tries).await;
        assert!(good(&came), "{came:?}");
    }
}

/// How many bytes of copies come before a new session has its answer.
async fn newcomer(crowd: &Crowd) -> usize {
    let before = crowd.moved();
    let new = crowd.client.open(&crowd.gate.ticket("w1", crowd.echo), LIMIT).await.unwrap();
    converse(new, b"new").await;
    crowd.moved() - before
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_does_not_starve_typing_on_the_same_connection() {
    let mut crowd = Crowd::with(Turns::Urgent).await;
    let first = crowd.moved();
    // The lower quartile: the copies go on while a busy machine does not let the typing task run.
    holds(&mut crowd, 30, |came| came[7] < BOUND).await;
    // And who comes now need not stand in line either.
    let mut came = newcomer(&crowd).await;
    if came >= 5 * BOUND {
        came = newcomer(&crowd).await;
    }
    assert!(came < 5 * BOUND, "{came} bytes came before a new session had its answer");
    // The copies went on all the time, and do.
    assert!(crowd.moved() > first + BOUND, "only {} bytes came", crowd.moved() - first);
    crowd.reach(crowd.moved() + (1 << 20)).await;
}

/// What the other test shows is not so by itself: among the same streams, when none of them goes first, a byte is not back before
/// more than that has come of the copies.
#[tokio::test(flavor = "multi_thread")]
async fn without_priorities_bulk_does_starve_typing() {
    let mut crowd = Crowd::with(Turns::Equal).await;
    // The upper quartile: fewer bytes come while a busy machine does not let the copies run.
    holds(&mut crowd, 5, |came| came[3] > BOUND).await;
}
