//! What must hold after every step, checked against what really is: the disk, the hosts, and what clients were told.

use std::collections::{BTreeMap, BTreeSet};

use super::clock::Millis;
use super::controller::Process;
use super::disk::{Delta, Disk};
use super::guard::timing;
use super::host::UNSEEN;
use super::world::World;
use crate::controller::cluster::{Changes, Cluster};
use crate::model::event::{Event, EventObject, EventType};
use crate::model::resources::{LOGICAL_CORES, MEMORY_MIB, Resources};
use crate::model::settings::CPU_OVERCOMMIT;
use crate::model::vm::{OnUnseen, Vm, VmStatus};
use crate::model::worker::Worker;
use crate::model::{Boot, CopyId, VmUid, WorkerName};
use crate::worker::runtime::FoundState;

/// What is true whatever anybody believes; only ever grows.
#[derive(Default)]
pub(super) struct Truth {
    /// Boots of copies of which their host has truly said that they failed.
    pub(super) failed: BTreeSet<(CopyId, Boot)>,
    /// Those of them that were stopped as a lease was over.
    pub(super) fenced: BTreeSet<(CopyId, Boot)>,
    /// Up to which boot each copy was to be off, or to boot again.
    pub(super) halted: BTreeMap<CopyId, Boot>,
    /// Which VM the request with each key has made.
    pub(super) keyed: BTreeMap<String, VmUid>,
    /// Copies that ran.
    pub(super) ran: BTreeSet<CopyId>,
    /// Copies that were ever made.
    pub(super) made: BTreeSet<CopyId>,
    /// How many lines of each copy are stored.
    pub(super) logged: BTreeMap<(CopyId, Boot), u64>,
    /// Copies of VMs that start over elsewhere, by a rule that says so.
    pub(super) moved: BTreeSet<CopyId>,
    /// VMs that were deleted, by a rule that says so.
    pub(super) removed: BTreeSet<VmUid>,
    /// The wall clock has jumped, so that a time to live may end early after a restart.
    pub(super) jumped: bool,
}

/// What a worker's VMs take, by the durable records.
pub(super) fn books(disk: &Disk, worker: &WorkerName) -> Resources {
    let mut sum = Resources::default();
    disk.vms.values().filter(|vm| vm.worker.as_ref() == Some(worker)).for_each(|vm| sum.add(&vm.assigned));
    disk.leaving.values().filter(|leaving| leaving.worker == *worker).for_each(|leaving| sum.add(&leaving.held));
    sum
}

/// Cores and memory that may be given out for such an offer.
pub(super) fn offered(resources: &Resources) -> (u64, u64) {
    (resources.get(LOGICAL_CORES) * CPU_OVERCOMMIT, resources.get(MEMORY_MIB))
}

fn amounts(resources: &Resources) -> (u64, u64) {
    (resources.get(LOGICAL_CORES), resources.get(MEMORY_MIB))
}

pub(super) fn takes_nothing(worker: &Worker) -> bool {
    worker.scheduling_paused || worker.drain.is_some()
}

impl World {
    /// What a batch says, before it is stored.
    pub(super) fn check_batch(&mut self, process: &Process, changes: &Changes) {
        let now = self.agenda.now();
        for event in changes.events.iter().filter(|event| event.kind == EventType::Unseen) {
            let EventObject::Worker { name } = &event.object else { continue };
            let host = self.hosts.iter().find(|host| host.name == *name).unwrap();
            let silent = now - host.heard.max(process.booted);
            if silent <= UNSEEN && host.came_late != Some(now) {
                self.violated(format!("{name} is called unseen, but was heard of {silent} ms ago"));
            }
        }
        let over = Millis::try_from(timing().certainly_over(timing().lease).as_millis()).unwrap();
        for event in changes.events.iter().filter(|event| event.kind == EventType::Gone) {
            let EventObject::Worker { name } = &event.object else { continue };
            let host = self.hosts.iter().find(|host| host.name == *name).unwrap();
            let silent = now - host.heard.max(process.booted).max(self.bus_sound_since);
            if silent < over && host.came_late != Some(now) {
                self.violated(format!("{name} is called gone, but could be heard {silent} ms ago"));
            }
        }
    }

    /// What becomes durable next.
    pub(super) fn check_commit(&mut self, delta: &Delta) {
        let numbers = delta.events.iter().map(|event| event.number);
        let expected = self.disk.last_event + 1..=delta.last_event;
        if !numbers.eq(expected.clone()) {
            let found: Vec<u64> = delta.events.iter().map(|event| event.number).collect();
            self.violated(format!("events {expected:?} were to follow, but {found:?} are stored"));
        }
        for event in delta.events.iter().filter(|event| event.kind == EventType::Log) {
            self.check_line(event);
        }
        for (uid, new) in &delta.vms {
            if let Some(new) = new {
                self.note_wish(new);
                self.check_once(new);
            }
            match (self.disk.vms.get(uid).cloned(), new) {
                (Some(old), None) => self.check_deletion(&old),
                (Some(old), Some(new)) => self.check_vm(&old, new, delta),
                (None, Some(new)) => {
                    if self.truth.removed.contains(uid) && !self.restored {
                        self.violated(format!("deleted VM {} is back", new.name));
                    }
                    if new.worker.is_some() {
                        self.check_placement(new, delta);
                    }
                }
                (None, None) => {}
            }
        }
        for (name, _) in delta.workers.iter().filter(|(name, _)| !self.disk.workers.contains_key(name)) {
            // Whoever joins again begins anew.
            let host = self.hosts.iter().position(|host| host.name == *name).unwrap();
            self.client.forget_pauses(host);
        }
        for (id, leaving) in &delta.leaving {
            let Some(old) = self.disk.leaving.get(id).filter(|_| leaving.is_none()) else { continue };
            let host = self.hosts.iter().find(|host| host.name == old.worker).unwrap();
            let there = host.copies.get(id).is_some_and(|copy| !copy.orphan);
            if there && !host.given_up {
                let what = format!("{} counts as gone from {}, but is there", self.short(*id), old.worker);
                self.violated(what);
            }
        }
    }

    /// Each line of a boot is stored once, and in order; those of two boots may be mixed, as a worker that was cut off tells
    /// late what the earlier one said. The text of a line is its boot and its number.
    fn check_line(&mut self, event: &Event) {
        let EventObject::Vm { uid, attempt, .. } = event.object else { return };
        let id = CopyId { uid, attempt };
        let Some((boot, found)) = event.message.split_once('/') else { return };
        let next = self.truth.logged.entry((id, boot.parse().unwrap())).or_default();
        let (expected, found) = (next.to_string(), found);
        *next += 1;
        if expected != found && !self.restored {
            self.violated(format!("line {found} of {} is stored where {expected} was to follow", self.short(id)));
        }
    }

    /// Which boots of its copy may be ended from now on, as its record says so.
    pub(super) fn note_wish(&mut self, vm: &Vm) {
        let waits = vm.worker.is_some() && vm.status == VmStatus::Pending && !vm.conditions.running();
        let may_wait = waits && (vm.boot > 0 || !vm.conditions.scheduled());
        let up_to = if vm.is_to_be_off() || may_wait { Some(vm.boot) } else { vm.boot.checked_sub(1) };
        if let Some(up_to) = up_to {
            let halted = self.truth.halted.entry(vm.copy_id()).or_default();
            *halted = up_to.max(*halted);
        }
    }

    /// A request with a key makes one VM.
    fn check_once(&mut self, vm: &Vm) {
        let Some(once) = &vm.once else { return };
        let made = *self.truth.keyed.entry(once.key.clone()).or_insert(vm.uid);
        if made != vm.uid && !self.restored {
            self.violated(format!("the request with the key {} has made two VMs named {}", once.key, vm.name));
        }
    }

    fn check_deletion(&mut self, vm: &Vm) {
        let age = vm.created_at.until(self.controller_now().wall).as_secs();
        let over = vm.spec.ttl_s > 0 && (age + 1 >= vm.spec.ttl_s || self.truth.jumped);
        if !over && !self.client.may_be_deleting(&vm.name) {
            self.violated(format!("VM {} is deleted, and nobody asked for it", vm.name));
        }
        self.truth.removed.insert(vm.uid);
        self.client.expected.remove(&vm.uid);
    }

    fn check_vm(&mut self, old: &Vm, new: &Vm, delta: &Delta) {
        let id = old.copy_id();
        let lost = delta.workers.iter().filter(|(_, worker)| worker.is_none()).count();
        let fails = new.status == VmStatus::Failed && old.status != VmStatus::Failed;
        if fails || new.restart_count > old.restart_count {
            let given_up =
                |world: &World, name: &WorkerName| world.hosts.iter().any(|host| host.name == *name && host.given_up);
            // It may have been put on a worker in the very batch in which that is given up.
            let on_lost = old.worker.as_ref().is_some_and(|name| given_up(self, name)) || lost > 0;
            let moved = new.restart_count > old.restart_count && (self.is_replaced(old) || self.is_moved(old, delta));
            if moved {
                self.truth.moved.insert(id);
            }
            let told = self.truth.failed.range((id, old.boot)..=(id, Boot::MAX)).next().is_some();
            // Stopped as its worker's lease was over, but to be kept by what was acknowledged: its disk is not given up.
            let fenced = self.truth.fenced.contains(&(id, old.boot)) && old.spec.on_unseen == OnUnseen::Keep;
            let kept = fenced && old.started_at.is_some() && new.restart_count > old.restart_count;
            if kept && !on_lost && !moved && !self.restored && new.spec.on_unseen == OnUnseen::Keep {
                self.violated(format!("{} starts over, and was only fenced, and is to be kept", self.short(id)));
            }
            if !told && !on_lost && !moved {
                let what = format!("{} counts as failed, and its host has not said so", self.short(id));
                self.violated(what);
            }
            self.truth.failed.insert((id, old.boot));
        }
        let starts = new.status == VmStatus::Running && (old.status != VmStatus::Running || new.copy_id() != id);
        if starts && !self.truth.ran.contains(&new.copy_id()) {
            self.violated(format!("{} counts as running, and never ran", self.short(new.copy_id())));
        }
        // Beside its own failure: workers may be given up in the same batch, and each a start in between with it.
        let drains = |worker: &Worker| worker.drain.is_some();
        let drained = self.disk.workers.values().filter(|worker| drains(worker)).count()
            + delta.workers.iter().filter(|(_, worker)| worker.as_ref().is_some_and(drains)).count();
        let most = old.restart_count + u32::try_from(lost + drained + 1).unwrap();
        if !(old.restart_count..=most).contains(&new.restart_count) {
            self.violated(format!("attempt {} of {} follows {}", new.restart_count, new.name, old.restart_count));
        }
        if new.spec != old.spec && !(self.client.may_be_updating(&new.name) && new.generation > old.generation) {
            self.violated(format!("the specification of {} has changed", new.name));
        }
        if new.copy_id() == id && new.worker.is_some() && new.boot < old.boot {
            self.violated(format!("boot {} of {} follows {}", new.boot, self.short(id), old.boot));
        }
        let told = self.truth.failed.range((id, old.boot)..=(id, Boot::MAX)).next().is_some();
        if new.copy_id() == id
            && new.boot > old.boot
            && !told
            && !self.client.may_be_updating(&new.name)
            && !self.restored
        {
            self.violated(format!("{} boots again, and nobody wants that", self.short(id)));
        }
        if new.is_off() && !old.is_off() {
            let on = self.hosts.iter().filter(|host| Some(&host.name) == new.worker.as_ref());
            let copies = on.filter_map(|host| host.copies.get(&new.copy_id())).filter(|copy| !copy.orphan);
            if copies.into_iter().any(|copy| copy.state == FoundState::Running) {
                self.violated(format!("{} counts as off, and it runs", self.short(id)));
            }
        }
        let moved = new.worker.is_some() && new.worker != old.worker;
        if moved && old.worker.is_some() && new.copy_id() == id {
            self.violated(format!("{} is on another worker in the same attempt", new.name));
        }
        if moved {
            self.check_placement(new, delta);
        }
    }

    /// Whether a VM may be replaced: it wishes for that, and its worker's lease is over, with what it covered stopped.
    fn is_replaced(&self, old: &Vm) -> bool {
        let host = self.hosts.iter().find(|host| Some(&host.name) == old.worker.as_ref());
        let over = host.is_some_and(|host| self.agenda.now() >= host.covered_until());
        old.spec.on_unseen == OnUnseen::Replace && over
    }

    /// Whether a VM may be moved: its worker is drained, and the deadline is over.
    fn is_moved(&self, old: &Vm, delta: &Delta) -> bool {
        let Some(name) = &old.worker else { return false };
        let newer = delta.workers.iter().filter(|(of, _)| of == name).find_map(|(_, worker)| worker.as_ref());
        let now = self.controller_now().wall;
        newer.into_iter().chain(self.disk.workers.get(name)).filter_map(|worker| worker.drain.as_ref()).any(|drain| {
            let age = drain.began.until(now).as_secs();
            drain.deadline_s.is_some_and(|deadline| age >= deadline || self.truth.jumped)
        })
    }

    /// A VM is put on a worker: there must be room, by the books as they are afterwards.
    fn check_placement(&mut self, vm: &Vm, delta: &Delta) {
        let mut after = self.disk.clone();
        after.write(delta.clone());
        let Some(worker) = vm.worker.as_ref().and_then(|name| after.workers.get(name)) else {
            return self.violated(format!("{} is placed on a worker that does not exist", vm.name));
        };
        let name = &worker.info.name;
        let used = amounts(&books(&after, name));
        let host = self.hosts.iter().find(|host| host.name == *name).unwrap();
        let adopted = self.restored && host.copies.contains_key(&vm.copy_id());
        if !adopted && self.truth.made.contains(&vm.copy_id()) {
            let what = format!("{} is placed on {name}, and was given out before", self.short(vm.copy_id()));
            return self.violated(what);
        }
        if host.strayed {
            return;
        }
        // Where it has registered with several offers in one batch, only one of them can be seen here.
        let changed = self.disk.workers.get(name).is_some_and(|before| before.info != worker.info);
        let most = (host.most.0 * CPU_OVERCOMMIT, host.most.1);
        let offer = if changed { most } else { offered(&worker.info.resources) };
        if used.0 > offer.0 || used.1 > offer.1 {
            self.violated(format!("{} is placed on {name}, which has {offer:?} and now gives {used:?}", vm.name));
        }
        let paused_before = self.disk.workers.get(name).is_some_and(takes_nothing);
        if takes_nothing(worker) && paused_before {
            self.violated(format!("{} is placed on {name}, which is paused", vm.name));
        }
    }

    /// Memory never says more or less than the disk.
    pub(super) fn check_memory(&mut self, cluster: &Cluster) {
        let mut wrong = Vec::new();
        for (uid, vm) in &self.disk.vms {
            if cluster.vm_record(*uid) != Some(vm) {
                wrong.push(format!("VM {}: stored is {vm:?}, known {:?}", vm.name, cluster.vm_record(*uid)));
            }
        }
        for (name, worker) in &self.disk.workers {
            if cluster.worker_record(name) != Some(worker) {
                wrong.push(format!("worker {name} is stored otherwise"));
            }
            let (counted, kept) = (books(&self.disk, name), cluster.worker(name).map(|view| view.used));
            if kept.as_ref().map(amounts) != Ok(amounts(&counted)) {
                wrong.push(format!("the books of {name} say {kept:?}, the records {counted:?}"));
            }
        }
        for (id, leaving) in &self.disk.leaving {
            if cluster.leaving_record(*id) != Some(leaving) {
                wrong.push(format!("copy {} to be removed is stored otherwise", self.short(*id)));
            }
        }
        for (id, given_up) in &self.disk.given_up {
            if cluster.given_up_record(*id) != Some(given_up) {
                wrong.push(format!("copy {} that was given up is stored otherwise", self.short(*id)));
            }
        }
        if cluster.last_event() != self.disk.last_event {
            wrong.push(format!("the last event stored is {}, known {}", self.disk.last_event, cluster.last_event()));
        }
        wrong.into_iter().for_each(|what| self.violated(what));
        self.check_acknowledged();
    }

    /// Nothing that was acknowledged is lost.
    pub(super) fn check_acknowledged(&mut self) {
        let mut wrong = Vec::new();
        for (uid, (name, spec)) in &self.client.expected {
            if self.disk.vms.get(uid).is_none_or(|vm| vm.name != *name || vm.spec != *spec) {
                wrong.push(format!("VM {name} was acknowledged and is lost"));
            }
        }
        for uid in &self.client.gone {
            if let Some(vm) = self.disk.vms.get(uid) {
                wrong.push(format!("the deletion of {} was acknowledged, and it is there", vm.name));
            }
        }
        for (host, drained) in &self.client.drains {
            let record = self.disk.workers.get(&self.hosts[*host].name);
            if record.is_some_and(|worker| worker.drain.is_some() != *drained) {
                wrong.push(format!("drained = {drained} of w{host} was acknowledged and is lost"));
            }
        }
        for (host, paused) in &self.client.pauses {
            let record = self.disk.workers.get(&self.hosts[*host].name);
            if record.is_some_and(|worker| worker.scheduling_paused != *paused) {
                wrong.push(format!("paused = {paused} of w{host} was acknowledged and is lost"));
            }
        }
        wrong.into_iter().for_each(|what| self.violated(what));
    }

    /// What really runs: one copy of a VM, and no more on a host than it has.
    pub(super) fn check_hosts(&mut self) {
        let mut live: BTreeMap<VmUid, (CopyId, usize)> = BTreeMap::new();
        let mut wrong = Vec::new();
        for (number, host) in self.hosts.iter().enumerate().filter(|(_, host)| host.powered && host.asleep_until == 0) {
            let mut taken = (0, 0);
            for (id, copy) in host.copies.iter().filter(|(_, copy)| !copy.foreign) {
                let prepared =
                    || host.process.as_ref().and_then(|p| p.tasks.get(id)).is_some_and(super::fleet::Task::prepares);
                let runs = copy.state == FoundState::Running;
                if runs && let Some((other, there)) = live.insert(id.uid, (*id, number)) {
                    wrong.push(format!("{} runs on w{there} and {} on w{number}", self.short(other), self.short(*id)));
                }
                if (runs || prepared()) && !copy.orphan {
                    taken = (taken.0 + copy.cpu, taken.1 + copy.memory);
                }
            }
            let most = (host.most.0 * CPU_OVERCOMMIT, host.most.1);
            // What was not in the books is no fault of theirs.
            if (taken.0 > most.0 || taken.1 > most.1) && !host.strayed {
                wrong.push(format!("w{number} has {most:?} at most, and its VMs take {taken:?}"));
            }
        }
        wrong.into_iter().for_each(|what| self.violated(what));
    }

    /// A copy that runs is stopped or removed: by which rule?
    pub(super) fn check_rule(&mut self, host: usize, id: CopyId, what: &str) {
        let Some(copy) = self.hosts[host].copies.get(&id) else { return };
        let moved = self.truth.moved.contains(&id);
        let told = self.truth.failed.contains(&(id, copy.boot)) || moved;
        let halted = self.truth.halted.get(&id).is_some_and(|up_to| copy.boot <= *up_to);
        if self.truth.removed.contains(&id.uid) || told || (halted && what != "deleted") {
            return;
        }
        let never_unknown = copy.orphan && what == "deleted";
        if copy.state == FoundState::Running || never_unknown {
            let what = format!("{} is {what} on w{host}, and no rule says so", self.short(id));
            self.violated(what);
        }
    }

    /// A host says that a copy failed: then it must not run, as another may be started on its word.
    pub(super) fn check_failure(&mut self, host: usize, id: CopyId, boot: Boot, fenced: bool) {
        if self.hosts[host].copies.get(&id).is_some_and(|copy| copy.state == FoundState::Running) {
            let what = format!("w{host} says that {} failed, and it runs", self.short(id));
            self.violated(what);
        }
        self.truth.failed.insert((id, boot));
        if fenced {
            self.truth.fenced.insert((id, boot));
        }
    }

    /// A host says that a copy is off: then it must not run, as its room is given to others on its word.
    pub(super) fn check_off(&mut self, host: usize, id: CopyId) {
        if self.hosts[host].copies.get(&id).is_some_and(|copy| copy.state == FoundState::Running) {
            let what = format!("w{host} says that {} is off, and it runs", self.short(id));
            self.violated(what);
        }
    }
}
