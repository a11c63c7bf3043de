//! `orchard worker run`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::as_user;
use super::folder::{self, DataFolder};
use super::guard::{self, GuardArgs};
use super::host::{self, Capacity};
use super::parts::{self, RunningWorker, WorkerSetup};
use super::runtime::{self, RuntimeChoice};
use super::session_keeper::{self, SessionKeeperArgs};
use super::watched::WatchArgs;
use super::{Running, STOP_GRACE, until_stopped};
use crate::bus::client::{BusOptions, Login, Trust};
use crate::bus::subject;
use crate::cli::{UsageError, output, pairs};
use crate::config::address::normalise_bus_url;
use crate::config::join::BootstrapToken;
use crate::config::{Home, duration};
use crate::identity::ca::Fingerprint;
use crate::metrics::Source;
use crate::model::WorkerName;
use crate::model::resources::{Labels, Resources};
use crate::model::secret::Secret;
use crate::model::vm::RuntimeKind;
use crate::worker::join::{Candidate, JoinError};
use crate::worker::local_network::LocalNetwork;

/// The variable that may hold the password for a NATS server of somebody else.
const TOKEN: &str = "ORCHARD_TOKEN";

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum WorkerCommand {
    /// Run a worker until Ctrl-C or SIGTERM; its VMs go on without it
    #[command(after_help = "\
Examples:
  orchard get bootstrap-token | ssh mini-1 \\
      orchard worker run --bootstrap-token-stdin
  orchard worker run --labels role=ci
      # from the second start on
  orchard worker run --stop-vms-on-exit
      # on a machine that is switched off at night
  orchard worker run --no-host-access
      # nobody gets to the machine itself
  orchard worker run tls://nats.example.com --token-file password
      # with NATS servers of your own

The bootstrap token says where the controller is and how to know it. It is needed once: the worker
exchanges it for a key of its own, which it keeps in its data folder.

The worker only dials out: it needs no open port. Stopping it stops no VM unless --stop-vms-on-exit
says so; the next start finds them again. Only VMs created with --on-unseen replace are ended when it is not back in time (a
minute, unless the controller says otherwise), as they may then start elsewhere.")]
    Run(Box<RunArgs>),
    /// End the VMs that may be started elsewhere when the worker cannot; the worker starts this by itself
    #[command(hide = true)]
    Guard(GuardArgs),
    /// Hold the connections into VMs that go on when the worker ends; the worker starts this by itself
    #[command(hide = true)]
    SessionKeeper(SessionKeeperArgs),
}

#[derive(Debug, Args)]
pub(in crate::cli) struct RunArgs {
    /// Where the bus is, if that is a NATS server that is not the controller's own
    #[arg(value_name = "BUS_URL", value_parser = normalise_bus_url, conflicts_with_all = ["bootstrap_token", "bootstrap_token_stdin", "bootstrap_token_file"])]
    url: Option<String>,
    /// Join with this token of `orchard get bootstrap-token`; others on this machine can see what stands on a command line
    #[arg(long, value_name = "TOKEN", conflicts_with_all = ["bootstrap_token_stdin", "bootstrap_token_file"])]
    bootstrap_token: Option<String>,
    /// Read that token from standard input
    #[arg(long, conflicts_with = "bootstrap_token_file")]
    bootstrap_token_stdin: bool,
    /// Read that token from this file, if it is there: once the worker has joined it need not be
    #[arg(long, value_name = "FILE")]
    bootstrap_token_file: Option<PathBuf>,
    /// The worker's name in the cluster [default: the one it joined under, or this machine's]
    #[arg(long)]
    name: Option<WorkerName>,
    /// Where the worker keeps its VMs [default: worker in the home folder]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// File with the worker's password at BUS_URL [default: what ORCHARD_TOKEN holds]
    // The conflicts are those of BUS_URL: where that cannot be, clap drops the requirement, and what was said with it.
    #[arg(long, value_name = "FILE", requires = "url", conflicts_with_all = ["token_stdin", "bootstrap_token", "bootstrap_token_stdin", "bootstrap_token_file"])]
    token_file: Option<PathBuf>,
    /// Read that password from standard input
    #[arg(long, requires = "url", conflicts_with_all = ["bootstrap_token", "bootstrap_token_stdin", "bootstrap_token_file"])]
    token_stdin: bool,
    /// SHA-256 of the certificate to expect at BUS_URL [default: one that a public CA vouches for]
    #[arg(long, value_name = "SHA256", requires = "url", conflicts_with_all = ["bootstrap_token", "bootstrap_token_stdin", "bootstrap_token_file"])]
    fingerprint: Option<Fingerprint>,
    /// Run as this user and keep, as root, only the right to connect to guests, which macOS gives no other program unasked
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Where that right can be used; given by the process that has it
    #[arg(long, value_name = "SOCKET", hide = true, conflicts_with = "user")]
    local_network_helper: Option<PathBuf>,
    /// What runs VMs: auto, qemu, tart, vetu or synthetic
    #[arg(long, default_value = "auto", value_parser = runtime::parse)]
    runtime: RuntimeChoice,
    /// Labels that VMs may ask for
    #[arg(long, value_name = "K=V,…", value_delimiter = ',', value_parser = pairs::label)]
    labels: Vec<(String, String)>,
    /// What the worker offers, over what it finds out by itself
    #[arg(long, value_name = "K=N,…", value_delimiter = ',', value_parser = pairs::resource)]
    resources: Vec<(String, u64)>,
    /// CPU cores of a VM that asks for none [default: 4, or what the machine has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    default_cpu: Option<u64>,
    /// Memory in MiB of a VM that asks for none [default: 8192, or what the machine has]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    default_memory: Option<u64>,
    /// How long to try while the controller refuses this worker's key, before ending with code 1
    ///
    /// That is so once the worker was deleted or its name given away, and then waiting mends nothing: it
    /// ends, says how to join again, and leaves its VMs running. But a controller that was started with an
    /// empty or old database by mistake refuses all its workers, too; the time is for putting the right one
    /// back. A controller that cannot be reached is waited for without end. 0s: give up within a second.
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration::parse)]
    give_up_after: Duration,
    /// Keep so much of the disk free by removing images that no VM needs
    ///
    /// Looked at every minute and before an image is fetched. The images that were not used for longest go
    /// first; never one that a VM's disk stands on, or that is being fetched. When nothing is left to remove,
    /// VMs go on being made until 1 GB is free. 0: only make room for the image that is being fetched. Vetu
    /// removes nothing by itself.
    #[arg(long, value_name = "SIZE", default_value = "2GB", value_parser = pairs::bytes)]
    image_cache_min_free: u64,
    /// On Ctrl-C or SIGTERM, stop the VMs in order before the worker ends
    ///
    /// Each guest is asked to switch itself off and has 20 s to do so; 45 s later the worker ends anyhow, with
    /// code 1 if anything was left. The VMs keep their disks and their room, show as pending, and boot again
    /// when the worker is started again, whatever their restart policy: stopping a machine is no failure of
    /// its VMs. Those with --on-unseen replace start over elsewhere if that takes longer than the lease (a
    /// minute, unless the controller says otherwise). A VM that was stopped by a user stays stopped; one that
    /// the controller does not know runs on, unless the controller was not heard since the worker began: then all are
    /// stopped, as it is not known which. A second signal ends the worker at once; what still runs goes on.
    #[arg(long)]
    stop_vms_on_exit: bool,
    /// Delete VMs named orchard-… that the controller does not know, an hour after it was told of them
    ///
    /// Without this they are only told of (`orchard list strays`) and run on until somebody deletes them. The
    /// controller decides, and counts from when this worker has told it of the copy since it registered last;
    /// --delete-unknown=24h gives it another time. Copies that a VM has or may come to have are kept, and so is
    /// everything until all workers were heard after a backup was restored.
    ///
    /// DANGER after an old backup was restored, or when a controller begins with an empty data folder: VMs that it never
    /// heard of are unknown, although people use them, and this deletes them, disks included. Where that may happen, look at
    /// `orchard list strays` and use `orchard delete stray` instead. VMs that Orchard has not made are never touched.
    #[arg(
        long,
        value_name = "DURATION",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "1h",
        value_parser = unknown_for
    )]
    delete_unknown: Option<Duration>,
    /// Let nobody onto this machine by way of the controller
    ///
    /// Without this, accounts with admin:write reach what listens on this machine's loopback address: `orchard ssh worker`,
    /// `exec worker`, `vnc worker`, `port-forward worker` and `proxy worker`. Whoever listens there still asks who comes, as
    /// the SSH server does, if it does so. VMs are reached as before either way.
    #[arg(long)]
    no_host_access: bool,
    /// How long the keeper of sessions stays without one
    #[arg(long, value_name = "DURATION", hide = true, value_parser = duration::parse)]
    session_linger: Option<Duration>,
    #[command(flatten)]
    watch: WatchArgs,
}

pub(in crate::cli) async fn run(command: WorkerCommand, home: Home) -> anyhow::Result<u8> {
    let arguments = match command {
        WorkerCommand::Run(arguments) => *arguments,
        WorkerCommand::Guard(arguments) => return guard::run(arguments).await.map(|()| 0),
        WorkerCommand::SessionKeeper(arguments) => return session_keeper::run(arguments).await.map(|()| 0),
    };
    if let Some(user) = &arguments.user {
        return as_user::run(user).await;
    }
    let entry = entry(&arguments)?;
    let token_file = arguments.bootstrap_token_file.clone();
    let data_dir = match arguments.data_dir.clone() {
        Some(given) => given,
        None => {
            home.prepare()?;
            home.path().join("worker")
        }
    };
    let kind = kind(arguments.runtime)?;
    let offer = Offer::new(&arguments, kind)?;
    let (folder, lock) = DataFolder::claim_for_worker(&data_dir)?;
    let watch = arguments.watch;
    let start = async {
        let machine_id = parts::machine_id(folder.path())?;
        let admitted = admit(entry, arguments.name, &folder, &machine_id).await;
        let (name, bus) = admitted.map_err(|error| match (error.downcast_ref(), token_file) {
            (Some(JoinError::NoToken(_)), Some(file)) => error.context(format!("there is no file {}", file.display())),
            _ => error,
        })?;
        let url = bus.url.clone();
        let setup = WorkerSetup {
            name: name.clone(),
            bus,
            data_dir: folder.path().to_owned(),
            machine_id,
            runtime: kind,
            resources: offer.resources,
            labels: offer.labels,
            default_cpu: offer.defaults.cores,
            default_memory: offer.defaults.memory,
            give_up_after: arguments.give_up_after,
            keep_free: arguments.image_cache_min_free,
            delete_unknown_after: arguments.delete_unknown,
            host_access: !arguments.no_host_access,
            local_network: arguments.local_network_helper.map(LocalNetwork::at),
            session_linger: arguments.session_linger,
        };
        let worker = parts::start_worker(setup, Some(lock)).await?;
        let line = format!("orchard worker {name} ({kind}) runs and keeps itself joined to {url}");
        Ok(Started { worker, line, with_vms: arguments.stop_vms_on_exit })
    };
    until_stopped(watch.start(start), |watched| {
        let metrics = watched.url().map(|url| format!("; metrics are at {url}/metrics")).unwrap_or_default();
        Ok(output::line(&format!("{}{metrics}", watched.running.line))?)
    })
    .await
}

/// A worker that runs, and what to say of it.
struct Started {
    worker: RunningWorker,
    line: String,
    /// Its VMs end with it.
    with_vms: bool,
}

/// How long that may take: all that [`crate::worker::Worker::shutdown_with_vms`] waits for, and the worker's own end.
const WITH_VMS_GRACE: Duration = Duration::from_secs(60);

impl Running for Started {
    async fn failed(&self) -> String {
        tokio::select! {
            why = self.worker.failed() => why,
            why = self.worker.revoked() => why,
        }
    }

    fn sources(&self) -> Vec<Arc<dyn Source>> {
        self.worker.sources()
    }

    async fn shutdown(self) {
        self.worker.shutdown().await;
    }

    fn farewell(&self) -> &'static str {
        match self.with_vms {
            true => "stopping the VMs, then the worker; once more to end at once and let them go on",
            false => "stopping; VMs go on, but for synthetic ones, and the next start finds them again",
        }
    }

    fn grace(&self) -> Duration {
        if self.with_vms { WITH_VMS_GRACE } else { STOP_GRACE }
    }

    async fn stop(self) -> bool {
        if !self.with_vms {
            self.shutdown().await;
            return true;
        }
        let left = self.worker.shutdown_with_vms(|left| say!("VMs still to stop: {left}")).await;
        match left {
            Some(0) => say!("all VMs are stopped; they boot again when this worker is started again"),
            Some(left) => say!("error: {left} VMs do not stop; they go on without the worker"),
            None => say!("error: the host does not tell which VMs run, so they may go on without the worker"),
        }
        left == Some(0)
    }
}

/// How the worker gets in.
enum Entry {
    /// As a member of a cluster, which it may first have to become.
    Member(Option<BootstrapToken>),
    /// With a password, at a bus whose users are somebody else's matter.
    Password { url: String, fingerprint: Option<Fingerprint>, password: Secret },
}

fn entry(arguments: &RunArgs) -> anyhow::Result<Entry> {
    if let Some(url) = arguments.url.clone() {
        let password = password(arguments)?;
        return Ok(Entry::Password { url, fingerprint: arguments.fingerprint, password });
    }
    let text = match &arguments.bootstrap_token {
        Some(text) => Some(Secret::new(text.as_str())),
        None if arguments.bootstrap_token_stdin => {
            let read = folder::token_from(std::io::stdin().lock());
            Some(read.context("cannot read the bootstrap token from standard input")?)
        }
        // Service managers start a worker the same way each time, so the token of the first time may be gone.
        None => match &arguments.bootstrap_token_file {
            Some(file) if file.try_exists().with_context(|| format!("cannot look for {}", file.display()))? => {
                Some(folder::read_token(file)?)
            }
            _ => None,
        },
    };
    match text.map(|text| text.expose().parse()).transpose() {
        Ok(token) => Ok(Entry::Member(token)),
        Err(error) => Err(UsageError(format!("{error}")).into()),
    }
}

/// Who the worker is and how it logs in.
async fn admit(
    entry: Entry,
    name: Option<WorkerName>,
    folder: &DataFolder,
    machine_id: &str,
) -> anyhow::Result<(WorkerName, BusOptions)> {
    match entry {
        Entry::Member(token) => {
            let data_dir = folder.path();
            let candidate = Candidate { data_dir, name, default_name: host::name(), machine_id, token };
            let member = candidate.become_member().await?;
            Ok((member.name.clone(), member.bus()))
        }
        Entry::Password { url, fingerprint, password } => {
            let name = name.or_else(host::name);
            let name = name.context("this machine's name cannot be a worker's; give one with --name")?;
            let bus = BusOptions {
                trust: Trust::of(&url, fingerprint),
                url,
                user: subject::worker_user(&name),
                login: Login::Password(password),
                client_name: format!("orchard worker {name}"),
                patient: true,
            };
            Ok((name, bus))
        }
    }
}

/// Unlike `dev`, a worker never pretends by itself: a cluster with guests that are none helps nobody.
fn kind(choice: RuntimeChoice) -> anyhow::Result<RuntimeKind> {
    match choice {
        RuntimeChoice::Kind(kind) => Ok(kind),
        RuntimeChoice::Auto => runtime::detect().with_context(|| {
            format!("{}; --runtime names another one, such as synthetic for tests", runtime::NOTHING_FOUND)
        }),
    }
}

/// What the worker says that it has.
struct Offer {
    resources: Resources,
    labels: Labels,
    defaults: Capacity,
}

impl Offer {
    fn new(arguments: &RunArgs, kind: RuntimeKind) -> Result<Self, UsageError> {
        let capacity = Capacity::of(kind);
        let defaults = capacity.defaults();
        let mut resources = capacity.resources(kind);
        resources.0.extend(pairs::resources(arguments.resources.clone()).map_err(UsageError)?.0);
        Ok(Self {
            resources,
            labels: pairs::labels(arguments.labels.clone()).map_err(UsageError)?,
            defaults: Capacity {
                cores: arguments.default_cpu.unwrap_or(defaults.cores),
                memory: arguments.default_memory.unwrap_or(defaults.memory),
            },
        })
    }
}

fn password(arguments: &RunArgs) -> anyhow::Result<Secret> {
    if let Some(file) = &arguments.token_file {
        return folder::read_token(file);
    }
    if arguments.token_stdin {
        return folder::token_from(std::io::stdin().lock()).context("cannot read the password from standard input");
    }
    match std::env::var(TOKEN) {
        Ok(token) if !token.trim().is_empty() => Ok(Secret::new(token.trim())),
        _ => Err(UsageError(format!(
            "an address alone lets nobody in. To join a controller, give --bootstrap-token-stdin and no address; for a \
             NATS server of your own, this worker's password with --token-file, --token-stdin or {TOKEN}"
        ))
        .into()),
    }
}

/// Shorter, and a controller that has just begun would have no time to be told of a mistake.
const LEAST_UNKNOWN: Duration = Duration::from_secs(300);

fn unknown_for(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        time if time < LEAST_UNKNOWN => {
            Err(format!("{text:?} leaves nobody time to see what would be deleted; give at least 5m"))
        }
        time => Ok(time),
    }
}
