//! The controller: broker, relay, state and the loops between them, started and stopped as one.
//!
//! Requests arrive over the bus (`service`), become steps of the pure core (`cluster`, `scheduler`), are made durable
//! by the one writer (`store`), and only then answered, published (`publisher`) and sent to workers.

pub mod cluster;
pub mod scheduler;
pub mod store;

mod audit;
pub mod auth;
mod bootstrap;
mod buses;
mod enforce;
mod gate;
mod jump;
mod publisher;
mod pulse;
mod service;
mod shares;
mod status;
mod watch;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use self::audit::Auditor;
use self::auth::BOOTSTRAP_ADMIN;
use self::buses::{Buses, OpenBus, open_bus};
use self::cluster::Timing;
use self::enforce::Enforcer;
use self::gate::Gate;
use self::jump::JumpHost;
pub use self::jump::{HostKeyError, JumpError, JumpOptions};
use self::publisher::{Audience, Feed, publish, send_assignments};
use self::pulse::Pulse;
use self::service::{BusAddress, Context, Service};
use self::store::writer::{self, Writer, WriterThread};
use self::store::{Bounds, OpenError, Retention, Store, StoreError};
use self::watch::Watch;
use crate::broker::Broker;
use crate::bus::access::{CreateJoinToken, NewJoinToken};
use crate::bus::connect::TunnelEndpoint;
use crate::identity::ca::{self, Fingerprint, Identity};
use crate::metrics::Source;
use crate::model::error::ApiError;
use crate::model::secret::Secret;
use crate::model::{Clock, WorkerName};
use crate::task::{self, Task};
use crate::trace::UnderWay;
use crate::tunnel::Transport;
use crate::tunnel::relay::{Limits, Relay, RelayError, Socket};
use crate::{broker, identity};

/// How often time passes in the core: fine enough for leases of seconds.
const TICK: Duration = Duration::from_millis(250);

/// Where the bus is.
#[derive(Clone, Debug)]
pub enum BusSource {
    /// The broker inside this process.
    Embedded {
        /// Where it listens; port 0 lets the system choose.
        listen: SocketAddr,
        /// Whether connections are TLS, as they should be unless a proxy in front of it sees to that.
        tls: bool,
        /// Host name or address under which other machines reach it; none = `listen`, if that is an address to dial.
        host: Option<String>,
    },
    /// A nats-server somewhere else; who may log in there is its operator's matter.
    Outside {
        /// `tls://host:port`, with a certificate that a public CA vouches for, or `nats://host:port` in plain text.
        url: String,
        /// The user to log in as.
        user: String,
        /// Its password.
        password: Secret,
    },
}

/// What a controller needs to start.
#[derive(Clone, Debug)]
pub struct ControllerOptions {
    /// Holds the database and the certificate.
    pub data_dir: PathBuf,
    /// The bus.
    pub bus: BusSource,
    /// Where the tunnel endpoint listens (UDP); port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Host name or address under which clients and workers reach the tunnel endpoint; none = the host of the bus.
    pub tunnel_host: Option<String>,
    /// Heartbeat and lease.
    pub timing: Timing,
    /// Files with a certificate, behind it those that lead to its CA, and its key; none = the controller makes its own.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Where the SSH jump host listens; none = there is none.
    pub jump: Option<JumpOptions>,
    /// How long events are kept.
    pub events_kept: Retention,
    /// The token of the first account from this start on, whatever it was; none = one is made at the first start.
    pub bootstrap_token: Option<Secret>,
}

/// Why a controller does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder is not ours alone.
    #[error("cannot trust the data folder {}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// The store.
    #[error("cannot open the store")]
    Open(#[from] OpenError),
    /// The stored state.
    #[error("cannot load the stored state")]
    Load(#[from] StoreError),
    /// The certificate.
    #[error("cannot make or read the controller's certificate")]
    Certificate(#[from] ca::CaError),
    /// The broker's port.
    #[error("cannot start the message broker")]
    Broker(#[from] broker::BindError),
    /// The tunnel's port.
    #[error("cannot start the tunnel endpoint")]
    Tunnel(#[from] RelayError),
    /// The SSH jump host.
    #[error("cannot start the SSH jump host")]
    Jump(#[from] JumpError),
    /// TLS.
    #[error("cannot encrypt with the controller's certificate")]
    Tls(#[from] rustls::Error),
    /// The bus.
    #[error("cannot use the bus")]
    Bus(#[source] ApiError),
    /// The first account.
    #[error("cannot set up the account {BOOTSTRAP_ADMIN}")]
    Admin(#[source] ApiError),
}

/// A running controller. Stop it with [`Controller::shutdown`]; dropping it stops everything at once, which loses
/// nothing that was acknowledged.
#[derive(Debug)]
pub struct Controller {
    // In the order of stopping, which is the reverse of starting.
    jump: Option<JumpHost>,
    service: Service,
    relay: Relay,
    auditor: Auditor,
    loops: Vec<Task>,
    writer: Writer,
    thread: WriterThread,
    broker: Option<Arc<Broker>>,
    bus_url: String,
    fingerprint: Option<Fingerprint>,
    /// As others reach it.
    address: BusAddress,
    bootstrap_token: Option<Secret>,
    data_dir: PathBuf,
    watch: Arc<Watch>,
}

impl Controller {
    /// Starts everything; returns once requests are answered.
    ///
    /// # Errors
    /// [`StartError`]; nothing goes on running then.
    pub async fn start(options: ControllerOptions) -> Result<Self, StartError> {
        identity::tls::install_provider();
        let clock = Clock::start();
        for folder in [options.data_dir.clone(), options.data_dir.join("db")] {
            identity::refuse_foreign(&folder).map_err(|source| StartError::Folder { path: folder, source })?;
        }
        let bounds = Bounds { kept: options.events_kept, ..Bounds::default() };
        let store = Store::open_with(&options.data_dir, bounds)?;
        let certificate = match &options.certificate {
            Some((certificate, key)) => Identity::read(certificate, key)?,
            None => Identity::load_or_create(&options.data_dir, &names(options.tunnel_host.as_deref()))?,
        };
        let socket = Socket::bind(options.listen, &certificate, Transport::default())?;
        let (writer, signals, thread) = writer::start(store.clone(), options.timing, clock)?;
        let (auditor, deeds) = Auditor::new(clock);
        let access = signals.access;
        let tokens = access.tokens();
        let workers_have_keys = matches!(options.bus, BusSource::Embedded { .. });
        let gate = Arc::new(Gate::new(clock, access.clone(), workers_have_keys, auditor.clone()));
        tokens.keys().for_each(|account| gate.note_token(account));
        let relay = Relay::start(socket, gate.clone(), Limits::default());
        let endpoint = TunnelEndpoint {
            host: options.tunnel_host,
            port: relay.local_addr().port(),
            fingerprint: relay.fingerprint().to_string(),
        };

        let open = open_bus(options.bus, &certificate, access.clone(), clock, &auditor).await?;
        // Only now that nothing else can be in the way: the token of the first account is shown once.
        let bootstrap_token = bootstrap::bootstrap(&writer, &options.data_dir, options.bootstrap_token)
            .await
            .map_err(StartError::Admin)?;
        let OpenBus { broker, fingerprint, login, patience, url: bus_url, address } = open;
        let buses = Buses::connect(&login, patience).await.map_err(StartError::Bus)?;
        let pulse = Arc::new(Pulse::new(buses.workers.clone(), clock, options.timing.heartbeat));
        let watch = Arc::new(Watch {
            clock,
            started: clock.now().wall,
            data_dir: options.data_dir.clone(),
            writer: writer.clone(),
            store: store.clone(),
            gate: gate.clone(),
            relay: relay.control(),
            requests: Arc::default(),
            pulse: pulse.clone(),
            broker: broker.as_ref().map(|broker| broker.meter()),
            ticked: Arc::new(AtomicU64::new(millis(clock))),
            tried: AtomicU64::new(0),
            look: Arc::new(Semaphore::new(1)),
        });
        let traces = Arc::new(UnderWay::default());
        let context = Context {
            writer: writer.clone(),
            store: store.clone(),
            gate: gate.clone(),
            auditor: auditor.clone(),
            addresses: broker.as_ref().map(|broker| broker.addresses()),
            clock,
            timing: options.timing,
            watch: watch.clone(),
            traces: traces.clone(),
            tunnel: endpoint,
            relay: relay.control(),
            access: access.clone(),
            bus: address.clone(),
            workers_have_keys: broker.is_some(),
            page_size: service::api::PAGE_SIZE,
        };
        let context = Arc::new(context);
        let jump = match &options.jump {
            Some(jump) => Some(JumpHost::start(jump, &options.data_dir, context.clone()).await?),
            None => None,
        };
        let service = Service::start(&buses, context).await.map_err(StartError::Bus)?;
        let enforcer = Enforcer { access, broker: broker.clone(), gate, relay: relay.control(), tokens };
        let news = (buses.news, Audience(broker.as_ref().map(|broker| broker.listeners())));
        let loops = vec![
            task::spawn(publish(Feed::Events, news.clone(), store.clone(), writer.clone(), signals.events)),
            task::spawn(publish(Feed::Audit, news, store, writer.clone(), signals.audit)),
            auditor.run(deeds, writer.clone()),
            task::spawn(send_assignments((buses.workers, traces), writer.clone(), signals.assign)),
            task::spawn(pulse.clone().beat()),
            task::spawn(tick(writer.clone(), pulse, clock, watch.ticked.clone())),
            task::spawn(enforce::run(enforcer)),
        ];
        Ok(Self {
            jump,
            service,
            relay,
            auditor,
            loops,
            writer,
            thread,
            broker,
            bus_url,
            fingerprint,
            address,
            bootstrap_token,
            data_dir: options.data_dir,
            watch,
        })
    }

    /// The token of the first account, if it was made or given in this start; or made in an earlier one and not kept yet, see
    /// [`Controller::bootstrap_token_is_saved`].
    pub fn bootstrap_token(&self) -> Option<&Secret> {
        self.bootstrap_token.as_ref()
    }

    /// Tells that the caller has kept the first account's token: from the next start on it is to be had from nowhere.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn bootstrap_token_is_saved(&self) -> std::io::Result<()> {
        bootstrap::token_is_saved(&self.data_dir)
    }

    /// What the bus's certificate is known by; none when it is not ours, or in plain text.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint
    }

    /// Makes a token with which machines may join as workers, on behalf of the first account.
    ///
    /// # Errors
    /// As for `bootstrap-token.create`.
    pub async fn create_join_token(
        &self,
        ttl: Duration,
        uses: u32,
        worker: Option<WorkerName>,
    ) -> Result<NewJoinToken, ApiError> {
        let request = CreateJoinToken { ttl_s: ttl.as_secs(), uses, worker };
        let writer = self.writer.audited(audit::own_deed("bootstrap-token.create", String::new(), String::new()));
        service::new_join_token(&writer, &self.address, bootstrap::admin()?, request).await
    }

    /// How to reach the bus from this machine.
    pub fn bus_url(&self) -> &str {
        &self.bus_url
    }

    /// Where the embedded broker listens; none when the bus is outside.
    pub fn bus_addr(&self) -> Option<SocketAddr> {
        self.broker.as_ref().map(|broker| broker.local_addr())
    }

    /// How the embedded broker is doing; none when the bus is outside.
    pub fn bus_stats(&self) -> Option<broker::Stats> {
        self.broker.as_ref().map(|broker| broker.stats())
    }

    /// For those who watch it. Holds the store open: it must be dropped before [`Controller::shutdown`].
    pub fn watch(&self) -> Arc<dyn Source> {
        self.watch.clone()
    }

    /// Where the tunnel endpoint listens (UDP).
    pub fn tunnel_addr(&self) -> SocketAddr {
        self.relay.local_addr()
    }

    /// Where the SSH jump host listens (TCP), and the SHA-256 of its key as `ssh-keygen -l` shows it; none when there is none.
    pub fn jump_host(&self) -> Option<(SocketAddr, &str)> {
        self.jump.as_ref().map(|jump| (jump.local_addr(), jump.fingerprint()))
    }

    /// Returns when a part has ended that never should: whoever runs the controller must then start it anew. Cancel safe.
    pub async fn failed(&self) -> &'static str {
        tokio::select! {
            () = self.writer.ended() => "the writer of the store",
            () = self.service.ended() => "the service on the bus",
            () = task::any_ended(&self.loops) => "a loop of the controller",
        }
    }

    /// Stops in order: no new requests, streams closed, everything queued stored, clients told. Takes a few seconds at
    /// most. No VM is stopped by it.
    pub async fn shutdown(self) {
        drop(self.jump);
        self.service.stop().await;
        self.relay.shutdown().await;
        // Streams that have just ended are still to be recorded.
        self.auditor.settled().await;
        for task in self.loops {
            task.abort().await;
        }
        drop((self.writer, self.watch));
        self.thread.join().await;
        // The loop that also had it is gone.
        if let Some(broker) = self.broker.and_then(Arc::into_inner) {
            broker.shutdown().await;
        }
    }
}

/// What this machine is called from here, from its neighbours, and from afar if that was said: stock NATS clients look for it
/// in the certificate.
fn names(from_afar: Option<&str>) -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    names.extend(rustix::system::uname().nodename().to_str().ok().map(str::to_owned));
    names.extend(from_afar.map(str::to_owned));
    names
}

async fn tick(writer: Writer, pulse: Arc<Pulse>, clock: Clock, ticked: Arc<AtomicU64>) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        ticked.store(millis(clock), Ordering::Relaxed);
        let pulse = pulse.clone();
        let ticked = writer.submit(move |step| {
            if !pulse.is_sound() {
                step.cluster.bus_lost(step.now);
            }
            step.cluster.tick(step.now, step.changes);
            Ok(())
        });
        if let Err(error) = ticked.await {
            tracing::warn!("{error}");
        }
    }
}

/// The moment by the monotonic clock.
fn millis(clock: Clock) -> u64 {
    u64::try_from(clock.now().mono.as_millis()).unwrap_or(u64::MAX)
}
