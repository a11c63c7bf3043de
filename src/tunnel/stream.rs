//! One session's stream, and how headers are read from it and written to it.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use quinn::{Connection, ReadError, RecvStream, SendStream, StoppedError, VarInt, WriteError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::HEADER_DEADLINE;
use super::endpoint::{SEND_WINDOW, Turns, URGENT_SEND_WINDOW};
use super::header::{Decoder, Frame, HeaderError};
use super::reason::{self, Reason};
use super::urgency::Urgency;
use crate::model::error::{ApiError, ErrorCode};

type Stopped = Pin<Box<dyn Future<Output = Result<Option<VarInt>, StoppedError>> + Send + Sync>>;

/// The bytes of one session, both ways.
///
/// Each way ends by itself: `shutdown` ends what is sent (the VM reads an end of file) and returns once everything has
/// been acknowledged by the relay; reading goes on. Dropping the stream without `shutdown` breaks the session off, so
/// that a program that died does not look like one that finished. Errors say what happened: "the VM reset the
/// connection", "the connection to the worker was lost".
pub struct TunnelStream {
    pub(super) incoming: RecvStream,
    pub(super) outgoing: Outgoing,
    stopped: Option<Stopped>,
}

impl TunnelStream {
    /// The stream of these two halves, which are of `connection`.
    pub(super) fn new(connection: &Connection, (outgoing, incoming): (SendStream, RecvStream), turns: Turns) -> Self {
        Self { incoming, outgoing: Outgoing::new(connection, outgoing, turns), stopped: None }
    }

    /// Sends one header; a peer that grants no room for it within [`HEADER_DEADLINE`] gets none.
    pub(super) async fn write_frame(&mut self, frame: &Frame) -> Result<(), FrameError> {
        let bytes = frame.encode()?;
        match timeout(HEADER_DEADLINE, self.outgoing.write_all(&mut [bytes.into()])).await {
            Ok(written) => written.map_err(|error| FrameError::Io(write_error(error))),
            Err(_) => Err(FrameError::Io(io::ErrorKind::TimedOut.into())),
        }
    }

    /// Reads one header and not a byte more. Not cancel safe: what was read is lost.
    pub(super) async fn read_frame(&mut self) -> Result<Frame, FrameError> {
        read_frame(&mut self.incoming).await
    }

    /// Gives up both ways at once.
    pub(super) fn abort(&mut self, reason: Reason) {
        self.outgoing.reset(reason);
        let _ = self.incoming.stop(reason.code());
    }

    /// Answers a header with a refusal and ends the stream.
    pub(super) async fn refuse(mut self, error: ApiError) {
        if self.write_frame(&Frame::refused(error)).await.is_ok() {
            self.outgoing.finish();
        }
    }
}

/// Reads one header and not a byte more.
pub(super) async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> Result<Frame, FrameError> {
    let mut decoder = Decoder::default();
    let mut buffer = [0u8; 256];
    loop {
        let want = decoder.wants().min(buffer.len());
        let place = buffer.get_mut(..want).unwrap_or_default();
        let read = from.read(place).await.map_err(FrameError::Io)?;
        if read == 0 {
            return Err(FrameError::Ended);
        }
        if let (_, Some(frame)) = decoder.push(place.get(..read).unwrap_or_default())? {
            return Ok(frame);
        }
    }
}

/// Why no header could be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error("{0}")]
    Io(#[source] io::Error),
    #[error("the other end closed the stream instead of answering")]
    Ended,
}

impl From<FrameError> for ApiError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Header(error) => error.into(),
            other => ApiError::new(ErrorCode::Unavailable, other.to_string()),
        }
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.get_mut().incoming.poll_read_buf(cx, buf).map_err(read_error)
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().outgoing.poll_write(cx, bytes).map_err(write_error)
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.outgoing.finish();
        let stopped = this.stopped.get_or_insert_with(|| Box::pin(this.outgoing.stream.stopped()));
        let result = ready!(stopped.as_mut().poll(cx));
        // A finished stream answers the same again, so that a second shutdown is harmless.
        this.stopped = None;
        match result {
            // A guest that closed before it had read everything is not the writer's failure.
            Ok(_) => Poll::Ready(Ok(())),
            Err(StoppedError::ConnectionLost(error)) => Poll::Ready(Err(lost(&error))),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}

impl Drop for TunnelStream {
    fn drop(&mut self) {
        if !self.outgoing.done {
            self.abort(Reason::Aborted);
        }
    }
}

impl fmt::Debug for TunnelStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TunnelStream").field(&self.incoming.id().to_string()).finish()
    }
}

/// The sending half. quinn ends a stream properly when it is dropped, which would make a broken session look whole;
/// this one resets it unless it was finished. It goes before or behind others of its connection by its [`Urgency`].
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) stream: SendStream,
    connection: Connection,
    /// None where all have their turns alike.
    urgency: Option<Urgency>,
    done: bool,
}

impl Outgoing {
    fn new(connection: &Connection, stream: SendStream, turns: Turns) -> Self {
        let urgency = (turns == Turns::Urgent).then(|| Urgency::new(Instant::now()));
        Self { stream, connection: connection.clone(), urgency, done: false }
    }

    /// Hands all pieces over to be sent. Not cancel safe: some may have been.
    pub(super) async fn write_all(&mut self, mut pieces: &mut [Bytes]) -> Result<(), WriteError> {
        while !pieces.is_empty() {
            let written = std::future::poll_fn(|cx| {
                self.poll(cx, |stream, cx| pin!(stream.write_chunks(pieces)).poll(cx), |written| written.bytes)
            });
            let written = written.await?;
            pieces = pieces.get_mut(written.chunks..).unwrap_or_default();
        }
        Ok(())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, WriteError>> {
        self.poll(cx, |stream, cx| SendStream::poll_write(Pin::new(stream), cx, bytes), |written| *written)
    }

    /// Writes in the stream's turn; `size` tells how many bytes were taken.
    fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        mut write: impl FnMut(&mut SendStream, &mut Context<'_>) -> Poll<Result<T, WriteError>>,
        size: impl Fn(&T) -> usize,
    ) -> Poll<Result<T, WriteError>> {
        let now = Instant::now();
        let turn = self.urgency.as_mut().and_then(|urgency| urgency.look(now));
        self.take(turn);
        let mut result = write(&mut self.stream, cx);
        if result.is_pending() && self.urgency.as_ref().is_some_and(Urgency::is_urgent) {
            // The window of the connection may be full of what others sent, and they wait in line for every packet that is
            // acknowledged. This one need not: it has a little room that is closed to them again before they are woken.
            self.connection.set_send_window(URGENT_SEND_WINDOW);
            result = write(&mut self.stream, cx);
            self.connection.set_send_window(SEND_WINDOW);
        }
        if let (Poll::Pending, Some(urgency)) = (&result, &mut self.urgency) {
            urgency.waits(now);
        }
        if let Poll::Ready(Ok(written)) = &result {
            let turn = self.urgency.as_mut().and_then(|urgency| urgency.sent(size(written), now));
            self.take(turn);
        }
        result
    }

    fn take(&self, turn: Option<i32>) {
        if let Some(priority) = turn {
            // A stream that has ended needs none.
            let _ = self.stream.set_priority(priority);
        }
    }

    /// Ends the stream after what was written; harmless when it has ended.
    pub(super) fn finish(&mut self) {
        if !std::mem::replace(&mut self.done, true) {
            let _ = self.stream.finish();
        }
    }

    /// Gives the stream up, unless it has ended already.
    pub(super) fn reset(&mut self, reason: Reason) {
        if !std::mem::replace(&mut self.done, true) {
            let _ = self.stream.reset(reason.code());
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.reset(Reason::Aborted);
    }
}

fn lost(error: &quinn::ConnectionError) -> io::Error {
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        format!("the connection to the tunnel endpoint was lost: {}", reason::describe(error)),
    )
}

fn read_error(error: ReadError) -> io::Error {
    match error {
        ReadError::Reset(code) => Reason::from_code(code).to_io(),
        ReadError::ConnectionLost(error) => lost(&error),
        other => other.into(),
    }
}

fn write_error(error: WriteError) -> io::Error {
    match error {
        WriteError::Stopped(code) => Reason::from_code(code).to_io(),
        WriteError::ConnectionLost(error) => lost(&error),
        other => other.into(),
    }
}
