//! Ctrl-C for client commands: each ends with the same exit code and leaves a clean terminal; and the other signals that end those
//! that have something running in a VM. What serves has signals of its own (`serve::signals`).

use std::io::IsTerminal as _;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{INTERRUPTED, ToldToEnd};
use crate::ssh::terminal;
use crate::task::{self, Task};

/// How long a command has to end by itself: what is awaited is dropped at once, and only what holds the thread up, such as
/// reading a pipe that nobody writes to, takes longer.
const GRACE: Duration = Duration::from_millis(500);

/// From now on Ctrl-C does not end the process by itself, but at the latest [`GRACE`] after it was pressed.
pub(super) struct Interrupt {
    pressed: Signal,
    _last_resort: Task,
}

impl Interrupt {
    /// Takes the signal over.
    pub(super) fn install() -> anyhow::Result<Self> {
        let take = || signal(SignalKind::interrupt()).context("cannot take over Ctrl-C");
        let mut also = take()?;
        let last_resort = task::spawn(async move {
            let _ = also.recv().await;
            tokio::time::sleep(GRACE).await;
            terminal::restore();
            std::process::exit(INTERRUPTED.into());
        });
        Ok(Self { pressed: take()?, _last_resort: last_resort })
    }

    /// Waits until it is pressed; the terminal is as it was before then. Cancel safe.
    pub(super) async fn wait(&mut self) {
        let _ = self.pressed.recv().await;
        terminal::restore();
    }
}

/// What is to be said once the command was ended by Ctrl-C.
static WORD: OnceLock<String> = OnceLock::new();

/// Has `text` be said if the command ends by Ctrl-C, below the line in which the terminal has shown that.
pub(super) fn leave_word(text: String) {
    let _ = WORD.set(text);
}

/// What was left to be said.
pub(super) fn word() -> Option<&'static str> {
    WORD.get().map(String::as_str)
}

/// SIGTERM, as of a job that is cancelled, and SIGHUP, as of a terminal that is closed. A command that simply dies of them leaves what
/// it runs in a VM running until its client is given up.
pub(super) struct Farewell {
    terminate: Signal,
    /// Only where there is a terminal to be closed: whoever is to outlive one (`nohup`) has none, and ignores the signal.
    hang_up: Option<Signal>,
}

impl Farewell {
    /// Takes the signals over.
    pub(super) fn install() -> anyhow::Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("cannot take over SIGTERM")?;
        let hang_up = match std::io::stdin().is_terminal() {
            true => Some(signal(SignalKind::hangup()).context("cannot take over SIGHUP")?),
            false => None,
        };
        Ok(Self { terminate, hang_up })
    }

    /// Waits for one of them; the terminal is as it was before then. Cancel safe.
    pub(super) async fn wait(&mut self) -> ToldToEnd {
        let hang_up = async {
            match &mut self.hang_up {
                Some(hang_up) => hang_up.recv().await,
                None => std::future::pending().await,
            }
        };
        let told = tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = hang_up => SignalKind::hangup(),
        };
        terminal::restore();
        ToldToEnd(told)
    }
}
