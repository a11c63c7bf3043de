//! Clients that do not behave: the broker cuts them off and nobody else notices.

use std::sync::Arc;
use std::time::Duration;

use orchard::broker::auth::{Authenticator, Credentials, Denied, User};
use orchard::broker::{Broker, Limits};

use super::support::{PATIENCE, Raw, plain, start};
use crate::wait::until;

const QUIET: &str = "{\"verbose\":false,\"pedantic\":false}";

#[tokio::test]
async fn a_slow_consumer_is_cut_off_and_others_are_unharmed() {
    let limits = Limits { max_pending: 1024 * 1024, ..Limits::default() };
    let broker = start(Broker::builder().limits(limits)).await;
    let mut slow = Raw::with(&broker, QUIET).await;
    slow.send(b"SUB flood 1\r\n").await;
    slow.until_pong().await;
    let mut quick = Raw::with(&broker, QUIET).await;
    quick.send(b"SUB flood 1\r\n").await;
    quick.until_pong().await;
    let mut sender = Raw::with(&broker, QUIET).await;
    let body = "x".repeat(32 * 1024);
    let frame = format!("PUB flood {}\r\n{body}\r\n", body.len());
    let line = format!("MSG flood 1 {}\r\n{body}\r\n", body.len());
    let mut sent = 0;
    while broker.stats().slow_consumers == 0 {
        sender.send(frame.as_bytes()).await;
        sent += 1;
        assert_eq!(quick.read_until(line.as_bytes()).await, "", "the quick one gets every message, number {sent}");
        assert!(sent < 4_000, "128 MiB and the one that never reads is still there");
    }
    until("the slow consumer to be gone", PATIENCE, || async {
        let stats = broker.stats();
        if stats.connections == 2 { Ok(()) } else { Err(stats) }
    })
    .await;
    sender.send(frame.as_bytes()).await;
    assert_eq!(quick.read_until(line.as_bytes()).await, "");
    assert_eq!(broker.stats().slow_consumers, 1);
    broker.shutdown().await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_within_the_write_deadline_is_cut_off() {
    let limits = Limits { write_deadline: Duration::from_millis(200), ..Limits::default() };
    let broker = start(Broker::builder().limits(limits)).await;
    let mut stuck = Raw::with(&broker, QUIET).await;
    stuck.send(b"SUB flood 1\r\n").await;
    stuck.until_pong().await;
    let mut sender = Raw::with(&broker, QUIET).await;
    let body = "x".repeat(1024 * 1024);
    let frame = format!("PUB flood {}\r\n{body}\r\n", body.len());
    for _ in 0..16 {
        sender.send(frame.as_bytes()).await; // more than socket buffers hold, less than may be pending
    }
    until("the stuck client to be gone", PATIENCE, || async {
        let stats = broker.stats();
        if stats.slow_consumers == 1 && stats.connections == 1 { Ok(()) } else { Err(stats) }
    })
    .await;
    sender.until_pong().await;
    broker.shutdown().await;
}

/// All in one thread, where whoever does not let go keeps everybody waiting.
#[tokio::test]
async fn a_flood_of_subscriptions_lets_others_in_between() {
    const FLOOD: usize = 2_000;
    let broker = plain().await;
    let mut flooder = Raw::with(&broker, QUIET).await;
    flooder.until_pong().await;
    let lines: String = (0..FLOOD).map(|sid| format!("SUB *.{sid} {sid}\r\n")).collect();
    flooder.send(lines.as_bytes()).await;
    let watch = async {
        let mut before = 0;
        while before < FLOOD {
            tokio::task::yield_now().await;
            let now = broker.stats().subscriptions;
            assert!(now - before <= 256, "{} subscriptions in one go", now - before);
            before = now;
        }
    };
    tokio::time::timeout(PATIENCE, watch).await.unwrap();
    broker.shutdown().await;
}

/// The same for those that end because the client has gone.
#[tokio::test]
async fn who_leaves_with_many_subscriptions_lets_others_in_between() {
    const COUNT: usize = 20_000;
    let broker = plain().await;
    let mut leaving = Raw::with(&broker, QUIET).await;
    let lines: String = (0..COUNT).map(|sid| format!("SUB same {sid}\r\n")).collect();
    leaving.send(lines.as_bytes()).await;
    leaving.until_pong().await;
    assert_eq!(broker.stats().subscriptions, COUNT);
    drop(leaving);
    let watch = async {
        let mut before = COUNT;
        while before > 0 {
            tokio::task::yield_now().await;
            let now = broker.stats().subscriptions;
            assert!(before - now <= 1_024, "{} subscriptions in one go", before - now);
            before = now;
        }
    };
    tokio::time::timeout(PATIENCE, watch).await.unwrap();
    broker.shutdown().await;
}

#[tokio::test]
async fn silent_connections_do_not_keep_others_out() {
    let broker = plain().await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(Raw::silent(&broker).await);
    }
    let mut busy = Raw::with(&broker, QUIET).await;
    busy.send(b"SUB a 1\r\nPUB a 1\r\nx\r\n").await;
    assert_eq!(busy.until_pong().await, "MSG a 1 1\r\nx\r\n");
    broker.shutdown().await;
}

/// Lets everybody in, but for one user whose name makes it panic.
struct Brittle;

impl Authenticator for Brittle {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<User, Denied> {
        assert_ne!(credentials.user, Some("boom"));
        Ok(User::anonymous())
    }
}

#[tokio::test]
async fn a_panic_in_one_connection_harms_no_other() {
    let broker = start(Broker::builder().authenticator(Arc::new(Brittle))).await;
    let mut well = Raw::with(&broker, QUIET).await;
    well.send(b"SUB a 1\r\n").await;
    well.until_pong().await;
    let mut ill = Raw::with(&broker, "{\"user\":\"boom\"}").await;
    ill.until_closed().await;
    well.send(b"PUB a 1\r\nx\r\n").await;
    assert_eq!(well.until_pong().await, "MSG a 1 1\r\nx\r\n");
    assert_eq!(broker.stats().connections, 1, "nothing is left of it");
    Raw::with(&broker, QUIET).await.until_pong().await;
    broker.shutdown().await;
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let broker = start(Broker::builder().limits(Limits { max_connections: 2, ..Limits::default() })).await;
    let mut first = Raw::connect(&broker).await;
    first.until_pong().await;
    let second = Raw::connect(&broker).await;
    let mut third = Raw::connect(&broker).await;
    assert_eq!(third.until_closed().await, "-ERR 'maximum connections exceeded'\r\n");
    drop(second);
    until("room for another", PATIENCE, || async {
        let stats = broker.stats();
        if stats.connections == 1 { Ok(()) } else { Err(stats) }
    })
    .await;
    Raw::connect(&broker).await.until_pong().await;
    broker.shutdown().await;
}

#[tokio::test]
async fn who_leaves_pings_unanswered_is_stale() {
    let limits = Limits { ping_interval: Duration::from_millis(50), max_pings_out: 2, ..Limits::default() };
    let broker = start(Broker::builder().limits(limits)).await;
    let mut raw = Raw::with(&broker, QUIET).await;
    let seen = raw.until_closed().await;
    assert!(seen.ends_with("PING\r\nPING\r\n-ERR 'Stale Connection'\r\n"), "{seen}");
    broker.shutdown().await;
}

#[tokio::test]
async fn a_client_that_sends_too_much_reads_why() {
    let broker = plain().await;
    let mut raw = Raw::with(&broker, QUIET).await;
    raw.send(b"PUB a 2000000\r\n").await;
    for _ in 0..20 {
        if !raw.try_send(&[b'x'; 100_000]).await {
            break;
        }
    }
    assert_eq!(raw.until_closed().await, "-ERR 'Maximum Payload Violation'\r\n");
    broker.shutdown().await;
}

#[tokio::test]
async fn shutdown_tells_clients_and_leaves_nothing_behind() {
    let broker = plain().await;
    let mut raw = Raw::with(&broker, "{\"verbose\":false,\"protocol\":1}").await;
    raw.until_pong().await;
    let address = broker.local_addr();
    broker.shutdown().await;
    let seen = raw.until_closed().await;
    assert!(seen.starts_with("INFO {") && seen.contains("\"ldm\":true"), "{seen}");
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn what_a_client_leaves_behind_is_cleared() {
    let broker = plain().await;
    let mut raw = Raw::with(&broker, QUIET).await;
    for sid in 0..50 {
        raw.send(format!("SUB a.{sid} {sid}\r\n").as_bytes()).await;
    }
    raw.until_pong().await;
    assert_eq!(broker.stats().subscriptions, 50);
    drop(raw);
    until("its subscriptions to be gone", PATIENCE, || async {
        let stats = broker.stats();
        if stats.subscriptions == 0 && stats.connections == 0 { Ok(()) } else { Err(stats) }
    })
    .await;
    broker.shutdown().await;
}
