//! What this host offers: which QEMU programs are installed, and which accelerator really works.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use super::super::tool;
use super::args::Accel;
use super::boot;
use crate::model::vm::Arch;

/// How long a program may take to tell its version, on a busy host.
const VERSION_LIMIT: Duration = Duration::from_secs(20);
/// How long the trial of an accelerator may take: firmware boots, on a busy host.
const TRIAL_LIMIT: Duration = Duration::from_secs(20);
/// How long a trial machine runs before it is asked whether it still does.
const TRIAL_RUN: Duration = Duration::from_millis(300);

/// Linux's hypervisor.
const KVM: &str = "/dev/kvm";

/// Present where that is PVM's, which does without the processor's help inside other VMs: it opens and boots a sector, and hangs
/// in the boot loaders and kernels of ordinary guests, as it emulates what these do before they page.
const PVM: &str = "/sys/module/kvm_pvm";

/// Where arm64 firmware is kept by the packages that bring it.
const FIRMWARE: &[&str] = &[
    "/usr/share/AAVMF/AAVMF_CODE.fd",
    "/usr/share/qemu-efi-aarch64/QEMU_EFI.fd",
    "/usr/share/edk2/aarch64/QEMU_EFI.fd",
    "/opt/homebrew/share/qemu/edk2-aarch64-code.fd",
    "/usr/local/share/qemu/edk2-aarch64-code.fd",
];

/// Where UEFI for amd64 is kept, and the empty store of its variables that belongs to it.
const OVMF: &[(&str, &str)] = &[
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/opt/homebrew/share/qemu/edk2-x86_64-code.fd", "/opt/homebrew/share/qemu/edk2-i386-vars.fd"),
    ("/usr/local/share/qemu/edk2-x86_64-code.fd", "/usr/local/share/qemu/edk2-i386-vars.fd"),
    ("/usr/share/qemu/edk2-x86_64-code.fd", "/usr/share/qemu/edk2-i386-vars.fd"),
];

/// UEFI for a guest that is to have it, and the store of its variables to copy; `None` where it has UEFI anyhow.
///
/// # Errors
/// What to install, and where it was looked for.
pub fn uefi(arch: Arch, exists: impl Fn(&str) -> bool) -> Result<Option<(&'static str, &'static str)>, String> {
    if arch == Arch::Arm64 {
        return Ok(None);
    }
    OVMF.iter().copied().find(|(code, vars)| exists(code) && exists(vars)).map(Some).ok_or_else(|| {
        let places: Vec<&str> = OVMF.iter().map(|(code, _)| *code).collect();
        format!("no UEFI firmware for amd64 guests on this worker; install ovmf. Looked for {}", places.join(", "))
    })
}

/// The QEMU found on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    /// `qemu-system-…` of the host's architecture.
    pub system: PathBuf,
    /// `qemu-img`.
    pub img: PathBuf,
    /// As QEMU tells it, such as `7.2.22`.
    pub version: String,
}

/// Looks for QEMU on PATH.
///
/// # Errors
/// What is missing and how to install it, for people.
pub async fn programs() -> Result<Programs, String> {
    let system = match Arch::HOST {
        Arch::Amd64 => "qemu-system-x86_64",
        Arch::Arm64 | Arch::Unknown => "qemu-system-aarch64",
    };
    let install = if cfg!(target_os = "macos") {
        "brew install qemu"
    } else {
        "apt-get install qemu-system-x86 qemu-utils (or qemu-system-arm on arm64)"
    };
    let version = |program: &'static str| async move {
        let out = tool::run(Path::new(program), &["--version"], None, VERSION_LIMIT).await;
        out.map_err(|error| format!("{error}: {install}"))
    };
    let text = version(system).await?;
    version("qemu-img").await?;
    let version = text.split_ascii_whitespace().nth(3).unwrap_or("unknown").to_owned();
    Ok(Programs { system: system.into(), img: "qemu-img".into(), version })
}

/// The firmware an arm64 machine boots with; none is needed, nor given, on amd64.
///
/// # Errors
/// Where it was looked for.
pub fn firmware() -> Result<Option<&'static str>, String> {
    match Arch::HOST {
        Arch::Amd64 => Ok(None),
        Arch::Arm64 | Arch::Unknown => {
            FIRMWARE.iter().copied().find(|path| Path::new(path).exists()).map(Some).ok_or_else(|| {
                format!(
                    "no UEFI firmware for arm64 guests; install qemu-efi-aarch64. Looked for {}",
                    FIRMWARE.join(", ")
                )
            })
        }
    }
}

/// The best accelerator that works. `/dev/kvm` may well open and yet run nothing (nested virtualisation, rights,
/// another hypervisor), or run an empty machine and no firmware, so a machine is run for a moment: where that can be had, one that
/// boots.
pub async fn best_accel(system: &Path) -> Accel {
    let candidate = if cfg!(target_os = "macos") { Accel::Hvf } else { Accel::Kvm };
    let why = match if candidate == Accel::Kvm { kvm_opens() } else { Ok(()) } {
        Err(why) => why,
        Ok(()) => match tokio::time::timeout(TRIAL_LIMIT, trial(system, candidate)).await {
            Ok(Some(())) => return candidate,
            Ok(None) => "a trial machine did not run with it".to_owned(),
            Err(_) => format!("a trial machine did not run with it within {} s", TRIAL_LIMIT.as_secs()),
        },
    };
    tracing::warn!("guests run in software (tcg), some ten times slower: {candidate} cannot be used: {why}");
    Accel::Tcg
}

/// Whether this process may use KVM, as far as the device tells.
fn kvm_opens() -> Result<(), String> {
    if Path::new(PVM).exists() {
        return Err(format!("{KVM} is PVM's, in which only guests run that are made for it"));
    }
    match std::fs::File::options().read(true).write(true).open(KVM) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(format!("there is no {KVM}; is virtualisation switched on, and the module loaded?"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(format!("{KVM} may not be opened; add the worker's user to the group that owns it"))
        }
        Err(error) => Err(format!("{KVM}: {error}")),
    }
}

async fn trial(system: &Path, accel: Accel) -> Option<()> {
    match Arch::HOST {
        Arch::Amd64 => match boot::trial(system, accel).await {
            Some(()) => Some(()),
            // One that hangs comes to no end. This one could not be had: not every QEMU has all its devices.
            None => run_empty(system, accel).await,
        },
        Arch::Arm64 | Arch::Unknown => run_empty(system, accel).await,
    }
}

/// Runs an empty machine and asks it whether it runs. Dropped early, it kills the machine.
async fn run_empty(system: &Path, accel: Accel) -> Option<()> {
    let machine = if Arch::HOST == Arch::Arm64 { "virt,gic-version=max" } else { "q35" };
    let mut child = Command::new(system)
        .args(["-accel", &accel.to_string(), "-cpu", "host", "-machine", machine, "-m", "64M"])
        .args(["-display", "none", "-nodefaults", "-no-user-config", "-qmp", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .ok()?;
    let (mut input, output) = (child.stdin.take()?, child.stdout.take()?);
    let mut lines = BufReader::new(output).lines();
    lines.next_line().await.ok()??;
    input.write_all(b"{\"execute\":\"qmp_capabilities\"}\n").await.ok()?;
    tokio::time::sleep(TRIAL_RUN).await;
    input.write_all(b"{\"execute\":\"query-status\"}\n").await.ok()?;
    loop {
        let line = lines.next_line().await.ok()??;
        if line.contains("\"status\"") {
            let runs = line.contains("\"running\": true");
            let _ = child.kill().await;
            return runs.then_some(());
        }
    }
}

/// Whether this QEMU knows `-sandbox` (built with seccomp: Linux only, and not everywhere there).
pub async fn has_sandbox(system: &Path) -> bool {
    if !cfg!(target_os = "linux") {
        return false;
    }
    let help = tool::run(system, &["-help"], None, VERSION_LIMIT).await;
    help.is_ok_and(|text| text.contains("-sandbox on"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uefi_is_found_with_its_variables_or_said_to_be_missing() {
        assert_eq!(uefi(Arch::Arm64, |_| false), Ok(None));
        let fedora = uefi(Arch::Amd64, |path| path.starts_with("/usr/share/edk2/ovmf/")).unwrap();
        assert_eq!(fedora, Some(("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd")));
        let half = uefi(Arch::Amd64, |path| path.contains("CODE")).unwrap_err();
        assert!(half.contains("install ovmf") && half.contains("/usr/share/OVMF/OVMF_CODE_4M.fd"), "{half}");
    }
}
