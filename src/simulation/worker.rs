//! The worker's process towards the controller, as `worker::{session,uplink}` do it: registers, renews its lease, takes
//! assignments, and tells the newest of each copy until that is acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use super::bus::{Answer, Call, Message, Reply, WorkerCall};
use super::clock::Millis;
use super::fleet::Task;
use super::script::Carry;
use super::world::{Event, World};
use crate::bus::inventory::{self, State};
use crate::bus::message::{Assignment, Heartbeat, Hello, Observation, Report};
use crate::bus::parts::Collector;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::{Boot, CopyId, SessionId};

/// As in `worker::session` and `worker::uplink`.
const HELLO_TIMEOUT: Millis = 10_000;
const HELLO_PAUSE: (Millis, Millis) = (250, 5_000);
const GOOD_SESSION: Millis = 30_000;
const HEARTBEAT: Millis = 3_000;
const ACK_TIMEOUT: Millis = 10_000;
const RETRY: Millis = 500;
const IN_FLIGHT: usize = 32;

/// One life of the worker's process.
pub(super) struct Process {
    pub(super) life: u64,
    phase: Phase,
    pause: Millis,
    /// When the session's registration began.
    began: Millis,
    collector: Collector,
    /// Parts that came before the answer to the hello: the subscription is older than that.
    early: Vec<Assignment>,
    pub(super) assignment: Option<Assignment>,
    /// When that was taken.
    pub(super) assigned_at: Millis,
    beat: Option<(Call, Millis)>,
    told: BTreeMap<CopyId, Told>,
    pub(super) carries: BTreeMap<CopyId, Carry>,
    pub(super) tasks: BTreeMap<CopyId, Task>,
    pub(super) found: Option<Inventory>,
    /// A look at the host is due.
    pub(super) looking: bool,
}

/// As `worker::uplink::Inventory`.
pub(super) struct Inventory {
    pub(super) session: SessionId,
    pub(super) wished: BTreeSet<CopyId>,
    pub(super) unwished: BTreeSet<CopyId>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Pausing,
    Greeting(Call, SessionId),
    Open(SessionId),
}

struct Told {
    boot: Boot,
    observation: Observation,
    acknowledged: bool,
    /// On its way, or paused after a failure; and what was sent.
    busy: Option<(Call, Boot, Observation)>,
}

/// What a worker's process waits for.
#[derive(Clone, Debug)]
pub(super) enum Alarm {
    Greet,
    HelloTimeout(Call),
    Beat(SessionId),
    BeatTimeout(Call),
    ReportTimeout(CopyId, Call),
    ReportAgain(CopyId, Call),
    Look,
    Period,
    Step(CopyId, u64),
    GuestReady(CopyId, u64),
    GuestGone(CopyId, u64),
    LogTimeout(CopyId, Call),
    LogAgain(CopyId, Call),
}

impl Process {
    pub(super) fn new(life: u64) -> Self {
        Self {
            life,
            phase: Phase::Pausing,
            pause: HELLO_PAUSE.0,
            began: 0,
            collector: Collector::default(),
            early: Vec::new(),
            assignment: None,
            assigned_at: 0,
            beat: None,
            told: BTreeMap::new(),
            carries: BTreeMap::new(),
            tasks: BTreeMap::new(),
            found: None,
            looking: false,
        }
    }

    pub(super) fn session(&self) -> Option<SessionId> {
        if let Phase::Open(session) = self.phase { Some(session) } else { None }
    }

    /// As `Uplink::has_told`.
    fn has_told(&self, session: SessionId) -> bool {
        let Some(found) = self.found.as_ref().filter(|found| found.session == session) else { return false };
        let told = |id: &CopyId| self.told.get(id).filter(|told| told.acknowledged).map(|told| &told.observation);
        let is_stray = |observation: &Observation| matches!(observation, Observation::Stray { .. });
        found.wished.iter().all(|id| told(id).is_some_and(|told| !is_stray(told)))
            && found.unwished.iter().all(|id| told(id).is_some_and(is_stray))
    }

    /// As `Uplink::digest`.
    pub(super) fn digest(&self, session: SessionId) -> Option<u64> {
        let found = self.found.as_ref().filter(|_| self.has_told(session))?;
        let mut digest = inventory::Inventory::default();
        for (id, told) in found.wished.iter().filter_map(|id| Some((id, self.told.get(id)?))) {
            let state = match told.observation {
                Observation::Preparing { .. } => State::Coming,
                Observation::Running { .. } => State::Running,
                _ => State::Ended,
            };
            digest.add(*id, told.boot, state);
        }
        Some(digest.digest())
    }

    /// As `session::held_revision`.
    pub(super) fn held_revision(&self, session: SessionId) -> u64 {
        self.assignment.as_ref().filter(|held| held.session == session).map_or(0, |held| held.revision)
    }
}

impl World {
    pub(super) fn alarm(&mut self, host: usize, delay: Millis, alarm: Alarm) {
        if let Some(process) = &self.hosts[host].process {
            self.agenda.after(delay, Event::Alarm { host, life: process.life, alarm });
        }
    }

    pub(super) fn ask_controller(&mut self, host: usize, body: WorkerCall) -> Call {
        self.calls += 1;
        let (call, life) = (self.calls, self.hosts[host].process.as_ref().unwrap().life);
        self.send(Message::FromWorker { host, life, call, body });
        call
    }

    pub(super) fn rings(&mut self, host: usize, life: u64, alarm: Alarm) {
        let Some(process) = self.hosts[host].process.as_mut().filter(|process| process.life == life) else { return };
        match alarm {
            Alarm::Greet if process.phase == Phase::Pausing => self.greet(host),
            Alarm::HelloTimeout(call) => self.hello_failed(host, call),
            Alarm::Beat(session) if process.session() == Some(session) => {
                let (revision, told) = (process.held_revision(session), Some(process.has_told(session)));
                let digest = process.digest(session);
                let body = WorkerCall::Heartbeat(Heartbeat { session, revision, told, load: None, digest });
                let call = self.ask_controller(host, body);
                let now = self.agenda.now();
                self.hosts[host].process.as_mut().unwrap().beat = Some((call, now));
                self.alarm(host, 2 * HEARTBEAT, Alarm::BeatTimeout(call));
            }
            Alarm::BeatTimeout(call) => self.beat_over(host, call),
            Alarm::ReportTimeout(id, call) => {
                let waits = |told: &&mut Told| told.busy.as_ref().is_some_and(|(sent, ..)| *sent == call);
                if process.told.get_mut(&id).filter(waits).is_some() {
                    self.alarm(host, RETRY, Alarm::ReportAgain(id, call));
                }
            }
            Alarm::ReportAgain(id, call) => {
                if let Some(told) = process.told.get_mut(&id)
                    && told.busy.as_ref().is_some_and(|(sent, ..)| *sent == call)
                {
                    told.busy = None;
                }
                self.send_reports(host);
            }
            Alarm::Look => self.look(host),
            Alarm::Period => {
                self.look_soon(host);
                self.alarm(host, super::fleet::PERIOD, Alarm::Period);
            }
            Alarm::Step(id, number) => self.step_done(host, id, number),
            Alarm::GuestReady(id, number) => self.guest_ready(host, id, number),
            Alarm::LogTimeout(id, call) => self.log_timeout(host, id, call),
            Alarm::LogAgain(id, call) => self.log_again(host, id, call),
            Alarm::GuestGone(id, number) => self.guest_gone(host, id, number),
            Alarm::Greet | Alarm::Beat(_) => {}
        }
    }

    /// A session has a new id at each registration.
    fn greet(&mut self, host: usize) {
        self.uids += 1;
        let session = SessionId(uuid::Uuid::from_u128(u128::from(self.uids)));
        let info = self.hosts[host].info.clone();
        let place = format!("a place on {}", info.name);
        let hello = Hello { session, place, info, delete_unknown_s: None };
        let (call, now) = (self.ask_controller(host, WorkerCall::Hello(hello)), self.agenda.now());
        let process = self.hosts[host].process.as_mut().unwrap();
        process.phase = Phase::Greeting(call, session);
        process.began = now;
        process.collector = Collector::default();
        process.early.clear();
        self.alarm(host, HELLO_TIMEOUT, Alarm::HelloTimeout(call));
    }

    fn hello_failed(&mut self, host: usize, call: Call) {
        let process = self.hosts[host].process.as_mut().unwrap();
        if matches!(process.phase, Phase::Greeting(sent, _) if sent == call) {
            process.phase = Phase::Pausing;
            let pause = process.pause;
            process.pause = (pause * 2).min(HELLO_PAUSE.1);
            self.alarm(host, pause, Alarm::Greet);
        }
    }

    pub(super) fn worker_hears(&mut self, host: usize, life: u64, call: Call, answer: Answer) {
        let Some(process) = self.hosts[host].process.as_mut().filter(|process| process.life == life) else { return };
        match (process.phase, &answer) {
            (Phase::Greeting(sent, session), Ok(Reply::Welcome(_))) if sent == call => {
                let Ok(Reply::Welcome(first)) = answer else { return };
                return self.welcomed(host, session, first);
            }
            (Phase::Greeting(sent, _), Err(_)) if sent == call => return self.hello_failed(host, call),
            _ => {}
        }
        let over = matches!(&answer, Err(error) if error.code == ErrorCode::Unauthenticated);
        if process.beat.is_some_and(|(sent, _)| sent == call) {
            let (sent, session) = (process.beat.map_or(0, |(_, sent)| sent), process.session());
            let renewed =
                |world: &mut Self| session.is_none_or(|session| world.renew_lease(host, session, sent, false));
            if over || answer.is_ok() && !renewed(self) {
                self.session_over(host)
            } else {
                if matches!(answer, Ok(Reply::Ack { tell_all: true })) {
                    self.tell_all(host);
                }
                self.beat_over(host, call)
            }
            return;
        }
        let sent = |(id, told): (&CopyId, &Told)| {
            told.busy.as_ref().filter(|(sent, ..)| *sent == call).map(|(_, boot, what)| (*id, *boot, what.clone()))
        };
        let Some((id, boot, observation)) = process.told.iter().find_map(sent) else {
            return self.log_answered(host, call, &answer);
        };
        if over {
            return self.session_over(host);
        }
        match answer {
            Err(error) if !is_final(&error) => self.alarm(host, RETRY, Alarm::ReportAgain(id, call)),
            _ => {
                settle(&mut process.told, id, boot, &observation);
                self.send_reports(host);
            }
        }
    }

    /// As `Uplink::tell_all`.
    fn tell_all(&mut self, host: usize) {
        self.note(|world| format!("{} tells all again", world.hosts[host].name));
        let process = self.hosts[host].process.as_mut().unwrap();
        process.told.values_mut().for_each(|told| told.acknowledged = false);
        self.send_reports(host);
    }

    fn welcomed(&mut self, host: usize, session: SessionId, first: Assignment) {
        self.note(|world| format!("{} is registered", world.hosts[host].name));
        let (now, sent) = (self.agenda.now(), self.hosts[host].process.as_ref().unwrap().began);
        let _ = self.renew_lease(host, session, sent, true);
        let process = self.hosts[host].process.as_mut().unwrap();
        process.phase = Phase::Open(session);
        process.beat = None;
        if let Some(whole) = process.collector.add(first) {
            (process.assignment, process.assigned_at) = (Some(whole), now);
        }
        process.told.values_mut().for_each(|told| (told.acknowledged, told.busy) = (false, None));
        for part in std::mem::take(&mut process.early) {
            self.take(host, session, part);
        }
        self.look_soon(host);
        self.alarm(host, 0, Alarm::Beat(session));
        let waiting: Vec<CopyId> = self.hosts[host].process.as_ref().unwrap().carries.keys().copied().collect();
        waiting.into_iter().for_each(|id| self.carry(host, id));
        self.send_reports(host);
    }

    fn session_over(&mut self, host: usize) {
        self.note(|world| format!("{}: session over", world.hosts[host].name));
        let now = self.agenda.now();
        let process = self.hosts[host].process.as_mut().unwrap();
        process.phase = Phase::Pausing;
        process.beat = None;
        process.told.values_mut().for_each(|told| told.busy = None);
        if now - process.began >= GOOD_SESSION {
            process.pause = HELLO_PAUSE.0;
            return self.greet(host);
        }
        let pause = process.pause;
        process.pause = (pause * 2).min(HELLO_PAUSE.1);
        self.alarm(host, pause, Alarm::Greet);
    }

    /// A heartbeat was answered, or never will be.
    fn beat_over(&mut self, host: usize, call: Call) {
        let now = self.agenda.now();
        let process = self.hosts[host].process.as_mut().unwrap();
        let (Some((_, sent_at)), Some(session)) = (process.beat.filter(|(sent, _)| *sent == call), process.session())
        else {
            return;
        };
        process.beat = None;
        self.alarm(host, (sent_at + HEARTBEAT).saturating_sub(now), Alarm::Beat(session));
    }

    pub(super) fn worker_assigned(&mut self, host: usize, part: Assignment) {
        let Some(process) = &mut self.hosts[host].process else { return };
        match process.phase {
            Phase::Open(session) => self.take(host, session, part),
            Phase::Greeting(_, session) if part.session == session => process.early.push(part),
            _ => {}
        }
    }

    /// Takes an assignment unless it is of another session or older than the one in force.
    fn take(&mut self, host: usize, session: SessionId, part: Assignment) {
        if part.session != session {
            return;
        }
        let now = self.agenda.now();
        let process = self.hosts[host].process.as_mut().unwrap();
        let Some(whole) = process.collector.add(part) else { return };
        if process.held_revision(session) < whole.revision {
            (process.assignment, process.assigned_at) = (Some(whole), now);
            self.look_soon(host);
        }
    }

    /// Tells what is the case with a copy; replaces what was told before.
    pub(super) fn observe(&mut self, host: usize, id: CopyId, boot: Boot, observation: Observation) {
        if matches!(observation, Observation::Failed { .. } | Observation::Fenced { .. }) {
            let fenced = matches!(observation, Observation::Fenced { .. });
            self.check_failure(host, id, boot, fenced);
        }
        let told = &mut self.hosts[host].process.as_mut().unwrap().told;
        match told.get_mut(&id) {
            Some(told) if told.observation == observation && told.boot == boot => return,
            Some(told) => (told.boot, told.observation, told.acknowledged) = (boot, observation, false),
            None => drop(told.insert(id, Told { boot, observation, acknowledged: false, busy: None })),
        }
        self.send_reports(host);
    }

    /// The boot of a copy of which is told that it was fenced.
    pub(super) fn told_fenced(&self, host: usize, id: CopyId) -> Option<Boot> {
        let told = self.hosts[host].process.as_ref()?.told.get(&id)?;
        matches!(told.observation, Observation::Fenced { .. }).then_some(told.boot)
    }

    /// What is told of a copy at present.
    pub(super) fn told(&self, host: usize, id: CopyId) -> Option<Observation> {
        self.hosts[host].process.as_ref()?.told.get(&id).map(|told| told.observation.clone())
    }

    pub(super) fn forget(&mut self, host: usize, id: CopyId) {
        self.hosts[host].process.as_mut().unwrap().told.remove(&id);
    }

    fn send_reports(&mut self, host: usize) {
        let process = self.hosts[host].process.as_ref().unwrap();
        let Some(session) = process.session() else { return };
        let busy = process.told.values().filter(|told| told.busy.is_some()).count();
        let due: Vec<(CopyId, Boot, Observation)> = process
            .told
            .iter()
            .filter(|(_, told)| !told.acknowledged && told.busy.is_none())
            .take(IN_FLIGHT.saturating_sub(busy))
            .map(|(id, told)| (*id, told.boot, told.observation.clone()))
            .collect();
        for (id, boot, observation) in due {
            let report = Report { session, uid: id.uid, attempt: id.attempt, boot, observation: observation.clone() };
            let call = self.ask_controller(host, WorkerCall::Report(report));
            let told = &mut self.hosts[host].process.as_mut().unwrap().told;
            told.get_mut(&id).unwrap().busy = Some((call, boot, observation));
            self.alarm(host, ACK_TIMEOUT, Alarm::ReportTimeout(id, call));
        }
    }
}

/// As `Uplink::settle`.
fn settle(told: &mut BTreeMap<CopyId, Told>, id: CopyId, boot: Boot, observation: &Observation) {
    let Some(entry) = told.get_mut(&id) else { return };
    entry.busy = None;
    if (entry.boot, &entry.observation) == (boot, observation) {
        entry.acknowledged = true;
        if *observation == Observation::Absent {
            told.remove(&id);
        }
    }
}

/// As `uplink::is_final`.
pub(super) fn is_final(error: &ApiError) -> bool {
    use ErrorCode::{Conflict, Invalid, LimitExceeded, UnknownVerb};
    matches!(error.code, Conflict | Invalid | LimitExceeded | UnknownVerb)
}
