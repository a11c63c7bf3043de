//! `orchard get`: everything about one VM, worker or service account, or one field of it; and bootstrap tokens.

use clap::Subcommand;
use schemars::JsonSchema;
use serde::Serialize;

use super::bootstrap::{self, BootstrapTokenArgs};
use super::client::Client;
use super::field::{self, Named};
use super::output::{self, DataArgs, Format, OutputArgs, Table};
use super::{UsageError, accounts, rows, settings};
use crate::bus::access::GetAccount;
use crate::bus::message::GetWorker;
use crate::bus::settings::GetSettings;
use crate::model::account::AccountView;
use crate::model::vm::Vm;
use crate::model::worker::WorkerView;
use crate::model::{AccountName, Clock, VmName, WorkerName};

#[derive(Debug, Subcommand)]
pub(super) enum Get {
    /// Show one VM, and why it is as it is
    #[command(
        visible_alias = "vms",
        after_help = "\
Examples:
  orchard get vm build-1
  orchard get vm build-1/status_message
  orchard get vm build-1/labels/role
  orchard get vm build-1 -o json | jq -r .status

A field is any that JSON shows, in any case; those that are not set print an empty line.

In JSON `status` is pending, running or failed. A VM that is off stays `running` there, as programs expect: `powerState`
says that it is stopped or suspended, and of `conditions`, `running` is false once it is. Tables show stopped or suspended."
    )]
    Vm {
        /// The VM's name, with /FIELD behind it for one field alone
        #[arg(value_name = "NAME[/FIELD]")]
        name: Named<VmName>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show one worker: what it offers and what is taken
    #[command(
        visible_alias = "workers",
        after_help = "Examples:\n  orchard get worker mini-1\n  orchard get worker mini-1/load/cpuPermille"
    )]
    Worker {
        /// The worker's name, with /FIELD behind it for one field alone
        #[arg(value_name = "NAME[/FIELD]")]
        name: Named<WorkerName>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show one service account and its roles; its token is nowhere to be had again
    #[command(visible_alias = "service-accounts", after_help = "Example:\n  orchard get service-account ci")]
    ServiceAccount {
        /// The account's name, with /FIELD behind it for one field alone
        #[arg(value_name = "NAME[/FIELD]")]
        name: Named<AccountName>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show where VMs go, how many cores are given out, and which folders of hosts VMs may be given
    #[command(after_help = "Example:\n  orchard get cluster-settings")]
    ClusterSettings(DataArgs),
    /// Make a token with which machines can join as workers, and print it
    BootstrapToken(BootstrapTokenArgs),
}

pub(super) async fn run(command: Get, client: &Client) -> anyhow::Result<()> {
    let now = Clock::start().now().wall;
    match command {
        Get::Vm { name: Named { name, path }, output } => {
            let vm = client.vm(&name).await?;
            let names = |vm: &Vm| vm.name.to_string();
            show(&vm, &format!("VM {name}"), &path, output, names, |vm, wide| rows::vm::details(vm, now, wide))
        }
        Get::Worker { name: Named { name, path }, output } => {
            let worker = client.call(&GetWorker { name: name.clone() }).await?;
            let names = |worker: &WorkerView| worker.worker.info.name.to_string();
            let table = |worker: &WorkerView, wide| rows::worker::details(worker, now, wide);
            show(&worker, &format!("worker {name}"), &path, output, names, table)
        }
        Get::ServiceAccount { name: Named { name, path }, output } => {
            if path.first().is_some_and(|field| field.eq_ignore_ascii_case("token")) {
                let what = format!(
                    "the token of service account {name} is not to be had again, as only its hash is kept; `orchard rotate \
                     service-account {name}` gives it a new one"
                );
                return Err(UsageError(what).into());
            }
            let account = client.call(&GetAccount { name: name.clone() }).await?;
            let names = |account: &AccountView| account.name.to_string();
            let table = |account: &AccountView, _| accounts::details(account, now);
            show(&account, &format!("service account {name}"), &path, output, names, table)
        }
        Get::ClusterSettings(output) => {
            let found = client.call(&GetSettings {}).await?;
            Ok(settings::show(&found, output)?)
        }
        Get::BootstrapToken(arguments) => bootstrap::run(arguments, client).await,
    }
}

/// Prints all of `item`, or the field at `path`.
fn show<T: Serialize + JsonSchema>(
    item: &T,
    what: &str,
    path: &[String],
    output: OutputArgs,
    name: impl FnOnce(&T) -> String,
    table: impl FnOnce(&T, bool) -> Table,
) -> anyhow::Result<()> {
    if path.is_empty() {
        return Ok(output.item(item, name, table)?);
    }
    let field = field::select(item, what, path)?;
    match output.format() {
        Format::Name => output::line(&name(item))?,
        Format::Table | Format::Wide => output::text(&field::plain(&field))?,
        format => format.data(&field)?,
    }
    Ok(())
}
