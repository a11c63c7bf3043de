//! Waiting until a VM is ready.
//!
//! The VM's events are only a signal to look again; what counts is the VM itself, asked for at each signal and every few
//! seconds. A lost event costs time and nothing else.

use std::time::Duration;

use async_nats::Subscriber;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::Instant;

use super::{Client, is_passing};
use crate::bus::subject;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::vm::{RestartPolicy, SCRIPT_INTERRUPTED, Vm, VmStatus};
use crate::model::{VmName, VmUid};

/// How long to go without looking when no event comes.
const PERIOD: Duration = Duration::from_secs(5);
/// The same while the controller does not answer.
const AWAY_PERIOD: Duration = Duration::from_secs(1);

/// A VM's events, best listened to since before the VM existed.
#[derive(Debug)]
pub struct Watch {
    events: Subscriber,
}

/// What a look found.
#[derive(Clone, Copy, Debug)]
pub enum Seen<'a> {
    /// The VM as it is now.
    Vm(&'a Vm),
    /// The controller does not answer, which may be over by itself.
    Away(&'a ApiError),
}

/// Why a VM is not ready.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// It has failed, and stays so.
    #[error("VM {name} failed: {why}")]
    Failed {
        /// Which VM.
        name: VmName,
        /// In the words of its worker.
        why: String,
    },
    /// It will not be, or not by itself.
    #[error("{0}")]
    Over(String),
    /// It took too long, and goes on by itself.
    #[error("VM {name} is not ready after {} s", after.as_secs())]
    Late {
        /// Which VM.
        name: VmName,
        /// How long it was waited for.
        after: Duration,
    },
    /// It cannot be seen.
    #[error(transparent)]
    Api(#[from] ApiError),
}

impl Watch {
    /// Begins to listen.
    ///
    /// # Errors
    /// As for [`Client::call`].
    pub async fn begin(client: &Client, name: &VmName) -> Result<Self, ApiError> {
        Ok(Self { events: client.bus().subscribe(&subject::events_of_vm(name)).await? })
    }

    /// Waits until `vm` is ready, which is when the guest answers and its startup script has ended well, and yields it as it
    /// then is; shows what each look finds to `see`.
    ///
    /// # Errors
    /// [`WaitError`]: as soon as the VM has failed for good or is gone, and when `timeout` has passed.
    pub async fn until_ready(
        mut self,
        client: &Client,
        vm: &Vm,
        timeout: Duration,
        mut see: impl FnMut(Seen<'_>),
    ) -> Result<Vm, WaitError> {
        let deadline = Instant::now() + timeout;
        loop {
            // Only losing the controller for a while is no reason to give up.
            let wait = match client.vm(&vm.name).await {
                Ok(seen) => match judge(vm.uid, &seen) {
                    Verdict::Ready => return Ok(seen),
                    Verdict::Over(why) => return Err(WaitError::Over(why)),
                    Verdict::Failed => {
                        return Err(WaitError::Failed { name: seen.name, why: seen.status_message });
                    }
                    Verdict::Wait => {
                        see(Seen::Vm(&seen));
                        PERIOD
                    }
                },
                Err(error) if error.code == ErrorCode::NotFound => {
                    let why = format!("VM {} was deleted while it was waited for", vm.name);
                    return Err(WaitError::Over(why));
                }
                Err(error) if is_passing(&error) => {
                    see(Seen::Away(&error));
                    AWAY_PERIOD
                }
                Err(error) => return Err(error.into()),
            };
            let wait = wait.min(deadline.saturating_duration_since(Instant::now()));
            if wait.is_zero() {
                return Err(WaitError::Late { name: vm.name.clone(), after: timeout });
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
        while let Some(Some(_)) = self.events.next().now_or_never() {}
    }
}

/// What to do about a VM that is waited for.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Ready,
    Wait,
    Failed,
    Over(String),
}

fn judge(waited_for: VmUid, seen: &Vm) -> Verdict {
    let name = &seen.name;
    if seen.uid != waited_for {
        return Verdict::Over(format!("VM {name} was deleted and made anew by somebody while it was waited for"));
    }
    match (seen.status, seen.ready, seen.spec.restart_policy) {
        (VmStatus::Running, true, _) => Verdict::Ready,
        (VmStatus::Failed, _, RestartPolicy::Never) => Verdict::Failed,
        (VmStatus::Running, false, _) if seen.status_message.contains(SCRIPT_INTERRUPTED) => Verdict::Over(format!(
            "VM {name} runs, but {SCRIPT_INTERRUPTED}, and is not run again; see how far it came with `orchard logs vm \
             {name}` and `orchard ssh vm {name}`, or delete the VM and create it anew"
        )),
        (VmStatus::Failed, _, RestartPolicy::OnFailure | RestartPolicy::Always)
        | (VmStatus::Pending | VmStatus::Unknown, _, _)
        | (VmStatus::Running, false, _) => Verdict::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;
    use crate::model::vm::VmSpec;

    fn vm(status: VmStatus) -> Vm {
        let uid = VmUid(uuid::Uuid::nil());
        let asked = Vm::requested("a".parse().unwrap(), uid, Timestamp::default(), VmSpec::default());
        Vm { status, ..asked }
    }

    #[test]
    fn only_a_ready_vm_ends_the_wait_well() {
        let pending = vm(VmStatus::Pending);
        let mut running = vm(VmStatus::Running);
        assert_eq!(judge(pending.uid, &pending), Verdict::Wait);
        assert_eq!(judge(pending.uid, &running), Verdict::Wait);
        running.ready = true;
        assert_eq!(judge(pending.uid, &running), Verdict::Ready);
        let other = "00000000-0000-0000-0000-000000000001".parse().unwrap();
        assert!(matches!(judge(other, &running), Verdict::Over(_)), "another VM of that name");
    }

    #[test]
    fn a_script_that_was_interrupted_ends_the_wait() {
        let mut running = vm(VmStatus::Running);
        running.status_message = SCRIPT_INTERRUPTED.to_owned();
        assert!(matches!(judge(running.uid, &running), Verdict::Over(why) if why.contains("not run again")));
    }

    #[test]
    fn a_failure_ends_the_wait_unless_the_vm_starts_over() {
        let mut failed = vm(VmStatus::Failed);
        failed.status_message = "no such image".into();
        assert_eq!(judge(failed.uid, &failed), Verdict::Failed);
        failed.spec.restart_policy = RestartPolicy::OnFailure;
        assert_eq!(judge(failed.uid, &failed), Verdict::Wait);
    }
}
