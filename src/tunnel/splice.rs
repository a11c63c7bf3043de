//! Joins two ends of a session and copies until both ways have ended. Used by the relay (QUIC to QUIC) and by the worker
//! (QUIC to guest).
//!
//! Each way ends by itself. Back-pressure needs no code: nothing is read before the last piece could be written. A way
//! counts as ended only when its receiver has acknowledged the last byte. What one end does is shown to the other:
//!
//! | happens at one end | seen at the other |
//! |---|---|
//! | finishes | end of file; the other way goes on |
//! | reads no more, politely | writing fails; the other way goes on |
//! | its connection is lost | what it sent before is still delivered, for at most [`DRAIN`] |
//! | breaks off, resets | both ways are reset with the same reason |

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, ready};

use bytes::{Bytes, BytesMut};
use quinn::{ReadError, RecvStream, StoppedError, VarInt, WriteError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::DRAIN;
use super::reason::Reason;
use super::stream::{Outgoing, TunnelStream};

/// Pieces taken at once from a QUIC stream; a piece is about one packet. As many as arrive while a task waits for its turn.
const PIECES: usize = 32;

/// Buffer for reading from a guest, in bytes: starts small, since most sessions are interactive and many are idle, and
/// grows while the guest fills it.
const FIRST_BUFFER: usize = 4 << 10;
const LARGEST_BUFFER: usize = 64 << 10;

/// What went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes from the first end to the second.
    pub forward: u64,
    /// Bytes back.
    pub back: u64,
    /// Why it ended before both ways had; none = properly.
    pub broken: Option<Reason>,
}

/// How one way ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Everything was delivered.
    Finished,
    /// The receiver wants no more.
    Declined,
    /// The receiver's connection is gone.
    Gone(Reason),
    /// The session is over.
    Broken(Reason),
}

/// The relay's splice: `client` is the first end, `worker` the second. When `cut` yields a reason, both are reset with it.
/// Not cancel safe: when dropped, both ends are reset.
pub async fn relay(mut client: TunnelStream, mut worker: TunnelStream, cut: impl Future<Output = Reason>) -> Traffic {
    let mut traffic = Traffic::default();
    let session = both(
        pipe(
            &mut client.incoming,
            &mut worker.outgoing,
            Ends(Reason::ClientLost, Reason::WorkerLost),
            &mut traffic.forward,
        ),
        pipe(
            &mut worker.incoming,
            &mut client.outgoing,
            Ends(Reason::WorkerLost, Reason::ClientLost),
            &mut traffic.back,
        ),
    );
    // Neither may be dropped half-way, except to end the session.
    let broken = tokio::select! {
        broken = session => broken,
        reason = cut => Some(reason),
    };
    if let Some(reason) = broken {
        client.abort(reason);
        worker.abort(reason);
    }
    traffic.broken = broken;
    traffic
}

/// The worker's splice: `tunnel` is the first end, `guest` the second. Not cancel safe: when dropped, the tunnel is reset.
pub async fn guest(mut tunnel: TunnelStream, guest: impl AsyncRead + AsyncWrite + Send + Unpin) -> Traffic {
    let mut traffic = Traffic::default();
    let (mut from_guest, mut to_guest) = tokio::io::split(guest);
    let reset = AtomicBool::new(false);
    let broken = both(
        deliver(&mut tunnel.incoming, &mut to_guest, &reset, &mut traffic.forward),
        collect(&mut from_guest, &mut tunnel.outgoing, &reset, &mut traffic.back),
    )
    .await;
    if let Some(reason) = broken {
        tunnel.abort(reason);
    }
    traffic.broken = broken;
    traffic
}

/// Runs both ways to their ends, or until one of them ends the session.
async fn both(forward: impl Future<Output = End>, back: impl Future<Output = End>) -> Option<Reason> {
    let (mut forward, mut back) = (pin!(forward), pin!(back));
    let (first, forward_first) = tokio::select! {
        end = &mut forward => (end, true),
        end = &mut back => (end, false),
    };
    let rest = async { if forward_first { back.await } else { forward.await } };
    let second = match first {
        End::Broken(reason) => return Some(reason),
        End::Gone(reason) => timeout(DRAIN, rest).await.unwrap_or(End::Broken(reason)),
        End::Finished | End::Declined => rest.await,
    };
    match (first, second) {
        (_, End::Broken(reason) | End::Gone(reason)) | (End::Gone(reason), _) => Some(reason),
        _ => None,
    }
}

/// What it means when the connection of the sender, and of the receiver, is lost.
struct Ends(Reason, Reason);

/// One way between two QUIC streams. Pieces that come alone are handed on, others are joined: quinn-proto 0.11 looks for the
/// contents of each packet from the first piece that is not acknowledged on, which costs more than to copy once.
async fn pipe(from: &mut RecvStream, to: &mut Outgoing, lost: Ends, count: &mut u64) -> End {
    let mut stopped = pin!(to.stream.stopped());
    let end = loop {
        let read = tokio::select! {
            biased;
            read = arrived(from, join) => read,
            answer = &mut stopped => break refused(answer, lost.1),
        };
        let joined = match read {
            Ok(Some(joined)) => joined,
            Ok(None) => {
                to.finish();
                break delivered(stopped.await, lost.1);
            }
            Err(error) => break read_end(&error, lost.0),
        };
        let length = joined.len();
        if let Err(error) = to.write_all(&mut [joined]).await {
            break write_end(&error, lost.1);
        }
        *count += length as u64;
    };
    decline(from, end);
    end
}

/// Waits for what comes next and hands all that has arrived of it to `put`; none = the end. Cancel safe.
async fn arrived<T>(from: &mut RecvStream, put: impl Fn(&[Bytes]) -> T) -> Result<Option<T>, ReadError> {
    poll_fn(|cx| {
        // Not kept while it waits: most sessions are idle.
        let mut pieces: [Bytes; PIECES] = std::array::from_fn(|_| Bytes::new());
        let read = ready!(pin!(from.read_chunks(&mut pieces)).poll(cx))?;
        Poll::Ready(Ok(read.map(|read| put(pieces.get(..read).unwrap_or_default()))))
    })
    .await
}

/// All `pieces` as one.
fn join(pieces: &[Bytes]) -> Bytes {
    match pieces {
        [alone] => alone.clone(),
        pieces => pieces.concat().into(),
    }
}

/// The way from the guest. A `reset` that the other way has been told of is not told again here, where it looks like an end.
async fn collect(from: &mut (impl AsyncRead + Unpin), to: &mut Outgoing, reset: &AtomicBool, count: &mut u64) -> End {
    let mut stopped = pin!(to.stream.stopped());
    let mut size = FIRST_BUFFER;
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(size);
        let read = tokio::select! {
            biased;
            read = from.read_buf(&mut buffer) => read,
            answer = &mut stopped => return refused(answer, Reason::ClientLost),
        };
        match read {
            Ok(0) if reset.load(Ordering::Relaxed) => return End::Broken(Reason::GuestReset),
            Ok(0) => {
                to.finish();
                return delivered(stopped.await, Reason::ClientLost);
            }
            Ok(read) => {
                if let Err(error) = to.write_all(&mut [buffer.split().freeze()]).await {
                    return write_end(&error, Reason::ClientLost);
                }
                *count += read as u64;
                size = if read >= size { size * 2 } else { read.next_power_of_two() };
                size = size.clamp(FIRST_BUFFER, LARGEST_BUFFER);
            }
            Err(_) => return End::Broken(Reason::GuestReset),
        }
    }
}

/// The way to the guest; notes that it was `reset`.
async fn deliver(
    from: &mut RecvStream,
    to: &mut (impl AsyncWrite + Unpin),
    reset: &AtomicBool,
    count: &mut u64,
) -> End {
    let end = loop {
        match arrived(from, <[Bytes]>::to_vec).await {
            Ok(Some(pieces)) => {
                let length: usize = pieces.iter().map(Bytes::len).sum();
                let written = async {
                    write_pieces(to, &pieces).await?;
                    to.flush().await
                };
                // A guest that closed may still have sent something worth reading: only this way ends.
                if let Err(error) = written.await {
                    reset.store(error.kind() == io::ErrorKind::ConnectionReset, Ordering::Relaxed);
                    break End::Declined;
                }
                *count += length as u64;
            }
            Ok(None) => {
                // The guest may have closed at the same moment; there is nothing left to lose.
                let _ = to.shutdown().await;
                return End::Finished;
            }
            Err(error) => break read_end(&error, Reason::ClientLost),
        }
    };
    decline(from, end);
    end
}

/// Writes all pieces, in one call where `to` can.
async fn write_pieces(to: &mut (impl AsyncWrite + Unpin), pieces: &[Bytes]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    let mut left = &mut *slices;
    while !left.is_empty() {
        match to.write_vectored(left).await? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => IoSlice::advance_slices(&mut left, written),
        }
    }
    Ok(())
}

/// Tells the sender that nobody reads any more. A broken session is reset as a whole by the caller.
fn decline(from: &mut RecvStream, end: End) {
    if matches!(end, End::Declined | End::Gone(_)) {
        let _ = from.stop(Reason::Closed.code());
    }
}

fn read_end(error: &ReadError, lost: Reason) -> End {
    match error {
        ReadError::Reset(code) => End::Broken(Reason::from_code(*code)),
        ReadError::ConnectionLost(_) => End::Broken(lost),
        _ => End::Broken(Reason::Protocol),
    }
}

fn write_end(error: &WriteError, lost: Reason) -> End {
    match error {
        WriteError::Stopped(code) => stopped_end(*code),
        WriteError::ConnectionLost(_) => End::Gone(lost),
        _ => End::Broken(Reason::Protocol),
    }
}

fn stopped_end(code: VarInt) -> End {
    match Reason::from_code(code) {
        Reason::Closed => End::Declined,
        reason => End::Broken(reason),
    }
}

fn refused(answer: Result<Option<VarInt>, StoppedError>, lost: Reason) -> End {
    match answer {
        Ok(Some(code)) => stopped_end(code),
        Ok(None) => End::Broken(Reason::Protocol),
        Err(_) => End::Gone(lost),
    }
}

fn delivered(answer: Result<Option<VarInt>, StoppedError>, lost: Reason) -> End {
    match answer {
        Ok(None) => End::Finished,
        other => refused(other, lost),
    }
}
