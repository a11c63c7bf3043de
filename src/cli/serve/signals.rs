//! Ctrl-C and SIGTERM as something to wait for.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Both signals; from now on they do not end the process by themselves.
pub(in crate::cli) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Takes the signals over.
    pub(in crate::cli) fn install() -> anyhow::Result<Self> {
        let take = |kind| signal(kind).context("cannot take over Ctrl-C and SIGTERM");
        Ok(Self { interrupt: take(SignalKind::interrupt())?, terminate: take(SignalKind::terminate())? })
    }

    /// Waits for one of them and yields its name. Cancel safe.
    pub(in crate::cli) async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.interrupt.recv() => "interrupted",
            _ = self.terminate.recv() => "terminated",
        }
    }
}
