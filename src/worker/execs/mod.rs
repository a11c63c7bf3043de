//! The exec sessions that this worker holds: commands in guests that go on when whoever began them goes away.
//!
//! They are held here and not in the guest, which needs nothing but its SSH server and could not keep one account from
//! another's session, as all log in as the same user; and not in the controller, whose restart would end them and which no
//! output passes through but in transit. What a session said lies on this host's disk (`history`). A session ends with its
//! guest, and with this process: the SSH connection that its command hangs on does.
//!
//! `attach` calls [`Execs::serve`] for each stream of a client; the messages are in `tunnel::exec`. A session belongs to one
//! copy of a VM and to the account that began it, with the token that it had then: others do not even learn that it is there. Who
//! has any is told to the relay, which has those end whose account may not connect any more.

mod history;
mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use self::history::{HISTORY, History, Out};
use self::session::{End, Next, Reader, Session};
use super::attach::refusal;
use super::runtime::Runtime;
use crate::bus::message::{Assignment, Want};
use crate::duplex::BoxedStream;
use crate::identity;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::{Clock, CopyId};
use crate::ssh::client::Session as Ssh;
use crate::ssh::terminal::Size;
use crate::ssh::{AcceptAny, Login, SshError};
use crate::task::{self, Task};
use crate::tunnel::exec::{self, Asked, ExecView, Holder, MAX_COMMAND, OpenExec, RunExec, Told, check_name};

/// Where guests listen for SSH.
const SSH_PORT: u16 = 22;
/// How long a login may take: key exchange is slow without hardware virtualisation.
const LOGIN_DEADLINE: Duration = Duration::from_secs(20);
/// How long a client may take for its first message.
const ASK_DEADLINE: Duration = Duration::from_secs(10);
/// For how long a session is kept once its command has ended.
const KEPT: Duration = Duration::from_secs(600);
/// How many sessions there may be of one copy, those that have ended included.
const MAX_OF_COPY: usize = 16;
/// How many there may be on this worker: with their histories some 4 GiB of its disk at the very most.
const MAX_SESSIONS: usize = 256;
/// Bytes between a session and the tunnel.
const STREAM_BUFFER: usize = 64 * 1024;
/// The longest beginning of a command in a list.
const MAX_SHOWN: usize = 200;

type Key = (CopyId, Holder, String);

/// All sessions of this worker. Dropping the last clone ends them.
#[derive(Clone)]
pub(super) struct Execs(Arc<Inner>);

struct Inner {
    runtime: Arc<dyn Runtime>,
    /// Who to log in to a guest as stands there.
    assignments: watch::Receiver<Option<Assignment>>,
    folder: PathBuf,
    clock: Clock,
    sessions: Mutex<BTreeMap<Key, Held>>,
}

struct Held {
    session: Arc<Session>,
    _task: Task,
}

impl fmt::Debug for Execs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Execs").field("sessions", &self.0.sessions().len()).finish_non_exhaustive()
    }
}

impl Inner {
    fn sessions(&self) -> MutexGuard<'_, BTreeMap<Key, Held>> {
        // Nothing panics while it is held.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Execs {
    /// None yet; their histories will be in a folder of `data_dir`.
    pub(super) fn new(
        runtime: Arc<dyn Runtime>,
        assignments: watch::Receiver<Option<Assignment>>,
        data_dir: &Path,
    ) -> io::Result<Self> {
        let folder = data_dir.join("execs");
        identity::make_private_dir(&folder)?;
        let (clock, sessions) = (Clock::start(), Mutex::default());
        Ok(Self(Arc::new(Inner { runtime, assignments, folder, clock, sessions })))
    }

    /// A stream over which `holder` is served its sessions of `copy`.
    pub(super) fn serve(&self, copy: CopyId, holder: Holder) -> BoxedStream {
        let (near, far) = tokio::io::duplex(STREAM_BUFFER);
        let client = Client { execs: self.clone(), copy, holder };
        Box::new(Served { near, _serving: task::spawn(client.run(far)) })
    }

    /// How the sessions of `holder` in `copy` stand, by name.
    fn of(&self, copy: CopyId, holder: &Holder) -> Vec<ExecView> {
        let sessions = self.0.sessions();
        let own = sessions.iter().filter(|((of, by, _), _)| *of == copy && by == holder);
        own.map(|(_, held)| held.session.view()).collect()
    }

    /// Who has sessions here, in order, those up to `after` left out.
    pub(super) fn holders(&self, after: Option<&Holder>) -> Vec<Holder> {
        let sessions = self.0.sessions();
        let all: BTreeSet<&Holder> = sessions.keys().map(|(_, holder, _)| holder).collect();
        all.into_iter().filter(|holder| after.is_none_or(|after| *holder > after)).cloned().collect()
    }

    /// Ends the sessions of `holder`, who may hold none any more: their commands within seconds, after which nothing is kept.
    pub(super) fn end_of(&self, holder: &Holder) {
        for ((copy, by, name), held) in self.0.sessions().iter() {
            if by == holder {
                tracing::info!(%copy, account = %by.account, name, "an exec session ends with the rights of its account");
                held.session.revoke();
            }
        }
    }

    /// The session that is asked for, begun if there is none; and whether it was.
    fn find(&self, copy: CopyId, holder: &Holder, asked: &OpenExec) -> Result<(Arc<Session>, bool), ApiError> {
        let OpenExec { session: name, run, .. } = asked;
        check_name(name).map_err(|why| ApiError::new(ErrorCode::Invalid, why))?;
        let mut sessions = self.0.sessions();
        let key = (copy, holder.clone(), name.clone());
        if let Some(held) = sessions.get(&key) {
            return match run {
                Some(run) if !run.is_same(&held.session.run) => Err(ApiError::new(
                    ErrorCode::Conflict,
                    format!(
                        "session {name} runs something else ({}); attach to it with --attach, end it with --end, or choose \
                         another name",
                        held.session.run.shown
                    ),
                )),
                _ => Ok((held.session.clone(), false)),
            };
        }
        let Some(run) = run else {
            return Err(ApiError::new(
                ErrorCode::NotFound,
                format!(
                    "there is no session {name} of yours in this start of the VM: sessions are kept for {} minutes after \
                     their end, and end with the VM's worker; give a command to begin one",
                    KEPT.as_secs() / 60
                ),
            ));
        };
        check(run)?;
        let of_copy = sessions.keys().filter(|(of, ..)| *of == copy).count();
        if of_copy >= MAX_OF_COPY || sessions.len() >= MAX_SESSIONS {
            let (count, of) = if of_copy >= MAX_OF_COPY { (of_copy, "VM") } else { (sessions.len(), "worker") };
            let why = format!("this {of} holds {count} exec sessions, which is the limit; end one with --end");
            return Err(ApiError::new(ErrorCode::LimitExceeded, why));
        }
        let history = History::new(&self.0.folder, HISTORY).map_err(|error| {
            ApiError::new(ErrorCode::Internal, format!("the worker cannot keep what the session says: {error}"))
        })?;
        let (session, stdin) = Session::new(name.clone(), run.clone(), history, self.0.clock.now().wall);
        let (inner, of, running) = (Arc::downgrade(&self.0), key.clone(), session.clone());
        let login = self.log_in(copy, run);
        let task = task::spawn(async move {
            // One that was ended meanwhile runs nothing.
            let login = tokio::select! {
                biased;
                () = running.ended_early() => Err(ApiError::new(ErrorCode::Forbidden, "the session was ended")),
                login = login => login,
            };
            match login {
                Ok(ssh) => {
                    running.tell_started(Ok(()));
                    running.clone().drive(ssh, stdin).await;
                    running.kept_for(KEPT).await;
                }
                Err(error) => running.tell_started(Err(error)),
            }
            if let Some(inner) = inner.upgrade() {
                // Its own handle goes with it, after which nothing is done here any more.
                let gone = inner.sessions().remove(&of);
                drop(gone);
            }
        });
        sessions.insert(key, Held { session: session.clone(), _task: task });
        Ok((session, true))
    }

    /// Logs in to the guest: as whom it is said, else as whom the VM says.
    fn log_in(&self, copy: CopyId, run: &RunExec) -> impl Future<Output = Result<Ssh, ApiError>> + Send + use<> {
        let wanted = self.0.assignments.borrow().as_ref().and_then(|assignment| {
            let desired = assignment.copies.iter().find(|desired| desired.id() == copy)?;
            match &desired.want {
                Want::Run(run) => Some((run.spec.guest_user().to_owned(), run.spec.guest_password())),
                _ => None,
            }
        });
        let (runtime, given) = (self.0.runtime.clone(), (run.user.clone(), run.password.clone()));
        async move {
            let (user, password) = wanted.ok_or_else(|| {
                ApiError::new(ErrorCode::Unavailable, "the VM's worker does not know yet that the VM is to run there")
            })?;
            let login = Login::with_password(given.0.unwrap_or(user), given.1.unwrap_or(password));
            let stream = runtime.dial(copy, SSH_PORT).await;
            let stream = stream.map_err(|error| refusal("cannot reach the VM's SSH server", &error))?;
            Ssh::connect(stream, login, AcceptAny, LOGIN_DEADLINE).await.map_err(|error| {
                let code = match &error {
                    SshError::AuthRefused { .. } => ErrorCode::Forbidden,
                    SshError::Timeout { .. } => ErrorCode::Timeout,
                    _ => ErrorCode::Unavailable,
                };
                ApiError::new(code, error.to_string())
            })
        }
    }
}

fn check(run: &RunExec) -> Result<(), ApiError> {
    let invalid = |why: String| Err(ApiError::new(ErrorCode::Invalid, why));
    match run.line.expose().len() {
        0 => return invalid("the session's command is empty".to_owned()),
        len if len > MAX_COMMAND => {
            return invalid(format!("a command of {len} bytes; at most {MAX_COMMAND} are taken"));
        }
        _ => {}
    }
    if run.shown.len() > MAX_SHOWN {
        return invalid(format!(
            "the beginning of a command in {} bytes; at most {MAX_SHOWN} are taken",
            run.shown.len()
        ));
    }
    if run.tty.is_some() && !run.interactive {
        return invalid("a terminal without input".to_owned());
    }
    Ok(())
}

/// One stream of a client.
struct Client {
    execs: Execs,
    copy: CopyId,
    holder: Holder,
}

type Outgoing = FramedWrite<tokio::io::WriteHalf<DuplexStream>, LengthDelimitedCodec>;
type Incoming = FramedRead<tokio::io::ReadHalf<DuplexStream>, LengthDelimitedCodec>;

impl Client {
    async fn run(self, stream: DuplexStream) {
        let (from, to) = tokio::io::split(stream);
        let (mut from, mut to) = (FramedRead::new(from, exec::codec()), FramedWrite::new(to, exec::codec()));
        if let Err(refused) = self.answer(&mut from, &mut to).await {
            let _ = tell(&mut to, &Told::Refused(refused)).await;
        }
        // The end that the client waits for.
        let _ = to.get_mut().shutdown().await;
    }

    async fn answer(&self, from: &mut Incoming, to: &mut Outgoing) -> Result<(), ApiError> {
        let asked = timeout(ASK_DEADLINE, next(from)).await;
        let asked =
            asked.map_err(|_| ApiError::new(ErrorCode::Timeout, "nothing was asked of the exec sessions"))??;
        match asked {
            Some(Asked::Open(open)) => {
                let (session, begun) = self.execs.find(self.copy, &self.holder, &open)?;
                session.started().await?;
                let reader = session.attach(open.after).ok_or_else(|| {
                    let why = format!("as many are attached to session {} as may be", open.session);
                    ApiError::new(ErrorCode::LimitExceeded, why)
                })?;
                if let Some(tty) = open.run.as_ref().and_then(|run| run.tty.as_ref()) {
                    session.resize(Size { columns: tty.columns, rows: tty.rows });
                }
                let attached = Told::Attached { begun, next: session.next() };
                if tell(to, &attached).await.is_err() {
                    return Ok(());
                }
                // Whichever way ends first ends the other: a client that has gone, or a command that has ended. Neither is
                // gone on with after that.
                tokio::select! {
                    done = take(from, &session) => done,
                    done = show(reader, to) => done,
                }
            }
            Some(Asked::List {}) => {
                let sessions = self.execs.of(self.copy, &self.holder);
                let _ = tell(to, &Told::Sessions { sessions }).await;
                Ok(())
            }
            Some(Asked::End { session }) => {
                let key = (self.copy, self.holder.clone(), session);
                let found = self.execs.0.sessions().get(&key).map(|held| held.session.clone());
                let Some(found) = found else {
                    let why = format!("there is no session {} of yours in this start of the VM", key.2);
                    return Err(ApiError::new(ErrorCode::NotFound, why));
                };
                // One that has ended is forgotten by it.
                if found.is_over() {
                    self.execs.0.sessions().remove(&key);
                }
                found.end();
                let _ = tell(to, &Told::Ended {}).await;
                Ok(())
            }
            Some(_) => {
                Err(ApiError::new(ErrorCode::Invalid, "a stream to exec sessions begins with open, list or end"))
            }
            None => Ok(()),
        }
    }
}

/// Takes what the client says until it goes.
async fn take(from: &mut Incoming, session: &Session) -> Result<(), ApiError> {
    loop {
        match next(from).await? {
            Some(Asked::Stdin { data }) => session.write(&data).await,
            Some(Asked::Eof {}) => session.end_input().await,
            Some(Asked::Resize { columns, rows }) => session.resize(Size { columns, rows }),
            Some(_) => return Err(ApiError::new(ErrorCode::Invalid, "that is not said while attached to a session")),
            None => return Ok(()),
        }
    }
}

/// Shows the client what the session says, to its end.
async fn show(mut reader: Reader, to: &mut Outgoing) -> Result<(), ApiError> {
    let lost = |error: io::Error| ApiError::new(ErrorCode::Internal, format!("what the session said is lost: {error}"));
    loop {
        match reader.next().await.map_err(lost)? {
            Next::Records { expected, records } => {
                let first = records.first().map_or(expected, |record| record.number);
                if first > expected && tell(to, &Told::Lost { from: expected, to: first - 1 }).await.is_err() {
                    return Ok(());
                }
                for record in records {
                    let (number, data) = (record.number, record.data);
                    let told = match record.stream {
                        Out::Stdout => Told::Stdout { number, data },
                        Out::Stderr => Told::Stderr { number, data },
                    };
                    if tell(to, &told).await.is_err() {
                        return Ok(());
                    }
                }
                reader.done();
            }
            Next::End(number, end) => {
                let told = match end {
                    End::Exited { code, how } => Told::Exited { number, code, how },
                    End::Failed(why) => Told::Failed { number, why },
                };
                let _ = tell(to, &told).await;
                return Ok(());
            }
        }
    }
}

async fn next(from: &mut Incoming) -> Result<Option<Asked>, ApiError> {
    match from.next().await {
        Some(Ok(frame)) => exec::decode(&frame).map(Some),
        Some(Err(error)) => Err(ApiError::new(ErrorCode::Invalid, format!("no message about execs: {error}"))),
        None => Ok(None),
    }
}

async fn tell(to: &mut Outgoing, told: &Told) -> Result<(), ApiError> {
    let gone = |error: io::Error| ApiError::new(ErrorCode::Unavailable, error.to_string());
    to.send(exec::encode(told)?).await.map_err(gone)
}

/// The near end of a stream that is served by a task of its own, which ends with it.
struct Served {
    near: DuplexStream,
    _serving: Task,
}

impl AsyncRead for Served {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.near).poll_read(cx, buf)
    }
}

impl AsyncWrite for Served {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.near).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.near).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.near).poll_shutdown(cx)
    }
}
