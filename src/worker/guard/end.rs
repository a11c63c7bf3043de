//! Ends copies because the lease is over: in the worker for those it leads, in the guard for all that are replaceable.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::notes::Notes;
use crate::model::CopyId;
use crate::worker::runtime::{FoundState, Runtime, RuntimeError};

/// What a guest gets to switch itself off. It is not left running any longer for it: where it matters to others whether the
/// VM runs, its replacement is about to start.
const GRACE: Duration = Duration::from_secs(2);
/// How long that and the orderly end of its process may take.
const STOP_LIMIT: Duration = Duration::from_secs(3);
/// How long killing it may take then.
const END_LIMIT: Duration = Duration::from_secs(4);
/// How long the host may take to tell what runs; then everything counts as running that may.
const LIST_LIMIT: Duration = Duration::from_secs(1);

/// Ends one copy. Its disk stays. Cancel safe.
///
/// # Errors
/// When it may still run.
pub(super) async fn end(runtime: &dyn Runtime, id: CopyId) -> Result<(), RuntimeError> {
    match tokio::time::timeout(STOP_LIMIT, runtime.stop(id, GRACE)).await {
        Ok(Ok(()) | Err(RuntimeError::NotFound)) => return Ok(()),
        Ok(Err(error)) => tracing::warn!(copy = %id, "it cannot be stopped and is killed: {error}"),
        Err(_) => tracing::warn!(copy = %id, "it does not stop within {STOP_LIMIT:?} and is killed"),
    }
    match tokio::time::timeout(END_LIMIT, runtime.kill(id)).await {
        Ok(Ok(()) | Err(RuntimeError::NotFound)) => Ok(()),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(RuntimeError::Timeout(format!("it cannot be killed within {END_LIMIT:?}"))),
    }
}

/// Ends those of `copies` that run, all at the same time, and notes each as fenced before. Yields how many those were.
/// Only while nothing else does steps to them. Cancel safe: what was not ended is found again.
pub(super) async fn end_running(
    runtime: &Arc<dyn Runtime>,
    notes: &Notes,
    copies: &BTreeSet<CopyId>,
    why: &str,
) -> usize {
    let running: Vec<CopyId> = match tokio::time::timeout(LIST_LIMIT, runtime.list()).await {
        Ok(Ok(found)) => {
            let running = found.into_iter().filter(|found| found.state == FoundState::Running);
            running.map(|found| found.id).filter(|id| copies.contains(id)).collect()
        }
        Ok(Err(error)) => {
            tracing::warn!("cannot list the VMs on this host, so all are ended that may run: {error}");
            copies.iter().copied().collect()
        }
        Err(_) => {
            tracing::warn!("the host does not tell within {LIST_LIMIT:?} which VMs run, so all are ended that may");
            copies.iter().copied().collect()
        }
    };
    let mut ending = JoinSet::new();
    let count = running.len();
    for id in running {
        let (runtime, notes, why) = (runtime.clone(), notes.clone(), why.to_owned());
        ending.spawn(async move {
            // Whether it can be noted or not, it must not run.
            if let Err(error) = notes.note_fenced(id, &why) {
                tracing::warn!(copy = %id, "cannot note that it is fenced: {error}");
            }
            match end(&*runtime, id).await {
                Ok(()) => tracing::warn!(copy = %id, "ended, as the worker's lease is over"),
                Err(error) => tracing::error!(copy = %id, "the lease is over, and the VM cannot be ended: {error}"),
            }
        });
    }
    while ending.join_next().await.is_some() {}
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::lease::{FENCE_TIME, LOOK};

    #[test]
    fn all_of_it_together_takes_less_than_the_controller_waits() {
        assert!(LOOK + LIST_LIMIT + STOP_LIMIT + END_LIMIT < FENCE_TIME);
        assert!(GRACE < STOP_LIMIT);
    }
}
