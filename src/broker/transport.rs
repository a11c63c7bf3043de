//! The byte stream under a connection, in the shape that the broker wants: non-blocking attempts that any task may make
//! through a shared reference, and readiness that the owning task awaits.
//!
//! Plain TCP today; TLS fits in as a second kind with the same four operations.

use std::io::{self, IoSlice};

use bytes::BytesMut;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// See the module.
#[derive(Debug)]
pub struct Transport {
    stream: TcpStream,
}

impl Transport {
    /// Over `stream`, which sends at once instead of waiting for more: the broker does its own batching.
    pub fn plain(stream: TcpStream) -> Self {
        let _ = stream.set_nodelay(true);
        Self { stream }
    }

    /// Reads what is there into the spare room of `buffer`.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when nothing is there; anything else ends the connection.
    pub fn try_read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        read_plain(&self.stream, buffer)
    }

    /// Writes as much of `slices` as the peer has room for.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is no room; anything else ends the connection.
    pub fn try_write(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.stream.try_write_vectored(slices)
    }

    /// Waits until reading is worth an attempt. Cancel safe.
    ///
    /// # Errors
    /// The connection is broken.
    pub async fn readable(&self) -> io::Result<()> {
        self.stream.readable().await
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
