//! What every hypervisor must be able to do, as one trait. `worker::vm` drives it and knows no runtime by name.
//!
//! A runtime keeps no wish and decides nothing: it does one step to one copy and tells what is on the host. Copies run
//! in processes of their own that outlive the worker; [`Runtime::list`] finds them again.

mod fetches;
mod guest_stream;
mod host_dirs;
mod log_bound;
pub mod process;
pub mod prune;
pub mod qemu;
mod room;
mod said;
pub mod synthetic;
pub mod tart;
pub mod tool;

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

pub use self::guest_stream::GuestStream;
use crate::model::vm::{RuntimeKind, VmSpec};
use crate::model::{CopyId, Timestamp, VmName};

/// Everything a runtime needs to make and run one copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopySpec {
    /// Which copy.
    pub id: CopyId,
    /// The VM's name: host name of the guest, part of names on the host.
    pub name: VmName,
    /// What the user asked for.
    pub spec: VmSpec,
    /// CPU cores to give; never 0.
    pub cpu: u64,
    /// Memory to give, in MiB; never 0.
    pub memory: u64,
}

/// A copy found on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which copy.
    pub id: CopyId,
    /// The VM's name as it stands on the host.
    pub name: VmName,
    /// What is there of it.
    pub state: FoundState,
}

/// What is on the host of one copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FoundState {
    /// A creation was interrupted, or it was never started; only good for being created again or deleted.
    Incomplete,
    /// Its process ran once, and does not run.
    Stopped,
    /// Its process runs.
    Running,
}

/// An image on this host that VMs can be made from at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedImage {
    /// What it is called, as `model::image::shown` has it: without anything secret.
    pub name: String,
    /// What it takes on the disk, in bytes, as far as that is known.
    pub bytes: u64,
    /// Its content's digest, such as `sha256:…`, where the runtime knows that.
    pub digest: Option<String>,
    /// When a VM was last made from it, or it was fetched; none = not known.
    pub last_used: Option<Timestamp>,
    /// A VM's disk stands on it, or is about to, so that it must not go.
    pub in_use: bool,
}

/// How a copy's process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest switched itself off.
    PoweredOff,
    /// It ended otherwise; the text says what is known, with the last lines of the process's own output.
    Crashed(String),
}

/// Why a step failed. The text is for the VM's status message: what was tried, what was found, what to do.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The image cannot be had or used.
    #[error("{0}")]
    Image(String),
    /// A tool failed, with the last lines of its output.
    #[error("{0}")]
    Tool(String),
    /// No such copy on this host.
    #[error("there is no such VM on this host")]
    NotFound,
    /// The copy is not in a state that allows it.
    #[error("{0}")]
    State(String),
    /// The guest does not accept connections on that port, or is not up.
    #[error("{0}")]
    Refused(String),
    /// A deadline passed.
    #[error("{0}")]
    Timeout(String),
    /// The host's file system or network failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl RuntimeError {
    /// Wraps an I/O error with what was tried: `.map_err(RuntimeError::io("cannot write x"))`.
    pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| RuntimeError::Io { what, source }
    }
}

/// Tells how far a slow step is; the newest text wins, nobody waits.
#[derive(Clone, Debug)]
pub struct Progress(watch::Sender<String>);

impl Progress {
    /// A progress and the end that is told.
    pub fn new() -> (Self, watch::Receiver<String>) {
        let (sender, receiver) = watch::channel(String::new());
        (Self(sender), receiver)
    }

    /// Replaces the text.
    pub fn say(&self, text: impl Into<String>) {
        let text = text.into();
        self.0.send_if_modified(|old| {
            let changed = *old != text;
            *old = text;
            changed
        });
    }
}

/// One hypervisor. Every call has a deadline of its own inside and may be made from several tasks at once; calls for one
/// copy are made one at a time, except [`Runtime::dial`], [`Runtime::wait_exit`] and [`Runtime::booted`], which run
/// beside others. All are cancel safe in this sense: a cancelled call leaves something that `list` tells truly.
#[async_trait]
pub trait Runtime: fmt::Debug + Send + Sync + 'static {
    /// Which one it is.
    fn kind(&self) -> RuntimeKind;

    /// How many guests may boot at the same time without slowing each other down.
    fn boot_permits(&self) -> usize;

    /// Whether its VMs go on when the process of this worker ends, so that another one has to end them then.
    fn outlives_worker(&self) -> bool {
        true
    }

    /// All copies on this host that were made by Orchard. Never fails because of one odd entry: that one is left out
    /// and logged.
    async fn list(&self) -> Result<Vec<Found>, RuntimeError>;

    /// Makes the copy's disk and settings, without running it. What an interrupted creation left is removed first.
    async fn create(&self, copy: &CopySpec, progress: &Progress) -> Result<(), RuntimeError>;

    /// Starts the process of a created copy and returns once it runs, detached from this process. One that was suspended
    /// goes on where it was.
    async fn start(&self, copy: &CopySpec) -> Result<(), RuntimeError>;

    /// Returns when the guest's network is likely up, or at once if that cannot be known. Only a hint about when to
    /// begin asking the guest; never fails.
    async fn booted(&self, id: CopyId);

    /// Waits until the copy's process is certainly gone, also for one that an earlier worker process started.
    async fn wait_exit(&self, id: CopyId) -> Exit;

    /// Asks the guest to switch off, waits `grace`, then ends the process. Returns once it is gone; fine if it was.
    async fn stop(&self, id: CopyId, grace: Duration) -> Result<(), RuntimeError>;

    /// Ends the process at once, without asking the guest or the hypervisor; the disk stays. Returns once it is gone; fine if
    /// it was. May be called while a [`Runtime::stop`] of another process hangs.
    async fn kill(&self, id: CopyId) -> Result<(), RuntimeError> {
        self.stop(id, Duration::ZERO).await
    }

    /// Freezes the guest, memory and all, into a file beside its disk, and ends the process; the next start goes on from
    /// there, and a stop, also of what does not run, removes the file. Returns once the process is gone; fine if it was.
    /// After an error the guest runs as before.
    async fn suspend(&self, id: CopyId, progress: &Progress) -> Result<(), RuntimeError> {
        let _ = (id, progress);
        Err(RuntimeError::State(format!("the runtime {} cannot suspend VMs", self.kind())))
    }

    /// Ends the process at once and removes all that is left of the copy; fine if there is nothing.
    async fn delete(&self, id: CopyId) -> Result<(), RuntimeError>;

    /// The images that VMs can be made from without fetching any; none where the runtime keeps none. Quick: it looks at what
    /// is there.
    async fn cached_images(&self) -> Result<Vec<CachedImage>, RuntimeError> {
        Ok(Vec::new())
    }

    /// Fetches an image before a VM needs it; fine if it is there. An image that a VM is being made from at the same time is
    /// fetched once for both, and only some images at a time.
    async fn pull(&self, image: &str, progress: &Progress) -> Result<(), RuntimeError> {
        let _ = (image, progress);
        Err(RuntimeError::State(format!("the runtime {} keeps no images", self.kind())))
    }

    /// Removes images until `keep_free` bytes of the disk that they lie on are free, those first that were not used for
    /// longest, and none that is in use or being fetched; as many as there are when that is not enough. Yields what was
    /// done, for the log; nothing when there was nothing to do.
    async fn prune_images(&self, keep_free: u64) -> Result<Vec<String>, RuntimeError> {
        let _ = keep_free;
        Ok(Vec::new())
    }

    /// Which image the copy was made from, by its digest, where the runtime knows that.
    async fn image_fqn(&self, id: CopyId) -> Option<String> {
        let _ = id;
        None
    }

    /// The guest's address in its own network, as far as this host knows it.
    async fn address(&self, id: CopyId) -> Result<IpAddr, RuntimeError>;

    /// Connects to a TCP port of the guest.
    async fn dial(&self, id: CopyId, port: u16) -> Result<GuestStream, RuntimeError>;
}
