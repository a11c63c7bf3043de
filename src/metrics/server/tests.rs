//! What a scraper, a prober and a stranger get.

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::metrics::names;

/// How a part is doing.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Ready,
    Unready,
    /// It does not even go on.
    Dead,
}

#[async_trait]
impl Source for Part {
    async fn scrape(&self, page: &mut Page) {
        page.number(&names::STRAYS, &[], 2);
    }

    fn alive(&self) -> Result<(), String> {
        if *self == Part::Dead { Err("its writer has ended".into()) } else { Ok(()) }
    }

    async fn ready(&self) -> Result<(), Vec<String>> {
        match self {
            Part::Ready => Ok(()),
            Part::Unready | Part::Dead => Err(vec!["no bus".into(), "no disk".into()]),
        }
    }
}

async fn start(parts: &[Part]) -> Server {
    let door = Door::open("127.0.0.1:0".parse().unwrap()).await.unwrap();
    door.serve(parts.iter().map(|part| Arc::new(*part) as Arc<dyn Source>).collect())
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
    let server = start(&[Part::Ready]).await;
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
    let server = start(&[Part::Unready]).await;
    let answer = get(&server, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("no bus\nno disk\n"), "{answer}");
    assert!(get(&server, "/healthz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn of_several_parts_each_that_does_not_go_on_is_named() {
    let server = start(&[Part::Ready, Part::Dead, Part::Unready, Part::Dead]).await;
    let answer = get(&server, "/healthz").await;
    let body = "\r\n\r\nits writer has ended\nits writer has ended\n";
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with(body), "{answer}");
    assert!(get(&server, "/readyz").await.starts_with("HTTP/1.1 503"));
    // A prober that asks for no text gets the status all the same.
    let head = said(&server, "HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 503") && head.ends_with("\r\n\r\n"), "{head}");
}

#[tokio::test]
async fn who_says_nothing_or_too_much_is_sent_away_and_others_are_served() {
    let server = start(&[Part::Ready]).await;
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
