//! What waits to be written to one client. Publishers put whole batches in, under one short lock each, and try to write
//! them at once from their own task; only what the socket does not take is left to the client's own task.
//!
//! The queue is bounded in bytes: a client over its bound is cut off with "Slow Consumer", and nobody waits for it.

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::backlog::{Backlog, Batch, MAX_PIECES};
use super::limits::after;
use super::protocol::{Fault, encode};
use super::transport::Transport;

/// Write calls in one visit, so that a busy client does not keep a publisher from its own socket.
const MAX_ROUNDS: usize = 4;
/// Bytes that must go out per write deadline: a client that takes less is no better than one that takes nothing.
const DEADLINE_GOAL: u64 = 1024 * 1024;
/// How long a closing connection may take to hand over its last bytes.
pub const LINGER: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Queue {
    backlog: Backlog,
    /// Bytes of the backlog, also while someone has taken it out.
    pending: usize,
    written: u64,
    /// Someone is writing, with the backlog taken out.
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
    tls: bool,
}

impl Outbound {
    /// An empty queue in front of `transport`.
    pub fn new(transport: Arc<Transport>, max_pending: usize) -> Self {
        let tls = transport.is_tls();
        let queue = Queue { transport: Some(transport), ..Queue::default() };
        Self {
            tls,
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

    /// Whether what is written goes through TLS.
    pub fn is_tls(&self) -> bool {
        self.tls
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
        self.enqueue_after(batch, |_| ())
    }

    /// The same, with a last look at `batch` once nothing can come before it any more.
    ///
    /// # Errors
    /// As [`Outbound::enqueue`].
    pub fn enqueue_after(&self, batch: &mut Batch, look: impl FnOnce(&mut Batch)) -> Result<Fill, Fault> {
        let mut queue = self.lock();
        look(batch);
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
        queue.backlog.push(batch);
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

    /// Bytes waiting.
    pub fn pending(&self) -> usize {
        self.lock().pending
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
                        _ => *until.insert((after(now, deadline), written + pending.clamp(1, DEADLINE_GOAL))),
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
        self.lock().let_go();
        if slow { Err(Fault::SlowConsumer) } else { Ok(()) }
    }

    /// Lets go of the socket and of everything queued, for a connection whose task is no more.
    pub fn abandon(&self) {
        self.finish(None);
        self.lock().let_go();
    }

    fn flush(&self, own_task: bool) -> Outcome {
        for _ in 0..MAX_ROUNDS {
            let (transport, mut taken) = {
                let mut queue = self.lock();
                if queue.flushing || (queue.blocked && !own_task) {
                    return Outcome::Busy;
                }
                if queue.backlog.is_empty() {
                    let rest = queue.transport.clone().filter(|transport| transport.has_rest());
                    drop(queue);
                    return rest.map_or(Outcome::Empty, |transport| flush_rest(&transport));
                }
                let Some(transport) = queue.transport.clone() else { return Outcome::Failed };
                queue.flushing = true;
                (transport, std::mem::take(&mut queue.backlog))
            };
            let written = write(&transport, &taken);
            let mut queue = self.lock();
            queue.flushing = false;
            let outcome = match written {
                Ok(count) => {
                    taken.advance(count);
                    queue.written += count as u64;
                    queue.pending = queue.pending.saturating_sub(count);
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
            taken.append(&mut queue.backlog);
            queue.backlog = taken;
            if queue.transport.is_none() {
                queue.let_go(); // the connection ended meanwhile
                return Outcome::Failed;
            }
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
        let queue = self.lock();
        let rest = queue.transport.as_ref().is_some_and(|transport| transport.has_rest());
        if queue.backlog.is_empty() && !rest { Outcome::Empty } else { Outcome::More }
    }
}

impl Queue {
    /// Once closing: cuts what is not to be sent, and puts the last words behind the rest.
    fn settle(&mut self) {
        if std::mem::take(&mut self.cut) {
            self.pending = self.backlog.cut();
        }
        if !self.last_words.is_empty() {
            let words = std::mem::take(&mut self.last_words);
            self.pending += words.len();
            self.backlog.push_frames(words);
        }
    }

    fn is_done(&self) -> bool {
        self.backlog.is_empty() && !self.flushing
    }

    fn let_go(&mut self) {
        self.backlog.clear();
        self.pending = 0;
        self.transport = None;
    }
}

/// Writes what the transport took before.
fn flush_rest(transport: &Transport) -> Outcome {
    match transport.try_flush() {
        Ok(()) => Outcome::Empty,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Outcome::Blocked,
        Err(_) => Outcome::Failed,
    }
}

fn write(transport: &Transport, backlog: &Backlog) -> io::Result<usize> {
    let mut slices = [IoSlice::new(&[]); MAX_PIECES];
    let count = backlog.slices(&mut slices);
    match transport.try_write(slices.get(..count).unwrap_or_default()) {
        Ok(0) => Err(io::ErrorKind::WriteZero.into()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair(max_pending: usize) -> (Outbound, Arc<Transport>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (peer, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
        let transport = Arc::new(Transport::plain(accepted.unwrap().0));
        (Outbound::new(transport.clone(), max_pending), transport, peer.unwrap())
    }

    fn batch(frames: &[u8]) -> Batch {
        let mut batch = Batch::default();
        batch.tail().extend_from_slice(frames);
        batch
    }

    #[tokio::test]
    async fn what_was_queued_goes_out_before_the_last_words() {
        let (outbound, transport, mut peer) = pair(100).await;
        outbound.enqueue(&mut batch(b"one ")).unwrap();
        outbound.finish(Some(&Fault::Stale));
        outbound.enqueue(&mut batch(b"too late")).unwrap();
        outbound.run(&transport, LINGER).await.unwrap();
        transport.shutdown_write();
        let mut seen = String::new();
        peer.read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen, "one -ERR 'Stale Connection'\r\n");
    }

    #[tokio::test]
    async fn over_the_bound_only_the_last_words_are_left() {
        let (outbound, transport, mut peer) = pair(10).await;
        outbound.enqueue(&mut batch(b"12345678")).unwrap();
        assert_eq!(outbound.enqueue(&mut batch(b"901")).unwrap_err(), Fault::SlowConsumer);
        assert!(outbound.is_closed());
        outbound.enqueue(&mut batch(b"901")).unwrap();
        outbound.run(&transport, LINGER).await.unwrap();
        transport.shutdown_write();
        let mut seen = String::new();
        peer.read_to_string(&mut seen).await.unwrap();
        assert_eq!(seen, "-ERR 'Slow Consumer'\r\n");
    }

    #[tokio::test]
    async fn relief_ends_when_the_backlog_is_gone_or_time_is_up() {
        let (outbound, _transport, _peer) = pair(1_000).await;
        outbound.enqueue(&mut batch(&[b'x'; 500])).unwrap();
        outbound.relief(Duration::from_millis(1), 100).await;
        let relieved = async {
            outbound.relief(Duration::from_secs(60), 100).await;
        };
        let flushing = async {
            tokio::task::yield_now().await;
            while !outbound.lock().is_done() {
                outbound.flush_now();
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(relieved, flushing) }).await.unwrap();
    }
}
