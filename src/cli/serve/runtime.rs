//! `--runtime`: one by name, or whichever this machine has.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::model::vm::{Arch, RuntimeKind};
use crate::worker::local_network::LocalNetwork;
use crate::worker::runtime::Runtime;
use crate::worker::runtime::qemu::args::Accel;
use crate::worker::runtime::qemu::{Qemu, QemuOptions};
use crate::worker::runtime::synthetic::Synthetic;
use crate::worker::runtime::tart::{Tart, TartOptions};

/// What `--runtime` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum RuntimeChoice {
    /// Whatever is installed.
    Auto,
    /// This one.
    Kind(RuntimeKind),
}

/// Reads `--runtime`.
pub(super) fn parse(text: &str) -> Result<RuntimeChoice, String> {
    match text {
        "auto" => Ok(RuntimeChoice::Auto),
        name => name
            .parse()
            .map(RuntimeChoice::Kind)
            .map_err(|_| format!("{name:?} is not one of auto, tart, vetu, qemu, synthetic")),
    }
}

/// Prepares the runtime `kind`, which keeps its VMs in a folder of its own below `data_dir`; with `keep_free` bytes of the disk kept
/// free by removing images.
pub(super) async fn open(
    kind: RuntimeKind,
    data_dir: &Path,
    local_network: Option<LocalNetwork>,
    keep_free: u64,
) -> anyhow::Result<Arc<dyn Runtime>> {
    Ok(match kind {
        RuntimeKind::Qemu => {
            Arc::new(Qemu::new(QemuOptions { keep_free, ..QemuOptions::new(data_dir.join("qemu")) }).await?)
        }
        RuntimeKind::Tart | RuntimeKind::Vetu => {
            let runtime = tart(TartOptions { local_network, keep_free, ..tart_options(kind, data_dir) }).await?;
            #[cfg(target_os = "macos")]
            if kind == RuntimeKind::Tart {
                crate::worker::runtime::tart::lease::check().await;
            }
            runtime
        }
        RuntimeKind::Synthetic => Arc::new(Synthetic::new()),
        RuntimeKind::Unknown => anyhow::bail!("no such runtime"),
    })
}

/// The same for a guard, which runs beside the worker: only to look and to end VMs.
pub(super) async fn open_for_guard(kind: RuntimeKind, data_dir: &Path) -> anyhow::Result<Arc<dyn Runtime>> {
    match kind {
        RuntimeKind::Qemu => {
            // It starts no guest, so no accelerator is tried.
            let options =
                QemuOptions { accel: Some(Accel::Tcg), tidy: false, ..QemuOptions::new(data_dir.join("qemu")) };
            Ok(Arc::new(Qemu::new(options).await?))
        }
        RuntimeKind::Tart | RuntimeKind::Vetu => {
            // What the worker is about to make is not its business.
            tart(TartOptions { tidy: false, ..tart_options(kind, data_dir) }).await
        }
        RuntimeKind::Synthetic | RuntimeKind::Unknown => open(kind, data_dir, None, 0).await,
    }
}

fn tart_options(kind: RuntimeKind, data_dir: &Path) -> TartOptions {
    TartOptions::new(kind, data_dir.join(kind.as_str()))
}

async fn tart(options: TartOptions) -> anyhow::Result<Arc<dyn Runtime>> {
    let version = Tart::detect(&options.program).await.map_err(anyhow::Error::msg)?;
    tracing::info!(kind = %options.kind, version, "runtime");
    Ok(Arc::new(Tart::new(options)?))
}

/// What this machine has to run VMs with: Tart on macOS, QEMU on Linux.
pub(super) fn detect() -> Option<RuntimeKind> {
    choose(cfg!(target_os = "macos"), |program| find(program).is_some())
}

fn choose(macos: bool, has: impl Fn(&str) -> bool) -> Option<RuntimeKind> {
    let qemu = match Arch::HOST {
        Arch::Arm64 | Arch::Unknown => "qemu-system-aarch64",
        Arch::Amd64 => "qemu-system-x86_64",
    };
    match macos {
        true => has("tart").then_some(RuntimeKind::Tart),
        false => (has(qemu) && has("qemu-img")).then_some(RuntimeKind::Qemu),
    }
}

/// Where a program is, on `PATH`.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| is_executable(file))
}

fn is_executable(file: &std::path::Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(file).is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
}

/// What to install where nothing was found.
pub(super) const NOTHING_FOUND: &str = if cfg!(target_os = "macos") {
    "found no `tart` on PATH (brew install cirruslabs/cli/tart)"
} else {
    "found no QEMU on PATH (on Debian and Ubuntu: apt-get install qemu-system qemu-utils)"
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_installed_is_taken() {
        assert_eq!(choose(true, |program| program == "tart"), Some(RuntimeKind::Tart));
        assert_eq!(choose(true, |_| false), None);
        assert_eq!(choose(false, |program| program.starts_with("qemu-")), Some(RuntimeKind::Qemu));
        assert_eq!(choose(false, |program| program == "qemu-img"), None, "half a QEMU is none");
        assert!(find("sh").is_some() && find("no-such-program-here").is_none());
    }

    #[test]
    fn a_choice_is_read() {
        assert_eq!(parse("auto"), Ok(RuntimeChoice::Auto));
        assert_eq!(parse("vetu"), Ok(RuntimeChoice::Kind(RuntimeKind::Vetu)));
        assert!(parse("xen").unwrap_err().contains("synthetic"));
    }
}
