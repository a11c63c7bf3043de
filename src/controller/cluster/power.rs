//! Whether a VM runs: what is wished of its copy, how it is switched off and on, and how it boots again by its policy.
//!
//! Each wish is about a *boot*: how often the copy was told to boot again from its disk. The number grows whenever a wish to
//! run follows one not to, so that a report tells which of them it is about, however late it comes: a process that ended in
//! boot 3 says nothing of the one of boot 4, and "it is off" from before it was switched on again frees nothing.
//!
//! A VM that is off keeps its worker and its disk and gives its room back. Switching it on again (which the original cannot)
//! has it wait for room on that worker, as its disk is there. While it waits, for that or for the end of a pause, the wish is
//! that it does not run, in the boot that has ended.

use super::vm::known;
use super::{Changes, Cluster, restarts};
use crate::bus::message::{RunSpec, Want};
use crate::model::event::EventType;
use crate::model::planted::{Bug, planted};
use crate::model::vm::{EarlierLog, PowerState, RestartPolicy, Vm, VmStatus};
use crate::model::{Boot, Now, VmUid, WorkerName};

impl Cluster {
    /// What shall become of the copy of `vm` on its worker, and which boot that is about.
    pub(super) fn wish_for(&self, vm: &Vm) -> (Boot, Want) {
        let before = vm.boot.saturating_sub(1);
        match (vm.status, vm.spec.power_state) {
            (VmStatus::Failed, _) | (_, PowerState::Stopped) => (vm.boot, Want::Keep),
            (_, PowerState::Suspended) => (vm.boot, Want::Suspend),
            (_, PowerState::Running) if self.may_run(vm) => {
                let run = RunSpec {
                    spec: vm.spec.clone(),
                    generation: vm.generation,
                    cpu: vm.assigned_cpu,
                    memory: vm.assigned_memory,
                    ran: vm.started_at.is_some(),
                };
                (vm.boot, Want::Run(Box::new(run)))
            }
            // Its memory may lie beside its disk, and is still wanted.
            (_, PowerState::Running) if vm.spec.suspendable => (before, Want::Suspend),
            (_, PowerState::Running) => (before, Want::Keep),
        }
    }

    /// Whether the wish for its copy is that it runs.
    pub(super) fn shall_run(&self, vm: &Vm) -> bool {
        vm.status != VmStatus::Failed && vm.spec.power_state == PowerState::Running && self.may_run(vm)
    }

    /// Whether it has room on its worker, and no pause is in the way.
    fn may_run(&self, vm: &Vm) -> bool {
        vm.conditions.scheduled() && !self.held_back.contains(vm.uid)
    }

    /// The worker says that a copy does not run, as was wished.
    pub(super) fn stopped(
        &mut self,
        worker: &WorkerName,
        uid: VmUid,
        message: String,
        now: Now,
        changes: &mut Changes,
    ) {
        let Some(vm) = self.vm_record(uid) else { return };
        if vm.is_to_be_off() && vm.status != VmStatus::Failed && vm.conditions.scheduled() {
            self.switch_off(worker, uid, message, now, changes);
        }
    }

    /// The worker says that a process has ended, or that there will be none.
    pub(super) fn ended(
        &mut self,
        worker: &WorkerName,
        uid: VmUid,
        (message, disk): (String, bool),
        now: Now,
        changes: &mut Changes,
    ) {
        let held_back = self.held_back.contains(uid);
        let Some(vm) = known(&self.names, &mut self.vms, uid) else { return };
        let scheduled = vm.conditions.scheduled();
        if vm.status == VmStatus::Failed {
            return;
        }
        if vm.is_to_be_off() {
            // That it ended is what was wished, though not how.
            if scheduled {
                self.switch_off(worker, uid, message, now, changes);
            }
            return;
        }
        if !scheduled || held_back {
            // Of a time that a restored backup knows nothing of. This boot is used up, and the next is another one.
            vm.boot = vm.boot.saturating_add(1);
            changes.vms.insert(uid);
            self.reassign(worker, changes);
            return;
        }
        if vm.spec.restart_policy == RestartPolicy::Always && disk {
            self.boot_again(worker, uid, message, now, changes);
            if self.is_held(uid) {
                // Not before it is known that no other copy runs; if one does, it is that one.
                self.adopt(uid, now, changes);
            }
            return;
        }
        self.failed(worker, uid, message, now, changes);
    }

    /// The worker says that it has ended a process as it was to end itself. That is nobody's failure: whatever its policy is, the
    /// copy boots again from its disk, with its room kept, as soon as its worker is back; a VM that may be replaced does so
    /// elsewhere if the worker is not back before its lease is over (`replace`).
    pub(super) fn halted(&mut self, worker: &WorkerName, uid: VmUid, message: String, now: Now, changes: &mut Changes) {
        if !self.vm_record(uid).is_some_and(|vm| self.shall_run(vm)) {
            return self.ended(worker, uid, (message, true), now, changes);
        }
        let Some(vm) = known(&self.names, &mut self.vms, uid) else { return };
        vm.set_conditions(true, false);
        next_boot(vm, format!("boots again from its disk when its worker is back: {message}"));
        changes.vm_event(&mut self.last_event, now, vm, EventType::Stopped, message);
        self.reassign(worker, changes);
        if self.is_held(uid) {
            self.adopt(uid, now, changes);
        }
    }

    /// It is off: its room is free, its worker keeps its disk.
    fn switch_off(&mut self, worker: &WorkerName, uid: VmUid, how: String, now: Now, changes: &mut Changes) {
        let Some(vm) = known(&self.names, &mut self.vms, uid) else { return };
        self.scheduler.release(worker, &std::mem::take(&mut vm.assigned), 0);
        vm.set_conditions(false, false);
        vm.ready = false;
        vm.observed_generation = vm.generation;
        let (kind, what) = match vm.spec.power_state {
            PowerState::Suspended => (EventType::Suspended, "suspended"),
            _ => (EventType::Stopped, "stopped"),
        };
        vm.status_message = format!("{what}; its disk is on {worker} ({how})");
        changes.vm_event(&mut self.last_event, now, vm, kind, how);
        self.held_back.remove(uid);
        self.reassign(worker, changes);
    }

    /// By its policy the copy boots again from its disk, with its room kept; after a pause that grows with each failure in a
    /// row. A second failure within the pause cannot be: nothing runs then.
    fn boot_again(&mut self, worker: &WorkerName, uid: VmUid, cause: String, now: Now, changes: &mut Changes) {
        let Some(vm) = known(&self.names, &mut self.vms, uid) else { return };
        let pause = restarts::count_failure(vm, now.wall);
        changes.vm_event(&mut self.last_event, now, vm, EventType::Failed, cause.clone());
        vm.set_conditions(true, false);
        let when = if pause.is_zero() { "now".to_owned() } else { format!("in {} s", pause.as_secs()) };
        next_boot(vm, format!("booting again from its disk {when}, after: {cause}"));
        changes.vm_event(&mut self.last_event, now, vm, EventType::Restarting, format!("from its disk {when}"));
        self.go_on_after(uid, pause, now);
        self.reassign(worker, changes);
    }

    /// The pause is over in which a VM waited to boot again where it is; false when it waits for a worker.
    pub(super) fn boots_where_it_is(&mut self, uid: VmUid, changes: &mut Changes) -> bool {
        let placed = self.vm_record(uid).filter(|vm| vm.conditions.scheduled()).and_then(|vm| vm.worker.clone());
        let Some(worker) = placed else { return false };
        if !planted(Bug::RestartDeadEnd) {
            self.reassign(&worker, changes);
        }
        true
    }
}

/// The next boot of the copy begins: nothing that was told of the one before counts for it.
pub(super) fn next_boot(vm: &mut Vm, message: String) {
    vm.earlier_log = Some(Box::new(EarlierLog { boot: vm.boot, lines: vm.log_lines }));
    vm.boot = vm.boot.saturating_add(1);
    vm.status = VmStatus::Pending;
    vm.ready = false;
    vm.log_lines = 0;
    vm.status_message = message;
}

/// Whether a VM with a worker may be in the pause before it boots again by its policy; how much is left of that, the rest of
/// its record tells.
pub(super) fn may_wait_to_boot(vm: &Vm) -> bool {
    let by_policy = vm.spec.restart_policy == RestartPolicy::Always && vm.boot > 0;
    by_policy && vm.status == VmStatus::Pending && vm.conditions.scheduled() && !vm.conditions.running()
}
