//! `orchard worker session-keeper`: the process that the worker starts beside itself; see `worker::sessions`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;

use super::guard::{program, stand_alone};
use crate::config::duration;
use crate::worker::companion::CompanionCommand;
use crate::worker::sessions::keeper::{self, Limits};

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  orchard worker session-keeper --data-dir /var/lib/orchard

A worker starts it before the first session that can be resumed, and anew should it end. It outlives the
worker and holds the connections into its VMs, so that they go on with the next worker. It ends a minute
after its last session. What it did stands in sessions/v1/keeper.log in the data folder.")]
pub(in crate::cli) struct SessionKeeperArgs {
    /// The worker's data folder
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// How long it stays without a session
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    linger: Option<Duration>,
}

/// How the worker in `data_dir` starts it.
pub(super) fn command(data_dir: &Path, linger: Option<Duration>) -> anyhow::Result<CompanionCommand> {
    let data_dir =
        std::path::absolute(data_dir).with_context(|| format!("cannot find the data folder {}", data_dir.display()))?;
    let mut arguments: Vec<OsString> = ["worker", "session-keeper", "--data-dir"].map(OsString::from).into();
    arguments.push(data_dir.into_os_string());
    if let Some(linger) = linger {
        arguments.extend(["--linger".into(), format!("{}ms", linger.as_millis()).into()]);
    }
    Ok(CompanionCommand { program: program()?, arguments })
}

pub(super) async fn run(arguments: SessionKeeperArgs) -> anyhow::Result<()> {
    stand_alone(c"orchard-session");
    super::raise_file_limit();
    let mut limits = Limits::default();
    limits.linger = arguments.linger.unwrap_or(limits.linger);
    Ok(keeper::run(&arguments.data_dir, limits).await?)
}
