//! The byte stream under a connection, in the shape that the broker wants: non-blocking attempts that any task may make
//! through a shared reference, and readiness that the owning task awaits. Plain TCP, or TLS over it.

use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use bytes::BytesMut;
use rustls::ServerConnection;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::tls::record::Records;

/// See the module.
#[derive(Debug)]
pub struct Transport {
    stream: TcpStream,
    tls: Option<Box<Records>>,
}

impl Transport {
    /// Over `stream`, which sends at once instead of waiting for more: the broker does its own batching.
    pub fn plain(stream: TcpStream) -> Self {
        let _ = stream.set_nodelay(true);
        Self { stream, tls: None }
    }

    /// Over `stream`, with `connection` after its handshake.
    pub fn tls(stream: TcpStream, connection: ServerConnection) -> Self {
        Self { tls: Some(Box::new(Records::new(connection))), ..Self::plain(stream) }
    }

    /// Whether it is TLS.
    pub fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Reads what is there into the spare room of `buffer`; with TLS it may be some KiB more.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when nothing is there; anything else ends the connection.
    pub fn try_read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        match &self.tls {
            None => read_plain(&self.stream, buffer),
            Some(tls) => tls.try_read(&self.stream, buffer),
        }
    }

    /// Writes as much of `slices` as the peer has room for. With TLS, what was taken may still wait for the socket: see
    /// [`Transport::has_rest`].
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is no room; anything else ends the connection.
    pub fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.tls {
            None => self.stream.try_write_vectored(slices),
            Some(tls) => tls.try_write(&self.stream, slices),
        }
    }

    /// Whether something that was taken by [`Transport::try_write`] waits for the socket.
    pub fn has_rest(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.has_rest())
    }

    /// Writes that rest.
    ///
    /// # Errors
    /// As [`Transport::try_write`].
    pub fn try_flush(&self) -> io::Result<()> {
        self.tls.as_ref().map_or(Ok(()), |tls| tls.try_flush(&self.stream))
    }

    /// Waits until reading is worth an attempt; only the client's own task may.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_read_ready(cx)
    }

    /// Waits until writing is worth an attempt. Cancel safe.
    ///
    /// # Errors
    /// The connection is broken.
    pub async fn writable(&self) -> io::Result<()> {
        self.stream.writable().await
    }

    /// Tells the peer that nothing more will come.
    pub fn shutdown_write(&self) {
        if let Some(tls) = &self.tls {
            tls.say_goodbye(&self.stream);
        }
        let _ = socket2::SockRef::from(&self.stream).shutdown(std::net::Shutdown::Write);
    }
}

/// Reads, and knows after a read that left room that nothing more is there: the next attempt says so without asking the
/// system. Half of all reads of a client that sends little at a time are saved by that.
fn read_plain(stream: &TcpStream, buffer: &mut BytesMut) -> io::Result<usize> {
    let room = buffer.capacity() - buffer.len();
    let mut short = None;
    // "Would block" makes tokio wait for news from the system, unless they came after it was asked here; so bytes that
    // arrive behind the read are not overlooked.
    let read = stream.try_io(Interest::READABLE, || match stream.try_read_buf(buffer) {
        Ok(count) if 0 < count && count < room => {
            short = Some(count);
            Err(io::ErrorKind::WouldBlock.into())
        }
        other => other,
    });
    short.map_or(read, Ok)
}
