//! What waits to be written to one client. Publishers put whole batches in, under one short lock each, and try to write
//! them at once from their own task; only what the socket does not take is left to the client's own task.
//!
//! The queue is bounded in bytes: a client over its bound is cut off with "Slow Consumer", and nobody waits for it.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::protocol::{Fault, encode};
use super::transport::Transport;

/// Pieces per write call; the kernel takes at most 1,024.
const MAX_PIECES: usize = 64;
/// Write calls in one visit, so that a busy client does not keep a publisher from its own socket.
const MAX_ROUNDS: usize = 4;
/// Batches below this are copied behind the last piece instead of becoming one of their own.
const COALESCE: usize = 4 * 1024;
/// A piece does not grow beyond this by coalescing: 64 KiB stays below the allocator's threshold for mapped memory.
const MAX_PIECE: usize = 64 * 1024;
/// Bytes that must go out per write deadline: a client that takes less is no better than one that takes nothing.
const DEADLINE_GOAL: u64 = 1024 * 1024;
/// How long a closing connection may take to hand over its last bytes.
pub const LINGER: Duration = Duration::from_secs(1);

#[derive(Debug)]
enum Storage {
    Copied(Vec<u8>),
    Shared(Bytes),
}

#[derive(Debug)]
struct Piece {
    bytes: Storage,
    /// Whether a frame ends with this piece, so that another kind of frame may follow.
    ends_frame: bool,
}

impl Piece {
    fn as_slice(&self) -> &[u8] {
        match &self.bytes {
            Storage::Copied(bytes) => bytes,
            Storage::Shared(bytes) => bytes,
        }
    }
}

/// Frames that one publisher has for one client and not yet handed over.
#[derive(Debug, Default)]
pub struct Batch {
    pieces: Vec<Piece>,
    tail: Vec<u8>,
    len: usize,
}

impl Batch {
    /// Where to append frames. Call [`Batch::appended`] afterwards.
    #[inline]
    pub fn tail(&mut self) -> &mut Vec<u8> {
        &mut self.tail
    }

    /// Bytes held.
    #[inline]
    pub fn len(&self) -> usize {
        self.len + self.tail.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends `body` without copying it, in the middle of a frame.
    pub fn push_shared(&mut self, body: Bytes) {
        let tail = std::mem::take(&mut self.tail);
        self.len += tail.len() + body.len();
        self.pieces.push(Piece { bytes: Storage::Copied(tail), ends_frame: false });
        self.pieces.push(Piece { bytes: Storage::Shared(body), ends_frame: false });
    }
}

#[derive(Debug, Default)]
struct Queue {
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are written.
    offset: usize,
    pending: usize,
    written: u64,
    /// Someone is writing, with the pieces taken out.
    flushing: bool,
    /// The socket was full; only the client's own task tries again.
    blocked: bool,
    closing: Option<Instant>,
    /// Drop everything behind the frame that is partly written.
    cut: bool,
    last_words: Vec<u8>,
    transport: Option<Arc<Transport>>,
}

/// How full a client's queue is after an enqueue.
#[derive(Debug, Clone, Copy)]
pub struct Fill {
    /// Bytes waiting.
    pub pending: usize,
    /// Bytes ever written: who keeps reading makes this grow.
    pub written: u64,
}

enum Outcome {
    Empty,
    Busy,
    More,
    Blocked,
    Failed,
}

/// See the module.
#[derive(Debug)]
pub struct Outbound {
    queue: Mutex<Queue>,
    wake: Notify,
    drained: Notify,
    max_pending: usize,
    closed: AtomicBool,
}

impl Outbound {
    /// An empty queue in front of `transport`.
    pub fn new(transport: Arc<Transport>, max_pending: usize) -> Self {
        let queue = Queue { transport: Some(transport), ..Queue::default() };
        Self {
            queue: Mutex::new(queue),
            wake: Notify::new(),
            drained: Notify::new(),
            max_pending,
            closed: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the connection is ending.
    #[inline]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Takes over what `batch` holds. Over the bound, the client is cut off: `Err`, once.
    ///
    /// # Errors
    /// [`Fault::SlowConsumer`] when this batch was the one too many.
    pub fn enqueue(&self, batch: &mut Batch) -> Result<Fill, Fault> {
        let mut queue = self.lock();
        let len = batch.len();
        if queue.closing.is_some() {
            *batch = Batch::default();
            return Ok(Fill { pending: 0, written: queue.written });
        }
        if queue.pending.saturating_add(len) > self.max_pending {
            *batch = Batch::default();
            self.close(&mut queue, Some(&Fault::SlowConsumer));
            return Err(Fault::SlowConsumer);
        }
        queue.pending += len;
        queue.pieces.extend(batch.pieces.drain(..));
        batch.len = 0;
        if !batch.tail.is_empty() {
            match queue.pieces.back_mut() {
                Some(Piece { bytes: Storage::Copied(last), ends_frame: true })
                    if batch.tail.len() < COALESCE && last.len() + batch.tail.len() <= MAX_PIECE =>
                {
                    last.append(&mut batch.tail);
                }
                _ if batch.tail.len() < COALESCE => {
                    queue.pieces.push_back(Piece { bytes: Storage::Copied(batch.tail.clone()), ends_frame: true });
                    batch.tail.clear();
                }
                _ => {
                    let tail = std::mem::take(&mut batch.tail);
                    queue.pieces.push_back(Piece { bytes: Storage::Copied(tail), ends_frame: true });
                }
            }
        }
        Ok(Fill { pending: queue.pending, written: queue.written })
    }

    /// Ends the connection: what is queued goes out (except to a slow consumer), then the fault, if clients are told.
    pub fn finish(&self, fault: Option<&Fault>) {
        self.close(&mut self.lock(), fault);
    }

    fn close(&self, queue: &mut Queue, fault: Option<&Fault>) {
        if queue.closing.is_some() {
            return;
        }
        queue.closing = Some(Instant::now());
        self.closed.store(true, Ordering::Relaxed);
        if let Some(fault) = fault {
            queue.cut = *fault == Fault::SlowConsumer;
            encode::error(&mut queue.last_words, fault);
        }
        if !queue.flushing {
            queue.settle();
        }
        self.wake.notify_one();
        self.drained.notify_waiters();
    }

    /// Tries to write what waits, from the task of whoever put it there. What is left is the client's own task's.
    pub fn flush_now(&self) {
        match self.flush(false) {
            Outcome::More | Outcome::Blocked | Outcome::Failed => self.wake.notify_one(),
            Outcome::Empty | Outcome::Busy => {}
        }
    }

    /// Waits until little is pending, at most `limit`. Cancel safe.
    pub async fn relief(&self, limit: Duration, below: usize) {
        let wait = async {
            loop {
                let drained = self.drained.notified();
                if self.is_closed() || self.lock().pending <= below {
                    return;
                }
                drained.await;
            }
        };
        let _ = tokio::time::timeout(limit, wait).await;
    }

    /// Writes until the connection ends: the client's own task runs this next to its reading. Returns when everything is
    /// written after [`Outbound::finish`], when the socket fails, or when the last bytes do not go out in time. Not cancel
    /// safe in that nobody writes any more after it was dropped.
    ///
    /// # Errors
    /// [`Fault::SlowConsumer`] when the client took too little within `deadline`.
    pub async fn run(&self, transport: &Transport, deadline: Duration) -> Result<(), Fault> {
        let mut until: Option<(Instant, u64)> = None;
        let mut slow = false;
        loop {
            match self.flush(true) {
                Outcome::Failed => break,
                Outcome::More => tokio::task::yield_now().await,
                Outcome::Busy => self.wake.notified().await,
                Outcome::Empty => {
                    until = None;
                    if self.is_closed() && self.lock().is_done() {
                        break;
                    }
                    self.wake.notified().await;
                }
                Outcome::Blocked => {
                    let (written, pending, closing) = {
                        let queue = self.lock();
                        (queue.written, queue.pending as u64, queue.closing)
                    };
                    let now = Instant::now();
                    let (at, _) = match until {
                        Some(known @ (_, goal)) if written < goal => known,
                        _ => *until.insert((now + deadline, written + pending.clamp(1, DEADLINE_GOAL))),
                    };
                    let at = closing.map_or(at, |since| at.min(since + LINGER));
                    tokio::select! {
                        ready = transport.writable() => if ready.is_err() { break },
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep_until(at) => {
                            if closing.is_some() {
                                break;
                            }
                            slow = true;
                            self.finish(Some(&Fault::SlowConsumer));
                        }
                    }
                }
            }
        }
        self.finish(None);
        let mut queue = self.lock();
        queue.pieces.clear();
        queue.pending = 0;
        queue.transport = None;
        if slow { Err(Fault::SlowConsumer) } else { Ok(()) }
    }

    /// Lets go of the socket and of everything queued, for a connection whose task is no more.
    pub fn abandon(&self) {
        self.finish(None);
        let mut queue = self.lock();
        queue.pieces.clear();
        queue.pending = 0;
        queue.transport = None;
    }

    fn flush(&self, own_task: bool) -> Outcome {
        for _ in 0..MAX_ROUNDS {
            let (transport, mut taken, offset) = {
                let mut queue = self.lock();
                if queue.flushing || (queue.blocked && !own_task) {
                    return Outcome::Busy;
                }
                if queue.pieces.is_empty() {
                    return Outcome::Empty;
                }
                let Some(transport) = queue.transport.clone() else { return Outcome::Failed };
                queue.flushing = true;
                (transport, std::mem::take(&mut queue.pieces), queue.offset)
            };
            let written = write(&transport, &taken, offset);
            let mut queue = self.lock();
            queue.flushing = false;
            let outcome = match written {
                Ok(count) => {
                    queue.advance(&mut taken, count);
                    queue.blocked = false;
                    None
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    queue.blocked = true;
                    Some(Outcome::Blocked)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => None,
                Err(_) => Some(Outcome::Failed),
            };
            taken.append(&mut queue.pieces);
            queue.pieces = taken;
            if queue.closing.is_some() {
                queue.settle();
            }
            let (pending, closing) = (queue.pending, queue.closing.is_some());
            drop(queue);
            if outcome.is_none() && pending <= self.max_pending / 16 {
                self.drained.notify_waiters();
            }
            if closing && !own_task {
                self.wake.notify_one();
            }
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
        if self.lock().pieces.is_empty() { Outcome::Empty } else { Outcome::More }
    }
}

impl Queue {
    /// Drops what is written: `count` bytes from the front of `taken`.
    fn advance(&mut self, taken: &mut VecDeque<Piece>, count: usize) {
        self.written += count as u64;
        self.pending = self.pending.saturating_sub(count);
        let mut done = self.offset + count;
        while let Some(first) = taken.front() {
            let len = first.as_slice().len();
            if done < len {
                break;
            }
            done -= len;
            taken.pop_front();
        }
        self.offset = done;
    }

    /// Once closing: cuts what is not to be sent, and puts the last words behind the rest.
    fn settle(&mut self) {
        if std::mem::take(&mut self.cut) {
            let keep = if self.offset == 0 {
                0
            } else {
                self.pieces.iter().position(|piece| piece.ends_frame).map_or(self.pieces.len(), |at| at + 1)
            };
            self.pieces.truncate(keep);
            self.pending = self.pieces.iter().map(|piece| piece.as_slice().len()).sum::<usize>() - self.offset;
        }
        if !self.last_words.is_empty() {
            let words = std::mem::take(&mut self.last_words);
            self.pending += words.len();
            self.pieces.push_back(Piece { bytes: Storage::Copied(words), ends_frame: true });
        }
    }

    fn is_done(&self) -> bool {
        self.pieces.is_empty() && !self.flushing
    }
}

fn write(transport: &Transport, pieces: &VecDeque<Piece>, offset: usize) -> io::Result<usize> {
    let mut slices = [IoSlice::new(&[]); MAX_PIECES];
    let mut count = 0;
    for (slot, piece) in slices.iter_mut().zip(pieces) {
        let bytes = piece.as_slice();
        let skip = if count == 0 { offset } else { 0 };
        *slot = IoSlice::new(bytes.get(skip..).unwrap_or_default());
        count += 1;
    }
    match transport.try_write(slices.get(..count).unwrap_or_default()) {
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        other => other,
    }
}
