//! Drives one command on one channel of a session: requests, then input, window changes and output side by side until
//! the channel closes. `client` and `script` call [`run`].

use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use russh::client::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use super::client::{Program, Pty};
use super::{ExitStatus, SshError};

/// How long the server may take to answer one request; a loaded guest forks slowly, but it answers.
pub(super) const REPLY_WAIT: Duration = Duration::from_secs(30);

/// How much input is read at a time: one SSH packet.
const INPUT_CHUNK: usize = 32 * 1024;

/// Takes what the command writes, in the order of arrival. Waiting here holds the sender back.
pub(super) trait Output: Send {
    fn stdout(&mut self, data: Bytes) -> impl Future<Output = Result<(), SshError>> + Send;
    fn stderr(&mut self, data: Bytes) -> impl Future<Output = Result<(), SshError>> + Send;
}

/// Writes both streams through at once: whoever looks sees what the command has said so far.
pub(super) struct Writers<O, E> {
    pub(super) stdout: O,
    pub(super) stderr: E,
}

impl<O: AsyncWrite + Unpin + Send, E: AsyncWrite + Unpin + Send> Output for Writers<O, E> {
    async fn stdout(&mut self, data: Bytes) -> Result<(), SshError> {
        write_through(&mut self.stdout, &data).await.map_err(local("standard output"))
    }

    async fn stderr(&mut self, data: Bytes) -> Result<(), SshError> {
        write_through(&mut self.stderr, &data).await.map_err(local("standard error"))
    }
}

async fn write_through(to: &mut (impl AsyncWrite + Unpin), data: &[u8]) -> io::Result<()> {
    to.write_all(data).await?;
    to.flush().await
}

fn local(what: &'static str) -> impl FnOnce(io::Error) -> SshError {
    move |source| SshError::Local { what, source }
}

/// Runs `program` on a fresh channel until the server closes it. With `linger`, output that processes left in the
/// background still produce is awaited only that long after the exit status. Dropping the future closes the channel,
/// as far as the connection takes the message; the server then hangs the command up. Once `end` is ready, it is made to end, and
/// does not even begin if it has not been asked for by then.
pub(super) async fn run(
    channel: Channel<Msg>,
    program: Program<'_>,
    pty: Option<Pty>,
    linger: Option<Duration>,
    stdin: impl AsyncRead + Unpin + Send,
    output: &mut impl Output,
    end: impl Future<Output = ()> + Send,
) -> Result<ExitStatus, SshError> {
    let (mut from_guest, to_guest) = channel.split();
    let to_guest = CloseOnDrop(to_guest);
    let mut end = pin!(end);
    let not_begun = || SshError::Lost("the command was ended before it began".to_owned());
    if let Some(pty) = &pty {
        let (columns, rows) = (pty.size.columns, pty.size.rows);
        let asked = to_guest.0.request_pty(true, &pty.term, columns, rows, 0, 0, &[]);
        tokio::select! {
            biased;
            () = &mut end => return Err(not_begun()),
            opened = request(asked, &mut from_guest, "open a terminal") => opened?,
        }
    }
    // From here on it runs, and has to be told to end.
    if end.as_mut().now_or_never().is_some() {
        return Err(not_begun());
    }
    match program {
        Program::Command(command) => {
            request(to_guest.0.exec(true, command), &mut from_guest, "run the command").await?;
        }
        Program::LoginShell => request(to_guest.0.request_shell(true), &mut from_guest, "start a shell").await?,
    }
    tokio::select! {
        ended = receive(&mut from_guest, linger, output) => ended,
        Err(error) = send(&to_guest.0, stdin) => Err(error),
        () = follow_size(&to_guest.0, pty) => Err(SshError::Lost("the terminal ended".to_owned())),
        () = end_on(&to_guest.0, end) => Err(SshError::Lost("the command was ended, and did not say how".to_owned())),
    }
}

async fn request(
    sent: impl Future<Output = Result<(), russh::Error>>,
    answers: &mut ChannelReadHalf,
    what: &'static str,
) -> Result<(), SshError> {
    let answered = async {
        sent.await.map_err(|_| lost())?;
        loop {
            match answers.wait().await {
                Some(ChannelMsg::Success) => return Ok(()),
                Some(ChannelMsg::Failure | ChannelMsg::Close) => return Err(SshError::Refused { what }),
                Some(_) => {}
                None => return Err(lost()),
            }
        }
    };
    timeout(REPLY_WAIT, answered).await.unwrap_or(Err(SshError::Timeout { what: "a request", after: REPLY_WAIT }))
}

/// Hands the output on until the channel closes.
async fn receive(
    from_guest: &mut ChannelReadHalf,
    linger: Option<Duration>,
    output: &mut impl Output,
) -> Result<ExitStatus, SshError> {
    let mut status: Option<ExitStatus> = None;
    let mut until: Option<Instant> = None;
    loop {
        let message = match until {
            Some(until) => timeout_at(until, from_guest.wait()).await.unwrap_or(Some(ChannelMsg::Close)),
            None => from_guest.wait().await,
        };
        match message {
            Some(ChannelMsg::Data { data }) => output.stdout(data).await?,
            Some(ChannelMsg::ExtendedData { data, ext: STDERR }) => output.stderr(data).await?,
            Some(ChannelMsg::ExitStatus { exit_status }) => status = Some(ExitStatus::Code(exit_status)),
            Some(ChannelMsg::ExitSignal { signal_name, .. }) => status = Some(signal(&signal_name)),
            Some(ChannelMsg::Close) => return Ok(status.unwrap_or(ExitStatus::Unknown)),
            None => return status.ok_or_else(lost),
            Some(_) => {}
        }
        if status.is_some() && until.is_none() {
            until = linger.map(|linger| Instant::now() + linger);
        }
    }
}

/// Feeds the input and its end; then, or when the connection is gone, waits for ever, since only the output ends a
/// command. Returns only the error of our own side.
async fn send(to_guest: &ChannelWriteHalf<Msg>, mut stdin: impl AsyncRead + Unpin) -> Result<(), SshError> {
    loop {
        let mut chunk = BytesMut::with_capacity(INPUT_CHUNK);
        let count = stdin.read_buf(&mut chunk).await.map_err(local("standard input"))?;
        let sent = if count == 0 { to_guest.eof().await } else { to_guest.data_bytes(chunk).await };
        if count == 0 || sent.is_err() {
            return std::future::pending().await;
        }
    }
}

async fn follow_size(to_guest: &ChannelWriteHalf<Msg>, pty: Option<Pty>) {
    if let Some(mut pty) = pty {
        while pty.resized.changed().await.is_ok() {
            let size = *pty.resized.borrow_and_update();
            if to_guest.window_change(size.columns, size.rows, 0, 0).await.is_err() {
                break;
            }
        }
    }
    std::future::pending().await
}

/// Once `end` is, has the server end the command: hanging up alone ends none that has no terminal. Returns when it had its time.
async fn end_on(to_guest: &ChannelWriteHalf<Msg>, end: impl Future<Output = ()>) {
    end.await;
    for (signal, time) in [(russh::Sig::TERM, TERM_GRACE), (russh::Sig::KILL, KILL_GRACE)] {
        let _ = to_guest.signal(signal).await; // a connection that is lost ends the command otherwise
        tokio::time::sleep(time).await;
    }
}

/// What a command gets to end by itself once it is told to, and the time to hear of it when it was made to.
const TERM_GRACE: Duration = Duration::from_secs(5);
const KILL_GRACE: Duration = Duration::from_secs(2);

fn signal(name: &russh::Sig) -> ExitStatus {
    ExitStatus::Signal(match name {
        russh::Sig::Custom(name) => name.clone(),
        known => format!("{known:?}"),
    })
}

/// The session fills in what is known of the cause.
fn lost() -> SshError {
    SshError::Lost(String::new())
}

/// Closes the channel when the command is given up. Only tried once and without waiting: a connection that cannot take
/// one more message is stuck, and ends with its session.
struct CloseOnDrop(ChannelWriteHalf<Msg>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        let _ = self.0.close().now_or_never();
    }
}

/// `SSH_EXTENDED_DATA_STDERR` of RFC 4254, 5.2.
const STDERR: u32 = 1;
