//! The QEMU runtime: Linux guests on Linux and macOS hosts, with hardware help or without.
//!
//! ```text
//! DATA/images/sha256-….qcow2        see image.rs: source.rs (what was asked for), fetch.rs (copy or download), leftovers.rs
//! DATA/vms/<uid>-<attempt>/         see folder.rs; QEMU runs in there with the command line of args.rs
//! ```
//!
//! A running VM is a [`vm::Machine`]: a process (`runtime/process.rs`) and its one QMP connection (qmp.rs). This file keeps
//! the table of them and adopts those that an earlier worker process started.
//!
//! QEMU is started as a child in a process group of its own, not with `-daemonize`: that option forks (which the sandbox
//! forbids), leaves the folder that the relative socket paths need, and throws away what QEMU says later, which is all
//! there is to explain a crash. Own group: Ctrl-C does not reach it. Output to files: it survives us without a broken
//! pipe. Nobody but us signals it when the worker is killed; a service manager must be told to leave it alone
//! (`KillMode=process`).
//!
//! Forwards listen on the host's loopback address, as QEMU offers nothing narrower: other users of the host can reach
//! the guest's ports that were dialled. The other way round, a guest reaches all that listens on the host's loopback address,
//! as 10.0.2.2. `restrict=on` would shut that door, and every other one out of the guest with it; slirp itself could
//! (`disable_host_loopback`), but QEMU does not pass that on, and `guestfwd` cannot stand in the host's own address. A guest on
//! a bridge of its host (bridge.rs) needs no other way out, so its user network is shut.

pub mod args;
mod asked;
mod boot;
mod bridge;
mod download;
mod fetch;
pub mod folder;
mod health;
mod hold;
pub mod host;
pub mod image;
mod launch;
mod leftovers;
pub mod qmp;
mod seed;
pub mod source;
mod suspend;
pub mod usernet;
pub mod vm;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex as AsyncMutex;

use self::args::Accel;
use self::folder::{Folder, Record, VNC_SOCKET};
use self::host::Programs;
use self::image::Images;
use self::vm::{Begin, Machine};
use super::host_dirs::{self, Archives};
use super::process::Reaper;
use super::{CachedImage, CopySpec, Exit, Found, GuestStream, Progress, Runtime, RuntimeError, room, tool};
use crate::identity::make_private_dir;
use crate::model::features;
use crate::model::vm::{ImagePullPolicy, RuntimeKind};
use crate::model::{CopyId, Timestamp};
use crate::worker::unix_socket::MAX_SOCKET_PATH;

/// Forces an accelerator (`kvm`, `hvf`, `tcg`), for hosts where the trial is wrong and for tests.
pub const ACCEL_ENV: &str = "ORCHARD_QEMU_ACCEL";
/// The port that reaches the VM's screen, drawn by QEMU, rather than the guest.
const VNC_PORT: u16 = 5900;
/// Making an overlay takes 15 ms; a slow disk may take seconds.
const OVERLAY_LIMIT: Duration = Duration::from_secs(60);
/// Between two tries to reach a QEMU that runs and does not answer.
const RETRY_PAUSE: Duration = Duration::from_secs(10);
/// `diskSize` counts decimal gigabytes.
const GIGABYTE: u64 = 1_000_000_000;

/// Where and how VMs run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QemuOptions {
    /// Images and VMs lie below; must be absolute, and not shared by two workers.
    pub data_dir: PathBuf,
    /// None = the environment's [`ACCEL_ENV`], else the best that works.
    pub accel: Option<Accel>,
    /// Local images are taken from this folder only; none = from anywhere the worker can read. Set it where those who
    /// may create VMs may not read the host's files.
    pub image_dir: Option<PathBuf>,
    /// Bytes of the disk to keep free when images are brought in, by removing others that no VM stands on.
    pub keep_free: u64,
    /// Downloads that an earlier process left half-done are removed: not by one that runs beside the worker.
    pub tidy: bool,
}

impl QemuOptions {
    /// The usual, in `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self { data_dir: data_dir.into(), accel: None, image_dir: None, keep_free: 0, tidy: true }
    }
}

/// A copy's place in the table: the machine that runs, or was the last to.
type Slot = AsyncMutex<Option<Arc<Machine>>>;

/// The runtime. Dropping it closes the connections to its VMs and stops none.
#[derive(Debug)]
pub struct Qemu {
    vms: PathBuf,
    programs: Programs,
    accel: Accel,
    sandbox: bool,
    images: Images,
    slots: Mutex<HashMap<CopyId, Arc<Slot>>>,
    reaper: Mutex<Reaper>,
}

impl Qemu {
    /// Whether QEMU can be used here, and which; for choosing a runtime.
    ///
    /// # Errors
    /// What is missing, for people.
    pub async fn detect() -> Result<Programs, String> {
        let programs = host::programs().await?;
        host::firmware()?;
        Ok(programs)
    }

    /// Prepares the data folder and tries the accelerator. Touches no VM.
    ///
    /// # Errors
    /// When QEMU is not installed, or the folder cannot be used.
    pub async fn new(options: QemuOptions) -> Result<Self, RuntimeError> {
        let programs = Self::detect().await.map_err(RuntimeError::Tool)?;
        let accel = match options.accel {
            Some(accel) => accel,
            None => match std::env::var(ACCEL_ENV).as_deref() {
                Err(_) | Ok("" | "auto") => host::best_accel(&programs.system).await,
                Ok(text) => text
                    .parse()
                    .map_err(|why| RuntimeError::Tool(format!("environment variable {ACCEL_ENV}: {why}")))?,
            },
        };
        let vms = options.data_dir.join("vms");
        check_depth(&vms)?;
        make_private_dir(&vms).map_err(RuntimeError::io(format!("cannot make {}", vms.display())))?;
        let images =
            Images::open(options.data_dir.join("images"), programs.img.clone(), options.image_dir, options.tidy)?
                .keeping_free(options.keep_free);
        let sandbox = host::has_sandbox(&programs.system).await;
        tracing::info!(version = programs.version, %accel, sandbox, "QEMU runtime");
        Ok(Self { vms, programs, accel, sandbox, images, slots: Mutex::default(), reaper: Mutex::default() })
    }

    /// How guests are executed here.
    pub fn accel(&self) -> Accel {
        self.accel
    }

    /// The image cache: what it holds, and bringing an image in before a VM needs it.
    pub fn images(&self) -> &Images {
        &self.images
    }

    fn folder(&self, id: CopyId) -> Folder {
        Folder::of(&self.vms, id)
    }

    fn slot(&self, id: CopyId) -> Arc<Slot> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default().clone()
    }

    /// The running machine of a copy, adopted if need be; `None` when nothing runs.
    async fn machine(&self, id: CopyId) -> Result<Option<Arc<Machine>>, RuntimeError> {
        let folder = self.folder(id);
        if !folder.exists() {
            return Ok(None);
        }
        let slot = self.slot(id);
        let mut slot = slot.lock().await;
        if let Some(machine) = &*slot {
            if !machine.process().alive().await {
                return Ok(None);
            }
            if machine.connected() {
                return Ok(Some(machine.clone()));
            }
        }
        let Some(process) = folder.process().await else { return Ok(None) };
        let machine = Arc::new(Machine::connect(folder, process, Begin::Adopt).await?);
        *slot = Some(machine.clone());
        Ok(Some(machine))
    }

    /// The running machine, or why not.
    async fn running(&self, id: CopyId) -> Result<Arc<Machine>, RuntimeError> {
        match self.machine(id).await? {
            Some(machine) => Ok(machine),
            None if self.folder(id).exists() => Err(RuntimeError::Refused("the VM does not run".to_owned())),
            None => Err(RuntimeError::NotFound),
        }
    }
}

/// Refuses a data folder so deep that sockets in it could not be reached.
fn check_depth(vms: &Path) -> Result<(), RuntimeError> {
    const NAME_LEN: usize = 32 + 1 + 10 + 1 + 8; // uid, hyphen, attempt, slash, socket
    if !vms.is_absolute() {
        let vms = vms.display();
        return Err(RuntimeError::State(format!("the data folder must be an absolute path; this is {vms}")));
    }
    // Linux has a way round, see Folder::connect.
    let longest = vms.as_os_str().len() + 1 + NAME_LEN;
    if cfg!(target_os = "linux") || longest <= MAX_SOCKET_PATH {
        return Ok(());
    }
    Err(RuntimeError::State(format!(
        "the data folder {} is too deep: sockets in it would have paths of {longest} bytes, and the system allows \
         {MAX_SOCKET_PATH}; choose one that is at least {} bytes shorter",
        vms.display(),
        longest - MAX_SOCKET_PATH
    )))
}

#[async_trait]
impl Runtime for Qemu {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Qemu
    }

    fn boot_permits(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if self.accel == Accel::Tcg { cores } else { cores * 2 }
    }

    async fn list(&self) -> Result<Vec<Found>, RuntimeError> {
        let what = || format!("cannot list {}", self.vms.display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.vms).map_err(RuntimeError::io(what()))? {
            let name = entry.map_err(RuntimeError::io(what()))?.file_name().to_string_lossy().into_owned();
            let Some(id) = Folder::parse_name(&name) else {
                tracing::warn!(name, "not a VM's folder, left alone");
                continue;
            };
            let folder = self.folder(id);
            // Without its record the name is lost with it; the id alone is enough to remove it.
            let name = folder.record().map(|record| record.name).or_else(|| id.to_string().parse().ok());
            if let Some(name) = name {
                found.push(Found { id, name, state: folder.state().await });
            }
        }
        Ok(found)
    }

    async fn create(&self, copy: &CopySpec, progress: &Progress) -> Result<(), RuntimeError> {
        let folder = self.folder(copy.id);
        if folder.process().await.is_some() || folder.is_held() {
            return Err(RuntimeError::State("the VM runs already".to_owned()));
        }
        features::check(&copy.spec, RuntimeKind::Qemu).map_err(|error| RuntimeError::State(error.message))?;
        asked::check_sizes(copy, asked::host_memory())?;
        host_dirs::check(&copy.spec.host_dirs, Archives::Refused)?;
        asked::check_nested(copy.spec.nested, self.accel)?;
        launch::uefi_of(copy)?;
        // Given back at once: what matters is that it can be had, before an image is fetched for it.
        drop(launch::card_of(copy).await?);
        let image = match copy.spec.image_pull_policy {
            ImagePullPolicy::IfNotPresent => self.images.get(&copy.spec.image, progress).await?,
            ImagePullPolicy::Always => self.images.get_newest(&copy.spec.image, progress).await?,
        };
        let size = match copy.spec.disk_size {
            0 => None,
            wanted => Some(wanted.saturating_mul(GIGABYTE)),
        };
        if let Some(size) = size.filter(|size| *size < image.size) {
            return Err(RuntimeError::Image(format!(
                "diskSize asks for {}, less than the image's own {}; give 0 or at least {}",
                room::megabytes(size),
                room::megabytes(image.size),
                image.size.div_ceil(GIGABYTE)
            )));
        }
        progress.say("making the disk");
        folder.remove().await?;
        folder.make()?;
        let mut record = Record {
            id: copy.id,
            name: copy.name.clone(),
            cpu: copy.cpu,
            memory: copy.memory,
            mac: args::mac_address(copy.id),
            image: image.file.clone(),
            source: image.source.clone(),
            created: false,
            started: false,
        };
        folder.write_record(&record)?;
        let base = format!("../../images/{}", image.file);
        let args = args::make_overlay(&base, image.format.as_str(), size);
        tool::run(&self.programs.img, &args, Some(folder.path()), OVERLAY_LIMIT).await?;
        record.created = true;
        folder.write_record(&record)
    }

    async fn start(&self, copy: &CopySpec) -> Result<(), RuntimeError> {
        if self.machine(copy.id).await?.is_some() {
            return Ok(());
        }
        let folder = self.folder(copy.id);
        let mut record = folder.record().filter(|record| record.created).ok_or(RuntimeError::NotFound)?;
        if !record.started {
            // Noted before it is true: from here on the disk may hold what the guest wrote, and is never made anew.
            record.started = true;
            folder.write_record(&record)?;
        }
        let slot = self.slot(copy.id);
        let mut slot = slot.lock().await;
        *slot = None;
        *slot = Some(Arc::new(self.launch(&folder, &record, copy).await?));
        Ok(())
    }

    async fn booted(&self, id: CopyId) {
        match self.machine(id).await {
            Ok(Some(machine)) => machine.booted().await,
            Ok(None) => {}
            Err(error) => tracing::debug!(%id, %error, "cannot ask QEMU whether the guest is up"),
        }
    }

    async fn wait_exit(&self, id: CopyId) -> Exit {
        let folder = self.folder(id);
        let (mut told, mut unreached, mut hung) = (false, health::Unreached::new(), None);
        while let Err(error) = self.machine(id).await {
            if !std::mem::replace(&mut told, true) {
                tracing::warn!(%id, %error, "QEMU runs but does not answer; trying again");
            }
            let Some(process) = folder.process().await else { break };
            hung = unreached.again(&error, &folder, &process, health::HUNG_AFTER).await.or(hung);
            if process.gone_within(RETRY_PAUSE).await {
                break;
            }
        }
        let slot = self.slots.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        let last = match slot {
            Some(slot) => slot.lock().await.clone(),
            None => None,
        };
        let exit = match (last, hung) {
            (_, Some(why)) => Exit::Crashed(why),
            (Some(machine), None) => machine.wait_exit().await,
            (None, None) => vm::exit_of(&folder, None),
        };
        folder.released().await;
        exit
    }

    async fn stop(&self, id: CopyId, grace: Duration) -> Result<(), RuntimeError> {
        let folder = self.folder(id);
        match self.machine(id).await {
            Ok(Some(machine)) => machine.stop(grace).await?,
            Ok(None) => {}
            Err(error) => tracing::warn!(%id, %error, "QEMU does not answer and is killed"),
        }
        self.end(&folder).await?;
        if folder.exists() { suspend::discard(&folder) } else { Ok(()) }
    }

    async fn kill(&self, id: CopyId) -> Result<(), RuntimeError> {
        self.end(&self.folder(id)).await
    }

    async fn suspend(&self, id: CopyId, progress: &Progress) -> Result<(), RuntimeError> {
        match self.machine(id).await? {
            Some(machine) => machine.suspend(progress).await?,
            None => return Ok(()),
        }
        self.end(&self.folder(id)).await
    }

    async fn delete(&self, id: CopyId) -> Result<(), RuntimeError> {
        let folder = self.folder(id);
        self.end(&folder).await?;
        folder.remove().await?;
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        Ok(())
    }

    async fn cached_images(&self) -> Result<Vec<CachedImage>, RuntimeError> {
        let files = self.images.list()?;
        let named = files.iter().flat_map(|file| {
            // Several names may lead to the same bytes; each can be asked for.
            let names = if file.sources.is_empty() { vec![file.file.clone()] } else { file.sources.clone() };
            let seconds = i64::try_from(file.last_used).unwrap_or(i64::MAX);
            let last_used = Some(Timestamp::from_millis(seconds.saturating_mul(1_000)));
            names.into_iter().map(move |name| CachedImage {
                name,
                bytes: file.bytes,
                digest: file.digest(),
                last_used,
                in_use: file.in_use,
            })
        });
        Ok(named.collect())
    }

    async fn pull(&self, image: &str, progress: &Progress) -> Result<(), RuntimeError> {
        self.images.pull(image, progress).await.map(drop)
    }

    async fn prune_images(&self, keep_free: u64) -> Result<Vec<String>, RuntimeError> {
        self.images.prune(keep_free)
    }

    async fn image_fqn(&self, id: CopyId) -> Option<String> {
        let record = self.folder(id).record().filter(|record| !record.source.is_empty())?;
        let (hex, _) = record.image.strip_prefix("sha256-")?.split_once('.')?;
        // As it could be asked for again, with the digest checked.
        Some(format!("{}#sha256={hex}", record.source))
    }

    async fn address(&self, id: CopyId) -> Result<IpAddr, RuntimeError> {
        self.running(id).await?;
        Ok(usernet::FIRST_LEASE.into())
    }

    async fn dial(&self, id: CopyId, port: u16) -> Result<GuestStream, RuntimeError> {
        let machine = self.running(id).await?;
        if port == VNC_PORT {
            let stream = self.folder(id).connect(VNC_SOCKET).await;
            return Ok(stream.map_err(RuntimeError::io("cannot reach the VM's screen"))?.into());
        }
        Ok(machine.dial(port).await?.into())
    }
}
