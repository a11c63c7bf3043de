//! What readers see: one VM or worker, or pages of them.

use std::ops::Bound::{Excluded, Unbounded};

use serde::Serialize;

use super::{Cluster, WorkerEntry};
use crate::bus::message;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::vm::{Vm, VmStatus};
use crate::model::worker::{WorkerState, WorkerView};
use crate::model::{Now, VmName, WorkerName};

impl Cluster {
    /// A VM as readers may see it.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`].
    pub fn vm(&self, name: &VmName, now: Now) -> Result<Vm, ApiError> {
        let vm = self.vms.get(name).ok_or_else(|| {
            ApiError::new(
                ErrorCode::NotFound,
                format!("there is no VM named {name}; `orchard list vms` shows those there are"),
            )
        })?;
        Ok(self.view(vm, now))
    }

    /// At most `limit` VMs after `after`, in name order, and whether there are more; fewer when they are so large that
    /// they would make more than `bytes` of answer.
    pub fn vms(&self, after: Option<&VmName>, limit: usize, bytes: usize, now: Now) -> (Vec<Vm>, bool) {
        let from = after.map_or(Unbounded, |name| Excluded(name.clone()));
        page(self.vms.range((from, Unbounded)).map(|(_, vm)| self.view(vm, now)), limit, bytes)
    }

    /// A worker as readers see it. `connectable` is not known here and false.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`].
    pub fn worker(&self, name: &WorkerName) -> Result<WorkerView, ApiError> {
        self.workers.get(name).map(WorkerEntry::view).ok_or_else(|| {
            let hint = "`orchard list workers` shows those there are";
            ApiError::new(ErrorCode::NotFound, format!("there is no worker named {name}; {hint}"))
        })
    }

    /// At most `limit` workers after `after`, in name order, and whether there are more; fewer when they are so large that
    /// they would make more than `bytes` of answer. `connectable` is not known here and false.
    pub fn workers(&self, after: Option<&WorkerName>, limit: usize, bytes: usize) -> (Vec<WorkerView>, bool) {
        let from = after.map_or(Unbounded, |name| Excluded(name.clone()));
        page(self.workers.range((from, Unbounded)).map(|(_, entry)| entry.view()), limit, bytes)
    }

    /// Adds the worker's silence, which is no property of the VM, to what readers see.
    fn view(&self, vm: &Vm, now: Now) -> Vm {
        let mut seen = vm.clone().redacted();
        let entry = vm.worker.as_ref().and_then(|name| self.workers.get(name));
        if let Some(entry) = entry.filter(|entry| entry.state == WorkerState::Unseen && vm.status != VmStatus::Failed) {
            let silence = now.mono.saturating_sub(entry.heard).as_secs();
            let note = format!("worker {} has not been heard of for {silence} s", entry.record.info.name);
            let so_far = &seen.status_message;
            seen.status_message = if so_far.is_empty() { note } else { format!("{note}; before: {so_far}") };
        }
        seen
    }
}

/// The first of `all`: at most `limit`, and no more than make `bytes` of answer, but one at least; and whether there are
/// more.
fn page<T: Serialize>(all: impl Iterator<Item = T>, limit: usize, bytes: usize) -> (Vec<T>, bool) {
    let mut room = bytes;
    let mut page = Vec::new();
    for item in all {
        let size = message::encode(&item).map_or(0, |encoded| encoded.len());
        if page.len() >= limit || (size > room && !page.is_empty()) {
            return (page, true);
        }
        room = room.saturating_sub(size);
        page.push(item);
    }
    (page, false)
}
