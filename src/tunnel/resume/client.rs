//! The client's end: a stream for the user's program that goes on when what carries it is lost, for as long as somebody can
//! dial again. [`start`] yields the stream and the work behind it, which whoever owns the session must run.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::drive::{Carrier, Event, Local, drive};
use super::end::End;
use super::{GIVE_UP_AFTER, Over};
use crate::model::error::ApiError;
use crate::tunnel::backoff::Backoff;
use crate::tunnel::reason::Reason;

/// What may lie between the program and its end, each way; small, since the end keeps enough itself.
const PIPE: usize = 32 << 10;

/// How long it may take to tell the other end that the program has broken off.
const ABORT_LIMIT: Duration = Duration::from_secs(1);

/// How long a new carrier has until the other end is heard over it.
const GREETING_LIMIT: Duration = Duration::from_secs(15);

/// The longest pause between two tries: somebody watches.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Brings a session back.
#[async_trait]
pub trait Redial: Send {
    /// What carries it.
    type Stream: AsyncRead + AsyncWrite + Send;

    /// Opens another stream to the session's other end. Has a deadline of its own. Cancelled when the program leaves.
    ///
    /// # Errors
    /// Why there is none, and whether another try may help.
    async fn redial(&mut self) -> Result<Self::Stream, RedialError>;

    /// The session has lost what carried it, and it will be tried to bring it back.
    fn lost(&mut self, why: &str);

    /// It goes on, or is over: whichever follows a [`Redial::lost`].
    fn settled(&mut self, goes_on: bool);
}

/// Why a session could not be brought back.
#[derive(Debug)]
pub enum RedialError {
    /// It may be possible later.
    Passing(ApiError),
    /// It will not.
    Final(ApiError),
}

/// What the program reads and writes. Each way ends by itself: `shutdown` ends what is sent, and reading goes on. Dropping it
/// without `shutdown` breaks the session off; after `shutdown`, what was written still arrives. When the session did not end
/// properly, reading fails with the reason.
#[derive(Debug)]
pub struct ResumableStream {
    io: DuplexStream,
    ended: Arc<OnceLock<String>>,
    finished: Arc<AtomicBool>,
    waiting: Silence,
    _gone: DropGuard,
}

/// For how long a program has waited for the other end to say something. While a session is lost that tells nothing of the guest.
#[derive(Clone, Debug, Default)]
pub struct Silence(Arc<Mutex<Option<Instant>>>);

impl Silence {
    /// Since when; none while nobody waits, as after something came that the program has yet to deal with.
    pub fn since(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that lasts since then.
    #[cfg(test)]
    pub fn for_test(since: Instant) -> Self {
        Self(Arc::new(Mutex::new(Some(since))))
    }

    fn note(&self, waits: bool) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *since = waits.then(|| since.unwrap_or_else(Instant::now));
    }
}

impl ResumableStream {
    /// Follows for how long nothing has come.
    pub fn silence(&self) -> Silence {
        self.waiting.clone()
    }
}

/// A session over `carrier` that `redial` brings back: the program's stream, and the work to be run until it ends by itself,
/// which it does soon after the stream was dropped.
pub fn start<R: Redial>(carrier: R::Stream, redial: R) -> (ResumableStream, impl Future<Output = ()> + Send)
where
    R::Stream: 'static,
{
    let (near, far) = tokio::io::duplex(PIPE);
    let (ended, finished, gone) =
        (Arc::new(OnceLock::new()), Arc::new(AtomicBool::new(false)), CancellationToken::new());
    let stream = ResumableStream {
        io: near,
        ended: ended.clone(),
        finished: finished.clone(),
        waiting: Silence::default(),
        _gone: gone.clone().drop_guard(),
    };
    let mut session = Session {
        end: End::at_client(),
        local: Local::new(far, Reason::Aborted),
        redial,
        gone,
        finished,
        standing: Standing::Used,
        lost: false,
    };
    let work = async move {
        if let Some(why) = session.keep(carrier).await {
            let _ = ended.set(why);
        }
        if session.lost {
            session.redial.settled(false);
        }
        // The program sees the end only now that the reason is there.
        drop(session);
    };
    (stream, work)
}

struct Session<R: Redial> {
    end: End,
    local: Local<DuplexStream>,
    redial: R,
    /// The program is gone.
    gone: CancellationToken,
    /// The program has called `shutdown`.
    finished: Arc<AtomicBool>,
    standing: Standing,
    /// It was said that the carrier is lost, and nothing since.
    lost: bool,
}

/// What is still to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// All.
    Used,
    /// The program is gone, and what it wrote shall arrive.
    Left,
    /// It broke off: the other end shall know, but only until then.
    Aborted { until: Instant },
}

/// What a session waited for.
enum Next {
    Event(Event),
    ProgramGone,
    Late,
}

impl<R: Redial> Session<R> {
    /// Yields why it did not end properly.
    async fn keep(&mut self, stream: R::Stream) -> Option<String> {
        let mut carrier = Carrier::new(stream);
        let mut greeting = Instant::now() + GREETING_LIMIT;
        self.end.attach();
        loop {
            let why = match self.next(&mut carrier, greeting).await {
                Next::Event(Event::Greeted) => {
                    if std::mem::take(&mut self.lost) {
                        self.redial.settled(true);
                    }
                    continue;
                }
                Next::Event(Event::Over(over)) => {
                    carrier.farewell().await;
                    return match over {
                        Over::Finished | Over::Broken(Reason::Aborted | Reason::Closed) => None,
                        Over::Reset(reason) | Over::Broken(reason) => Some(reason.to_string()),
                    };
                }
                Next::Event(Event::Lost(why)) => why,
                Next::ProgramGone => {
                    self.leave();
                    continue;
                }
                Next::Late => "the other end of the session was not heard".to_owned(),
            };
            drop(carrier);
            self.end.detach();
            if self.end.is_satisfied() || matches!(self.standing, Standing::Aborted { .. }) {
                return None;
            }
            tracing::debug!(%why, "a session lost what carried it");
            if !std::mem::replace(&mut self.lost, true) {
                self.redial.lost(&why);
            }
            carrier = match self.bring_back(why).await? {
                Ok(stream) => Carrier::new(stream),
                Err(why) => return Some(why),
            };
            greeting = Instant::now() + GREETING_LIMIT;
            self.end.attach();
        }
    }

    /// The program is gone.
    fn leave(&mut self) {
        self.standing = match self.finished.load(Ordering::Acquire) {
            // What is left in the pipe is still read, and then its end.
            true => {
                self.end.leave();
                Standing::Left
            }
            false => {
                self.end.abort(Reason::Aborted);
                Standing::Aborted { until: Instant::now() + ABORT_LIMIT }
            }
        };
    }

    /// Drives the session until something is to be done.
    async fn next(&mut self, carrier: &mut Carrier<R::Stream>, greeting: Instant) -> Next {
        let limit = match self.standing {
            Standing::Aborted { until } => Some(until),
            _ => (!self.end.is_greeted()).then_some(greeting),
        };
        tokio::select! {
            event = drive(&mut self.end, &mut self.local, Some(carrier)) => Next::Event(event),
            () = self.gone.cancelled(), if self.standing == Standing::Used => Next::ProgramGone,
            () = sleep_until(limit.unwrap_or(greeting)), if limit.is_some() => Next::Late,
        }
    }

    /// Dials until a stream is there; an error when it is in vain, none when the program broke off meanwhile.
    async fn bring_back(&mut self, lost: String) -> Option<Result<R::Stream, String>> {
        let Self { end, local, redial, gone, finished, .. } = self;
        let until = Instant::now() + GIVE_UP_AFTER;
        let dialled = async {
            let (mut backoff, mut last) = (Backoff::default(), lost);
            loop {
                match timeout_at(until, redial.redial()).await {
                    Ok(Ok(stream)) => return Ok(stream),
                    Ok(Err(RedialError::Final(error))) => return Err(error.to_string()),
                    Ok(Err(RedialError::Passing(error))) => {
                        tracing::debug!(%error, "a session cannot be brought back yet");
                        last = error.to_string();
                    }
                    Err(_) => {}
                }
                // Without randomness the waits are merely not spread.
                let wait = backoff.next(getrandom::u32().unwrap_or(u32::MAX / 2)).min(LONGEST_PAUSE);
                if Instant::now() + wait >= until {
                    let minutes = GIVE_UP_AFTER.as_secs() / 60;
                    return Err(format!("the connection was lost and not to be had back within {minutes} min: {last}"));
                }
                sleep(wait).await;
            }
        };
        let broken_off = async {
            gone.cancelled().await;
            if finished.load(Ordering::Acquire) {
                // What it has written shall arrive.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            dialled = dialled => Some(dialled),
            // Never returns: what there is room for goes on meanwhile.
            _ = drive::<_, R::Stream>(end, local, None) => None,
            () = broken_off => None,
        }
    }
}

impl AsyncRead for ResumableStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(cx, buf);
        self.waiting.note(polled.is_pending());
        match (&polled, self.ended.get()) {
            (Poll::Ready(Ok(())), Some(why)) if buf.filled().len() == before && buf.remaining() > 0 => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, why.clone())))
            }
            _ => polled,
        }
    }
}

impl AsyncWrite for ResumableStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match (Pin::new(&mut self.io).poll_write(cx, bytes), self.ended.get()) {
            (Poll::Ready(Err(_)), Some(why)) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, why.clone())))
            }
            (polled, _) => polled,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finished.store(true, Ordering::Release);
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
