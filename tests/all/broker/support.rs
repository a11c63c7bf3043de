//! A broker to test and a raw client to test it with.

use std::time::Duration;

use orchard::broker::{Broker, Builder};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

/// Generous: machines that build at the same time are slow.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub async fn start(builder: Builder) -> Broker {
    builder.bind("127.0.0.1:0".parse().unwrap()).await.unwrap()
}

pub async fn plain() -> Broker {
    start(Broker::builder()).await
}

/// A socket, plain or TLS.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A socket that remembers what it read.
pub struct Raw {
    stream: Box<dyn Stream>,
    seen: Vec<u8>,
}

impl Raw {
    /// Connects and reads INFO.
    pub async fn connect(broker: &Broker) -> Self {
        let mut raw = Self::silent(broker).await;
        let info = raw.line().await;
        assert!(info.starts_with("INFO {"), "{info}");
        raw
    }

    /// Connects and reads nothing.
    pub async fn silent(broker: &Broker) -> Self {
        Self::over(TcpStream::connect(broker.local_addr()).await.unwrap())
    }

    /// Goes on over a connection made by the caller.
    pub fn over(stream: impl Stream + 'static) -> Self {
        Self { stream: Box::new(stream), seen: Vec::new() }
    }

    /// The same, with `options` sent as CONNECT.
    pub async fn with(broker: &Broker, options: &str) -> Self {
        let mut raw = Self::connect(broker).await;
        raw.send(format!("CONNECT {options}\r\n").as_bytes()).await;
        raw
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Sends what may no longer be wanted.
    pub async fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    pub async fn line(&mut self) -> String {
        loop {
            if let Some(end) = self.seen.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.seen.drain(..=end).collect();
                return String::from_utf8_lossy(&line).trim_end().to_owned();
            }
            let mut buffer = [0; 4096];
            let count =
                tokio::time::timeout(PATIENCE, self.stream.read(&mut buffer)).await.expect("no line in time").unwrap();
            assert!(count > 0, "closed; rest: {}", self.seen.escape_ascii());
            self.seen.extend_from_slice(&buffer[..count]);
        }
    }

    /// Everything up to the answer to a PING sent now, without that answer.
    pub async fn until_pong(&mut self) -> String {
        self.send(b"PING\r\n").await;
        self.read_until(b"PONG\r\n").await
    }

    /// The next `length` bytes.
    pub async fn exactly(&mut self, length: usize) -> String {
        while self.seen.len() < length {
            let mut buffer = [0; 4096];
            let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut buffer)).await;
            let count = read.unwrap_or_else(|_| panic!("too little: {}", self.seen.escape_ascii())).unwrap();
            assert!(count > 0, "closed; rest: {}", self.seen.escape_ascii());
            self.seen.extend_from_slice(&buffer[..count]);
        }
        let text: Vec<u8> = self.seen.drain(..length).collect();
        String::from_utf8_lossy(&text).into_owned()
    }

    pub async fn read_until(&mut self, end: &[u8]) -> String {
        loop {
            if let Some(at) = self.seen.windows(end.len()).position(|window| window == end) {
                let text: Vec<u8> = self.seen.drain(..at + end.len()).collect();
                return String::from_utf8_lossy(&text[..at]).into_owned();
            }
            let mut buffer = vec![0; 64 * 1024];
            let count =
                tokio::time::timeout(PATIENCE, self.stream.read(&mut buffer)).await.expect("not in time").unwrap();
            assert!(count > 0, "closed; rest: {}", self.seen.escape_ascii());
            self.seen.extend_from_slice(&buffer[..count]);
        }
    }

    /// Everything until the broker closes.
    pub async fn until_closed(&mut self) -> String {
        let mut all = std::mem::take(&mut self.seen);
        let end = tokio::time::timeout(PATIENCE, self.stream.read_to_end(&mut all)).await.expect("still open");
        if let Err(error) = end {
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    /// Everything until the connection ends, in whatever way.
    pub async fn until_end(&mut self) -> String {
        let mut all = std::mem::take(&mut self.seen);
        let _ = tokio::time::timeout(PATIENCE, self.stream.read_to_end(&mut all)).await.expect("still open");
        String::from_utf8_lossy(&all).into_owned()
    }
}
