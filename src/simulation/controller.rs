//! The controller's process: the real core behind a writer that works as `store::writer` does. Everything queued is one
//! batch; a batch is applied, placed, committed, and only then told and answered. A commit that fails is undone by going
//! back to what is stored.

use std::collections::BTreeSet;
use std::time::Duration;

use super::bus::{Answer, ApiCall, Call, Message, Reply, WorkerCall};
use super::clock::Millis;
use super::disk::Delta;
use super::guard::timing;
use super::world::{Event, World};
use crate::bus::access::{CreateJoinToken, Join};
use crate::bus::message::Assignment;
use crate::controller::cluster::{Changes, Cluster};
use crate::model::account::{JoinId, SecretHash};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::event::EventNumber;
use crate::model::planted::{Bug, planted};
use crate::model::{Now, Timestamp, VmUid, WorkerName};

/// How often time passes in the core.
const TICK: Millis = 250;
/// What the wall clock shows when a run begins.
const EPOCH: i64 = 1_800_000_000_000;

/// One life of the controller.
pub(super) struct Process {
    pub(super) life: u64,
    pub(super) cluster: Cluster,
    pub(super) booted: Millis,
    queue: Vec<Job>,
    waking: bool,
    committing: Option<Commit>,
    astray: bool,
    pub(super) frozen_until: Millis,
    /// Up to where events were published.
    published: EventNumber,
}

/// What is queued for the writer.
enum Job {
    Worker { host: usize, life: u64, call: Call, body: WorkerCall, arrived: Millis },
    Client { call: Call, body: ApiCall },
    Assignment(usize),
    Tick,
}

/// A batch on its way to the disk.
struct Commit {
    delta: Option<Delta>,
    fails: bool,
    told: BTreeSet<WorkerName>,
    answers: Vec<(To, Answer)>,
    ticked: bool,
}

/// Who gets an answer.
enum To {
    Worker {
        host: usize,
        life: u64,
        call: Call,
    },
    Client(Call),
    /// The newest wish, as a message of its own.
    Assign(usize, Box<Assignment>),
}

impl Process {
    fn now(&self, at: Millis, skew: i64) -> Now {
        Now {
            wall: Timestamp::from_millis(EPOCH + i64::try_from(at).unwrap() + skew),
            mono: Duration::from_millis(at - self.booted),
        }
    }
}

impl World {
    /// What a clock on the wall that is right shows.
    pub(super) fn right_time(&self) -> Timestamp {
        Timestamp::from_millis(EPOCH + i64::try_from(self.agenda.now()).unwrap())
    }

    /// The controller's clocks.
    pub(super) fn controller_now(&self) -> Now {
        let at = self.agenda.now();
        let booted = self.controller.as_ref().map_or(0, |process| process.booted);
        let wall = Timestamp::from_millis(EPOCH + i64::try_from(at).unwrap() + self.skew);
        Now { wall, mono: Duration::from_millis(at - booted) }
    }

    pub(super) fn start_controller(&mut self) {
        if self.controller.is_some() || self.restoring {
            return;
        }
        self.lives += 1;
        self.note(|_| "controller starts".to_owned());
        let (life, booted) = (self.lives, self.agenda.now());
        let now = self.controller_now();
        let cluster = Cluster::load(self.disk.records(), timing(), Now { mono: Duration::ZERO, ..now });
        let mut process = Process {
            life,
            cluster,
            booted,
            queue: Vec::new(),
            waking: false,
            committing: None,
            astray: false,
            frozen_until: 0,
            published: self.disk.published,
        };
        self.publish(&mut process);
        self.check_memory(&process.cluster);
        self.controller = Some(process);
        self.agenda.after(0, Event::TickDue(life));
    }

    /// Ends the process as SIGKILL does. What was on its way to the disk is there, or is not.
    pub(super) fn kill_controller(&mut self) {
        let Some(process) = self.controller.take() else { return };
        let durable = process.committing.and_then(|commit| commit.delta).filter(|_| self.dice.chance(500));
        let on_its_way = if durable.is_some() { ", its last commit durable" } else { "" };
        self.note(|_| format!("controller killed{on_its_way}"));
        if let Some(delta) = durable {
            self.check_commit(&delta);
            self.disk.write(delta);
            self.look_at_orphans();
        }
    }

    pub(super) fn hear_worker(&mut self, host: usize, life: u64, call: Call, body: WorkerCall) {
        let arrived = self.agenda.now();
        self.queue(Job::Worker { host, life, call, body, arrived });
    }

    pub(super) fn hear_client(&mut self, call: Call, body: ApiCall) {
        self.queue(Job::Client { call, body });
    }

    pub(super) fn tick_due(&mut self, life: u64) {
        if self.controller.as_ref().is_some_and(|process| process.life == life) {
            self.queue(Job::Tick);
        }
    }

    fn queue(&mut self, job: Job) {
        if let Some(process) = &mut self.controller {
            process.queue.push(job);
            self.wake_writer();
        }
    }

    fn wake_writer(&mut self) {
        let now = self.agenda.now();
        let Some(process) = &mut self.controller else { return };
        if !process.waking && process.committing.is_none() && !process.queue.is_empty() {
            process.waking = true;
            let delay = process.frozen_until.saturating_sub(now);
            self.agenda.after(delay, Event::WriterWakes(process.life));
        }
    }

    /// One batch, as `State::apply` does it.
    pub(super) fn writer_wakes(&mut self, life: u64) {
        let Some(mut process) = self.controller.take() else { return };
        if process.life == life {
            process.waking = false;
            if process.frozen_until > self.agenda.now() {
                self.controller = Some(process);
                return self.wake_writer();
            }
            self.apply(&mut process);
        }
        self.controller = Some(process);
        self.wake_writer();
    }

    fn apply(&mut self, process: &mut Process) {
        if process.astray {
            self.go_back(process);
        }
        let now = process.now(self.agenda.now(), self.skew);
        let mut changes = Changes::default();
        let mut commit =
            Commit { delta: None, fails: false, told: BTreeSet::new(), answers: Vec::new(), ticked: false };
        for job in std::mem::take(&mut process.queue) {
            match job {
                Job::Tick => {
                    self.feel_the_pulse(&mut process.cluster, now);
                    process.cluster.tick(now, &mut changes);
                    commit.ticked = true;
                }
                Job::Assignment(host) => {
                    if let Some(assignment) = process.cluster.assignment(&self.hosts[host].name) {
                        commit.answers.push((To::Assign(host, Box::new(assignment)), Ok(Reply::Done)));
                    }
                }
                Job::Worker { host, life, call, body, arrived } => {
                    let answer = self.serve_worker(process, host, body, now, arrived, &mut changes);
                    commit.answers.push((To::Worker { host, life, call }, answer));
                }
                Job::Client { call, body } => {
                    let answer = self.serve_client(process, body, now, &mut changes);
                    commit.answers.push((To::Client(call), answer));
                }
            }
        }
        process.cluster.place(now, &mut changes);
        self.check_batch(process, &changes);
        self.steps += 1;
        if process.astray {
            return self.finish(process, commit, false);
        }
        if changes.is_empty() {
            commit.told = changes.assign;
            return self.finish(process, commit, true);
        }
        if planted(Bug::AnswerBeforeCommit) {
            self.answer(std::mem::take(&mut commit.answers), true);
        }
        commit.delta = Some(Delta::of(&process.cluster, &changes, process.published));
        commit.told = changes.assign;
        commit.fails = self.dice.chance(self.health.failing);
        let takes = if self.dice.chance(self.health.slow) {
            self.dice.range(1, self.health.how_slow)
        } else {
            self.dice.range(0, 2)
        };
        process.committing = Some(commit);
        if std::mem::take(&mut self.kill_at_commit) {
            let at = self.dice.range(0, takes);
            self.agenda.after(at, Event::KillController);
        }
        self.agenda.after(takes, Event::Committed(process.life));
    }

    /// What `controller::pulse` tells: the bus does not work, or has not for a moment.
    fn feel_the_pulse(&mut self, cluster: &mut Cluster, now: Now) {
        let at = self.agenda.now();
        if self.bus_cut_until > at || std::mem::take(&mut self.bus_disturbed) {
            self.bus_disturbed = self.bus_cut_until > at;
            self.bus_sound_since = at;
            cluster.bus_lost(now);
        }
    }

    fn serve_worker(
        &mut self,
        process: &mut Process,
        host: usize,
        body: WorkerCall,
        now: Now,
        arrived: Millis,
        changes: &mut Changes,
    ) -> Answer {
        let name = self.hosts[host].name.clone();
        let cluster = &mut process.cluster;
        let answer = match body {
            WorkerCall::Hello(_) if cluster.key_record(&name).is_none() => {
                return Err(ApiError::new(ErrorCode::Unauthenticated, "taken out of the cluster"));
            }
            // Only the first part; the first heartbeat brings all.
            WorkerCall::Hello(hello) => cluster
                .hello(&name, hello, now, changes)
                .map(|assignment| Reply::Welcome(cut_up(assignment).swap_remove(0))),
            WorkerCall::Log(log) => return cluster.log(&name, log, now, changes).map(|()| Reply::Done),
            WorkerCall::Heartbeat(beat) => {
                let ack = cluster.heartbeat(&name, &beat, now, changes);
                ack.map(|ack| Reply::Ack { tell_all: ack.tell_all })
            }
            WorkerCall::Report(report) => {
                let id = crate::model::CopyId { uid: report.uid, attempt: report.attempt };
                let (boot, what) = (report.boot, report.observation.clone());
                let done = cluster.report(&name, report, now, changes).map(|()| Reply::Done);
                self.note(|world| {
                    let so = done.as_ref().map_or_else(|error| format!(" -> {:?}", error.code), |_| String::new());
                    format!("controller hears from {name}: {} boot {boot} {what:?}{so}", world.short(id))
                });
                return done;
            }
        };
        if answer.is_ok() {
            let (at, booted) = (self.agenda.now(), process.booted);
            self.hosts[host].heard_at(arrived, booted, at);
        }
        answer
    }

    fn serve_client(&mut self, process: &mut Process, body: ApiCall, now: Now, changes: &mut Changes) -> Answer {
        let cluster = &mut process.cluster;
        match body {
            ApiCall::Create(request) => {
                self.uids += 1;
                let uid = VmUid(uuid::Uuid::from_u128(u128::from(self.uids)));
                cluster.create_vm(None, *request, uid, now, changes).map(|vm| Reply::Created(Box::new(vm)))
            }
            ApiCall::Update(request) => {
                cluster.update_vm(*request, now, changes).map(|vm| Reply::Created(Box::new(vm)))
            }
            ApiCall::Delete(name) => cluster.delete_vm(&name, now, changes).map(|()| Reply::Done),
            ApiCall::Pause(host, paused) => {
                cluster.set_paused(&self.hosts[host].name, paused, now, changes).map(|()| Reply::Done)
            }
            ApiCall::Drain(host, deadline_s) => {
                cluster.drain_worker(&self.hosts[host].name, deadline_s, now, changes).map(|()| Reply::Done)
            }
            ApiCall::Rejoin(host) => {
                self.uids += 1;
                let id = JoinId::new(self.uids.to_le_bytes());
                let (worker, machine_id) = (self.hosts[host].name.clone(), self.hosts[host].info.machine_id.clone());
                let request = CreateJoinToken { ttl_s: 60, uses: 1, worker: None };
                let made = (id.clone(), SecretHash([0; 32]));
                cluster.create_join_token("root".parse()?, request, made, now, changes)?;
                let join = Join { worker, public_key: format!("key {}", self.uids), machine_id };
                cluster.join(&id, join, now, changes).map(|()| Reply::Done)
            }
            ApiCall::DeleteWorker(host) => {
                cluster.delete_worker(&self.hosts[host].name, true, now, changes).map(|()| Reply::Done)
            }
        }
    }

    pub(super) fn committed(&mut self, life: u64) {
        let Some(mut process) = self.controller.take() else { return };
        let wait = process.frozen_until.saturating_sub(self.agenda.now());
        if process.life == life && wait > 0 {
            self.agenda.after(wait, Event::Committed(life));
        } else if process.life == life
            && let Some(commit) = process.committing.take()
        {
            let stored = !commit.fails;
            self.finish(&mut process, commit, stored);
        }
        self.controller = Some(process);
        self.wake_writer();
    }

    /// After the commit: the disk has it, or memory goes back to what the disk has; then everybody is told.
    fn finish(&mut self, process: &mut Process, mut commit: Commit, stored: bool) {
        if let Some(delta) = commit.delta.take() {
            if stored {
                self.note(|world| world.describe(&delta));
                self.check_commit(&delta);
                self.disk.write(delta);
                self.look_at_orphans();
                self.check_memory(&process.cluster);
                self.publish(process);
            } else {
                self.note(|_| "the commit fails".to_owned());
                self.go_back(process);
            }
        }
        if stored {
            for name in &commit.told {
                let host = self.hosts.iter().position(|host| host.name == *name).unwrap();
                process.queue.push(Job::Assignment(host));
            }
        }
        self.answer(commit.answers, stored);
        if commit.ticked {
            self.agenda.after(TICK, Event::TickDue(process.life));
        }
    }

    fn go_back(&mut self, process: &mut Process) {
        process.astray = true;
        if self.dice.chance(self.health.unreadable) {
            return;
        }
        let now = process.now(self.agenda.now(), self.skew);
        let mut stored = Cluster::load(self.disk.records(), timing(), now);
        stored.keep_liveness_of(&process.cluster);
        process.cluster = stored;
        process.astray = false;
        self.check_memory(&process.cluster);
    }

    fn answer(&mut self, answers: Vec<(To, Answer)>, stored: bool) {
        for (to, answer) in answers {
            let unavailable = || Err(ApiError::new(ErrorCode::Unavailable, "the controller cannot store this"));
            let answer = if stored { answer } else { unavailable() };
            match to {
                To::Worker { host, life, call } => self.send(Message::ToWorker { host, life, call, answer }),
                To::Client(call) => self.send(Message::ToClient { call, answer }),
                To::Assign(..) if answer.is_err() => {}
                To::Assign(host, assignment) => {
                    for part in cut_up(*assignment) {
                        self.send(Message::Assign { host, part });
                    }
                }
            }
        }
    }

    /// What `publisher` does: everything after the last that was noted as published, in order.
    fn publish(&mut self, process: &mut Process) {
        if process.published < self.disk.last_event {
            if process.published > self.subscriber {
                let (from, had) = (process.published + 1, self.subscriber);
                self.violated(format!(
                    "events are published from {from} on, but subscribers have only those up to {had}"
                ));
            }
            process.published = self.disk.last_event;
            self.subscriber = self.subscriber.max(process.published);
        }
    }
}

/// An assignment in one to three parts. Real ones are cut by size, which these never reach, and as there one revision is
/// always cut in the same way.
fn cut_up(whole: Assignment) -> Vec<Assignment> {
    let Assignment { session, revision, copies, mut pulls, .. } = whole;
    let odd = (session.0.as_u128() + u128::from(revision)) % 10;
    let pieces = if odd < 2 { usize::try_from(odd).unwrap() + 2 } else { 1 };
    let size = copies.len().div_ceil(pieces).max(1);
    let mut pieces: Vec<Vec<_>> = copies.chunks(size).map(<[_]>::to_vec).collect();
    if pieces.is_empty() {
        pieces.push(Vec::new());
    }
    let parts = u32::try_from(pieces.len()).unwrap();
    let part =
        |(part, copies)| Assignment { session, revision, copies, pulls: std::mem::take(&mut pulls), part, parts };
    (0..parts).zip(pieces).map(part).collect()
}
