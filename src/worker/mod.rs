//! The worker: keeps what its host runs equal to what the controller wishes, and carries connections into the VMs.
//!
//! Parts, from the outside in: [`join`] makes the machine a member of the cluster, once; `session` registers, renews the
//! lease and takes assignments; `fleet` reconciles them with what the runtime really runs; [`guard`] ends VMs that may run
//! elsewhere when the [`lease`] is over; one task per copy (`vm`) drives it by the table in [`plan`]; `uplink` carries
//! reports until they are acknowledged, `logs` what startup scripts say, by way of the disk; `images` fetches images ahead
//! of need and tells which are held; `attach` serves tunnel streams, [`sessions`] keeps those that outlive this process, and
//! `execs` holds commands that outlive their streams; `load` looks how busy the host is. VM processes are not children that
//! die with the worker: stopping or killing it stops no VM, the next process adopts them.

mod attach;
mod bring_up;
pub mod companion;
mod execs;
pub(crate) mod fleet;
pub mod guard;
mod handover;
mod host;
mod images;
pub mod join;
mod journal;
pub mod lease;
mod load;
pub mod local_network;
mod logs;
mod measured;
mod meters;
mod place;
pub mod plan;
pub mod runtime;
mod session;
pub mod sessions;
mod spool;
mod unix_socket;
mod uplink;
mod vm;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use self::companion::CompanionCommand;
use self::execs::Execs;
use self::fleet::Fleet;
use self::guard::Keeper;
use self::host::Host;
use self::images::ImageAgent;
use self::join::JoinError;
use self::journal::Journal;
use self::measured::Measured;
use self::meters::Meters;
use self::runtime::Runtime;
use self::session::Agent;
use self::sessions::Sessions;
use self::uplink::Uplink;
use self::watch::Watch;
use crate::bus::client::{Bus, BusOptions, Login};
use crate::identity::folder::{FolderLock, LockError};
use crate::metrics::Source;
use crate::model::error::ApiError;
use crate::model::worker::WorkerInfo;
use crate::model::{Clock, WorkerName};
use crate::task::{self, Task};
use crate::trace::UnderWay;

/// What a worker needs to start.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// The bus and how to log in there.
    pub bus: BusOptions,
    /// Where the worker keeps what it must remember; the runtime has a folder of its own.
    pub data_dir: PathBuf,
    /// What it says of itself.
    pub info: WorkerInfo,
    /// What runs its VMs.
    pub runtime: Arc<dyn Runtime>,
    /// How to start the process that ends VMs when this one cannot; without it none is started whose runtime needs one.
    pub guard: Option<CompanionCommand>,
    /// How to start the process that keeps sessions into VMs when this one ends; without it they end with their connections.
    pub sessions: Option<CompanionCommand>,
    /// For how long its key must have been refused until [`Worker::revoked`] returns.
    pub give_up_after: Duration,
    /// Bytes of the disk to keep free by removing images that no VM needs; 0 = only what the next one needs.
    pub keep_free: u64,
    /// After how long the controller is to have copies deleted that it does not know; none = they are left alone.
    pub delete_unknown_after: Option<Duration>,
    /// Whether those with `admin:write` may connect to TCP ports of this machine's loopback address.
    pub host_access: bool,
}

/// How long VMs have to end with their worker: what a guest gets to switch itself off, and as long again for all that comes
/// after it on a busy host. Service managers wait for 90 s.
const HALT_LIMIT: Duration = Duration::from_secs(45);
/// How long the controller has to acknowledge that they have. It hears of it from the next process otherwise.
const HEARD_LIMIT: Duration = Duration::from_secs(5);

/// For how long a worker whose key is refused goes on trying, if nothing else was said. A database that is lost or restored
/// refuses every worker at once; so long, somebody has to notice and put the right one back.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(600);

/// Why a worker does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder.
    #[error("cannot use the data folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Another process has it, or it cannot be locked.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The bus refuses it.
    #[error("cannot use the bus")]
    Bus(#[source] ApiError),
}

/// A running worker. Dropping it ends it at once and leaves its VMs running.
#[derive(Debug)]
pub struct Worker {
    bus: Bus,
    options: BusOptions,
    name: WorkerName,
    give_up_after: Duration,
    agent: Task,
    images: Task,
    uplink: Uplink,
    fleet: Fleet,
    lease: Task,
    guard: Task,
    _load: Task,
    watch: Arc<Watch>,
}

/// Makes the data folder of a worker if it is not there, closed to others, and takes hold of it: for whoever has something
/// to do there before the worker starts.
///
/// # Errors
/// [`StartError::Lock`] while another process has it; [`StartError::Folder`] when it, or what is in it, is not ours alone.
pub fn claim(data_dir: &Path) -> Result<FolderLock, StartError> {
    journal::claim(data_dir)
}

impl Worker {
    /// Starts the worker; it connects, and connects again whenever that is needed, by itself.
    ///
    /// # Errors
    /// [`StartError`] for what will not get better by waiting.
    pub async fn start(options: WorkerOptions) -> Result<Self, StartError> {
        let lock = claim(&options.data_dir)?;
        Self::start_in(options, lock).await
    }

    /// The same in a data folder that this process has claimed already.
    ///
    /// # Errors
    /// As for [`Worker::start`].
    pub async fn start_in(options: WorkerOptions, lock: FolderLock) -> Result<Self, StartError> {
        let journal = Journal::open(&options.data_dir, lock)?;
        let bus = Bus::connect(BusOptions { patient: true, ..options.bus.clone() }).await.map_err(StartError::Bus)?;
        let (meters, traces) = (Arc::new(Meters::default()), Arc::new(UnderWay::default()));
        let measured: Arc<dyn Runtime> =
            Arc::new(Measured::new(options.runtime.clone(), meters.clone(), traces.clone()));
        let options = WorkerOptions { runtime: measured, ..options };
        let uplink = Uplink::new(bus.clone(), options.info.name.clone());
        let watch = Arc::new(Watch {
            name: options.info.name.clone(),
            started: Clock::start().now().wall,
            bus: bus.clone(),
            uplink: uplink.clone(),
            meters: meters.clone(),
        });
        let keeper = Keeper::open(journal.notes().clone(), options.guard, &*options.runtime).await;
        let lease = task::spawn(keeper.clone().run());
        let guard = task::spawn(keeper.clone().keep_guard());
        let sessions = Arc::new(Sessions::new(&options.data_dir, options.sessions));
        let host = Host::new(options.runtime.clone(), uplink.clone(), journal, &options.data_dir)?;
        let host = Host { meters: meters.clone(), ..host };
        let fleet = Fleet::start(host, keeper.clone());
        let folder = |source| StartError::Folder { path: options.data_dir.clone(), source };
        let execs =
            Execs::new(options.runtime.clone(), fleet.assignments().subscribe(), &options.data_dir).map_err(folder)?;
        let name = options.info.name.clone();
        let images = ImageAgent {
            bus: bus.clone(),
            worker: name.clone(),
            runtime: options.runtime.clone(),
            assignments: fleet.assignments().subscribe(),
            sessions: uplink.sessions(),
            keep_free: options.keep_free,
        };
        let images = task::spawn(images.run());
        let (sampler, load) = load::Sampler::new(load::disks_of(&options.data_dir, options.info.runtime));
        let agent = Agent {
            bus: bus.clone(),
            key: match &options.bus.login {
                Login::Key(seed) => Some(seed.clone()),
                Login::Password(_) => None,
            },
            bus_url: options.bus.url.clone(),
            info: options.info,
            place: place::of(&options.data_dir).await,
            runtime: options.runtime,
            execs,
            sessions,
            uplink: uplink.clone(),
            keeper,
            assignments: fleet.assignments(),
            meters,
            traces,
            load,
            delete_unknown_after: options.delete_unknown_after,
            host_access: options.host_access,
        };
        let (options, give_up_after) = (options.bus, options.give_up_after);
        let (agent, _load) = (task::spawn(agent.run()), task::spawn(sampler.run()));
        Ok(Self { bus, options, name, give_up_after, agent, images, uplink, fleet, lease, guard, _load, watch })
    }

    /// For those who watch it.
    pub fn watch(&self) -> Arc<dyn Source> {
        self.watch.clone()
    }

    /// Returns when a part has ended that never should: whoever runs the worker must then start it anew. Cancel safe.
    pub async fn failed(&self) -> &'static str {
        tokio::select! {
            () = task::any_ended(std::slice::from_ref(&self.agent)) => "the worker's session",
            () = task::any_ended(std::slice::from_ref(&self.images)) => "the worker's images",
            () = self.fleet.ended() => "the worker's reconciler",
            () = task::any_ended(std::slice::from_ref(&self.lease)) => "the watch over the worker's lease",
            () = task::any_ended(std::slice::from_ref(&self.guard)) => "the watch over the worker's guard",
        }
    }

    /// Returns once this worker's key has been refused for as long as [`WorkerOptions::give_up_after`] says: the worker was
    /// deleted, or another machine or a new key has its name. Whoever runs the worker must then stop it, as no waiting mends
    /// that. Never for a worker that logs in with a password, whose users are somebody else's matter. Cancel safe.
    pub async fn revoked(&self) -> JoinError {
        match self.options.login {
            Login::Key(_) => drop(self.bus.shut_out(self.give_up_after).await),
            Login::Password(_) => std::future::pending().await,
        }
        JoinError::Revoked { name: self.name.clone(), url: self.options.url.clone() }
    }

    /// Stops the worker and, before, its VMs: each guest is asked to switch itself off and gets the time that it gets in
    /// [`runtime::Runtime::stop`]. `tell` hears how many are left, whenever that changes. Yields how many could not be
    /// stopped, or none when the host does not say what runs on it.
    ///
    /// It is no failure of any VM. That a copy was stopped so is noted beside it, and told to the controller if it can be
    /// reached; whichever it learns first, the controller has the copy boot again from its disk, in its old room, once
    /// the worker is back, whatever its restart policy. One with `--on-unseen replace` starts over elsewhere when the worker is
    /// not back before its lease is over, as always. VMs that the controller does not know are left alone, as always; if it
    /// was not heard since the start, all are stopped.
    pub async fn shutdown_with_vms(self, tell: impl FnMut(usize)) -> Option<usize> {
        let left = self.fleet.halt(HALT_LIMIT, tell).await;
        let _ = tokio::time::timeout(HEARD_LIMIT, self.uplink.all_heard()).await;
        self.shutdown().await;
        left
    }

    /// Stops the worker and leaves its VMs running, for the next process to adopt. What is being created is left
    /// half-made and made again then.
    pub async fn shutdown(self) {
        self.agent.abort().await;
        self.images.abort().await;
        self.fleet.stop().await;
        self.guard.abort().await;
        self.lease.abort().await;
    }
}
