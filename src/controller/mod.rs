//! The controller: broker, relay, state and the loops between them, started and stopped as one.
//!
//! Requests arrive over the bus (`service`), become steps of the pure core (`cluster`, `scheduler`), are made durable
//! by the one writer (`store`), and only then answered, published (`publisher`) and sent to workers.

pub mod cluster;
pub mod scheduler;
pub mod store;

mod audit;
pub mod auth;
mod gate;
mod publisher;
mod service;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use self::audit::{Auditor, Logins};
use self::auth::BusUsers;
use self::cluster::Timing;
use self::gate::Gate;
use self::publisher::{Feed, publish, send_assignments};
use self::service::{Context, Service};
use self::store::writer::{self, Writer, WriterThread};
use self::store::{OpenError, Store, StoreError};
use crate::broker::Broker;
use crate::bus::client::{Bus, BusOptions, Login, Trust};
use crate::bus::message::TunnelEndpoint;
use crate::identity::ca::{self, Identity};
use crate::model::Clock;
use crate::model::error::ApiError;
use crate::model::secret::Secret;
use crate::task::{self, Task};
use crate::tunnel::Transport;
use crate::tunnel::relay::{Limits, Relay, RelayError};
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
        /// What accounts and workers present as password.
        token: Secret,
    },
    /// A nats-server somewhere else; who may log in there is its operator's matter.
    Outside {
        /// `nats://host:port`.
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
}

/// Why a controller does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
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
    /// The bus.
    #[error("cannot use the bus")]
    Bus(#[source] ApiError),
}

/// A running controller. Stop it with [`Controller::shutdown`]; dropping it stops everything at once, which loses
/// nothing that was acknowledged.
#[derive(Debug)]
pub struct Controller {
    // In the order of stopping, which is the reverse of starting.
    service: Service,
    relay: Relay,
    loops: Vec<Task>,
    writer: Writer,
    thread: WriterThread,
    broker: Option<Broker>,
    bus_url: String,
}

impl Controller {
    /// Starts everything; returns once requests are answered.
    ///
    /// # Errors
    /// [`StartError`]; nothing goes on running then.
    pub async fn start(options: ControllerOptions) -> Result<Self, StartError> {
        identity::tls::install_provider();
        let clock = Clock::start();
        let store = Store::open(&options.data_dir)?;
        let certificate = Identity::load_or_create(&options.data_dir)?;
        let (writer, signals, thread) = writer::start(store.clone(), options.timing, clock)?;

        let (auditor, deeds) = Auditor::new(clock);
        let gate = Arc::new(Gate::new(clock, Arc::new(gate::Everybody), auditor.clone()));
        let relay = Relay::bind(options.listen, &certificate, gate.clone(), Limits::default(), Transport::default())?;
        let endpoint = TunnelEndpoint {
            host: options.tunnel_host,
            port: relay.local_addr().port(),
            fingerprint: relay.fingerprint().to_string(),
        };

        let (broker, bus_options) = open_bus(options.bus, &auditor).await?;
        let bus_url = bus_options.url.clone();
        let bus = Bus::connect(bus_options).await.map_err(StartError::Bus)?;
        let context = Context {
            writer: writer.clone(),
            store: store.clone(),
            gate,
            auditor: auditor.clone(),
            addresses: broker.as_ref().map(Broker::addresses),
            clock,
            timing: options.timing,
            tunnel: endpoint,
        };
        let service = Service::start(&bus, Arc::new(context)).await.map_err(StartError::Bus)?;
        let loops = vec![
            task::spawn(publish(Feed::Events, bus.clone(), store.clone(), writer.clone(), signals.events)),
            task::spawn(publish(Feed::Audit, bus.clone(), store, writer.clone(), signals.audit)),
            auditor.run(deeds, writer.clone()),
            task::spawn(send_assignments(bus, writer.clone(), signals.assign)),
            task::spawn(tick(writer.clone())),
        ];
        Ok(Self { service, relay, loops, writer, thread, broker, bus_url })
    }

    /// How to reach the bus from this machine.
    pub fn bus_url(&self) -> &str {
        &self.bus_url
    }

    /// Where the embedded broker listens; none when the bus is outside.
    pub fn bus_addr(&self) -> Option<SocketAddr> {
        self.broker.as_ref().map(Broker::local_addr)
    }

    /// Where the tunnel endpoint listens (UDP).
    pub fn tunnel_addr(&self) -> SocketAddr {
        self.relay.local_addr()
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
        self.service.stop().await;
        self.relay.shutdown().await;
        for task in self.loops {
            task.abort().await;
        }
        drop(self.writer);
        self.thread.join().await;
        if let Some(broker) = self.broker {
            broker.shutdown().await;
        }
    }
}

/// The broker, if it is ours, and how the controller itself logs in.
async fn open_bus(source: BusSource, auditor: &Auditor) -> Result<(Option<Broker>, BusOptions), StartError> {
    let client_name = "orchard controller".to_owned();
    match source {
        BusSource::Embedded { listen, token } => {
            let own = identity::new_token();
            let users = Arc::new(BusUsers { token, own: own.clone() });
            let users = Arc::new(Logins::new(users, auditor.clone()));
            let broker = Broker::builder().server_name("orchard").authenticator(users).bind(listen).await?;
            let mut address = broker.local_addr();
            if address.ip().is_unspecified() {
                // A wildcard is no address to dial; the loopback one of its family always is behind it.
                address.set_ip(if address.is_ipv4() {
                    std::net::Ipv4Addr::LOCALHOST.into()
                } else {
                    std::net::Ipv6Addr::LOCALHOST.into()
                });
            }
            let url = format!("nats://{address}");
            let user = auth::CONTROLLER_USER.to_owned();
            let (trust, login) = (Trust::Plain, Login::Password(own));
            Ok((Some(broker), BusOptions { url, trust, user, login, client_name, patient: false }))
        }
        BusSource::Outside { url, user, password } => {
            let (trust, login) = (Trust::Plain, Login::Password(password));
            Ok((None, BusOptions { url, trust, user, login, client_name, patient: false }))
        }
    }
}

async fn tick(writer: Writer) {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let ticked = writer.submit(|step| {
            step.cluster.tick(step.now, step.changes);
            Ok(())
        });
        if let Err(error) = ticked.await {
            tracing::warn!("{error}");
        }
    }
}
