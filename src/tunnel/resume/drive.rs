//! Moves bytes between an end of a session, its local side and the stream that carries it at the moment. Used by both ends:
//! [`super::client`] and the worker's session keeper.
//!
//! Everything is cancel safe: what was read is in the [`End`] or in the buffers here before anything else is awaited.

use std::future::pending;
use std::io;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::time::{sleep, timeout};

use super::end::End;
use super::{ACK_DELAY, Over};
use crate::tunnel::reason::Reason;

/// Buffers for reading, in bytes: they start small, since most sessions are interactive and many are idle, and grow while
/// they are filled.
const FIRST_BUFFER: usize = 2 << 10;
const LARGEST_BUFFER: usize = 64 << 10;

/// How long the goodbyes of a session may take: both ends say theirs at once.
const FAREWELL: Duration = Duration::from_secs(1);

/// A buffer to read into that grows while it is filled.
#[derive(Debug)]
struct Buffer {
    bytes: BytesMut,
    size: usize,
}

impl Buffer {
    fn new() -> Self {
        Self { bytes: BytesMut::new(), size: FIRST_BUFFER }
    }

    /// Reads at most `most` bytes; 0 = the end.
    async fn read(&mut self, from: &mut (impl AsyncRead + Unpin), most: usize) -> io::Result<usize> {
        self.bytes.reserve(self.size.min(most));
        let limit = u64::try_from(self.size.min(most)).unwrap_or(u64::MAX);
        let read = from.take(limit).read_buf(&mut self.bytes).await?;
        self.size = if read >= self.size { self.size * 2 } else { read.next_power_of_two() };
        self.size = self.size.clamp(FIRST_BUFFER, LARGEST_BUFFER);
        Ok(read)
    }

    /// Gives up a large buffer that is empty.
    fn trim(&mut self) {
        if self.bytes.is_empty() && self.bytes.capacity() > FIRST_BUFFER {
            self.bytes = BytesMut::new();
        }
    }
}

/// The local side of an end: the user's program, or the guest.
#[derive(Debug)]
pub struct Local<L> {
    read: ReadHalf<L>,
    write: WriteHalf<L>,
    buffer: Buffer,
    /// What a failure to read means to the other end.
    broken: Reason,
    /// Writing has failed for that reason, which reading is not told again: there it looks like an end.
    reset: bool,
}

impl<L: AsyncRead + AsyncWrite> Local<L> {
    /// The side behind `stream`; `broken` is what it means when that breaks.
    pub fn new(stream: L, broken: Reason) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self { read, write, buffer: Buffer::new(), broken, reset: false }
    }
}

/// A stream that carries a session until it is lost.
#[derive(Debug)]
pub struct Carrier<T> {
    read: ReadHalf<T>,
    write: WriteHalf<T>,
    incoming: Buffer,
    outgoing: BytesMut,
    /// Nothing can be written any more; what came before may still be worth reading.
    failed: Option<io::Error>,
}

impl<T: AsyncRead + AsyncWrite> Carrier<T> {
    /// A fresh attachment over `stream`; [`End::attach`] belongs to it.
    pub fn new(stream: T) -> Self {
        let (read, write) = tokio::io::split(stream);
        Self { read, write, incoming: Buffer::new(), outgoing: BytesMut::new(), failed: None }
    }

    /// Ends a stream over which all has been said, so that its last bytes arrive: nothing that is left unread may break it.
    pub async fn farewell(mut self) {
        let goodbye = async {
            if self.write.write_all(&self.outgoing).await.is_ok() && self.write.shutdown().await.is_ok() {
                let mut rest = [0; 256];
                while self.read.read(&mut rest).await.is_ok_and(|read| read > 0) {}
            }
        };
        let _ = timeout(FAREWELL, goodbye).await;
    }
}

/// Why [`drive`] returned.
#[derive(Debug)]
pub enum Event {
    /// The other end was heard for the first time over this carrier.
    Greeted,
    /// The session is over, and the other end knows, or will by [`Carrier::farewell`].
    Over(Over),
    /// The stream that carried it is lost, and why.
    Lost(String),
}

/// What happened in one turn.
enum Did {
    TookIn(io::Result<usize>),
    HandedOn(io::Result<usize>),
    Received(io::Result<usize>),
    Sent(io::Result<usize>),
    Waited,
}

/// Moves bytes until the session is over or its carrier is lost. Without a carrier it never returns, and only what there is
/// room for goes on. Cancel safe.
pub async fn drive<L, T>(end: &mut End, local: &mut Local<L>, mut carrier: Option<&mut Carrier<T>>) -> Event
where
    L: AsyncRead + AsyncWrite,
    T: AsyncRead + AsyncWrite,
{
    loop {
        if end.is_at_end() {
            // One that has closed already has nothing left to lose.
            let _ = local.write.shutdown().await;
            end.close();
        }
        if let Some(carrier) = carrier.as_deref_mut() {
            if carrier.failed.is_none() {
                end.fill(&mut carrier.outgoing);
            }
            if let Some(over) = end.over().filter(|over| carrier.outgoing.is_empty() || matches!(over, Over::Reset(_)))
            {
                return Event::Over(over);
            }
        }
        let greeted = end.is_greeted();
        match turn(end, local, carrier.as_deref_mut()).await {
            Did::TookIn(Ok(0)) if local.reset => end.fail(local.broken),
            Did::TookIn(Ok(0)) => end.finish(),
            Did::TookIn(Ok(_)) => {
                end.push(&local.buffer.bytes);
                local.buffer.bytes.clear();
                local.buffer.trim();
            }
            Did::TookIn(Err(_)) => end.fail(local.broken),
            Did::HandedOn(Ok(count)) if count > 0 => end.deliver(count),
            // A side that has closed may still have sent something worth reading: only this way ends.
            Did::HandedOn(handed) => {
                local.reset = handed.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset);
                end.decline();
            }
            Did::Received(Ok(count)) if count > 0 => {
                let Some(carrier) = carrier.as_deref_mut() else { continue };
                if let Err(violation) = end.receive(&mut carrier.incoming.bytes) {
                    tracing::warn!(%violation, "the other end of a session broke the protocol");
                }
                carrier.incoming.trim();
                if !greeted && end.is_greeted() {
                    return Event::Greeted;
                }
            }
            Did::Received(ended) => {
                let failed = carrier.and_then(|carrier| carrier.failed.take());
                return Event::Lost(match (ended, failed) {
                    (Err(error), _) | (Ok(_), Some(error)) => error.to_string(),
                    (Ok(_), None) => "the other end closed the connection".to_owned(),
                });
            }
            Did::Sent(sent) => {
                let Some(carrier) = carrier.as_deref_mut() else { continue };
                match sent {
                    Ok(count) => carrier.outgoing.advance(count.min(carrier.outgoing.len())),
                    Err(error) => carrier.failed = Some(error),
                }
                if carrier.outgoing.is_empty() && carrier.outgoing.capacity() > FIRST_BUFFER {
                    carrier.outgoing = BytesMut::new();
                }
            }
            Did::Waited => {
                if let Some(carrier) = carrier.as_deref_mut().filter(|carrier| carrier.failed.is_none()) {
                    end.acknowledge(&mut carrier.outgoing);
                }
            }
        }
    }
}

/// Waits for the next thing to happen. Cancel safe.
async fn turn<L, T>(end: &End, local: &mut Local<L>, carrier: Option<&mut Carrier<T>>) -> Did
where
    L: AsyncRead + AsyncWrite,
    T: AsyncRead + AsyncWrite,
{
    let (room, front) = (end.room(), end.front());
    let Local { read, write, buffer, .. } = local;
    let (receive, send, owes) = match carrier {
        Some(Carrier { read, write, incoming, outgoing, failed }) => {
            let sends = failed.is_none() && !outgoing.is_empty();
            (Some((read, incoming)), sends.then_some((write, &*outgoing)), failed.is_none() && end.owes_ack())
        }
        None => (None, None, false),
    };
    let receive = async {
        match receive {
            Some((read, incoming)) => incoming.read(read, usize::MAX).await,
            None => pending().await,
        }
    };
    let send = async {
        match send {
            Some((write, outgoing)) => write.write(outgoing).await,
            None => pending().await,
        }
    };
    tokio::select! {
        read = buffer.read(read, room), if room > 0 => Did::TookIn(read),
        written = write.write(front), if !front.is_empty() => Did::HandedOn(written),
        received = receive => Did::Received(received),
        sent = send => Did::Sent(sent),
        () = sleep(ACK_DELAY), if owes => Did::Waited,
    }
}
