//! `orchard stop`, `start` and `suspend`: VMs that are switched off and on; and `orchard update vm`, which changes what else a
//! VM shall be.

use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use tokio::time::Instant;

use super::client::Client;
use super::output::{OutputArgs, Progress};
use super::wait::WaitArgs;
use super::{UsageError, pairs, placing, wait};
use crate::bus::life::{SpecChange, UpdateVm};
use crate::config::duration;
use crate::model::VmName;
use crate::model::error::ErrorCode;
use crate::model::vm::{OnUnseen, PowerState, RestartPolicy, SUSPEND_FAILED, Vm, VmStatus};

/// How often it is looked whether a VM is off.
const ASK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, Subcommand)]
pub(super) enum Stop {
    /// Switch a VM off; its disk stays on its worker, and others can have its room
    #[command(after_help = "\
Examples:
  orchard stop vm build-1
  orchard stop vm build-1 --wait --timeout 2m

`orchard start vm build-1` switches it on again.")]
    Vm(SwitchArgs),
}

#[derive(Debug, Subcommand)]
pub(super) enum Start {
    /// Switch a VM on again that was stopped or suspended, where its disk is
    #[command(after_help = "\
Examples:
  orchard start vm build-1
  orchard start vm build-1 --wait

It waits until there is room for it on its worker; `orchard explain vm build-1` says for what.")]
    Vm(SwitchArgs),
}

#[derive(Debug, Subcommand)]
pub(super) enum Suspend {
    /// Freeze a VM, memory and all, into a file on its worker; only one that was made suspendable
    #[command(after_help = "\
Examples:
  orchard suspend vm build-1
  orchard suspend vm build-1 --wait

`orchard start vm build-1` lets it go on where it was.")]
    Vm(SwitchArgs),
}

#[derive(Debug, Args)]
pub(super) struct SwitchArgs {
    /// The VM's name
    name: VmName,
    #[command(flatten)]
    waiting: WaitArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
#[group(id = "vm-change", multiple = true,
        args = ["restart_policy", "priority", "ttl", "on_unseen", "suspendable", "net_softnet", "net_softnet_allow",
                "net_softnet_block"])]
pub(super) struct UpdateVmArgs {
    /// The VM's name
    name: VmName,
    /// What happens when it fails: Never, OnFailure or Always
    #[arg(long, value_parser = pairs::one_of::<RestartPolicy>)]
    restart_policy: Option<RestartPolicy>,
    /// Who is placed first when workers are scarce; higher is sooner
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    priority: Option<i32>,
    /// Delete the VM this long after its creation; 0 = never
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    ttl: Option<Duration>,
    /// What happens when its worker is not heard of any more: keep or replace
    #[arg(long, value_name = "WHAT", value_parser = pairs::one_of::<OnUnseen>)]
    on_unseen: Option<OnUnseen>,
    /// From now on it can be suspended; it boots again for this
    #[arg(long)]
    suspendable: bool,
    /// Isolate the guest's network with Softnet, or not any more (Tart); it boots again for this
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    net_softnet: Option<bool>,
    /// Networks that it may reach all the same, instead of those so far; '' = none. It boots again for this
    #[arg(long, value_name = "CIDR,…")]
    net_softnet_allow: Option<String>,
    /// Networks that it may not reach, instead of those so far; '' = none. It boots again for this
    #[arg(long, value_name = "CIDR,…")]
    net_softnet_block: Option<String>,
    /// Only if its generation is this one, as `orchard get vm` shows it: nobody has changed it meanwhile
    #[arg(long, value_name = "N")]
    if_generation: Option<u64>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn stop(command: Stop, client: &Client) -> anyhow::Result<()> {
    let Stop::Vm(arguments) = command;
    switch(arguments, PowerState::Stopped, client).await
}

pub(super) async fn start(command: Start, client: &Client) -> anyhow::Result<()> {
    let Start::Vm(arguments) = command;
    switch(arguments, PowerState::Running, client).await
}

pub(super) async fn suspend(command: Suspend, client: &Client) -> anyhow::Result<()> {
    let Suspend::Vm(arguments) = command;
    switch(arguments, PowerState::Suspended, client).await
}

/// `connect` is called once there is something to be changed.
pub(super) async fn update<F: Future<Output = anyhow::Result<Client>>>(
    arguments: UpdateVmArgs,
    connect: impl FnOnce() -> F,
) -> anyhow::Result<()> {
    let UpdateVmArgs { name, if_generation, output, .. } = arguments;
    let networks = |list: String| list.split(',').filter(|one| !one.is_empty()).map(str::to_owned).collect();
    let change = SpecChange {
        restart_policy: arguments.restart_policy,
        priority: arguments.priority,
        ttl_s: arguments.ttl.map(|ttl| ttl.as_secs()),
        on_unseen: arguments.on_unseen,
        suspendable: arguments.suspendable.then_some(true),
        net_softnet: arguments.net_softnet,
        net_softnet_allow: arguments.net_softnet_allow.map(networks),
        net_softnet_block: arguments.net_softnet_block.map(networks),
        ..SpecChange::default()
    };
    if change == SpecChange::default() {
        let what = format!(
            "nothing of VM {name} is named that is to be changed, such as --priority 5 or --ttl 2h; `orchard update vm --help` \
             shows what can be"
        );
        return Err(UsageError(what).into());
    }
    let request = UpdateVm { name: name.clone(), if_generation, change };
    let client = &connect().await?;
    // Whoever may not see VMs is told the generation alone.
    let before = match placing::may_look(client).await {
        true => client.vm(&name).await.ok().map(|vm| (vm.uid, vm.generation)),
        false => None,
    };
    let vm = client.call(&request).await.with_context(|| format!("cannot change VM {name}"))?;
    show(&vm, output, || match before == Some((vm.uid, vm.generation)) {
        true => format!("VM {name} is as it was, at generation {}", vm.generation),
        false => format!("VM {name} is changed; it is at generation {}", vm.generation),
    })
}

async fn switch(arguments: SwitchArgs, to: PowerState, client: &Client) -> anyhow::Result<()> {
    let SwitchArgs { name, waiting: WaitArgs { wait, timeout }, output } = arguments;
    // Listening begins before the change, so that nothing of what follows is missed.
    let watch = match wait && to == PowerState::Running {
        true => Some(wait::Watch::begin(client, &name).await?),
        false => None,
    };
    let change = SpecChange { power_state: Some(to), ..SpecChange::default() };
    let request = UpdateVm { name: name.clone(), if_generation: None, change };
    let (does, done) = match to {
        PowerState::Running => ("start", "is switched on"),
        PowerState::Stopped => ("stop", "is being switched off"),
        PowerState::Suspended => ("suspend", "is being suspended"),
    };
    let mut vm = client.call(&request).await.with_context(|| format!("cannot {does} VM {name}"))?;
    if !wait {
        return show(&vm, output, || format!("VM {name} {done}; `orchard get vm {name}` shows how far it is"));
    }
    vm = match watch {
        Some(watch) => watch.until_ready(client, &vm, timeout).await?,
        None => {
            let goes_on = wait::GoesOn::after(&name);
            let ended = until_off(client, &vm, timeout).await;
            goes_on.ended();
            ended?
        }
    };
    show(&vm, output, || match to {
        PowerState::Running => format!("VM {name} is ready"),
        state => format!("VM {name} is {state}"),
    })
}

fn show(vm: &Vm, output: OutputArgs, text: impl FnOnce() -> String) -> anyhow::Result<()> {
    Ok(output.done(vm, |vm| vm.name.to_string(), text)?)
}

/// Waits until `vm` is off and yields it as it then is.
async fn until_off(client: &Client, vm: &Vm, timeout: Duration) -> anyhow::Result<Vm> {
    let deadline = Instant::now() + timeout;
    let mut progress = Progress::start();
    loop {
        match client.vm(&vm.name).await {
            Ok(seen) => match judge(vm, &seen) {
                Verdict::Off => return Ok(seen),
                Verdict::Over(why) => anyhow::bail!("{why}"),
                Verdict::Wait => progress.say(&format!("VM {}: {}", seen.name, seen.status_message)),
            },
            Err(error) => match error.code {
                ErrorCode::NotFound => anyhow::bail!("VM {} was deleted while it was waited for", vm.name),
                ErrorCode::Unavailable | ErrorCode::Timeout => progress.say(&format!("VM {}: {error}", vm.name)),
                _ => return Err(error.into()),
            },
        }
        if Instant::now() >= deadline {
            let (limit, last) = (duration::show(timeout), progress.last());
            anyhow::bail!("VM {} is not off after {limit}; last: {last}; it goes on by itself", vm.name);
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// What to do about a VM that shall be off.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Off,
    Wait,
    Over(String),
}

fn judge(asked: &Vm, seen: &Vm) -> Verdict {
    let name = &seen.name;
    if seen.uid != asked.uid {
        return Verdict::Over(format!("VM {name} was deleted and made anew by somebody while it was waited for"));
    }
    if !seen.is_to_be_off() {
        return Verdict::Over(format!("VM {name} was switched on again by somebody while it was waited for"));
    }
    if seen.status == VmStatus::Failed || seen.status_message.starts_with(SUSPEND_FAILED) {
        return Verdict::Over(format!("VM {name}: {}", seen.status_message));
    }
    if seen.is_off() { Verdict::Off } else { Verdict::Wait }
}

#[cfg(test)]
mod tests {
    use super::super::list::tests::vm;
    use super::*;

    #[test]
    fn only_what_gave_its_room_back_is_off() {
        let asked = vm("a", VmStatus::Running);
        let mut seen = asked.clone();
        assert!(matches!(judge(&asked, &seen), Verdict::Over(_)), "somebody else has switched it on");
        seen.spec.power_state = PowerState::Suspended;
        seen.set_conditions(true, true);
        assert_eq!(judge(&asked, &seen), Verdict::Wait);
        seen.status_message = format!("{SUSPEND_FAILED}, and it goes on running: x");
        assert!(matches!(judge(&asked, &seen), Verdict::Over(_)));
        seen.status_message.clear();
        seen.set_conditions(false, false);
        assert_eq!(judge(&asked, &seen), Verdict::Off);
    }
}
