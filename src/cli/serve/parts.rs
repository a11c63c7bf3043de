//! Where the commands that serve meet the parts that do the work: options in, something [`Running`] out.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;

use super::{Running, ended, runtime};
use crate::broker::BindError;
use crate::bus::client::BusOptions;
use crate::config::context::Context;
use crate::config::join::BootstrapToken;
use crate::controller::cluster::Timing;
use crate::controller::store::Retention;
use crate::controller::{BusSource, Controller, ControllerOptions, JumpOptions, StartError};
use crate::identity;
use crate::identity::ca::Fingerprint;
use crate::identity::folder::FolderLock;
use crate::metrics::Source;
use crate::model::resources::{Labels, Resources};
use crate::model::secret::Secret;
use crate::model::vm::{Arch, Os, RuntimeKind};
use crate::model::worker::WorkerInfo;
use crate::model::{AccountName, WorkerName};
use crate::worker::join::{Candidate, JoinError};
use crate::worker::local_network::LocalNetwork;
use crate::worker::{Worker, WorkerOptions};

/// How long a token is good that is used by this very process, and at once.
const OWN_TOKEN_TTL: Duration = Duration::from_secs(600);

/// What a controller needs to start.
#[derive(Debug)]
pub(super) struct ControllerSetup {
    /// Its data folder.
    pub(super) data_dir: PathBuf,
    /// UDP address of the tunnels.
    pub(super) listen: SocketAddr,
    /// Where the embedded broker listens; not used with an outside bus.
    pub(super) bus_listen: SocketAddr,
    /// A NATS server to use in place of the embedded broker.
    pub(super) outside_bus: Option<OutsideBus>,
    /// The host name that workers and users reach the tunnels by; none = that of the bus.
    pub(super) tunnel_host: Option<String>,
    /// Whether the embedded broker encrypts.
    pub(super) tls: bool,
    /// Host name or address under which others reach the embedded broker; none = `bus_listen`.
    pub(super) bus_host: Option<String>,
    /// Certificate and key to use in place of the controller's own.
    pub(super) certificate: Option<(PathBuf, PathBuf)>,
    /// The SSH jump host, if there is to be one.
    pub(super) jump: Option<JumpOptions>,
    /// How long events are kept.
    pub(super) events_kept: Retention,
    /// The first account's token from now on; none = the one it has.
    pub(super) bootstrap_token: Option<Secret>,
    /// How liveness is judged.
    pub(super) timing: Timing,
}

/// A NATS server that somebody else runs.
#[derive(Debug)]
pub(super) struct OutsideBus {
    pub(super) url: String,
    pub(super) user: String,
    pub(super) password: Secret,
}

/// What a worker needs to start.
#[derive(Debug)]
pub(super) struct WorkerSetup {
    pub(super) name: WorkerName,
    /// The bus and how it logs in there.
    pub(super) bus: BusOptions,
    pub(super) data_dir: PathBuf,
    /// See [`machine_id`].
    pub(super) machine_id: String,
    pub(super) runtime: RuntimeKind,
    pub(super) resources: Resources,
    pub(super) labels: Labels,
    pub(super) default_cpu: u64,
    /// In MiB.
    pub(super) default_memory: u64,
    /// As in [`WorkerOptions`].
    pub(super) give_up_after: Duration,
    /// The same.
    pub(super) keep_free: u64,
    /// As in [`WorkerOptions`].
    pub(super) delete_unknown_after: Option<Duration>,
    /// Whether those with `admin:write` may connect to its machine.
    pub(super) host_access: bool,
    /// How guests are reached, if not directly.
    pub(super) local_network: Option<LocalNetwork>,
    /// How long the keeper of its sessions stays without one; none = as usual.
    pub(super) session_linger: Option<Duration>,
}

/// A controller that is up.
#[derive(Debug)]
pub(super) struct RunningController {
    /// How to reach its bus from this machine.
    pub(super) bus_url: String,
    /// UDP address of the tunnels.
    pub(super) tunnel_addr: SocketAddr,
    /// What the certificate of its broker is known by; none with an outside bus or without TLS.
    pub(super) fingerprint: Option<Fingerprint>,
    /// The first account's token, if it was made or given in this start.
    pub(super) bootstrap_token: Option<Secret>,
    /// Where its SSH jump host listens, and what that is known by; none when there is none.
    pub(super) jump_host: Option<(SocketAddr, String)>,
    controller: Controller,
}

/// A worker that runs; it registers, and registers again when needed, by itself.
#[derive(Debug)]
pub(super) struct RunningWorker {
    worker: Worker,
}

/// Starts a controller and returns once it answers requests.
pub(super) async fn start_controller(setup: ControllerSetup) -> anyhow::Result<RunningController> {
    let bus = match setup.outside_bus {
        Some(OutsideBus { url, user, password }) => BusSource::Outside { url, user, password },
        None => BusSource::Embedded { listen: setup.bus_listen, tls: setup.tls, host: setup.bus_host },
    };
    let controller = Controller::start(ControllerOptions {
        data_dir: setup.data_dir,
        bus,
        listen: setup.listen,
        tunnel_host: setup.tunnel_host,
        timing: setup.timing,
        certificate: setup.certificate,
        jump: setup.jump,
        events_kept: setup.events_kept,
        bootstrap_token: setup.bootstrap_token,
    })
    .await
    .map_err(advised)?;
    Ok(RunningController {
        bus_url: controller.bus_url().to_owned(),
        tunnel_addr: controller.tunnel_addr(),
        fingerprint: controller.fingerprint(),
        bootstrap_token: controller.bootstrap_token().cloned(),
        jump_host: controller.jump_host().map(|(address, key)| (address, key.to_owned())),
        controller,
    })
}

/// With the option that helps, where that is not the one which the part itself would name: `broker run` has another.
fn advised(error: StartError) -> anyhow::Error {
    match error {
        StartError::Broker(BindError::Listen { .. }) => {
            anyhow::Error::new(error).context("the bus needs another address: give one with --bus-listen")
        }
        other => other.into(),
    }
}

/// Starts a worker in a data folder whose lock is this, or which it is to lock itself.
pub(super) async fn start_worker(setup: WorkerSetup, lock: Option<FolderLock>) -> anyhow::Result<RunningWorker> {
    let runtime = runtime::open(setup.runtime, &setup.data_dir, setup.local_network, setup.keep_free).await?;
    let info = WorkerInfo {
        machine_id: setup.machine_id,
        name: setup.name,
        os: if cfg!(target_os = "macos") { Os::Darwin } else { Os::Linux },
        arch: Arch::HOST,
        runtime: setup.runtime,
        resources: setup.resources,
        labels: setup.labels,
        default_cpu: setup.default_cpu,
        default_memory: setup.default_memory,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let options = WorkerOptions {
        guard: Some(super::guard::command(&setup.data_dir, setup.runtime)?),
        sessions: Some(super::session_keeper::command(&setup.data_dir, setup.session_linger)?),
        bus: setup.bus,
        data_dir: setup.data_dir,
        info,
        runtime,
        give_up_after: setup.give_up_after,
        keep_free: setup.keep_free,
        delete_unknown_after: setup.delete_unknown_after,
        host_access: setup.host_access,
    };
    let worker = match lock {
        Some(lock) => Worker::start_in(options, lock).await?,
        None => Worker::start(options).await?,
    };
    Ok(RunningWorker { worker })
}

/// What tells this worker from another of the same name: made once, kept in its data folder, which is made, too. Not the
/// operating system's id of the machine, which containers and cloned disks share.
pub(super) fn machine_id(data_dir: &Path) -> anyhow::Result<String> {
    identity::make_private_dir(data_dir)
        .with_context(|| format!("cannot make the data folder {}", data_dir.display()))?;
    let path = data_dir.join("machine-id");
    match std::fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => Ok(id.trim().to_owned()),
        _ => {
            let id = uuid::Uuid::new_v4().to_string();
            identity::write_private(&path, id.as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
            Ok(id)
        }
    }
}

impl RunningController {
    /// How `account`, whose token is `token`, reaches it from this machine.
    pub(super) fn context(&self, account: AccountName, token: Secret) -> Context {
        Context {
            url: self.bus_url.clone(),
            account: Some(account),
            token: Some(token),
            fingerprint: self.fingerprint,
            other: Default::default(),
        }
    }

    /// Has the first account's token, which is saved now, be nowhere else in plain text.
    pub(super) fn token_is_saved(&self) -> anyhow::Result<()> {
        Ok(self.controller.bootstrap_token_is_saved()?)
    }

    /// Lets the worker `name` of this very process in: with the key that it has, or else with one that it now gets.
    pub(super) async fn admit(&self, name: &WorkerName, data_dir: &Path) -> anyhow::Result<BusOptions> {
        let machine_id = machine_id(data_dir)?;
        let (url, fingerprint) = (self.bus_url.clone(), self.fingerprint);
        let name = name.clone();
        let candidate =
            Candidate { data_dir, name: Some(name.clone()), default_name: None, machine_id: &machine_id, token: None };
        match candidate.clone().become_member_at(url.clone(), fingerprint).await {
            Err(JoinError::NoToken(_) | JoinError::Revoked { .. }) => {}
            known => return Ok(known?.bus()),
        }
        let made = self.controller.create_join_token(OWN_TOKEN_TTL, 1, Some(name)).await?;
        let id = made.id.parse().map_err(anyhow::Error::msg)?;
        let token = BootstrapToken { url, fingerprint, id, secret: made.secret };
        Ok(Candidate { token: Some(token), ..candidate }.become_member().await?.bus())
    }
}

impl RunningWorker {
    /// Returns, with what to say of it, when the worker is not let in any more; see [`Worker::revoked`].
    pub(super) async fn revoked(&self) -> String {
        self.worker.revoked().await.to_string()
    }

    /// Stops it with its VMs; see [`Worker::shutdown_with_vms`].
    pub(super) async fn shutdown_with_vms(self, tell: impl FnMut(usize)) -> Option<usize> {
        self.worker.shutdown_with_vms(tell).await
    }
}

impl Running for RunningController {
    async fn failed(&self) -> String {
        ended(self.controller.failed().await)
    }

    fn sources(&self) -> Vec<Arc<dyn Source>> {
        vec![self.controller.watch()]
    }

    async fn shutdown(self) {
        self.controller.shutdown().await;
    }
}

impl Running for RunningWorker {
    async fn failed(&self) -> String {
        ended(self.worker.failed().await)
    }

    fn sources(&self) -> Vec<Arc<dyn Source>> {
        vec![self.worker.watch()]
    }

    async fn shutdown(self) {
        self.worker.shutdown().await;
    }
}
