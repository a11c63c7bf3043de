//! `orchard delete`: VMs, workers and service accounts by name, bootstrap tokens by id, stray copies by worker and copy.

use std::time::Duration;

use clap::Subcommand;
use serde::Serialize;
use tokio::time::Instant;

use super::client::Client;
use super::output::{self, Format, OutputArgs};
use super::{UsageError, list};
use crate::bus::access::{DeleteAccount, DeleteJoinToken, DeleteWorker};
use crate::bus::message::{DeleteVm, GetWorker};
use crate::bus::strays::DeleteStray;
use crate::model::account::JoinId;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::worker::WorkerState;
use crate::model::{AccountName, CopyId, VmName, WorkerName};

/// How long a worker may take to say that the VMs that were deleted have ended.
const SETTLING: Duration = Duration::from_secs(15);
/// How often it is asked whether it has: each refusal stands in the audit trail.
const ASK_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug, Subcommand)]
pub(super) enum Delete {
    /// Delete VMs and their disks; the names are free at once
    #[command(
        visible_alias = "vms",
        after_help = "Examples:\n  orchard delete vm build-1\n  orchard list vms -q | xargs orchard delete vm"
    )]
    Vm {
        /// The VMs' names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<VmName>,
        /// Do not fail for a VM that is not there
        #[arg(long)]
        ignore_missing: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Delete workers: their keys are refused from now on, and the names are free
    #[command(
        visible_alias = "workers",
        after_help = "\
Examples:
  orchard delete worker mini-1
  orchard delete worker mini-1 --force
      # it is broken or stolen: its VMs count as failed

To come back, the machine needs a new `orchard get bootstrap-token`."
    )]
    Worker {
        /// The workers' names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<WorkerName>,
        /// Also while VMs are placed on it: they count as failed, and may go on running there unseen
        #[arg(long)]
        force: bool,
        /// Do not fail for a worker that is not there
        #[arg(long)]
        ignore_missing: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Delete service accounts: their tokens are refused and their connections closed at once
    #[command(visible_alias = "service-accounts", after_help = "Example:\n  orchard delete service-account ci")]
    ServiceAccount {
        /// The accounts' names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<AccountName>,
        /// Do not fail for an account that is not there
        #[arg(long)]
        ignore_missing: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Delete stray copies on their worker, disks included; never what a VM wants
    #[command(
        visible_alias = "strays",
        after_help = "\
Examples:
  orchard delete stray mini-1 0193f0a2-7c55-7b33-9f0e-5b1f2f3a4d5e/0
  orchard list strays --worker mini-1 -q | xargs orchard delete stray mini-1"
    )]
    Stray {
        /// The worker that has them
        worker: WorkerName,
        /// The copies, as `orchard list strays` shows them
        #[arg(required = true, value_name = "UID/ATTEMPT", value_parser = copy)]
        copies: Vec<CopyId>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Take bootstrap tokens back: no machine joins with them any more; workers that have joined stay
    #[command(
        visible_alias = "bootstrap-tokens",
        after_help = "\
Examples:
  orchard delete bootstrap-token 0123456789abcdef
  orchard list bootstrap-tokens -q | xargs orchard delete bootstrap-token"
    )]
    BootstrapToken {
        /// The tokens' ids, as `orchard list bootstrap-tokens` shows them
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
        /// Do not fail for a token that is not there
        #[arg(long)]
        ignore_missing: bool,
        #[command(flatten)]
        output: OutputArgs,
    },
}

/// What stray copies are called.
const STRAY: &str = "stray copy";

/// What became of one thing that was to be deleted, for programs.
#[derive(Debug, Serialize)]
pub(super) struct Deleted {
    pub(super) name: String,
    /// Not, if there was none, or it could not be.
    pub(super) deleted: bool,
}

/// Deletes each, and goes on to the next when one fails.
pub(super) async fn run(command: Delete, client: &Client) -> anyhow::Result<()> {
    match command {
        Delete::Vm { names, ignore_missing, output } => {
            let delete = async |name: &VmName| client.call(&DeleteVm { name: name.clone() }).await.map(drop);
            each("VM", &names, ignore_missing, output, delete).await
        }
        Delete::Worker { names, force, ignore_missing, output } => {
            let outside = client.is_bus_outside().await;
            let delete = async |name: &WorkerName| {
                delete_worker(name, force, client).await?;
                let todo =
                    format!("take the user worker/{name} away there; until then the machine comes back by itself");
                client.note_outside(outside, &todo);
                Ok(())
            };
            each("worker", &names, ignore_missing, output, delete).await
        }
        Delete::Stray { worker, copies, output } => {
            let delete =
                async |copy: &Shown| client.call(&DeleteStray { name: worker.clone(), copy: copy.0 }).await.map(drop);
            let copies: Vec<Shown> = copies.into_iter().map(Shown).collect();
            each(STRAY, &copies, false, output, delete).await
        }
        Delete::ServiceAccount { names, ignore_missing, output } => {
            let outside = client.is_bus_outside().await;
            let delete = async |name: &AccountName| {
                client.call(&DeleteAccount { name: name.clone() }).await?;
                let todo = format!(
                    "take the user {name} away there; until then its token opens the bus, and what it follows goes on"
                );
                client.note_outside(outside, &todo);
                Ok(())
            };
            each("service account", &names, ignore_missing, output, delete).await
        }
        Delete::BootstrapToken { ids, ignore_missing, output } => {
            let ids = ids.iter().map(|id| join_id(id)).collect::<Result<Vec<_>, _>>()?;
            let delete = async |id: &JoinId| client.call(&DeleteJoinToken { id: id.clone() }).await.map(drop);
            each("bootstrap token", &ids, ignore_missing, output, delete).await
        }
    }
}

/// Deletes a worker. VMs that were deleted just before are given a moment to end: while it is online and none is placed there,
/// it is about to say so.
async fn delete_worker(name: &WorkerName, force: bool, client: &Client) -> Result<(), ApiError> {
    let until = Instant::now() + SETTLING;
    let mut told = false;
    loop {
        let refused = match client.call(&DeleteWorker { name: name.clone(), force }).await {
            Err(error) if error.code == ErrorCode::Conflict && !force && Instant::now() < until => error,
            answered => return answered.map(drop),
        };
        match client.call(&GetWorker { name: name.clone() }).await {
            Ok(view) if view.state == WorkerState::Online && view.vms == 0 => {
                if !std::mem::replace(&mut told, true) {
                    eprintln!("waiting for worker {name} to say that the VMs that were deleted there have ended");
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
            _ => return Err(refused),
        }
    }
}

/// A copy, written as it is asked for.
struct Shown(CopyId);

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&list::show_copy(self.0))
    }
}

/// Reads a copy.
pub(super) fn copy(text: &str) -> Result<CopyId, String> {
    let read = text.split_once('/').and_then(|(uid, attempt)| Some((uid.parse().ok()?, attempt.parse().ok()?)));
    let (uid, attempt) = read.ok_or("write UID/ATTEMPT, as `orchard list strays` shows it")?;
    Ok(CopyId { uid, attempt })
}

/// Reads a token's id. Not for clap, which shows what is wrong: it may be the token itself, which is a secret.
fn join_id(text: &str) -> Result<JoinId, UsageError> {
    text.parse().map_err(|_| {
        let what = "that is no id of a bootstrap token, which has 16 hexadecimal digits; `orchard list bootstrap-tokens` \
                    shows them";
        UsageError(what.to_owned())
    })
}

async fn each<N: std::fmt::Display>(
    what: &str,
    names: &[N],
    ignore_missing: bool,
    output: OutputArgs,
    delete: impl AsyncFn(&N) -> Result<(), ApiError>,
) -> anyhow::Result<()> {
    let (mut failures, mut all) = (Vec::new(), Vec::new());
    for name in names {
        let done = delete(name).await;
        all.push(Deleted { name: name.to_string(), deleted: done.is_ok() });
        match done {
            Err(error) if !(ignore_missing && error.code == ErrorCode::NotFound) => {
                // Of stray copies, which have no such option, it would be no advice.
                let hint = match error.code {
                    ErrorCode::NotFound if what != STRAY => " (with --ignore-missing that is no failure)",
                    _ => "",
                };
                failures.push(anyhow::anyhow!("cannot delete {what} {name}: {error}{hint}"));
            }
            _ => {}
        }
    }
    // Also when some could not be: what was done is done.
    match output.format() {
        Format::Table | Format::Wide => {}
        Format::Name => output::lines(all.into_iter().filter(|one| one.deleted).map(|one| one.name))?,
        format => format.data(&all)?,
    }
    let Some(last) = failures.pop() else { return Ok(()) };
    if failures.is_empty() {
        return Err(last);
    }
    let failed = failures.len() + 1;
    for failure in failures.iter().chain([&last]) {
        eprintln!("error: {failure:#}");
    }
    anyhow::bail!("{failed} of {} {what}s could not be deleted", names.len())
}
