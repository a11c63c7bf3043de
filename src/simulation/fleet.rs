//! The worker's process towards its host, as `worker::{fleet,vm}` do it: each copy has a task that asks the real table
//! in `worker::plan` for its next step and does it with the simulated runtime, which takes its time and fails.

use std::collections::{BTreeMap, BTreeSet};

use super::clock::Millis;
use super::guard::LEASE;
use super::host::Copy;
use super::worker::{Alarm, Inventory};
use super::world::World;
use crate::bus::message::{DesiredCopy, Observation, Want};
use crate::model::vm::OnUnseen;
use crate::model::{Boot, CopyId, VmName};
use crate::worker::fleet::seen_at_first;
use crate::worker::plan::{self, Past, Seen, Step, Wish};
use crate::worker::runtime::FoundState;

/// As in `worker::fleet` and `worker::vm`.
pub(super) const PERIOD: Millis = 5_000;
const DELETE_PAUSE: (Millis, Millis) = (1_000, 60_000);

/// The task of one copy.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) seen: Seen,
    pub(super) order: Order,
    pub(super) doing: Doing,
    /// Counts steps, so that the end of one that was given up is not taken for that of another.
    pub(super) number: u64,
    /// The last boot that was begun, or failed to begin.
    pub(super) boot: Boot,
    /// Its process ran once.
    started: bool,
    pause: Millis,
    /// When the step at hand began.
    pub(super) began: Millis,
    /// When the assignment was taken by which it goes.
    told: Millis,
}

impl Task {
    /// Whether the copy is being made or started.
    pub(super) fn prepares(&self) -> bool {
        matches!(self.doing, Doing::Create(_) | Doing::Start(_))
    }

    pub(super) fn is_replaceable(&self) -> bool {
        self.order.replaceable
    }
}

/// As `worker::vm::Order`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    wish: Wish,
    name: VmName,
    /// CPU and memory to give.
    size: (u64, u64),
    generation: u64,
    pub(super) boot: Boot,
    ran: bool,
    pub(super) scripted: bool,
    /// It runs only while there is a lease.
    replaceable: bool,
}

/// What a task is at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Doing {
    /// Waits for another order.
    Rest,
    Create(Boot),
    Start(Boot),
    /// Whether it has started it itself.
    Watch(bool),
    Stop {
        /// The failure to tell of once it is stopped.
        failed: Option<String>,
    },
    Suspend,
    Delete,
    /// Before another try.
    Pause {
        failed: Option<String>,
    },
}

impl World {
    pub(super) fn look_soon(&mut self, host: usize) {
        let process = self.hosts[host].process.as_mut().unwrap();
        if !std::mem::replace(&mut process.looking, true) {
            let delay = self.dice.range(0, 3);
            self.alarm(host, delay, Alarm::Look);
        }
    }

    /// One pass of the reconciler.
    pub(super) fn look(&mut self, host: usize) {
        let listed = !self.dice.chance(self.hosts[host].trouble);
        let here = &mut self.hosts[host];
        let process = here.process.as_mut().unwrap();
        process.looking = false;
        let Some(assignment) = process.assignment.clone() else { return };
        let wished: BTreeMap<CopyId, &DesiredCopy> = assignment.copies.iter().map(|copy| (copy.id(), copy)).collect();
        let orders: Vec<(CopyId, Order)> =
            process.tasks.iter().map(|(id, task)| (*id, order(wished.get(id).copied(), &task.order.name))).collect();
        let busy: BTreeSet<CopyId> = process.tasks.keys().copied().collect();
        let found: BTreeMap<CopyId, Copy> = here.copies.clone();
        let told = process.assigned_at;
        for (id, order) in orders {
            if let Some(task) = self.task(host, id) {
                task.told = told;
            }
            self.give_order(host, id, order);
            self.start_again(host, id);
        }
        if !listed {
            return;
        }
        let ids: BTreeSet<CopyId> = wished.keys().chain(found.keys()).copied().collect();
        let runs = |id: &&CopyId| wished.get(*id).is_some_and(|copy| matches!(copy.want, Want::Run(_)));
        let inventory = Inventory {
            session: assignment.session,
            wished: ids.iter().filter(runs).copied().collect(),
            unwished: ids.iter().chain(&busy).filter(|id| !wished.contains_key(*id)).copied().collect(),
        };
        self.hosts[host].process.as_mut().unwrap().found = Some(inventory);
        for id in ids.difference(&busy).copied() {
            let (wish, found) = (wished.get(&id).copied(), found.get(&id));
            let Some(name) = wish.map(|wish| &wish.name).or(found.map(|found| &found.name)) else { continue };
            let (order, seen) = (order(wish, name), seen_at_first(found.map(|found| found.state)));
            if plan::step(order.wish, seen, Past::default()) == Step::ReportAbsent {
                self.observe(host, id, 0, Observation::Absent);
                continue;
            }
            let noted = self.hosts[host].boots.get(&id).copied();
            let started = noted.is_some() || matches!(seen, Seen::Running | Seen::Ended);
            let (doing, boot) = (Doing::Rest, noted.unwrap_or(0));
            let task = Task { seen, order, doing, number: 0, boot, started, pause: DELETE_PAUSE.0, began: 0, told };
            self.hosts[host].process.as_mut().unwrap().tasks.insert(id, task);
            self.advance(host, id, false);
        }
    }

    pub(super) fn task(&mut self, host: usize, id: CopyId) -> Option<&mut Task> {
        self.hosts[host].process.as_mut()?.tasks.get_mut(&id)
    }

    /// Goes on with what waited for a lease.
    fn start_again(&mut self, host: usize, id: CopyId) {
        let waits = |task: &mut Task| {
            let past = Past { newer: task.order.boot > task.boot, ran: task.order.ran, halted: false };
            let step = plan::step(task.order.wish, task.seen, past);
            task.doing == Doing::Rest && matches!(step, Step::Create | Step::Start)
        };
        if self.task(host, id).is_some_and(waits) {
            self.advance(host, id, false);
        }
    }

    /// Whether a copy may be made or started now.
    fn may_begin(&mut self, host: usize, id: CopyId) -> bool {
        let now = self.agenda.now();
        let Some(task) = self.task(host, id) else { return false };
        let (replaceable, told) = (task.is_replaceable(), task.told);
        !replaceable || self.hosts[host].covers(told, now)
    }

    fn give_order(&mut self, host: usize, id: CopyId, order: Order) {
        let Some(task) = self.task(host, id).filter(|task| task.order != order) else { return };
        task.order = order.clone();
        let unwanted = order.wish != Wish::Run;
        // As `worker::guard::lead`: the controller knows, and wishes for another boot of what is to be kept by now.
        let known = self.told_fenced(host, id).is_some_and(|boot| order.boot > boot);
        let kept = !unwanted && !order.replaceable && known;
        if kept || (unwanted && order.wish != Wish::Unknown) {
            self.hosts[host].fenced.remove(&id);
        }
        if let Some(copy) = self.hosts[host].copies.get_mut(&id).filter(|_| !unwanted) {
            copy.replaceable = order.replaceable;
        }
        let Some(task) = self.task(host, id) else { return };
        let goes_on = !unwanted && task.order.boot <= task.boot;
        match &task.doing {
            Doing::Watch(_) if goes_on => return self.now_at(host, id),
            Doing::Create(_) if unwanted => task.seen = Seen::Incomplete,
            Doing::Pause { failed: Some(message) } if !unwanted => {
                let failed = Some(message.clone());
                return self.stop(host, id, failed);
            }
            Doing::Rest | Doing::Watch(_) | Doing::Pause { .. } => {}
            Doing::Create(_) | Doing::Start(_) | Doing::Stop { .. } | Doing::Suspend | Doing::Delete => return,
        }
        task.doing = Doing::Rest;
        task.number += 1;
        self.advance(host, id, false);
    }

    /// What runs goes on under another generation, which is thereby in effect.
    fn now_at(&mut self, host: usize, id: CopyId) {
        let boot = self.task(host, id).unwrap().order.boot;
        self.set_boot(host, id, boot);
        if let Some(Observation::Running { message, ready, .. }) = self.told(host, id) {
            self.tell_running(host, id, &message, ready);
        }
    }

    /// The copy is at `boot`.
    fn set_boot(&mut self, host: usize, id: CopyId, boot: Boot) {
        self.task(host, id).unwrap().boot = boot;
        self.hosts[host].boots.insert(id, boot);
        if let Some(copy) = self.hosts[host].copies.get_mut(&id) {
            copy.boot = boot;
        }
    }

    /// Begins the step that the table names.
    pub(super) fn advance(&mut self, host: usize, id: CopyId, fresh: bool) {
        let Some(task) = self.task(host, id) else { return };
        let (order, seen) = (task.order.clone(), task.seen);
        if order.wish == Wish::Run && order.boot < task.boot {
            self.set_boot(host, id, order.boot);
            self.task(host, id).unwrap().seen = plan::forgotten(seen);
        }
        let seen = self.task(host, id).unwrap().seen;
        let boot = self.task(host, id).unwrap().boot;
        let step = plan::step(order.wish, seen, Past { newer: order.boot > boot, ran: order.ran, halted: false });
        self.note(|world| {
            let (name, wish) = (&world.hosts[host].name, order.wish);
            format!("{name}: {}: {wish:?} {}, {seen:?} {boot}: {step:?}", world.short(id), order.boot)
        });
        match step {
            // As `worker::guard::lead`: it is not begun again, whatever boot is wished for.
            Step::Create | Step::Start if self.hosts[host].fenced.contains(&id) => self.tell_fenced(host, id),
            Step::Create | Step::Start if !self.may_begin(host, id) => {
                let _ = self.begin_silently(host, id, Doing::Rest);
            }
            Step::Create => {
                let (cpu, memory) = order.size;
                let copy = Copy {
                    name: order.name,
                    state: FoundState::Incomplete,
                    cpu,
                    memory,
                    boot: 0,
                    run: 0,
                    replaceable: order.replaceable,
                    orphan: false,
                    foreign: false,
                };
                self.put_copy(host, id, copy);
                self.hosts[host].scripts.remove(&id);
                self.hosts[host].boots.remove(&id);
                self.observe(host, id, order.boot, Observation::Preparing { message: "preparing".into() });
                let takes = self.dice.delay(800, 150, 2 * LEASE);
                self.begin(host, id, Doing::Create(order.boot), takes);
            }
            Step::Start => {
                let takes = self.dice.delay(200, 50, 5_000);
                self.hosts[host].scripts.remove(&id);
                if let Some(copy) = self.hosts[host].copies.get_mut(&id) {
                    (copy.cpu, copy.memory) = order.size;
                }
                self.begin(host, id, Doing::Start(order.boot), takes);
                self.look_at_hosts = true;
            }
            Step::Watch => {
                let message = if fresh { "booting" } else { "adopted by a new worker process" };
                self.tell_running(host, id, message, false);
                let takes = self.dice.delay(2_000, 100, 20_000);
                let number = self.begin_silently(host, id, Doing::Watch(fresh));
                self.alarm(host, takes, Alarm::GuestReady(id, number));
                let runs = self.hosts[host].copies.get(&id).is_some_and(|copy| copy.state == FoundState::Running);
                if !runs {
                    // It could not be stopped, and ended by itself meanwhile.
                    self.alarm(host, 1, Alarm::GuestGone(id, number));
                }
            }
            Step::ReportEnded => self.stop(host, id, Some("the VM's process ended while nobody watched".into())),
            Step::ReportLost => {
                let task = self.task(host, id).unwrap();
                (task.boot, task.seen) = (order.boot, Seen::Unmade);
                let failed =
                    Observation::Failed { message: "the VM's disk is lost".into(), disk: false, halted: false };
                self.observe(host, id, order.boot, failed);
                self.advance(host, id, false);
            }
            Step::Stop => self.stop(host, id, None),
            Step::Suspend => {
                self.check_rule(host, id, "suspended");
                let takes = self.dice.delay(500, 100, 10_000);
                self.begin(host, id, Doing::Suspend, takes);
            }
            Step::ReportStopped => {
                self.check_off(host, id);
                self.observe(host, id, order.boot, Observation::Stopped { message: "it is switched off".into() });
                self.task(host, id).unwrap().seen = plan::forgotten(seen);
                let _ = self.begin_silently(host, id, Doing::Rest);
            }
            Step::Delete => {
                self.check_rule(host, id, "deleted");
                let takes = self.dice.delay(500, 100, 40_000);
                self.begin(host, id, Doing::Delete, takes);
            }
            Step::ReportAbsent => {
                self.observe(host, id, 0, Observation::Absent);
                self.end_task(host, id);
            }
            Step::ReportStray => {
                let stray = Observation::Stray { name: order.name.to_string(), running: Some(seen == Seen::Running) };
                self.observe(host, id, 0, stray);
                self.task(host, id).unwrap().seen = plan::forgotten(seen);
                let _ = self.begin_silently(host, id, Doing::Rest);
            }
            Step::Forget => {
                self.forget(host, id);
                self.end_task(host, id);
            }
            // Nobody stops VMs with their worker here.
            Step::ReportHalted | Step::Rest => {
                let _ = self.begin_silently(host, id, Doing::Rest);
            }
        }
    }

    fn end_task(&mut self, host: usize, id: CopyId) {
        self.hosts[host].process.as_mut().unwrap().tasks.remove(&id);
        self.look_soon(host);
    }

    fn begin_silently(&mut self, host: usize, id: CopyId, doing: Doing) -> u64 {
        let now = self.agenda.now();
        let task = self.task(host, id).unwrap();
        task.doing = doing;
        task.number += 1;
        task.began = now;
        task.number
    }

    fn begin(&mut self, host: usize, id: CopyId, doing: Doing, takes: Millis) {
        let number = self.begin_silently(host, id, doing);
        self.alarm(host, takes, Alarm::Step(id, number));
    }

    fn stop(&mut self, host: usize, id: CopyId, failed: Option<String>) {
        self.check_rule(host, id, "stopped");
        let takes = self.dice.delay(500, 100, 23_000);
        self.begin(host, id, Doing::Stop { failed }, takes);
    }

    fn pause(&mut self, host: usize, id: CopyId, failed: Option<String>) {
        let task = self.task(host, id).unwrap();
        let takes = task.pause;
        task.pause = (takes * 2).min(DELETE_PAUSE.1);
        self.begin(host, id, Doing::Pause { failed }, takes);
    }

    fn fail(&mut self, host: usize, id: CopyId, message: &str) {
        if self.hosts[host].fenced.contains(&id) {
            return self.tell_fenced(host, id);
        }
        let task = self.task(host, id).unwrap();
        task.seen = Seen::Failed;
        let (boot, disk) = (task.boot, task.started);
        self.observe(host, id, boot, Observation::Failed { message: message.to_owned(), disk, halted: false });
        self.advance(host, id, false);
    }

    /// A step has taken its time.
    pub(super) fn step_done(&mut self, host: usize, id: CopyId, number: u64) {
        let trouble = self.hosts[host].trouble;
        let Some(task) = self.task(host, id).filter(|task| task.number == number) else { return };
        let doing = task.doing.clone();
        let (began, replaceable) = (task.began, task.is_replaceable());
        let covered = !replaceable || self.hosts[host].covers(began, self.agenda.now());
        let failing = self.dice.chance(trouble);
        match doing {
            Doing::Create(boot) if failing => {
                let task = self.task(host, id).unwrap();
                (task.boot, task.seen) = (boot, Seen::Unmade);
                let failed = Observation::Failed { message: "cannot create the VM".into(), disk: false, halted: false };
                self.observe(host, id, boot, failed);
                self.advance(host, id, false);
            }
            Doing::Create(_) => {
                self.task(host, id).unwrap().seen = Seen::Created;
                self.advance(host, id, false);
            }
            Doing::Start(boot) if failing => {
                self.task(host, id).unwrap().boot = boot;
                self.stop(host, id, Some("cannot start the VM".into()));
            }
            Doing::Start(_) if !covered => self.tell_fenced(host, id),
            Doing::Start(boot) => {
                self.run_copy(host, id, boot);
                self.set_boot(host, id, boot);
                let task = self.task(host, id).unwrap();
                (task.seen, task.started) = (Seen::Running, true);
                self.advance(host, id, true);
            }
            Doing::Stop { failed } if failing => {
                if failed.is_some() {
                    self.task(host, id).unwrap().seen = Seen::Running;
                }
                self.pause(host, id, failed);
            }
            Doing::Stop { failed } => {
                self.halt_copy(host, id);
                match failed {
                    Some(message) => self.fail(host, id, &message),
                    None => {
                        self.task(host, id).unwrap().seen = Seen::Ended;
                        self.advance(host, id, false);
                    }
                }
            }
            Doing::Suspend if failing => {
                self.tell_running(host, id, "cannot suspend it", false);
                self.pause(host, id, None);
            }
            Doing::Suspend => {
                self.halt_copy(host, id);
                self.task(host, id).unwrap().seen = Seen::Ended;
                self.advance(host, id, false);
            }
            Doing::Delete if failing => self.pause(host, id, None),
            Doing::Delete => {
                self.hosts[host].copies.remove(&id);
                self.hosts[host].scripts.remove(&id);
                self.hosts[host].boots.remove(&id);
                self.task(host, id).unwrap().seen = Seen::Missing;
                self.advance(host, id, false);
            }
            Doing::Pause { failed: Some(message) } => self.stop(host, id, Some(message)),
            Doing::Pause { failed: None } => self.advance(host, id, false),
            Doing::Rest | Doing::Watch(_) => {}
        }
    }

    pub(super) fn guest_gone(&mut self, host: usize, id: CopyId, number: u64) {
        if self.task(host, id).is_some_and(|task| task.number == number) {
            self.guest_exited(host, id);
        }
    }

    /// The guest's process has ended by itself.
    pub(super) fn guest_exited(&mut self, host: usize, id: CopyId) {
        if self.task(host, id).is_some_and(|task| matches!(task.doing, Doing::Watch(_))) {
            self.fail(host, id, "the guest crashed");
        }
    }

    pub(super) fn tell_running(&mut self, host: usize, id: CopyId, message: &str, ready: bool) {
        let task = self.task(host, id).unwrap();
        let (generation, boot) = (task.order.generation, task.boot);
        self.observe(
            host,
            id,
            boot,
            Observation::Running { message: message.to_owned(), ready, generation, image_fqn: None },
        );
    }
}

/// As `fleet::order`.
fn order(desired: Option<&DesiredCopy>, name: &VmName) -> Order {
    let boot = desired.map_or(0, |desired| desired.boot);
    let order = |wish| Order {
        wish,
        name: name.clone(),
        size: (1, 1),
        generation: 0,
        boot,
        ran: false,
        scripted: false,
        replaceable: false,
    };
    match desired.map(|desired| &desired.want) {
        None => order(Wish::Unknown),
        Some(Want::Run(run)) => Order {
            wish: Wish::Run,
            name: name.clone(),
            size: (run.cpu.max(1), run.memory.max(1)),
            generation: run.generation,
            boot,
            ran: run.ran,
            scripted: run.spec.startup_script.is_some(),
            replaceable: run.spec.on_unseen == OnUnseen::Replace,
        },
        Some(Want::Keep) => order(Wish::Keep),
        Some(Want::Suspend) => order(Wish::Suspend),
        Some(Want::Absent) => order(Wish::Absent),
    }
}
