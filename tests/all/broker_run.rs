//! `orchard broker run` as its operator sees it: the ports file, signals, and what is refused.

use rustix::process::Signal;

use crate::stock::standalone::{PATIENCE, Standalone, command};
use crate::wait::until;

const ANN: &[&str] = &["--user", "ann", "--password", "s3cret"];

async fn connect(broker: &Standalone, user: &str, password: &str) -> Result<async_nats::Client, String> {
    let options = async_nats::ConnectOptions::with_user_and_password(user.into(), password.into());
    options.connect(broker.url()).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn the_ports_file_is_there_while_clients_can_connect() {
    let mut broker = Standalone::start(ANN).await;
    connect(&broker, "ann", "s3cret").await.unwrap();
    connect(&broker, "ann", "wrong").await.unwrap_err();
    assert!(broker.stop(Signal::TERM).await.success());
    assert!(!broker.ports_file().exists());
    broker.start_again().await;
    assert!(broker.stop(Signal::INT).await.success());
}

#[tokio::test]
async fn limits_are_those_of_the_options() {
    let broker = Standalone::start(&[
        "--no-auth",
        "--max-payload",
        "1000",
        "--max-control-line",
        "600",
        "--ping-interval",
        "50ms",
    ])
    .await;
    let client = async_nats::connect(broker.url()).await.unwrap();
    assert_eq!(client.server_info().max_payload, 1000);
    let mut raw = crate::broker::support::Raw::at(broker.address).await;
    raw.line().await;
    raw.send(b"CONNECT {}\r\n").await;
    raw.read_until(b"PING\r\n").await;
    raw.send(format!("PUB {} 0\r\n", "x".repeat(700)).as_bytes()).await;
    assert!(raw.until_closed().await.contains("maximum control line exceeded"));
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_a_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "not what is asked for").unwrap();
    let file = file.to_str().unwrap();
    let beyond = format!("{file}/ports.json");
    for (arguments, code, hint) in [
        (&[][..], 2, "--no-auth"),
        (&["--no-auth", "--listen", "0.0.0.0:0"], 2, "loopback"),
        (&["--user", "ann"], 2, "ORCHARD_BROKER_PASSWORD"),
        (&["--password", "x"], 2, "--user"),
        (&["--user", "ann", "--password", "x", "--no-auth"], 2, "cannot be used"),
        (&["--no-auth", "--max-payload", "0"], 2, "from 1"),
        (&["--no-auth", "--max-payload", "999999999999"], 2, "to 67108864"),
        (&["--no-auth", "--max-control-line", "10"], 2, "from 512"),
        (&["--no-auth", "--ping-interval", "soon"], 2, "5m30s"),
        (&["--no-auth", "--ping-interval", "0s"], 2, "30s"),
        (&["--no-auth", "--listen", "here"], 2, "127.0.0.1:4222"),
        (&["--no-auth", "--listen", "127.0.0.1:0", "--ports-file", &beyond], 1, "ports file"),
    ] {
        let ended = tokio::time::timeout(PATIENCE, command(folder.path()).args(arguments).status()).await;
        let status = ended.unwrap_or_else(|_| panic!("{arguments:?} runs")).unwrap();
        let log = folder.path().join("log");
        let said = std::fs::read_to_string(&log).unwrap();
        std::fs::remove_file(&log).unwrap();
        assert_eq!(status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(hint), "{arguments:?}: {said}");
    }
}

#[tokio::test]
async fn a_port_in_use_is_told() {
    let broker = Standalone::start(ANN).await;
    let folder = tempfile::tempdir().unwrap();
    let mut second = command(folder.path());
    second.args(["--listen", &broker.address.to_string()]).args(ANN);
    assert_eq!(second.status().await.unwrap().code(), Some(1));
    let said = std::fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(said.contains("is another program there?"), "{said}");
    until("the first to go on", PATIENCE, || connect(&broker, "ann", "s3cret")).await;
}
