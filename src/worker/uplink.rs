//! What goes up to the controller: for each copy its newest observation, and log lines in order, each until it is
//! acknowledged. Level-triggered: a new session sends every observation again, so a lost one costs only time.
//!
//! That a copy has ended is told after what its script has said: on that word the controller may begin the next boot or
//! another copy, and takes no lines of this one any more.

mod lines;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use self::lines::follows_log;
pub(super) use self::lines::{LogAnswer, LogToCome};
use super::spool::LogKey;
use crate::bus::client::Bus;
use crate::bus::inventory::{self, State};
use crate::bus::message::{Done, Observation, Report};
use crate::bus::subject::{self, WorkerVerb};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::{Boot, CopyId, SessionId, WorkerName};

/// How long one message waits for its acknowledgement before it is sent again.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before sending again what was not acknowledged.
const RETRY: Duration = Duration::from_millis(500);
/// Reports on their way at once.
const IN_FLIGHT: usize = 32;
/// How long log lines wait until it is acknowledged that the VM runs whose they are, so that those who follow its life hear
/// of that first; and how long the end of a copy waits for its log lines, counted in one
/// session: what a spool holds is sent in less.
const LOG_FIRST: Duration = Duration::from_secs(30);
/// How often a worker that ends looks whether all is acknowledged.
const HEARD_LOOK: Duration = Duration::from_millis(20);

/// The session is over: the worker must register again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SessionOver;

/// Shared by all tasks of the worker.
#[derive(Clone, Debug)]
pub(super) struct Uplink {
    bus: Bus,
    worker: WorkerName,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    copies: Mutex<BTreeMap<CopyId, Entry>>,
    changed: Notify,
    /// Signalled whenever `copies` changes.
    copies_changed: watch::Sender<()>,
    session: watch::Sender<Option<SessionId>>,
    found: Mutex<Option<Inventory>>,
    /// Boots of which lines are to be sent still, or may come.
    logs: Mutex<BTreeSet<LogKey>>,
}

/// What the reconciler has found at its last look, by the wishes of one session.
#[derive(Clone, Debug)]
pub(super) struct Inventory {
    /// Of which session.
    pub(super) session: SessionId,
    /// Copies that shall run, here or not.
    pub(super) wished: BTreeSet<CopyId>,
    /// Copies that are here and not wished for.
    pub(super) unwished: BTreeSet<CopyId>,
}

#[derive(Clone, Debug)]
struct Entry {
    boot: Boot,
    observation: Observation,
    acknowledged: bool,
    /// It is acknowledged that this boot runs, or ran.
    ran: bool,
}

impl Uplink {
    pub(super) fn new(bus: Bus, worker: WorkerName) -> Self {
        let (copies, found) = (Mutex::default(), Mutex::default());
        let (changed, session, logs) = (Notify::new(), watch::Sender::new(None), Mutex::default());
        let shared = Shared { copies, changed, copies_changed: watch::Sender::new(()), session, found, logs };
        Self { bus, worker, shared: Arc::new(shared) }
    }

    fn copies(&self) -> MutexGuard<'_, BTreeMap<CopyId, Entry>> {
        self.shared.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells what is the case with a copy as a whole; replaces what was told before.
    pub(super) fn observe(&self, id: CopyId, observation: Observation) {
        self.tell(id, 0, observation);
    }

    /// The same for what concerns one boot of it.
    pub(super) fn tell(&self, id: CopyId, boot: Boot, observation: Observation) {
        let mut copies = self.copies();
        if copies.get(&id).is_none_or(|entry| (entry.boot, &entry.observation) != (boot, &observation)) {
            let ran = copies.get(&id).is_some_and(|entry| entry.boot == boot && entry.ran);
            copies.insert(id, Entry { boot, observation, acknowledged: false, ran });
            drop(copies);
            self.shared.copies_changed.send_replace(());
            self.shared.changed.notify_one();
        }
    }

    /// The session that is being served, as it changes.
    pub(super) fn sessions(&self) -> watch::Receiver<Option<SessionId>> {
        self.shared.session.subscribe()
    }

    /// Notes what the reconciler has found.
    pub(super) fn has_found(&self, found: Inventory) {
        *self.shared.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
    }

    /// Whether the controller has acknowledged, in this session, what is the case with every copy that shall run and with
    /// every one that is here unasked.
    pub(super) fn has_told(&self, session: SessionId) -> bool {
        // Before it is served, acknowledgements are those of an earlier session.
        if *self.shared.session.borrow() != Some(session) {
            return false;
        }
        let found = self.shared.found.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(found) = found.as_ref().filter(|found| found.session == session) else { return false };
        let copies = self.copies();
        let told = |id: &CopyId| copies.get(id).filter(|entry| entry.acknowledged).map(|entry| &entry.observation);
        let is_stray = |observation: &Observation| matches!(observation, Observation::Stray { .. });
        found.wished.iter().all(|id| told(id).is_some_and(|told| !is_stray(told)))
            && found.unwished.iter().all(|id| told(id).is_some_and(is_stray))
    }

    /// What the controller has acknowledged of the copies that shall run, in short; none while there is anything that it has not.
    pub(super) fn digest(&self, session: SessionId) -> Option<u64> {
        if !self.has_told(session) {
            return None;
        }
        let found = self.shared.found.lock().unwrap_or_else(PoisonError::into_inner);
        let copies = self.copies();
        let mut digest = inventory::Inventory::default();
        for id in found.as_ref().map(|found| found.wished.iter()).into_iter().flatten() {
            let Some(entry) = copies.get(id) else { continue };
            let state = match entry.observation {
                Observation::Preparing { .. } => State::Coming,
                Observation::Running { .. } => State::Running,
                Observation::Failed { .. } | Observation::Stopped { .. } | Observation::Fenced { .. } => State::Ended,
                Observation::Absent | Observation::Stray { .. } => State::Ended,
            };
            digest.add(*id, entry.boot, state);
        }
        Some(digest.digest())
    }

    /// Tells everything again: the controller knows something else than it acknowledged.
    pub(super) fn tell_all(&self) {
        self.copies().values_mut().for_each(|entry| entry.acknowledged = false);
        self.shared.changed.notify_one();
    }

    /// Waits until the controller has acknowledged everything, or can acknowledge nothing as no session is open.
    pub(super) async fn all_heard(&self) {
        let is_open = || self.shared.session.borrow().is_some();
        while is_open() && self.copies().values().any(|entry| !entry.acknowledged) {
            tokio::time::sleep(HEARD_LOOK).await;
        }
    }

    /// Says nothing more about a copy.
    pub(super) fn forget(&self, id: CopyId) {
        self.copies().remove(&id);
    }

    /// How many copies are in which state, as it is told; each state is there.
    pub(super) fn states(&self) -> BTreeMap<&'static str, u64> {
        let mut states: BTreeMap<_, _> =
            ["preparing", "running", "stopped", "failed", "stray"].map(|name| (name, 0)).into();
        for entry in self.copies().values() {
            let state = match entry.observation {
                Observation::Preparing { .. } => "preparing",
                Observation::Running { .. } => "running",
                Observation::Stopped { .. } => "stopped",
                Observation::Failed { .. } | Observation::Fenced { .. } => "failed",
                Observation::Stray { .. } => "stray",
                Observation::Absent => continue,
            };
            *states.entry(state).or_default() += 1;
        }
        states
    }

    /// Whether what is told of a copy means that nothing of it runs or is being made.
    pub(super) fn rests(&self, id: CopyId) -> bool {
        self.copies().get(&id).is_some_and(|entry| match entry.observation {
            Observation::Failed { .. } | Observation::Stopped { .. } => true,
            Observation::Fenced { .. } | Observation::Absent => true,
            Observation::Preparing { .. } | Observation::Running { .. } | Observation::Stray { .. } => false,
        })
    }

    /// One whose controller never answers.
    #[cfg(test)]
    pub(super) async fn unheard() -> Self {
        let options = crate::bus::client::BusOptions {
            url: "nats://127.0.0.1:1".into(),
            user: "worker/w".into(),
            trust: crate::bus::client::Trust::Plain,
            login: crate::bus::client::Login::Password(crate::model::secret::Secret::new("x")),
            client_name: "test".into(),
            patient: true,
        };
        Self::new(Bus::connect(options).await.unwrap(), "w".parse().unwrap())
    }

    /// What is told of a copy at present.
    #[cfg(test)]
    pub(super) fn told(&self, id: CopyId) -> Option<Observation> {
        self.copies().get(&id).map(|entry| entry.observation.clone())
    }

    /// Whether this is what is told of a copy at present.
    #[cfg(test)]
    pub(super) fn tells(&self, id: CopyId, observation: &Observation) -> bool {
        self.copies().get(&id).is_some_and(|entry| entry.observation == *observation)
    }

    /// Opens `session` and sends reports in it until it is over; everything is sent again at its start.
    pub(super) async fn serve(&self, session: SessionId) -> SessionOver {
        self.copies().values_mut().for_each(|entry| entry.acknowledged = false);
        self.shared.session.send_replace(Some(session));
        let _closed = Closed(&self.shared.session);
        let mut sending = FuturesUnordered::new();
        let mut busy = BTreeSet::new();
        let mut waiting = BTreeMap::new();
        loop {
            let due = self.due(&busy, &mut waiting);
            for (id, boot, observation) in due {
                busy.insert(id);
                sending.push(self.send_report(session, (id, boot), observation));
            }
            let later = waiting.iter().filter(|(id, _)| !busy.contains(*id) && busy.len() < IN_FLIGHT);
            let until = later.map(|(_, until)| *until).min();
            // Cancel safe: a report that is dropped on the way is still unacknowledged and sent again.
            tokio::select! {
                Some((id, outcome)) = sending.next() => {
                    busy.remove(&id);
                    if let Err(over) = outcome {
                        return over;
                    }
                }
                () = self.shared.changed.notified() => {}
                () = tokio::time::sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {}
            }
        }
    }

    /// What to send now. Of copies that have ended, but whose lines are not all told, `waiting` says until when they wait.
    fn due(
        &self,
        busy: &BTreeSet<CopyId>,
        waiting: &mut BTreeMap<CopyId, Instant>,
    ) -> Vec<(CopyId, Boot, Observation)> {
        let (logs, copies, now) = (self.logs().clone(), self.copies(), Instant::now());
        let waits = |id: CopyId, entry: &Entry| {
            !entry.acknowledged && follows_log(&entry.observation) && logs.contains(&(id, entry.boot))
        };
        waiting.retain(|id, _| copies.get(id).is_some_and(|entry| waits(*id, entry)));
        let mut ready =
            |id: CopyId, entry: &Entry| !waits(id, entry) || *waiting.entry(id).or_insert(now + LOG_FIRST) <= now;
        let unsent = copies.iter().filter(|(id, entry)| !entry.acknowledged && !busy.contains(*id));
        let due = unsent.filter(|(id, entry)| ready(**id, entry)).take(IN_FLIGHT.saturating_sub(busy.len()));
        due.map(|(id, entry)| (*id, entry.boot, entry.observation.clone())).collect()
    }

    async fn send_report(
        &self,
        session: SessionId,
        (id, boot): (CopyId, Boot),
        observation: Observation,
    ) -> (CopyId, Result<(), SessionOver>) {
        let report = Report { session, uid: id.uid, attempt: id.attempt, boot, observation };
        let sent = self.request(WorkerVerb::Report, &report).await;
        match sent {
            Ok(Done {}) => self.settle(id, boot, &report.observation),
            Err(error) if error.code == ErrorCode::Unauthenticated => return (id, Err(SessionOver)),
            Err(error) if is_final(error.code) => {
                tracing::debug!("report of {id} is not wanted: {error}");
                self.settle(id, boot, &report.observation);
            }
            Err(error) => {
                tracing::debug!("report of {id} not acknowledged: {error}");
                tokio::time::sleep(RETRY).await;
            }
        }
        (id, Ok(()))
    }

    /// Notes that the controller has `observation`, unless there is a newer one by now. What is gone is forgotten: were
    /// it kept, every VM of a worker's life would be told of again in each session.
    fn settle(&self, id: CopyId, boot: Boot, observation: &Observation) {
        let mut copies = self.copies();
        let Some(entry) = copies.get_mut(&id) else { return };
        if entry.boot == boot && matches!(observation, Observation::Running { .. }) {
            entry.ran = true;
            self.shared.copies_changed.send_replace(());
        }
        if (entry.boot, &entry.observation) != (boot, observation) {
            return;
        }
        entry.acknowledged = true;
        if *observation == Observation::Absent {
            copies.remove(&id);
        }
    }

    async fn request<Q: serde::Serialize>(&self, verb: WorkerVerb, message: &Q) -> Result<Done, ApiError> {
        self.bus.request(subject::worker(&self.worker, verb), message, ACK_TIMEOUT).await
    }
}

/// Whether sending the same again can never help. A stale report is not right later, and the next assignment tells what
/// to do with the copy; one that an older controller cannot read must not take the place of those it can.
fn is_final(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Conflict | ErrorCode::Invalid | ErrorCode::LimitExceeded | ErrorCode::UnknownVerb)
}

/// Marks the session as closed when the task that served it ends, however it ends.
struct Closed<'a>(&'a watch::Sender<Option<SessionId>>);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.send_replace(None);
    }
}

#[cfg(test)]
mod tests;
