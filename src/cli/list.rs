//! `orchard list`: all VMs, workers, images, stray copies, service accounts or bootstrap tokens, page by page to the end.

use clap::{Args, Subcommand};

use super::client::Client;
use super::output::{self, OutputArgs, Table};
use super::watch::{self, WatchArgs};
use super::{accounts, bootstrap, exec_session, images, rows};
use crate::bus::strays::{ListStrays, StrayView};
use crate::model::vm::Vm;
use crate::model::worker::WorkerView;
use crate::model::{Clock, CopyId, Timestamp, WorkerName};

#[derive(Debug, Subcommand)]
pub(super) enum List {
    /// List all VMs
    #[command(
        visible_alias = "vm",
        after_help = "\
Examples:
  orchard list vms -o wide
  orchard list vms -q | xargs orchard delete vm
  orchard list vms -o json | jq -r '.[] | select(.status == \"failed\") | .name'
  orchard list vms --watch

In JSON the status of a VM that is stopped or suspended is `running`; see `orchard get vm --help`."
    )]
    Vms(ListArgs),
    /// List all workers
    #[command(
        visible_alias = "worker",
        after_help = "Examples:\n  orchard list workers\n  orchard list workers --watch"
    )]
    Workers(ListArgs),
    /// List what workers have on their machines although nobody wishes for it; see `orchard delete stray`
    #[command(
        visible_alias = "stray",
        after_help = "\
Examples:
  orchard list strays
  orchard list strays --worker mini-1 -q | xargs orchard delete stray mini-1

A copy of a VM becomes a stray when the controller knows nothing of it, as after a restored backup. It
runs on until somebody deletes it. The name of a copy is what `orchard delete stray` takes."
    )]
    Strays {
        /// Only those of this worker
        #[arg(long, value_name = "NAME")]
        worker: Option<WorkerName>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List the images that workers hold, from which VMs start without fetching any
    #[command(
        visible_alias = "image",
        after_help = "\
Examples:
  orchard list images
  orchard list images -o wide
  orchard list images --worker mini-1 -o json

`-o wide`, `--worker`, JSON and YAML show each worker's, with when it was last used and whether a VM's disk
stands on it; images in use are never removed. Addresses are shown without user, password and query.
Of each worker the images used last are known, up to 64."
    )]
    Images(images::ListImagesArgs),
    /// List the requests to fetch images, and how far workers are; see `orchard pull image`
    #[command(
        visible_alias = "pull",
        after_help = "\
Examples:
  orchard list pulls
  orchard list pulls -o wide

`-o wide`, JSON and YAML tell of each worker. A request stands until it expires, so that workers that are off
fetch the image when they are back."
    )]
    Pulls(OutputArgs),
    /// List the exec sessions of this account in a VM; see `orchard exec vm --help`
    #[command(subcommand, visible_alias = "exec")]
    Execs(exec_session::ListExecs),
    /// List all service accounts and their roles
    #[command(visible_alias = "service-account", after_help = "Example:\n  orchard list service-accounts")]
    ServiceAccounts(OutputArgs),
    /// List the bootstrap tokens that are good: who made them, for whom, how often and how long; never the secrets
    #[command(
        visible_alias = "bootstrap-token",
        after_help = "\
Examples:
  orchard list bootstrap-tokens
  orchard list bootstrap-tokens -q | xargs orchard delete bootstrap-token

The name of a token is its id."
    )]
    BootstrapTokens(OutputArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    watch: WatchArgs,
}

pub(super) async fn run(command: List, client: &Client) -> anyhow::Result<()> {
    let now = Clock::start().now().wall;
    match command {
        List::Vms(ListArgs { output, watch: WatchArgs { watch: true } }) => watch::vms(client, output).await?,
        List::Vms(ListArgs { output, .. }) => {
            let vms = client.vms().await?;
            output.items(&vms, |vm| vm.name.to_string(), |vms, wide| rows::vm::list(vms, now, wide))?;
        }
        List::Workers(ListArgs { output, watch: WatchArgs { watch: true } }) => watch::workers(client, output).await?,
        List::Workers(ListArgs { output, .. }) => {
            let workers = client.workers().await?;
            let name = |worker: &WorkerView| worker.worker.info.name.to_string();
            output.items(&workers, name, |workers, wide| rows::worker::list(workers, now, wide))?;
        }
        List::Strays { worker, output } => {
            let all = all_strays(client, worker).await?;
            output.items(&all, |stray| show_copy(stray.id), |all, _| strays_table(all))?;
        }
        List::Images(arguments) => images::list(arguments, client, now).await?,
        List::Pulls(arguments) => images::list_pulls(arguments, client, now).await?,
        List::Execs(command) => exec_session::list(command, client, now).await?,
        List::ServiceAccounts(output) => {
            let all = client.accounts().await?;
            output.items(&all, |account| account.name.to_string(), |all, wide| accounts::table(all, now, wide))?;
        }
        List::BootstrapTokens(output) => {
            let all = bootstrap::all(client).await?;
            output.items(&all, |token| token.id.to_string(), |all, _| bootstrap::table(all, now))?;
        }
    }
    Ok(())
}

impl List {
    /// Whether it goes on until it is ended.
    pub(super) fn watches(&self) -> bool {
        matches!(self, List::Vms(list) | List::Workers(list) if list.watch.watch)
    }
}

async fn all_strays(client: &Client, worker: Option<WorkerName>) -> anyhow::Result<Vec<StrayView>> {
    let mut all: Vec<StrayView> = Vec::new();
    loop {
        let after = all.last().map(|stray| (stray.worker.clone(), stray.id));
        let page = client.call(&ListStrays { worker: worker.clone(), after, limit: 0 }).await?;
        let more = page.more && !page.strays.is_empty();
        all.extend(page.strays);
        if !more {
            return Ok(all);
        }
    }
}

/// A copy as the command line takes and shows it.
pub(super) fn show_copy(id: CopyId) -> String {
    format!("{}/{}", id.uid, id.attempt)
}

fn strays_table(strays: &[StrayView]) -> Table {
    let mut table = Table::with_titles(["Worker", "VM", "Copy", "Running", "State"]);
    for stray in strays {
        table.row([
            stray.worker.to_string(),
            stray.name.clone(),
            show_copy(stray.id),
            stray.running.to_string(),
            if stray.deleting { "being deleted".to_owned() } else { "left alone".to_owned() },
        ]);
    }
    table
}

/// Thousandths, for people.
pub(super) fn percent(permille: u64) -> String {
    format!("{}.{} %", permille / 10, permille % 10)
}

/// MiB, for people.
pub(super) fn gib(mib: u64) -> String {
    let tenths = mib.saturating_mul(10) >> 10;
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

/// When a worker was last heard of, for people.
pub(super) fn last_seen(view: &WorkerView, now: Timestamp) -> String {
    match view.last_seen {
        Some(then) => output::ago(then, now),
        None => "not since the controller started".to_owned(),
    }
}

/// Where a VM stands, for people. One that is off has the status it had, as in the system users come from; that says too
/// little in a table.
pub(super) fn shown_status(vm: &Vm) -> String {
    if vm.is_off() { vm.spec.power_state.to_string() } else { vm.status.to_string() }
}

/// A worker's liveness, for people; heartbeat and data path are told apart.
pub(super) fn state(view: &WorkerView) -> String {
    use crate::model::worker::WorkerState;
    let state = match (view.state, view.connectable) {
        (WorkerState::Online, true) => "online",
        (WorkerState::Online, false) => "online, not connectable",
        (WorkerState::Unseen, _) => "unseen",
        (WorkerState::Gone, _) => "gone",
        (WorkerState::Unknown, _) => "unknown",
    };
    match &view.worker.drain {
        Some(drain) if drain.done => format!("{state}, drained"),
        Some(_) => format!("{state}, draining"),
        None => state.to_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::model::resources::Resources;
    use crate::model::vm::{PowerState, RuntimeKind, VmSpec, VmStatus};
    use crate::model::worker::{HostLoad, Worker, WorkerInfo, WorkerState, sample};

    /// A VM as a controller would send it.
    pub(in crate::cli) fn vm(name: &str, status: VmStatus) -> Vm {
        let uid = "7f1c3f2e-6d0b-4b58-9d3e-3a3a4d0f2b11".parse().unwrap();
        let spec = VmSpec { image: "/images/tiny.qcow2".into(), ..VmSpec::default() };
        Vm { status, ..Vm::requested(name.parse().unwrap(), uid, Timestamp::from_millis(0), spec) }
    }

    /// A worker as a controller would send it.
    pub(in crate::cli) fn worker(name: &str) -> WorkerView {
        WorkerView {
            worker: Worker {
                info: WorkerInfo {
                    runtime: RuntimeKind::Qemu,
                    labels: [("role".to_owned(), "ci".to_owned())].into(),
                    default_memory: 8192,
                    ..sample(name, 8, 16_384)
                },
                created_at: Timestamp::from_millis(0),
                scheduling_paused: false,
                drain: None,
                lease_ms: 0,
            },
            state: WorkerState::Online,
            connectable: true,
            not_connectable_because: String::new(),
            path: None,
            last_seen: Some(Timestamp::from_millis(55_000)),
            load: Some(HostLoad {
                cpu_permille: Some(375),
                memory_mib: Some(16_384),
                memory_available_mib: Some(12_000),
                disk_mib: Some(500_000),
                disk_free_mib: Some(200_000),
            }),
            used: Resources::from([("org.cirruslabs.logical-cores", 3)]),
            vms: 2,
            strays: 1,
        }
    }

    #[test]
    fn a_vm_that_is_off_shows_as_such_whatever_its_status() {
        let mut off = vm("a", VmStatus::Running);
        off.spec.power_state = PowerState::Stopped;
        assert_eq!(shown_status(&off), "stopped");
        off.set_conditions(true, true);
        assert_eq!(shown_status(&off), "running", "it is still being stopped");
    }
}
