//! A stream that its owner can end from outside: reads then say "end", writes fail. It lets a library task that owns
//! the stream end with us instead of living on unseen; the synthetic runtime uses it to cut a crashed guest's
//! connections.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// `S`, until the token is cancelled.
#[derive(Debug)]
pub struct Cut<S> {
    stream: S,
    // one each, since the halves of a split stream are polled by different tasks
    read_cut: Pin<Box<WaitForCancellationFutureOwned>>,
    write_cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Cut<S> {
    /// Wraps `stream`; cancelling `token` ends it.
    pub fn new(stream: S, token: &CancellationToken) -> Self {
        Self {
            stream,
            read_cut: Box::pin(token.clone().cancelled_owned()),
            write_cut: Box::pin(token.clone().cancelled_owned()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Cut<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read_cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cut<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.write_cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.write_cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let was_cut = self.write_cut.as_mut().poll(cx).is_ready();
        match ready!(Pin::new(&mut self.stream).poll_shutdown(cx)) {
            Err(_) if was_cut => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_waiting_read_ends_when_the_stream_is_cut() {
        let token = CancellationToken::new();
        let (near, mut far) = tokio::io::duplex(64);
        let mut cut = Cut::new(near, &token);
        far.write_all(b"x").await.unwrap();
        assert_eq!(cut.read_u8().await.unwrap(), b'x');
        let read = crate::task::spawn(async move { cut.read(&mut [0; 1]).await.map(|n| (n, cut)) });
        token.cancel();
        let (n, mut cut) = read.join().await.unwrap().unwrap();
        assert_eq!(n, 0);
        assert_eq!(cut.write_all(b"y").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        cut.shutdown().await.unwrap();
    }
}
