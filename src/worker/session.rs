//! The session with the controller: register, renew the lease, take assignments, keep the data path; and again from
//! the start whenever the controller does not know the session any more.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::HeaderMap;
use futures_util::StreamExt;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::attach::Attachments;
use super::execs::Execs;
use super::guard::Keeper;
use super::meters::Meters;
use super::runtime::Runtime;
use super::sessions::Sessions;
use super::uplink::{SessionOver, Uplink};
use crate::bus::client::Bus;
use crate::bus::connect::TunnelEndpoint;
use crate::bus::message::{self, Assignment, Heartbeat, HeartbeatAck, Hello, Welcome};
use crate::bus::parts::Collector;
use crate::bus::subject::{self, WorkerVerb};
use crate::bus::traces;
use crate::config::address;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::secret::Secret;
use crate::model::worker::{HostLoad, WorkerInfo};
use crate::model::{SessionId, VmUid};
use crate::task;
use crate::trace::UnderWay;
use crate::tunnel::header::WorkerHello;
use crate::tunnel::worker::{LinkOptions, WorkerLink};
use crate::tunnel::{Address, Transport};

/// How long registering may take.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// First and longest pause before registering again.
const HELLO_PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// A session that lasted so long was a good one, and the next begins at once. Shorter ones may be a fight with another process
/// that has this worker's key.
const GOOD_SESSION: Duration = Duration::from_secs(30);

/// Everything the session needs.
pub(super) struct Agent {
    pub(super) bus: Bus,
    pub(super) bus_url: String,
    /// The seed with which the worker logs in, if it does so with a key; its data path is bound to it.
    pub(super) key: Option<Secret>,
    pub(super) info: WorkerInfo,
    /// See `Hello`.
    pub(super) place: String,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) execs: Execs,
    pub(super) sessions: Arc<Sessions>,
    pub(super) uplink: Uplink,
    pub(super) keeper: Keeper,
    pub(super) assignments: Arc<watch::Sender<Option<Assignment>>>,
    pub(super) meters: Arc<Meters>,
    /// The traces of requests that led to what this worker is to run.
    pub(super) traces: Arc<UnderWay<VmUid>>,
    /// How busy the host is, as somebody else finds out.
    pub(super) load: watch::Receiver<HostLoad>,
    /// See `Hello`.
    pub(super) delete_unknown_after: Option<Duration>,
    /// Whether anybody is let onto this machine.
    pub(super) host_access: bool,
}

impl Agent {
    /// Runs for the worker's life.
    pub(super) async fn run(self) {
        let mut pause = HELLO_PAUSE.0;
        let mut link = None;
        loop {
            let began = Instant::now();
            match self.session(&mut link).await {
                Ok(SessionOver) if began.elapsed() >= GOOD_SESSION => pause = HELLO_PAUSE.0,
                Ok(SessionOver) => {
                    tokio::time::sleep(pause).await;
                    pause = pause.saturating_mul(2).min(HELLO_PAUSE.1);
                }
                Err(error) => {
                    let hint = if error.code == ErrorCode::Conflict { "" } else { "; trying again" };
                    tracing::warn!("cannot register with the controller: {error}{hint}");
                    tokio::time::sleep(pause).await;
                    pause = pause.saturating_mul(2).min(HELLO_PAUSE.1);
                }
            }
        }
    }

    async fn session(&self, link: &mut Option<Link>) -> Result<SessionOver, ApiError> {
        let name = &self.info.name;
        // A session has a new id at each registration, so what is still under way from the one before is refused.
        let session = SessionId(uuid::Uuid::now_v7());
        let mut assignments = self.bus.subscribe(&subject::assign(name)).await?;
        let delete_unknown_s = self.delete_unknown_after.map(|after| after.as_secs());
        let hello = Hello { session, info: self.info.clone(), place: self.place.clone(), delete_unknown_s };
        let sent = self.keeper.now();
        let hello_to = subject::worker(name, WorkerVerb::Hello);
        let (welcome, headers): (Welcome, _) = self.bus.request_with_headers(hello_to, &hello, HELLO_TIMEOUT).await?;
        self.note_traces(headers.as_ref());
        let lease = Duration::from_millis(welcome.lease_ms);
        self.keeper.granted(session, sent, lease);
        self.meters.sessions.inc();
        self.meters.note(&self.meters.heard);
        tracing::info!(worker = %name, copies = welcome.assignment.copies.len(), "registered");
        self.link(link, session, &welcome)?;
        let mut collector = Collector::default();
        if let Some(assignment) = collector.add(welcome.assignment) {
            self.assignments.send_replace(Some(assignment));
        }
        let heartbeat = Duration::from_millis(welcome.heartbeat_ms.max(10));
        self.meters.beat_every.store(welcome.heartbeat_ms.max(10), Ordering::Relaxed);
        let take = async {
            while let Some(sent) = assignments.next().await {
                self.note_traces(sent.headers.as_ref());
                self.take(session, &mut collector, &sent.payload);
            }
            SessionOver
        };
        // A task of its own: whatever else the worker is at, a heartbeat does not wait for it.
        let (tell, beat_over) = oneshot::channel();
        let beat = self.beat(session, heartbeat, lease);
        let beat = task::spawn(async move { drop(tell.send(beat.run().await)) });
        // Cancel safe: all three are only waiting; what they carry is sent again in the next session.
        let over = tokio::select! {
            over = beat_over => over.unwrap_or(SessionOver),
            over = self.uplink.serve(session) => over,
            over = take => over,
        };
        // Only one session at a time renews the lease.
        beat.abort().await;
        tracing::info!(worker = %name, "the controller does not know this session any more; registering again");
        Ok(over)
    }

    /// Notes which traces the VMs of an assignment belong to.
    fn note_traces(&self, headers: Option<&HeaderMap>) {
        for (vm, trace) in traces::read(headers) {
            self.traces.note(vm, trace);
        }
    }

    fn beat(&self, session: SessionId, every: Duration, lease: Duration) -> Beat {
        Beat {
            bus: self.bus.clone(),
            subject: subject::worker(&self.info.name, WorkerVerb::Heartbeat),
            uplink: self.uplink.clone(),
            keeper: self.keeper.clone(),
            assignments: self.assignments.clone(),
            meters: self.meters.clone(),
            load: self.load.clone(),
            session,
            every,
            lease,
        }
    }

    /// Takes an assignment unless it is of another session or older than the one in force.
    fn take(&self, session: SessionId, collector: &mut Collector, payload: &[u8]) {
        let assignment: Assignment = match message::decode(payload) {
            Ok(assignment) => assignment,
            Err(error) => return tracing::warn!("an assignment is not readable, is the controller newer? {error}"),
        };
        if assignment.session != session {
            return;
        }
        let Some(assignment) = collector.add(assignment) else { return };
        self.assignments.send_if_modified(|current| {
            let newer = held_revision(current.as_ref(), session) < assignment.revision;
            if newer {
                *current = Some(assignment);
            }
            newer
        });
    }

    /// Keeps the data path: the one there is learns the new session, so that open streams go on; if the relay is
    /// another one, it is dialled anew.
    fn link(&self, held: &mut Option<Link>, session: SessionId, welcome: &Welcome) -> Result<(), ApiError> {
        let (worker, secret) = (self.info.name.clone(), welcome.tunnel_secret.clone());
        let hello = WorkerHello { worker, session, secret, proof: None };
        if let Some(link) = held.as_ref().filter(|link| link.endpoint == welcome.tunnel) {
            link.connection.renew(hello);
            return Ok(());
        }
        let endpoint = welcome.tunnel.clone();
        let unreadable = |what: String| ApiError::new(ErrorCode::Invalid, what);
        let host = match (&endpoint.host, address::host_of(&self.bus_url)) {
            (Some(host), _) => host.clone(),
            (None, Some(host)) => host.to_owned(),
            (None, None) => return Err(unreadable(format!("no host in the bus address {:?}", self.bus_url))),
        };
        let fingerprint = endpoint
            .fingerprint
            .parse()
            .map_err(|error| unreadable(format!("the controller sent an unreadable fingerprint: {error}")))?;
        let address = Address { host, port: endpoint.port };
        let options =
            LinkOptions { address, fingerprint, hello, key: self.key.clone(), transport: Transport::default() };
        let attachments = Attachments {
            runtime: self.runtime.clone(),
            execs: self.execs.clone(),
            sessions: self.sessions.clone(),
            host_access: self.host_access,
        };
        let connection = WorkerLink::start(options, Arc::new(attachments));
        *held = Some(Link { endpoint, connection });
        Ok(())
    }
}

/// Renews the lease of one session, and does nothing else.
struct Beat {
    bus: Bus,
    subject: String,
    uplink: Uplink,
    keeper: Keeper,
    assignments: Arc<watch::Sender<Option<Assignment>>>,
    meters: Arc<Meters>,
    load: watch::Receiver<HostLoad>,
    session: SessionId,
    every: Duration,
    lease: Duration,
}

impl Beat {
    async fn run(mut self) -> SessionOver {
        let mut interval = tokio::time::interval(self.every);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut connections = self.bus.connections();
        self.load.mark_changed(); // this session has heard nothing of it
        let limit = self.every.saturating_mul(2);
        loop {
            // Behind a new connection there may be another controller, which knows no session: whoever asks it at once is
            // back at once. All of these are cancel safe.
            tokio::select! {
                _ = interval.tick() => {}
                Ok(()) = connections.changed() => interval.reset(),
            }
            let revision = held_revision(self.assignments.borrow().as_ref(), self.session);
            // All of this is in memory: nothing up to the answer waits for the host. The lease stands on the disk before it
            // counts, so the next heartbeat waits for a disk that hangs, and the worker is unseen while it does.
            let told = Some(self.uplink.has_told(self.session));
            let fresh = self.load.has_changed().unwrap_or(false);
            let load = fresh.then(|| *self.load.borrow_and_update()).filter(|load| *load != HostLoad::default());
            let beat =
                Heartbeat { session: self.session, revision, told, load, digest: self.uplink.digest(self.session) };
            let (sent, began) = (self.keeper.now(), Instant::now());
            let answer = tokio::select! {
                answer = self.bus.request::<_, HeartbeatAck>(self.subject.clone(), &beat, limit) => answer,
                Ok(()) = connections.changed() => {
                    interval.reset_immediately(); // the answer went with the connection
                    continue;
                }
            };
            match &answer {
                Ok(_) => {
                    self.meters.heartbeat.took(began.elapsed());
                    self.meters.note(&self.meters.heard);
                }
                Err(_) => self.meters.heartbeat_failures.inc(),
            }
            match answer {
                Ok(ack) if self.keeper.renewed(self.session, sent, self.lease) => {
                    if ack.tell_all {
                        tracing::warn!(
                            "the controller knows something else of the VMs here than it was told; telling all again"
                        );
                        self.uplink.tell_all();
                    }
                }
                Ok(_) => return SessionOver,
                Err(error) if error.code == ErrorCode::Unauthenticated => return SessionOver,
                Err(error) => tracing::debug!("heartbeat: {error}"),
            }
        }
    }
}

/// The revision in force of this session, whose numbers begin at 1; 0 while one of an earlier session still is.
fn held_revision(held: Option<&Assignment>, session: SessionId) -> u64 {
    held.filter(|held| held.session == session).map_or(0, |held| held.revision)
}

/// The data path and where it leads.
struct Link {
    endpoint: TunnelEndpoint,
    connection: WorkerLink,
}
