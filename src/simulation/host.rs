//! The machines: what is on their disks and what runs there, whatever anybody believes. Guests crash by themselves, worker
//! processes die and their VMs live on, machines lose power, and some never come back.

use std::collections::{BTreeMap, BTreeSet};

use super::clock::Millis;
use super::fleet::{Doing, PERIOD};
use super::guard::Lease;
use super::worker::{Alarm, Process};
use super::world::{Event, World};
use crate::model::resources::{LOGICAL_CORES, MEMORY_MIB};
use crate::model::worker::{WorkerInfo, sample};
use crate::model::{Boot, CopyId, VmName, WorkerName};
use crate::worker::runtime::FoundState;

/// As the core's default: a worker that is silent for longer is unseen.
pub(super) const UNSEEN: Millis = 15_000;

/// One machine.
pub(super) struct Host {
    pub(super) name: WorkerName,
    pub(super) info: WorkerInfo,
    /// The most that it ever offered.
    pub(super) most: (u64, u64),
    pub(super) powered: bool,
    /// Never comes back.
    pub(super) dead: bool,
    /// Its operator has taken it out of the cluster.
    pub(super) given_up: bool,
    /// No message comes or goes before this.
    pub(super) cut_until: Millis,
    /// How often the runtime fails, in times per thousand.
    pub(super) trouble: u64,
    /// When the last message that renewed its lease reached the controller.
    pub(super) heard: Millis,
    /// When the controller last learnt of one that came only after the lease had run out.
    pub(super) came_late: Option<Millis>,
    pub(super) copies: BTreeMap<CopyId, Copy>,
    /// It has had copies of which the controller did not know, and which so were in no books.
    pub(super) strayed: bool,
    /// The last boot of each copy that was begun, as the worker's process has noted it.
    pub(super) boots: BTreeMap<CopyId, Boot>,
    /// Startup scripts that were begun, and whether they are done.
    pub(super) scripts: BTreeMap<CopyId, bool>,
    pub(super) process: Option<Process>,
    /// As it is counted here; the guard and the worker both know it.
    pub(super) lease: Option<Lease>,
    /// How fast its clock runs, in parts of 100,000 above the slowest.
    pub(super) pace: u64,
    /// Copies that the guard has stopped; it notes them on the disk.
    pub(super) fenced: BTreeSet<CopyId>,
    /// It sleeps until then; 0 = it does not.
    pub(super) asleep_until: Millis,
}

/// What is there of a copy.
#[derive(Clone, Debug)]
pub(super) struct Copy {
    pub(super) name: VmName,
    pub(super) state: FoundState,
    pub(super) cpu: u64,
    pub(super) memory: u64,
    /// Which boot of it ran last.
    pub(super) boot: Boot,
    /// Which start of its process.
    pub(super) run: u64,
    /// The guard stops it when the lease is over.
    pub(super) replaceable: bool,
    /// The controller was set back to a time when it did not know of this.
    pub(super) orphan: bool,
    /// And not of this host: nobody waits for what it has to tell.
    pub(super) foreign: bool,
}

impl Host {
    pub(super) fn new(number: usize, cores: u64, memory: u64, pace: u64) -> Self {
        let name: WorkerName = format!("w{number}").parse().unwrap();
        let info = WorkerInfo { default_cpu: 2, ..sample(name.as_str(), cores, memory) };
        Self {
            name,
            info,
            most: (cores, memory),
            powered: true,
            dead: false,
            given_up: false,
            cut_until: 0,
            trouble: 0,
            heard: 0,
            came_late: None,
            copies: BTreeMap::new(),
            strayed: false,
            boots: BTreeMap::new(),
            scripts: BTreeMap::new(),
            process: None,
            lease: None,
            pace,
            fenced: BTreeSet::new(),
            asleep_until: 0,
        }
    }

    /// A message that renews the lease arrived at the controller, which has been up since `booted` and works on it now.
    pub(super) fn heard_at(&mut self, arrived: Millis, booted: Millis, now: Millis) {
        if arrived.saturating_sub(self.heard.max(booted)) > UNSEEN {
            self.came_late = Some(now);
        }
        self.heard = self.heard.max(arrived);
    }

    /// Other resources from the next registration on.
    pub(super) fn offer(&mut self, cores: u64, memory: u64) {
        self.info.resources = [(LOGICAL_CORES, cores), (MEMORY_MIB, memory)].into();
        self.most = (self.most.0.max(cores), self.most.1.max(memory));
    }
}

impl World {
    pub(super) fn start_worker(&mut self, host: usize) {
        if !self.hosts[host].powered || self.hosts[host].process.is_some() {
            return;
        }
        self.lives += 1;
        self.note(|world| format!("{}: worker starts", world.hosts[host].name));
        self.hosts[host].process = Some(Process::new(self.lives));
        self.alarm(host, 0, Alarm::Greet);
        self.alarm(host, PERIOD, Alarm::Period);
    }

    /// Ends the worker's process; VMs go on. What it was at is done, or is not.
    pub(super) fn kill_worker(&mut self, host: usize) {
        let Some(process) = self.hosts[host].process.take() else { return };
        self.note(|world| format!("{}: worker killed", world.hosts[host].name));
        let now = self.agenda.now();
        for (id, task) in process.tasks {
            let covered = !task.is_replaceable() || self.hosts[host].covers(task.began, now);
            let done = self.dice.chance(500);
            match task.doing {
                // It dies before it has noted that.
                Doing::Start(boot) if done && covered => self.run_copy(host, id, boot),
                Doing::Stop { .. } | Doing::Suspend if done => self.halt_copy(host, id),
                Doing::Delete if done => drop(self.hosts[host].copies.remove(&id)),
                _ => {}
            }
        }
        self.look_at_hosts = true;
    }

    pub(super) fn power_off(&mut self, host: usize) {
        self.kill_worker(host);
        self.note(|world| format!("{}: power off", world.hosts[host].name));
        let here = &mut self.hosts[host];
        here.powered = false;
        here.asleep_until = 0;
        here.copies
            .values_mut()
            .filter(|copy| copy.state == FoundState::Running)
            .for_each(|copy| copy.state = FoundState::Stopped);
    }

    pub(super) fn power_on(&mut self, host: usize) {
        if !self.hosts[host].dead {
            self.hosts[host].powered = true;
            self.start_worker(host);
        }
    }

    pub(super) fn put_copy(&mut self, host: usize, id: CopyId, mut copy: Copy) {
        copy.orphan = self.restored && !self.is_named(host, id);
        copy.foreign = copy.orphan && self.is_foreign(host);
        self.hosts[host].strayed |= copy.orphan;
        self.truth.made.insert(id);
        self.hosts[host].copies.insert(id, copy);
        self.hosts[host].fenced.remove(&id);
        self.look_at_hosts = true;
    }

    /// The copy's process runs from now on.
    pub(super) fn run_copy(&mut self, host: usize, id: CopyId, boot: Boot) {
        self.uids += 1;
        let run = self.uids;
        let Some(copy) = self.hosts[host].copies.get_mut(&id) else { return };
        (copy.state, copy.run, copy.boot) = (FoundState::Running, run, boot);
        self.truth.ran.insert(id);
        self.look_at_hosts = true;
        if !self.calm && self.dice.chance(self.crashes) {
            let delay = self.dice.range(10, 40_000);
            self.agenda.after(delay, Event::GuestCrash { host, id, run });
        }
    }

    pub(super) fn halt_copy(&mut self, host: usize, id: CopyId) {
        if let Some(copy) = self.hosts[host].copies.get_mut(&id)
            && copy.state == FoundState::Running
        {
            copy.state = FoundState::Stopped;
        }
    }

    pub(super) fn guest_crash(&mut self, host: usize, id: CopyId, run: u64) {
        let Some(copy) = self.hosts[host].copies.get_mut(&id) else { return };
        if copy.state == FoundState::Running && copy.run == run {
            copy.state = FoundState::Stopped;
            self.note(|world| format!("{}: the guest of {} crashes", world.hosts[host].name, world.short(id)));
            self.guest_exited(host, id);
        }
    }

    /// Whether the durable state of the controller knows nothing of this host: a backup from before it joined was restored.
    pub(super) fn is_foreign(&self, host: usize) -> bool {
        let name = &self.hosts[host].name;
        !self.disk.workers.contains_key(name) && !self.disk.keys.contains_key(name)
    }

    /// Copies that are known now are like others.
    pub(super) fn look_at_orphans(&mut self) {
        for host in 0..self.hosts.len() {
            let orphans = self.hosts[host].copies.iter().filter(|(_, copy)| copy.orphan).map(|(id, _)| *id);
            for id in orphans.collect::<Vec<_>>().into_iter().filter(|id| self.is_named(host, *id)).collect::<Vec<_>>()
            {
                let copy = self.hosts[host].copies.get_mut(&id).unwrap();
                (copy.orphan, copy.foreign) = (false, false);
            }
        }
    }

    /// Whether the durable state of the controller names this copy on this host.
    pub(super) fn is_named(&self, host: usize, id: CopyId) -> bool {
        let name = &self.hosts[host].name;
        let placed = |vm: &crate::model::vm::Vm| vm.copy_id() == id && vm.worker.as_ref() == Some(name);
        self.disk.vms.get(&id.uid).is_some_and(placed)
            || self.disk.leaving.get(&id).is_some_and(|leaving| leaving.worker == *name)
    }
}
