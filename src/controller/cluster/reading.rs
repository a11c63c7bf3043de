//! What readers see: one VM or worker, or pages of them.

use std::collections::HashMap;
use std::ops::Bound::{Excluded, Unbounded};

use serde::Serialize;

use super::Cluster;
use crate::bus::measure::encoded_len;
use crate::controller::scheduler::Shape;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::vm::{Vm, VmStatus};
use crate::model::worker::WorkerView;
use crate::model::{Now, VmName, WorkerName};

/// What stands in the way of VMs, worked out once for all that want the same.
type Reasons = HashMap<Shape, String>;

impl Cluster {
    /// A VM as readers may see it.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`].
    pub fn vm(&self, name: &VmName, now: Now) -> Result<Vm, ApiError> {
        Ok(self.view(self.known_vm(name)?, &mut Reasons::default(), now))
    }

    pub(super) fn known_vm(&self, name: &VmName) -> Result<&Vm, ApiError> {
        self.vms.get(name).map(|vm| &**vm).ok_or_else(|| {
            ApiError::new(
                ErrorCode::NotFound,
                format!("there is no VM named {name}; `orchard list vms` shows those there are"),
            )
        })
    }

    /// At most `limit` VMs after `after`, in name order, and whether there are more; fewer when they are so large that
    /// they would make more than `bytes` of answer.
    pub fn vms(&self, after: Option<&VmName>, limit: usize, bytes: usize, now: Now) -> (Vec<Vm>, bool) {
        let from = after.map_or(Unbounded, |name| Excluded(name.clone()));
        let mut reasons = Reasons::default();
        page(self.vms.range((from, Unbounded)).map(|(_, vm)| self.view(vm, &mut reasons, now)), limit, bytes)
    }

    /// A worker as readers see it. `connectable` is not known here and false.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`].
    pub fn worker(&self, name: &WorkerName) -> Result<WorkerView, ApiError> {
        self.workers
            .get(name)
            .map(|entry| entry.view(self.scheduler.used(name)))
            .ok_or_else(|| super::placing::unknown_worker(name))
    }

    /// At most `limit` workers after `after`, in name order, and whether there are more; fewer when they are so large that
    /// they would make more than `bytes` of answer. `connectable` is not known here and false.
    pub fn workers(&self, after: Option<&WorkerName>, limit: usize, bytes: usize) -> (Vec<WorkerView>, bool) {
        let from = after.map_or(Unbounded, |name| Excluded(name.clone()));
        page(
            self.workers.range((from, Unbounded)).map(|(name, entry)| entry.view(self.scheduler.used(name))),
            limit,
            bytes,
        )
    }

    /// Adds what is no property of the VM to what readers see: what stands in the way of its being placed, or its worker's
    /// silence. Not stored, as it changes with every worker.
    fn view(&self, vm: &Vm, reasons: &mut Reasons, now: Now) -> Vm {
        let mut seen = vm.clone().redacted();
        if self.scheduler.is_waiting(vm.uid) {
            let shape = Shape::of_vm(vm);
            let reason = reasons.entry(shape).or_insert_with_key(|shape| self.scheduler.explain(shape).to_string());
            seen.status_message = match &vm.worker {
                Some(worker) => format!("switched on; waiting for room on {worker}, where its disk is: {reason}"),
                None => reason.clone(),
            };
        }
        if let Some(why) = self.why_held(vm) {
            seen.status_message =
                if vm.status == VmStatus::Failed { format!("{}; {why}", seen.status_message) } else { why };
        }
        if let Some(note) = self.fate_of(vm, now) {
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
        let size = encoded_len(&item);
        if page.len() >= limit || (size > room && !page.is_empty()) {
            return (page, true);
        }
        room = room.saturating_sub(size);
        page.push(item);
    }
    (page, false)
}
