//! VMs that start over elsewhere although they did not fail: their worker is gone, or stopped them as its lease was over,
//! or is to be rid of them. This is nobody's fault: it happens whatever their restart policy is, at once, and counts as no
//! failure.
//!
//! What was told to which copy matters here, not what was wished since: a worker goes by what it has put into effect. One that
//! has not yet heard that a VM may be replaced goes on running it, so that VM is kept until the worker has said otherwise.

use super::vm::known;
use super::{Changes, Cluster, restarts};
use crate::model::event::EventType;
use crate::model::planted::{Bug, planted};
use crate::model::resources::Resources;
use crate::model::vm::{OnUnseen, PowerState, Vm, VmStatus};
use crate::model::{CopyId, Now, VmUid, WorkerName};

/// Whether its worker stops the VM, as it is placed, when its lease is over.
pub(super) fn is_replaceable(vm: &Vm) -> bool {
    let told = vm.observed_generation >= vm.replace_since;
    (vm.spec.on_unseen == OnUnseen::Replace && told) || planted(Bug::KeepReplaced)
}

/// Makes the record that of a next attempt, which is nowhere yet. Everything but why and when it starts over.
pub(super) fn begin_attempt(vm: &mut Vm) {
    vm.restart_count = vm.restart_count.saturating_add(1);
    be_nowhere(vm);
}

/// Makes the record that of a VM of which nothing is on any worker.
pub(super) fn be_nowhere(vm: &mut Vm) {
    vm.status = VmStatus::Pending;
    vm.ready = false;
    vm.worker = None;
    vm.boot = 0;
    vm.set_conditions(false, false);
    vm.assigned = Resources::default();
    vm.placed_because.clear();
    vm.assigned_cpu = 0;
    vm.assigned_memory = 0;
    vm.scheduled_at = None;
    vm.started_at = None;
    vm.failed_at = None;
    vm.log_lines = 0;
    vm.earlier_log = None;
    vm.image_fqn = None;
    // Whoever gets the new copy is told from the start.
    vm.replace_since = 0;
    if vm.is_to_be_off() {
        // Nothing has to be put into effect anywhere.
        vm.observed_generation = vm.generation;
    }
}

impl Cluster {
    /// Whether a VM is to start over elsewhere when its worker is gone. One that is switched off is not: its disk is there. One
    /// that is held since a backup was restored may run on another worker than that.
    pub(super) fn is_to_be_replaced(&self, vm: &Vm) -> bool {
        let runs = vm.status != VmStatus::Failed && vm.spec.power_state == PowerState::Running;
        runs && is_replaceable(vm) && !self.is_held(vm.uid)
    }

    /// Has whatever may be replaced, and certainly does not run any more on workers that are gone, start over. Asks what is
    /// there and not what has just happened, so that nothing is forgotten that could not be stored at first, or came to be
    /// so only later.
    pub(super) fn replace_on_gone(&mut self, now: Now, changes: &mut Changes) {
        for worker in self.watched.gone.iter().cloned().collect::<Vec<_>>() {
            self.free_leaving(&worker, changes);
            let placed = self.workers.get(&worker).into_iter().flat_map(|entry| &entry.vms);
            let placed = placed.filter_map(|uid| self.vm_record(*uid)).filter(|vm| self.is_to_be_replaced(vm));
            let why = self.silence_of(&worker, now).unwrap_or_default();
            for uid in placed.map(|vm| vm.uid).collect::<Vec<_>>() {
                self.start_elsewhere(uid, Resources::default(), &why, now, changes);
            }
        }
    }

    /// Copies to be removed from a worker that is gone hold nothing there any more, if they were stopped with its lease.
    fn free_leaving(&mut self, worker: &WorkerName, changes: &mut Changes) {
        let Some(entry) = self.workers.get(worker) else { return };
        let stopped = |id: &&CopyId| self.leaving.get(id).is_some_and(|l| l.replaceable && !l.held.is_empty());
        for id in entry.leaving.iter().filter(stopped).copied().collect::<Vec<_>>() {
            if let Some(leaving) = self.leaving.get_mut(&id) {
                self.scheduler.release(worker, &std::mem::take(&mut leaving.held), 0);
            }
            changes.leaving.insert(id);
            self.consider(id.uid);
        }
    }

    /// A worker says that it stopped a copy as its lease was over, which nobody noticed here: clocks that differ by more than
    /// they should, or acknowledgements that were lost.
    pub(super) fn fenced(&mut self, worker: &WorkerName, uid: VmUid, message: &str, now: Now, changes: &mut Changes) {
        let held = self.is_held(uid);
        let Some(vm) = known(&self.names, &mut self.vms, uid) else { return };
        if vm.status == VmStatus::Failed || vm.spec.power_state != PowerState::Running {
            return;
        }
        if vm.spec.on_unseen == OnUnseen::Keep && vm.started_at.is_some() {
            // That was acknowledged while the worker was cut off. Its disk is there: it goes on from that.
            let why =
                format!("stopped as its worker's lease was over, before that knew that it is to be kept: {message}");
            return self.halted(worker, uid, why, now, changes);
        }
        if held {
            // It starts over once it is known that no other copy runs.
            self.was_fenced(uid, changes);
            return self.failed(
                worker,
                uid,
                format!("stopped as its worker's lease was over: {message}"),
                now,
                changes,
            );
        }
        // The first time it starts over at once. A worker that stops a VM again and again, as it cannot keep its lease, must
        // not make it do so without end.
        let pause = restarts::count_failure(vm, now.wall);
        let why = format!("worker {worker} stopped it as its lease was over: {message}");
        self.start_elsewhere(uid, Resources::default(), &why, now, changes);
        self.go_on_after(uid, pause, now);
    }

    /// Starts a placed VM over, as soon as nothing of its present copy runs any more: at once if that holds nothing.
    pub(super) fn start_elsewhere(&mut self, uid: VmUid, held: Resources, why: &str, now: Now, changes: &mut Changes) {
        let Some(old) = self.vm_record(uid).cloned() else { return };
        self.dismiss(&old, held, false, changes);
        let Some(vm) = self.vms.get_mut(&old.name) else { return };
        begin_attempt(vm);
        self.restored.lift(vm);
        vm.status_message = format!("starting over elsewhere: {why}");
        changes.vm_event(&mut self.last_event, now, vm, EventType::Restarting, format!("replaced: {why}"));
        self.consider(uid);
    }
}
