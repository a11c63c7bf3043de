//! What each path is worth: bulk both ways, one byte there and back, the first byte of a new session.

use std::sync::Arc;
use std::time::{Duration, Instant};

use orchard::duplex::Duplex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::ground::{BULK, PIECE, WITHIN, at_least, at_most, cpu_seconds};
use crate::paths::{Parts, Path, Paths, Quic};

const ROUND_TRIPS: usize = 3_000;
const SESSIONS: usize = 1_000;
const RUNS: usize = 3;

/// What one path is worth.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    /// MB/s, client to guest.
    up: f64,
    /// MB/s, guest to client.
    down: f64,
    /// Seconds of processor time for a gigabyte, of all parts, the guest too.
    cpu: f64,
    /// Microseconds for one byte there and back, median and 99th percentile.
    round_trip: (f64, f64),
    /// Microseconds until a new session's first byte is back, median and 99th percentile.
    session: (f64, f64),
}

async fn measure(path: Arc<dyn Path>) -> Figures {
    let (up, used_up) = timed(upload(&*path)).await;
    let (down, used_down) = timed(download(&*path)).await;
    let mut stream = path.open().await;
    stream.write_all(b"e").await.unwrap();
    let mut times = Vec::new();
    for _ in 0..ROUND_TRIPS {
        times.push(echo_once(&mut stream, b"x").await);
    }
    let round_trip = quantiles(times);
    let mut times = Vec::new();
    for _ in 0..SESSIONS {
        let started = Instant::now();
        let mut stream = path.open().await;
        echo_once(&mut stream, b"ex").await;
        times.push(started.elapsed());
    }
    let gigabytes = BULK as f64 / 1e9;
    let cpu = (used_up + used_down) / 2.0 / gigabytes;
    Figures { up: gigabytes * 1e3 / up, down: gigabytes * 1e3 / down, cpu, round_trip, session: quantiles(times) }
}

/// How long it took, and how much processor time.
async fn timed(work: impl Future<Output = ()>) -> (f64, f64) {
    let (started, used) = (Instant::now(), cpu_seconds());
    work.await;
    (started.elapsed().as_secs_f64(), cpu_seconds() - used)
}

async fn upload(path: &dyn Path) {
    let mut stream = path.open().await;
    let piece = vec![7; PIECE];
    stream.write_all(b"u").await.unwrap();
    for _ in 0..BULK / PIECE {
        stream.write_all(&piece).await.unwrap();
    }
    stream.flush().await.unwrap();
    stream.read_u8().await.unwrap();
}

async fn download(path: &dyn Path) {
    let mut stream = path.open().await;
    let mut piece = vec![7; PIECE];
    stream.write_all(b"d").await.unwrap();
    stream.flush().await.unwrap();
    let mut left = BULK;
    while left > 0 {
        let read = stream.read(&mut piece).await.unwrap();
        assert!(read > 0);
        left -= read;
    }
}

/// Sends `bytes` and waits for the last of them to come back.
async fn echo_once(stream: &mut Box<dyn Duplex>, bytes: &[u8]) -> Duration {
    let started = Instant::now();
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
    stream.read_u8().await.unwrap();
    started.elapsed()
}

fn quantiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort();
    let at = |share: usize| times[times.len() * share / 100].as_secs_f64() * 1e6;
    (at(50), at(99))
}

/// The best of the runs in each figure: the others were disturbed.
fn best(a: Figures, b: Figures) -> Figures {
    let least = |a: (f64, f64), b: (f64, f64)| (a.0.min(b.0), a.1.min(b.1));
    Figures {
        up: a.up.max(b.up),
        down: a.down.max(b.down),
        cpu: a.cpu.min(b.cpu),
        round_trip: least(a.round_trip, b.round_trip),
        session: least(a.session, b.session),
    }
}

/// Measures all paths in turns, and prints them.
fn compare(parts: &Parts, paths: &Paths) -> [Figures; 5] {
    let named: [(&str, Arc<dyn Path>); 5] = [
        ("TCP relay, plain", paths.plain.clone()),
        ("TCP relay, TLS on both hops", paths.tls.clone()),
        ("WebSocket relay, TLS on both hops", paths.websocket.clone()),
        ("tunnel, large packets", paths.large.clone()),
        ("tunnel, Ethernet packets", paths.ethernet.clone()),
    ];
    let mut figures = [None; 5];
    for _ in 0..RUNS {
        for (place, (_, path)) in figures.iter_mut().zip(&named) {
            // On the clients' own thread, where their sockets are served.
            let now = parts.clients.block_on(parts.clients.spawn(measure(path.clone()))).unwrap();
            *place = Some(place.map_or(now, |before| best(before, now)));
        }
    }
    let figures = figures.map(Option::unwrap);
    let tls = figures[1];
    println!(
        "  {:34} {:>15} {:>15} {:>15} {:>22} {:>22}",
        "best of 3; ratio to TLS relay", "up MB/s", "down MB/s", "CPU s/GB", "1 byte us p50/p99", "session us p50/p99"
    );
    for ((name, _), f) in named.iter().zip(&figures) {
        println!(
            "  {name:34} {:>7.0} ({:.2}x) {:>7.0} ({:.2}x) {:>7.2} ({:.2}x) {:>7.0}/{:<6.0}({:.2}x) {:>7.0}/{:<6.0}({:.2}x)",
            f.up,
            f.up / tls.up,
            f.down,
            f.down / tls.down,
            f.cpu,
            f.cpu / tls.cpu,
            f.round_trip.0,
            f.round_trip.1,
            f.round_trip.0 / tls.round_trip.0,
            f.session.0,
            f.session.1,
            f.session.0 / tls.session.0,
        );
    }
    figures
}

/// On all processors.
pub fn run() {
    println!("paths, a thread for each part");
    let parts = Parts::start();
    let paths = Paths::start(&parts);
    let [_, tls, websocket, large, ethernet] = compare(&parts, &paths);
    at_least("bulk up, large packets, to the TLS relay", large.up / tls.up, 1.0, "x");
    at_least("bulk down, large packets, to the TLS relay", large.down / tls.down, 1.0, "x");
    at_least("bulk up, Ethernet packets, to the TLS relay", ethernet.up / tls.up, 0.5, "x");
    at_least("bulk down, Ethernet packets, to the TLS relay", ethernet.down / tls.down, 0.5, "x");
    at_least("bulk up, large packets, to the WebSocket relay", large.up / websocket.up, 1.5, "x");
    at_least("bulk down, large packets, to the WebSocket relay", large.down / websocket.down, 1.5, "x");
    let (p50, p99) = parts.clients.block_on(parts.clients.spawn(first_bytes(paths.large.clone()))).unwrap();
    println!("  first byte of a new session, guest within the worker: p50 {:.0} us", p50);
    at_most("first byte of a new session, guest within the worker, p99", p99 / 1e3, 1.0, "ms");
}

/// On one processor, which this process has been bound to.
pub fn run_on_one() {
    println!("paths, all parts on one processor");
    let parts = Parts::start();
    let paths = Paths::start(&parts);
    let [_, tls, _, large, _] = compare(&parts, &paths);
    at_most("one byte there and back, to the TLS relay, p50", large.round_trip.0 / tls.round_trip.0, 1.7, "x");
}

/// The first byte back of new sessions to a guest within the worker.
async fn first_bytes(path: Arc<Quic>) -> (f64, f64) {
    let mut times = Vec::new();
    for _ in 0..5 * SESSIONS {
        let started = Instant::now();
        let mut stream = path.open_port(WITHIN).await;
        echo_once(&mut stream, b"x").await;
        times.push(started.elapsed());
    }
    quantiles(times)
}
