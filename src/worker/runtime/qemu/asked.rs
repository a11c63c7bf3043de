//! Whether what a VM asks of its host can be: sizes, and VMs of its own. Looked at before anything is fetched or made; called
//! by `mod.rs`. Folders of the host: `runtime/host_dirs.rs`.

use super::super::{CopySpec, RuntimeError};
use super::args::Accel;

/// MiB below which no kernel of today boots.
const MIN_MEMORY: u64 = 32;
/// Cores that QEMU's machines have room for.
const MAX_CPU: u64 = 255;
/// Decimal gigabytes; the tables of a larger overlay alone would take gigabytes of memory.
const MAX_DISK: u64 = 64_000;

/// Whether a machine of this size can be. `host_memory` in MiB, if it is known. Pure.
///
/// # Errors
/// What was asked for and what can be.
pub fn check_sizes(copy: &CopySpec, host_memory: Option<u64>) -> Result<(), RuntimeError> {
    let refuse = |what: String| Err(RuntimeError::State(what));
    if copy.memory < MIN_MEMORY {
        return refuse(format!("--memory asks for {} MiB; no guest boots in less than {MIN_MEMORY}", copy.memory));
    }
    if let Some(host) = host_memory.filter(|host| copy.memory > *host) {
        return refuse(format!("--memory asks for {} MiB, and the worker's host has {host} in all", copy.memory));
    }
    if copy.cpu > MAX_CPU {
        return refuse(format!("--cpu asks for {} cores; QEMU has at most {MAX_CPU}", copy.cpu));
    }
    if copy.spec.disk_size > MAX_DISK {
        return refuse(format!("--disk-size asks for {} GB; at most {MAX_DISK} can be", copy.spec.disk_size));
    }
    Ok(())
}

/// Where KVM says whether its guests can run VMs themselves: for Intel's and for AMD's processors.
const NESTED: [&str; 2] = ["/sys/module/kvm_intel/parameters/nested", "/sys/module/kvm_amd/parameters/nested"];

/// Whether a guest can run VMs itself: where KVM passes the processor's extensions on, which come with `-cpu host`.
///
/// # Errors
/// What is in the way, and what to do about it.
pub fn check_nested(wished: bool, accel: Accel) -> Result<(), RuntimeError> {
    if wished { nested(accel, |path| std::fs::read_to_string(path).ok()) } else { Ok(()) }
}

fn nested(accel: Accel, read: impl Fn(&str) -> Option<String>) -> Result<(), RuntimeError> {
    let refuse = |what: String| Err(RuntimeError::State(format!("nested virtualisation (nested): {what}")));
    if accel != Accel::Kvm {
        return refuse(format!("it needs KVM, and guests of this worker run by {accel}"));
    }
    match NESTED.iter().find_map(|path| read(path)) {
        Some(text) if matches!(text.trim(), "Y" | "1") => Ok(()),
        Some(_) => {
            refuse("it is switched off on this worker; load the module kvm_intel or kvm_amd with nested=1".to_owned())
        }
        None => refuse(format!("KVM on this worker does not say that it can; looked for {}", NESTED.join(", "))),
    }
}

/// The memory of this host in MiB.
pub fn host_memory() -> Option<u64> {
    #[cfg(target_os = "linux")]
    {
        let about = rustix::system::sysinfo();
        about.totalram.checked_mul(u64::from(about.mem_unit)).map(|bytes| bytes >> 20)
    }
    #[cfg(not(target_os = "linux"))]
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::vm::VmSpec;

    #[test]
    fn absurd_sizes_are_refused_with_what_can_be() {
        let with = |cpu, memory, disk_size| {
            let id = "00000000-0000-7000-8000-000000000001".parse().unwrap();
            let spec = VmSpec { disk_size, ..VmSpec::default() };
            let copy = CopySpec {
                id: crate::model::CopyId { uid: id, attempt: 0 },
                name: "a".parse().unwrap(),
                spec,
                cpu,
                memory,
            };
            check_sizes(&copy, Some(16_000)).map_err(|error| error.to_string())
        };
        with(1, 32, 0).unwrap();
        with(255, 16_000, 64_000).unwrap();
        for (asked, why) in [
            (with(1, 1, 0), "--memory asks for 1 MiB; no guest boots in less than 32"),
            (with(1, 16_001, 0), "--memory asks for 16001 MiB, and the worker's host has 16000 in all"),
            (with(256, 128, 0), "--cpu asks for 256 cores; QEMU has at most 255"),
            (with(1, 128, 1_000_000), "--disk-size asks for 1000000 GB; at most 64000 can be"),
        ] {
            assert_eq!(asked.unwrap_err(), why);
        }
    }

    #[test]
    fn a_guest_runs_vms_only_where_kvm_lets_it() {
        let check = |accel, text: Option<&str>| {
            nested(accel, |path| text.filter(|_| path.contains("amd")).map(str::to_owned))
                .map_err(|why| why.to_string())
        };
        check(Accel::Kvm, Some("1\n")).unwrap();
        check(Accel::Kvm, Some("Y\n")).unwrap();
        assert!(check(Accel::Kvm, Some("0\n")).unwrap_err().contains("nested=1"));
        assert!(check(Accel::Kvm, None).unwrap_err().contains("does not say"));
        assert!(check(Accel::Tcg, Some("1\n")).unwrap_err().contains("run by tcg"));
        check_nested(false, Accel::Tcg).unwrap();
    }
}
