//! nats.py.

use tokio::process::Command;

use super::scripts::{credentials, encryption, installed, scenario};

fn client() -> Option<Command> {
    let python = installed("ORCHARD_TEST_PYTHON", "nats.py")?;
    let mut command = Command::new(python);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/stock_nats.py"));
    Some(command)
}

#[tokio::test]
async fn every_kind_of_credentials() {
    credentials(client).await;
}

#[tokio::test]
async fn tls_both_ways() {
    encryption(client).await;
}

#[tokio::test]
async fn messages_headers_and_limits() {
    scenario(client(), "exchange").await;
}

#[tokio::test]
async fn queue_groups() {
    scenario(client(), "queue").await;
}

#[tokio::test]
async fn requests_and_no_responders() {
    scenario(client(), "request").await;
}

#[tokio::test]
async fn drain() {
    scenario(client(), "drain").await;
}

#[tokio::test]
async fn reconnect_after_a_restart() {
    scenario(client(), "reconnect").await;
}
