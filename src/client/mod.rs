//! The client library: a cluster's API, its events, and waiting for VMs. The command line itself works with it.
//!
//! A [`Client`] is a connection as one account. What it does is as typed as the bus: every verb is a type of [`crate::bus`]
//! (an [`ApiCall`]), and [`Client::call`] takes any of them; the common ones have a method of their own ([`vms`]).
//!
//! ```
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/doc_cluster.inc"));
//! use std::time::Duration;
//!
//! use orchard::client::Client;
//! use orchard::client::wait::Watch;
//! use orchard::model::vm::VmSpec;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> { run(async |target: Target| -> Result<(), Box<dyn std::error::Error>> {
//! // `target` says which controller and who to be there; Client::from_context finds it as the command line does.
//! let client = Client::log_in(target).await?;
//! let name = "build-1".parse()?;
//! // Listening begins before there is anything to hear, so that nothing is missed.
//! let watch = Watch::begin(&client, &name).await?;
//! let spec = VmSpec { image: "any".into(), ..VmSpec::default() };
//! let vm = client.create_vm(&name, spec).await?;
//! let vm = watch.until_ready(&client, &vm, Duration::from_secs(60), |_| ()).await?;
//! assert!(vm.ready && vm.worker.is_some());
//! client.delete_vm(&name).await?;
//! # Ok(()) }) }
//! ```
//!
//! Events come in order and without gaps, over restarts of the controller, too; a program that keeps
//! [`Events::position`](events::Events::position) goes on there after its own:
//!
//! ```
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/doc_cluster.inc"));
//! use orchard::client::Client;
//! use orchard::client::events::Told;
//! use orchard::model::event::{EventFilter, EventType};
//! use orchard::model::vm::VmSpec;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> { run(async |target: Target| -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::log_in(target).await?;
//! client.create_vm(&"build-1".parse()?, VmSpec { image: "any".into(), ..VmSpec::default() }).await?;
//!
//! let only = EventFilter { types: vec![EventType::Created], ..EventFilter::default() };
//! let mut events = client.events(only, Some(0)).await?;
//! let first = loop {
//!     match events.next().await? {
//!         Told::Events(events) => break events[0].clone(),
//!         Told::Trimmed(numbers) => eprintln!("events {numbers:?} are no longer kept"),
//!         Told::Waiting(why) => eprintln!("waiting for the controller: {why}"),
//!     }
//! };
//! assert_eq!(first.kind, EventType::Created);
//! // A later process, or another connection, goes on behind it.
//! let again = client.events(EventFilter::default(), Some(events.position())).await?;
//! assert!(again.position() >= first.number);
//! # Ok(()) }) }
//! ```
//!
//! TCP ports of VMs are reached through the tunnel, from anywhere, and what is connected goes on when the link was down ([`tunnel`]);
//! commands are run by [`exec`] or by SSH over such a stream:
//!
//! ```
//! # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/doc_cluster.inc"));
//! use std::time::Duration;
//!
//! use orchard::client::Client;
//! use orchard::client::tunnel::Place;
//! use orchard::client::wait::Watch;
//! use orchard::model::vm::VmSpec;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> { run(async |target: Target| -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::log_in(target).await?;
//! let name = "build-1".parse()?;
//! let watch = Watch::begin(&client, &name).await?;
//! let vm = client.create_vm(&name, VmSpec { image: "any".into(), ..VmSpec::default() }).await?;
//! watch.until_ready(&client, &vm, Duration::from_secs(60), |_| ()).await?;
//!
//! let dialer = client.dialer();
//! let mut stream = dialer.open(&Place::Vm(name), 7).await?.stream;
//! stream.write_all(b"hello").await?;
//! stream.shutdown().await?;
//! let mut echoed = String::new();
//! stream.read_to_string(&mut echoed).await?;
//! assert_eq!(echoed, "hello");
//! drop(stream);
//! dialer.close().await;
//! # Ok(()) }) }
//! ```

pub mod events;
pub mod exec;
pub mod order;
pub mod tunnel;
pub mod vms;
pub mod wait;

use std::time::Duration;

use crate::bus::client::{Bus, BusOptions, Login, REQUEST_TIMEOUT, Trust};
use crate::bus::message::{ApiCall, GetInfo};
use crate::config::context::ContextError;
use crate::config::file::ContextFile;
use crate::config::target::{Overrides, Target};
use crate::config::{Home, HomeError};
use crate::model::access;
use crate::model::error::{ApiError, ErrorCode};

/// A controller that can be asked, as one account. Cheap to clone; all clones share one connection, which comes back by
/// itself when it is lost.
#[derive(Clone, Debug)]
pub struct Client {
    bus: Bus,
    target: Target,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The folder with the saved contexts.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The contexts or the environment name no controller, or name it wrongly.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// The controller.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// Which controller is meant: the saved context `name`, else what the environment (`ORCHARD_URL` and its like) and the default
/// context come to.
///
/// # Errors
/// What is missing and how to give it.
pub fn find_target(home: &Home, name: Option<&str>) -> Result<Target, ContextError> {
    let contexts = ContextFile::new(home.clone()).load()?;
    let overrides = match name {
        Some(_) => Overrides::default(),
        None => Overrides::from_environment()?,
    };
    Target::resolve(&contexts, name, overrides)
}

impl Client {
    /// Connects to the controller that the command line would use, by the same contexts and variables.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn from_context(name: Option<&str>) -> Result<Self, ConnectError> {
        let target = find_target(&Home::locate()?, name)?;
        Ok(Self::log_in(target).await?)
    }

    /// Connects to `target`.
    ///
    /// # Errors
    /// [`ErrorCode::Unauthenticated`] when the account is refused, [`ErrorCode::Unavailable`] when nothing answers there, or
    /// something that shows another certificate.
    pub async fn log_in(target: Target) -> Result<Self, ApiError> {
        let bus = Bus::connect(BusOptions {
            url: target.url.clone(),
            user: target.account.to_string(),
            trust: Trust::of(&target.url, target.fingerprint),
            login: Login::Password(target.token.clone()),
            client_name: format!("orchard-client/{}", env!("CARGO_PKG_VERSION")),
            patient: false,
        })
        .await?;
        Ok(Self { bus, target })
    }

    /// Asks, and waits at most [`REQUEST_TIMEOUT`]. Cancel safe: the request may still be carried out.
    ///
    /// # Errors
    /// What the controller answered; [`ErrorCode::Unavailable`] and [`ErrorCode::Timeout`] when it does not;
    /// [`ErrorCode::Unauthenticated`] once the account is let in no more.
    pub async fn call<C: ApiCall>(&self, request: &C) -> Result<C::Reply, ApiError> {
        self.call_within(request, REQUEST_TIMEOUT).await
    }

    /// The same, and waits at most `timeout`.
    ///
    /// # Errors
    /// As for [`Client::call`].
    pub async fn call_within<C: ApiCall>(&self, request: &C, timeout: Duration) -> Result<C::Reply, ApiError> {
        let answered = tokio::select! {
            answered = self.bus.call(&self.target.account, request, timeout) => answered,
            error = self.shut_out() => Err(error),
        };
        match answered {
            Err(error) if error.code == ErrorCode::Forbidden => Err(self.with_advice::<C>(error).await),
            answered => answered,
        }
    }

    /// Adds how the missing role can be granted, which takes a list of all roles; a refusal by the bus knows only one.
    async fn with_advice<C: ApiCall>(&self, refused: ApiError) -> ApiError {
        let Some(rule) = access::rule(C::RESOURCE, C::VERB) else { return refused };
        let info = self.bus.call(&self.target.account, &GetInfo {}, REQUEST_TIMEOUT).await;
        let Some(roles) = info.ok().and_then(|info| info.roles) else { return refused };
        let (account, needs) = (&self.target.account, rule.needs);
        let Some(grant) = access::grant_command(account, &roles, needs) else { return refused };
        let has = if roles.is_empty() { "none".to_owned() } else { roles.to_string() };
        let what = format!(
            "the account {account} may not do {}.{}: that needs {needs}, and its roles are: {has}; somebody with \
             admin:write can grant it with `{grant}`",
            C::RESOURCE,
            C::VERB
        );
        ApiError::new(refused.code, what)
    }

    /// Whether the bus is a NATS server of the operator, which knows nothing of what the controller changes.
    pub async fn is_bus_outside(&self) -> bool {
        self.call(&GetInfo {}).await.is_ok_and(|info| info.outside_bus)
    }

    /// Waits until the account is let in no more; losing the connection alone is none of that. Cancel safe.
    pub async fn shut_out(&self) -> ApiError {
        let ApiError { code, message } = self.bus.shut_out(Duration::ZERO).await;
        ApiError::new(code, format!("the connection was ended, and {message}"))
    }

    /// Opens streams into VMs; one for all of them is enough. See [`tunnel::Dialer::new`] for who wants to hear of lost links.
    pub fn dialer(&self) -> tunnel::Dialer {
        tunnel::Dialer::new(self.clone(), std::sync::Arc::new(|_| ()))
    }

    /// The bus itself.
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Which controller this is, and who is asking there.
    pub fn target(&self) -> &Target {
        &self.target
    }
}

/// Whether an error may be gone at the next try.
pub fn is_passing(error: &ApiError) -> bool {
    matches!(error.code, ErrorCode::Unavailable | ErrorCode::Timeout)
}
