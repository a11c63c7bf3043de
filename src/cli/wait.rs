//! Waiting until a VM is ready: what `create vm --wait` does after the request, by [`crate::client::wait`], telling how it
//! goes on standard error.

use std::time::Duration;

use clap::Args;

use super::client::Client;
use super::interrupt;
use super::output::Progress;
use crate::client::wait::{self, Seen, WaitError};
use crate::config::duration;
use crate::model::VmName;
use crate::model::vm::{RestartPolicy, Vm, VmStatus};

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
pub(super) struct Watch(wait::Watch);

impl Watch {
    /// Begins to listen.
    pub(super) async fn begin(client: &Client, name: &VmName) -> anyhow::Result<Self> {
        Ok(Self(wait::Watch::begin(client, name).await?))
    }

    /// Waits until `vm` is ready and yields it as it then is; tells how it goes on standard error.
    ///
    /// Fails as soon as the VM has failed for good or is gone, and when `timeout` has passed.
    pub(super) async fn until_ready(self, client: &Client, vm: &Vm, timeout: Duration) -> anyhow::Result<Vm> {
        let mut progress = Progress::start();
        progress.say(&describe(vm));
        let see = |seen: Seen<'_>| match seen {
            Seen::Vm(vm) => progress.say(&describe(vm)),
            Seen::Away(error) => progress.say(&format!("VM {}: {error}", vm.name)),
        };
        let goes_on = GoesOn::after(&vm.name);
        let ended = self.0.until_ready(client, vm, timeout, see).await;
        goes_on.ended();
        ended.map_err(|error| match error {
            WaitError::Late { name, after } => {
                let last = progress.last();
                let last = last.strip_prefix(&format!("VM {name} is ")).unwrap_or(last);
                anyhow::anyhow!(
                    "VM {name} is not ready after {}: {last}; it goes on, `orchard get vm {name}` shows how",
                    duration::show(after),
                )
            }
            WaitError::Failed { name, why } => {
                anyhow::anyhow!("VM {name} failed: {why}; it keeps its name until `orchard delete vm {name}`")
            }
            WaitError::Over(why) => anyhow::anyhow!("{why}"),
            WaitError::Api(error) => {
                let name = &vm.name;
                anyhow::Error::from(error)
                    .context(format!("VM {name} is there, but was not followed until it is ready"))
            }
        })
    }
}

/// Says after Ctrl-C, which drops it, that the VM does not end with the waiting.
pub(super) struct GoesOn(Option<String>);

impl GoesOn {
    /// For as long as `vm` is waited for.
    pub(super) fn after(vm: &VmName) -> Self {
        Self(Some(format!("VM {vm} goes on; `orchard get vm {vm}` shows how far it is")))
    }

    /// The waiting has come to an end of its own.
    pub(super) fn ended(mut self) {
        self.0 = None;
    }
}

impl Drop for GoesOn {
    fn drop(&mut self) {
        if let Some(text) = self.0.take() {
            interrupt::leave_word(text);
        }
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
    fn progress_tells_where_and_why() {
        let mut vm = vm("a", VmStatus::Pending);
        vm.status_message = "no worker fits".into();
        assert_eq!(describe(&vm), "VM a is pending: no worker fits");
        vm.worker = Some("w".parse().unwrap());
        assert_eq!(describe(&vm), "VM a is pending on w: no worker fits");
        vm.status = VmStatus::Failed;
        vm.spec.restart_policy = RestartPolicy::OnFailure;
        assert!(describe(&vm).ends_with("(it will be started over)"));
    }
}
