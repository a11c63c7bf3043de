//! `orchard broker run` as its operator sees it: the ports file, signals, and what is refused.

use rustix::process::Signal;

use crate::broker::support::Raw;
use crate::stock::certificates::Certificates;
use crate::stock::scripts::ANN;
use crate::stock::standalone::{PATIENCE, Standalone, command};
use crate::wait::until;

async fn raw(broker: &Standalone) -> Raw {
    Raw::over(tokio::net::TcpStream::connect(broker.address).await.unwrap())
}

/// Waits until the broker has said `what`.
async fn told(broker: &Standalone, what: &str) {
    until(what, PATIENCE, || async {
        match broker.log() {
            log if log.contains(what) => Ok(()),
            log => Err(log),
        }
    })
    .await;
}

async fn connect(broker: &Standalone, user: &str, password: &str) -> Result<async_nats::Client, String> {
    let options = async_nats::ConnectOptions::with_user_and_password(user.into(), password.into());
    options.connect(broker.url()).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn the_ports_file_is_there_while_clients_can_connect() {
    let mut broker = Standalone::start(&ANN).await;
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
        "2s",
    ])
    .await;
    let client = async_nats::connect(broker.url()).await.unwrap();
    assert_eq!(client.server_info().max_payload, 1000);
    let mut raw = raw(&broker).await;
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
        (&["--listen", "0.0.0.0:0"][..], 2, "nobody could connect"),
        (&["--listen", "[::]:0"], 2, "--no-auth"),
        (&["--listen", "192.0.2.1:0", "--max-payload", "10"], 2, "--user"),
        (&["--no-auth", "--listen", "0.0.0.0:0"], 2, "loopback"),
        (&["--user", "ann"], 2, "ORCHARD_BROKER_PASSWORD"),
        (&["--password", "x"], 2, "--user"),
        (&["--user", "ann", "--password", "x", "--no-auth"], 2, "cannot be used"),
        (&["--auth-token", "t", "--nkey", "U"], 2, "cannot be used"),
        (&["--no-auth", "--password", "b"], 2, "--password"),
        (&["--auth-token", "t", "--password", "s"], 2, "--password"),
        (&["--nkey", "U", "--password", "s"], 2, "--password"),
        (&["--users-file", file, "--password", "s"], 2, "--password"),
        (&["--auth-token", ""], 2, "empty"),
        (&["--nkey", "Ux"], 2, "public half"),
        (&["--nkey", "SUAAAA"], 2, "seed"),
        (&["--users-file", "/no/such/users"], 1, "/no/such/users"),
        (&["--users-file", file], 1, "users file"),
        (&["--no-auth", "--tls-cert", file], 2, "--tls-key"),
        (&["--no-auth", "--tls-key", file], 2, "--tls-cert"),
        (&["--no-auth", "--tls-ca", file], 2, "--tls-cert"),
        (&["--no-auth", "--tls-first", "always"], 2, "--tls-cert"),
        (&["--no-auth", "--tls-first", "never"], 2, "auto"),
        (&["--no-auth", "--tls-cert", file, "--tls-key", file], 1, "cannot encrypt"),
        (&["--no-auth", "--max-payload", "0"], 2, "from 1"),
        (&["--no-auth", "--max-payload", "999999999999"], 2, "to 67108864"),
        (&["--no-auth", "--max-payload", "67108864"], 2, "67033088 at most"),
        (&["--no-auth", "--max-payload", "66000000", "--max-control-line", "1048576"], 2, "at most"),
        (&["--no-auth", "--max-control-line", "10"], 2, "from 512"),
        (&["--no-auth", "--ping-interval", "soon"], 2, "5m30s"),
        (&["--no-auth", "--ping-interval", "0s"], 2, "30s"),
        (&["--no-auth", "--ping-interval", "25h"], 2, "a day"),
        (&["--no-auth", "--ping-interval", "2562047788015215h"], 2, "a day"),
        (&["--user", "a", "--password", "x", "--listen", "192.0.2.1:0"], 1, "no such address"),
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
    let broker = Standalone::start(&ANN).await;
    let folder = tempfile::tempdir().unwrap();
    let mut second = command(folder.path());
    second.args(["--listen", &broker.address.to_string(), "--ports-file"]).arg(broker.ports_file()).args(ANN);
    assert_eq!(second.status().await.unwrap().code(), Some(1));
    let said = std::fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(said.contains("is another program there?"), "{said}");
    assert!(broker.ports_file().exists(), "it tells of the first");
    until("the first to go on", PATIENCE, || connect(&broker, "ann", "s3cret")).await;
}

#[tokio::test]
async fn a_hangup_reads_the_users_again_for_those_who_are_here_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users.json");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write(r#"{"users":[{"user":"ann","password":"1"},{"user":"bob","password":"2"}]}"#);
    let broker = Standalone::start(&["--users-file", file.to_str().unwrap()]).await;
    let mut ann = raw(&broker).await;
    ann.line().await;
    ann.send(b"CONNECT {\"verbose\":false,\"user\":\"ann\",\"pass\":\"1\"}\r\n").await;
    ann.until_pong().await;
    let bob = connect(&broker, "bob", "2").await.unwrap();
    write("no longer JSON");
    broker.signal(Signal::HUP);
    told(&broker, "not reloaded").await;
    connect(&broker, "ann", "1").await.unwrap();
    write(r#"{"users":[{"user":"bob","password":"2"},{"user":"eve","password":"3"}]}"#);
    broker.signal(Signal::HUP);
    told(&broker, "reloaded: ").await;
    connect(&broker, "eve", "3").await.unwrap();
    connect(&broker, "ann", "1").await.unwrap_err();
    assert!(ann.until_closed().await.contains("-ERR"), "ann may no longer be here");
    bob.flush().await.unwrap();
    assert_eq!(bob.statistics().connects.load(std::sync::atomic::Ordering::Relaxed), 1, "bob stayed");
}

#[tokio::test]
async fn a_hangup_brings_the_new_certificate_to_new_clients() {
    let certificates = Certificates::new();
    let broker = Standalone::start(&[&certificates.server(&[])[..], &ANN.map(str::to_owned)].concat()).await;
    let connect = || {
        async_nats::ConnectOptions::with_user_and_password("ann".into(), "s3cret".into())
            .add_root_certificates(certificates.path("ca.pem").into())
            .require_tls(true)
            .connect(format!("nats://localhost:{}", broker.address.port()))
    };
    let client = connect().await.unwrap();
    certificates.make("server", "elsewhere");
    broker.signal(Signal::HUP);
    until("the new certificate, which is for another name", PATIENCE, || async {
        match connect().await {
            Ok(_) => Err("still the old one"),
            Err(_) => Ok(()),
        }
    })
    .await;
    client.flush().await.unwrap();
    assert_eq!(client.statistics().connects.load(std::sync::atomic::Ordering::Relaxed), 1, "who was here stayed");
}

#[tokio::test]
async fn a_lame_duck_lets_nobody_in_and_ends_once_all_have_left() {
    let mut broker = Standalone::start(&ANN).await;
    let mut ann = raw(&broker).await;
    ann.line().await;
    ann.send(b"CONNECT {\"verbose\":false,\"protocol\":1,\"user\":\"ann\",\"pass\":\"s3cret\"}\r\n").await;
    ann.until_pong().await;
    broker.signal(Signal::USR2);
    let told = ann.line().await;
    assert!(told.starts_with("INFO {") && told.contains("\"ldm\":true"), "{told}");
    until("the port to be closed", PATIENCE, || async {
        match tokio::net::TcpStream::connect(broker.address).await {
            Ok(_) => Err("still open"),
            Err(_) => Ok(()),
        }
    })
    .await;
    ann.until_pong().await;
    assert!(!broker.ports_file().exists(), "nobody can connect any more");
    drop(ann);
    assert!(broker.ended().await.success());
}

#[tokio::test]
async fn more_clients_fit_than_the_usual_soft_limit_of_open_files() {
    let broker = Standalone::start_with_files(64, &["--no-auth"]).await;
    let mut clients = Vec::new();
    for _ in 0..100 {
        let mut client = raw(&broker).await;
        assert!(client.line().await.starts_with("INFO {"));
        clients.push(client);
    }
}

#[tokio::test]
async fn a_lame_duck_still_takes_users_away() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users.json");
    let write = |text: &str| std::fs::write(&file, text).unwrap();
    write(r#"{"users":[{"user":"ann","password":"1"},{"user":"bob","password":"2"}]}"#);
    let mut broker = Standalone::start(&["--users-file", file.to_str().unwrap()]).await;
    let (mut ann, mut bob) = (raw(&broker).await, raw(&broker).await);
    for (client, connect) in [
        (&mut ann, "CONNECT {\"verbose\":false,\"user\":\"ann\",\"pass\":\"1\"}\r\n"),
        (&mut bob, "CONNECT {\"verbose\":false,\"user\":\"bob\",\"pass\":\"2\"}\r\n"),
    ] {
        client.line().await;
        client.send(connect.as_bytes()).await;
        client.until_pong().await;
    }
    broker.signal(Signal::USR2);
    told(&broker, "lame duck").await;
    write(r#"{"users":[{"user":"bob","password":"2"}]}"#);
    broker.signal(Signal::HUP);
    told(&broker, "reloaded: ").await;
    assert!(ann.until_closed().await.contains("-ERR"), "ann may no longer be here");
    assert_eq!(bob.until_pong().await, "", "bob is still served");
    assert!(broker.stop(Signal::TERM).await.success());
}

#[tokio::test]
async fn a_users_file_that_would_never_end_holds_no_signal_up() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users.json");
    std::fs::write(&file, r#"{"users":[{"user":"ann","password":"1"}]}"#).unwrap();
    let mut broker = Standalone::start(&["--users-file", file.to_str().unwrap()]).await;
    std::fs::remove_file(&file).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
    broker.signal(Signal::HUP);
    told(&broker, "no regular file").await;
    connect(&broker, "ann", "1").await.unwrap();
    assert!(broker.stop(Signal::TERM).await.success());
}

#[tokio::test]
async fn a_bare_broker_is_open_to_this_machine_and_says_so() {
    let mut broker = Standalone::start::<&str>(&[]).await;
    assert!(broker.address.ip().is_loopback());
    let client = async_nats::connect(broker.url()).await.unwrap();
    client.flush().await.unwrap();
    told(&broker, "warning: nothing says who may connect").await;
    broker.signal(Signal::HUP);
    told(&broker, "reloaded: ").await;
    client.flush().await.unwrap();
    assert!(broker.stop(Signal::TERM).await.success());
    let mut meant = Standalone::start(&["--no-auth"]).await;
    assert!(meant.stop(Signal::TERM).await.success());
    assert!(!meant.log().contains("warning"), "{}", meant.log());
}

#[tokio::test]
async fn a_password_in_the_environment_that_is_nobodys_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut bare = command(folder.path());
    bare.args(["--listen", "127.0.0.1:0"]).env("ORCHARD_BROKER_PASSWORD", "x");
    let ended = tokio::time::timeout(PATIENCE, bare.status()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(2));
    assert!(std::fs::read_to_string(folder.path().join("log")).unwrap().contains("--user"));
}
