//! `orchard drain`: a worker is to be rid of its VMs, by a deadline if there is one.

use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;
use tokio::time::Instant;

use super::client::Client;
use super::output::OutputArgs;
use super::placing;
use crate::bus::message::GetWorker;
use crate::bus::placing::{DrainWorker, ExplainVm};
use crate::config::duration;
use crate::model::vm::VmStatus;
use crate::model::worker::WorkerState;
use crate::model::{VmName, WorkerName};

/// How often `--wait` asks what is left.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// VMs named while waiting; more help nobody.
const NAMED: usize = 5;

#[derive(Debug, Subcommand)]
pub(super) enum Drain {
    /// Place no new VMs on a worker, and have those it has end by themselves or, after a deadline, start over elsewhere
    #[command(after_help = "\
Examples:
  orchard drain worker mini-1
      # waits for its VMs to end, however long that takes
  orchard drain worker mini-1 --deadline 30m --wait
      # what still runs in 30 minutes starts over elsewhere
  orchard drain worker mini-1 --deadline 0 --wait=1h
      # at once

A VM that is moved starts from its image again, as another attempt, once its present copy is certainly stopped. VMs that
failed or are switched off stay on the worker with their disks. Those that were made with --worker mini-1, or see folders of
its host, can run nowhere else and are waited for. `orchard resume worker mini-1` ends the drain.")]
    Worker {
        /// The worker's name
        name: WorkerName,
        /// Move the VMs that are still there after this time; 0 = at once [default: wait for them]
        #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
        deadline: Option<Duration>,
        /// Return only once nothing runs there any more, or fail after this time [without one: wait for ever]
        #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, value_parser = duration::parse)]
        #[allow(clippy::option_option)] // not given, given, given with a time
        wait: Option<Option<Duration>>,
        #[command(flatten)]
        output: OutputArgs,
    },
}

pub(super) async fn drain(command: Drain, client: &Client) -> anyhow::Result<()> {
    let Drain::Worker { name, deadline, wait, output } = command;
    // Up, as less than a second is not meant to be at once.
    let deadline_s = deadline.map(|deadline| deadline.as_millis().div_ceil(1_000));
    let deadline_s = deadline_s.map(|seconds| u64::try_from(seconds).unwrap_or(u64::MAX));
    let request = DrainWorker { name: name.clone(), deadline_s };
    client.call(&request).await.with_context(|| format!("cannot drain worker {name}"))?;
    if let Some(limit) = wait {
        drained(&name, limit, client).await?;
    }
    let text = || format!("worker {name} is being drained; `orchard resume worker {name}` lets it take VMs again");
    placing::show(&name, output, wait.is_none().then(text), client).await
}

/// Waits until nothing runs on a worker any more.
async fn drained(name: &WorkerName, limit: Option<Duration>, client: &Client) -> anyhow::Result<()> {
    let until = limit.and_then(|limit| Instant::now().checked_add(limit));
    let mut told = None;
    loop {
        let view = client.call(&GetWorker { name: name.clone() }).await?;
        match &view.worker.drain {
            Some(drain) if drain.done => {
                eprintln!("worker {name} is drained: nothing runs there any more");
                return Ok(());
            }
            Some(_) => {}
            None => anyhow::bail!("somebody has ended the drain of worker {name} (`orchard events --worker {name}`)"),
        }
        let mut left = left_on(name, client).await?;
        if view.state != WorkerState::Online {
            left.push_str("; it is not heard of, and nothing is moved before it is");
        }
        if told.as_ref() != Some(&left) {
            eprintln!("worker {name} is being drained; {left}");
            told = Some(left);
        }
        if let Some(limit) = limit.filter(|_| until.is_some_and(|until| Instant::now() >= until)) {
            let moves = view.worker.drain.as_ref().is_some_and(|drain| drain.deadline_s.is_some());
            for why in who_stays(name, moves, client).await.unwrap_or_default() {
                eprintln!("{why}");
            }
            let limit = duration::show(limit);
            anyhow::bail!(
                "worker {name} is not drained after {limit}; the drain goes on, until `orchard resume worker {name}`"
            );
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Why VMs are still there, one a line; `moves` when they are to start over elsewhere.
async fn who_stays(name: &WorkerName, moves: bool, client: &Client) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
    for vm in running_on(name, client).await?.iter().take(NAMED) {
        // It may end at this moment.
        let Ok(explained) = client.call(&ExplainVm { name: vm.clone() }).await else { continue };
        lines.push(match (moves, explained.fitting) {
            (false, _) => format!("VM {vm} stays until it ends by itself; --deadline says when it is to be moved"),
            (true, 0) => format!("VM {vm} cannot go elsewhere: {}", placing::nowhere(&explained)),
            (true, _) => format!("VM {vm} is not moved yet: {}", explained.reason),
        });
    }
    Ok(lines)
}

/// The VMs that still run there.
async fn running_on(name: &WorkerName, client: &Client) -> anyhow::Result<Vec<VmName>> {
    let all = client.vms().await?.into_iter();
    let there = all.filter(|vm| vm.worker.as_ref() == Some(name) && vm.status != VmStatus::Failed);
    Ok(there.filter(|vm| !vm.assigned.is_empty()).map(|vm| vm.name).collect())
}

/// What still runs there, for people.
async fn left_on(name: &WorkerName, client: &Client) -> anyhow::Result<String> {
    let there = running_on(name, client).await?;
    if there.is_empty() {
        return Ok("the last VMs are being stopped".to_owned());
    }
    let more = if there.len() > NAMED { ", …" } else { "" };
    let named: Vec<&str> = there.iter().take(NAMED).map(VmName::as_str).collect();
    Ok(format!("VMs left on it: {} ({}{more})", there.len(), named.join(", ")))
}
