//! The servers under load: processes of their own, with what they cost. And pinning to one CPU.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use orchard::broker::Broker;

/// Linux counts CPU time in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;

/// The broker in a process of its own, until its standard input closes.
pub fn serve() {
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

/// A server that listens; ended when dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
}

impl Server {
    pub fn ours() -> Self {
        Self::of_this_program("--serve")
    }

    /// A process that copies what its second client sends to its first, see [`relay`].
    pub fn bare_relay() -> Self {
        Self::of_this_program("--relay")
    }

    fn of_this_program(mode: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg(mode)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { child, address: line.trim().parse().unwrap() }
    }

    pub fn theirs(program: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new(program)
            .args(["-a", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(started.elapsed() < Duration::from_secs(10), "{program} does not listen");
            thread::sleep(Duration::from_millis(20));
        }
        Self { child, address }
    }

    #[allow(clippy::ptr_arg)] // as `filter` passes it
    pub fn exists(program: &String) -> bool {
        Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok()
    }

    /// As `nats-server --version` prints it, without its name.
    pub fn version(program: &str) -> String {
        let output = Command::new(program).arg("--version").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        text.split_whitespace().last().unwrap_or("of an unknown version").to_owned()
    }

    /// CPU seconds used so far; `None` where there is no /proc.
    pub fn cpu(&self) -> Option<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
        Some((ticks(11)? + ticks(12)?) / TICKS_PER_SECOND)
    }

    /// Resident memory in MiB; `None` where there is no /proc.
    pub fn rss(&self) -> Option<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
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

/// Bytes from the second client to the first, unseen: blocking calls, the broker's buffer size, no tasks. Each client is
/// greeted with the PONG that it waits for.
pub fn relay() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap());
    let greeted = || {
        let mut stream = listener.accept().unwrap().0;
        stream.set_nodelay(true).unwrap();
        let mut line = String::new();
        // A byte at a time, so that nothing behind the PING is taken.
        let mut byte = [0];
        while !line.ends_with("PING\r\n") {
            stream.read_exact(&mut byte).unwrap();
            line.push(char::from(byte[0]));
        }
        stream.write_all(b"PONG\r\n").unwrap();
        stream
    };
    let (mut subscriber, mut publisher) = (greeted(), greeted());
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = publisher.read(&mut buffer) {
        if subscriber.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

/// While it lives, this thread and whatever it starts (threads, servers) run on the first CPU only.
pub struct OneCpu {
    before: String,
}

impl OneCpu {
    /// `None` where there is no `taskset`.
    pub fn pin() -> Option<Self> {
        let own = std::process::id().to_string();
        let output = Command::new("taskset").args(["-p", &own]).output().ok()?;
        let before = String::from_utf8_lossy(&output.stdout).rsplit(' ').next()?.trim().to_owned();
        taskset(&["-p", "1", &own]).then_some(Self { before })
    }
}

impl Drop for OneCpu {
    fn drop(&mut self) {
        taskset(&["-p", &self.before, &std::process::id().to_string()]);
    }
}

fn taskset(args: &[&str]) -> bool {
    Command::new("taskset").args(args).stdout(Stdio::null()).status().is_ok_and(|status| status.success())
}
