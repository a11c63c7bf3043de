//! What goes up to the controller: for each copy its newest observation, and log lines in order, each until it is
//! acknowledged. Level-triggered: a new session sends every observation again, so a lost one costs only time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, mpsc, watch};

use crate::bus::client::Bus;
use crate::bus::message::{Done, LogLine, LogLines, MAX_LOG_BATCH, Observation, Report};
use crate::bus::subject::{self, WorkerVerb};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::event::LogStream;
use crate::model::{CopyId, SessionId, WorkerName};

/// How long one message waits for its acknowledgement before it is sent again.
const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before sending again what was not acknowledged.
const RETRY: Duration = Duration::from_millis(500);
/// Reports on their way at once.
const IN_FLIGHT: usize = 32;
/// Lines waiting to be sent for one copy; a full queue holds the script back.
const LOG_QUEUE: usize = 1_024;

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
}

#[derive(Clone, Debug)]
struct Entry {
    observation: Observation,
    acknowledged: bool,
}

impl Uplink {
    pub(super) fn new(bus: Bus, worker: WorkerName) -> Self {
        let shared = Shared { copies: Mutex::default(), changed: Notify::new(), session: watch::Sender::new(None) };
        Self { bus, worker, shared: Arc::new(shared) }
    }

    fn copies(&self) -> MutexGuard<'_, BTreeMap<CopyId, Entry>> {
        self.shared.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells what is the case with a copy; replaces what was told before.
    pub(super) fn observe(&self, id: CopyId, observation: Observation) {
        let mut copies = self.copies();
        if copies.get(&id).is_none_or(|entry| entry.observation != observation) {
            copies.insert(id, Entry { observation, acknowledged: false });
            drop(copies);
            self.shared.changed.notify_one();
        }
    }

    /// Says nothing more about a copy.
    pub(super) fn forget(&self, id: CopyId) {
        self.copies().remove(&id);
    }

    /// Opens `session` and sends reports in it until it is over; everything is sent again at its start.
    pub(super) async fn serve(&self, session: SessionId) -> SessionOver {
        self.copies().values_mut().for_each(|entry| entry.acknowledged = false);
        self.shared.session.send_replace(Some(session));
        let _closed = Closed(&self.shared.session);
        let mut sending = FuturesUnordered::new();
        let mut busy = std::collections::BTreeSet::new();
        loop {
            let due: Vec<(CopyId, Observation)> = self
                .copies()
                .iter()
                .filter(|(id, entry)| !entry.acknowledged && !busy.contains(*id))
                .take(IN_FLIGHT.saturating_sub(busy.len()))
                .map(|(id, entry)| (*id, entry.observation.clone()))
                .collect();
            for (id, observation) in due {
                busy.insert(id);
                sending.push(self.send_report(session, id, observation));
            }
            // Cancel safe: a report that is dropped on the way is still unacknowledged and sent again.
            tokio::select! {
                Some((id, outcome)) = sending.next() => {
                    busy.remove(&id);
                    if let Err(over) = outcome {
                        return over;
                    }
                }
                () = self.shared.changed.notified() => {}
            }
        }
    }

    async fn send_report(
        &self,
        session: SessionId,
        id: CopyId,
        observation: Observation,
    ) -> (CopyId, Result<(), SessionOver>) {
        let report = Report { session, uid: id.uid, attempt: id.attempt, observation };
        let sent = self.request(WorkerVerb::Report, &report).await;
        let outcome = match sent {
            // A stale report is never right later: the next assignment tells what to do with the copy.
            Ok(Done {}) => Ok(()),
            Err(error) if error.code == ErrorCode::Conflict => Ok(()),
            Err(error) if error.code == ErrorCode::Unauthenticated => Err(SessionOver),
            Err(error) => {
                tracing::debug!("report of {id} not acknowledged: {error}");
                tokio::time::sleep(RETRY).await;
                return (id, Ok(()));
            }
        };
        if outcome.is_ok() {
            let mut copies = self.copies();
            if let Some(entry) = copies.get_mut(&id).filter(|entry| entry.observation == report.observation) {
                entry.acknowledged = true;
            }
        }
        (id, outcome)
    }

    async fn request<Q: serde::Serialize>(&self, verb: WorkerVerb, message: &Q) -> Result<Done, ApiError> {
        self.bus.request(subject::worker(&self.worker, verb), message, ACK_TIMEOUT).await
    }

    /// The way for a copy's log lines, and the work that carries them up; it ends when all senders are gone and all
    /// lines acknowledged, or when the controller does not want them any more.
    pub(super) fn log(
        &self,
        id: CopyId,
    ) -> (mpsc::Sender<(LogStream, String)>, impl Future<Output = ()> + Send + use<>) {
        let (sender, receiver) = mpsc::channel(LOG_QUEUE);
        let uplink = self.clone();
        (sender, async move { uplink.carry_log(id, receiver).await })
    }

    async fn carry_log(&self, id: CopyId, mut lines: mpsc::Receiver<(LogStream, String)>) {
        let mut session = self.shared.session.subscribe();
        let mut first = 0u64;
        let mut batch = Vec::new();
        while lines.recv_many(&mut batch, MAX_LOG_BATCH).await > 0 {
            let count = batch.len();
            let lines: Vec<LogLine> = batch.drain(..).map(|(stream, text)| LogLine { stream, text }).collect();
            loop {
                let Ok(current) = session.wait_for(Option::is_some).await.map(|session| *session) else { return };
                let Some(current) = current else { continue };
                let message =
                    LogLines { session: current, uid: id.uid, attempt: id.attempt, first, lines: lines.clone() };
                match self.request(WorkerVerb::Log, &message).await {
                    Ok(Done {}) => break,
                    Err(error)
                        if matches!(
                            error.code,
                            ErrorCode::Conflict | ErrorCode::Invalid | ErrorCode::LimitExceeded
                        ) =>
                    {
                        tracing::debug!("log of {id} is not wanted: {error}");
                        return;
                    }
                    Err(error) => {
                        tracing::debug!("log of {id} not acknowledged: {error}");
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
            first = first.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        }
    }
}

/// Marks the session as closed when the task that served it ends, however it ends.
struct Closed<'a>(&'a watch::Sender<Option<SessionId>>);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.send_replace(None);
    }
}
