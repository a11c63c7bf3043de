//! `orchard explain`, `orchard pause` and `orchard resume`: why a VM is where it is or nowhere, and workers that take no new
//! ones.

use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;
use tokio::time::Instant;

use super::client::Client;
use super::output::{self, Format, OutputArgs, Table};
use crate::bus::message::{GetInfo, GetWorker};
use crate::bus::placing::{ExplainVm, Explained, PauseWorker, ResumeWorker};
use crate::config::duration;
use crate::model::access::Role;
use crate::model::error::ErrorCode;
use crate::model::resources::WORKER_NAME_LABEL;
use crate::model::vm::{Vm, VmStatus};
use crate::model::{VmName, WorkerName};

/// How often `pause --wait` asks what is left.
const ASK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
pub(super) enum Explain {
    /// Say why a VM is on its worker, or what keeps it from being placed
    #[command(after_help = "Example:\n  orchard explain vm build-1")]
    Vm {
        /// The VM's name
        name: VmName,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Pause {
    /// Place no new VMs on a worker; those that it has go on
    #[command(after_help = "\
Examples:
  orchard pause worker mini-1
  orchard pause worker mini-1 --wait 2h
      # returns once its last VM is gone: then it can be switched off

`orchard resume worker mini-1` ends the pause.")]
    Worker {
        /// The worker's name
        name: WorkerName,
        /// Wait until no VM is left on it, at most this long [default: do not wait]
        #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
        wait: Option<Duration>,
        #[command(flatten)]
        output: OutputArgs,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum Resume {
    /// Place VMs on a worker again
    #[command(after_help = "Example:\n  orchard resume worker mini-1")]
    Worker {
        /// The worker's name
        name: WorkerName,
        #[command(flatten)]
        output: OutputArgs,
    },
}

pub(super) async fn explain(command: Explain, client: &Client) -> anyhow::Result<()> {
    let Explain::Vm { name, output } = command;
    let explained = client.call(&ExplainVm { name }).await?;
    Ok(output.item(&explained, |explained| explained.name.to_string(), |explained, _| table(explained))?)
}

pub(super) async fn pause(command: Pause, client: &Client) -> anyhow::Result<()> {
    let Pause::Worker { name, wait, output } = command;
    client.call(&PauseWorker { name: name.clone() }).await.with_context(|| format!("cannot pause worker {name}"))?;
    if let Some(limit) = wait {
        emptied(&name, limit, client).await?;
    }
    let text = || format!("worker {name} is paused; `orchard resume worker {name}` lets it take VMs again");
    show(&name, output, wait.is_none().then(text), client).await
}

/// Prints the worker as it is now, or says what was done to it, if that was not said.
pub(super) async fn show(
    name: &WorkerName,
    output: OutputArgs,
    text: Option<String>,
    client: &Client,
) -> anyhow::Result<()> {
    match (output.format(), text) {
        (format, _) if format.is_data() => format.data(&client.call(&GetWorker { name: name.clone() }).await?)?,
        (Format::Name, _) => output::line(name.as_str())?,
        (_, Some(text)) => eprintln!("{text}"),
        (_, None) => {}
    }
    Ok(())
}

pub(super) async fn resume(command: Resume, client: &Client) -> anyhow::Result<()> {
    let Resume::Worker { name, output } = command;
    client.call(&ResumeWorker { name: name.clone() }).await.with_context(|| format!("cannot resume worker {name}"))?;
    show(&name, output, Some(format!("worker {name} takes VMs again")), client).await
}

/// Waits until no VM is left on a worker.
async fn emptied(name: &WorkerName, limit: Duration, client: &Client) -> anyhow::Result<()> {
    let until = Instant::now().checked_add(limit);
    let mut told = None;
    loop {
        let left = left_on(name, client).await?;
        if left == 0 {
            eprintln!("worker {name} is paused, and no VM is left on it");
            return Ok(());
        }
        if told.replace(left) != Some(left) {
            eprintln!("worker {name} is paused; VMs left on it: {left}");
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            anyhow::bail!(
                "worker {name} has VMs after {} still: {left}; it stays paused, until `orchard resume worker {name}`",
                duration::show(limit)
            );
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// VMs on a worker that run or will. Those that failed or are switched off stay there, and need nothing of it now.
async fn left_on(name: &WorkerName, client: &Client) -> anyhow::Result<usize> {
    if client.call(&GetWorker { name: name.clone() }).await?.vms == 0 {
        return Ok(0);
    }
    let all = client.vms().await?;
    Ok(all
        .iter()
        .filter(|vm| vm.worker.as_ref() == Some(name) && vm.status != VmStatus::Failed && !vm.is_off())
        .count())
}

/// How long a request may take that nobody asked for.
const ASIDE: Duration = Duration::from_secs(2);

/// Whether this account may see VMs. What it may not is not asked for by the way: each refusal stands in the audit trail.
pub(super) async fn may_look(client: &Client) -> bool {
    let info = client.call_within(&GetInfo {}, ASIDE).await;
    info.is_ok_and(|info| info.roles.is_none_or(|roles| roles.has(Role::ComputeRead)))
}

/// Why nothing can take a VM that was just made, if that is so: it would wait, and nobody know for what.
pub(super) async fn why_waiting(vm: &Vm, client: &Client) -> Option<String> {
    if vm.is_to_be_off() || !may_look(client).await {
        return None;
    }
    let name = &vm.name;
    let explained = client.call_within(&ExplainVm { name: name.clone() }, ASIDE).await.ok()?;
    if explained.status != VmStatus::Pending || explained.worker.is_some() || explained.fitting > 0 {
        return None;
    }
    if let Some(worker) = vm.spec.labels.get(WORKER_NAME_LABEL).and_then(|worker| worker.parse::<WorkerName>().ok())
        && let Err(error) = client.call_within(&GetWorker { name: worker.clone() }, ASIDE).await
        && error.code == ErrorCode::NotFound
    {
        return Some(format!("VM {name} waits: no worker named {worker} is known"));
    }
    Some(format!("VM {name} waits: {}", nowhere(&explained)))
}

/// Why nothing can take such a VM now.
pub(super) fn nowhere(explained: &Explained) -> String {
    if explained.workers == 0 {
        return "no worker has registered yet".to_owned();
    }
    let obstacles = explained.obstacles.iter().map(|obstacle| format!("{} {}", obstacle.workers, obstacle.what));
    let workers = if explained.workers == 1 { "worker" } else { "workers" };
    format!("of {} {workers} none fits: {}", explained.workers, obstacles.collect::<Vec<_>>().join(", "))
}

fn table(explained: &Explained) -> Table {
    let mut table = Table::untitled();
    let mut row = |key: &str, value: String| table.row([key.to_owned(), value]);
    row("VM", explained.name.to_string());
    row("Status", explained.status.to_string());
    row("Worker", explained.worker.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string));
    row("Reason", explained.reason.clone());
    row("Such a VM fits now on", format!("{} of {} workers", explained.fitting, explained.workers));
    for obstacle in &explained.obstacles {
        row("", format!("{} {}", obstacle.workers, obstacle.what));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::placing::Obstacle;

    #[test]
    fn it_is_told_what_keeps_a_vm_from_each_worker() {
        let obstacle = |workers, what: &str| Obstacle { what: what.to_owned(), workers };
        let mut explained = Explained {
            name: "a".parse().unwrap(),
            status: VmStatus::Pending,
            worker: None,
            reason: String::new(),
            workers: 3,
            fitting: 0,
            obstacles: vec![obstacle(1, "paused"), obstacle(2, "not named x")],
        };
        assert_eq!(nowhere(&explained), "of 3 workers none fits: 1 paused, 2 not named x");
        explained.workers = 0;
        assert_eq!(nowhere(&explained), "no worker has registered yet");
    }
}
