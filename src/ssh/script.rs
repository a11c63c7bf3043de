//! Runs a VM's startup script: in the user's login shell without a terminal, its output as bounded lines as they come.
//! The worker calls it after each start, with the session that it just opened.

use std::future::pending;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::channel::Output;
use super::client::{Program, Session};
use super::lines::LineSplitter;
use super::quote::{ScriptTextError, frame};
use super::{ExitStatus, SshError};
use crate::model::event::LogStream;
use crate::model::vm::StartupScript;

/// How long output is awaited after the script has exited: what it left in the background may hold its output open for
/// ever, which must not keep the VM from being ready.
const LINGER: Duration = Duration::from_secs(2);

/// Why a script did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// It can not be given to a shell.
    #[error("the startup script cannot run")]
    Text(#[from] ScriptTextError),
    /// The connection failed.
    #[error("the startup script was interrupted")]
    Ssh(#[from] SshError),
}

/// Runs `script` and sends each line of output, at most `max_line` bytes long, to `lines`; a full channel holds the
/// script back. Standard output and error come in the order of arrival. Sets no limit of its own on how long the
/// script runs; dropping the future hangs it up.
///
/// # Errors
/// [`ScriptError::Text`] before anything ran; [`ScriptError::Ssh`] with [`SshError::Local`] when nobody receives lines
/// any more. A script that fails is no error but an [`ExitStatus`].
pub async fn run(
    session: &Session,
    script: &StartupScript,
    max_line: usize,
    lines: mpsc::Sender<(LogStream, String)>,
) -> Result<ExitStatus, ScriptError> {
    let text = frame(script)?;
    let mut output = Lines { stdout: LineSplitter::new(max_line), stderr: LineSplitter::new(max_line), lines };
    let ended = session.run(Program::LoginShell, None, Some(LINGER), text.as_bytes(), &mut output, pending()).await;
    // half a line is worth having, above all when the connection broke
    let flushed = output.finish().await;
    let status = ended?;
    flushed?;
    Ok(status)
}

struct Lines {
    stdout: LineSplitter,
    stderr: LineSplitter,
    lines: mpsc::Sender<(LogStream, String)>,
}

impl Lines {
    async fn finish(self) -> Result<(), SshError> {
        let mut rest = Vec::new();
        self.stdout.finish(|line| rest.push((LogStream::Stdout, line)));
        self.stderr.finish(|line| rest.push((LogStream::Stderr, line)));
        deliver(&self.lines, rest).await
    }
}

impl Output for Lines {
    async fn stdout(&mut self, data: Bytes) -> Result<(), SshError> {
        let mut ready = Vec::new();
        self.stdout.push(&data, |line| ready.push((LogStream::Stdout, line)));
        deliver(&self.lines, ready).await
    }

    async fn stderr(&mut self, data: Bytes) -> Result<(), SshError> {
        let mut ready = Vec::new();
        self.stderr.push(&data, |line| ready.push((LogStream::Stderr, line)));
        deliver(&self.lines, ready).await
    }
}

async fn deliver(to: &mpsc::Sender<(LogStream, String)>, lines: Vec<(LogStream, String)>) -> Result<(), SshError> {
    for line in lines {
        to.send(line)
            .await
            .map_err(|_| SshError::Local { what: "log", source: std::io::ErrorKind::BrokenPipe.into() })?;
    }
    Ok(())
}
