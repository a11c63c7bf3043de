//! The user's own terminal: raw while a guest's terminal is shown in it, restored on every way out. Used by the CLI.

use std::future::pending;
use std::io::{self, IsTerminal};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::client::{Program, Pty, Session, Stdio};
use super::stdin::stdin;
use super::{ExitStatus, SshError};
use crate::task;

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Characters in a row.
    pub columns: u32,
    /// Rows.
    pub rows: u32,
}

/// What is assumed where the terminal does not tell.
const DEFAULT_SIZE: Size = Size { columns: 80, rows: 24 };
/// What is assumed where `TERM` does not tell.
const DEFAULT_TERM: &str = "xterm-256color";

impl Size {
    /// The size of this process's terminal.
    pub fn current() -> Size {
        match crossterm::terminal::size() {
            Ok((columns, rows)) if columns > 0 && rows > 0 => Size { columns: columns.into(), rows: rows.into() },
            _ => DEFAULT_SIZE,
        }
    }
}

/// Whether standard input is a terminal, which [`interactive`] needs.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal()
}

/// The terminal passes every key through unread while this lives; dropping it brings back what was set before.
#[derive(Debug)]
#[must_use = "the terminal is restored when this is dropped"]
pub struct RawMode(());

impl RawMode {
    /// Sets the raw mode.
    ///
    /// # Errors
    /// When there is no terminal.
    pub fn enter() -> io::Result<RawMode> {
        crossterm::terminal::enable_raw_mode()?;
        Ok(RawMode(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

/// Whether that is in force: a line then ends with a carriage return of its own.
pub fn is_raw() -> bool {
    crossterm::terminal::is_raw_mode_enabled().unwrap_or(false)
}

/// Brings back what was set before [`RawMode::enter`], if that is in force anywhere: for a way out that drops nothing.
pub fn restore() {
    let _ = crossterm::terminal::disable_raw_mode(); // nothing to be done without a terminal
}

/// Shows `program` in this process's terminal until it ends: keys and window size go to the guest, what it writes comes
/// here. Needs [`is_interactive`]. Being told to end (SIGTERM, SIGHUP) ends it too, with the terminal restored. May be
/// called once in a process, since it takes the standard input.
///
/// While `stalled` the keys reach nobody, and Ctrl-C ends it as well: reading the standard input fails then, as interrupted.
///
/// # Errors
/// As [`Session::exec`]; [`SshError::Local`] without a terminal.
pub async fn interactive(
    session: &Session,
    program: Program<'_>,
    stalled: watch::Receiver<bool>,
) -> Result<ExitStatus, SshError> {
    let local = |source| SshError::Local { what: "terminal", source };
    let mut resizes = signal(SignalKind::window_change()).map_err(local)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(local)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(local)?;
    let size = Size::current();
    let (sizes, resized) = watch::channel(size);
    let _follow = task::spawn(async move {
        while resizes.recv().await.is_some() {
            sizes.send_replace(Size::current());
        }
    });
    let term = std::env::var("TERM").ok().filter(|term| !term.is_empty()).unwrap_or_else(|| DEFAULT_TERM.to_owned());
    let raw = RawMode::enter().map_err(local)?;
    let stdin = Keys { stdin: stdin().map_err(local)?, stalled };
    let stdio = Stdio { stdin, stdout: tokio::io::stdout(), stderr: tokio::io::stderr() };
    let ended = tokio::select! {
        ended = session.exec_in_terminal(program, Pty { term, size, resized }, stdio) => ended,
        () = either(&mut terminate, &mut hang_up) => Err(SshError::Lost("this process was told to end".to_owned())),
    };
    drop(raw);
    ended
}

async fn either(a: &mut Signal, b: &mut Signal) {
    let told = tokio::select! { told = a.recv() => told, told = b.recv() => told };
    if told.is_none() {
        pending().await
    }
}

/// What is typed.
struct Keys<S> {
    stdin: S,
    stalled: watch::Receiver<bool>,
}

/// Ctrl-C, as a terminal in raw mode gives it.
const CTRL_C: u8 = 3;

impl<S: AsyncRead + Unpin> AsyncRead for Keys<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stdin).poll_read(cx, buf))?;
        let typed = buf.filled().get(before..).unwrap_or_default();
        match typed.contains(&CTRL_C) && *self.stalled.borrow() {
            true => Poll::Ready(Err(io::ErrorKind::Interrupted.into())),
            false => Poll::Ready(Ok(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn ctrl_c_is_the_guests_unless_nothing_reaches_it() {
        let (stalls, stalled) = watch::channel(false);
        let mut keys = Keys { stdin: &b"a\x03"[..], stalled: stalled.clone() };
        let mut typed = Vec::new();
        keys.read_to_end(&mut typed).await.unwrap();
        assert_eq!(typed, b"a\x03");
        stalls.send_replace(true);
        let mut keys = Keys { stdin: &b"a"[..], stalled: stalled.clone() };
        keys.read_to_end(&mut typed).await.unwrap();
        let mut keys = Keys { stdin: &b"b\x03"[..], stalled };
        assert_eq!(keys.read(&mut [0; 8]).await.unwrap_err().kind(), io::ErrorKind::Interrupted);
    }
}
