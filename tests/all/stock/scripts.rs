//! The clients' scripts of `tests/fixtures`: which scenarios they are put through, and how a test talks with them over
//! lines.

use std::path::PathBuf;
use std::process::Stdio;

use nkeys::KeyPair;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use super::certificates::Certificates;
use super::standalone::{PATIENCE, Standalone};

/// The options of a broker with one user, and those of its clients.
pub const ANN: [&str; 4] = ["--user", "ann", "--password", "s3cret"];

/// The value of `variable`, which tests/run.sh sets when it could install the client. Without it the test is left out,
/// loudly, except where nothing may be left out.
pub fn installed(variable: &str, client: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(path.into());
    }
    assert!(std::env::var_os("CI").is_none(), "{client} is not installed: tests/run.sh does that and sets {variable}");
    eprintln!("SKIPPED: {client} is not installed: tests/run.sh does that and sets {variable}");
    None
}

/// Runs a scenario for which one user is enough; without `client`, nothing.
pub async fn scenario(client: Option<Command>, name: &str) {
    let Some(client) = client else { return };
    let mut broker = Standalone::start(&ANN).await;
    run(client, name, &json!({ "user": "ann", "password": "s3cret" }), &mut broker).await;
}

/// Every kind of credentials, right and wrong.
pub async fn credentials(client: impl Fn() -> Option<Command>) {
    let (key, stranger) = (KeyPair::new_user(), KeyPair::new_user());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users.json");
    let users = json!({ "users": [
        { "user": "ann", "password": "s3cret" },
        { "token": "t0ken" },
        { "nkey": key.public_key() },
    ] });
    std::fs::write(&file, users.to_string()).unwrap();
    let mut mixed = Standalone::start(&["--users-file", file.to_str().unwrap()]).await;
    let mut user = Standalone::start(&ANN).await;
    let mut token = Standalone::start(&["--auth-token", "t0ken"]).await;
    let mut nkey = Standalone::start(&["--nkey", &key.public_key()]).await;
    let (seed, wrong_seed) = (key.seed().unwrap(), stranger.seed().unwrap());
    let kinds = [
        (&mut user, json!({ "user": "ann", "password": "s3cret", "wrong": { "password": "" } })),
        (&mut token, json!({ "token": "t0ken", "wrong": { "token": "other" } })),
        (&mut nkey, json!({ "nkeys_seed_str": seed, "wrong": { "nkeys_seed_str": wrong_seed } })),
    ];
    for (broker, options) in kinds {
        for broker in [broker, &mut mixed] {
            let Some(client) = client() else { return };
            run(client, "auth", &options, broker).await;
        }
    }
}

/// TLS after INFO, before it and as the client likes, with and without a certificate of the client.
pub async fn encryption(client: impl Fn() -> Option<Command>) {
    let certificates = Certificates::new();
    let ca = certificates.path("ca.pem");
    for (server, first, with_certificate) in [
        (&[][..], false, false),
        (&["--tls-first", "always"], true, false),
        (&["--tls-first", "auto"], true, false),
        (&["--tls-first", "auto"], false, false),
        (&["--tls-ca", &ca], false, true),
        (&["--tls-ca", &ca, "--tls-first", "always"], true, true),
    ] {
        let mut broker = Standalone::start(&certificates.server(&[server, &ANN[..]].concat())).await;
        let mut options = certificates.client(first, with_certificate);
        options["user"] = "ann".into();
        options["password"] = "s3cret".into();
        // `auto` waits for 50 ms only, which on a busy machine a client does not always meet.
        for left in (0..if server.contains(&"auto") { 5 } else { 1 }).rev() {
            let Some(client) = client() else { return };
            match attempt(client, "exchange", &options, &mut broker).await {
                Ok(()) => break,
                Err(what) if left == 0 => panic!("{what}"),
                Err(what) => eprintln!("again: {what}"),
            }
        }
    }
}

/// Runs `command SCENARIO OPTIONS` to its end, which it must announce with "done". When it says "restart", the broker is
/// restarted under it.
async fn run(command: Command, scenario: &str, options: &Value, broker: &mut Standalone) {
    attempt(command, scenario, options, broker).await.unwrap_or_else(|what| panic!("{what}"));
}

async fn attempt(mut command: Command, scenario: &str, options: &Value, broker: &mut Standalone) -> Result<(), String> {
    let mut options = options.clone();
    options["url"] = broker.url().into();
    command.arg(scenario).arg(options.to_string());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut last = String::new();
    let talk = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line == "restart" {
                broker.restart().await;
                input.write_all(b"restarted\n").await.unwrap();
            }
            last = line;
        }
        child.wait().await.unwrap()
    };
    let ended = tokio::time::timeout(3 * PATIENCE, talk).await;
    let status = ended.unwrap_or_else(|_| panic!("{scenario} does not end: {options}, {}", broker.log()));
    if status.success() && last == "done" {
        return Ok(());
    }
    Err(format!("{scenario}: {status}, {last:?}, {options}, {}", broker.log()))
}
