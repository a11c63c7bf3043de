//! One session: a command in a guest, what it says, and who is attached to it.
//!
//! While anybody is attached, the command is held back rather than that a record goes which one of them has not got; with
//! nobody there it runs on and the oldest go. The command itself is an SSH connection of its own, so that one server's limit of
//! sessions on a connection does not bound them.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, PollSender};

use super::history::{Cursor, History, Out, Record};
use crate::model::Timestamp;
use crate::model::error::ApiError;
use crate::ssh::client::{Program, Pty, Session as Ssh, Stdio};
use crate::ssh::terminal::Size;
use crate::ssh::{ExitStatus, SshError};
use crate::tunnel::exec::{ExecView, MAX_DATA, RunExec};

/// Pieces of output that wait to be written: half a MiB.
const OUTPUT_QUEUE: usize = 16;
/// Bytes of input that wait for the command.
const INPUT_BUFFER: usize = 64 * 1024;
/// Bytes that a reader takes at a time.
const READ: usize = 256 * 1024;
/// How many may be attached to one session.
const MAX_READERS: usize = 8;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    Exited { code: i32, how: String },
    Failed(String),
}

/// What readers wait for.
#[derive(Clone, Debug)]
struct State {
    next: u64,
    end: Option<End>,
}

/// A session. Shared by its command's task and everybody attached.
pub(super) struct Session {
    pub(super) name: String,
    pub(super) run: RunExec,
    started_at: Timestamp,
    history: Mutex<History>,
    state: watch::Sender<State>,
    /// The first record that each reader still needs.
    readers: Mutex<BTreeMap<u64, u64>>,
    /// A reader came further, or left.
    moved: watch::Sender<()>,
    input: tokio::sync::Mutex<Option<DuplexStream>>,
    sizes: watch::Sender<Size>,
    end: CancellationToken,
    /// Nobody may have it any more.
    revoked: CancellationToken,
    /// Whether its command was started; none = not yet.
    started: watch::Sender<Option<Result<(), ApiError>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// A session whose command [`Session::drive`] runs. Its input is the second value.
    pub(super) fn new(
        name: String,
        run: RunExec,
        history: History,
        started_at: Timestamp,
    ) -> (Arc<Self>, Option<DuplexStream>) {
        let (near, far) = tokio::io::duplex(INPUT_BUFFER);
        let (input, stdin) = if run.interactive { (Some(near), Some(far)) } else { (None, None) };
        let size = run
            .tty
            .as_ref()
            .map_or(Size { columns: 80, rows: 24 }, |tty| Size { columns: tty.columns, rows: tty.rows });
        let session = Self {
            name,
            run,
            started_at,
            history: Mutex::new(history),
            state: watch::channel(State { next: 1, end: None }).0,
            readers: Mutex::default(),
            moved: watch::channel(()).0,
            input: tokio::sync::Mutex::new(input),
            sizes: watch::channel(size).0,
            end: CancellationToken::new(),
            revoked: CancellationToken::new(),
            started: watch::channel(None).0,
        };
        (Arc::new(session), stdin)
    }

    /// Runs the command to its end over `ssh`. Dropping the future hangs it up.
    pub(super) async fn drive(self: Arc<Self>, ssh: Ssh, stdin: Option<DuplexStream>) {
        let (sender, said) = mpsc::channel(OUTPUT_QUEUE);
        let ran = async {
            let stdout = Records { stream: Out::Stdout, sender: PollSender::new(sender.clone()) };
            let stderr = Records { stream: Out::Stderr, sender: PollSender::new(sender) };
            let line = self.run.line.expose();
            let pty = self.run.tty.as_ref().map(|tty| {
                let resized = self.sizes.subscribe();
                let size = *resized.borrow();
                Pty { term: tty.term.clone(), size, resized }
            });
            let end = self.end.cancelled();
            let ended = match stdin {
                Some(stdin) => ssh.exec_until(Program::Command(line), pty, Stdio { stdin, stdout, stderr }, end).await,
                None => {
                    let stdin = tokio::io::empty();
                    ssh.exec_until(Program::Command(line), pty, Stdio { stdin, stdout, stderr }, end).await
                }
            };
            ssh.close().await;
            ended
        };
        let write = async {
            // Gone with it: a command whose output cannot be kept must not wait for that.
            let mut said = said;
            while let Some((stream, data)) = said.recv().await {
                self.add(stream, data).await?;
            }
            io::Result::Ok(())
        };
        let (ended, written) = tokio::join!(ran, write);
        let end = end_of(ended, written);
        self.state.send_modify(|state| state.end = Some(end));
        // Nobody takes input any more.
        *self.input.lock().await = None;
    }

    /// Tells everybody who waits whether the guest let the worker in.
    pub(super) fn tell_started(&self, started: Result<(), ApiError>) {
        self.started.send_replace(Some(started));
    }

    /// Waits until the guest let the worker in. Cancel safe.
    pub(super) async fn started(&self) -> Result<(), ApiError> {
        let mut started = self.started.subscribe();
        match started.wait_for(Option::is_some).await {
            Ok(told) => told.clone().unwrap_or(Ok(())),
            Err(_) => Ok(()), // cannot be: this session holds the other end
        }
    }

    /// Adds a record, once nobody attached needs what goes for it.
    async fn add(self: &Arc<Self>, stream: Out, data: Bytes) -> io::Result<()> {
        let mut moved = self.moved.subscribe();
        loop {
            moved.mark_unchanged();
            // The lock of the readers is held throughout, so that none comes in between who needs what goes.
            let done = blocking({
                let (session, data) = (self.clone(), data.clone());
                move || {
                    let readers = lock(&session.readers);
                    let mut history = lock(&session.history);
                    let needed = readers.values().min().copied().unwrap_or(u64::MAX);
                    let first = history.first_after_adding();
                    if first > history.first() && needed < first && !session.end.is_cancelled() {
                        return Ok(None);
                    }
                    history.add(stream, &data).map(|number| Some(number + 1))
                }
            })
            .await?;
            if let Some(next) = done {
                self.state.send_modify(|state| state.next = next);
                return Ok(());
            }
            tokio::select! {
                _ = moved.changed() => {}
                // Whoever ends it does not wait for those who are attached.
                () = self.end.cancelled() => {}
            }
        }
    }

    /// Attaches a reader who has everything up to `after`; none when there are too many.
    pub(super) fn attach(self: &Arc<Self>, after: u64) -> Option<Reader> {
        let mut readers = lock(&self.readers);
        if readers.len() >= MAX_READERS {
            return None;
        }
        let id = readers.last_key_value().map_or(0, |(id, _)| id + 1);
        let number = after.saturating_add(1);
        readers.insert(id, number);
        drop(readers);
        Some(Reader { session: self.clone(), id, cursor: Cursor::at(number), state: self.state.subscribe() })
    }

    /// The number that the next record gets.
    pub(super) fn next(&self) -> u64 {
        self.state.borrow().next
    }

    /// Waits until it is ended by somebody. Cancel safe.
    pub(super) async fn ended_early(&self) {
        self.end.cancelled().await;
    }

    /// Whether its command has ended.
    pub(super) fn is_over(&self) -> bool {
        self.state.borrow().end.is_some()
    }

    /// Gives the command input; waits while it takes none. What comes after its end, or to a command without input, is dropped.
    pub(super) async fn write(&self, data: &[u8]) {
        let mut input = self.input.lock().await;
        let taken = match input.as_mut() {
            Some(to) => to.write_all(data).await.is_ok(),
            None => true,
        };
        if !taken {
            *input = None;
        }
    }

    /// Ends the command's input.
    pub(super) async fn end_input(&self) {
        *self.input.lock().await = None;
    }

    /// Gives the terminal another size.
    pub(super) fn resize(&self, size: Size) {
        self.sizes.send_replace(size);
    }

    /// Has the command end.
    pub(super) fn end(&self) {
        self.end.cancel();
    }

    /// Has the command end, and the session be forgotten then.
    pub(super) fn revoke(&self) {
        self.end.cancel();
        self.revoked.cancel();
    }

    /// Returns after `time`, or once nobody may have it any more.
    pub(super) async fn kept_for(&self, time: Duration) {
        // Whichever it is.
        let _ = timeout(time, self.revoked.cancelled()).await;
    }

    /// How it stands.
    pub(super) fn view(&self) -> ExecView {
        let (code, ended) = match &self.state.borrow().end {
            None => (None, None),
            Some(End::Exited { code, how }) => (Some(*code), Some(how.clone())),
            Some(End::Failed(why)) => (None, Some(why.clone())),
        };
        ExecView {
            session: self.name.clone(),
            command: self.run.shown.clone(),
            started_at: self.started_at,
            attached: u32::try_from(lock(&self.readers).len()).unwrap_or(u32::MAX),
            first: lock(&self.history).first(),
            next: self.next(),
            code,
            ended,
        }
    }
}

fn end_of(ended: Result<ExitStatus, SshError>, written: io::Result<()>) -> End {
    let failed = |error: &dyn std::error::Error| match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    match (ended, written) {
        (_, Err(error)) => End::Failed(format!("what it said could not be kept on the worker's disk: {error}")),
        (Ok(status), Ok(())) => End::Exited { code: status.code(), how: status.to_string() },
        (Err(error), Ok(())) => End::Failed(failed(&error)),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Somebody attached. Dropping it detaches.
pub(super) struct Reader {
    session: Arc<Session>,
    id: u64,
    cursor: Cursor,
    state: watch::Receiver<State>,
}

/// What a reader gets next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Records in order; the first may have a higher number than was next, and what is between is kept no more.
    Records { expected: u64, records: Vec<Record> },
    /// All were read, and the command has ended; the number is that of the end.
    End(u64, End),
}

impl Reader {
    /// Waits for something to read. Cancel safe: what was not yielded is read again.
    pub(super) async fn next(&mut self) -> io::Result<Next> {
        loop {
            let state = self.state.borrow_and_update().clone();
            if self.cursor.number < state.next {
                let (session, mut cursor) = (self.session.clone(), self.cursor.clone());
                let read = move || {
                    let records = lock(&session.history).read(&mut cursor, READ)?;
                    Ok((records, cursor))
                };
                let (records, cursor) = blocking(read).await?;
                let expected = std::mem::replace(&mut self.cursor, cursor).number;
                return Ok(Next::Records { expected, records });
            }
            if let Some(end) = state.end {
                return Ok(Next::End(state.next, end));
            }
            if self.state.changed().await.is_err() {
                return Err(io::ErrorKind::UnexpectedEof.into()); // cannot be: this reader holds the session
            }
        }
    }

    /// What was yielded has been sent, and may go.
    pub(super) fn done(&self) {
        if let Some(needed) = lock(&self.session.readers).get_mut(&self.id) {
            *needed = self.cursor.number;
        }
        self.session.moved.send_replace(());
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        lock(&self.session.readers).remove(&self.id);
        self.session.moved.send_replace(());
    }
}

/// Makes records of what is written.
struct Records {
    stream: Out,
    sender: PollSender<(Out, Bytes)>,
}

impl AsyncWrite for Records {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.sender.poll_reserve(cx)).map_err(gone)?;
        let piece = buf.get(..buf.len().min(MAX_DATA)).unwrap_or_default();
        let stream = self.stream;
        self.sender.send_item((stream, Bytes::copy_from_slice(piece))).map_err(gone)?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
