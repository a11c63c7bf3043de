//! One logged-in connection to a guest: [`Session::connect`], then commands on it, and connections through it, side by side.

use std::future::pending;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, io};

use russh::client::{self, DisconnectReason, Handle};
use russh::keys::{HashAlg, PublicKey, PublicKeyOrCertificate};
use russh::{ChannelOpenFailure, ChannelStream, Disconnect};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::auth::log_in;
use super::channel::{self, Output, REPLY_WAIT, Writers};
use super::cut::Cut;
use super::terminal::Size;
use super::{ExitStatus, HostKey, HostKeyCheck, Login, SshError};

/// A silent guest is asked whether it is there this often.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// So much silence ends the session, unless another time is given: it outlasts a guest that is only busy.
pub const SILENCE: Duration = Duration::from_secs(60);
/// Packets of a channel that wait for a slow reader here before the connection is held back: half a MiB.
const CHANNEL_QUEUE: usize = 16;
/// How long [`Session::close`] waits for the goodbye to go out.
const CLOSE_WAIT: Duration = Duration::from_secs(1);

/// What is run in the guest.
#[derive(Clone, Copy, Debug)]
pub enum Program<'a> {
    /// A command line, given to the user's shell.
    Command(&'a str),
    /// The user's login shell.
    LoginShell,
}

/// A terminal to run it in.
#[derive(Clone, Debug)]
pub struct Pty {
    /// The terminal's type, as in `TERM`.
    pub term: String,
    /// Its size at the start.
    pub size: Size,
    /// Later sizes.
    pub resized: watch::Receiver<Size>,
}

/// Where the three streams of a command lead. `tokio::io::empty()` as input is closed at once.
#[derive(Debug)]
pub struct Stdio<I, O, E> {
    /// Read until its end, which is passed on.
    pub stdin: I,
    /// Gets the standard output as it comes, flushed; with a terminal, everything.
    pub stdout: O,
    /// Gets the standard error as it comes, flushed.
    pub stderr: E,
}

/// A logged-in connection. Dropping it ends it and every command on it.
pub struct Session {
    handle: Handle<Events>,
    ended: Arc<Ended>,
    /// Cancelled when the connection has ended.
    gone: CancellationToken,
    _cut: DropGuard,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("closed", &self.handle.is_closed()).finish_non_exhaustive()
    }
}

impl Session {
    /// Shakes hands over `stream` and logs in, all within `deadline`. Cancel safe: a dropped future closes the stream.
    ///
    /// # Errors
    /// [`SshError`] says at which step and why.
    pub async fn connect<S>(
        stream: S,
        login: Login,
        host_key: impl HostKeyCheck,
        deadline: Duration,
    ) -> Result<Session, SshError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Self::connect_bearing(SILENCE, stream, login, host_key, deadline).await
    }

    /// The same over a stream that may stand still for a while and go on: a guest counts as gone after so much `silence`.
    ///
    /// # Errors
    /// As [`Session::connect`].
    pub async fn connect_bearing<S>(
        silence: Duration,
        stream: S,
        login: Login,
        host_key: impl HostKeyCheck,
        deadline: Duration,
    ) -> Result<Session, SshError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let token = CancellationToken::new();
        let cut = token.clone().drop_guard();
        let ended = Arc::new(Ended::default());
        let heard = Arc::new(AtomicBool::new(false));
        let stream = Cut::new(Heard { stream, heard: heard.clone() }, &token);
        let gone = CancellationToken::new();
        let events =
            Events { host_key: Box::new(host_key), ended: ended.clone(), silence, _gone: gone.clone().drop_guard() };
        let shake = async {
            let mut handle =
                client::connect_stream(config(silence), stream, events).await.map_err(|error| match error {
                    EventError::HostKey { key, reason } => SshError::HostKeyRefused { key, reason },
                    EventError::Ssh(_) if !heard.load(Ordering::Relaxed) => SshError::Closed,
                    EventError::Ssh(error) => SshError::Protocol(error),
                })?;
            log_in(&mut handle, &login).await.map_err(|error| ended.explain(error))?;
            Ok(handle)
        };
        let late = SshError::Timeout { what: "the SSH handshake and login", after: deadline };
        let handle = timeout(deadline, shake).await.unwrap_or(Err(late))?;
        Ok(Session { handle, ended, gone, _cut: cut })
    }

    /// Runs `command` without a terminal until the server closes its channel. Input, output and error output flow side
    /// by side, each held back by its own reader. A guest that falls silent ends it after a minute, a command that runs
    /// on does not: how long it may take is the caller's to say. Dropping the future hangs the command up.
    ///
    /// # Errors
    /// [`SshError::Local`] when one of the three streams fails here, [`SshError::Lost`] or [`SshError::Refused`].
    pub async fn exec<I, O, E>(&self, command: &str, stdio: Stdio<I, O, E>) -> Result<ExitStatus, SshError>
    where
        I: AsyncRead + Unpin + Send,
        O: AsyncWrite + Unpin + Send,
        E: AsyncWrite + Unpin + Send,
    {
        self.exec_until(Program::Command(command), None, stdio, pending()).await
    }

    /// Like [`Session::exec`], in a terminal of the guest.
    ///
    /// # Errors
    /// As [`Session::exec`].
    pub async fn exec_in_terminal<I, O, E>(
        &self,
        program: Program<'_>,
        pty: Pty,
        stdio: Stdio<I, O, E>,
    ) -> Result<ExitStatus, SshError>
    where
        I: AsyncRead + Unpin + Send,
        O: AsyncWrite + Unpin + Send,
        E: AsyncWrite + Unpin + Send,
    {
        self.exec_until(program, Some(pty), stdio, pending()).await
    }

    /// Like [`Session::exec`], in a terminal if there is one, until the command ends or `end` is ready: then it is told to end,
    /// and made to a few seconds later.
    ///
    /// # Errors
    /// As [`Session::exec`].
    pub async fn exec_until<I, O, E>(
        &self,
        program: Program<'_>,
        pty: Option<Pty>,
        stdio: Stdio<I, O, E>,
        end: impl Future<Output = ()> + Send,
    ) -> Result<ExitStatus, SshError>
    where
        I: AsyncRead + Unpin + Send,
        O: AsyncWrite + Unpin + Send,
        E: AsyncWrite + Unpin + Send,
    {
        let mut output = Writers { stdout: stdio.stdout, stderr: stdio.stderr };
        self.run(program, pty, None, stdio.stdin, &mut output, end).await
    }

    pub(super) async fn run(
        &self,
        program: Program<'_>,
        pty: Option<Pty>,
        linger: Option<Duration>,
        stdin: impl AsyncRead + Unpin + Send,
        output: &mut impl Output,
        end: impl Future<Output = ()> + Send,
    ) -> Result<ExitStatus, SshError> {
        let opened = timeout(REPLY_WAIT, self.handle.channel_open_session()).await;
        let channel = match opened {
            Ok(Ok(channel)) => channel,
            Ok(Err(russh::Error::ChannelOpenFailure(_))) => return Err(SshError::Refused { what: "open a session" }),
            Ok(Err(_)) => return Err(self.ended.explain(SshError::Lost(String::new()))),
            Err(_) => return Err(SshError::Timeout { what: "opening a session", after: REPLY_WAIT }),
        };
        channel::run(channel, program, pty, linger, stdin, output, end).await.map_err(|error| self.ended.explain(error))
    }

    /// Has the server connect to `port` of `host`, as it knows that name, on behalf of a connection from `origin`: what `ssh -L`
    /// does. Cancel safe.
    ///
    /// # Errors
    /// [`SshError::Forward`] with the server's reason, [`SshError::Lost`] or [`SshError::Timeout`].
    pub async fn connect_on(
        &self,
        host: &str,
        port: u16,
        origin: SocketAddr,
    ) -> Result<ChannelStream<client::Msg>, SshError> {
        let (from, from_port) = (origin.ip().to_string(), u32::from(origin.port()));
        let opened = self.handle.channel_open_direct_tcpip(host, u32::from(port), from, from_port);
        match timeout(REPLY_WAIT, opened).await {
            Ok(Ok(channel)) => Ok(channel.into_stream()),
            Ok(Err(russh::Error::ChannelOpenFailure(failure))) => {
                Err(SshError::Forward { to: format!("{host}:{port}"), reason: reason_of(failure) })
            }
            Ok(Err(_)) => Err(self.ended.explain(SshError::Lost(String::new()))),
            Err(_) => Err(SshError::Timeout { what: "connecting further", after: REPLY_WAIT }),
        }
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// Returns when the connection has ended, and why. Cancel safe.
    pub async fn ended(&self) -> SshError {
        self.gone.cancelled().await;
        self.ended.explain(SshError::Lost(String::new()))
    }

    /// Says goodbye and waits a moment until that is sent, so that the guest logs no broken connection.
    pub async fn close(&self) {
        if self.handle.disconnect(Disconnect::ByApplication, "", "").await.is_ok() {
            let _ = timeout(CLOSE_WAIT, self.gone.cancelled()).await;
        }
    }
}

fn config(silence: Duration) -> Arc<client::Config> {
    // The question that is one too many is asked, too.
    let most = (silence.as_secs() / KEEPALIVE_INTERVAL.as_secs()).saturating_sub(1);
    Arc::new(client::Config {
        keepalive_interval: Some(KEEPALIVE_INTERVAL),
        keepalive_max: usize::try_from(most).unwrap_or(usize::MAX).max(1),
        channel_buffer_size: CHANNEL_QUEUE,
        ..client::Config::default()
    })
}

fn reason_of(failure: ChannelOpenFailure) -> String {
    match failure {
        ChannelOpenFailure::AdministrativelyProhibited => "it does not let anybody do that".to_owned(),
        ChannelOpenFailure::ConnectFailed => "nothing answers there".to_owned(),
        ChannelOpenFailure::UnknownChannelType => "it cannot do that".to_owned(),
        ChannelOpenFailure::ResourceShortage => "it has no room for more connections".to_owned(),
        ChannelOpenFailure::Other { reason, .. } => reason,
    }
}

/// Why the connection ended, for whoever finds out later.
#[derive(Debug, Default)]
struct Ended(Mutex<String>);

impl Ended {
    fn explain(&self, error: SshError) -> SshError {
        match error {
            SshError::Lost(why) if why.is_empty() => {
                let why = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
                SshError::Lost(if why.is_empty() { "it closed the connection".to_owned() } else { why })
            }
            other => other,
        }
    }
}

/// What the connection's task asks of us.
struct Events {
    host_key: Box<dyn HostKeyCheck>,
    ended: Arc<Ended>,
    silence: Duration,
    /// Goes with the connection's task.
    _gone: DropGuard,
}

#[derive(Debug, thiserror::Error)]
enum EventError {
    #[error(transparent)]
    Ssh(#[from] russh::Error),
    #[error("{reason}")]
    HostKey { key: HostKey, reason: String },
}

impl client::Handler for Events {
    type Error = EventError;

    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, EventError> {
        let key = match key {
            PublicKeyOrCertificate::PublicKey { key, .. } => HostKey {
                algorithm: key.algorithm().to_string(),
                fingerprint: key.fingerprint(HashAlg::Sha256).to_string(),
                openssh: openssh(key),
            },
            PublicKeyOrCertificate::Certificate(certificate) => HostKey {
                algorithm: certificate.algorithm().to_string(),
                fingerprint: certificate.public_key().fingerprint(HashAlg::Sha256).to_string(),
                openssh: openssh(&PublicKey::from(certificate.public_key().clone())),
            },
        };
        match self.host_key.check(&key) {
            Ok(()) => Ok(true),
            Err(reason) => Err(EventError::HostKey { key, reason }),
        }
    }

    async fn disconnected(&mut self, reason: DisconnectReason<EventError>) -> Result<(), EventError> {
        let why = match reason {
            DisconnectReason::ReceivedDisconnect(info) => format!("it said: {}", info.message),
            DisconnectReason::Error(EventError::Ssh(russh::Error::KeepaliveTimeout)) => {
                format!("it has not answered for {} s", self.silence.as_secs())
            }
            DisconnectReason::Error(EventError::Ssh(russh::Error::Disconnect | russh::Error::HUP)) => String::new(),
            DisconnectReason::Error(error) => error.to_string(),
        };
        *self.ended.0.lock().unwrap_or_else(PoisonError::into_inner) = why;
        Ok(())
    }
}

/// Algorithm and key without a comment; nothing for a key that has no such form, which then fits none that is known.
fn openssh(key: &PublicKey) -> String {
    let text = key.to_openssh().unwrap_or_default();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// Notes whether the peer ever said anything.
struct Heard<S> {
    stream: S,
    heard: Arc<AtomicBool>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.heard.store(true, Ordering::Relaxed);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
