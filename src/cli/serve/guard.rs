//! `orchard worker guard`: the process that the worker starts beside itself; see `worker::guard`.

use std::ffi::{CStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::runtime;
use crate::cli::pairs;
use crate::model::vm::RuntimeKind;
use crate::worker::companion::CompanionCommand;
use crate::worker::guard::watch;

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  orchard worker guard --data-dir /var/lib/orchard --runtime qemu

A worker starts it before the first VM with --on-unseen replace, and anew should it end. It outlives
the worker: when the worker has not reached the controller for the time of its lease, it ends those
VMs, and no others. What it did stands in guard/guard.log in the data folder.")]
pub(in crate::cli) struct GuardArgs {
    /// The worker's data folder
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// What runs the worker's VMs
    #[arg(long, value_name = "KIND", value_parser = pairs::one_of::<RuntimeKind>)]
    runtime: RuntimeKind,
}

/// How the worker in `data_dir` starts it.
pub(super) fn command(data_dir: &Path, runtime: RuntimeKind) -> anyhow::Result<CompanionCommand> {
    let data_dir =
        std::path::absolute(data_dir).with_context(|| format!("cannot find the data folder {}", data_dir.display()))?;
    let words = ["worker", "guard", "--runtime", runtime.as_str(), "--data-dir"].map(OsString::from);
    let arguments = words.into_iter().chain([data_dir.into_os_string()]).collect();
    Ok(CompanionCommand { program: program()?, arguments })
}

/// This very program, even if its file was replaced or removed since.
pub(super) fn program() -> anyhow::Result<PathBuf> {
    // It must understand the files of this release; and ps shows the name that it is given all the same.
    if cfg!(target_os = "linux") && Path::new(OWN).exists() {
        return Ok(OWN.into());
    }
    std::env::current_exe().context("cannot find the program that runs here, to start the worker's second process with")
}

/// The program of whichever process opens it.
const OWN: &str = "/proc/self/exe";

pub(super) async fn run(arguments: GuardArgs) -> anyhow::Result<()> {
    stand_alone(c"orchard-guard");
    let runtime = runtime::open_for_guard(arguments.runtime, &arguments.data_dir).await?;
    Ok(watch::run(&arguments.data_dir, runtime).await?)
}

/// Has this process, which the worker started, outlive it, and be called so by those who look.
pub(super) fn stand_alone(name: &CStr) {
    // A session of its own: neither Ctrl-C in the worker's terminal nor the end of that terminal reaches it. Fails for the
    // leader of a group, which a shell makes of what a person starts.
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!("no session of its own: {error}");
    }
    // It is not in all systems that the program's file gives the name.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::thread::set_name(name) {
        tracing::debug!("the process cannot be named: {error}");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = name;
}
