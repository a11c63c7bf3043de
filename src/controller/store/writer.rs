//! The one writer: a thread that owns the cluster's state, applies what is queued to it, commits the whole batch in one
//! synced transaction, and only then lets the answers go.
//!
//! A thread and not a task, as LMDB's commit blocks. Reads go through the same queue: they see every write before them
//! and nothing that is not durable. A batch costs one sync however many wait for it, which is worth 22 times at 100.

mod meters;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

pub use self::meters::Meters;
use super::{Published, Store, StoreError};
use crate::controller::auth::AccessView;
use crate::controller::cluster::{Changes, Cluster, Said, Timing};
use crate::model::audit::{AuditNumber, Deed};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::event::EventNumber;
use crate::model::{Clock, Now, WorkerName};

/// Steps waiting for the writer. Callers beyond wait in line in `submit`; each holds one request in memory.
const QUEUE: usize = 4_096;
/// Steps in one transaction: at 600 bytes each a commit stays below a few milliseconds.
const MAX_BATCH: usize = 512;
/// How long a caller waits for its turn and the commit; a disk that takes longer is as good as broken.
const DEADLINE: Duration = Duration::from_secs(10);
/// For so long everything is refused while what is stored cannot be read. LMDB that failed to write the page by which a commit
/// takes effect works no more until it is opened anew, which a new process does, or says what is wrong.
const MOST_ASTRAY: Duration = if cfg!(test) { Duration::from_secs(6) } else { Duration::from_secs(10) };

/// What a step gets: the state, the moment, and where to note what changed.
pub struct Step<'a> {
    /// The state of the cluster.
    pub cluster: &'a mut Cluster,
    /// The moment of this batch.
    pub now: Now,
    /// What must be stored and told.
    pub changes: &'a mut Changes,
}

/// Called once a batch is durable, or is not.
type Answer = Box<dyn FnOnce(&Outcome) + Send>;

/// What became of a batch.
enum Outcome {
    /// It is durable.
    Stored,
    /// It could not be stored, and nothing of it remains.
    Undone(ApiError),
    /// What was applied was applied to a state that is not the stored one.
    Astray,
}

/// What a step may answer when others of its batch could not be stored.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing: it may have seen what they did.
    Ordinary,
    /// What it found, if it changed nothing.
    Renewal,
}
type Job = Box<dyn FnOnce(&mut Step<'_>) -> Answer + Send>;

/// The way to the writer; cheap to clone. When the last one is dropped the writer ends.
#[derive(Clone, Debug)]
pub struct Writer {
    queue: mpsc::Sender<Job>,
    published: Arc<Cursors>,
    meters: Arc<Meters>,
    /// Recorded together with what the next step changes.
    deed: Option<Arc<Deed>>,
}

/// Up to where things are published.
#[derive(Debug)]
struct Cursors {
    events: AtomicU64,
    audit: AtomicU64,
    /// Up to where they went out, of which not all counts as published yet; only in memory.
    sent: (AtomicU64, AtomicU64),
}

/// What the writer tells the shell after each durable batch.
#[derive(Debug)]
pub struct Signals {
    /// The number of the last durable event.
    pub events: watch::Receiver<EventNumber>,
    /// The number of the last durable audit record.
    pub audit: watch::Receiver<AuditNumber>,
    /// Workers whose assignment changed. Level-triggered: when the queue is full the notice is dropped, and the
    /// worker's next heartbeat shows the gap.
    pub assign: mpsc::Receiver<WorkerName>,
    /// Who may do what, as far as it is durable; renewed before answers go out.
    pub access: Arc<AccessView>,
}

/// Joins the writer's thread.
#[derive(Debug)]
pub struct WriterThread(JoinHandle<()>);

/// Notices of changed assignments that may wait: one for each of thousands of workers.
const ASSIGN_QUEUE: usize = 8_192;

/// Loads the state and starts the thread.
///
/// # Errors
/// [`StoreError`] when the stored state cannot be read.
pub fn start(store: Store, timing: Timing, clock: Clock) -> Result<(Writer, Signals, WriterThread), StoreError> {
    let cluster = Cluster::load(store.records()?, timing, clock.now());
    let Published { events, audit } = store.published()?;
    let published = Arc::new(Cursors {
        events: AtomicU64::new(events),
        audit: AtomicU64::new(audit),
        sent: (AtomicU64::new(events), AtomicU64::new(audit)),
    });
    let (queue, jobs) = mpsc::channel(QUEUE);
    let (events_sender, events) = watch::channel(cluster.last_event());
    let (audit_sender, audit) = watch::channel(cluster.last_audit());
    let (assign_sender, assign) = mpsc::channel(ASSIGN_QUEUE);
    let access = Arc::new(AccessView::of(&cluster));
    let meters = Arc::new(Meters::default());
    let state = State {
        store,
        timing,
        clock,
        cluster,
        published: published.clone(),
        meters: meters.clone(),
        events: events_sender,
        audit: audit_sender,
        assign: assign_sender,
        access: access.clone(),
        astray: None,
        changes: Changes::default(),
        answers: Vec::new(),
    };
    let thread = std::thread::Builder::new()
        .name("orchard-writer".to_owned())
        .spawn(move || state.run(jobs))
        .map_err(|source| StoreError::Lmdb(heed::Error::Io(source)))?;
    let signals = Signals { events, audit, assign, access };
    Ok((Writer { queue, published, meters, deed: None }, signals, WriterThread(thread)))
}

impl Writer {
    /// Applies `step` and yields its result once everything it changed is durable.
    ///
    /// # Errors
    /// What `step` said, or [`ErrorCode::Unavailable`] when the change could not be stored (nothing of it remains) or
    /// the controller is stopping, or [`ErrorCode::Timeout`]: then it is not known whether it was stored. Cancel safe
    /// in that sense: a dropped call may still take effect.
    pub async fn submit<T, F>(&self, step: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Step<'_>) -> Result<T, ApiError> + Send + 'static,
    {
        self.enqueue(step, Kind::Ordinary).await
    }

    /// The same for a step that renews what is only in memory, which outlives a commit that fails: where it changes nothing
    /// that is stored, it is answered although others of its batch are refused. A controller whose disk is full must not
    /// let its workers' leases run out.
    ///
    /// # Errors
    /// As for [`Writer::submit`].
    pub async fn submit_renewal<T, F>(&self, step: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Step<'_>) -> Result<T, ApiError> + Send + 'static,
    {
        self.enqueue(step, Kind::Renewal).await
    }

    async fn enqueue<T, F>(&self, step: F, kind: Kind) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Step<'_>) -> Result<T, ApiError> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let deed = self.deed.clone();
        let job: Job = Box::new(move |context| {
            context.changes.said = Said::default();
            let (result, lasts) = match kind {
                Kind::Ordinary => (step(context), false),
                Kind::Renewal => {
                    let mut own = Changes::default();
                    let result = step(&mut Step { cluster: context.cluster, now: context.now, changes: &mut own });
                    let lasts = result.is_ok() && own.is_empty();
                    context.changes.absorb(own);
                    (result, lasts)
                }
            };
            if let Some(deed) = deed.filter(|_| result.is_ok()) {
                let said = std::mem::take(&mut context.changes.said);
                context.cluster.audit(with(&deed, said), context.now, context.changes);
            }
            Box::new(move |outcome| {
                let answer = match outcome {
                    Outcome::Stored => result,
                    Outcome::Undone(_) if lasts => result,
                    Outcome::Undone(why) => Err(why.clone()),
                    Outcome::Astray => Err(ApiError::new(
                        ErrorCode::Unavailable,
                        "the controller cannot read what it has stored; its log says why",
                    )),
                };
                // A caller that has gone away needs no answer.
                let _ = sender.send(answer);
            })
        });
        let stopping = || ApiError::new(ErrorCode::Unavailable, "the controller is stopping");
        let answer = async {
            self.queue.send(job).await.map_err(|_| stopping())?;
            receiver.await.map_err(|_| stopping())?
        };
        tokio::time::timeout(DEADLINE, answer).await.unwrap_or_else(|_| {
            Err(ApiError::new(ErrorCode::Timeout, format!("the controller's disk did not answer within {DEADLINE:?}")))
        })
    }

    /// The same way for one request that changes something: when its step succeeds, `deed` is recorded in the same
    /// transaction. A step that fails records nothing.
    pub fn audited(&self, deed: Deed) -> Self {
        Self { deed: Some(Arc::new(deed)), ..self.clone() }
    }

    /// Returns when the writer has ended, which it only does on its own when it panicked, or could not read for long what is
    /// stored.
    pub async fn ended(&self) {
        self.queue.closed().await;
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.queue.is_closed()
    }

    /// What it counts.
    pub fn meters(&self) -> &Meters {
        &self.meters
    }

    /// Steps that wait for it now.
    pub fn waiting(&self) -> usize {
        self.queue.max_capacity().saturating_sub(self.queue.capacity())
    }

    /// Steps that may wait.
    pub fn capacity(&self) -> usize {
        self.queue.max_capacity()
    }

    /// Notes up to where events, or audit records, went out.
    pub fn set_sent(&self, sent: Published) {
        self.published.sent.0.fetch_max(sent.events, Ordering::Relaxed);
        self.published.sent.1.fetch_max(sent.audit, Ordering::Relaxed);
    }

    /// Up to where they did.
    pub fn sent(&self) -> Published {
        let (events, audit) = &self.published.sent;
        Published { events: events.load(Ordering::Relaxed), audit: audit.load(Ordering::Relaxed) }
    }

    /// Notes up to where events are published; stored with the next change, so it may fall back after a crash.
    pub fn set_published(&self, number: EventNumber) {
        self.published.events.fetch_max(number, Ordering::Relaxed);
    }

    /// The same for audit records.
    pub fn set_audit_published(&self, number: AuditNumber) {
        self.published.audit.fetch_max(number, Ordering::Relaxed);
    }

    /// Up to where events and audit records are published.
    pub fn published(&self) -> Published {
        self.published.get()
    }
}

/// What was asked for with what came of it.
fn with(deed: &Deed, said: Said) -> Deed {
    let mut deed = deed.clone();
    deed.target = said.target.unwrap_or(deed.target);
    let between = if deed.message.is_empty() || said.message.is_empty() { "" } else { "; " };
    deed.message = format!("{}{between}{}", deed.message, said.message);
    deed
}

impl Cursors {
    fn get(&self) -> Published {
        Published { events: self.events.load(Ordering::Relaxed), audit: self.audit.load(Ordering::Relaxed) }
    }
}

impl WriterThread {
    /// Waits until the queue is worked off and the store is closed; all [`Writer`]s must have been dropped.
    pub async fn join(self) {
        let _ = tokio::task::spawn_blocking(move || self.0.join()).await;
    }
}

struct State {
    store: Store,
    timing: Timing,
    clock: Clock,
    cluster: Cluster,
    published: Arc<Cursors>,
    meters: Arc<Meters>,
    events: watch::Sender<EventNumber>,
    audit: watch::Sender<AuditNumber>,
    assign: mpsc::Sender<WorkerName>,
    access: Arc<AccessView>,
    /// Since when, by the monotonic clock, the state in memory is not what is stored, and must not be shown or built upon.
    astray: Option<Duration>,
    /// Empty between batches; kept for their memory.
    changes: Changes,
    /// The same.
    answers: Vec<Answer>,
}

impl State {
    fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        let mut batch = Vec::with_capacity(MAX_BATCH);
        while jobs.blocking_recv_many(&mut batch, MAX_BATCH) > 0 {
            self.apply(&mut batch, &mut jobs);
            let now = self.clock.now().mono;
            if self.astray.is_some_and(|since| now.saturating_sub(since) >= MOST_ASTRAY) {
                tracing::error!("the stored state could not be read for {MOST_ASTRAY:?}: this process gives up");
                return;
            }
        }
    }

    /// Applies and answers what is in `batch`, and what comes in while it does: it waits for this commit, and not for the
    /// next one. Callers that were just answered come again within the time that applying takes.
    fn apply(&mut self, batch: &mut Vec<Job>, jobs: &mut mpsc::Receiver<Job>) {
        let (mut changes, mut answers) = (std::mem::take(&mut self.changes), std::mem::take(&mut self.answers));
        if self.astray.is_some() {
            self.go_back();
        }
        let now = self.clock.now();
        self.cluster.set_full(self.store.is_full());
        while !batch.is_empty() {
            let step = |job: Job| job(&mut Step { cluster: &mut self.cluster, now, changes: &mut changes });
            answers.extend(batch.drain(..).map(step));
            let room = MAX_BATCH.saturating_sub(answers.len());
            batch.extend(std::iter::from_fn(|| jobs.try_recv().ok()).take(room));
        }
        self.cluster.place(now, &mut changes);
        let outcome = match (self.astray.is_some(), changes.is_empty()) {
            (true, _) => Outcome::Astray,
            (false, true) => Outcome::Stored,
            (false, false) => self.commit(&changes, answers.len()).map_or_else(Outcome::Undone, |()| Outcome::Stored),
        };
        if matches!(outcome, Outcome::Stored) {
            self.tell(&changes);
        }
        answers.drain(..).for_each(|answer| answer(&outcome));
        changes.clear();
        (self.changes, self.answers) = (changes, answers);
    }

    fn commit(&mut self, changes: &Changes, steps: usize) -> Result<(), ApiError> {
        let published = self.published.get();
        let began = Instant::now();
        let error = match self.store.commit(&self.cluster, changes, published) {
            Ok(()) => {
                self.meters.stored(steps, began.elapsed(), self.clock.now().mono);
                return Ok(());
            }
            Err(error) => error,
        };
        self.meters.failed();
        tracing::error!(
            error = &error as &dyn std::error::Error,
            "cannot store {} changes; they are refused",
            changes.events.len()
        );
        self.go_back();
        let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        Err(ApiError::new(
            ErrorCode::Unavailable,
            format!("the controller cannot store this: {cause}; nothing was changed"),
        ))
    }

    /// Back to what is stored, so that memory never says more than the disk. While even that fails everything is
    /// refused: a worker would be told to run what was never acknowledged.
    fn go_back(&mut self) {
        let now = self.clock.now().mono;
        self.astray.get_or_insert(now);
        match self.store.records() {
            Ok(records) => {
                let mut stored = Cluster::load(records, self.timing, self.clock.now());
                stored.keep_liveness_of(&self.cluster);
                self.cluster = stored;
                self.astray = None;
            }
            Err(error) => tracing::error!(error = &error as &dyn std::error::Error, "the stored state cannot be read"),
        }
    }

    fn tell(&self, changes: &Changes) {
        self.meters.count(&self.cluster, changes);
        if changes.concern_access() {
            self.access.renew(&self.cluster, changes);
        }
        if let Some(last) = changes.events.last() {
            self.events.send_replace(last.number);
        }
        if let Some(last) = changes.audit.last() {
            self.audit.send_replace(last.number);
        }
        for worker in &changes.assign {
            let _ = self.assign.try_send(worker.clone());
        }
    }
}

#[cfg(test)]
mod tests;
