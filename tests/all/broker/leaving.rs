//! A broker that goes slowly, and what it answers by itself.

use std::time::{Duration, Instant};

use orchard::broker::Broker;

use super::support::{PATIENCE, Raw, plain};
use crate::wait::until;

const NEW: &str = "{\"verbose\":false,\"protocol\":1}";
const OLD: &str = "{\"verbose\":false}";

async fn refuses(broker: &Broker) {
    let address = broker.local_addr();
    until("the port to be closed", PATIENCE, || async {
        match tokio::net::TcpStream::connect(address).await {
            Ok(_) => Err("open"),
            Err(_) => Ok(()),
        }
    })
    .await;
}

#[tokio::test]
async fn a_lame_duck_sends_its_clients_off_one_by_one() {
    let broker = plain().await;
    let mut clients = Vec::new();
    for number in 0..6 {
        let mut raw = Raw::with(&broker, if number == 0 { OLD } else { NEW }).await;
        raw.until_pong().await;
        clients.push(raw);
    }
    let begun = Instant::now();
    let watching = async {
        refuses(&broker).await;
        for client in &mut clients[1..] {
            let info = client.line().await;
            assert!(info.contains("\"ldm\":true") && info.contains("\"client_ip\":\"127.0.0.1\""), "{info}");
            assert_eq!(client.until_pong().await, "", "it is still served");
        }
        assert_eq!(clients[0].until_pong().await, "", "INFO at any time is not for old clients");
        for client in &mut clients {
            assert_eq!(client.until_closed().await, "");
        }
    };
    // All must be seen to be served before the first is sent off, after a quarter of it; on a busy machine, too.
    let duration = Duration::from_secs(12);
    tokio::join!(broker.lame_duck(duration), watching);
    let took = begun.elapsed();
    assert!(took > duration / 4, "the clients had time to leave: {took:?}");
    broker.shutdown().await;
}

#[tokio::test]
async fn a_lame_duck_without_clients_is_done() {
    let broker = plain().await;
    let mut leaving = Raw::with(&broker, NEW).await;
    leaving.until_pong().await;
    let lame = tokio::time::timeout(PATIENCE, broker.lame_duck(Duration::from_secs(3_600)));
    let (done, ()) = tokio::join!(lame, async {
        leaving.line().await;
        drop(leaving);
    });
    done.expect("it waits for nobody");
    broker.shutdown().await;
}

#[tokio::test]
async fn the_api_of_jetstream_is_refused_at_once() {
    let broker = plain().await;
    let request = "SUB i 1\r\nPUB $JS.API.INFO i 0\r\n\r\nPUB other i 0\r\n\r\n";
    let status = "HMSG i 1 44 44\r\nNATS/1.0 503\r\nNats-Subject: $JS.API.INFO\r\n\r\n\r\n";
    let mut headers = Raw::with(&broker, "{\"verbose\":false,\"headers\":true}").await;
    headers.send(request.as_bytes()).await;
    assert_eq!(headers.until_pong().await, status, "although it did not ask for no_responders");
    let mut without = Raw::with(&broker, OLD).await;
    without.send(request.as_bytes()).await;
    let answer = without.until_pong().await;
    assert!(answer.starts_with("MSG i 1 ") && answer.contains("\"code\":503"), "{answer}");
    let mut service = Raw::with(&broker, OLD).await;
    service.send(b"SUB $JS.API.> 1\r\n").await;
    service.until_pong().await;
    without.send(b"PUB $JS.API.INFO i 0\r\n\r\n").await;
    assert_eq!(without.until_pong().await, "", "who serves it is let");
    broker.shutdown().await;
}

#[tokio::test]
async fn a_client_learns_who_it_is() {
    let broker = plain().await;
    let mut raw = Raw::with(&broker, OLD).await;
    raw.send(b"SUB i 1\r\nPUB $SYS.REQ.USER.INFO 0\r\n\r\nPUB $SYS.REQ.USER.INFO i 0\r\n\r\n").await;
    let answer = raw.until_pong().await;
    let (line, body) = answer.split_once("\r\n").unwrap();
    assert!(line.starts_with("MSG i 1 "), "{answer}");
    let body: serde_json::Value = serde_json::from_str(body.trim_end()).unwrap();
    assert_eq!(body["data"], serde_json::json!({ "user": "", "account": "$G", "account_name": "$G" }));
    for field in ["name", "host", "id", "ver", "jetstream", "flags", "seq", "time"] {
        assert!(body["server"].get(field).is_some(), "{field}");
    }
    broker.shutdown().await;
}
