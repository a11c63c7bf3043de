//! Waiting until a VM is ready: what `create vm --wait` does after the request.
//!
//! The VM's events are only a signal to look again; what counts is the VM itself, asked for at each signal and every few
//! seconds. A lost event costs time and nothing else.

use std::time::Duration;

use async_nats::Subscriber;
use clap::Args;
use futures_util::StreamExt as _;
use tokio::time::Instant;

use super::client::Client;
use super::output::Progress;
use crate::bus::subject;
use crate::config::duration;
use crate::model::error::ErrorCode;
use crate::model::vm::{RestartPolicy, SCRIPT_INTERRUPTED, Vm, VmStatus};
use crate::model::{VmName, VmUid};

/// How long to go without looking when no event comes.
const PERIOD: Duration = Duration::from_secs(5);

/// The options of commands that can wait for what they set going.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct WaitArgs {
    /// Wait until it is so: ready, which is when the guest answers and its startup script has ended well; or off
    #[arg(long)]
    pub(super) wait: bool,
    /// How long to wait
    #[arg(long, default_value = "10m", requires = "wait", value_parser = duration::parse)]
    pub(super) timeout: Duration,
}

/// The VM's events, listened to since before the VM existed.
pub(super) struct Watch {
    events: Subscriber,
}

impl Watch {
    /// Begins to listen.
    pub(super) async fn begin(client: &Client, name: &VmName) -> anyhow::Result<Self> {
        Ok(Self { events: client.bus().subscribe(&subject::events_of_vm(name)).await? })
    }

    /// Waits until `vm` is ready and yields it as it then is; tells how it goes on standard error.
    ///
    /// Fails as soon as the VM has failed for good or is gone, and when `timeout` has passed.
    pub(super) async fn until_ready(mut self, client: &Client, vm: &Vm, timeout: Duration) -> anyhow::Result<Vm> {
        let deadline = Instant::now() + timeout;
        let mut progress = Progress::start();
        progress.say(&describe(vm));
        loop {
            // Only losing the controller for a while is no reason to give up.
            let wait = match client.vm(&vm.name).await {
                Ok(seen) => match judge(vm.uid, &seen) {
                    Verdict::Ready => return Ok(seen),
                    Verdict::Over(why) => anyhow::bail!("{why}"),
                    Verdict::Wait => {
                        progress.say(&describe(&seen));
                        PERIOD
                    }
                },
                Err(error) => match error.code {
                    ErrorCode::NotFound => anyhow::bail!("VM {} was deleted while it was waited for", vm.name),
                    ErrorCode::Unavailable | ErrorCode::Timeout => {
                        progress.say(&format!("VM {}: {error}", vm.name));
                        Duration::from_secs(1)
                    }
                    _ => return Err(error.into()),
                },
            };
            let wait = wait.min(deadline.saturating_duration_since(Instant::now()));
            if wait.is_zero() {
                anyhow::bail!(
                    "VM {} is not ready after {}; last: {}; it goes on by itself, see `orchard get vm {}`",
                    vm.name,
                    duration::show(timeout),
                    progress.last(),
                    vm.name
                );
            }
            if self.signal(wait).await {
                self.drain();
            }
        }
    }

    /// Waits for an event, at most `limit`. Cancel safe: an event is a signal only.
    async fn signal(&mut self, limit: Duration) -> bool {
        match tokio::time::timeout(limit, self.events.next()).await {
            Ok(Some(_)) => true,
            Ok(None) => {
                // The bus has closed the subscription: go on by asking alone.
                tokio::time::sleep(limit).await;
                false
            }
            Err(_) => false,
        }
    }

    /// Takes the events that are here already: one look answers them all.
    fn drain(&mut self) {
        use futures_util::FutureExt as _;
        while let Some(Some(_)) = self.events.next().now_or_never() {}
    }
}

/// What to do about a VM that is waited for.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Ready,
    Wait,
    Over(String),
}

fn judge(waited_for: VmUid, seen: &Vm) -> Verdict {
    let name = &seen.name;
    if seen.uid != waited_for {
        return Verdict::Over(format!("VM {name} was deleted and made anew by somebody while it was waited for"));
    }
    match (seen.status, seen.ready, seen.spec.restart_policy) {
        (VmStatus::Running, true, _) => Verdict::Ready,
        (VmStatus::Failed, _, RestartPolicy::Never) => {
            Verdict::Over(format!("VM {name} failed: {}", seen.status_message))
        }
        (VmStatus::Running, false, _) if seen.status_message.contains(SCRIPT_INTERRUPTED) => Verdict::Over(format!(
            "VM {name} runs, but {SCRIPT_INTERRUPTED}, and is not run again; see how far it came with `orchard logs vm \
             {name}` and `orchard ssh vm {name}`, or delete the VM and create it anew"
        )),
        (VmStatus::Failed, _, RestartPolicy::OnFailure | RestartPolicy::Always)
        | (VmStatus::Pending, _, _)
        | (VmStatus::Running, false, _) => Verdict::Wait,
    }
}

fn describe(vm: &Vm) -> String {
    let place = vm.worker.as_ref().map(|worker| format!(" on {worker}")).unwrap_or_default();
    let why = if vm.status_message.is_empty() { String::new() } else { format!(": {}", vm.status_message) };
    let restart = match (vm.status, vm.spec.restart_policy) {
        (VmStatus::Failed, RestartPolicy::OnFailure) => " (it will be started over)",
        _ => "",
    };
    format!("VM {} is {}{place}{why}{restart}", vm.name, vm.status)
}

#[cfg(test)]
mod tests {
    use super::super::list::tests::vm;
    use super::*;

    #[test]
    fn only_a_ready_vm_ends_the_wait_well() {
        let pending = vm("a", VmStatus::Pending);
        let mut running = vm("a", VmStatus::Running);
        assert_eq!(judge(pending.uid, &pending), Verdict::Wait);
        assert_eq!(judge(pending.uid, &running), Verdict::Wait);
        running.ready = true;
        assert_eq!(judge(pending.uid, &running), Verdict::Ready);
        let other = "00000000-0000-0000-0000-000000000001".parse().unwrap();
        assert!(matches!(judge(other, &running), Verdict::Over(_)), "another VM of that name");
    }

    #[test]
    fn a_script_that_was_interrupted_ends_the_wait() {
        let mut running = vm("a", VmStatus::Running);
        running.status_message = SCRIPT_INTERRUPTED.to_owned();
        assert!(matches!(judge(running.uid, &running), Verdict::Over(why) if why.contains("not run again")));
    }

    #[test]
    fn a_failure_ends_the_wait_unless_the_vm_starts_over() {
        let mut failed = vm("a", VmStatus::Failed);
        failed.status_message = "no such image".into();
        let Verdict::Over(why) = judge(failed.uid, &failed) else { panic!("goes on") };
        assert!(why.contains("no such image"), "{why}");
        failed.spec.restart_policy = RestartPolicy::OnFailure;
        assert_eq!(judge(failed.uid, &failed), Verdict::Wait);
        assert!(describe(&failed).ends_with("(it will be started over)"));
    }

    #[test]
    fn progress_tells_where_and_why() {
        let mut vm = vm("a", VmStatus::Pending);
        vm.status_message = "no worker fits".into();
        assert_eq!(describe(&vm), "VM a is pending: no worker fits");
        vm.worker = Some("w".parse().unwrap());
        assert_eq!(describe(&vm), "VM a is pending on w: no worker fits");
    }
}
