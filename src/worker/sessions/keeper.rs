//! The keeper's process: takes what the worker asks, and holds the sessions. Run by `orchard worker session-keeper`, which the
//! worker starts.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::{Key, LOG, SOCKET, folder_of, key_of};
use crate::identity;
use crate::identity::folder::{self, FolderLock, LockError};
use crate::model::CopyId;
use crate::model::error::{ApiError, ErrorCode};
use crate::tunnel::header::{Decoder, Frame, MAX_SESSION_NAME, Resume};
use crate::tunnel::resume::{KEPT_FOR, VERSION, guest};
use crate::tunnel::worker::no_such_session;
use crate::worker::runtime::GuestStream;
use crate::worker::{companion, handover, unix_socket};

/// The most sessions at a time; further ones cannot be resumed. Each holds two descriptors and, at its worst, 2 MiB.
pub const MAX_SESSIONS: usize = 1024;

/// How many of them may lead into one VM: whoever may connect to one cannot take them all.
pub const MAX_PER_COPY: usize = 256;

/// For how long it stays without a session: the next may soon come.
pub const LINGER: Duration = Duration::from_secs(60);

/// The shortest name of a session that is taken: a guess at one that has 128 bits is in vain.
const MIN_SESSION_NAME: usize = 22;
/// Requests that are read at a time; more wait to be accepted.
const AT_A_TIME: usize = 64;
/// How long the worker may take to say what it wants.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Streams that wait to carry a session: the last of them will.
const STREAMS: usize = 2;
/// How often it is looked whether it is still needed.
const LOOK: Duration = Duration::from_millis(500);
/// Pause after an accept that failed, as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long it tries to get the folder: one that ends may still have it.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Why it does not keep.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// Its folder is not there, or not ours alone.
    #[error("cannot use {}, where the worker asks for sessions to be kept", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The folder cannot be locked.
    #[error(transparent)]
    Lock(LockError),
}

/// How long things are kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A session without a client.
    pub session: Duration,
    /// The keeper without a session.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { session: KEPT_FOR, linger: LINGER }
    }
}

/// Keeps the sessions of the worker in `data_dir`; returns when there has been none for a while, or another keeper is there.
///
/// # Errors
/// [`KeepError`], before it keeps any.
pub async fn run(data_dir: &Path, limits: Limits) -> Result<(), KeepError> {
    let folder = folder_of(data_dir);
    let unusable = |source| KeepError::Folder { path: folder.clone(), source };
    std::fs::metadata(&folder).map_err(unusable)?;
    identity::refuse_foreign(&folder).map_err(unusable)?;
    let Some(_lock) = lock(&folder).await? else {
        tracing::info!("another keeper is there already");
        return Ok(());
    };
    let listener = unix_socket::listen(&folder, SOCKET).map_err(unusable)?;
    let socket = folder.join(SOCKET);
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600)).map_err(unusable)?;
    tracing::info!(data = %data_dir.display(), "keeping sessions into VMs");
    Keeper::new(limits).serve(&listener, &folder).await;
    // Before the lock is free: the next keeper has a socket of its own.
    let _ = std::fs::remove_file(&socket);
    tracing::info!("there is no session to keep any more");
    Ok(())
}

/// Takes hold of the folder; `None` when another keeper has it.
async fn lock(folder: &Path) -> Result<Option<FolderLock>, KeepError> {
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match folder::try_lock(folder) {
            Ok(lock) => return Ok(Some(lock)),
            Err(LockError::InUse { .. }) if Instant::now() < deadline => tokio::time::sleep(LOCK_PAUSE).await,
            Err(LockError::InUse { .. }) => return Ok(None),
            Err(error @ LockError::Io { .. }) => return Err(KeepError::Lock(error)),
        }
    }
}

/// What the worker wants, and the connection on which it said so.
struct Request {
    stream: UnixStream,
    frame: Frame,
    /// The guest's socket.
    handed: Option<OwnedFd>,
}

/// A session that is kept.
struct Kept {
    copy: CopyId,
    port: u16,
    /// Takes the stream that is to carry it; dropping it ends the session.
    streams: mpsc::Sender<UnixStream>,
}

struct Keeper {
    limits: Limits,
    sessions: HashMap<Key, Kept>,
    tasks: JoinSet<Key>,
    /// Since when there is no session.
    idle: Instant,
}

impl Keeper {
    fn new(limits: Limits) -> Self {
        Self { limits, sessions: HashMap::new(), tasks: JoinSet::new(), idle: Instant::now() }
    }

    async fn serve(&mut self, listener: &UnixListener, folder: &Path) {
        let places = Arc::new(Semaphore::new(AT_A_TIME));
        let mut requests: JoinSet<Option<Request>> = JoinSet::new();
        let mut look = tokio::time::interval(LOOK);
        loop {
            let accept = async {
                // Never closed.
                let place = places.clone().acquire_owned().await.ok();
                (listener.accept().await, place)
            };
            // All arms are cancel safe, and nothing is awaited for long in their bodies.
            tokio::select! {
                (accepted, place) = accept => match accepted {
                    Ok((stream, _)) => {
                        requests.spawn(async move {
                            let _place = place;
                            timeout(REQUEST_LIMIT, read(stream)).await.ok().flatten()
                        });
                    }
                    Err(error) => {
                        tracing::warn!("cannot take a request of the worker: {error}");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(request) = requests.join_next() => {
                    if let Ok(Some(request)) = request {
                        self.answer(request);
                    }
                }
                Some(ended) = self.tasks.join_next() => {
                    if let Ok(key) = ended {
                        self.sessions.remove(&key);
                    }
                    self.idle = Instant::now();
                }
                _ = look.tick() => {
                    companion::bound_log(&folder.join(LOG));
                    // Nobody can come back for anything where the folder is gone.
                    let needed = folder.exists() && (!self.tasks.is_empty() || self.idle.elapsed() < self.limits.linger);
                    if !needed && requests.is_empty() {
                        return;
                    }
                }
            }
        }
    }

    fn answer(&mut self, Request { stream, frame, handed }: Request) {
        let mut stream = Some(stream);
        let answered = match frame {
            Frame::Attach { copy, port, resume: Some(resume) } if resume.version != VERSION => {
                tracing::debug!(%copy, port, "a session of another version");
                Err(other_version(resume.version))
            }
            Frame::Attach { copy, port, resume: Some(resume) } => match (resume.again, handed) {
                (false, Some(guest)) => self.begin(&mut stream, (copy, port), &resume, guest),
                (true, _) => self.go_on(&mut stream, (copy, port), &resume),
                (false, None) => {
                    Err(ApiError::new(ErrorCode::Invalid, "a session begins with a connection to its guest"))
                }
            },
            Frame::Forget { session } => {
                self.sessions.remove(&key_of(&session));
                Ok(())
            }
            _ => Err(ApiError::new(ErrorCode::Invalid, "a session keeper serves attach and forget")),
        };
        if let (Err(refusal), Some(stream)) = (answered, stream) {
            tracing::debug!(%refusal, "a request of the worker is refused");
            if let Ok(bytes) = Frame::refused(refusal).encode() {
                // Nothing was written before, so there is room for it.
                let _ = stream.try_write(&bytes);
            }
        }
    }

    fn begin(
        &mut self,
        stream: &mut Option<UnixStream>,
        (copy, port): (CopyId, u16),
        resume: &Resume,
        guest: OwnedFd,
    ) -> Result<(), ApiError> {
        if !(MIN_SESSION_NAME..=MAX_SESSION_NAME).contains(&resume.session.expose().len()) {
            let why = format!("a session's name has {MIN_SESSION_NAME} to {MAX_SESSION_NAME} bytes");
            return Err(ApiError::new(ErrorCode::Invalid, why));
        }
        let key = key_of(&resume.session);
        if self.sessions.contains_key(&key) {
            return Err(ApiError::new(ErrorCode::Conflict, "there is a session of that name already"));
        }
        let of_copy = self.sessions.values().filter(|kept| kept.copy == copy).count();
        if self.tasks.len() >= MAX_SESSIONS || of_copy >= MAX_PER_COPY {
            let why = format!("the limit is {MAX_SESSIONS} kept sessions, and {MAX_PER_COPY} into one VM");
            return Err(ApiError::new(ErrorCode::LimitExceeded, why));
        }
        let guest = GuestStream::of(guest).map_err(|error| {
            ApiError::new(ErrorCode::Internal, format!("the connection to the guest cannot be used: {error}"))
        })?;
        let (streams, brought) = mpsc::channel(STREAMS);
        carry(&streams, stream)?;
        let kept_for = self.limits.session;
        self.tasks.spawn(async move {
            let why = guest::keep(guest, brought, kept_for).await;
            tracing::info!(%copy, port, why, "a session has ended");
            key
        });
        self.sessions.insert(key, Kept { copy, port, streams });
        Ok(())
    }

    fn go_on(
        &mut self,
        stream: &mut Option<UnixStream>,
        wanted: (CopyId, u16),
        resume: &Resume,
    ) -> Result<(), ApiError> {
        let kept = self.sessions.get(&key_of(&resume.session)).filter(|kept| (kept.copy, kept.port) == wanted);
        carry(&kept.ok_or_else(no_such_session)?.streams, stream)
    }
}

/// Has a session carried by `stream` from now on, and tells the worker so.
fn carry(streams: &mpsc::Sender<UnixStream>, stream: &mut Option<UnixStream>) -> Result<(), ApiError> {
    let place = streams.try_reserve().map_err(|refused| match refused {
        mpsc::error::TrySendError::Full(()) => {
            ApiError::new(ErrorCode::Unavailable, "the session is being resumed already; try again in a moment")
        }
        mpsc::error::TrySendError::Closed(()) => no_such_session(),
    })?;
    let answer = Frame::Opened { resumable: true }.encode()?;
    if let Some(stream) = stream.take() {
        // Nothing was written before, so there is room for it; a worker that is gone shows when the session is driven.
        let _ = stream.try_write(&answer);
        place.send(stream);
    }
    Ok(())
}

fn other_version(asked: u16) -> ApiError {
    ApiError::new(
        ErrorCode::Invalid,
        format!("this worker keeps sessions of version {VERSION}, not {asked}; use the release of the controller"),
    )
}

/// Reads what the worker wants. Nothing follows it before it is answered.
async fn read(stream: UnixStream) -> Option<Request> {
    // The folder is closed to others already; this also holds where somebody opened it.
    let caller = stream.peer_cred().ok()?.uid();
    if caller != rustix::process::geteuid().as_raw() {
        tracing::warn!(caller, "somebody else asks the session keeper for something, and gets no answer");
        return None;
    }
    let (mut decoder, mut handed) = (Decoder::default(), None);
    let mut chunk = [0; 256];
    loop {
        let want = decoder.wants().min(chunk.len());
        let place = chunk.get_mut(..want)?;
        let read = handover::receive(&stream, place, &mut handed).await.ok().filter(|read| *read > 0)?;
        match decoder.push(place.get(..read)?) {
            Ok((_, Some(frame))) => return Some(Request { stream, frame, handed }),
            Ok((_, None)) => {}
            Err(error) => {
                tracing::debug!(%error, "a request of the worker is not understood");
                return None;
            }
        }
    }
}
