//! The Tart and Vetu runtimes: two command line tools with the same commands, for macOS and Linux guests.
//!
//! A VM is known to the tool as `orchard-<name>-<uid>-<attempt>`; whatever else the tool lists is not ours and is left
//! alone.
//!
//! | file | what |
//! |---|---|
//! | `names` | what the tool calls a copy; pure |
//! | `args` | the arguments of every call; pure |
//! | `parse` | what the tool prints; pure |
//! | `notes` | what we keep beside the tool's own files |
//! | `create` | makes a copy |
//! | `run` | the process of `run` |
//! | `addresses` | the guests' addresses |
//! | [`lease`] | the host's DHCP leases, of which short-lived guests must not use up all |

mod addresses;
mod args;
mod create;
pub mod lease;
pub mod names;
mod notes;
mod parse;
mod run;

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::net::TcpStream;
use tokio::sync::{OnceCell, RwLock};

use self::addresses::Addresses;
pub use self::create::Limits;
use self::names::disk_name;
use self::notes::{Note, Notes};
use self::parse::{Listed, Listing};
use super::fetches::{Fetches, Urgency};
use super::process::Reaper;
use super::{CachedImage, CopySpec, Exit, Found, FoundState, GuestStream, Progress, Runtime, RuntimeError, room, tool};
use crate::model::vm::RuntimeKind;
use crate::model::{CopyId, VmName};
use crate::worker::local_network::LocalNetwork;

/// A connect to the guest.
const DIAL_LIMIT: Duration = Duration::from_secs(10);

/// Which tool, and where we keep our notes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TartOptions {
    /// [`RuntimeKind::Tart`] or [`RuntimeKind::Vetu`].
    pub kind: RuntimeKind,
    /// The tool; a bare name is looked up on PATH.
    pub program: PathBuf,
    /// For our notes; the VMs themselves lie where the tool puts them.
    pub data_dir: PathBuf,
    /// Whether to end what a worker that was killed was about to make. Only for the one that makes VMs here.
    pub tidy: bool,
    /// How long the tool's calls may take.
    pub limits: Limits,
    /// How guests are reached; none = by this process itself.
    pub local_network: Option<LocalNetwork>,
    /// Where the tool keeps VMs and images: whose disk is looked at for room.
    pub home: PathBuf,
    /// Bytes of that disk to keep free before images are fetched, by removing others.
    pub keep_free: u64,
}

impl TartOptions {
    /// The tool on PATH, as a worker uses it.
    pub fn new(kind: RuntimeKind, data_dir: PathBuf) -> Self {
        let (program, limits) = (PathBuf::from(kind.as_str()), Limits::default());
        // As the tools find it themselves.
        let home = std::env::var_os(format!("{}_HOME", kind.as_str().to_uppercase())).map(PathBuf::from);
        let of_user = || std::env::home_dir().unwrap_or_default().join(format!(".{kind}"));
        let home = home.unwrap_or_else(of_user);
        Self { kind, program, data_dir, tidy: true, limits, local_network: None, home, keep_free: 0 }
    }
}

/// The runtime. Dropping it stops no VM.
#[derive(Debug)]
pub struct Tart {
    options: TartOptions,
    notes: Notes,
    names: Mutex<HashMap<CopyId, String>>,
    reaper: Mutex<Reaper>,
    fetches: Fetches,
    addresses: Addresses,
    tidied: OnceCell<()>,
    /// Held to be changed while images are removed, and to be read while one is fetched or cloned.
    images: RwLock<()>,
    swept: OnceCell<()>,
}

impl Tart {
    /// Prepares the folder for our notes. Touches no VM.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(options: TartOptions) -> Result<Self, RuntimeError> {
        let notes = Notes::open(&options.data_dir)?;
        let (names, reaper, fetches) = (Mutex::default(), Mutex::default(), Fetches::default());
        let (addresses, tidied, swept) = (Addresses::default(), OnceCell::new(), OnceCell::new());
        let images = RwLock::default();
        Ok(Self { options, notes, names, reaper, fetches, addresses, tidied, images, swept })
    }

    /// Whether the tool can be run here; its version.
    ///
    /// # Errors
    /// What is missing, for people.
    pub async fn detect(program: &Path) -> Result<String, String> {
        let version = tool::run(program, &["--version"], None, Limits::default().command).await;
        version.map(|text| text.trim().to_owned()).map_err(|error| error.to_string())
    }

    /// Has the tool remove the images that were not used for longest until the others take no more than `keep_gb`; VMs do
    /// not need the image that they were made from.
    ///
    /// # Errors
    /// [`RuntimeError::State`] with Vetu, which has no such command; else those of the tool.
    pub async fn prune(&self, keep_gb: u64) -> Result<(), RuntimeError> {
        if self.options.kind != RuntimeKind::Tart {
            return Err(RuntimeError::State(format!("{} cannot remove images by itself", self.options.kind)));
        }
        self.tool(&args::prune(keep_gb)).await.map(drop)
    }

    /// Before an image is fetched, whose size only the tool will know: sees to it that as much is free as shall be. That
    /// this fails is no reason not to try.
    async fn make_room(&self) {
        if let Err(error) = self.prune_images(self.options.keep_free).await {
            tracing::warn!("the disk is short of room, and no images can be removed: {error}");
        }
    }

    /// How many bytes are missing until `keep_free` are free.
    fn missing(&self, keep_free: u64) -> u64 {
        // Before its first use there is no such folder.
        let free = room::of(&self.options.home).or_else(|| room::of(&self.options.data_dir));
        free.map_or(0, |(free, _)| keep_free.saturating_sub(free))
    }

    async fn tool(&self, args: &[String]) -> Result<String, RuntimeError> {
        self.tool_within(args, self.options.limits.command).await
    }

    async fn tool_within(&self, args: &[String], limit: Duration) -> Result<String, RuntimeError> {
        tool::run(&self.options.program, args, None, limit).await
    }

    async fn listing(&self) -> Result<Listing, RuntimeError> {
        let text = self.tool(&args::list()).await?;
        Listing::parse(&text).map_err(|why| RuntimeError::Tool(format!("{} list {why}", self.options.kind)))
    }

    /// What the tool calls the copy, and whether it runs; `None` when the tool has no such VM.
    async fn find(&self, id: CopyId) -> Result<Option<Listed>, RuntimeError> {
        let found = self.listing().await?.ours().find(|(_, other, _)| *other == id).map(|(_, _, vm)| vm);
        if let Some(vm) = &found {
            self.names().insert(id, vm.name.clone());
        }
        Ok(found)
    }

    async fn name_of(&self, id: CopyId) -> Result<String, RuntimeError> {
        let known = self.names().get(&id).cloned();
        match known {
            Some(name) => Ok(name),
            None => self.find(id).await?.map(|vm| vm.name).ok_or(RuntimeError::NotFound),
        }
    }

    fn names(&self) -> MutexGuard<'_, HashMap<CopyId, String>> {
        // Nothing panics while it is held.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_of(&self, vm: &Listed) -> FoundState {
        match vm.running {
            true => FoundState::Running,
            false if self.notes.has(&vm.name, Note::Unstarted) => FoundState::Incomplete,
            false => FoundState::Stopped,
        }
    }

    /// Ends what a worker process that was killed was about to make, once.
    async fn tidy(&self) {
        let tidied = self.tidied.get_or_init(async || {
            for name in self.notes.all_with(Note::Making) {
                if let Err(error) = self.end_leftover(&name).await {
                    tracing::warn!("{error}");
                }
                self.notes.remove(&name, &[Note::Making]);
            }
        });
        tidied.await;
    }

    /// Removes, once, what is noted of VMs that the tool does not have: a worker that was killed had deleted the VM, and not
    /// that. Before this process makes anything.
    async fn sweep(&self, there: &[Found]) {
        let there: BTreeSet<String> = there.iter().map(|found| disk_name(&found.name, found.id)).collect();
        let swept = self.swept.get_or_init(async || {
            for name in self.notes.names().difference(&there) {
                if self.notes.process(name, Note::Process).await.is_none() {
                    self.notes.remove_all(name);
                }
            }
        });
        swept.await;
    }

    async fn connect(&self, address: SocketAddr) -> std::io::Result<TcpStream> {
        match &self.options.local_network {
            Some(network) => network.connect(address).await,
            None => TcpStream::connect(address).await,
        }
    }

    async fn ask_address(&self, name: &str) -> Result<IpAddr, String> {
        let mut last = String::new();
        for lookup in args::lookups(self.notes.has(name, Note::Bridged), name) {
            match self.tool_within(&lookup.args, lookup.limit).await {
                Ok(text) => match parse::address(&text) {
                    Some(address) => return Ok(address),
                    None => last = format!("{} ip answered {:?}", self.options.kind, text.trim()),
                },
                Err(error) => last = error.to_string(),
            }
        }
        Err(format!("the guest has no address yet: {last}"))
    }
}

#[async_trait]
impl Runtime for Tart {
    fn kind(&self) -> RuntimeKind {
        self.options.kind
    }

    fn boot_permits(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    async fn list(&self) -> Result<Vec<Found>, RuntimeError> {
        if self.options.tidy {
            self.tidy().await;
        }
        let found = |(name, id, vm): (VmName, CopyId, Listed)| Found { id, name, state: self.state_of(&vm) };
        let found: Vec<Found> = self.listing().await?.ours().map(found).collect();
        if self.options.tidy {
            self.sweep(&found).await;
        }
        Ok(found)
    }

    async fn create(&self, copy: &CopySpec, progress: &Progress) -> Result<(), RuntimeError> {
        self.make(copy, progress).await
    }

    async fn start(&self, copy: &CopySpec) -> Result<(), RuntimeError> {
        self.start_run(copy).await
    }

    async fn booted(&self, _id: CopyId) {}

    async fn wait_exit(&self, id: CopyId) -> Exit {
        self.ended(id).await
    }

    async fn stop(&self, id: CopyId, grace: Duration) -> Result<(), RuntimeError> {
        self.end_run(id, grace).await
    }

    async fn kill(&self, id: CopyId) -> Result<(), RuntimeError> {
        self.kill_run(id).await
    }

    async fn suspend(&self, id: CopyId, _progress: &Progress) -> Result<(), RuntimeError> {
        self.freeze(id).await
    }

    async fn delete(&self, id: CopyId) -> Result<(), RuntimeError> {
        self.remove(id).await
    }

    async fn cached_images(&self) -> Result<Vec<CachedImage>, RuntimeError> {
        Ok(self.listing().await?.images())
    }

    async fn pull(&self, image: &str, progress: &Progress) -> Result<(), RuntimeError> {
        create::check_image(image)?;
        self.make_room().await;
        let _images = self.images.read().await;
        let fetch = |progress, _turn| self.fetch_alone(image, progress);
        self.fetches.fetch((image, Urgency::Ahead), progress, fetch).await.map(drop)
    }

    async fn prune_images(&self, keep_free: u64) -> Result<Vec<String>, RuntimeError> {
        let missing = self.missing(keep_free);
        // Vetu has no command for it. And what is being fetched or cloned now must not go: another time, then.
        let (true, true, Ok(_images)) = (missing > 0, self.options.kind == RuntimeKind::Tart, self.images.try_write())
        else {
            return Ok(Vec::new());
        };
        let before = self.listing().await?.images();
        if before.is_empty() {
            return Ok(Vec::new());
        }
        let taken = before.iter().fold(0u64, |sum, image| sum.saturating_add(image.bytes));
        self.prune(taken.saturating_sub(missing) / 1_000_000_000).await?;
        let after = self.listing().await?.images();
        let gone = before.into_iter().filter(|image| !after.iter().any(|left| left.name == image.name));
        let removed: Vec<String> =
            gone.map(|image| format!("{} ({})", image.name, room::megabytes(image.bytes))).collect();
        if !removed.is_empty() {
            tracing::info!(images = removed.join(", "), "removed from the image cache, as the disk is short of room");
        }
        Ok(removed)
    }

    async fn image_fqn(&self, id: CopyId) -> Option<String> {
        let name = self.name_of(id).await.ok()?;
        parse::fqn(&self.notes.read(&name, Note::Fqn))
    }

    async fn address(&self, id: CopyId) -> Result<IpAddr, RuntimeError> {
        let name = self.name_of(id).await?;
        self.addresses.of(id, || self.ask_address(&name)).await.map_err(RuntimeError::Refused)
    }

    async fn dial(&self, id: CopyId, port: u16) -> Result<GuestStream, RuntimeError> {
        let name = self.name_of(id).await?;
        let ip = self.addresses.of(id, || self.ask_address(&name)).await.map_err(RuntimeError::Refused)?;
        match tokio::time::timeout(DIAL_LIMIT, self.connect(SocketAddr::new(ip, port))).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                Ok(stream.into())
            }
            // Somebody has that address, and nobody listens.
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                Err(RuntimeError::Refused(format!("{ip} port {port}: {error}")))
            }
            Ok(Err(error)) => {
                self.addresses.forget(id);
                Err(RuntimeError::Refused(format!("{ip} port {port}: {error}")))
            }
            Err(_) => {
                self.addresses.forget(id);
                Err(RuntimeError::Timeout(format!("{ip} port {port} does not answer")))
            }
        }
    }
}
