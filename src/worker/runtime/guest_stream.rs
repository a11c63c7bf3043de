//! A connection into a guest, as [`Runtime::dial`](super::Runtime::dial) yields it.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::net::{AddressFamily, getsockname};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

use crate::duplex::BoxedStream;

/// A connection into a guest.
pub enum GuestStream {
    /// Through the host's network.
    Tcp(TcpStream),
    /// Through the host's file system.
    Unix(UnixStream),
    /// To a guest within this process.
    Inside(BoxedStream),
}

impl GuestStream {
    /// The connection's socket, for another process to hold as well; none to a guest within this process.
    ///
    /// # Errors
    /// When the system has no more descriptors.
    pub fn socket(&self) -> io::Result<Option<OwnedFd>> {
        match self {
            GuestStream::Tcp(stream) => stream.as_fd().try_clone_to_owned().map(Some),
            GuestStream::Unix(stream) => stream.as_fd().try_clone_to_owned().map(Some),
            GuestStream::Inside(_) => Ok(None),
        }
    }

    /// The connection behind a socket that another process has made. Needs a tokio runtime.
    ///
    /// # Errors
    /// When it is none.
    pub fn of(socket: OwnedFd) -> io::Result<Self> {
        if getsockname(&socket)?.address_family() == AddressFamily::UNIX {
            let stream = std::os::unix::net::UnixStream::from(socket);
            stream.set_nonblocking(true)?;
            return UnixStream::from_std(stream).map(Self::Unix);
        }
        let stream = std::net::TcpStream::from(socket);
        stream.set_nonblocking(true)?;
        TcpStream::from_std(stream).map(Self::Tcp)
    }
}

impl From<TcpStream> for GuestStream {
    fn from(stream: TcpStream) -> Self {
        Self::Tcp(stream)
    }
}

impl From<UnixStream> for GuestStream {
    fn from(stream: UnixStream) -> Self {
        Self::Unix(stream)
    }
}

impl From<BoxedStream> for GuestStream {
    fn from(stream: BoxedStream) -> Self {
        Self::Inside(stream)
    }
}

impl std::fmt::Debug for GuestStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            GuestStream::Tcp(stream) => stream.fmt(f),
            GuestStream::Unix(stream) => stream.fmt(f),
            GuestStream::Inside(_) => f.write_str("a guest within this process"),
        }
    }
}

impl AsyncRead for GuestStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            GuestStream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            GuestStream::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
            GuestStream::Inside(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            GuestStream::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            GuestStream::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            GuestStream::Inside(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            GuestStream::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            GuestStream::Unix(stream) => Pin::new(stream).poll_flush(cx),
            GuestStream::Inside(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            GuestStream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            GuestStream::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            GuestStream::Inside(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
