//! Copies that workers have found after an older backup was restored, made their VMs' own. Called by `restored` and wherever
//! what is known of a held VM changes; `restored` says why and when.

use super::placing::bind;
use super::{Changes, Cluster};
use crate::controller::scheduler::{Shape, demand};
use crate::model::event::EventType;
use crate::model::resources::Resources;
use crate::model::vm::VmStatus;
use crate::model::{Attempt, CopyId, Now, VmUid, WorkerName};

impl Cluster {
    /// Makes a copy that was found on a worker the VM's own, if there is one that can be. While VMs are held only a running
    /// one is; then the one with the highest attempt. Says whether the VM has its copy now.
    pub(super) fn adopt(&mut self, uid: VmUid, now: Now, changes: &mut Changes) -> bool {
        let Some(vm) = self.vm_record(uid) else { return false };
        let (known, status, holder) = (vm.copy_id().attempt, vm.status, vm.worker.clone());
        let has_room = vm.conditions.scheduled();
        let held = self.is_held(uid);
        if status == VmStatus::Running || known >= self.restored_record().floor {
            return false;
        }
        // What a worker claims of an attempt that was never given out by then is not believed: it would be told the VM's
        // secrets.
        let copies = CopyId { uid, attempt: known }..CopyId { uid, attempt: self.restored_record().floor };
        // Nor is one that was not waited for, or that comes when nobody waits any more.
        let asked = |name: &WorkerName| self.restored.is_asked(name);
        let found = self.workers.iter().filter(|(name, _)| asked(name)).flat_map(|(name, entry)| {
            entry.strays.range(copies.clone()).map(move |(id, stray)| (id.attempt, stray.running, name))
        });
        let fits = |attempt: Attempt, worker: &WorkerName| match (status, &holder) {
            // Its own attempt has failed; a report of before may still be under way.
            (VmStatus::Failed, _) => attempt > known,
            (_, Some(holder)) => attempt > known || worker == holder,
            (_, None) => true,
        };
        // What runs is its copy, wherever that is. What does not is begun again only where it would be placed: the worker may be
        // another one by now, with other labels.
        let shape = Shape::of(&vm.spec);
        let own = |attempt: Attempt, worker: &WorkerName| attempt == known && holder.as_ref() == Some(worker);
        let may_begin =
            |attempt, worker: &WorkerName| own(attempt, worker) || self.scheduler.could_take(worker, &shape);
        let best = found
            .filter(|(attempt, running, worker)| {
                fits(*attempt, worker) && (*running || !held && may_begin(*attempt, worker))
            })
            .max();
        let Some((attempt, running, worker)) =
            best.map(|(attempt, running, worker)| (attempt, running, worker.clone()))
        else {
            return false;
        };
        // Where it is placed it may be about to begin, unless that worker has told that it has nothing of it.
        let elsewhere = holder.as_ref().filter(|holder| **holder != worker && status == VmStatus::Pending);
        if elsewhere.is_some_and(|holder| self.restored.waits_for(holder)) {
            return false;
        }
        if own(attempt, &worker) && !running && !has_room {
            // It waits for room there already.
            self.consider(uid);
            return true;
        }
        self.make_own(uid, attempt, (&worker, running), now, changes);
        true
    }

    fn make_own(
        &mut self,
        uid: VmUid,
        attempt: Attempt,
        (worker, running): (&WorkerName, bool),
        now: Now,
        changes: &mut Changes,
    ) {
        let Some(old) = self.vm_record(uid).cloned() else { return };
        let Some(info) = self.workers.get(worker).map(|entry| entry.record.info.clone()) else { return };
        let same = old.copy_id().attempt == attempt && old.worker.as_ref() == Some(worker);
        // One that was switched off, or is to boot again, may have no room there.
        let takes = !same || (running && !old.conditions.scheduled());
        // What runs has taken its room already. What does not waits for it there, as one that is switched on does; one that
        // shall not run gives its room back as soon as its worker says that it is off.
        let has_room = running || old.is_to_be_off();
        let (cpu, memory, taken) = match has_room {
            true => demand(&Shape::of(&old.spec), &info),
            false => (0, 0, Resources::default()),
        };
        if !same {
            // It certainly does not run: it has failed, or its worker has nothing of it.
            self.dismiss(&old, Resources::default(), false, changes);
        }
        self.scheduler.withdraw(uid);
        self.held_back.remove(uid);
        let Some(vm) = self.vms.get_mut(&old.name) else { return };
        vm.attempts_from = attempt.saturating_sub(vm.restart_count);
        if takes {
            // What its worker was told last is not known: nothing is built on it before it has this.
            vm.generation = vm.generation.saturating_add(1);
            vm.replace_since = vm.generation;
        }
        vm.status = if running { VmStatus::Running } else { VmStatus::Pending };
        vm.status_message = format!("found on {worker} after a backup was restored");
        vm.started_at = running.then_some(now.wall);
        (vm.failed_at, vm.log_lines, vm.earlier_log) = (None, 0, None);
        if takes {
            vm.worker = Some(worker.clone());
            bind(vm, worker);
            "it was found there after a backup was restored".clone_into(&mut vm.placed_because);
            (vm.assigned_cpu, vm.assigned_memory) = (cpu, memory);
            vm.scheduled_at = has_room.then_some(now.wall);
            vm.assigned.clone_from(&taken);
        }
        vm.set_conditions(if takes { has_room } else { vm.conditions.scheduled() }, running);
        let what = format!("on {worker}: it was found there, {}", if running { "running" } else { "not running" });
        changes.vm_event(&mut self.last_event, now, vm, EventType::Scheduled, what);
        if takes {
            if let Some(entry) = self.workers.get_mut(worker) {
                entry.vms.insert(uid);
            }
            self.scheduler.hold(worker, &taken, usize::from(!same));
        }
        self.consider(uid);
        if running {
            self.seen_running(uid);
        }
        self.reassign(worker, changes);
    }
}
