//! What all copies of a worker share; handed to each copy's task.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::journal::Journal;
use super::runtime::Runtime;
use super::uplink::Uplink;

/// Shared by all copies of a worker.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) uplink: Uplink,
    pub(super) journal: Journal,
    pub(super) boot_slots: Arc<Semaphore>,
}
