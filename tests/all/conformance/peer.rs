//! One connection of a script.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use super::certificate::{self, Identity};
use super::script::fits;

/// Generous: machines that build at the same time are slow.
const PATIENCE: Duration = Duration::from_secs(20);

pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

pub struct Peer {
    stream: Box<dyn Stream>,
    seen: Vec<u8>,
    ended: bool,
    /// Why TLS ended, if the server said so.
    alert: Option<String>,
    /// The last INFO.
    pub info: serde_json::Value,
}

impl Peer {
    /// Connects and reads nothing.
    pub async fn mute(port: u16) -> Result<Self, String> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(|e| format!("cannot connect: {e}"))?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let stream = Box::new(stream);
        Ok(Self { stream, seen: Vec::new(), ended: false, alert: None, info: serde_json::Value::Null })
    }

    /// Connects and reads INFO.
    pub async fn connect(port: u16) -> Result<Self, String> {
        Self::mute(port).await?.greeted().await
    }

    /// Connects, begins with TLS, and reads INFO then.
    pub async fn first(port: u16, identity: Identity) -> Result<Self, String> {
        Self::mute(port).await?.upgrade(identity).await?.greeted().await
    }

    async fn greeted(mut self) -> Result<Self, String> {
        let line = self.line().await?;
        let json = line.strip_prefix(b"INFO ").ok_or_else(|| format!("no INFO but {}", line.escape_ascii()))?;
        self.info = serde_json::from_slice(json).map_err(|e| format!("INFO: {e}"))?;
        Ok(self)
    }

    /// Whether the server lets nobody in: there is no connection, or it ends with nothing said.
    pub async fn refused(port: u16) -> Result<(), String> {
        match Self::mute(port).await {
            Ok(mut peer) => peer.closed().await,
            Err(_) => Ok(()),
        }
    }

    /// Goes on over TLS.
    pub async fn upgrade(mut self, identity: Identity) -> Result<Self, String> {
        let name = "localhost".try_into().map_err(|e| format!("{e}"))?;
        let handshake = tokio_rustls::TlsConnector::from(certificate::client(identity)).connect(name, self.stream);
        let stream = tokio::time::timeout(PATIENCE, handshake).await.map_err(|_| "no TLS handshake in time")?;
        self.stream = Box::new(stream.map_err(|e| format!("TLS: {e}"))?);
        Ok(self)
    }

    /// Sends `bytes`, cut where `cuts` says. A server that has closed is no error: what it said is checked by reading.
    pub async fn send(&mut self, bytes: &[u8], mut cut: impl FnMut(usize) -> usize) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(cut(rest.len()).clamp(1, rest.len()));
            if self.stream.write_all(piece).await.is_err() || self.stream.flush().await.is_err() {
                return;
            }
            rest = after;
            tokio::task::yield_now().await;
        }
    }

    /// Closes the sending side.
    pub async fn end(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// The next line with its end, or what there is before the connection ends.
    async fn line(&mut self) -> Result<Vec<u8>, String> {
        loop {
            if let Some(end) = self.seen.iter().position(|b| *b == b'\n') {
                return Ok(self.seen.drain(..=end).collect());
            }
            if self.ended {
                return Ok(std::mem::take(&mut self.seen));
            }
            let mut buffer = [0; 16 * 1024];
            match tokio::time::timeout(PATIENCE, self.stream.read(&mut buffer)).await {
                Err(_) => return Err(format!("nothing more came; so far {:?}", self.seen.escape_ascii().to_string())),
                Ok(Ok(0)) => self.ended = true,
                Ok(Err(error)) => {
                    self.ended = true; // a reset is an end too
                    self.alert = alert(&error);
                }
                Ok(Ok(count)) => self.seen.extend_from_slice(&buffer[..count]),
            }
        }
    }

    /// The same, without PINGs that the server sends when it likes, unless one is `wanted`. Remembers INFO.
    async fn next(&mut self, wanted: bool) -> Result<Vec<u8>, String> {
        loop {
            let line = self.line().await?;
            if let Some(info) = line.strip_prefix(b"INFO ").and_then(|json| serde_json::from_slice(json).ok()) {
                self.info = info;
            }
            if wanted || line != b"PING\r\n" {
                return Ok(line);
            }
        }
    }

    /// Reads `expected`, which may hold wildcards, line by line.
    pub async fn read(&mut self, expected: &[u8]) -> Result<(), String> {
        for wanted in expected.split_inclusive(|b| *b == b'\n') {
            let line = self.next(wanted == b"PING\r\n").await?;
            if !fits(wanted, &line) {
                return Err(format!("wanted {:?}, got {}", wanted.escape_ascii().to_string(), self.all(&line).await));
            }
        }
        Ok(())
    }

    /// Reads frames in any order.
    pub async fn read_in_any_order(&mut self, mut frames: Vec<Vec<u8>>) -> Result<(), String> {
        while !frames.is_empty() {
            let line = self.next(false).await?;
            let first = |frame: &[u8]| frame.split_inclusive(|b| *b == b'\n').next().map_or(0, <[u8]>::len);
            let Some(at) = frames.iter().position(|frame| fits(&frame[..first(frame)], &line)) else {
                return Err(format!("not among the frames still awaited: {}", self.all(&line).await));
            };
            let frame = frames.remove(at);
            self.read(&frame[first(&frame)..]).await?;
        }
        Ok(())
    }

    /// Sends PING and reads up to PONG; counts frames of the form `frame`.
    pub async fn count(&mut self, frame: &[u8]) -> Result<usize, String> {
        self.send(b"PING\r\n", |all| all).await;
        let lines: Vec<&[u8]> = frame.split_inclusive(|b| *b == b'\n').collect();
        let mut count = 0;
        loop {
            let line = self.next(false).await?;
            if line == b"PONG\r\n" {
                return Ok(count);
            }
            if !fits(lines[0], &line) {
                return Err(format!("no such frame: {}", self.all(&line).await));
            }
            self.read(&lines[1..].concat()).await?;
            count += 1;
        }
    }

    /// Sends PING and reads PONG and nothing before it.
    pub async fn sync(&mut self) -> Result<(), String> {
        self.send(b"PING\r\n", |all| all).await;
        self.read(b"PONG\r\n").await
    }

    /// Reads the end and nothing before it.
    pub async fn closed(&mut self) -> Result<(), String> {
        let line = self.next(false).await?;
        if line.is_empty() { Ok(()) } else { Err(format!("wanted the end, got {}", self.all(&line).await)) }
    }

    /// Reads the end, with the TLS alert `wanted`, and nothing before it.
    pub async fn alerted(&mut self, wanted: &str) -> Result<(), String> {
        self.closed().await?;
        if self.alert.as_deref() == Some(wanted) { Ok(()) } else { Err(format!("the alert is {:?}", self.alert)) }
    }

    /// `line` and what has arrived behind it, for messages.
    async fn all(&mut self, line: &[u8]) -> String {
        let mut text = format!("{:?} then {:?}", line.escape_ascii().to_string(), self.seen.escape_ascii().to_string());
        if line.is_empty() {
            text = "the end".into();
        }
        if text.len() > 2_000 {
            text.truncate(2_000);
        }
        text
    }
}

/// The TLS alert in `error`, by its name.
fn alert(error: &std::io::Error) -> Option<String> {
    match error.get_ref()?.downcast_ref() {
        Some(rustls::Error::AlertReceived(alert)) => Some(format!("{alert:?}")),
        _ => None,
    }
}
