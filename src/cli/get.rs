//! `orchard get`: everything about one VM, worker or service account, and bootstrap tokens; and `orchard version`.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::bootstrap::{self, BootstrapTokenArgs};
use super::client::Client;
use super::output::{self, Format, OutputArgs, Table};
use super::{accounts, list, settings};
use crate::bus::access::GetAccount;
use crate::bus::message::{GetInfo, GetWorker};
use crate::bus::settings::GetSettings;
use crate::config::duration;
use crate::model::condition::{ConditionState, ConditionType};
use crate::model::resources::{Labels, Resources};
use crate::model::vm::Vm;
use crate::model::worker::{DataPath, Drain, WorkerView};
use crate::model::{AccountName, Clock, Timestamp, VmName, WorkerName};

#[derive(Debug, Subcommand)]
pub(super) enum Get {
    /// Show one VM, and why it is as it is
    #[command(after_help = "\
Examples:
  orchard get vm build-1
  orchard get vm build-1 -o json | jq -r .status

In JSON `status` is pending, running or failed. A VM that is off stays `running` there, as programs expect: `powerState`
says that it is stopped or suspended, and of `conditions`, `running` is false once it is. Tables show stopped or suspended.")]
    Vm {
        /// The VM's name
        name: VmName,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show one worker: what it offers and what is taken
    #[command(after_help = "Example:\n  orchard get worker mini-1")]
    Worker {
        /// The worker's name
        name: WorkerName,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show one service account and its roles; its token is nowhere to be had again
    #[command(after_help = "Example:\n  orchard get service-account ci")]
    ServiceAccount {
        /// The account's name
        name: AccountName,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show where VMs go, how many cores are given out, and which folders of hosts VMs may be given
    #[command(after_help = "Example:\n  orchard get cluster-settings")]
    ClusterSettings(OutputArgs),
    /// Make a token with which machines can join as workers, and print it
    BootstrapToken(BootstrapTokenArgs),
}

/// `orchard version`.
#[derive(Debug, Args)]
pub(super) struct VersionArgs {
    /// Ask the controller for its version, too
    #[arg(long)]
    controller: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(command: Get, client: &Client) -> anyhow::Result<()> {
    let now = Clock::start().now().wall;
    match command {
        Get::Vm { name, output } => {
            let vm = client.vm(&name).await?;
            print(output, &vm, |vm| vm_table(vm, now))
        }
        Get::Worker { name, output } => {
            let worker = client.call(&GetWorker { name }).await?;
            print(output, &worker, |worker| worker_table(worker, now))
        }
        Get::ServiceAccount { name, output } => {
            let account = client.call(&GetAccount { name }).await?;
            print(output, &account, |account| accounts::details(account, now))
        }
        Get::ClusterSettings(output) => {
            let found = client.call(&GetSettings {}).await?;
            print(output, &found, settings::table)
        }
        Get::BootstrapToken(arguments) => bootstrap::run(arguments, client).await,
    }
}

pub(super) async fn version<F: Future<Output = anyhow::Result<Client>>>(
    arguments: VersionArgs,
    connect: impl FnOnce() -> F,
) -> anyhow::Result<()> {
    let own = env!("CARGO_PKG_VERSION");
    let controller = match arguments.controller {
        true => Some(connect().await?.call(&GetInfo {}).await?.version),
        false => None,
    };
    match arguments.output.output {
        Format::Json => output::json(&serde_json::json!({"version": own, "controller": controller}))?,
        Format::Table => {
            output::line(&format!("orchard {own}"))?;
            if let Some(version) = controller {
                output::line(&format!("controller {}", output::clean(&version)))?;
            }
        }
    }
    Ok(())
}

fn print<T: serde::Serialize>(output: OutputArgs, item: &T, table: impl Fn(&T) -> Table) -> anyhow::Result<()> {
    match output.output {
        Format::Json => output::json(item)?,
        Format::Table => table(item).print()?,
    }
    Ok(())
}

fn vm_table(vm: &Vm, now: Timestamp) -> Table {
    let mut table = Table::untitled();
    let mut row = |key: &str, value: String| table.row([key.to_owned(), value]);
    let amount = |asked: u64, assigned: u64| match (asked, assigned) {
        (0, 0) => "the worker's default".to_owned(),
        (0, assigned) => assigned.to_string(),
        (asked, _) => asked.to_string(),
    };
    let any = |value: Option<String>| value.unwrap_or_else(|| "any".to_owned());
    row("Name", vm.name.to_string());
    row("UID", vm.uid.to_string());
    row("Created", output::ago(vm.created_at, now));
    row("Image", vm.spec.image.clone());
    row("Image FQN", vm.image_fqn.clone().unwrap_or_else(|| "not known".to_owned()));
    row("OS", any(vm.spec.os.map(|os| os.to_string())));
    row("Architecture", any(vm.spec.arch.map(|arch| arch.to_string())));
    row("Runtime", any(vm.spec.runtime.map(|runtime| runtime.to_string())));
    row("CPU", amount(vm.spec.cpu, vm.assigned_cpu));
    row("Memory", amount(vm.spec.memory, vm.assigned_memory));
    row("Disk size", if vm.spec.disk_size == 0 { "the image's own".into() } else { vm.spec.disk_size.to_string() });
    row("Headless mode", vm.spec.headless.to_string());
    row("Status", list::shown_status(vm));
    row("Status message", or_none(vm.status_message.clone()));
    row("Ready", vm.ready.to_string());
    let conditions = vm.conditions.iter().filter(|condition| condition.kind != ConditionType::Unknown);
    let conditions = conditions.map(|one| format!("{}: {}", one.kind.as_str(), one.state == ConditionState::True));
    row("Conditions", or_none(conditions.collect::<Vec<_>>().join(", ")));
    row("Power state", vm.spec.power_state.to_string());
    row("Suspendable", vm.spec.suspendable.to_string());
    row("Generation", format!("{} (in effect: {})", vm.generation, vm.observed_generation));
    row("Boots", vm.boot.saturating_add(1).to_string());
    row("Assigned worker", or_none(vm.worker.as_ref().map(ToString::to_string).unwrap_or_default()));
    row("Startup script", if vm.spec.startup_script.is_some() { "yes".into() } else { "none".into() });
    row("Restart policy", vm.spec.restart_policy.to_string());
    row("Restarted", vm.restarted_at.map_or_else(|| "never".to_owned(), |then| output::ago(then, now)));
    row("Restart count", vm.restart_count.to_string());
    let dirs: Vec<String> = vm.spec.host_dirs.iter().map(ToString::to_string).collect();
    row("Host dirs", or_none(dirs.join(", ")));
    row("Resources", show_resources(&vm.spec.resources));
    row("Labels", show_labels(&vm.spec.labels));
    table
}

fn worker_table(view: &WorkerView, now: Timestamp) -> Table {
    let mut table = Table::untitled();
    let mut row = |key: &str, value: String| table.row([key.to_owned(), value]);
    let info = &view.worker.info;
    row("Name", info.name.to_string());
    row("Created", output::ago(view.worker.created_at, now));
    row("Last seen", list::last_seen(view, now));
    row("State", list::state(view));
    row("Connectable", connectable(view));
    if let Some(path) = &view.path {
        row("Data path", data_path(path));
    }
    row("Scheduling paused", view.worker.scheduling_paused.to_string());
    if let Some(drain) = &view.worker.drain {
        row("Drained since", drain_of(drain, now));
    }
    row("Machine ID", info.machine_id.clone());
    row("Host", format!("{} {}", info.os, info.arch));
    row("Runtime", info.runtime.to_string());
    row("Version", or_none(info.version.clone()));
    row("Default CPU", info.default_cpu.to_string());
    row("Default memory", info.default_memory.to_string());
    row("Resources", show_resources(&info.resources));
    row("Resources in use", show_resources(&view.used));
    let load = view.load.unwrap_or_default();
    row("CPU in use", or_unknown(load.cpu_permille.map(list::percent)));
    row("Memory available", of_all(load.memory_available_mib, load.memory_mib));
    row("Disk free", of_all(load.disk_free_mib, load.disk_mib));
    row("VMs", view.vms.to_string());
    let hint = if view.strays == 0 { "" } else { " (`orchard list strays` shows them)" };
    row("Stray copies", format!("{}{hint}", view.strays));
    row("Labels", show_labels(&info.labels));
    table
}

/// Whether SSH and ports of its VMs can be reached; a heartbeat alone proves nothing of that.
fn connectable(view: &WorkerView) -> String {
    match view.connectable {
        true => "yes".to_owned(),
        false if view.not_connectable_because.is_empty() => "no".to_owned(),
        false => format!("no: {}", view.not_connectable_because),
    }
}

fn data_path(path: &DataPath) -> String {
    let DataPath { address, rtt_us, sent, lost, age_s, answered_s, connects } = path;
    let ago = |seconds: u64| duration::show(Duration::from_secs(seconds));
    let rtt = format!("{}.{} ms", rtt_us / 1_000, rtt_us % 1_000 / 100);
    // A connection that has sent nothing has lost nothing.
    let lost = list::percent(lost.saturating_mul(1_000).checked_div(*sent).unwrap_or(0));
    let answered = answered_s.map_or("it has not answered yet".to_owned(), |s| format!("it answered {} ago", ago(s)));
    let often = if *connects > 1 { format!(", connected {connects} times") } else { String::new() };
    format!("from {address}, round trip {rtt}, {lost} of packets lost, for {}{often}; {answered}", ago(*age_s))
}

/// What is left of something, in MiB.
fn of_all(left: Option<u64>, all: Option<u64>) -> String {
    or_unknown(left.zip(all).map(|(left, all)| format!("{} of {}", list::gib(left), list::gib(all))))
}

fn or_unknown(value: Option<String>) -> String {
    value.unwrap_or_else(|| "not known".to_owned())
}

fn drain_of(drain: &Drain, now: Timestamp) -> String {
    let so_far = if drain.done { "nothing runs there any more" } else { "VMs run there still" };
    let deadline = match drain.deadline_s {
        Some(seconds) => {
            format!("those left are moved {} after its beginning", duration::show(Duration::from_secs(seconds)))
        }
        None => "those left are waited for".to_owned(),
    };
    format!("{}; {so_far}; {deadline}", output::ago(drain.began, now))
}

fn or_none(text: String) -> String {
    if text.is_empty() { "none".to_owned() } else { text }
}

fn show_resources(resources: &Resources) -> String {
    or_none(resources.0.iter().map(|(name, amount)| format!("{name}: {amount}")).collect::<Vec<_>>().join(", "))
}

fn show_labels(labels: &Labels) -> String {
    or_none(labels.iter().map(|(key, value)| format!("{key}: {value}")).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::list::tests::{vm, worker};
    use super::*;
    use crate::model::vm::VmStatus;

    #[test]
    fn a_vm_shows_why_it_is_pending() {
        let mut vm = vm("a", VmStatus::Pending);
        vm.status_message = "no worker fits: 2 lack org.cirruslabs.memory-mib".into();
        let text = vm_table(&vm, Timestamp::from_millis(1_000)).text();
        assert!(text.contains("\nStatus message   no worker fits: 2 lack"), "{text}");
        assert!(
            text.contains("\nRestarted        never\n") && text.contains("CPU              the worker's"),
            "{text}"
        );
    }

    #[test]
    fn a_worker_shows_its_default_memory() {
        let text = worker_table(&worker("w"), Timestamp::from_millis(60_000)).text();
        assert!(text.contains("Default memory     8192"), "{text}");
        assert!(text.contains("Labels             role: ci"), "{text}");
        assert!(text.contains("Disk free          195.3 GiB of 488.2 GiB"), "{text}");
    }

    #[test]
    fn a_worker_shows_its_data_path_or_why_there_is_none() {
        let now = Timestamp::from_millis(0);
        let path = DataPath {
            address: "192.0.2.7:4711".into(),
            rtt_us: 12_340,
            sent: 2_000,
            lost: 3,
            age_s: 90,
            answered_s: Some(4),
            connects: 2,
        };
        let text = worker_table(&WorkerView { path: Some(path), ..worker("w") }, now).text();
        assert!(text.contains("Connectable        yes\n"), "{text}");
        let shown = "from 192.0.2.7:4711, round trip 12.3 ms, 0.1 % of packets lost, for 1m30s, connected 2 times; it \
                     answered 4s ago";
        assert!(text.contains(shown), "{text}");
        let silent = WorkerView { connectable: false, not_connectable_because: "UDP is blocked".into(), ..worker("w") };
        let text = worker_table(&silent, now).text();
        assert!(text.contains("no: UDP is blocked") && text.contains("online, not connectable"), "{text}");
    }
}
