//! What all copies of a worker share; handed to each copy's task.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use super::StartError;
use super::journal::Journal;
use super::logs::Logs;
use super::meters::Meters;
use super::runtime::Runtime;
use super::uplink::Uplink;
use crate::model::CopyId;

/// Shared by all copies of a worker.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) uplink: Uplink,
    pub(super) journal: Journal,
    pub(super) logs: Logs,
    pub(super) boot_slots: Arc<Semaphore>,
    pub(super) resting: Resting,
    pub(super) meters: Arc<Meters>,
    /// The machine was started anew since a process of this worker last ran on it.
    pub(super) rebooted: bool,
}

/// The copies whose tasks have done all there is to do by their orders, and of which nothing runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Resting(Arc<Mutex<BTreeSet<CopyId>>>);

impl Resting {
    fn copies(&self) -> MutexGuard<'_, BTreeSet<CopyId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes whether the task of a copy rests. A task that goes on says so before it looks at its orders.
    pub(super) fn note(&self, id: CopyId, rests: bool) {
        let mut copies = self.copies();
        match rests {
            true => copies.insert(id),
            false => copies.remove(&id),
        };
    }

    /// How many of `copies` do not rest.
    pub(super) fn busy<'a>(&self, copies: impl IntoIterator<Item = &'a CopyId>) -> usize {
        let resting = self.copies();
        copies.into_iter().filter(|id| !resting.contains(id)).count()
    }
}

impl Host {
    /// What all copies on a worker share that keeps its files in `data_dir`.
    ///
    /// # Errors
    /// [`StartError::Folder`].
    pub(super) fn new(
        runtime: Arc<dyn Runtime>,
        uplink: Uplink,
        journal: Journal,
        data_dir: &Path,
    ) -> Result<Self, StartError> {
        let logs = Logs::open(data_dir, uplink.clone())?;
        let boot_slots = Arc::new(Semaphore::new(runtime.boot_permits().clamp(1, Semaphore::MAX_PERMITS)));
        let (resting, meters, rebooted) = (Resting::default(), Arc::default(), false);
        Ok(Self { runtime, uplink, journal, logs, boot_slots, resting, meters, rebooted })
    }

    /// Forgets all of a copy that is gone.
    pub(super) fn forget(&self, id: CopyId) {
        self.journal.forget(id);
        self.logs.forget(id);
    }

    /// One whose controller never answers, and where one guest boots at a time.
    #[cfg(test)]
    pub(super) async fn unheard(runtime: Arc<dyn Runtime>, dir: &Path) -> Self {
        let host = Self::new(runtime, Uplink::unheard().await, Journal::at(dir), dir).unwrap();
        Self { boot_slots: Arc::new(Semaphore::new(1)), ..host }
    }
}
