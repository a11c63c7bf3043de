//! Where the commands that serve meet the parts that do the work: options in, something [`Running`] out.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::Running;
use crate::model::WorkerName;
use crate::model::resources::{Labels, Resources};
use crate::model::secret::Secret;
use crate::model::vm::RuntimeKind;

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
    /// What workers and the first account log in with.
    pub(super) token: Secret,
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
    pub(super) bus_url: String,
    pub(super) token: Secret,
    pub(super) data_dir: PathBuf,
    pub(super) runtime: RuntimeKind,
    pub(super) resources: Resources,
    pub(super) labels: Labels,
    pub(super) default_cpu: u64,
    /// In MiB.
    pub(super) default_memory: u64,
}

/// A controller that is up.
#[derive(Debug)]
pub(super) struct RunningController {
    /// How to reach its bus from this machine.
    pub(super) bus_url: String,
    /// Where its broker listens; none with an outside bus.
    pub(super) bus_addr: Option<SocketAddr>,
    /// Where its tunnels listen.
    pub(super) tunnel_addr: SocketAddr,
}

/// A worker that is registered.
#[derive(Debug)]
pub(super) struct RunningWorker {}

/// Starts a controller and returns once it answers requests.
///
/// TO COMPLETE: `controller::Controller::start(ControllerOptions { .. })`, kept in [`RunningController`].
pub(super) async fn start_controller(setup: ControllerSetup) -> anyhow::Result<RunningController> {
    let _ = (setup.data_dir, setup.listen, setup.bus_listen, setup.tunnel_host, setup.token);
    if let Some(bus) = setup.outside_bus {
        let _ = (bus.url, bus.user, bus.password);
    }
    anyhow::bail!("this build holds no controller")
}

/// Starts a worker and returns once it is registered.
///
/// TO COMPLETE: the runtime out of `setup.runtime`, then `worker::Worker::start(WorkerOptions { .. })`, kept in
/// [`RunningWorker`].
pub(super) async fn start_worker(setup: WorkerSetup) -> anyhow::Result<RunningWorker> {
    let _ = (setup.name, setup.bus_url, setup.token, setup.data_dir, setup.runtime);
    let _ = (setup.resources, setup.labels, setup.default_cpu, setup.default_memory);
    anyhow::bail!("this build holds no worker")
}

impl Running for RunningController {
    /// TO COMPLETE: `Controller::shutdown`.
    async fn shutdown(self) {}
}

impl Running for RunningWorker {
    /// TO COMPLETE: `Worker::shutdown`, which leaves VMs running.
    async fn shutdown(self) {}
}
