//! `orchard delete`: VMs, workers and service accounts by name.

use clap::Subcommand;

use super::client::Client;
use crate::bus::access::{DeleteAccount, DeleteWorker};
use crate::bus::message::DeleteVm;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::{AccountName, VmName, WorkerName};

#[derive(Debug, Subcommand)]
pub(super) enum Delete {
    /// Delete VMs and their disks; the names are free at once
    #[command(after_help = "Examples:\n  orchard delete vm build-1\n  orchard list vms -q | xargs orchard delete vm")]
    Vm {
        /// The VMs' names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<VmName>,
        /// Do not fail for a VM that is not there
        #[arg(long)]
        ignore_missing: bool,
    },
    /// Delete workers: their keys are refused from now on, and the names are free
    #[command(after_help = "\
Examples:
  orchard delete worker mini-1
  orchard delete worker mini-1 --force   # it is broken or stolen: its VMs count as failed

To come back, the machine needs a new `orchard get bootstrap-token`.")]
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
    },
    /// Delete service accounts: their tokens are refused and their connections closed at once
    #[command(after_help = "Example:\n  orchard delete service-account ci")]
    ServiceAccount {
        /// The accounts' names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<AccountName>,
        /// Do not fail for an account that is not there
        #[arg(long)]
        ignore_missing: bool,
    },
}

/// Deletes each, and goes on to the next when one fails.
pub(super) async fn run(command: Delete, client: &Client) -> anyhow::Result<()> {
    match command {
        Delete::Vm { names, ignore_missing } => {
            let delete = async |name: &VmName| client.call(&DeleteVm { name: name.clone() }).await.map(drop);
            each("VM", &names, ignore_missing, delete).await
        }
        Delete::Worker { names, force, ignore_missing } => {
            let delete =
                async |name: &WorkerName| client.call(&DeleteWorker { name: name.clone(), force }).await.map(drop);
            each("worker", &names, ignore_missing, delete).await
        }
        Delete::ServiceAccount { names, ignore_missing } => {
            let delete = async |name: &AccountName| client.call(&DeleteAccount { name: name.clone() }).await.map(drop);
            each("service account", &names, ignore_missing, delete).await
        }
    }
}

async fn each<N: std::fmt::Display>(
    what: &str,
    names: &[N],
    ignore_missing: bool,
    delete: impl AsyncFn(&N) -> Result<(), ApiError>,
) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    for name in names {
        match delete(name).await {
            Err(error) if !(ignore_missing && error.code == ErrorCode::NotFound) => {
                failures.push(anyhow::Error::new(error).context(format!("cannot delete {what} {name}")));
            }
            _ => {}
        }
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
