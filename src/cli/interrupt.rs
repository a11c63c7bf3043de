//! Ctrl-C for client commands: each ends with the same exit code and leaves a clean terminal. What serves has signals of its
//! own (`serve::signals`).

use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::INTERRUPTED;
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
