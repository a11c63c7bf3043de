//! Sessions whose readers have stopped hold up nobody else on the connections that they share, however many they are, and what is
//! held for them goes with them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use orchard::duplex::Duplex;
use orchard::identity::ca::Identity;
use orchard::model::CopyId;
use orchard::model::error::ApiError;
use orchard::task::{self, Task};
use orchard::tunnel::Transport;
use orchard::tunnel::header::Frame;
use orchard::tunnel::relay::{Limits, Relay};
use orchard::tunnel::worker::Attach;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::world::*;
use crate::wait::until;

/// More than have room in 256 MiB, the window that one connection had for all of its streams.
const STALLED: usize = 140;

/// Nothing has moved in so many looks: all that can be full is full.
const QUIET: usize = 25;

/// What a guest is, by the port it is reached at.
const FLOOD: u16 = 1;
const DEAF: u16 = 2;
const ECHO: u16 = 3;

/// Guests without sockets, whose buffers would take far more than the tunnel's.
#[derive(Default)]
struct Odd {
    /// What the floods could send.
    sent: Arc<AtomicU64>,
    tasks: Mutex<Vec<Task>>,
    /// The ends of those who do not read.
    deaf: Mutex<Vec<DuplexStream>>,
}

#[async_trait]
impl Attach for Odd {
    async fn attach(&self, _copy: CopyId, port: u16) -> Result<Box<dyn Duplex>, ApiError> {
        let (near, far) = tokio::io::duplex(16 << 10);
        let sent = self.sent.clone();
        match port {
            FLOOD => {
                let flood = async move {
                    let mut far = far;
                    let piece = vec![7; 16 << 10];
                    while far.write_all(&piece).await.is_ok() {
                        sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
                    }
                };
                self.tasks.lock().unwrap().push(task::spawn(flood));
            }
            DEAF => self.deaf.lock().unwrap().push(far),
            _ => {
                let echo = async move {
                    let (mut read, mut write) = tokio::io::split(far);
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                };
                self.tasks.lock().unwrap().push(task::spawn(echo));
            }
        }
        Ok(Box::new(near))
    }
}

/// A relay and a worker with such guests.
struct Ground {
    gate: Arc<Gate>,
    relay: Relay,
    odd: Arc<Odd>,
    _worker: orchard::tunnel::worker::WorkerLink,
}

impl Ground {
    async fn start() -> Self {
        let (gate, odd) = (Arc::new(Gate::default()), Arc::new(Odd::default()));
        let relay = bind(any(), &Identity::generate().unwrap(), &gate, Limits::default()).unwrap();
        let worker = link_to(&relay, gate.session("w1"), None, odd.clone(), Transport::default());
        wait_connected(&relay, true).await;
        Self { gate, relay, odd, _worker: worker }
    }

    /// Waits until `count` stands still.
    async fn still(&self, what: &str, count: &AtomicU64) -> u64 {
        let seen = Mutex::new((0, 0));
        until(what, 4 * LIMIT, || async {
            let (now, mut seen) = (count.load(Ordering::Relaxed), seen.lock().unwrap());
            *seen = if seen.0 == now { (now, seen.1 + 1) } else { (now, 0) };
            if now > 0 && seen.1 >= QUIET { Ok(now) } else { Err(now) }
        })
        .await
    }

    /// Somebody new is served, over connections of his own to the relay and over that of the worker.
    async fn serves_others(&self) {
        let newcomer = connect(&self.relay).await;
        let ticket = self.gate.ticket_of("bob", "w1", ECHO);
        let stream = newcomer.open(&ticket, LIMIT).await.expect("a new session to be opened");
        timeout(LIMIT, converse(stream, &noise(3 << 20, 5))).await.expect("a new session to be served");
    }

    async fn all_end(&self) {
        let alice = "alice".parse().unwrap();
        until("the sessions to end", LIMIT, || async {
            let left = self.relay.control().sessions_of(&alice);
            if left == 0 { Ok(()) } else { Err(left) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn downloads_that_nobody_reads_stall_nobody_else() {
    let ground = Ground::start().await;
    // As narrow as a client can be, so that next to all is held by the relay: on the connection of the worker.
    let client = raw_with(&ground.relay, |transport| {
        transport.stream_receive_window(4_096u32.into());
    })
    .await;
    let mut streams = Vec::new();
    for _ in 0..STALLED {
        let open = Frame::Open { ticket: ground.gate.ticket("w1", FLOOD), resume: None };
        let (answer, stream) = ask(&client, &open).await;
        assert_eq!(answer, Frame::Opened { resumable: false });
        streams.push(stream);
    }
    let sent = ground.still("the downloads to stall", &ground.odd.sent).await;
    println!("{} KiB are held for each of {STALLED} downloads", sent / STALLED as u64 / 1024);
    ground.serves_others().await;
    // Each of them still has its own, to the last byte of what was sent.
    let before = ground.odd.sent.load(Ordering::Relaxed);
    let (_, (_, read)) = (streams.remove(0), streams.last_mut().unwrap());
    let mut piece = vec![0; 1 << 20];
    timeout(LIMIT, read.read_exact(&mut piece)).await.expect("a stalled download to go on").unwrap();
    assert!(piece.iter().all(|byte| *byte == 7));
    assert!(ground.still("it to stall again", &ground.odd.sent).await > before);
    client.close(0u32.into(), b"");
    ground.all_end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_no_guest_reads_stall_nobody_else() {
    let ground = Ground::start().await;
    let client = Arc::new(connect(&ground.relay).await);
    let (sent, mut users) = (Arc::new(AtomicU64::new(0)), JoinSet::new());
    for _ in 0..STALLED {
        let stream = client.open(&ground.gate.ticket("w1", DEAF), LIMIT).await.unwrap();
        let sent = sent.clone();
        users.spawn(async move {
            let (_read, mut write) = tokio::io::split(stream);
            let piece = vec![7; 16 << 10];
            while write.write_all(&piece).await.is_ok() {
                sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
        });
    }
    let held = ground.still("the uploads to stall", &sent).await;
    println!("{} KiB are held for each of {STALLED} uploads", held / STALLED as u64 / 1024);
    ground.serves_others().await;
    // On the very connection of those that stall, too.
    let own = client.open(&ground.gate.ticket("w1", ECHO), LIMIT).await.expect("one session more");
    timeout(LIMIT, converse(own, &noise(3 << 20, 6))).await.expect("it to be served");
    users.shutdown().await;
    ground.all_end().await;
}
