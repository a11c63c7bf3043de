//! What this machine is called and what it has to offer.

use crate::model::MAX_NAME_LEN;
use crate::model::WorkerName;
use crate::model::resources::{LOGICAL_CORES, MEMORY_MIB, Resources, TART_VMS};
use crate::model::vm::RuntimeKind;

/// CPU cores of a VM that asks for none, where the host has that many.
const DEFAULT_CPU: u64 = 4;
/// Memory in MiB of a VM that asks for none, where the host has that much.
const DEFAULT_MEMORY: u64 = 8192;
/// Guests of macOS at a time: what Apple's licence allows on one host.
const TART_SLOTS: u64 = 2;
/// What a synthetic worker claims to have: its VMs take nothing, and load tests want thousands.
const SYNTHETIC_CORES: u64 = 16_384;
/// Likewise, in MiB.
const SYNTHETIC_MEMORY: u64 = 32 * 1024 * 1024;

/// Cores and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capacity {
    pub(super) cores: u64,
    /// In MiB.
    pub(super) memory: u64,
}

impl Capacity {
    /// What a worker with the runtime `kind` has here.
    pub(super) fn of(kind: RuntimeKind) -> Self {
        if kind == RuntimeKind::Synthetic {
            return Self { cores: SYNTHETIC_CORES, memory: SYNTHETIC_MEMORY };
        }
        let cores = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        Self { cores, memory: memory_mib() }
    }

    /// What a VM gets that asks for nothing, on a machine that is there for VMs.
    pub(super) fn defaults(self) -> Self {
        Self { cores: DEFAULT_CPU.min(self.cores).max(1), memory: DEFAULT_MEMORY.min(self.memory).max(1) }
    }

    /// What a VM gets that asks for nothing, on a developer's machine that does other work, too: at most a half of the
    /// cores and a quarter of the memory.
    pub(super) fn modest_defaults(self) -> Self {
        Self { cores: DEFAULT_CPU.min(self.cores / 2).max(1), memory: DEFAULT_MEMORY.min(self.memory / 4).max(1) }
    }

    /// What the worker offers, before the user's own additions.
    pub(super) fn resources(self, kind: RuntimeKind) -> Resources {
        let mut offer = Resources::from([(LOGICAL_CORES, self.cores), (MEMORY_MIB, self.memory)]);
        if kind == RuntimeKind::Tart {
            offer.0.insert(TART_VMS.to_owned(), TART_SLOTS);
        }
        offer
    }
}

#[cfg(target_os = "linux")]
fn memory_mib() -> u64 {
    let about = rustix::system::sysinfo();
    (about.totalram as u64).saturating_mul(about.mem_unit.into()) / (1024 * 1024)
}

#[cfg(not(target_os = "linux"))]
fn memory_mib() -> u64 {
    let read = || -> Option<u64> {
        let output = std::process::Command::new("sysctl").args(["-n", "hw.memsize"]).output().ok()?;
        let bytes: u64 = String::from_utf8(output.stdout).ok()?.trim().parse().ok()?;
        Some(bytes / (1024 * 1024))
    };
    read().unwrap_or_else(|| {
        tracing::warn!("cannot find out how much memory this machine has; offering {DEFAULT_MEMORY} MiB");
        DEFAULT_MEMORY
    })
}

/// The machine's name, as a name that workers may have.
pub(super) fn name() -> Option<WorkerName> {
    worker_name(&rustix::system::uname().nodename().to_string_lossy())
}

fn worker_name(host: &str) -> Option<WorkerName> {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '-' };
    let name: String = host.chars().map(allowed).take(MAX_NAME_LEN).collect();
    name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric()).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_host_name_becomes_a_workers_name_if_anything_is_left_of_it() {
        let name = |host| worker_name(host).map(String::from);
        assert_eq!(name("mini-1.local").as_deref(), Some("mini-1.local"));
        assert_eq!(name("Ann's Mac").as_deref(), Some("Ann-s-Mac"));
        assert_eq!(name(".x").as_deref(), Some("x"));
        assert_eq!(name(""), None);
        assert_eq!(name(&"a".repeat(300)).map(|name| name.len()), Some(MAX_NAME_LEN));
    }

    #[test]
    fn a_vm_that_asks_for_nothing_fits_on_the_smallest_host() {
        let small = Capacity { cores: 1, memory: 512 };
        assert_eq!(small.defaults(), Capacity { cores: 1, memory: 512 });
        assert_eq!(small.modest_defaults(), Capacity { cores: 1, memory: 128 });
        let large = Capacity { cores: 64, memory: 262_144 };
        assert_eq!(large.modest_defaults(), Capacity { cores: 4, memory: 8192 });
        assert_eq!(large.defaults(), large.modest_defaults());
    }

    #[test]
    fn this_machine_has_something_to_offer() {
        let capacity = Capacity::of(RuntimeKind::Qemu);
        assert!(capacity.cores >= 1 && capacity.memory > 64, "{capacity:?}");
        assert_eq!(capacity.resources(RuntimeKind::Tart).get(TART_VMS), 2);
        assert_eq!(capacity.resources(RuntimeKind::Qemu).get(TART_VMS), 0);
    }
}
