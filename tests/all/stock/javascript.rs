//! nats.js.

use tokio::process::Command;

use super::scripts::{credentials, encryption, installed, scenario};

fn client() -> Option<Command> {
    let modules = installed("ORCHARD_TEST_NODE_MODULES", "nats.js")?;
    let mut command = Command::new("node");
    command
        .env("ORCHARD_TEST_NODE_MODULES", modules)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/stock_nats.mjs"));
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
