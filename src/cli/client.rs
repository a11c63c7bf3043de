//! The connection of client commands: a context in force, the bus, and who to be there.

use std::time::Duration;

use anyhow::Context as _;

use super::Global;
use crate::bus::client::{Bus, BusOptions, Login, REQUEST_TIMEOUT, Trust};
use crate::bus::message::{ApiCall, GetVm};
use crate::config::Home;
use crate::config::context::ContextFile;
use crate::config::target::{Overrides, Target};
use crate::model::VmName;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::vm::Vm;

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
        let target = Target::resolve(&contexts, global.context.as_deref(), Overrides::from_environment())?;
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
        tokio::select! {
            answered = self.bus.call(&self.target.account, request, timeout) => answered,
            error = self.shut_out() => Err(error),
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
        let ApiError { code, message } = self.bus.shut_out().await;
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
