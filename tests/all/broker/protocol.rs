//! Scripts: bytes in, expected transcript out, as recorded from nats-server 2.15.1.

use std::sync::Arc;
use std::time::Duration;

use orchard::broker::auth::StaticUsers;
use orchard::broker::permission::{Permissions, Rules};
use orchard::broker::{Broker, Limits};

use super::support::{Raw, plain, start};

/// Quiet options, which most scripts begin with.
const QUIET: &str = "CONNECT {\"verbose\":false}\r\n";
const MODERN: &str = "CONNECT {\"verbose\":false,\"headers\":true,\"no_responders\":true}\r\n";

fn small() -> Limits {
    Limits { max_payload: 100, max_subscriptions: 2, ..Limits::default() }
}

/// Runs `script` and compares the transcript up to the end of the connection or, if it does not close, the answer to a
/// PING behind the script.
async fn expect(broker: &Broker, script: &str, transcript: &str, closes: bool) {
    let mut raw = Raw::connect(broker).await;
    raw.send(script.as_bytes()).await;
    if closes {
        assert_eq!(raw.until_closed().await, transcript, "script {script:?}");
    } else {
        raw.send(b"PING\r\n").await;
        let transcript = format!("{transcript}PONG\r\n");
        assert_eq!(raw.exactly(transcript.len()).await, transcript, "script {script:?}");
    }
}

#[tokio::test]
async fn operations_answer_as_nats_server_does() {
    let broker = start(Broker::builder().limits(small())).await;
    for (script, transcript) in [
        ("", ""),
        ("ping\r\n", "PONG\r\n"),
        ("PING\n", "PONG\r\n"),
        ("PINGPONG\r\n", "PONG\r\n"),
        ("+OK\r\nINFO {}\r\n", ""),
        ("connect {}\r\n", "+OK\r\n"),
        ("CONNECT {\"verbose\":true}\r\nCONNECT {\"verbose\":false}\r\n", "+OK\r\n"),
        ("SUB a 1\r\nSUB b 1\r\nPUB a 0\r\n\r\nPUB b 0\r\n\r\n", "+OK\r\n+OK\r\n+OK\r\nMSG a 1 0\r\n\r\n+OK\r\n"),
        ("UNSUB 9\r\n", "+OK\r\n"),
        ("SUB a 1\r\nUNSUB 1 x\r\nPUB a 0\r\n\r\n", "+OK\r\n+OK\r\n+OK\r\n"),
        ("SUB foo..bar 1\r\nSUB foo.>.x 1\r\n", "-ERR 'Invalid Subject'\r\n-ERR 'Invalid Subject'\r\n"),
        ("SUB a 1\r\nSUB b 2\r\nSUB c 3\r\n", "+OK\r\n+OK\r\n-ERR 'maximum subscriptions exceeded'\r\n"),
    ] {
        expect(&broker, script, transcript, false).await;
    }
    for (script, transcript) in [
        ("SUB\ta\t1\r\nPUB  a   0  \r\n\r\n", "MSG a 1 0\r\n\r\n"),
        ("SUB a 1\r\nPUB a 001\r\nx\r\n", "MSG a 1 001\r\nx\r\n"),
        ("SUB a.* 1\r\nPUB a.b r 2\r\n\r\n\r\n", "MSG a.b 1 r 2\r\n\r\n\r\n"),
        ("SUB a 1\r\nUNSUB 1 2\r\nPUB a 0\r\n\r\nPUB a 0\r\n\r\nPUB a 0\r\n\r\n", "MSG a 1 0\r\n\r\nMSG a 1 0\r\n\r\n"),
        ("SUB a 1\r\nPUB a 0\r\n\r\nPUB a 0\r\n\r\nUNSUB 1 2\r\nPUB a 0\r\n\r\n", "MSG a 1 0\r\n\r\nMSG a 1 0\r\n\r\n"),
        ("SUB a 1\r\nUNSUB 1 1\r\nPUB a 0\r\n\r\nSUB b 1\r\nPUB b 0\r\n\r\n", "MSG a 1 0\r\n\r\nMSG b 1 0\r\n\r\n"),
        ("SUB a 1\r\nUNSUB 1 0\r\nPUB a 0\r\n\r\n", ""),
        (
            "SUB foo.* 1\r\nPUB foo.* 1\r\nx\r\nPUB foo. 1\r\nz\r\n",
            "-ERR 'Invalid Publish Subject'\r\nMSG foo.* 1 1\r\nx\r\n-ERR 'Invalid Publish Subject'\r\n",
        ),
    ] {
        expect(&broker, &format!("{QUIET}{script}"), transcript, false).await;
    }
    for (script, transcript) in [
        ("HPUB a 12 13\r\nNATS/1.0\r\n\r\nx\r\n", ""),
        ("SUB a 1\r\nHPUB a 12 13\r\nNATS/1.0\r\n\r\nx\r\n", "HMSG a 1 12 13\r\nNATS/1.0\r\n\r\nx\r\n"),
        ("SUB a 1\r\nHPUB a b 12 13\r\nNATS/1.0\r\n\r\nx\r\n", "HMSG a 1 b 12 13\r\nNATS/1.0\r\n\r\nx\r\n"),
        (
            "SUB r.* 7\r\nPUB nobody r.1 1\r\nx\r\n",
            "HMSG r.1 7 38 38\r\nNATS/1.0 503\r\nNats-Subject: nobody\r\n\r\n\r\n",
        ),
        ("PUB nobody r.1 1\r\nx\r\n", ""),
        ("SUB r.* q 7\r\nPUB nobody r.1 1\r\nx\r\n", ""),
        ("SUB a 1\r\nhpub a 0 1\r\nx\r\n", "MSG a 1 1\r\nx\r\n"),
    ] {
        expect(&broker, &format!("{MODERN}{script}"), transcript, false).await;
    }
    expect(&broker, "CONNECT {\"echo\":false}\r\nSUB a 1\r\nPUB a 0\r\n\r\n", "+OK\r\n+OK\r\n+OK\r\n", false).await;
    broker.shutdown().await;
}

#[tokio::test]
async fn faults_close_with_the_words_of_nats_server() {
    let broker = start(Broker::builder().limits(small())).await;
    let unknown = "-ERR 'Unknown Protocol Operation'\r\n";
    let line = "-ERR 'maximum control line exceeded'\r\n";
    let payload = "-ERR 'Maximum Payload Violation'\r\n";
    let long = format!("SUB {}", "a".repeat(5000));
    let long_connect = format!("CONNECT {{\"name\":\"{}\"}}\r\n", "a".repeat(5000));
    let modern = |op: &str| format!("{MODERN}{op}");
    for (script, transcript) in [
        ("FOO\r\n", unknown),
        ("\r\n", unknown),
        (" PING\r\n", unknown),
        ("PUB\r\n", unknown),
        ("SUB\r\n", unknown),
        ("MSG foo 1 2\r\nab\r\n", unknown),
        ("PUB foo 2\r\nabc\r\n", unknown),
        ("PUB foo 2\r\nab\nPING\r\n", unknown),
        ("PUB foo\r\n", ""),
        ("PUB foo -1\r\n", ""),
        ("PUB foo 99999999999999999999\r\n", ""),
        ("PUB a b c 1\r\n", ""),
        ("SUB foo\r\n", ""),
        ("UNSUB 1 2 3\r\n", ""),
        ("-ERR 'x'\r\n", ""),
        ("CONNECT {foo\r\n", ""),
        ("CONNECT\r\n", ""),
        ("CONNECT {\"verbose\":\"yes\"}\r\n", ""),
        ("CONNECT {\"no_responders\":true}\r\n", "-ERR 'no responders requires headers support'\r\n"),
        ("CONNECT {\"protocol\":9}\r\n", "-ERR 'invalid client protocol'\r\n"),
        ("PUB foo 101\r\n", payload),
        (&long, line),
        (&long_connect, line),
        (&modern("HPUB a 5 3\r\nabc\r\n"), ""),
        (&modern("HPUB a 12 101\r\n"), payload),
        (&modern("HPUB a b c 5 5\r\n"), ""),
        (&format!("{QUIET}HPUB a 12 13\r\nNATS/1.0\r\n\r\nx\r\n"), ""),
    ] {
        expect(&broker, script, transcript, true).await;
    }
    broker.shutdown().await;
}

#[tokio::test]
async fn info_says_what_stock_clients_look_for() {
    let broker = start(Broker::builder().server_name("n1")).await;
    let mut raw = Raw::silent(&broker).await;
    let line = raw.line().await;
    let info: serde_json::Value = serde_json::from_str(line.strip_prefix("INFO ").unwrap()).unwrap();
    assert_eq!(info["server_name"], "n1");
    assert_eq!(info["proto"], 1);
    assert_eq!(info["headers"], true);
    assert_eq!(info["max_payload"], 1024 * 1024);
    assert_eq!(info["client_ip"], "127.0.0.1");
    assert_eq!(info["port"], broker.local_addr().port());
    let version: Vec<u32> = info["version"].as_str().unwrap().split('.').map(|part| part.parse().unwrap()).collect();
    assert_eq!(version[..2], [2, 10]);
    for absent in ["auth_required", "tls_required", "jetstream", "nonce", "ldm"] {
        assert!(info.get(absent).is_none(), "{absent} is announced only when true");
    }
}

fn users() -> Arc<StaticUsers> {
    let permissions = Permissions {
        publish: Rules::allow(["foo.>", "s.>", "_INBOX.>"]).deny(["foo.no"]),
        subscribe: Rules::allow(["s.>", "foo.>", "q.* qq"]).deny(["s.no", "foo.x.>"]),
        ..Permissions::default()
    };
    Arc::new(StaticUsers::default().with("a", "b", permissions).with("z", "z", Permissions::default()))
}

const A: &str = "CONNECT {\"verbose\":false,\"user\":\"a\",\"pass\":\"b\",\"headers\":true,\"no_responders\":true}\r\n";

#[tokio::test]
async fn credentials_are_asked_for_first() {
    let broker = start(Broker::builder().authenticator(users())).await;
    for script in ["PING\r\n", "SUB a 1\r\n", "CONNECT {\"user\":\"a\",\"pass\":\"x\"}\r\n", "CONNECT {}\r\n"] {
        expect(&broker, script, "-ERR 'Authorization Violation'\r\n", true).await;
    }
    expect(&broker, A, "", false).await;
    broker.shutdown().await;
    // A broker of its own for those who say nothing, or half of it: all others have the usual time for what they say.
    let limits = Limits { auth_timeout: Duration::from_secs(1), ..Limits::default() };
    let broker = start(Broker::builder().authenticator(users()).limits(limits)).await;
    for script in ["", "CONN"] {
        expect(&broker, script, "-ERR 'Authentication Timeout'\r\n", true).await;
    }
    broker.shutdown().await;
}

#[tokio::test]
async fn permissions_are_enforced_with_the_words_of_nats_server() {
    let broker = start(Broker::builder().authenticator(users())).await;
    for (script, transcript) in [
        ("PUB bar 0\r\n\r\n", "-ERR 'Permissions Violation for Publish to \"bar\"'\r\n"),
        ("PUB foo.no 0\r\n\r\n", "-ERR 'Permissions Violation for Publish to \"foo.no\"'\r\n"),
        ("SUB > 4\r\n", "-ERR 'Permissions Violation for Subscription to \">\"'\r\n"),
        ("SUB bar q 2\r\n", "-ERR 'Permissions Violation for Subscription to \"bar\" using queue \"q\"'\r\n"),
        ("SUB q.a 2\r\n", "-ERR 'Permissions Violation for Subscription to \"q.a\"'\r\n"),
        ("SUB q.a qq 2\r\n", ""),
        ("SUB foo.* 6\r\nPUB foo.a 0\r\n\r\n", "MSG foo.a 6 0\r\n\r\n"),
    ] {
        expect(&broker, &format!("{A}{script}"), transcript, false).await;
    }
    let mut filtered = Raw::connect(&broker).await;
    filtered.send(format!("{A}SUB s.> 1\r\n").as_bytes()).await;
    filtered.until_pong().await;
    let mut free = Raw::with(&broker, "{\"verbose\":false,\"user\":\"z\",\"pass\":\"z\"}").await;
    free.send(b"PUB s.no 0\r\n\r\nPUB s.yes 0\r\n\r\n").await;
    free.until_pong().await;
    assert_eq!(filtered.until_pong().await, "MSG s.yes 1 0\r\n\r\n", "what is denied inside a wildcard is held back");
    free.send(b"SUB i 1\r\nPUB $SYS.REQ.USER.INFO i 0\r\n\r\n").await;
    let answer = free.until_pong().await;
    assert!(answer.starts_with("MSG i 1 ") && answer.contains("\"user\":\"z\""), "{answer}");
    broker.shutdown().await;
}

#[tokio::test]
async fn any_split_of_the_bytes_gives_the_same_transcript() {
    let broker = plain().await;
    let script = format!("{QUIET}SUB a.> 1\r\nPUB a.b r 11\r\nhello\r\nPING\r\nsub b q 2\r\nPUB b 1\r\n\n\r\n");
    let expected = "MSG a.b 1 r 11\r\nhello\r\nPING\r\nMSG b 2 1\r\n\n\r\n";
    for size in [1, 2, 3, 7] {
        let mut raw = Raw::connect(&broker).await;
        for piece in script.as_bytes().chunks(size) {
            raw.send(piece).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(raw.until_pong().await, expected, "in pieces of {size}");
    }
    broker.shutdown().await;
}

#[tokio::test]
async fn receivers_without_headers_get_the_body_alone() {
    let broker = plain().await;
    let mut old = Raw::with(&broker, "{\"verbose\":false}").await;
    old.send(b"SUB a 1\r\n").await;
    old.until_pong().await;
    let mut new = Raw::with(&broker, "{\"verbose\":false,\"headers\":true}").await;
    new.send(b"HPUB a 12 13\r\nNATS/1.0\r\n\r\nx\r\n").await;
    new.until_pong().await;
    assert_eq!(old.until_pong().await, "MSG a 1 1\r\nx\r\n");
    broker.shutdown().await;
}

#[tokio::test]
async fn durations_that_no_clock_can_count_are_only_very_long() {
    let long = Duration::MAX;
    let limits = Limits { write_deadline: long, ping_interval: long, auth_timeout: long, ..Limits::default() };
    let broker = start(Broker::builder().limits(limits)).await;
    let mut slow = Raw::with(&broker, "{\"verbose\":false}").await;
    slow.send(b"SUB a 1\r\n").await;
    slow.until_pong().await;
    let mut raw = Raw::with(&broker, "{\"verbose\":false}").await;
    let message = format!("PUB a 500000\r\n{}\r\n", "x".repeat(500_000));
    for _ in 0..40 {
        raw.send(message.as_bytes()).await; // more than sockets take: the write deadline begins
    }
    raw.until_pong().await;
    let leaving = async { tokio::time::timeout(Duration::from_millis(100), broker.lame_duck(long)).await };
    assert!(leaving.await.is_err());
    slow.exactly(40 * 500_000).await;
    raw.until_pong().await;
}

#[tokio::test]
async fn the_largest_message_that_is_allowed_arrives() {
    let limits = Limits { max_payload: usize::MAX, max_pending: 1024 * 1024, ..Limits::default() };
    let most = limits.most_payload();
    let broker = start(Broker::builder().limits(limits)).await;
    let mut receiver = Raw::silent(&broker).await;
    let info = receiver.line().await;
    assert!(info.contains(&format!("\"max_payload\":{most},")), "{info}");
    let (subject, sid, reply) = ("s".repeat(2_000), "i".repeat(2_000), "r".repeat(2_000));
    receiver.send(format!("{QUIET}SUB {subject} {sid}\r\n").as_bytes()).await;
    receiver.until_pong().await;
    let mut sender = Raw::with(&broker, "{\"verbose\":false}").await;
    let small = "x".repeat(60_000);
    let body = "y".repeat(most);
    let frames = format!("PUB {subject} 60000\r\n{small}\r\nPUB {subject} {reply} {most}\r\n{body}\r\n");
    sender.send(frames.as_bytes()).await;
    receiver.read_until(format!("MSG {subject} {sid} 60000\r\n{small}\r\n").as_bytes()).await;
    let line = format!("MSG {subject} {sid} {reply} {most}\r\n");
    receiver.read_until(line.as_bytes()).await;
    assert!(receiver.exactly(most + 2).await.starts_with("yyyy"));
    assert_eq!(receiver.until_pong().await, "");
    sender.send(format!("PUB {subject} {}\r\n", most + 1).as_bytes()).await;
    assert!(sender.until_closed().await.contains("Maximum Payload"));
}

#[tokio::test]
async fn limits_that_allow_no_message_are_refused() {
    let limits = Limits { max_pending: 10_000, ..Limits::default() };
    let bound = Broker::builder().limits(limits).bind("127.0.0.1:0".parse().unwrap()).await;
    assert!(bound.unwrap_err().to_string().contains("max_pending"));
}
