//! What all copies of a worker share; handed to each copy's task.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use super::journal::Journal;
use super::runtime::Runtime;
use super::uplink::Uplink;
use crate::model::CopyId;

/// Shared by all copies of a worker.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) uplink: Uplink,
    pub(super) journal: Journal,
    pub(super) boot_slots: Arc<Semaphore>,
    pub(super) resting: Resting,
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
