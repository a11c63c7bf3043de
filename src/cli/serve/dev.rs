//! `orchard dev`: a controller and workers in this process, and a context that leads to them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;

use super::folder::DataFolder;
use super::host::Capacity;
use super::parts::{self, ControllerSetup, RunningController, RunningWorker, WorkerSetup};
use super::runtime::{self, RuntimeChoice};
use super::watched::{WatchArgs, Watched};
use super::{Running, until_stopped};
use crate::broker::BindError;
use crate::cli::output;
use crate::config::Home;
use crate::config::address::parse_listen;
use crate::config::file::ContextFile;
use crate::controller::StartError;
use crate::controller::auth::BOOTSTRAP_ADMIN;
use crate::controller::cluster::Timing;
use crate::controller::store::Retention;
use crate::metrics::Source;
use crate::model::WorkerName;
use crate::model::secret::Secret;
use crate::model::vm::RuntimeKind;
use crate::tunnel::relay::RelayError;
use crate::worker::GIVE_UP_AFTER;

/// The context that leads to this cluster.
const CONTEXT: &str = "local-dev";
/// More workers than anybody needs in one process; each has tasks and connections of its own.
const MAX_WORKERS: i64 = 1000;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchard dev
      # with what this machine has: Tart or QEMU
  orchard dev --runtime synthetic --workers 10
      # without real guests
  orchard dev --listen 127.0.0.1:0 \\
      --bus-listen 127.0.0.1:0 --data-dir /tmp/orchard

The context local-dev becomes the default, so `orchard create vm` and all the others work in
another terminal. Ctrl-C stops the cluster; VMs go on, but for synthetic ones, and the next start
finds them again.")]
pub(in crate::cli) struct DevArgs {
    /// Where the cluster keeps its state [default: dev in the home folder]
    #[arg(long, short, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// What runs VMs: auto, qemu, tart, vetu or synthetic
    #[arg(long, default_value = "auto", value_parser = runtime::parse)]
    runtime: RuntimeChoice,
    /// How many workers
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MAX_WORKERS))]
    workers: u32,
    /// UDP address of the tunnels; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:6120", value_name = "ADDR", value_parser = parse_listen)]
    listen: SocketAddr,
    /// TCP address of the bus; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:4222", value_name = "ADDR", value_parser = parse_listen)]
    bus_listen: SocketAddr,
    #[command(flatten)]
    watch: WatchArgs,
}

/// A whole cluster; stopped in reverse of its start.
struct Cluster {
    controller: RunningController,
    workers: Vec<RunningWorker>,
}

impl Running for Cluster {
    // A worker that was deleted is no reason to end all the others, and joins again at the next start.
    async fn failed(&self) -> String {
        // `select_all` takes no empty list: with no workers only the controller can fail.
        if self.workers.is_empty() {
            return self.controller.failed().await;
        }
        let workers = futures_util::future::select_all(self.workers.iter().map(|worker| Box::pin(worker.failed())));
        tokio::select! {
            part = self.controller.failed() => part,
            (part, ..) = workers => part,
        }
    }

    fn sources(&self) -> Vec<Arc<dyn Source>> {
        let workers = self.workers.iter().flat_map(Running::sources);
        self.controller.sources().into_iter().chain(workers).collect()
    }

    async fn shutdown(self) {
        for worker in self.workers.into_iter().rev() {
            worker.shutdown().await;
        }
        self.controller.shutdown().await;
    }
}

pub(in crate::cli) async fn run(arguments: DevArgs, home: Home) -> anyhow::Result<u8> {
    home.prepare()?;
    let folder = DataFolder::claim(&arguments.data_dir.clone().unwrap_or_else(|| home.path().join("dev")))?;
    let token = folder.token()?;
    let kind = kind(arguments.runtime);
    let start = start(&arguments, &folder, kind, token.clone());
    let announce = |watched: &Watched<Cluster>| announce((&watched.running, watched.url()), &folder, kind, token, home);
    until_stopped(arguments.watch.start(start), announce).await
}

fn kind(choice: RuntimeChoice) -> RuntimeKind {
    match choice {
        RuntimeChoice::Kind(kind) => kind,
        RuntimeChoice::Auto => runtime::detect().unwrap_or_else(|| {
            eprintln!("WARNING: {}.", runtime::NOTHING_FOUND);
            eprintln!("WARNING: the workers run synthetic VMs: they have a status and events, but no guest inside.");
            RuntimeKind::Synthetic
        }),
    }
}

async fn start(arguments: &DevArgs, folder: &DataFolder, kind: RuntimeKind, token: Secret) -> anyhow::Result<Cluster> {
    let controller = parts::start_controller(ControllerSetup {
        data_dir: folder.path().join("controller"),
        listen: arguments.listen,
        bus_listen: arguments.bus_listen,
        outside_bus: None,
        tunnel_host: None,
        tls: true,
        bus_host: None,
        certificate: None,
        jump: None,
        events_kept: Retention::default(),
        bootstrap_token: Some(token),
        timing: Timing::default(),
    })
    .await
    .map_err(|error| both_ports(error, arguments))
    .context("cannot start the controller")?;
    let capacity = Capacity::of(kind);
    let defaults = capacity.modest_defaults();
    let mut workers = Vec::new();
    for number in 1..=arguments.workers {
        let name: WorkerName = format!("dev-{number}").parse()?;
        let data_dir = folder.path().join("workers").join(name.as_str());
        let started = async {
            let bus = controller.admit(&name, &data_dir).await?;
            let setup = WorkerSetup {
                bus,
                machine_id: parts::machine_id(&data_dir)?,
                data_dir,
                runtime: kind,
                resources: capacity.resources(kind),
                labels: Default::default(),
                default_cpu: defaults.cores,
                default_memory: defaults.memory,
                give_up_after: GIVE_UP_AFTER,
                keep_free: 0,
                delete_unknown_after: None,
                host_access: true,
                local_network: None,
                session_linger: None,
                name: name.clone(),
            };
            parts::start_worker(setup, None).await
        };
        let started = started.await.with_context(|| format!("cannot start worker {name}"));
        match started {
            Ok(worker) => workers.push(worker),
            Err(error) => {
                Cluster { controller, workers }.shutdown().await;
                return Err(error);
            }
        }
    }
    Ok(Cluster { controller, workers })
}

/// With both options that choose a port: another program that has the one often has, or soon gets, the other, too.
fn both_ports(error: anyhow::Error, arguments: &DevArgs) -> anyhow::Error {
    let taken = match error.downcast::<StartError>() {
        Ok(taken @ (StartError::Broker(BindError::Listen { .. }) | StartError::Tunnel(RelayError::Bind { .. }))) => {
            taken
        }
        Ok(other) => return other.into(),
        Err(other) => return other,
    };
    let DevArgs { bus_listen, listen, .. } = arguments;
    anyhow::Error::new(taken).context(format!(
        "a cluster needs two ports, TCP {bus_listen} (--bus-listen) and UDP {listen} (--listen); give others, or port 0 \
         for any that is free"
    ))
}

fn announce(
    (cluster, metrics): (&Cluster, Option<String>),
    folder: &DataFolder,
    kind: RuntimeKind,
    token: Secret,
    home: Home,
) -> anyhow::Result<()> {
    let controller = &cluster.controller;
    let file = ContextFile::new(home);
    let context = controller.context(BOOTSTRAP_ADMIN.parse()?, token);
    file.update(|all| all.put(CONTEXT, context, true))?;
    tracing::info!(bus = %controller.bus_url, tunnels = %controller.tunnel_addr, "the cluster is up");
    output::line(&format!(
        "\
orchard dev is ready
  bus      {bus}
  tunnels  {tunnels} (udp)
  workers  {workers} ({kind})
{metrics}  data     {data}
  context  {CONTEXT}, now the default in {file}

In another terminal:
  orchard create vm first --image {image} --wait
  orchard ssh vm first
  orchard events --after 0
Ctrl-C stops the cluster.",
        bus = controller.bus_url,
        tunnels = controller.tunnel_addr,
        workers = cluster.workers.len(),
        data = folder.path().display(),
        metrics = metrics.map(|url| format!("  metrics  {url}/metrics\n")).unwrap_or_default(),
        file = file.path().display(),
        image = match kind {
            RuntimeKind::Tart => "ghcr.io/cirruslabs/macos-tahoe-base:latest",
            RuntimeKind::Vetu => "ghcr.io/cirruslabs/ubuntu:latest",
            RuntimeKind::Qemu => "PATH.qcow2",
            RuntimeKind::Synthetic | RuntimeKind::Unknown => "any",
        },
    ))?;
    Ok(())
}
