//! The connection of client commands: a context in force, the bus, and who to be there.

use std::time::Duration;

use anyhow::Context as _;

use super::{Global, UsageError};
use crate::bus::client::{Bus, BusOptions, Login, REQUEST_TIMEOUT, Trust};
use crate::bus::message::{ApiCall, GetInfo, GetVm};
use crate::config::Home;
use crate::config::file::ContextFile;
use crate::config::target::{Overrides, Target};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::vm::Vm;
use crate::model::{VmName, access};

/// A controller that can be asked.
#[derive(Clone, Debug)]
pub(super) struct Client {
    bus: Bus,
    target: Target,
}

impl Client {
    /// Finds the context and connects.
    pub(super) async fn connect(home: &Home, global: &Global) -> anyhow::Result<Self> {
        let file = ContextFile::new(home.clone());
        let contexts = file.load().context("cannot find out which controller to use")?;
        if let Some(warning) = file.exposure() {
            eprintln!("{warning}");
        }
        let overrides = match global.context {
            Some(_) => Ok(Overrides::default()),
            None => Overrides::from_environment(),
        };
        let target = overrides.and_then(|overrides| Target::resolve(&contexts, global.context.as_deref(), overrides));
        let target = target.map_err(|error| match error.is_usage() {
            true => anyhow::Error::new(UsageError(error.to_string())),
            false => error.into(),
        })?;
        Ok(Self::log_in(target).await?)
    }

    /// Connects to `target`.
    pub(super) async fn log_in(target: Target) -> Result<Self, ApiError> {
        let bus = Bus::connect(BusOptions {
            url: target.url.clone(),
            user: target.account.to_string(),
            trust: Trust::of(&target.url, target.fingerprint),
            login: Login::Password(target.token.clone()),
            client_name: format!("orchard-cli/{}", env!("CARGO_PKG_VERSION")),
            patient: false,
        })
        .await?;
        Ok(Self { bus, target })
    }

    /// Asks, and waits at most [`REQUEST_TIMEOUT`].
    pub(super) async fn call<C: ApiCall>(&self, request: &C) -> Result<C::Reply, ApiError> {
        self.call_within(request, REQUEST_TIMEOUT).await
    }

    /// Asks, and waits at most `timeout`.
    pub(super) async fn call_within<C: ApiCall>(&self, request: &C, timeout: Duration) -> Result<C::Reply, ApiError> {
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
    pub(super) async fn is_bus_outside(&self) -> bool {
        self.call(&GetInfo {}).await.is_ok_and(|info| info.outside_bus)
    }

    /// Tells, if that is so, what is left to do at the operator's own NATS server.
    pub(super) fn note_outside(&self, outside: bool, todo: &str) {
        if outside {
            let url = &self.target.url;
            eprintln!(
                "NOTE: the NATS server at {url} is not the controller's and decides by itself who gets in: {todo}"
            );
        }
    }

    /// Does what goes on for long, until its end or until the account is let in no more.
    pub(super) async fn until_refused(&self, work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
        tokio::select! {
            done = work => done,
            error = self.shut_out() => Err(error.into()),
        }
    }

    /// Waits until the account is let in no more; losing the connection alone is none of that. Cancel safe.
    pub(super) async fn shut_out(&self) -> ApiError {
        let ApiError { code, message } = self.bus.shut_out(Duration::ZERO).await;
        ApiError::new(code, format!("the connection was ended, and {message}"))
    }

    /// The VM `name`.
    pub(super) async fn vm(&self, name: &VmName) -> Result<Vm, ApiError> {
        self.call(&GetVm { name: name.clone() }).await
    }

    /// The same for commands that can do without: none when the account may connect to VMs but not see them.
    pub(super) async fn vm_if_visible(&self, name: &VmName) -> Result<Option<Vm>, ApiError> {
        match self.vm(name).await {
            Err(error) if error.code == ErrorCode::Forbidden => Ok(None),
            seen => seen.map(Some),
        }
    }

    /// The bus itself.
    pub(super) fn bus(&self) -> &Bus {
        &self.bus
    }

    /// What is in force.
    pub(super) fn target(&self) -> &Target {
        &self.target
    }
}
