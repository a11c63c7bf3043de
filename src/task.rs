//! Owned tasks: whoever holds the [`Task`] owns the work, and dropping it ends the work.
//!
//! The only place that calls `tokio::spawn`; clippy bans it elsewhere, so that no task outlives its owner unnoticed.

use std::future::Future;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinHandle};
use tracing::{Instrument, Span};

/// A running task. Dropping it aborts the work at its next await point.
#[derive(Debug)]
#[must_use = "dropping a Task aborts it"]
pub struct Task<T = ()> {
    handle: JoinHandle<T>,
}

/// Starts `work` on the current runtime, inside the current tracing span, owned by the returned [`Task`].
#[allow(clippy::disallowed_methods)] // the one owner-giving wrapper around it
pub fn spawn<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> Task<T> {
    Task { handle: tokio::spawn(work.instrument(Span::current())) }
}

/// Returns when one of `tasks` has ended; never for none. Looks once a second: it is for tasks that should not end at
/// all. Cancel safe.
pub async fn any_ended<T>(tasks: &[Task<T>]) {
    let mut look = tokio::time::interval(Duration::from_secs(1));
    while !tasks.iter().any(Task::is_finished) {
        look.tick().await;
    }
}

impl<T> Task<T> {
    /// Waits for the result; `None` when the task panicked or was aborted. Cancel safe: dropping the future keeps
    /// nothing, the task is aborted as its owner is gone.
    pub async fn join(mut self) -> Option<T> {
        (&mut self.handle).await.ok()
    }

    /// Waits at most `grace` for the task to end by itself, then aborts it and waits until it is gone.
    pub async fn stop_within(mut self, grace: Duration) {
        if tokio::time::timeout(grace, &mut self.handle).await.is_err() {
            self.handle.abort();
            let _ = (&mut self.handle).await;
        }
    }

    /// Aborts the task and waits until its locals are dropped.
    pub async fn abort(mut self) {
        self.handle.abort();
        let _ = (&mut self.handle).await;
    }

    /// Whether the work has ended, for whatever reason.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// A handle that can abort the task without owning it.
    pub fn abort_handle(&self) -> AbortHandle {
        self.handle.abort_handle()
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.handle.abort();
    }
}
