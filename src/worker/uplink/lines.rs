//! Log lines on their way: sent in order, each batch until it is acknowledged. Called by `logs`, which keeps them on the disk.

use std::collections::BTreeSet;
use std::sync::{MutexGuard, PoisonError};

use super::{Entry, LOG_FIRST, RETRY, Uplink, is_final};
use crate::bus::log::LogLines;
use crate::bus::message::{Done, Observation};
use crate::bus::subject::WorkerVerb;
use crate::worker::spool::{Batch, LogKey};

impl Uplink {
    pub(super) fn logs(&self) -> MutexGuard<'_, BTreeSet<LogKey>> {
        self.shared.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There are, or will be, lines of this boot to send, until what is returned is dropped.
    pub(in crate::worker) fn log_to_come(&self, key: LogKey) -> LogToCome {
        self.logs().insert(key);
        LogToCome { uplink: self.clone(), key }
    }

    /// Returns once it is acknowledged that this boot runs, or something else is to be told of it. Cancel safe.
    pub(super) async fn told_that_it_runs(&self, (id, boot): LogKey) {
        let mut changes = self.shared.copies_changed.subscribe();
        let to_come = |entry: &Entry| {
            entry.boot == boot && !entry.ran && matches!(entry.observation, Observation::Running { .. })
        };
        while self.copies().get(&id).is_some_and(to_come) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Sends lines until they are acknowledged, or not wanted. Cancel safe: what was not acknowledged can be sent again.
    pub(in crate::worker) async fn send_log(&self, (id, boot): LogKey, batch: &Batch) -> LogAnswer {
        let _ = tokio::time::timeout(LOG_FIRST, self.told_that_it_runs((id, boot))).await;
        let mut session = self.shared.session.subscribe();
        loop {
            let current = match session.wait_for(Option::is_some).await.map(|session| *session) {
                Ok(Some(current)) => current,
                Ok(None) => continue,
                // The worker ends.
                Err(_) => std::future::pending().await,
            };
            let (first, lines) = (batch.first, batch.lines.clone());
            let message = LogLines { session: current, uid: id.uid, attempt: id.attempt, boot, first, lines };
            match self.request(WorkerVerb::Log, &message).await {
                Ok(Done {}) => return LogAnswer::Taken,
                Err(error) if is_final(error.code) => {
                    tracing::warn!("the controller takes no log lines of {id}, boot {boot}, any more: {error}");
                    return LogAnswer::Unwanted;
                }
                Err(error) => {
                    tracing::debug!("log of {id} not acknowledged: {error}");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

/// What the controller says of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) enum LogAnswer {
    /// It has them.
    Taken,
    /// It wants none of this boot any more.
    Unwanted,
}

/// Lines of a boot are on their way.
#[derive(Debug)]
pub(in crate::worker) struct LogToCome {
    uplink: Uplink,
    key: LogKey,
}

impl Drop for LogToCome {
    fn drop(&mut self) {
        self.uplink.logs().remove(&self.key);
        self.uplink.shared.changed.notify_one();
    }
}

/// Whether this is told only after all lines of the boot that it is about. Not that it was fenced, which others wait for.
pub(super) fn follows_log(observation: &Observation) -> bool {
    match observation {
        Observation::Failed { .. } | Observation::Stopped { .. } => true,
        Observation::Preparing { .. } | Observation::Running { .. } => false,
        Observation::Fenced { .. } | Observation::Absent | Observation::Stray { .. } => false,
    }
}
