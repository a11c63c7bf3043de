//! The worker's side: has sessions kept and brought back, and starts the keeper when there is none.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::{LOG, SOCKET, folder_of, make_folder};
use crate::model::CopyId;
use crate::model::error::{ApiError, ErrorCode};
use crate::tunnel::header::{Decoder, Frame, Resume};
use crate::tunnel::worker::no_such_session;
use crate::worker::companion::CompanionCommand;
use crate::worker::runtime::tool;
use crate::worker::{handover, unix_socket};

/// How long a keeper has until it answers: it has nothing to prepare. Together with the way into a guest that fits what
/// opening a session may take.
const START_LIMIT: Duration = Duration::from_secs(5);
/// For how long none is started after one that did not answer: who opens a session should not wait for the same again.
const RETRY_PAUSE: Duration = Duration::from_secs(30);
/// How often it is looked for meanwhile.
const START_PAUSE: Duration = Duration::from_millis(20);
/// How long it may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);
/// How much of its log an error shows.
const LOG_TAIL: u64 = 1024;

/// The sessions that a keeper holds for this worker.
#[derive(Debug)]
pub(in crate::worker) struct Sessions {
    data_dir: PathBuf,
    command: Option<CompanionCommand>,
    /// When one did not start last. Held while one is started, so that many sessions at once lead to one.
    starting: Mutex<Option<Instant>>,
}

impl Sessions {
    /// Those of the worker in `data_dir`, whose keepers `command` starts; none = sessions end with the worker.
    pub(in crate::worker) fn new(data_dir: &Path, command: Option<CompanionCommand>) -> Self {
        Self { data_dir: data_dir.to_owned(), command, starting: Mutex::default() }
    }

    /// Has a session kept that begins with this connection to a guest, which stays open here. Yields the stream that carries it;
    /// none when it cannot be kept, and the connection is to be used as it is.
    ///
    /// # Errors
    /// [`ErrorCode::Conflict`] when there is a session of that name.
    pub(in crate::worker) async fn begin(
        &self,
        (copy, port): (CopyId, u16),
        resume: &Resume,
        guest: OwnedFd,
    ) -> Result<Option<UnixStream>, ApiError> {
        if self.command.is_none() {
            return Ok(None);
        }
        match self.try_begin((copy, port), resume, guest).await {
            Err(error) if error.code == ErrorCode::Conflict => Err(error),
            Err(error) => {
                tracing::warn!(%copy, port, "a session cannot be kept and will end with its connection: {error}");
                Ok(None)
            }
            Ok(stream) => Ok(Some(stream)),
        }
    }

    async fn try_begin(
        &self,
        (copy, port): (CopyId, u16),
        resume: &Resume,
        guest: OwnedFd,
    ) -> Result<UnixStream, ApiError> {
        let message = Frame::Attach { copy, port, resume: Some(resume.clone()) }.encode()?;
        let stream = self.reach().await.map_err(|why| ApiError::new(ErrorCode::Unavailable, why))?;
        handover::send(&stream, &message, Some(guest.as_fd())).await.map_err(|error| failed(&error))?;
        answered(stream).await
    }

    /// Has a session brought back: yields the stream that carries it from now on.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] when it is not kept.
    pub(in crate::worker) async fn go_on(
        &self,
        (copy, port): (CopyId, u16),
        resume: &Resume,
    ) -> Result<UnixStream, ApiError> {
        let Ok(stream) = self.connect().await else { return Err(no_such_session()) };
        let message = Frame::Attach { copy, port, resume: Some(resume.clone()) }.encode()?;
        handover::send(&stream, &message, None).await.map_err(|error| failed(&error))?;
        answered(stream).await
    }

    /// Has a session ended.
    pub(in crate::worker) async fn forget(&self, resume: &Resume) {
        if let (Ok(stream), Ok(message)) =
            (self.connect().await, Frame::Forget { session: resume.session.clone() }.encode())
            && let Err(error) = handover::send(&stream, &message, None).await
        {
            tracing::debug!(%error, "the session keeper cannot be told to forget a session");
        }
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        unix_socket::connect(&folder_of(&self.data_dir), SOCKET).await
    }

    /// A connection to the keeper, which is started if there is none.
    async fn reach(&self) -> Result<UnixStream, String> {
        if let Ok(stream) = self.connect().await {
            return Ok(stream);
        }
        let mut failed = self.starting.lock().await;
        if let Ok(stream) = self.connect().await {
            return Ok(stream);
        }
        if failed.is_some_and(|failed| failed.elapsed() < RETRY_PAUSE) {
            return Err("the session keeper did not start a moment ago".to_owned());
        }
        let started = self.start().await;
        *failed = started.is_err().then(Instant::now);
        started
    }

    async fn start(&self) -> Result<UnixStream, String> {
        let Some(command) = &self.command else { return Err("this worker has no program to start as one".to_owned()) };
        let folder = make_folder(&self.data_dir)
            .map_err(|error| format!("cannot use {}: {error}", folder_of(&self.data_dir).display()))?;
        let log = folder.join(LOG);
        let mut child = command.start(&log)?;
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            if let Ok(stream) = self.connect().await {
                tracing::info!(pid = child.id(), "a session keeper holds the sessions into VMs from now on");
                return Ok(stream);
            }
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!("the session keeper ended at once ({status}): {}", tool::tail(&log, LOG_TAIL)));
            }
            tokio::time::sleep(START_PAUSE).await;
        }
        let _ = child.start_kill();
        Err(format!(
            "the session keeper does not answer within {} s: {}",
            START_LIMIT.as_secs(),
            tool::tail(&log, LOG_TAIL)
        ))
    }
}

fn failed(error: &io::Error) -> ApiError {
    ApiError::new(ErrorCode::Unavailable, format!("the session keeper cannot be asked: {error}"))
}

/// The stream, once the keeper has said that it carries the session. Not a byte more is read: what follows is the session's.
async fn answered(mut stream: UnixStream) -> Result<UnixStream, ApiError> {
    let answer = async {
        let mut decoder = Decoder::default();
        let mut chunk = [0; 256];
        loop {
            let want = decoder.wants().min(chunk.len());
            let place = chunk.get_mut(..want).unwrap_or_default();
            let read = stream.read(place).await.map_err(|error| failed(&error))?;
            if read == 0 {
                return Err(failed(&io::ErrorKind::UnexpectedEof.into()));
            }
            if let (_, Some(frame)) = decoder.push(place.get(..read).unwrap_or_default())? {
                return Ok(frame);
            }
        }
    };
    match timeout(ANSWER_LIMIT, answer).await {
        Ok(Ok(Frame::Opened { resumable: true })) => Ok(stream),
        Ok(Ok(Frame::Refused(refusal))) => Err(refusal),
        Ok(Ok(_)) => {
            Err(ApiError::new(ErrorCode::Internal, "the session keeper answered something else than was asked"))
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Err(failed(&io::ErrorKind::TimedOut.into())),
    }
}
