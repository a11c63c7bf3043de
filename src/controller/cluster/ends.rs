//! What happens to VMs when time passes: they delete themselves when theirs is over, and pauses before restarts end. The
//! clock on the wall is asked once, when a VM is made or loaded; a jump of it later harms none.

use std::time::Duration;

use super::{Changes, Cluster};
use crate::model::Now;
use crate::model::planted::{Bug, planted};
use crate::model::vm::Vm;

/// VMs whose time is over that are deleted in one pass: these come four times a second.
const ENDS_PER_PASS: usize = 512;

impl Cluster {
    /// Notes when a VM deletes itself, if it does.
    pub(super) fn note_end(&mut self, vm: &Vm, now: Now) {
        if vm.spec.ttl_s > 0 {
            let left = Duration::from_secs(vm.spec.ttl_s).saturating_sub(vm.created_at.until(now.wall));
            self.ends.insert(vm.uid, now.mono.saturating_add(left));
        }
    }

    /// Deletes the VMs whose time is over, so many at a time that heartbeats are answered in between.
    pub(super) fn end_of_time(&mut self, now: Now, changes: &mut Changes) {
        for _ in 0..ENDS_PER_PASS {
            let Some(uid) = self.ends.pop_due(now.mono) else { return };
            if let Some(vm) = self.vm_record(uid) {
                let (name, ttl) = (vm.name.clone(), vm.spec.ttl_s);
                let why = format!("the {ttl} s it was given are over");
                // Refused only if there is no such VM, and there is.
                let _ = self.delete_because(&name, why, now, changes);
            }
        }
    }

    /// Has those wait for a worker again whose pause is over.
    pub(super) fn end_pauses(&mut self, now: Now, changes: &mut Changes) {
        while let Some(uid) = self.held_back.pop_due(now.mono) {
            if self.boots_where_it_is(uid, changes) {
                continue;
            }
            if !planted(Bug::RestartDeadEnd) {
                self.consider(uid);
            }
        }
    }
}
