//! What hostile or merely many peers may cost: the broker's memory, measured in a process of its own, stays under a bound
//! that each test states, and others are served all the while.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::apart::{Apart, raise_open_files};
use super::support::{PATIENCE, Raw};
use crate::wait::until;

const QUIET: &str = "{\"verbose\":false,\"pedantic\":false}";
const MIB: usize = 1024 * 1024;
/// What the rest of the process may grow by during a test: allocator, threads, caches.
const SLACK: usize = 16 * MIB;
/// Files that this process needs besides connections.
const OTHER_FILES: usize = 500;

/// What a bystander hears of its own message.
const SERVED: &str = "MSG bystander 1 2\r\n";

/// One who only wants to be served.
struct Bystander(Raw);

impl Bystander {
    async fn arrive(broker: &Apart) -> Self {
        let mut raw = Raw::at(broker.address).await;
        raw.send(format!("CONNECT {QUIET}\r\nSUB bystander 1\r\n").as_bytes()).await;
        raw.until_pong().await;
        Self(raw)
    }

    /// Sends itself a message; [`PATIENCE`] bounds the wait for it.
    async fn is_served(&mut self) {
        self.0.send(b"PUB bystander 2\r\nok\r\n").await;
        // On a busy machine a test may take so long that the broker asks whether it is still there.
        assert_eq!(self.0.read_until(b"ok\r\n").await.trim_start_matches("PING\r\n"), SERVED);
    }
}

#[tokio::test]
async fn ten_thousand_idle_connections_cost_less_than_six_kilobytes_each() {
    let wanted = 10_000.min(raise_open_files().saturating_sub(OTHER_FILES));
    if wanted < 10_000 {
        eprintln!("ONLY {wanted} idle connections: the hard limit of open files (ulimit -Hn) allows no more");
    }
    let broker = Apart::start(64 * MIB);
    let mut bystander = Bystander::arrive(&broker).await;
    let before = broker.memory();
    let mut idle = Vec::with_capacity(wanted);
    for number in 0..wanted {
        let mut raw = Raw::at(broker.address).await;
        if number % 2 == 0 {
            raw.send(format!("CONNECT {QUIET}\r\nPING\r\n").as_bytes()).await;
            assert_eq!(raw.line().await, "PONG");
        }
        idle.push(raw);
        if number % 1_000 == 0 {
            bystander.is_served().await;
        }
    }
    let cost = broker.memory().saturating_sub(before);
    assert!(cost < wanted * 6 * 1024 + SLACK, "{wanted} idle connections cost {} KiB", cost / 1024);
    bystander.is_served().await;
    let last = idle.last_mut().unwrap();
    last.until_pong().await;
}

#[tokio::test]
async fn bodies_announced_but_not_sent_cost_nothing() {
    let broker = Apart::start(64 * MIB);
    let mut bystander = Bystander::arrive(&broker).await;
    let before = broker.memory();
    let mut slow = Vec::new();
    for _ in 0..500 {
        let mut raw = Raw::at(broker.address).await;
        raw.send(format!("CONNECT {QUIET}\r\nPING\r\n").as_bytes()).await;
        assert_eq!(raw.line().await, "PONG");
        raw.send(b"PUB slow 1048576\r\n").await;
        slow.push(raw);
    }
    // A byte at a time, as a slow loris does.
    for _ in 0..20 {
        for raw in &mut slow {
            raw.send(b"x").await;
        }
        bystander.is_served().await;
    }
    let cost = broker.memory().saturating_sub(before);
    assert!(cost < SLACK, "500 MiB announced cost {} KiB", cost / 1024);
}

#[tokio::test]
async fn half_a_line_a_byte_at_a_time_costs_nothing() {
    let broker = Apart::start(64 * MIB);
    let mut bystander = Bystander::arrive(&broker).await;
    let before = broker.memory();
    let mut slow = Vec::new();
    for _ in 0..500 {
        slow.push(Raw::at(broker.address).await);
    }
    for byte in b"CONNECT {\"verbose\":fal" {
        for raw in &mut slow {
            raw.send(&[*byte]).await;
        }
        bystander.is_served().await;
    }
    let cost = broker.memory().saturating_sub(before);
    assert!(cost < SLACK, "500 half lines cost {} KiB", cost / 1024);
}

#[tokio::test]
async fn lines_and_bodies_above_the_limit_end_their_connection_and_leave_nothing() {
    let broker = Apart::start(64 * MIB);
    let mut bystander = Bystander::arrive(&broker).await;
    let before = broker.memory();
    let endless = vec![b'a'; MIB];
    for number in 0..100 {
        let mut raw = Raw::at(broker.address).await;
        let (start, fault): (&[u8], _) = match number % 3 {
            0 => (b"SUB ", "-ERR 'maximum control line exceeded'\r\n"),
            1 => (b"CONNECT {\"name\":\"", "-ERR 'maximum control line exceeded'\r\n"),
            _ => (b"PUB a 999999999\r\n", "-ERR 'Maximum Payload Violation'\r\n"),
        };
        raw.send(start).await;
        raw.try_send(&endless).await;
        assert_eq!(raw.until_closed().await, fault);
        bystander.is_served().await;
    }
    let cost = broker.memory().saturating_sub(before);
    assert!(cost < SLACK, "100 times a mebibyte too much cost {} KiB", cost / 1024);
}

#[tokio::test]
async fn a_flood_of_subscriptions_is_bounded_and_paid_back() {
    let broker = Apart::start(64 * MIB);
    let mut bystander = Bystander::arrive(&broker).await;
    let before = broker.memory();
    let mut flood = Raw::at(broker.address).await;
    flood.send(format!("CONNECT {QUIET}\r\n").as_bytes()).await;
    for batch in 0..110 {
        let lines: String = (0..1_000).map(|n| format!("SUB flood.{batch}.{n}.> {batch}-{n}\r\n")).collect();
        flood.send(lines.as_bytes()).await;
        let refused = flood.until_pong().await;
        let expected = if batch < 100 { 0 } else { 1_000 };
        assert_eq!(refused.matches("-ERR 'maximum subscriptions exceeded'").count(), expected, "batch {batch}");
        bystander.is_served().await;
    }
    let cost = broker.memory().saturating_sub(before);
    assert!(cost < 100_000 * 1024, "100,000 subscriptions cost {} KiB", cost / 1024);
    drop(flood);
    let mut again = Raw::at(broker.address).await;
    again.send(format!("CONNECT {QUIET}\r\nSUB flood.1.1.> 1\r\nPUB flood.1.1.x 0\r\n\r\n").as_bytes()).await;
    again.until_pong().await;
    bystander.is_served().await;
}

/// Each takes the tree a node for each of its tokens.
#[tokio::test]
async fn deep_subjects_are_bounded_and_paid_back() {
    const BOUND: usize = 100_000 * 2 * 1024;
    let broker = Apart::start(64 * MIB);
    let mut bystander = Bystander::arrive(&broker).await;
    let mut asker = Raw::at(broker.address).await;
    asker.send(b"CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\nSUB answers 1\r\n").await;
    asker.until_pong().await;
    let before = broker.memory();
    let rest = ".x".repeat(1_900);
    for round in 0..3 {
        let mut flood = Raw::at(broker.address).await;
        flood.send(format!("CONNECT {QUIET}\r\n").as_bytes()).await;
        let mut refused = 0;
        for batch in 0..10 {
            let lines: String = (0..100).map(|n| format!("SUB {round}-{batch}-{n}{rest} {batch}-{n}\r\n")).collect();
            flood.send(lines.as_bytes()).await;
            refused += flood.until_pong().await.matches("-ERR 'maximum subscriptions exceeded'").count();
            bystander.is_served().await;
        }
        assert!(refused > 100, "{} subjects of 1,901 tokens for one client", 1_000 - refused);
        let cost = broker.memory().saturating_sub(before);
        assert!(cost < BOUND + SLACK, "in round {round} deep subjects cost {} KiB", cost / 1024);
        drop(flood);
        bystander.is_served().await;
        // Before the next one comes this one's are gone, however busy the machine is: nobody would get a message.
        let subjects = (0..20).map(|n| format!("{round}-{}-{}{rest}", n / 2, n));
        let all: String = subjects.map(|subject| format!("PUB {subject} answers 0\r\n\r\n")).collect();
        let mut left = 20;
        while left > 0 {
            asker.send(all.as_bytes()).await;
            left = 20 - asker.until_pong().await.matches("NATS/1.0 503").count();
        }
    }
}

/// A publisher that has said one thing to everybody, and is silent from then on.
#[tokio::test]
async fn publishers_to_many_keep_nothing_for_each() {
    const LISTENERS: usize = 500;
    const PUBLISHERS: usize = 20;
    let broker = Apart::start(64 * MIB);
    let mut bystander = Bystander::arrive(&broker).await;
    let mut listeners = Vec::new();
    for _ in 0..LISTENERS {
        let mut raw = Raw::at(broker.address).await;
        raw.send(format!("CONNECT {QUIET}\r\nSUB wide 1\r\n").as_bytes()).await;
        raw.until_pong().await;
        listeners.push(raw);
    }
    let before = broker.memory();
    let frame = format!("CONNECT {QUIET}\r\nPUB wide 3900\r\n{}\r\n", "x".repeat(3_900));
    let mut publishers = Vec::new();
    for _ in 0..PUBLISHERS {
        let mut raw = Raw::at(broker.address).await;
        raw.send(frame.as_bytes()).await;
        raw.until_pong().await;
        publishers.push(raw);
    }
    let cost = broker.memory().saturating_sub(before);
    assert!(cost < SLACK, "{PUBLISHERS} silent publishers with {LISTENERS} listeners cost {} KiB", cost / 1024);
    bystander.is_served().await;
}

#[tokio::test]
async fn subscribers_that_never_read_cost_no_more_than_what_may_be_pending() {
    const PENDING: usize = 2 * MIB;
    const DEAF: usize = 10;
    let broker = Apart::start(PENDING);
    let mut bystander = Bystander::arrive(&broker).await;
    let before = broker.memory();
    let mut deaf = Vec::new();
    for _ in 0..DEAF {
        let mut raw = Raw::at(broker.address).await;
        raw.send(format!("CONNECT {QUIET}\r\nSUB loud 1\r\n").as_bytes()).await;
        raw.until_pong().await;
        deaf.push(raw);
    }
    let mut loud = Raw::at(broker.address).await;
    loud.send(format!("CONNECT {QUIET}\r\n").as_bytes()).await;
    let mut frames = Vec::new();
    for _ in 0..256 {
        frames.extend_from_slice(b"PUB loud 4096\r\n");
        frames.extend_from_slice(&[b'x'; 4096]);
        frames.extend_from_slice(b"\r\n");
    }
    let mut most = 0;
    for _ in 0..64 {
        loud.send(&frames).await;
        loud.until_pong().await;
        bystander.is_served().await;
        most = most.max(broker.memory().saturating_sub(before));
    }
    assert!(most < DEAF * PENDING + SLACK, "{DEAF} that never read cost {} KiB", most / 1024);
    for raw in &mut deaf {
        raw.skip_until_closed().await;
    }
}

#[tokio::test]
async fn a_part_of_what_was_read_does_not_keep_the_rest() {
    const PENDING: usize = 32 * MIB;
    const UNITS: usize = 1_000;
    let broker = Apart::start(PENDING);
    let mut deaf = Raw::at(broker.address).await;
    deaf.send(format!("CONNECT {QUIET}\r\nSUB slow 1\r\n").as_bytes()).await;
    deaf.until_pong().await;
    let mut publisher = Raw::at(broker.address).await;
    // Its messages go to many, so that it is read in large pieces.
    let mut wide = Vec::new();
    for _ in 0..10 {
        let mut raw = Raw::at(broker.address).await;
        raw.send(format!("CONNECT {QUIET}\r\nSUB wide 1\r\n").as_bytes()).await;
        raw.until_pong().await;
        wide.push(raw);
    }
    publisher.send(format!("CONNECT {QUIET}\r\n").as_bytes()).await;
    publisher.until_pong().await;
    let before = broker.memory();
    let mut unit = format!("PUB slow 16384\r\n{}\r\nPUB wide 1\r\nx\r\n", "y".repeat(16_384)).into_bytes();
    unit.extend(format!("PUB nobody 4000\r\n{}\r\n", "x".repeat(4_000)).repeat(57).into_bytes());
    for _ in 0..UNITS {
        publisher.send(&unit).await;
    }
    publisher.until_pong().await;
    for raw in &mut wide {
        assert_eq!(raw.until_pong().await.matches("MSG").count(), UNITS);
    }
    let cost = broker.memory().saturating_sub(before);
    assert!(cost < UNITS * 16_384 * 3 / 2 + SLACK, "16 MiB pending cost {} KiB", cost / 1024);
    deaf.exactly(UNITS * ("MSG slow 1 16384\r\n\r\n".len() + 16_384)).await; // it was not cut off
}

#[tokio::test]
async fn clients_that_stop_sending_are_let_go_although_they_do_not_close() {
    let broker = super::support::plain().await;
    let mut half_open = Vec::new();
    for number in 0..300 {
        let mut stream = TcpStream::connect(broker.local_addr()).await.unwrap();
        if number % 2 == 0 {
            stream.write_all(b"SUB half 1\r\nPUB half 100\r\nab").await.unwrap();
        }
        stream.shutdown().await.unwrap(); // says no more, but neither reads nor closes
        half_open.push(stream);
    }
    until("the half-open to be gone", PATIENCE, || async {
        let stats = broker.stats();
        let all = stats.total_connections == 300 && stats.connections == 0 && stats.subscriptions == 0;
        if all { Ok(()) } else { Err(stats) }
    })
    .await;
    drop(half_open);
    broker.shutdown().await;
}
