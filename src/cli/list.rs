//! `orchard list`: all VMs, workers, images, stray copies, service accounts or bootstrap tokens, page by page to the end.

use clap::{Args, Subcommand};

use super::client::Client;
use super::output::{self, Format, OutputArgs, Table};
use super::{accounts, bootstrap, exec_session, images};
use crate::bus::message::ListWorkers;
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
Example:
  orchard list vms -o json | jq -r '.[].name'

In JSON the status of a VM that is stopped or suspended is `running`; see `orchard get vm --help`."
    )]
    Vms(ListArgs),
    /// List all workers
    #[command(visible_alias = "worker", after_help = "Example:\n  orchard list workers")]
    Workers(ListArgs),
    /// List what workers have on their machines although nobody wishes for it; see `orchard delete stray`
    #[command(
        visible_alias = "stray",
        after_help = "\
Examples:
  orchard list strays
  orchard list strays --worker mini-1 -q | xargs orchard delete stray mini-1

A copy of a VM becomes a stray when the controller knows nothing of it, as after a restored backup. It
runs on until somebody deletes it."
    )]
    Strays {
        /// Only those of this worker
        #[arg(long, value_name = "NAME")]
        worker: Option<WorkerName>,
        #[command(flatten)]
        list: ListArgs,
    },
    /// List the images that workers hold, from which VMs start without fetching any
    #[command(
        visible_alias = "image",
        after_help = "\
Examples:
  orchard list images
  orchard list images -o wide
  orchard list images --worker mini-1 -o json

`-o wide`, `--worker` and JSON show each worker's, with when it was last used and whether a VM's disk
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

`-o wide` and JSON tell of each worker. A request stands until it expires, so that workers that are off
fetch the image when they are back."
    )]
    Pulls(images::ListPullsArgs),
    /// List the exec sessions of this account in a VM; see `orchard exec vm --help`
    #[command(subcommand, visible_alias = "exec")]
    Execs(exec_session::ListExecs),
    /// List all service accounts and their roles
    #[command(visible_alias = "service-account", after_help = "Example:\n  orchard list service-accounts")]
    ServiceAccounts(ListArgs),
    /// List the bootstrap tokens that are good: who made them, for whom, how often and how long; never the secrets
    #[command(visible_alias = "bootstrap-token", after_help = "Example:\n  orchard list bootstrap-tokens")]
    BootstrapTokens(ListArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    output: OutputArgs,
    /// Print the names only (of bootstrap tokens, the ids; of strays, what `delete stray` takes)
    #[arg(long, short, conflicts_with = "output")]
    quiet: bool,
}

pub(super) async fn run(command: List, client: &Client) -> anyhow::Result<()> {
    let now = Clock::start().now().wall;
    match command {
        List::Vms(arguments) => {
            let vms = client.vms().await?;
            print(&arguments, &vms, |vm| vm.name.to_string(), |vms| vm_table(vms, now))
        }
        List::Workers(arguments) => {
            let workers = all_workers(client).await?;
            let name = |worker: &WorkerView| worker.worker.info.name.to_string();
            print(&arguments, &workers, name, |workers| worker_table(workers, now))
        }
        List::Strays { worker, list } => {
            let all = all_strays(client, worker).await?;
            print(&list, &all, |stray| show_copy(stray.id), strays_table)
        }
        List::Images(arguments) => images::list(arguments, client, now).await,
        List::Pulls(arguments) => images::list_pulls(arguments, client, now).await,
        List::Execs(command) => exec_session::list(command, client, now).await,
        List::ServiceAccounts(arguments) => {
            let all = accounts::all(client).await?;
            print(&arguments, &all, |account| account.name.to_string(), |all| accounts::table(all, now))
        }
        List::BootstrapTokens(arguments) => {
            let all = bootstrap::all(client).await?;
            print(&arguments, &all, |token| token.id.to_string(), |all| bootstrap::table(all, now))
        }
    }
}

fn print<T: serde::Serialize>(
    arguments: &ListArgs,
    items: &[T],
    name: impl Fn(&T) -> String,
    table: impl Fn(&[T]) -> Table,
) -> anyhow::Result<()> {
    match (arguments.quiet, arguments.output.output) {
        (true, _) => items.iter().try_for_each(|item| output::line(&name(item)))?,
        (false, Format::Json) => output::json(&items)?,
        (false, Format::Table) => table(items).print()?,
    }
    Ok(())
}

async fn all_workers(client: &Client) -> anyhow::Result<Vec<WorkerView>> {
    let mut all: Vec<WorkerView> = Vec::new();
    loop {
        let after = all.last().map(|view| view.worker.info.name.clone());
        let page = client.call(&ListWorkers { after, limit: 0 }).await?;
        let more = page.more && !page.workers.is_empty();
        all.extend(page.workers);
        if !more {
            return Ok(all);
        }
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
fn show_copy(id: CopyId) -> String {
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

fn vm_table(vms: &[Vm], now: Timestamp) -> Table {
    let mut table = Table::with_titles(["Name", "Created", "Image", "Status", "Restart policy", "Assigned worker"]);
    for vm in vms {
        table.row([
            vm.name.to_string(),
            output::ago(vm.created_at, now),
            vm.spec.image.clone(),
            shown_status(vm),
            format!("{} ({} restarts)", vm.spec.restart_policy, vm.restart_count),
            vm.worker.as_ref().map(ToString::to_string).unwrap_or_default(),
        ]);
    }
    table
}

fn worker_table(workers: &[WorkerView], now: Timestamp) -> Table {
    let mut table = Table::with_titles([
        "Name",
        "Last seen",
        "Scheduling paused",
        "State",
        "VMs",
        "CPU",
        "Memory available",
        "Disk free",
    ]);
    for view in workers {
        let load = view.load.unwrap_or_default();
        table.row([
            view.worker.info.name.to_string(),
            last_seen(view, now),
            view.worker.scheduling_paused.to_string(),
            state(view),
            view.vms.to_string(),
            load.cpu_permille.map(percent).unwrap_or_default(),
            load.memory_available_mib.map(gib).unwrap_or_default(),
            load.disk_free_mib.map(gib).unwrap_or_default(),
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
    fn vms_are_listed_with_their_worker_and_restarts() {
        let mut placed = vm("b", VmStatus::Running);
        placed.worker = Some("mini".parse().unwrap());
        placed.restart_count = 2;
        let text = vm_table(&[vm("a", VmStatus::Pending), placed], Timestamp::from_millis(120_000)).text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "Name  Created        Image               Status   Restart policy      Assigned worker",
                "a     2 minutes ago  /images/tiny.qcow2  pending  Never (0 restarts)",
                "b     2 minutes ago  /images/tiny.qcow2  running  Never (2 restarts)  mini",
            ]
        );
    }

    #[test]
    fn a_vm_that_is_off_shows_as_such_whatever_its_status() {
        let mut off = vm("a", VmStatus::Running);
        off.spec.power_state = PowerState::Stopped;
        assert_eq!(shown_status(&off), "stopped");
        off.set_conditions(true, true);
        assert_eq!(shown_status(&off), "running", "it is still being stopped");
    }

    #[test]
    fn workers_are_listed_with_their_liveness() {
        let mut lost = worker("b");
        lost.state = WorkerState::Unseen;
        (lost.last_seen, lost.load) = (None, None);
        let text = worker_table(&[worker("a"), lost], Timestamp::from_millis(60_000)).text();
        assert!(text.contains("a     5 seconds ago"), "{text}");
        assert!(text.contains("not since the controller started  false              unseen  2"), "{text}");
        assert!(text.contains("2    37.5 %  11.7 GiB          195.3 GiB"), "{text}");
    }
}
