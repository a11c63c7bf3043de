//! Running the clients' scripts of `tests/fixtures`, and having them talk with the test over lines.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use super::standalone::{PATIENCE, Standalone};

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

/// Runs a scenario that needs no broker of its own kind; without `client`, nothing.
pub async fn scenario(client: Option<Command>, name: &str) {
    let Some(client) = client else { return };
    let mut broker = Standalone::start(&["--user", "ann", "--password", "s3cret"]).await;
    let options = json!({ "url": broker.url(), "user": "ann", "password": "s3cret" });
    run(client, name, &options, &mut broker).await;
}

/// Runs `command SCENARIO OPTIONS` to its end, which it must announce with "done". When it says "restart", the broker is
/// restarted under it.
pub async fn run(mut command: Command, scenario: &str, options: &Value, broker: &mut Standalone) {
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
    let status = ended.unwrap_or_else(|_| panic!("{scenario} does not end: {}", broker.log()));
    assert!(status.success() && last == "done", "{scenario}: {status}, {last:?}, {}", broker.log());
}
