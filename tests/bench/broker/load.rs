//! The loads and the generator: threads with blocking sockets, frames encoded beforehand, bytes counted.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::Figures;
use crate::hostile::{Hostile, SlowReader};
use crate::server::Server;

/// How a client begins.
pub const OPTIONS: &str = "CONNECT {\"verbose\":false,\"pedantic\":false,\"headers\":true,\"no_responders\":true}\r\n";
/// Before counting starts.
const WARM_UP: Duration = Duration::from_millis(500);
/// An answer that is not there by then is none.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of frames in one write.
pub const CHUNK: usize = 64 * 1024;
/// Body of requests and answers.
pub const BODY: &str = "0123456789abcdef";

/// What is done to a server.
pub enum Load {
    Flow(Flow),
    Requests(Requests),
    Idle(Idle),
    Wild(Wild),
    Hostile(Hostile),
    SlowReader(SlowReader),
}

/// A stream of messages: one publisher for each subject, so many subscribers of each, bytes of a body.
pub struct Flow {
    pub subjects: usize,
    pub subscribers: usize,
    pub size: usize,
}

/// Requests, so many of them in flight.
pub struct Requests {
    pub depth: usize,
}

/// Connections with a subscription each that nothing is sent to, and pairs that send and receive.
pub struct Idle {
    pub idle: usize,
    pub busy: usize,
}

/// Subscriptions with wildcards on ten connections, and a publisher that goes through all of them.
pub struct Wild {
    pub subscriptions: usize,
}

impl Load {
    /// One publisher, one subscriber: what a relay can do, too.
    pub fn is_one_to_one(&self) -> bool {
        matches!(self, Self::Flow(Flow { subjects: 1, subscribers: 1, .. }))
    }

    pub fn run(&self, server: &Server, span: Duration) -> Figures {
        match self {
            Self::Flow(flow) => {
                let mut traffic = Traffic::default();
                flow.start(&mut traffic, server.address);
                traffic.measure(server, span)
            }
            Self::Requests(requests) => requests.run(server, span),
            Self::Idle(idle) => idle.run(server, span),
            Self::Wild(wild) => wild.run(server, span),
            Self::Hostile(hostile) => hostile.run(server, span),
            Self::SlowReader(reader) => reader.run(server, span),
        }
    }
}

/// Publishers and subscribers at work; all messages that arrive are equally long.
#[derive(Default)]
pub struct Traffic {
    stop: Arc<AtomicBool>,
    /// Bytes.
    received: Arc<AtomicU64>,
    /// Of a message as it arrives.
    length: u64,
    /// Messages in for one out.
    fan_in: f64,
    sockets: Vec<TcpStream>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    fn subscriber(&mut self, address: SocketAddr, subscriptions: &str) {
        let mut stream = connect(address, subscriptions);
        self.sockets.push(stream.try_clone().unwrap());
        let received = self.received.clone();
        self.threads.push(thread::spawn(move || {
            let mut buffer = vec![0; 256 * 1024];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                received.fetch_add(count as u64, Ordering::Relaxed);
            }
        }));
    }

    /// Publishes `frames` over and over.
    fn publisher(&mut self, address: SocketAddr, frames: String) {
        let mut stream = connect(address, "");
        self.sockets.push(stream.try_clone().unwrap());
        let stop = self.stop.clone();
        self.threads.push(thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) && stream.write_all(frames.as_bytes()).is_ok() {}
        }));
    }

    pub fn measure(self, server: &Server, span: Duration) -> Figures {
        thread::sleep(WARM_UP);
        let (from, cpu, started) = (self.received.load(Ordering::Relaxed), server.cpu(), Instant::now());
        thread::sleep(span);
        let bytes = self.received.load(Ordering::Relaxed) - from;
        let (took, cpu) = (started.elapsed(), spent(server, cpu));
        let rss = server.rss();
        self.stop.store(true, Ordering::Relaxed);
        for socket in &self.sockets {
            let _ = socket.shutdown(Shutdown::Both);
        }
        for thread in self.threads {
            thread.join().unwrap();
        }
        let messages = bytes as f64 / self.length as f64;
        Figures {
            per_second: Some(messages / took.as_secs_f64()),
            cpu: cpu.map(|seconds| seconds / (messages * (1.0 + self.fan_in) / 1e6)),
            rss,
            ..Figures::default()
        }
    }
}

impl Flow {
    pub fn start(&self, traffic: &mut Traffic, address: SocketAddr) {
        let body = "x".repeat(self.size);
        traffic.length = format!("MSG bench.0 1 {}\r\n{body}\r\n", self.size).len() as u64;
        traffic.fan_in = 1.0 / self.subscribers as f64;
        for subject in 0..self.subjects {
            for _ in 0..self.subscribers {
                traffic.subscriber(address, &format!("SUB bench.{subject} 1\r\n"));
            }
        }
        for subject in 0..self.subjects {
            let frame = format!("PUB bench.{subject} {}\r\n{body}\r\n", self.size);
            traffic.publisher(address, frame.repeat((CHUNK / frame.len()).max(1)));
        }
    }
}

impl Requests {
    pub fn run(&self, server: &Server, span: Duration) -> Figures {
        let responding = connect(server.address, "SUB ask 1\r\n");
        let closer = responding.try_clone().unwrap();
        let request_length = format!("MSG ask 1 answers.1 16\r\n{BODY}\r\n").len();
        let answer = format!("PUB answers.1 16\r\n{BODY}\r\n");
        let responder = thread::spawn(move || respond(responding, request_length, &answer));
        let mut stream = connect(server.address, "SUB answers.* 2\r\n");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let answer_length = format!("MSG answers.1 2 16\r\n{BODY}\r\n").len();
        let request = format!("PUB ask answers.1 16\r\n{BODY}\r\n");
        let mut buffer = vec![0; CHUNK];
        let mut pending = 0;
        let mut times = Vec::new();
        let begun = Instant::now();
        let mut counting = None;
        // Answers come in the order of the requests.
        let mut sent: VecDeque<Instant> = std::iter::repeat_n(begun, self.depth).collect();
        stream.write_all(request.repeat(self.depth).as_bytes()).unwrap();
        loop {
            pending += stream.read(&mut buffer).unwrap();
            let whole = pending / answer_length;
            pending %= answer_length;
            let now = Instant::now();
            for at in sent.drain(..whole) {
                if counting.is_some() {
                    times.push(now - at);
                }
            }
            if counting.is_none() && now - begun >= WARM_UP {
                counting = Some((now, server.cpu()));
            }
            if counting.is_some_and(|(since, _)| now - since >= span) {
                break;
            }
            if whole > 0 {
                sent.extend(std::iter::repeat_n(now, whole));
                stream.write_all(request.repeat(whole).as_bytes()).unwrap();
            }
        }
        let (since, cpu) = counting.unwrap();
        let (took, cpu, rss) = (since.elapsed(), spent(server, cpu), server.rss());
        let _ = closer.shutdown(Shutdown::Both);
        responder.join().unwrap();
        times.sort_unstable();
        let at = |part: usize| times.get(times.len() * part / 100).map(|time| time.as_secs_f64() * 1e6);
        Figures {
            per_second: Some(times.len() as f64 / took.as_secs_f64()),
            cpu: cpu.map(|seconds| seconds / (times.len() as f64 * 4.0 / 1e6)),
            rss,
            p50: at(50),
            p99: at(99),
            worst: times.last().map(|time| time.as_secs_f64() * 1e3),
            ..Figures::default()
        }
    }
}

/// Answers every whole request, in batches as they arrive.
fn respond(mut stream: TcpStream, request: usize, answer: &str) {
    let mut buffer = vec![0; CHUNK];
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

impl Idle {
    fn run(&self, server: &Server, span: Duration) -> Figures {
        let idle: Vec<TcpStream> =
            (0..self.idle).map(|at| connect(server.address, &format!("SUB idle.{at} 1\r\n"))).collect();
        if self.busy == 0 {
            thread::sleep(WARM_UP);
            return Figures { rss: server.rss(), ..Figures::default() };
        }
        let mut traffic = Traffic::default();
        Flow { subjects: self.busy / 2, subscribers: 1, size: 16 }.start(&mut traffic, server.address);
        let figures = traffic.measure(server, span);
        drop(idle);
        figures
    }
}

impl Wild {
    fn run(&self, server: &Server, span: Duration) -> Figures {
        const CONNECTIONS: usize = 10;
        let mut traffic = Traffic { fan_in: 1.0, ..Traffic::default() };
        traffic.length = format!("MSG wild.10000.x 10000 16\r\n{BODY}\r\n").len() as u64;
        for connection in 0..CONNECTIONS {
            let own = (0..self.subscriptions).filter(|at| at % CONNECTIONS == connection).map(|at| at + 10_000);
            let subscriptions: String = own.map(|at| format!("SUB wild.{at}.* {at}\r\n")).collect();
            traffic.subscriber(server.address, &subscriptions);
        }
        let frames = (0..self.subscriptions).map(|at| format!("PUB wild.{}.x 16\r\n{BODY}\r\n", at + 10_000)).collect();
        traffic.publisher(server.address, frames);
        traffic.measure(server, span)
    }
}

/// Connects, sends CONNECT and `more`, and waits until the server has seen it.
pub fn connect(address: SocketAddr, more: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(format!("{OPTIONS}{more}PING\r\n").as_bytes()).unwrap();
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    // Not only at the end: the last messages of an earlier stream may still come.
    while !seen.windows(6).any(|six| six == b"PONG\r\n") {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "closed: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..count]);
    }
    stream
}

fn spent(server: &Server, before: Option<f64>) -> Option<f64> {
    Some(server.cpu()? - before?)
}
