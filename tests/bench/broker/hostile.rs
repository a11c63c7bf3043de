//! Peers that mean harm, and what the others feel of it: requests, or a stream, on one server before the peers come and
//! while they are at it. What they do is bounded, so that the server is measured and not whether they leave it any CPU.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::Figures;
use crate::load::{BODY, CHUNK, Flow, OPTIONS, Requests, Traffic, connect};
use crate::server::Server;

/// Bytes a second that are published to the one who never reads: it is over the bound on pending bytes within a second.
const FLOOD: usize = 100_000_000;
/// Body of such a message.
const FLOOD_BODY: usize = 4 * 1024;
/// How long the one who never reads stays before another comes in its place.
const DEAF_FOR: Duration = Duration::from_secs(1);
/// Connections that send a byte at a time.
const SLOW: usize = 1_000;
/// Such bytes a second, of all of them.
const SLOW_BYTES: usize = 10_000;
/// Connections that subscribe and unsubscribe: more than there are cores on the usual test machine.
const CHURNERS: usize = 4;
/// Subscriptions made and ended by one round of the flood.
const CHURN: usize = 1_000;
/// Connections a second that send too much.
const OVERSIZED: usize = 1_000;
/// A line longer than servers take, without an end.
const LONG_LINE: usize = 8 * 1024;
/// Connections that do nothing.
const IDLE: usize = 10_000;
/// Open files besides those connections.
const OTHER_FILES: usize = 200;
/// What a slow reader takes, about every millisecond: some 60 MB/s, at which a server could take it for one who keeps up.
const SIP: usize = 64 * 1024;
/// Longest stay in one read or write of a peer, so that it notices when it shall stop.
const PATIENCE: Duration = Duration::from_millis(200);

/// Requests, one at a time, while such peers are there.
#[derive(Clone, Copy)]
pub enum Hostile {
    /// No peers: how far two measurements of the same are apart.
    Nobody,
    /// A subscriber that never reads is flooded; cut off or not, another comes every second.
    NeverReads,
    /// A thousand connections send CONNECT and PUB byte by byte.
    Slowloris,
    /// A client subscribes and unsubscribes as fast as it can, on several connections, with a leading wildcard: nothing
    /// that others remember of who listens stays true.
    Churn,
    /// Lines and payloads over the limits, each on a new connection.
    Oversized,
    /// Ten thousand connections, half of which never say a word.
    Idle,
}

/// A stream to so many receivers, while one more receiver reads slowly on purpose and comes back when it is cut off.
pub struct SlowReader {
    pub receivers: usize,
    pub size: usize,
}

impl Hostile {
    pub fn run(self, server: &Server, span: Duration) -> Figures {
        let requests = Requests { depth: 1 };
        let quiet = requests.run(server, span / 2);
        let _peers = self.begin(server.address);
        let figures = requests.run(server, span);
        Figures {
            cpu: None, // the peers' share would be in it
            p50_to_quiet: ratio(figures.p50, quiet.p50),
            p99_to_quiet: ratio(figures.p99, quiet.p99),
            ..figures
        }
    }

    fn begin(self, address: SocketAddr) -> Peers {
        let mut peers = Peers::default();
        match self {
            Self::Nobody => {}
            Self::NeverReads => {
                peers.spawn(move |stop| deaf(address, stop));
                peers.spawn(move |stop| flood(address, stop));
            }
            Self::Slowloris => {
                let sockets: Vec<TcpStream> = (0..SLOW).map(|_| silent(address)).collect();
                peers.spawn(move |stop| drip(sockets, stop));
            }
            Self::Churn => (0..CHURNERS).for_each(|_| peers.spawn(move |stop| churn(address, stop))),
            Self::Oversized => peers.spawn(move |stop| {
                let mut line = false;
                paced(stop, OVERSIZED, || {
                    line = !line;
                    oversized(address, line);
                });
            }),
            Self::Idle => {
                let open = |at: usize| if at.is_multiple_of(2) { silent(address) } else { connect(address, "") };
                peers.idle = (0..possible(IDLE)).map(open).collect();
            }
        }
        peers
    }
}

impl SlowReader {
    pub fn run(&self, server: &Server, span: Duration) -> Figures {
        let flow = Flow { subjects: 1, subscribers: self.receivers, size: self.size };
        let stream = || {
            let mut traffic = Traffic::default();
            flow.start(&mut traffic, server.address);
            traffic.measure(server, span)
        };
        let quiet = stream(); // as long as the other: a stream gets faster in its first seconds
        let mut peers = Peers::default();
        let address = server.address;
        peers.spawn(move |stop| sip(address, stop));
        let figures = stream();
        Figures { cpu: None, rate_to_quiet: ratio(figures.per_second, quiet.per_second), ..figures }
    }
}

fn ratio(now: Option<f64>, quiet: Option<f64>) -> Option<f64> {
    Some(now? / quiet?)
}

/// Gone when dropped.
#[derive(Default)]
struct Peers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    idle: Vec<TcpStream>,
}

impl Peers {
    fn spawn(&mut self, work: impl FnOnce(&AtomicBool) + Send + 'static) {
        let stop = self.stop.clone();
        self.threads.push(thread::spawn(move || work(&stop)));
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Lets this process, and the servers it starts from now on, open as many files as the hard limit allows.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// How many of the connections wanted there can be.
fn possible(wanted: usize) -> usize {
    static TOLD: Once = Once::new();
    let limit = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize);
    let possible = wanted.min(limit.saturating_sub(OTHER_FILES));
    if possible < wanted {
        TOLD.call_once(|| println!("!!! Only {possible} connections instead of {wanted}: `ulimit -Hn` is {limit}."));
    }
    possible
}

/// A connection that has seen INFO and says nothing.
fn silent(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    assert!(stream.read(&mut [0; 4096]).unwrap() > 0, "closed before INFO");
    stream
}

/// A connection that notices after [`PATIENCE`] when it shall stop; `None` when the server has none to give.
fn hasty(address: SocketAddr) -> Option<TcpStream> {
    let stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.set_write_timeout(Some(PATIENCE)).ok()?;
    Some(stream)
}

/// Does `act` so many times a second; what it could not do in time is left undone.
fn paced(stop: &AtomicBool, per_second: usize, mut act: impl FnMut()) {
    let (begun, rate, mut done) = (Instant::now(), per_second as f64, 0.0f64);
    while !stop.load(Ordering::Relaxed) {
        let due = begun.elapsed().as_secs_f64() * rate;
        done = done.max(due - rate / 10.0);
        while done < due && !stop.load(Ordering::Relaxed) {
            act();
            done += 1.0;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn deaf(address: SocketAddr, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let mut stream = hasty(address);
        if let Some(stream) = &mut stream {
            let _ = stream.write_all(format!("{OPTIONS}SUB flood 1\r\n").as_bytes());
        }
        while begun.elapsed() < DEAF_FOR && !stop.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn flood(address: SocketAddr, stop: &AtomicBool) {
    let frame = format!("PUB flood {FLOOD_BODY}\r\n{}\r\n", "x".repeat(FLOOD_BODY));
    let frames = frame.repeat(CHUNK / frame.len());
    let mut stream = connect(address, "");
    paced(stop, FLOOD / frames.len(), || stream.write_all(frames.as_bytes()).unwrap());
}

/// One byte on each connection in turn; each is at another place of its first line.
fn drip(sockets: Vec<TcpStream>, stop: &AtomicBool) {
    let text = format!("{OPTIONS}PUB drip 16\r\n{BODY}\r\n").into_bytes();
    let mut peers: Vec<(TcpStream, usize)> =
        sockets.into_iter().enumerate().map(|(at, socket)| (socket, at % OPTIONS.len())).collect();
    for (socket, at) in &mut peers {
        socket.write_all(&text[..*at]).unwrap();
    }
    let mut turn = 0;
    paced(stop, SLOW_BYTES, || {
        let (socket, at) = &mut peers[turn % SLOW];
        turn += 1;
        let _ = socket.write_all(&text[*at..=*at]);
        *at += 1;
        if *at == text.len() {
            *at = OPTIONS.len(); // the message again
        }
    });
}

fn churn(address: SocketAddr, stop: &AtomicBool) {
    let lines = |verb: &str, subject: &str| -> String {
        (0..CHURN).map(|at| format!("{verb}{} {at}\r\n", subject.replace('#', &at.to_string()))).collect()
    };
    let round = lines("SUB ", "*.churn.#") + &lines("UNSUB", "");
    while !stop.load(Ordering::Relaxed) {
        let Some(mut stream) = hasty(address) else { continue };
        let _ = stream.write_all(OPTIONS.as_bytes());
        while !stop.load(Ordering::Relaxed) && stream.write_all(round.as_bytes()).is_ok() {}
    }
}

/// Sends what is too long and reads until the server closes.
fn oversized(address: SocketAddr, line: bool) {
    let Some(mut stream) = hasty(address) else { return };
    let what = if line { format!("SUB {}", "x".repeat(LONG_LINE)) } else { "PUB big 2000000\r\n".to_owned() + BODY };
    let _ = stream.write_all(format!("{OPTIONS}{what}").as_bytes());
    let mut buffer = [0; 4096];
    while let Ok(1..) = stream.read(&mut buffer) {}
}

fn sip(address: SocketAddr, stop: &AtomicBool) {
    let mut buffer = vec![0; SIP];
    while !stop.load(Ordering::Relaxed) {
        let Some(mut stream) = hasty(address) else { continue };
        let _ = stream.write_all(format!("{OPTIONS}SUB bench.0 1\r\n").as_bytes());
        while !stop.load(Ordering::Relaxed) && stream.read(&mut buffer).is_ok_and(|count| count > 0) {
            thread::sleep(Duration::from_millis(1));
        }
    }
}
