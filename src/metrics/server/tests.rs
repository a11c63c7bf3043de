//! What a scraper, a prober and a stranger get.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::metrics::names;

#[derive(Default)]
struct Part(AtomicBool);

#[async_trait]
impl Source for Part {
    async fn scrape(&self, page: &mut Page) {
        page.number(&names::STRAYS, &[], 2);
    }

    fn alive(&self) -> Result<(), String> {
        Ok(())
    }

    async fn ready(&self) -> Result<(), Vec<String>> {
        match self.0.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err(vec!["no bus".into(), "no disk".into()]),
        }
    }
}

async fn start(ready: bool) -> Server {
    let door = Door::open("127.0.0.1:0".parse().unwrap()).await.unwrap();
    door.serve(vec![Arc::new(Part(ready.into()))])
}

async fn said(server: &Server, request: &str) -> String {
    let mut stream = TcpStream::connect(server.address()).await.unwrap();
    // It may be sent away in the middle of it.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

async fn get(server: &Server, path: &str) -> String {
    said(server, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await
}

#[tokio::test]
async fn figures_and_health_are_to_be_had_and_nothing_else() {
    let server = start(true).await;
    let page = get(&server, "/metrics").await;
    assert!(page.starts_with("HTTP/1.1 200 OK") && page.contains("openmetrics-text"), "{page}");
    assert!(page.contains("\norchard_controller_strays 2.0\n") && page.ends_with("# EOF\n"), "{page}");
    for path in ["/healthz", "/readyz", "/healthz?x=1"] {
        assert!(get(&server, path).await.starts_with("HTTP/1.1 200 OK"), "{path}");
    }
    assert!(get(&server, "/etc/passwd").await.starts_with("HTTP/1.1 404"));
    let refused = said(&server, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx").await;
    assert!(refused.starts_with("HTTP/1.1 405") && refused.contains("allow: GET"), "{refused}");
}

#[tokio::test]
async fn a_part_that_is_not_ready_says_why_and_is_alive() {
    let server = start(false).await;
    let answer = get(&server, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("no bus\nno disk\n"), "{answer}");
    assert!(get(&server, "/healthz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn who_says_nothing_or_too_much_is_sent_away_and_others_are_served() {
    let server = start(true).await;
    let mut silent = Vec::new();
    for _ in 0..MAX_CONNECTIONS - 1 {
        silent.push(TcpStream::connect(server.address()).await.unwrap());
    }
    assert!(get(&server, "/healthz").await.starts_with("HTTP/1.1 200"));
    let endless = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(4 * MAX_REQUEST));
    assert!(!said(&server, &endless).await.contains("200 OK"));
    silent.push(TcpStream::connect(server.address()).await.unwrap());
    // The room that the silent ones took is free again after a while.
    assert!(get(&server, "/readyz").await.starts_with("HTTP/1.1 200"));
}
