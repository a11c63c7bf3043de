//! Where VMs go: what the cluster tells its scheduler, what it does with the answers, and what it tells people.

use super::{Changes, Cluster};
use crate::bus::placing::{Explained, Obstacle};
use crate::controller::scheduler::{Placement, Shape};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::event::EventType;
use crate::model::resources::Resources;
use crate::model::vm::{Vm, VmStatus};
use crate::model::{CopyId, Now, VmName, VmUid, WorkerName};

impl Cluster {
    /// Places what can be placed, the most important and oldest first. Costs nothing when there is nothing.
    pub fn place(&mut self, now: Now, changes: &mut Changes) {
        while let Some((uid, placement)) = self.scheduler.place_next() {
            self.assign(uid, placement, now, changes);
        }
    }

    /// Notes where the scheduler has put a VM.
    fn assign(&mut self, uid: VmUid, placement: Placement, now: Now, changes: &mut Changes) {
        let Some(vm) = self.names.get(&uid).and_then(|name| self.vms.get_mut(name)) else { return };
        let Placement { worker, cpu, memory, taken, why } = placement;
        if vm.worker.is_none() {
            // One whose disk is there already goes on as the copy that it is.
            self.restored.lift(vm);
        }
        let was_there = vm.worker.replace(worker.clone()).is_some();
        if was_there {
            // It counts there already.
            self.scheduler.release(&worker, &Resources::default(), 1);
        }
        bind(vm, &worker);
        vm.set_conditions(true, false);
        vm.assigned_cpu = cpu;
        vm.assigned_memory = memory;
        vm.assigned = taken;
        vm.scheduled_at = Some(now.wall);
        if was_there {
            vm.status_message = format!("switched on, with room on {worker}");
        } else {
            vm.placed_because = why.to_string();
            vm.status_message = format!("placed on {worker}, {why}");
        }
        if let Some(entry) = self.workers.get_mut(&worker) {
            entry.vms.insert(uid);
        }
        changes.vm_event(&mut self.last_event, now, vm, EventType::Scheduled, format!("on {worker}, {why}"));
        self.reassign(&worker, changes);
    }

    /// Has the VM wait for a worker, if nothing is in the way of that: a pause before a restart, or a copy that may still run
    /// elsewhere and must be gone before another starts.
    pub(super) fn consider(&mut self, uid: VmUid) {
        let Some(vm) = self.vm_record(uid) else { return };
        let elsewhere = self.leaving.range(CopyId::all_of(uid)).any(|(_, leaving)| !leaving.held.is_empty());
        let held = self.held_back.contains(uid) || self.is_held(uid);
        let waits = vm.status == VmStatus::Pending && !vm.is_to_be_off() && !vm.conditions.scheduled();
        if waits && !elsewhere && !held {
            let shape = Shape::of_vm(vm);
            self.scheduler.enqueue(uid, shape);
        }
    }

    /// Why a VM is where it is, or what keeps it from being placed.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`].
    pub fn explain(&self, name: &VmName, now: Now) -> Result<Explained, ApiError> {
        let vm = self.known_vm(name)?;
        let explanation = self.scheduler.explain(&Shape::of_vm(vm));
        let held = self.why_held(vm);
        let bound =
            |worker: &WorkerName| format!("it is switched on, and waits for room on {worker}, where its disk is");
        let reason = match (&vm.worker, vm.status) {
            _ if held.is_some() => held.unwrap_or_default(),
            (_, VmStatus::Pending | VmStatus::Running) if vm.is_off() => match &vm.worker {
                Some(worker) => format!("it waits for nothing: it is {}; its disk is on {worker}", vm.spec.power_state),
                None => format!("it waits for nothing: it is {} and was not placed yet", vm.spec.power_state),
            },
            (_, VmStatus::Failed) => self.why_failed(vm),
            (Some(worker), _) if self.scheduler.is_waiting(vm.uid) => format!("{}: {explanation}", bound(worker)),
            (Some(_), VmStatus::Pending) if self.held_back.contains(vm.uid) => vm.status_message.clone(),
            (Some(worker), _) => self.why_on(worker, vm, now),
            (None, VmStatus::Pending) if self.scheduler.is_waiting(vm.uid) => explanation.to_string(),
            (None, VmStatus::Pending) if self.held_back.contains(vm.uid) => vm.status_message.clone(),
            (None, VmStatus::Pending) => "an earlier copy of it may still run and must be gone first".to_owned(),
            (None, VmStatus::Running | VmStatus::Unknown) => format!("it waits for nothing: it is {}", vm.status),
        };
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let obstacles = explanation.obstacles.into_iter();
        Ok(Explained {
            name: vm.name.clone(),
            status: vm.status,
            worker: vm.worker.clone(),
            reason,
            workers: count(explanation.workers),
            fitting: count(explanation.fitting),
            obstacles: obstacles.map(|(what, workers)| Obstacle { what, workers: count(workers) }).collect(),
        })
    }

    fn why_failed(&self, vm: &Vm) -> String {
        self.why_may_be_adopted(vm).unwrap_or_else(|| match &vm.worker {
            Some(worker) => {
                format!("it waits for nothing: it has failed, and its policy is to stay so; what is left of it is on {worker}")
            }
            None => "it waits for nothing: it has failed, and its policy is to stay so".to_owned(),
        })
    }

    fn why_on(&self, worker: &WorkerName, vm: &Vm, now: Now) -> String {
        let placed = format!("it was placed on {worker}, {}", vm.placed_because);
        match self.fate_of(vm, now) {
            Some(fate) => format!("{placed}; {fate}"),
            None => placed,
        }
    }

    /// Has a worker take no new VMs, or take them again, which also ends a drain. What it has already goes on. The worker
    /// does not need to be online, and nothing that it says undoes a pause.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`].
    pub fn set_paused(
        &mut self,
        name: &WorkerName,
        paused: bool,
        now: Now,
        changes: &mut Changes,
    ) -> Result<(), ApiError> {
        let entry = self.workers.get_mut(name).ok_or_else(|| unknown_worker(name))?;
        let drained = !paused && entry.end_drain();
        if entry.record.scheduling_paused == paused && !drained {
            return Ok(());
        }
        entry.record.scheduling_paused = paused;
        changes.workers.insert(name.clone());
        let kind = if paused { EventType::Paused } else { EventType::Resumed };
        changes.worker_event(&mut self.last_event, now, name, kind, String::new());
        self.note_standing(name);
        Ok(())
    }
}

pub(super) fn unknown_worker(name: &WorkerName) -> ApiError {
    let hint = "`orchard list workers` shows those there are";
    ApiError::new(ErrorCode::NotFound, format!("there is no worker named {name}; {hint}"))
}

/// A VM with folders of a host stays there: elsewhere they are others, or none.
pub(super) fn bind(vm: &mut Vm, worker: &WorkerName) {
    if !vm.spec.host_dirs.is_empty() {
        vm.bound_to = Some(worker.clone());
    }
}
