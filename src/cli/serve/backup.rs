//! `orchard controller backup` and `orchard controller restore`: on the controller's machine, as the user that runs it.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use crate::cli::{files, output};
use crate::config::Home;
use crate::controller::store::backup::{self, restore};
use crate::model::Clock;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchard controller backup /backup/orchard-$(date +%F)
  orchard controller backup --data-dir /var/lib/orchard \\
      /backup/orchard-$(date +%F)

The controller may be running: the backup is its state at one moment, whole. The file holds the
controller's keys and all secrets of VMs; it is readable by you alone, and should stay so.")]
pub(in crate::cli) struct BackupArgs {
    /// The file to write; one that is there is not replaced
    file: PathBuf,
    /// The controller's data folder [default: controller in the home folder]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchard controller restore /backup/orchard-2026-11-22
  orchard controller restore --data-dir /var/lib/orchard --force \\
      /backup/orchard-2026-11-22

The controller must be stopped. The folder is as before until all of the backup has been checked, and
then as in the backup, also when this is interrupted. What was there before goes to before-restore in
it. VMs that were created after the backup was made run on: their workers tell of them, as `orchard
list strays` shows, and keep them until somebody deletes them there. VMs that came with the backup are
not started before every worker that it knows has told what it has, as a copy may run there since;
`orchard explain vm NAME` says for which workers one waits. Take out of the cluster those that will not
come back (`orchard delete worker NAME --force`). A worker that joined after the backup was made is not
known and not waited for: let it join again first.")]
pub(in crate::cli) struct RestoreArgs {
    /// The backup
    file: PathBuf,
    /// The controller's data folder [default: controller in the home folder]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Replace the data that are there
    #[arg(long)]
    force: bool,
}

pub(super) async fn backup(arguments: BackupArgs, home: Home) -> anyhow::Result<()> {
    let folder = absolute(arguments.data_dir, &home)?;
    let file = arguments.file.clone();
    let now = Clock::start().now().wall;
    let write = tokio::task::spawn_blocking(move || backup::write(&folder, &file, now));
    let size = write.await.context("the backup broke off")??;
    output::line(&format!("{} holds the controller, {size} bytes", arguments.file.display()))?;
    Ok(())
}

pub(super) async fn restore(arguments: RestoreArgs, home: Home) -> anyhow::Result<()> {
    let folder = absolute(arguments.data_dir, &home)?;
    files::look(&arguments.file).with_context(|| format!("cannot restore {}", arguments.file.display()))?;
    let (into, file, force) = (folder.clone(), arguments.file, arguments.force);
    let now = Clock::start().now().wall;
    let work = tokio::task::spawn_blocking(move || restore::restore(&file, &into, force, now));
    let restored = work.await.context("restoring broke off")??;
    let mut text = format!(
        "{} is as it was at {}, with {} VMs and {} workers",
        folder.display(),
        restored.created,
        restored.vms,
        restored.workers
    );
    if restored.workers > 0 {
        text += "\nVMs that do not run are held until each of these workers has told what it has, or was deleted";
    }
    if let Some(replaced) = restored.replaced {
        text +=
            &format!("\nwhat was there before is in {}; delete it when it is not needed any more", replaced.display());
    }
    output::line(&text)?;
    Ok(())
}

fn absolute(data_dir: Option<PathBuf>, home: &Home) -> anyhow::Result<PathBuf> {
    let folder = data_dir.unwrap_or_else(|| home.path().join("controller"));
    std::path::absolute(&folder).with_context(|| format!("cannot find the data folder {}", folder.display()))
}
