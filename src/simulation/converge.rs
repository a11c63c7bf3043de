//! Once faults have stopped: does every VM reach what is wished for it?

use super::host::Host;
use super::invariants::{books, offered, takes_nothing};
use super::script::INTERRUPTED;
use super::world::World;
use crate::model::resources::{LOGICAL_CORES, MEMORY_MIB, Resources};
use crate::model::vm::{RestartPolicy, Vm, VmStatus};
use crate::model::worker::{Worker, WorkerState};
use crate::worker::runtime::FoundState;

impl World {
    /// What is not yet as it should be; `None` when all is.
    pub(super) fn unsettled(&self) -> Option<String> {
        let Some(process) = &self.controller else { return Some("the controller is not up".to_owned()) };
        for host in self.hosts.iter().filter(|host| !host.dead) {
            let state = process.cluster.worker(&host.name).map(|view| view.state);
            if state != Ok(WorkerState::Online) {
                return Some(format!("{} is {state:?}", host.name));
            }
        }
        if let Some(gone) = self.hosts.iter().find(|host| host.dead && self.disk.workers.contains_key(&host.name)) {
            return Some(format!("{} is dead and not given up yet", gone.name));
        }
        let drains = |worker: &&Worker| worker.drain.as_ref().is_some_and(|d| d.deadline_s.is_some() && !d.done);
        if let Some(worker) =
            self.disk.workers.values().filter(drains).find(|worker| !self.holds_what_must_stay(worker))
        {
            return Some(format!("{} is not drained yet", worker.info.name));
        }
        if let Some(awaited) = self.disk.restored.waiting.first() {
            return Some(format!("{awaited} has not told what it has since a backup was restored"));
        }
        if let Some(leaving) = self.disk.leaving.values().next() {
            return Some(format!("{} is not yet removed from {}", self.short(leaving.id), leaving.worker));
        }
        if let Some(why) = self.disk.vms.values().find_map(|vm| self.overdue(vm).or_else(|| self.unsettled_vm(vm))) {
            return Some(why);
        }
        let apart = |host: &&Host| {
            let process_there = host.process.as_ref()?;
            let (revision, known) = process.cluster.knows_of(&host.name)?;
            let session = process_there.session()?;
            let same = process_there.digest(session)? == known && process_there.held_revision(session) == revision;
            (!same).then_some(())
        };
        if let Some(host) = self.hosts.iter().filter(|host| !host.dead).find(|host| apart(host).is_some()) {
            return Some(format!("{} takes the controller to know something else than it does", host.name));
        }
        for (number, host) in self.hosts.iter().enumerate().filter(|(_, host)| !host.dead) {
            for (id, copy) in host.copies.iter().filter(|(_, copy)| !copy.orphan) {
                if !self.is_named(number, *id) {
                    return Some(format!(
                        "{} is on w{number} ({:?}), and nobody knows of it",
                        self.short(*id),
                        copy.state
                    ));
                }
            }
        }
        None
    }

    fn unsettled_vm(&self, vm: &Vm) -> Option<String> {
        let so = |what: &str| Some(format!("VM {} is {}, {what}: {}", vm.name, vm.status, vm.status_message));
        let state = vm.worker.as_ref().and_then(|worker| {
            let host = self.hosts.iter().find(|host| host.name == *worker)?;
            Some(host.copies.get(&vm.copy_id())?.state)
        });
        if vm.is_to_be_off() && vm.status != VmStatus::Failed {
            return match (vm.is_off(), state) {
                (false, _) => so("but shall be off"),
                (true, Some(FoundState::Running)) => so("and runs, although it is off"),
                (true, _) if vm.observed_generation != vm.generation => so("and its last change is not in effect"),
                (true, _) => None,
            };
        }
        match (vm.status, &vm.worker) {
            (VmStatus::Running, _) if vm.observed_generation != vm.generation => {
                so("and its last change is not in effect")
            }
            (VmStatus::Pending, Some(worker)) if !vm.conditions.scheduled() => {
                let room = self.disk.workers.get(worker).filter(|worker| self.has_room(worker, vm));
                room.and_then(|_| so("although its worker has room"))
            }
            (VmStatus::Failed, _) if vm.spec.restart_policy == RestartPolicy::Never => None,
            (VmStatus::Failed, _) => so("although it shall start over"),
            (VmStatus::Running, Some(worker)) => match (state == Some(FoundState::Running), vm.ready) {
                (false, _) => so(&format!("but does not run on {worker}")),
                (true, false) if vm.status_message == INTERRUPTED => None,
                (true, false) => so("but not ready"),
                (true, true) => None,
            },
            (VmStatus::Running | VmStatus::Unknown, None) => so("but nowhere"),
            (VmStatus::Unknown, Some(_)) => so("which nobody knows"),
            (VmStatus::Pending, Some(worker)) => so(&format!("on {worker}")),
            (VmStatus::Pending, None) => {
                let room = self.disk.workers.values().find(|worker| self.has_room(worker, vm));
                room.and_then(|worker| so(&format!("although {} has room", worker.info.name)))
            }
        }
    }

    /// Its time is over, and it is still there.
    fn overdue(&self, vm: &Vm) -> Option<String> {
        let age = vm.created_at.until(self.controller_now().wall).as_secs();
        let over = vm.spec.ttl_s > 0 && age > vm.spec.ttl_s + 2 && !self.truth.jumped;
        over.then(|| format!("VM {} has lived for {age} s instead of {}", vm.name, vm.spec.ttl_s))
    }

    /// By the slow way, which the scheduler does not take.
    fn has_room(&self, worker: &Worker, vm: &Vm) -> bool {
        self.would_have_room(worker, vm, &books(&self.disk, &worker.info.name))
    }

    /// Whether a VM runs there that no other worker could take if it were empty.
    fn holds_what_must_stay(&self, worker: &Worker) -> bool {
        let mut there =
            self.disk.vms.values().filter(|vm| vm.worker.as_ref() == Some(&worker.info.name) && !vm.is_off());
        let others = || self.disk.workers.values().filter(|other| other.info.name != worker.info.name);
        let could = |vm: &Vm| others().any(|other| self.would_have_room(other, vm, &Resources::default()));
        there.any(|vm| !could(vm))
    }

    fn would_have_room(&self, worker: &Worker, vm: &Vm, used: &Resources) -> bool {
        let (info, offer) = (&worker.info, offered(&worker.info.resources));
        let cpu = if vm.spec.cpu == 0 { info.default_cpu } else { vm.spec.cpu };
        let memory = if vm.spec.memory == 0 { info.default_memory } else { vm.spec.memory };
        let fits = used.get(LOGICAL_CORES) + cpu <= offer.0 && used.get(MEMORY_MIB) + memory <= offer.1;
        fits && !takes_nothing(worker)
    }
}
