//! What the themes of this bench share: percentiles, targets, the controller as a process of its own.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use orchard::bus::client::{Bus, BusOptions, Login, Trust};
use orchard::config::Home;
use orchard::config::file::ContextFile;
use orchard::model::AccountName;
use orchard::model::vm::VmSpec;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// A call that takes longer is broken.
pub const CALL: Duration = Duration::from_secs(60);

/// The value below which so many thousandths of `times` lie.
pub fn at(times: &[Duration], thousandth: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[(sorted.len() * thousandth / 1_000).min(sorted.len() - 1)]
}

/// Prints what was measured beside what it should be at most.
pub fn at_most(what: &str, measured: f64, most: f64, unit: &str) {
    let verdict = if measured <= most { "met".into() } else { format!("missed by {:.3} {unit}", measured - most) };
    println!("  {what:<64} {measured:>9.3} {unit:<4} target <= {most:.3}: {verdict}");
}

/// The same for what it should be at least.
pub fn at_least(what: &str, measured: f64, least: f64, unit: &str) {
    let verdict = if measured >= least { "met".into() } else { format!("missed by {:.3} {unit}", least - measured) };
    println!("  {what:<64} {measured:>9.3} {unit:<4} target >= {least:.3}: {verdict}");
}

pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}

/// How busy the machine was besides, for whoever reads the numbers.
pub fn load_average() -> String {
    std::fs::read_to_string("/proc/loadavg").map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

/// What every VM of this bench is asked to be.
pub fn spec() -> VmSpec {
    VmSpec { image: "ghcr.io/example/linux:latest".into(), cpu: 1, memory: 1_024, ..VmSpec::default() }
}

/// `orchard controller run` in a process of its own.
pub struct Server {
    child: Child,
    home: PathBuf,
    /// When it was started.
    pub began: Instant,
}

/// Where it keeps its state and where it listens.
pub struct Place {
    pub home: PathBuf,
    pub data: PathBuf,
    pub bus: String,
    pub tunnels: String,
}

impl Place {
    pub fn new(dir: &Path) -> Self {
        // Free now; nothing else takes them within the moment until the controller does.
        let bus = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let tunnels = std::net::UdpSocket::bind((of_a_network(), 0)).unwrap().local_addr().unwrap().to_string();
        Self { home: dir.join("home"), data: dir.join("controller"), bus, tunnels }
    }

    /// Whether workers come over loopback, with its large packets.
    pub fn is_loopback(&self) -> bool {
        self.tunnels.starts_with("127.")
    }

    pub fn start(&self) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orchard"));
        command.env("ORCHARD_HOME", &self.home).env("RUST_LOG", "error").args(["controller", "run"]);
        command.args(["--bus-listen", &self.bus, "--listen", &self.tunnels, "--data-dir"]).arg(&self.data);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let began = Instant::now();
        Server { child: command.spawn().unwrap(), home: self.home.clone(), began }
    }
}

/// This machine's address in the network that it has, as thousands of workers are not on the controller's own machine: over
/// loopback each connection would keep a buffer of 21,000 bytes for the one packet by which quinn found out that it passes.
fn of_a_network() -> IpAddr {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    // Sends nothing: the system only looks up the way there.
    let found = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr());
    found.map_or(Ipv4Addr::LOCALHOST.into(), |address| address.ip())
}

impl Server {
    /// Returns once it says that it is ready.
    pub async fn ready(&mut self) -> Duration {
        let mut lines = BufReader::new(self.child.stdout.take().unwrap()).lines();
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains(" is ready") {
                break;
            }
        }
        let took = self.began.elapsed();
        // It says some more, and must not find the pipe closed.
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.trim_start().starts_with("orchard get") {
                break;
            }
        }
        took
    }

    /// How its first account logs in.
    pub fn login(&self) -> (AccountName, BusOptions) {
        let contexts = ContextFile::new(Home::at(&self.home)).load().unwrap();
        let context = contexts.get("bootstrap-context").unwrap().clone();
        let account = context.account.unwrap();
        let options = BusOptions {
            trust: Trust::of(&context.url, context.fingerprint),
            url: context.url,
            user: account.to_string(),
            login: Login::Password(context.token.unwrap()),
            client_name: "bench".into(),
            patient: false,
        };
        (account, options)
    }

    pub async fn bus(&self) -> (AccountName, Bus) {
        let (account, options) = self.login();
        (account, Bus::connect(options).await.unwrap())
    }

    pub async fn kill(mut self) {
        self.child.start_kill().unwrap();
        self.child.wait().await.unwrap();
    }

    /// CPU time used so far.
    pub fn cpu(&self) -> Duration {
        cpu_of(self.child.id().unwrap())
    }

    /// Memory in MiB: now, and at its highest.
    pub fn memory(&self) -> (f64, f64) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let value = |key: &str| -> f64 {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1_024.0
        };
        (value("VmRSS:"), value("VmHWM:"))
    }
}

/// CPU time that a process has used so far.
pub fn cpu_of(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10) // a hundred ticks a second, on every Linux there is
}
