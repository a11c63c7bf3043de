//! Placing VMs: which of them wait, where each goes, and what is said of those that must go on waiting. The choice itself is
//! the scheduler's.

use super::{Changes, Cluster, WorkerEntry};
use crate::controller::scheduler;
use crate::model::event::EventType;
use crate::model::{Now, VmUid};

impl Cluster {
    /// Places what can be placed, oldest first, and says of the rest why not. Cheap when nothing changed since.
    pub fn place(&mut self, now: Now, changes: &mut Changes) {
        if !std::mem::take(&mut self.place_again) {
            return;
        }
        let waiting: Vec<VmUid> = self.unplaced.iter().copied().collect();
        for uid in waiting {
            if self.held_back.get(&uid).is_some_and(|until| *until > now.mono) {
                continue;
            }
            // A copy that may still run elsewhere must be gone before another starts.
            if self.leaving.values().any(|leaving| leaving.id.uid == uid && !leaving.held.is_empty()) {
                continue;
            }
            let Some(spec) = self.vm_record(uid).map(|vm| vm.spec.clone()) else { continue };
            match scheduler::choose(&spec, self.workers.values().map(WorkerEntry::candidate)) {
                Ok(placement) => self.assign(uid, placement, now, changes),
                Err(why) => self.say(uid, &why.to_string(), changes),
            }
        }
    }

    fn assign(&mut self, uid: VmUid, placement: scheduler::Placement, now: Now, changes: &mut Changes) {
        self.unplaced.remove(&uid);
        self.held_back.remove(&uid);
        let Some(vm) = self.names.get(&uid).and_then(|name| self.vms.get_mut(name)) else { return };
        vm.worker = Some(placement.worker.clone());
        vm.assigned_cpu = placement.cpu;
        vm.assigned_memory = placement.memory;
        vm.assigned = placement.taken;
        vm.scheduled_at = Some(now.wall);
        vm.status_message = format!("placed on {}", placement.worker);
        if let Some(entry) = self.workers.get_mut(&placement.worker) {
            entry.used.add(&vm.assigned);
            entry.vms.insert(uid);
        }
        changes.vm_event(&mut self.last_event, now, vm, EventType::Scheduled, format!("on {}", placement.worker));
        self.reassign(&placement.worker, changes);
    }

    fn say(&mut self, uid: VmUid, message: &str, changes: &mut Changes) {
        if let Some(vm) = self.names.get(&uid).and_then(|name| self.vms.get_mut(name))
            && vm.status_message != message
        {
            message.clone_into(&mut vm.status_message);
            changes.vms.insert(uid);
        }
    }
}
