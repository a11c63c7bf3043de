//! What sessions cost the controller's host: the relay runs in a process of its own here, whose memory is looked at from outside.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use orchard::tunnel::Transport;
use orchard::tunnel::client::Client;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::ground::{Gate, LIMIT, WITHIN, at_most, part, relay, resident_kib, worker};

/// The word that makes this program the relay.
pub const ROLE: &str = "be-the-relay";

const IDLE: usize = 5_000;
const CHURN: usize = 10_000;

/// Sessions at a time while they come and go.
const AT_ONCE: usize = 100;

/// The relay's process.
struct Relay(Child);

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves until it is killed.
pub fn be_the_relay() {
    let runtime = part();
    let relay = relay(&runtime, Arc::new(Gate::default()), Transport::default());
    println!("{} {}", relay.local_addr(), relay.fingerprint());
    std::io::stdout().flush().unwrap();
    runtime.block_on(std::future::pending())
}

pub fn run() {
    println!("sessions, the relay in a process of its own");
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut relay = Relay(command.arg(ROLE).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(relay.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let (address, fingerprint) = line.trim().split_once(' ').unwrap();
    let (address, fingerprint) = (address.parse().unwrap(), fingerprint.parse().unwrap());
    let process = relay.0.id().to_string();
    let (workers, clients) = (part(), part());
    let _worker = worker(&workers, address, fingerprint, Transport::default());
    let connect = || clients.block_on(Client::connect(address, fingerprint, Transport::default())).unwrap();
    let client = connect();
    let open = async || {
        let mut stream = client.open(&Gate::named(WITHIN), LIMIT).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.read_u8().await.unwrap();
        stream
    };
    clients.block_on(async {
        let round = async || {
            for _ in 0..CHURN / AT_ONCE {
                let mut ends = Vec::new();
                for _ in 0..AT_ONCE {
                    ends.push(open().await);
                }
                for mut end in ends {
                    end.shutdown().await.unwrap();
                    end.read_to_end(&mut Vec::new()).await.unwrap();
                }
            }
        };
        round().await;
        let before = resident_kib(&process);
        round().await;
        let grown = resident_kib(&process) - before;
        at_most(&format!("growth by {CHURN} sessions more, of {before:.0} KiB"), grown, 512.0, "KiB");
        let before = resident_kib(&process);
        let mut idle = Vec::new();
        for _ in 0..IDLE {
            idle.push(open().await);
        }
        let each = (resident_kib(&process) - before) / IDLE as f64;
        at_most(&format!("controller's memory for each of {IDLE} idle sessions"), each, 8.0, "KiB");
    });
}
