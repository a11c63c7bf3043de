//! One task per copy: asks the table in [`plan`] for the next step, does it, and again, until the copy is gone.
//!
//! A wish that changes interrupts creating, booting and waiting, but never stopping or deleting, which are short and
//! bounded; suspending and starting are given up for a deletion alone. One that only has another generation is put into
//! effect by saying so: whatever needs another process comes as another boot. Knows no runtime by name.

mod off;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, watch};

use super::bring_up::{Reporter, bring_up};
use super::host::Host;
use super::journal::ScriptState;
use super::plan::{self, Past, Seen, Step, Wish};
use super::runtime::{CopySpec, Exit, Progress, RuntimeError};
use crate::bus::message::Observation;
use crate::model::{Boot, CopyId, VmName};

/// What a guest gets to switch itself off before its process is ended.
const STOP_GRACE: Duration = Duration::from_secs(20);
/// The same for a VM that failed and whose guest's state matters less.
const FAILED_GRACE: Duration = Duration::from_secs(3);
/// How often progress is told: each time is a durable event, and people read no faster.
const PROGRESS_PERIOD: Duration = Duration::from_secs(2);
/// How long the last lines of a startup script have to come and be acknowledged whose guest has ended. What was not
/// acknowledged by then is on the disk and goes up later.
const LAST_LINES: Duration = Duration::from_secs(10);
/// What is told of a VM whose end nobody saw.
const ENDED_UNSEEN: &str = "the VM's process ended while nobody watched";
/// The same once its worker's machine was started anew.
const ENDED_BY_REBOOT: &str = "the VM ended as its worker's machine was started anew";
/// First and longest pause before a deletion that failed is tried again.
const DELETE_PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// What a copy's task is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) wish: Wish,
    pub(super) name: VmName,
    /// What to run; present with [`Wish::Run`].
    pub(super) copy: Option<Arc<CopySpec>>,
    pub(super) generation: u64,
    /// Which boot of the copy it is about.
    pub(super) boot: Boot,
    /// See [`Past::ran`].
    pub(super) ran: bool,
}

/// The task of one copy.
pub(super) struct CopyTask {
    pub(super) id: CopyId,
    pub(super) host: Host,
    pub(super) orders: watch::Receiver<Order>,
    pub(super) seen: Seen,
    /// The last boot that was begun, or failed to begin.
    boot: Boot,
    /// Its process ran once, so that its disk is one to boot from.
    started: bool,
    /// It was suspended by this task.
    suspended: bool,
    /// Why it was not, and does not run any more.
    memory_lost: Option<String>,
    /// See [`Past::halted`].
    halted: bool,
    /// The generation in effect.
    generation: u64,
}

/// Why a running copy needs another step.
enum Watched {
    OrderChanged,
    Exited(Exit),
    ScriptFailed(String),
}

impl CopyTask {
    /// The task of a copy of which `seen` was found.
    pub(super) fn new(id: CopyId, host: Host, orders: watch::Receiver<Order>, seen: Seen) -> Self {
        let noted = host.journal.boot(id);
        let started = noted.is_some() || matches!(seen, Seen::Running | Seen::Ended);
        let halted = host.journal.halted(id);
        Self {
            id,
            host,
            orders,
            seen,
            boot: noted.unwrap_or(0),
            started,
            suspended: false,
            memory_lost: None,
            halted,
            generation: 0,
        }
    }

    /// Runs until the copy is gone or nobody owns the task any more.
    pub(super) async fn run(mut self) {
        let mut slot = None;
        let mut fresh = false;
        let mut delete_pause = DELETE_PAUSE.0;
        loop {
            // In this order; see `Resting`.
            self.host.resting.note(self.id, false);
            let order = self.orders.borrow_and_update().clone();
            if order.wish == Wish::Run && order.boot < self.boot {
                // The controller was set back to a time before what is the case here; what is, goes on under its number.
                self.set_boot(order.boot);
                self.seen = plan::forgotten(self.seen);
            }
            let past = Past { newer: order.boot > self.boot, ran: order.ran, halted: self.halted };
            let step = plan::step(order.wish, self.seen, past);
            tracing::debug!(copy = %self.id, vm = %order.name, ?step, seen = ?self.seen, "next step");
            if step != Step::Watch {
                // Only a guest that boots holds a slot, not one that cannot be stopped or deleted.
                slot = None;
            }
            match (step, order.copy.clone()) {
                (Step::Create, Some(copy)) => self.create(&order, &copy).await,
                (Step::Start, Some(copy)) => {
                    slot = self.start(&order, &copy).await;
                    fresh = true;
                }
                (Step::Watch, Some(copy)) => self.watch(&order, &copy, std::mem::take(&mut fresh), slot.take()).await,
                (Step::Create | Step::Start | Step::Watch | Step::Rest, _) => self.rest().await,
                (Step::ReportEnded, _) => {
                    let how = if self.host.rebooted { ENDED_BY_REBOOT } else { ENDED_UNSEEN };
                    self.fail_stopped(Some(FAILED_GRACE), how.to_owned()).await;
                }
                (Step::ReportHalted, _) => self.report_halted().await,
                (Step::ReportLost, _) => {
                    self.boot = order.boot;
                    self.seen = Seen::Unmade;
                    let message = "the VM's disk is lost: nothing of it is on its worker".to_owned();
                    self.tell(Observation::Failed { message, disk: false, halted: false });
                }
                (Step::Stop, _) => self.stop(&order, &mut delete_pause).await,
                (Step::Suspend, _) => self.suspend(&mut delete_pause).await,
                (Step::ReportStopped, _) => self.report_stopped(&order, &mut delete_pause).await,
                (Step::Delete, _) => match self.host.runtime.delete(self.id).await {
                    Ok(()) => {
                        self.host.forget(self.id);
                        (self.seen, self.halted) = (Seen::Missing, false);
                    }
                    Err(error) => self.pause(&mut delete_pause, &format!("cannot delete it: {error}")).await,
                },
                (Step::ReportAbsent, _) => return self.host.uplink.observe(self.id, Observation::Absent),
                (Step::ReportStray, _) => {
                    tracing::warn!(copy = %self.id, vm = %order.name, "the controller did not ask for this VM; it is left alone");
                    let (name, running) = (order.name.to_string(), Some(self.seen == Seen::Running));
                    self.host.uplink.observe(self.id, Observation::Stray { name, running });
                    self.seen = plan::forgotten(self.seen);
                    self.rest().await;
                }
                (Step::Forget, _) => return self.host.uplink.forget(self.id),
            }
        }
    }

    /// Nothing is left to do until there is another order.
    async fn rest(&mut self) {
        self.host.resting.note(self.id, true);
        self.another_order().await;
    }

    /// Waits for another order; for ever when none can come, as the owner then ends the task.
    async fn another_order(&mut self) {
        if self.orders.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits before another try, or for another order.
    async fn pause(&mut self, pause: &mut Duration, why: &str) {
        tracing::warn!(copy = %self.id, "{why}; trying again in {} s", pause.as_secs());
        // Cancel safe: an order that comes is seen at the next look.
        tokio::select! {
            () = tokio::time::sleep(*pause) => *pause = pause.saturating_mul(2).min(DELETE_PAUSE.1),
            () = self.another_order() => {}
        }
    }

    /// Tells what is the case in the present boot.
    fn tell(&self, observation: Observation) {
        self.host.uplink.tell(self.id, self.boot, observation);
    }

    fn set_boot(&mut self, boot: Boot) {
        self.boot = boot;
        self.host.journal.set_boot(self.id, boot);
        if self.halted {
            self.set_halted(true);
        }
    }

    async fn fail(&mut self, message: impl Into<String>) {
        self.seen = Seen::Failed;
        // The guard may have ended it while this process stood still.
        self.tell(match self.host.journal.fenced(self.id) {
            Some(message) => Observation::Fenced { message },
            None => Observation::Failed { message: message.into(), disk: self.started, halted: false },
        });
    }

    async fn create(&mut self, order: &Order, copy: &CopySpec) {
        let (progress, told) = Progress::new();
        progress.say("preparing");
        self.host.journal.forget(self.id);
        self.halted = false;
        let runtime = self.host.runtime.clone();
        let creation = runtime.create(copy, &progress);
        tokio::pin!(creation);
        let mut look = tokio::time::interval(PROGRESS_PERIOD);
        loop {
            // Cancel safe: a creation that is given up leaves what `list` calls incomplete.
            tokio::select! {
                created = &mut creation => {
                    return match created {
                        Ok(()) => self.seen = Seen::Created,
                        Err(error) => {
                            self.boot = order.boot;
                            self.seen = Seen::Unmade;
                            let message = format!("cannot create the VM: {error}");
                            self.tell(Observation::Failed { message, disk: false, halted: false });
                        }
                    };
                }
                _ = look.tick() => {
                    let message = told.borrow().clone();
                    self.host.uplink.tell(self.id, order.boot, Observation::Preparing { message });
                }
                () = unwanted(&mut self.orders) => {
                    self.seen = Seen::Incomplete;
                    return;
                }
            }
        }
    }

    async fn start(&mut self, order: &Order, copy: &CopySpec) -> Option<OwnedSemaphorePermit> {
        let slots = self.host.boot_slots.clone();
        let slot = match slots.clone().try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) => {
                let message = "waiting until another VM on the worker has booted".to_owned();
                self.host.uplink.tell(self.id, order.boot, Observation::Preparing { message });
                tokio::select! {
                    slot = slots.acquire_owned() => slot.ok()?,
                    () = unwanted(&mut self.orders) => return None,
                }
            }
        };
        // It runs after each boot.
        self.host.journal.set_script(self.id, ScriptState::Unstarted);
        self.set_halted(false);
        let (runtime, mut newer) = (self.host.runtime.clone(), self.orders.clone());
        let started = tokio::select! {
            started = runtime.start(copy) => started,
            // To load the memory of one that was suspended may take half an hour. Cancel safe: what was begun is ended by
            // the deletion.
            () = condemned(&mut newer) => return None,
        };
        match started {
            Ok(()) => {
                (self.seen, self.memory_lost) = (Seen::Running, None);
                (self.started, self.suspended, self.generation) = (true, false, order.generation);
                // Not before it has begun: a worker that dies in between has the copy boot once more, which is no loss, while
                // one that took a boot for done that never was would call it failed.
                self.set_boot(order.boot);
                Some(slot)
            }
            Err(error) => {
                drop(slot);
                self.boot = order.boot;
                self.started &= !matches!(error, RuntimeError::NotFound);
                self.fail_stopped(None, format!("cannot start the VM: {error}")).await;
                None
            }
        }
    }

    /// Tells of a failure once nothing of the copy runs any more: on its word another copy may be started elsewhere.
    /// Gives up only when the copy is no longer wished to run; then the table says what follows. `grace` is what the guest gets
    /// to switch itself off; none = it did not start, and what it was suspended with, if it was, is kept for another try.
    async fn fail_stopped(&mut self, grace: Option<Duration>, message: String) {
        let mut pause = DELETE_PAUSE.0;
        loop {
            let ended = match grace {
                Some(grace) => self.host.runtime.stop(self.id, grace).await,
                None => self.host.runtime.kill(self.id).await,
            };
            let error = match ended {
                Ok(()) | Err(RuntimeError::NotFound) => break,
                Err(error) => error,
            };
            self.seen = Seen::Running;
            self.pause(&mut pause, &format!("it failed ({message}) and cannot be stopped: {error}")).await;
            if self.orders.borrow().wish != Wish::Run {
                return;
            }
        }
        self.fail(message).await;
    }

    /// Watches a running copy until it ends, fails or is no longer wished for. `fresh` when this task started it.
    async fn watch(&mut self, order: &Order, copy: &CopySpec, fresh: bool, slot: Option<OwnedSemaphorePermit>) {
        let host = self.host.clone();
        // One that was to end with its worker, and did not in time, goes on.
        self.set_halted(false);
        self.generation = order.generation;
        let reporter = Reporter::new(host.uplink.clone(), (self.id, self.boot), order.generation);
        reporter.running(if fresh { "booting" } else { "adopted by a new worker process" }, false);
        let outcome = {
            let exit = host.runtime.wait_exit(self.id);
            let up = bring_up(&host, copy, fresh, slot, &reporter);
            tokio::pin!(exit, up);
            let mut coming_up = true;
            loop {
                // Cancel safe: both futures are polled in place and go on; an order is looked at again by the caller.
                tokio::select! {
                    exit = &mut exit => {
                        if coming_up && host.journal.script(self.id) == ScriptState::Begun {
                            // What the script has said up to the end is on its way still.
                            let _ = tokio::time::timeout(LAST_LINES, &mut up).await;
                        }
                        break Watched::Exited(exit);
                    }
                    result = &mut up, if coming_up => {
                        coming_up = false;
                        if let Err(message) = result {
                            break Watched::ScriptFailed(message);
                        }
                    }
                    newer = next_order(&mut self.orders) => {
                        if newer.wish != Wish::Run || newer.boot > self.boot {
                            break Watched::OrderChanged;
                        }
                        // Nothing in it needs another process, so it is in effect; what goes on is not disturbed.
                        (self.generation, self.boot) = (newer.generation, newer.boot);
                        reporter.now_at(newer.boot, newer.generation);
                    }
                }
            }
        };
        match outcome {
            Watched::OrderChanged => {}
            Watched::Exited(Exit::PoweredOff) => self.fail("the guest switched itself off").await,
            Watched::Exited(Exit::Crashed(how)) => self.fail(how).await,
            Watched::ScriptFailed(message) => self.fail_stopped(Some(FAILED_GRACE), message).await,
        }
    }
}

/// Returns once the copy is no longer wished to run.
async fn unwanted(orders: &mut watch::Receiver<Order>) {
    if orders.wait_for(|order| order.wish != Wish::Run).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Returns once nothing of the copy shall be left.
async fn condemned(orders: &mut watch::Receiver<Order>) {
    if orders.wait_for(|order| order.wish == Wish::Absent).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The next order, once there is one. Cancel safe.
async fn next_order(orders: &mut watch::Receiver<Order>) -> Order {
    if orders.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    orders.borrow_and_update().clone()
}

#[cfg(test)]
mod tests;
