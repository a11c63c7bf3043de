//! What all copies of a worker share; handed to each copy's task.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::StartError;
use super::journal::Journal;
use super::logs::Logs;
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
        Ok(Self { runtime, uplink, journal, logs, boot_slots })
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
