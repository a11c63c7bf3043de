//! A broker in a process of its own, so that its memory can be measured: this test binary started once more, with one test
//! chosen that is none otherwise.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use orchard::broker::{Broker, Limits};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Tells the process what it is.
const PENDING: &str = "ORCHARD_TEST_BROKER_MAX_PENDING";
/// What its one test is called.
const TEST: &str = "broker::apart::the_broker_of_other_tests";

/// Raises the limit of open files as far as it goes; yields it.
pub fn raise_open_files() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |files| files as usize)
}

/// The process; ends with this value.
pub struct Apart {
    child: Child,
    pub address: SocketAddr,
}

impl Apart {
    /// Starts a broker with default limits, but for the bytes that may be pending.
    pub fn start(max_pending: usize) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([TEST, "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env(PENDING, max_pending.to_string())
            // With a heap for each thread, glibc would keep in one what the other needs next.
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines
            .map(|line| line.unwrap())
            .find_map(|line| line.split_once("listening on ").map(|(_, address)| address.parse().unwrap()))
            .expect("the broker's process ended at once");
        Self { child, address }
    }

    /// Bytes of memory that it has now.
    pub fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches("kB").trim().parse::<usize>().unwrap() * 1024
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "only a process started by Apart runs it"]
fn the_broker_of_other_tests() {
    let Some(max_pending) = std::env::var(PENDING).ok().and_then(|text| text.parse().ok()) else { return };
    raise_open_files();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let limits = Limits { max_pending, ..Limits::default() };
    let builder = Broker::builder().limits(limits);
    let broker = runtime.block_on(builder.bind("127.0.0.1:0".parse().unwrap())).unwrap();
    println!("\nlistening on {}", broker.local_addr());
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read_to_end(&mut Vec::new()); // ends with whoever started it
}
