//! What goes up to the controller: for each copy its newest observation, and log lines in order, each until it is
//! acknowledged. Level-triggered: a new session sends every observation again, so a lost one costs only time.
//!
//! That a copy has ended is told after what its script has said: on that word the controller may begin the next boot or
//! another copy, and takes no lines of this one any more.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::spool::{Batch, LogKey};
use crate::bus::client::Bus;
use crate::bus::inventory::{self, State};
use crate::bus::message::{Done, LogLines, Observation, Report};
use crate::bus::subject::{self, WorkerVerb};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::{Boot, CopyId, SessionId, WorkerName};

/// How long one message waits for its acknowledgement before it is sent again.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before sending again what was not acknowledged.
const RETRY: Duration = Duration::from_millis(500);
/// Reports on their way at once.
const IN_FLIGHT: usize = 32;
/// How long the end of a copy waits for its log lines, counted in one session: what a spool holds is sent in less.
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
}

impl Uplink {
    pub(super) fn new(bus: Bus, worker: WorkerName) -> Self {
        let (copies, found) = (Mutex::default(), Mutex::default());
        let (changed, session, logs) = (Notify::new(), watch::Sender::new(None), Mutex::default());
        let shared = Shared { copies, changed, session, found, logs };
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
            copies.insert(id, Entry { boot, observation, acknowledged: false });
            drop(copies);
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

    fn logs(&self) -> MutexGuard<'_, BTreeSet<LogKey>> {
        self.shared.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There are, or will be, lines of this boot to send, until what is returned is dropped.
    pub(super) fn log_to_come(&self, key: LogKey) -> LogToCome {
        self.logs().insert(key);
        LogToCome { uplink: self.clone(), key }
    }

    /// Sends lines until they are acknowledged, or not wanted. Cancel safe: what was not acknowledged can be sent again.
    pub(super) async fn send_log(&self, (id, boot): LogKey, batch: &Batch) -> LogAnswer {
        let mut session = self.shared.session.subscribe();
        loop {
            let current = match session.wait_for(Option::is_some).await.map(|session| *session) {
                Ok(Some(current)) => current,
                Ok(None) => continue,
                // The worker ends.
                Err(_) => std::future::pending().await,
            };
            let (first, lines) = (batch.first, batch.lines.clone());
            let message = LogLines { session: current, uid: id.uid, attempt: id.attempt, boot, first, lines };
            match self.request(WorkerVerb::Log, &message).await {
                Ok(Done {}) => return LogAnswer::Taken,
                Err(error) if is_final(error.code) => {
                    tracing::debug!("log of {id} is not wanted: {error}");
                    return LogAnswer::Unwanted;
                }
                Err(error) => {
                    tracing::debug!("log of {id} not acknowledged: {error}");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }
}

/// What the controller says of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LogAnswer {
    /// It has them.
    Taken,
    /// It wants none of this boot any more.
    Unwanted,
}

/// Lines of a boot are on their way.
#[derive(Debug)]
pub(super) struct LogToCome {
    uplink: Uplink,
    key: LogKey,
}

impl Drop for LogToCome {
    fn drop(&mut self) {
        self.uplink.logs().remove(&self.key);
        self.uplink.shared.changed.notify_one();
    }
}

/// Whether this is told only after all lines of the boot that it is about. Not that it was fenced, which others wait for.
fn follows_log(observation: &Observation) -> bool {
    match observation {
        Observation::Failed { .. } | Observation::Stopped { .. } => true,
        Observation::Preparing { .. } | Observation::Running { .. } => false,
        Observation::Fenced { .. } | Observation::Absent | Observation::Stray { .. } => false,
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
mod tests {
    use super::*;
    use crate::model::VmUid;

    #[tokio::test]
    async fn a_copy_that_is_gone_is_forgotten_once_the_controller_knows() {
        let uplink = Uplink::unheard().await;
        let id = CopyId { uid: VmUid(uuid::Uuid::nil()), attempt: 0 };
        let preparing = Observation::Preparing { message: "x".into() };
        uplink.observe(id, preparing.clone());
        uplink.observe(id, Observation::Absent);
        uplink.settle(id, 0, &preparing);
        assert!(uplink.tells(id, &Observation::Absent), "only an older observation was acknowledged");
        uplink.settle(id, 0, &Observation::Absent);
        assert!(uplink.copies().is_empty());
    }

    #[tokio::test]
    async fn all_is_told_once_every_copy_was_acknowledged_in_this_session() {
        let uplink = Uplink::unheard().await;
        let copy = |n| CopyId { uid: VmUid(uuid::Uuid::from_u128(n)), attempt: 0 };
        let (now, before) = (SessionId(uuid::Uuid::from_u128(1)), SessionId(uuid::Uuid::nil()));
        let stray = Observation::Stray { name: "a".into(), running: Some(true) };
        let preparing = Observation::Preparing { message: "x".into() };
        let (wished, unwished) = ([copy(1)].into(), [copy(2)].into());
        uplink.has_found(Inventory { session: now, wished, unwished });
        uplink.observe(copy(1), preparing.clone());
        uplink.observe(copy(2), preparing.clone());
        uplink.settle(copy(1), 0, &preparing);
        uplink.settle(copy(2), 0, &preparing);
        assert!(!uplink.has_told(now), "nothing is served");
        uplink.shared.session.send_replace(Some(now));
        assert!(!uplink.has_told(now), "that it is a stray is still to come");
        uplink.observe(copy(2), stray.clone());
        assert!(!uplink.has_told(now), "nobody has acknowledged it");
        assert_eq!(uplink.digest(now), None);
        uplink.settle(copy(2), 0, &stray);
        assert!(uplink.has_told(now));
        let mut digest = inventory::Inventory::default();
        digest.add(copy(1), 0, State::Coming);
        assert_eq!(uplink.digest(now), Some(digest.digest()), "what nobody wishes for is left out");
        uplink.tell_all();
        assert!(!uplink.has_told(now), "it is to be told again");
        uplink.settle(copy(1), 0, &preparing);
        uplink.settle(copy(2), 0, &stray);
        uplink.shared.session.send_replace(Some(before));
        assert!(!uplink.has_told(before), "by the wishes of another session");
    }

    #[tokio::test(start_paused = true)]
    async fn that_a_copy_has_ended_is_told_after_what_it_said_but_not_never() {
        let uplink = Uplink::unheard().await;
        let copy = |n| CopyId { uid: VmUid(uuid::Uuid::from_u128(n)), attempt: 0 };
        let failed = || Observation::Failed { message: "x".into(), disk: true, halted: false };
        let logs = [uplink.log_to_come((copy(1), 4)), uplink.log_to_come((copy(2), 3))];
        for n in [1, 2] {
            uplink.tell(copy(n), 4, failed());
        }
        let mut waiting = BTreeMap::new();
        let mut due =
            || -> Vec<CopyId> { uplink.due(&BTreeSet::new(), &mut waiting).into_iter().map(|(id, ..)| id).collect() };
        assert_eq!(due(), [copy(2)], "lines of another boot are no reason to wait");
        tokio::time::advance(LOG_FIRST).await;
        assert_eq!(due(), [copy(1), copy(2)]);
        uplink.tell(copy(1), 4, Observation::Fenced { message: "x".into() });
        assert_eq!(due(), [copy(1), copy(2)]);
        uplink.tell(copy(1), 4, failed());
        assert_eq!(due(), [copy(2)]);
        drop(logs);
        assert_eq!(due(), [copy(1), copy(2)]);
        assert!(waiting.is_empty(), "nobody waits any more");
    }

    #[test]
    fn what_an_older_controller_cannot_read_is_not_sent_for_ever() {
        assert!(is_final(ErrorCode::Invalid) && is_final(ErrorCode::Conflict));
        for code in [ErrorCode::Unavailable, ErrorCode::Timeout, ErrorCode::Internal, ErrorCode::Unauthenticated] {
            assert!(!is_final(code), "{code:?}");
        }
    }
}
