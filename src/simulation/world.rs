//! A run: what there is, what happens next, and how it ends.

use std::fmt::Write as _;

use super::bus::{ApiCall, Call, Message, Weather};
use super::client::Client;
use super::clock::{Agenda, Millis};
use super::controller::Process;
use super::dice::Dice;
use super::disk::{Delta, Disk, Health};
use super::faults::Fault;
use super::guard::{FENCE, LEASE, MAX_PACE};
use super::host::Host;
use super::invariants::Truth;
use super::worker::Alarm;
use crate::model::account::{JoinId, WorkerKey};
use crate::model::vm::{OnUnseen, PowerState, Vm, VmStatus};
use crate::model::{CopyId, Timestamp};

/// How long everything may take to be as it should once faults have stopped: the longest pause before a restart, and the
/// longest before a deletion is tried again, with room for what follows.
const BOUND: Millis = 600_000;
/// How often it is looked whether everything is.
const LOOK: Millis = 1_000;

/// Everything that can happen next.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Arrives(Message),
    TickDue(u64),
    WriterWakes(u64),
    Committed(u64),
    Alarm {
        host: usize,
        life: u64,
        alarm: Alarm,
    },
    GuestCrash {
        host: usize,
        id: CopyId,
        run: u64,
    },
    StartWorker(usize),
    PowerOn(usize),
    GiveUp(usize),
    /// The lease of a host that was good until then.
    LeaseOver {
        host: usize,
        until: Millis,
    },
    /// The guard is done with these.
    Fence {
        host: usize,
        doomed: Vec<(CopyId, u64)>,
    },
    Wake(usize),
    /// These hosts are cut off.
    Cut {
        hosts: std::ops::Range<usize>,
        until: Millis,
    },
    Rejoin(usize),
    KillController,
    StartController,
    Restored,
    ClientActs,
    ClientTimeout(Call),
    Fault,
    FaultOver(Fault, usize),
    Calm,
    Look,
}

/// The whole simulated world.
pub(super) struct World {
    pub(super) dice: Dice,
    pub(super) agenda: Agenda<Event>,
    pub(super) controller: Option<Process>,
    pub(super) disk: Disk,
    pub(super) backup: Option<Disk>,
    pub(super) hosts: Vec<Host>,
    pub(super) client: Client,
    pub(super) truth: Truth,
    /// The last event that subscribers have.
    pub(super) subscriber: u64,
    pub(super) weather: Weather,
    pub(super) health: Health,
    /// What can go wrong in this run.
    pub(super) faults: Vec<Fault>,
    /// How often a VM that starts will crash, in times per thousand.
    pub(super) crashes: u64,
    /// About how often somebody wants something.
    pub(super) pace: Millis,
    /// How far the controller's wall clock is off.
    pub(super) skew: i64,
    /// The controller dies during its next commit.
    pub(super) kill_at_commit: bool,
    /// The controller's connection to the bus does not work until then.
    pub(super) bus_cut_until: Millis,
    /// It did not, and the controller has not felt so yet.
    pub(super) bus_disturbed: bool,
    /// When the controller last felt it.
    pub(super) bus_sound_since: Millis,
    /// Faults have stopped.
    pub(super) calm: bool,
    /// An older backup was restored.
    pub(super) restored: bool,
    /// One is being restored, so that nobody starts the controller meanwhile.
    pub(super) restoring: bool,
    /// When faults stopped.
    calm_since: Millis,
    /// Something has changed on a host.
    pub(super) look_at_hosts: bool,
    pub(super) lives: u64,
    pub(super) calls: Call,
    pub(super) uids: u64,
    /// Batches of the controller's writer.
    pub(super) steps: u64,
    broken: Option<String>,
    trace: Option<String>,
}

/// What a run that went well was like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stats {
    /// Events that happened.
    pub(super) events: u64,
    /// Batches of the controller's writer.
    pub(super) steps: u64,
    /// Virtual time that passed.
    pub(super) millis: Millis,
    /// Events of VMs and workers.
    pub(super) told: u64,
}

/// Why a run did not.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) seed: u64,
    pub(super) what: String,
    /// What happened, if that was asked for.
    pub(super) trace: String,
}

/// Runs one seed to its end. The same seed always gives the same run.
pub(super) fn run(seed: u64, traced: bool) -> Result<Stats, Failure> {
    let mut world = World::new(seed, traced);
    let mut events = 0;
    let mut settled_at = None;
    while let Some(event) = world.agenda.pop() {
        events += 1;
        if matches!(event, Event::Look) {
            settled_at = world.look_whether_settled();
        } else {
            world.happens(event);
        }
        if std::mem::take(&mut world.look_at_hosts) {
            world.check_hosts();
        }
        if settled_at.is_some() || world.broken.is_some() {
            break;
        }
    }
    let what = world.broken.take();
    let (steps, millis, told) = (world.steps, world.agenda.now(), world.disk.last_event);
    match what {
        None => Ok(Stats { events, steps, millis, told }),
        Some(what) => Err(Failure { seed, what, trace: world.trace.unwrap_or_default() }),
    }
}

impl World {
    fn new(seed: u64, traced: bool) -> Self {
        let mut dice = Dice::new(seed);
        let mut disk = Disk::default();
        let mut hosts = Vec::new();
        for number in 0..dice.below(4) + 2 {
            let host = Host::new(number, dice.range(1, 4), 1_024 * dice.range(4, 16), dice.range(0, 2 * MAX_PACE));
            let key = WorkerKey {
                worker: host.name.clone(),
                public_key: format!("key of {}", host.name),
                machine_id: host.info.machine_id.clone(),
                joined_at: Timestamp::from_millis(0),
                joined_with: JoinId::new([u8::try_from(number).unwrap(); 8]),
                place: String::new(),
            };
            disk.keys.insert(host.name.clone(), key);
            hosts.push(host);
        }
        let faults = Fault::some(&mut dice);
        let mut world = Self {
            crashes: if dice.chance(700) { dice.range(0, 600) } else { 0 },
            pace: dice.range(300, 3_000),
            dice,
            agenda: Agenda::new(),
            controller: None,
            disk,
            backup: None,
            hosts,
            client: Client::default(),
            truth: Truth::default(),
            subscriber: 0,
            weather: Weather::default(),
            health: Health::default(),
            faults,
            skew: 0,
            kill_at_commit: false,
            bus_cut_until: 0,
            bus_disturbed: false,
            bus_sound_since: 0,
            calm: false,
            restored: false,
            restoring: false,
            calm_since: 0,
            look_at_hosts: false,
            lives: 0,
            calls: 0,
            uids: 0,
            steps: 0,
            broken: None,
            trace: traced.then(String::new),
        };
        world.start_controller();
        (0..world.hosts.len()).for_each(|host| world.start_worker(host));
        world.agenda.after(0, Event::ClientActs);
        world.agenda.after(1_000, Event::Fault);
        let long = world.faults.iter().any(|fault| matches!(fault, Fault::LongPartition | Fault::LongOutage));
        let calm_at = world.dice.range(30_000, 150_000) + if long { 4 * LEASE } else { 0 };
        world.agenda.after(calm_at, Event::Calm);
        world
    }

    fn happens(&mut self, event: Event) {
        if self.sleeps_through(&event) {
            return;
        }
        match event {
            Event::Arrives(message) => self.arrives(message),
            Event::TickDue(life) => self.tick_due(life),
            Event::WriterWakes(life) => self.writer_wakes(life),
            Event::Committed(life) => self.committed(life),
            Event::Alarm { host, life, alarm } => self.rings(host, life, alarm),
            Event::GuestCrash { host, id, run } => self.guest_crash(host, id, run),
            Event::StartWorker(host) => self.start_worker(host),
            Event::PowerOn(host) => self.power_on(host),
            Event::GiveUp(host) => self.give_up(host),
            Event::LeaseOver { host, until } => self.lease_over(host, until),
            Event::Fence { host, doomed } => self.fence(host, doomed),
            Event::Wake(host) => self.wake(host),
            Event::Cut { hosts, until } if !self.calm => {
                self.hosts[hosts].iter_mut().for_each(|host| host.cut_until = until);
            }
            Event::Cut { .. } => {}
            Event::Rejoin(host) => self.rejoin(host),
            Event::KillController => self.crash_controller(),
            Event::StartController => self.start_controller(),
            Event::Restored => {
                self.restoring = false;
                self.start_controller();
            }
            Event::ClientActs => self.client_acts(),
            Event::ClientTimeout(call) => self.client_gives_up(call),
            Event::Fault => self.fault(),
            Event::FaultOver(fault, host) => self.fault_over(fault, host),
            Event::Calm => self.calm_down(),
            Event::Look => {}
        }
    }

    /// Faults stop, and whatever is off is switched on again.
    fn calm_down(&mut self) {
        self.note(|_| "faults stop".to_owned());
        self.calm = true;
        self.calm_since = self.agenda.now();
        self.weather = Weather::default();
        self.health = Health::default();
        self.kill_at_commit = false;
        self.bus_cut_until = 0;
        for host in 0..self.hosts.len() {
            self.hosts[host].cut_until = 0;
            self.hosts[host].trouble = 0;
            self.hosts[host].asleep_until = self.hosts[host].asleep_until.min(self.calm_since);
            self.wake(host);
            self.power_on(host);
        }
        self.start_controller();
        self.agenda.after(LOOK, Event::Look);
    }

    fn look_whether_settled(&mut self) -> Option<Millis> {
        let now = self.agenda.now();
        match self.unsettled() {
            None => return Some(now),
            Some(why) if now - self.calm_since >= BOUND => {
                self.violated(format!("faults stopped {} s ago, and still: {why}", BOUND / 1_000));
            }
            Some(_) => {}
        }
        for host in 0..self.hosts.len() {
            let name = &self.hosts[host].name;
            let there = self.disk.workers.contains_key(name) || self.disk.restored.waiting.contains(name);
            let asked = self.client.is_moving(host);
            if self.hosts[host].dead && there && !asked && self.waited_for_replacements(host) {
                self.give_up(host);
            }
            // A backup from before it joined again was restored.
            let has_key = self.disk.keys.contains_key(&self.hosts[host].name);
            if !self.hosts[host].dead && !has_key && !asked {
                self.ask(ApiCall::Rejoin(host));
            }
        }
        self.agenda.after(LOOK, Event::Look);
        None
    }

    /// Whether the controller had time enough to find out that a machine is gone; by then nothing may wait for it that may
    /// be replaced.
    fn waited_for_replacements(&mut self, host: usize) -> bool {
        let Some(process) = &self.controller else { return false };
        let waited = self.agenda.now() - self.calm_since.max(process.booted);
        if waited < 2 * LEASE + FENCE {
            return false;
        }
        let on = |vm: &&Vm| vm.worker.as_ref() == Some(&self.hosts[host].name) && vm.status != VmStatus::Failed;
        // One that its worker was not yet told of as replaceable is kept, and one that is off or held is no matter of a lease.
        let told = |vm: &&Vm| vm.observed_generation >= vm.replace_since;
        let runs = |vm: &&Vm| vm.spec.power_state == PowerState::Running && self.disk.restored.waiting.is_empty();
        let left = self.disk.vms.values().filter(on).filter(told).filter(runs);
        let mut left = left;
        let left = left.find(|vm| vm.spec.on_unseen == OnUnseen::Replace);
        if let Some(left) = left {
            let what = format!("{} waits for w{host}, which has been dead for {waited} ms at least", left.name);
            self.violated(what);
        }
        true
    }

    /// The invariant that is broken; the first counts.
    pub(super) fn violated(&mut self, what: String) {
        self.note(|_| format!("VIOLATED: {what}"));
        self.broken.get_or_insert(what);
    }

    /// A line of the trace, if there is one.
    pub(super) fn note(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.trace.is_some() {
            let line = line(self);
            let now = self.agenda.now();
            if let Some(trace) = &mut self.trace {
                let _ = writeln!(trace, "{:>7}.{:03} {line}", now / 1_000, now % 1_000);
            }
        }
    }

    /// A copy as it stands in traces: number of the VM and attempt.
    pub(super) fn short(&self, id: CopyId) -> String {
        let number = id.uid.0.as_u128();
        let name = self.disk.vms.get(&id.uid).map(|vm| format!("{}:", vm.name)).unwrap_or_default();
        format!("{name}{number}-{}", id.attempt)
    }

    /// A commit as it stands in traces.
    pub(super) fn describe(&self, delta: &Delta) -> String {
        let mut text = "committed:".to_owned();
        for (uid, vm) in &delta.vms {
            let _ = match vm {
                Some(vm) => write!(
                    text,
                    " [{}:{}-{} {} on {}]",
                    vm.name,
                    uid.0.as_u128(),
                    vm.restart_count,
                    vm.status,
                    vm.worker.as_ref().map_or("none", |worker| worker.as_str())
                ),
                None => write!(text, " [{} deleted]", uid.0.as_u128()),
            };
        }
        for (id, leaving) in &delta.leaving {
            let what = if leaving.is_some() { "to be removed" } else { "removed" };
            let _ = write!(text, " [{} {what}]", self.short(*id));
        }
        for event in &delta.events {
            let _ = write!(text, " {}:{}", event.number, event.kind.as_str());
        }
        text
    }
}

impl Stats {
    /// The sum of both.
    pub(super) fn add(&mut self, other: Self) {
        self.events += other.events;
        self.steps += other.steps;
        self.millis += other.millis;
        self.told += other.told;
    }
}

impl std::fmt::Display for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hours = self.millis / 3_600_000;
        write!(f, "{hours} simulated hours, {} events, {} batches, {} told", self.events, self.steps, self.told)
    }
}
