//! Whether a worker and the controller know the same of the copies that it shall run. Called with each heartbeat.
//!
//! Reports are acknowledged once they are durable, so there is nothing that could be lost between the two; unless one of them
//! has an error, or a disk was set back behind the controller's back. Then a VM could show as running for ever that has long
//! ended. So both make a digest of what should be known (`bus::inventory`), and where those differ, for several heartbeats in
//! a row, the worker is asked to tell all again. That is what it does at the beginning of each session, too, so it is harmless
//! however often it happens, and mends whatever can be mended.
//!
//! Two thousand workers beat within three seconds, and most of them have nothing new. So a digest that was found equal is
//! taken for equal as long as neither it nor the revision of what the worker shall run changes, and only every
//! [`RECHECK`]th time made anew.

use super::{Cluster, WorkerEntry};
use crate::bus::inventory::{Inventory, State};
use crate::bus::message::Heartbeat;
use crate::model::WorkerName;
use crate::model::vm::VmStatus;

/// Heartbeats in a row that must differ: a report may be under way, or an assignment just taken in.
const PATIENCE: u32 = 4;
/// After so many more it is asked again. What does not help at once is an error in one of the two, which a flood of reports
/// would not mend.
const ASK_AGAIN: u32 = 100;
/// After so many equal heartbeats the controller's own digest is made anew, although nothing seems to have changed: once a
/// minute.
const RECHECK: u32 = 20;

/// What is known of whether both know the same; of one session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Agreement {
    /// The digest and the revision for which both were found equal.
    equal: Option<(u64, u64)>,
    /// Heartbeats since then that were not looked at closely.
    trusted: u32,
    /// Heartbeats in a row that differed.
    differing: u32,
}

impl Agreement {
    /// Takes in a heartbeat with this digest at this revision; `own` makes the controller's. Whether all is to be told again.
    fn note(&mut self, of: (u64, u64), own: impl FnOnce() -> u64) -> bool {
        if self.equal == Some(of) && self.trusted < RECHECK {
            self.trusted = self.trusted.saturating_add(1);
            return false;
        }
        self.trusted = 0;
        if own() == of.0 {
            (self.equal, self.differing) = (Some(of), 0);
            return false;
        }
        self.equal = None;
        self.differing = self.differing.saturating_add(1);
        self.differing.checked_sub(PATIENCE).is_some_and(|more| more.is_multiple_of(ASK_AGAIN))
    }
}

impl Cluster {
    /// Whether `worker` takes the controller to know something else than it does, and is to tell all again.
    pub(super) fn disagrees(&mut self, worker: &WorkerName, beat: &Heartbeat) -> bool {
        let Some(digest) = beat.digest else { return false };
        let Some(entry) = self.workers.get(worker) else { return false };
        // Of another revision it is about other copies.
        let Some(live) = entry.live.as_ref().filter(|live| live.revision == beat.revision) else { return false };
        let mut agreement = live.agreement;
        let tell_all = agreement.note((digest, beat.revision), || self.digest_of(entry));
        if let Some(live) = self.workers.get_mut(worker).and_then(|entry| entry.live.as_mut()) {
            live.agreement = agreement;
        }
        tell_all
    }

    /// The revision and the digest of a worker that has a session.
    #[cfg(test)]
    pub(crate) fn knows_of(&self, worker: &WorkerName) -> Option<(u64, u64)> {
        let entry = self.workers.get(worker)?;
        Some((entry.live.as_ref()?.revision, self.digest_of(entry)))
    }

    /// Of the copies that a worker shall run. A VM has but one of those, so they are in order.
    fn digest_of(&self, entry: &WorkerEntry) -> u64 {
        let mut inventory = Inventory::default();
        for vm in entry.vms.iter().filter_map(|uid| self.vm_record(*uid)) {
            if self.shall_run(vm) && !self.is_kept_from_worker(vm) {
                let state = if vm.status == VmStatus::Running { State::Running } else { State::Coming };
                inventory.add(vm.copy_id(), vm.boot, state);
            }
        }
        inventory.digest()
    }
}
