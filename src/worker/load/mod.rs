//! How busy the host is: looked at by a task of its own and handed to the heartbeat (`session`), which only takes what is there.
//!
//! Nothing here can delay a heartbeat: a file system that hangs (a network disk whose server is gone) holds one thread of
//! those that may block, and as long as it does, what is told has no figures of the disk and no other look is begun.

pub(super) mod parse;
mod system;

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::parse::CpuTimes;
use crate::model::vm::RuntimeKind;
use crate::model::worker::HostLoad;

/// How often the host is looked at. What is told goes in that many heartbeats only: each costs the controller something, times
/// its workers.
const PERIOD: Duration = Duration::from_secs(15);
/// How long a look at a disk that answers may take.
const DISK_LIMIT: Duration = Duration::from_secs(2);

/// Looks at the host.
#[derive(Debug)]
pub(super) struct Sampler {
    disks: PathBuf,
    to: watch::Sender<HostLoad>,
    before: Option<CpuTimes>,
    /// [`DISK_LIMIT`], but in tests.
    disk_limit: Duration,
    /// A look at the disk that has not ended.
    looking: Option<JoinHandle<Option<Disk>>>,
}

/// A file system, in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Disk {
    size: u64,
    free: u64,
}

/// Where the disks of VMs of that runtime are kept.
pub(super) fn disks_of(data_dir: &Path, runtime: RuntimeKind) -> PathBuf {
    data_dir.join(runtime.as_str())
}

impl Sampler {
    /// One that looks at the file system of `disks`, and what it finds; nothing until it has looked.
    pub(super) fn new(disks: PathBuf) -> (Self, watch::Receiver<HostLoad>) {
        let (to, found) = watch::channel(HostLoad::default());
        (Self { disks, to, before: None, disk_limit: DISK_LIMIT, looking: None }, found)
    }

    /// Looks for the worker's life.
    pub(super) async fn run(mut self) {
        let mut period = tokio::time::interval(PERIOD);
        period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            period.tick().await;
            let load = self.look().await;
            self.to.send_replace(load);
        }
    }

    async fn look(&mut self) -> HostLoad {
        let disks = self.disks.clone();
        let disk = self.disk(move || disk_of(&disks)).await;
        let memory = system::memory().await;
        HostLoad {
            cpu_permille: self.cpu().await,
            memory_mib: memory.map(|memory| memory.size),
            memory_available_mib: memory.map(|memory| memory.available),
            disk_mib: disk.map(|disk| disk.size),
            disk_free_mib: disk.map(|disk| disk.free),
        }
    }

    async fn cpu(&mut self) -> Option<u64> {
        match system::cpu().await? {
            system::Cpu::Permille(permille) => Some(permille),
            system::Cpu::Times(now) => {
                // The first time, what is told is the mean since the machine's start.
                let before = self.before.replace(now).unwrap_or_default();
                now.permille_since(before)
            }
        }
    }

    /// What `look` finds within [`DISK_LIMIT`]; none while it, or one before it, hangs.
    async fn disk(&mut self, look: impl FnOnce() -> Option<Disk> + Send + 'static) -> Option<Disk> {
        // It cannot be ended; so it is waited for, and nothing is begun beside it.
        let looking = self.looking.get_or_insert_with(|| tokio::task::spawn_blocking(look));
        let found = tokio::time::timeout(self.disk_limit, looking).await.ok()?;
        self.looking = None;
        found.ok().flatten()
    }
}

/// The file system of a folder, or, while that is not there, of the one above it.
fn disk_of(folder: &Path) -> Option<Disk> {
    let about = rustix::fs::statvfs(folder).or_else(|error| match folder.parent() {
        Some(above) => rustix::fs::statvfs(above),
        None => Err(error),
    });
    let about = about.ok()?;
    let mib = |blocks: u64| blocks.saturating_mul(about.f_frsize) >> 20;
    // Without what is kept for root: the worker may not be root.
    Some(Disk { size: mib(about.f_blocks), free: mib(about.f_bavail) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn this_host_says_how_busy_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (mut sampler, _found) = Sampler::new(dir.path().join("not-there-yet"));
        let load = sampler.look().await;
        assert!(load.memory_mib >= load.memory_available_mib && load.memory_available_mib > Some(0), "{load:?}");
        assert!(load.disk_mib >= load.disk_free_mib && load.disk_mib > Some(0), "{load:?}");
        assert!(load.cpu_permille.is_some_and(|busy| busy <= 1_000), "{load:?}");
    }

    #[tokio::test]
    async fn a_disk_that_hangs_costs_its_own_figures_and_one_thread() {
        let (mut sampler, _found) = Sampler::new(PathBuf::from("/"));
        // In real time: that of tests stands still while a thread blocks.
        sampler.disk_limit = Duration::from_millis(20);
        let (go_on, hang) = std::sync::mpsc::channel::<()>();
        let hanging = move || {
            let _ = hang.recv();
            Some(Disk { size: 2, free: 1 })
        };
        assert_eq!(sampler.disk(hanging).await, None);
        let another = || -> Option<Disk> { panic!("a second look beside one that hangs") };
        assert_eq!(sampler.disk(another).await, None);
        drop(go_on);
        sampler.disk_limit = Duration::from_secs(60);
        assert_eq!(sampler.disk(another).await, Some(Disk { size: 2, free: 1 }));
    }
}
