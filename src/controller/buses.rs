//! The bus as the controller starts or finds it, and its own connections to it: one for each kind of peer, so that a
//! flood of one kind, should it ever get past all bounds and cost that connection, stops neither the others nor what the
//! controller has to say. Used by the controller when it starts.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::audit::{Auditor, Logins};
use super::auth::{self, AccessView, BusUsers};
use super::service::BusAddress;
use super::{BusSource, StartError};
use crate::broker::tls::Tls;
use crate::broker::{Broker, Limits};
use crate::bus::client::{Bus, BusOptions, Login, Trust};
use crate::identity;
use crate::identity::ca::{Fingerprint, Identity};
use crate::model::Clock;
use crate::model::error::{ApiError, ErrorCode};

/// Connections to the bus from one network that have not logged in yet. A fleet that comes back at once is in after a few
/// attempts.
const MAX_STRANGERS: usize = 256;

/// How long the controller tries to reach its own broker when it starts: what keeps it out are users of the same machine who
/// flood it, and none of them can for long.
const OWN_PATIENCE: Duration = Duration::from_secs(30);
/// The pause between two attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// The connections; all log in as the same user.
#[derive(Clone, Debug)]
pub(super) struct Buses {
    /// Requests of accounts, and their answers.
    pub(super) api: Bus,
    /// What workers say: registrations, leases, reports, log lines. And what they are told.
    pub(super) workers: Bus,
    /// Machines that join.
    pub(super) joins: Bus,
    /// Events and the audit trail, which many may follow. Nobody can send anything to it.
    pub(super) news: Bus,
}

impl Buses {
    /// Connects; while nothing answers, tries again for as long as `patience`.
    ///
    /// # Errors
    /// As for [`Bus::connect`].
    pub(super) async fn connect(login: &BusOptions, patience: Duration) -> Result<Self, ApiError> {
        let one = |what: &str| {
            let client_name = format!("{}: {what}", login.client_name);
            connect_within(BusOptions { client_name, ..login.clone() }, patience)
        };
        let all = tokio::try_join!(one("requests"), one("workers"), one("joins"), one("news"))?;
        let (api, workers, joins, news) = all;
        Ok(Self { api, workers, joins, news })
    }
}

async fn connect_within(options: BusOptions, patience: Duration) -> Result<Bus, ApiError> {
    let begun = Instant::now();
    loop {
        match Bus::connect(options.clone()).await {
            Err(error) if error.code == ErrorCode::Unavailable && begun.elapsed() < patience => {
                tracing::info!("{error}; trying again");
                sleep(RETRY_PAUSE).await;
            }
            done => return done,
        }
    }
}

/// The bus, opened.
pub(super) struct OpenBus {
    /// If it is ours.
    pub(super) broker: Option<Arc<Broker>>,
    /// What its certificate is known by.
    pub(super) fingerprint: Option<Fingerprint>,
    /// How the controller itself logs in; to its own broker, through the private door.
    pub(super) login: BusOptions,
    /// How long it tries to.
    pub(super) patience: Duration,
    /// How to reach the bus from this machine.
    pub(super) url: String,
    /// How others reach it.
    pub(super) address: BusAddress,
}

/// Starts the embedded broker, or finds out how to log in to the one outside.
///
/// # Errors
/// [`StartError`].
pub(super) async fn open_bus(
    source: BusSource,
    identity: &Identity,
    access: Arc<AccessView>,
    clock: Clock,
    auditor: &Auditor,
) -> Result<OpenBus, StartError> {
    let client_name = "orchard controller".to_owned();
    let (listen, tls, host) = match source {
        BusSource::Embedded { listen, tls, host } => (listen, tls, host),
        BusSource::Outside { url, user, password } => {
            let trust = if url.starts_with("tls://") { Trust::PublicCas } else { Trust::Plain };
            let address = BusAddress { url: Some(url.clone()), fingerprint: None };
            let login = BusOptions {
                url: url.clone(),
                trust,
                user,
                login: Login::Password(password),
                client_name,
                patient: false,
            };
            let patience = Duration::ZERO; // whether it is up is its operator's matter
            return Ok(OpenBus { broker: None, fingerprint: None, login, patience, url, address });
        }
    };
    let own = identity::new_token();
    let users = Logins::new(Arc::new(BusUsers::new(access, clock, own.clone())), auditor.clone());
    let limits = Limits { max_unproven_per_network: MAX_STRANGERS, ..Limits::default() };
    let mut builder =
        Broker::builder().server_name("orchard").limits(limits).authenticator(Arc::new(users)).private_door();
    if tls {
        builder = builder.tls(Tls::new(Arc::new(identity::tls::server_config(identity, &[])?), false));
    }
    let broker = builder.bind(listen).await?;
    let fingerprint = tls.then(|| identity.fingerprint());
    let (scheme, trust) = match fingerprint {
        Some(fingerprint) => ("tls", Trust::Certificate(fingerprint)),
        None => ("nats", Trust::Plain),
    };
    let local = broker.local_addr();
    let mut dialled = local;
    if local.ip().is_unspecified() {
        // A wildcard is no address to dial; the loopback one of its family always is behind it.
        dialled.set_ip(match local.ip() {
            IpAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    let named = host.as_ref().map(|host| match host.parse() {
        Ok(IpAddr::V6(bare)) => format!("[{bare}]:{}", local.port()),
        _ => format!("{host}:{}", local.port()),
    });
    let others = named.or_else(|| (!local.ip().is_unspecified()).then(|| local.to_string()));
    // Whoever is pinned to a certificate is lost when it is renewed; one that a CA vouches for needs no pin.
    let vouched_for = host.as_deref().is_some_and(|host| identity::tls::is_vouched_for(identity, host));
    let address = BusAddress {
        url: others.map(|others| format!("{scheme}://{others}")),
        fingerprint: fingerprint.filter(|_| !vouched_for),
    };
    let (url, user) = (format!("{scheme}://{dialled}"), auth::CONTROLLER_USER.to_owned());
    let (own_url, trust) = match broker.private_addr() {
        Some(private) => (format!("nats://{private}"), Trust::Plain),
        None => (url.clone(), trust),
    };
    let login = BusOptions { url: own_url, trust, user, login: Login::Password(own), client_name, patient: false };
    let patience = OWN_PATIENCE;
    Ok(OpenBus { broker: Some(Arc::new(broker)), fingerprint, login, patience, url, address })
}
