//! `orchard worker guard`: the process that the worker starts beside itself; see `worker::guard`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::runtime;
use crate::cli::pairs;
use crate::model::vm::RuntimeKind;
use crate::worker::guard::{GuardCommand, watch};

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
pub(super) fn command(data_dir: &Path, runtime: RuntimeKind) -> anyhow::Result<GuardCommand> {
    let data_dir =
        std::path::absolute(data_dir).with_context(|| format!("cannot find the data folder {}", data_dir.display()))?;
    let words = ["worker", "guard", "--runtime", runtime.as_str(), "--data-dir"].map(OsString::from);
    let arguments = words.into_iter().chain([data_dir.into_os_string()]).collect();
    Ok(GuardCommand { program: program()?, arguments })
}

/// This very program, even if its file was replaced or removed since.
fn program() -> anyhow::Result<PathBuf> {
    // The guard must understand the files of this release; and ps shows the name that it is given all the same.
    if cfg!(target_os = "linux") && Path::new(OWN).exists() {
        return Ok(OWN.into());
    }
    std::env::current_exe().context("cannot find the program that runs here, to start the worker's guard with")
}

/// The program of whichever process opens it.
const OWN: &str = "/proc/self/exe";

pub(super) async fn run(arguments: GuardArgs) -> anyhow::Result<()> {
    // A session of its own: neither Ctrl-C in the worker's terminal nor the end of that terminal reaches it. Fails for the
    // leader of a group, which a shell makes of what a person starts.
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!("no session of its own: {error}");
    }
    // Named for those who look; it is not in all systems that the program's file gives the name.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::thread::set_name(c"orchard-guard") {
        tracing::debug!("the process cannot be named: {error}");
    }
    let runtime = runtime::open_for_guard(arguments.runtime, &arguments.data_dir).await?;
    Ok(watch::run(&arguments.data_dir, runtime).await?)
}
