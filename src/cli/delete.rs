//! `orchard delete`: VMs by name.

use clap::Subcommand;

use super::client::Client;
use crate::bus::message::DeleteVm;
use crate::model::VmName;
use crate::model::error::ErrorCode;

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
}

/// Deletes each, and goes on to the next when one fails.
pub(super) async fn run(command: Delete, client: &Client) -> anyhow::Result<()> {
    let Delete::Vm { names, ignore_missing } = command;
    let count = names.len();
    let mut failures = Vec::new();
    for name in names {
        match client.call(&DeleteVm { name: name.clone() }).await {
            Err(error) if !(ignore_missing && error.code == ErrorCode::NotFound) => {
                failures.push(anyhow::Error::new(error).context(format!("cannot delete VM {name}")));
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
    anyhow::bail!("{failed} of {count} VMs could not be deleted")
}
