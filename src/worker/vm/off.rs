//! How the process of a copy is brought to rest, and what is told of it then: stopped, suspended, or ended with its worker.

use std::time::Duration;

use super::{CopyTask, FAILED_GRACE, Order, PROGRESS_PERIOD, STOP_GRACE, condemned};
use crate::bus::message::Observation;
use crate::model::vm::SUSPEND_FAILED;
use crate::worker::plan::{self, Seen, Wish};
use crate::worker::runtime::{Found, FoundState, Progress, RuntimeError};

/// What is told of a VM whose worker ends and takes it with it.
const HALTED: &str = "stopped in order, as its worker was stopped with --stop-vms-on-exit";

impl CopyTask {
    /// Asks the guest to switch itself off, and ends its process.
    pub(super) async fn stop(&mut self, order: &Order, pause: &mut Duration) {
        // First, so that whoever finds it ended knows why.
        match order.wish {
            Wish::Halt => self.set_halted(true),
            _ if self.halted => self.set_halted(false),
            _ => {}
        }
        match self.host.runtime.stop(self.id, STOP_GRACE).await {
            Ok(()) => self.seen = Seen::Ended,
            Err(error) => self.pause(pause, &format!("cannot stop it: {error}")).await,
        }
    }

    /// It was ended with its worker, by this process or the one before.
    pub(super) async fn report_halted(&mut self) {
        self.tell(Observation::Failed { message: HALTED.to_owned(), disk: self.started, halted: true });
        self.rest().await;
    }

    /// Whether the worker ended the present boot's process.
    pub(super) fn set_halted(&mut self, halted: bool) {
        match halted {
            true => self.host.journal.set_halted(self.id, self.boot),
            false if self.halted => self.host.journal.forget_halted(self.id),
            false => {}
        }
        self.halted = halted;
    }

    /// Its memory could not be kept: it goes on running, or has ended by it.
    async fn not_suspended(&mut self, error: &RuntimeError, pause: &mut Duration) {
        let gone = |found: Vec<Found>| !found.iter().any(|one| one.id == self.id && one.state == FoundState::Running);
        if self.host.runtime.list().await.is_ok_and(gone) {
            self.seen = Seen::Ended;
            self.memory_lost = Some(format!("{SUSPEND_FAILED}, and it is switched off: {error}"));
            return;
        }
        let message = format!("{SUSPEND_FAILED}, and it goes on running: {error}");
        let generation = self.generation;
        self.tell(Observation::Running { message: message.clone(), ready: false, generation, image_fqn: None });
        self.pause(pause, &message).await;
    }

    /// It does not run, as is wished: sees to it that it stays so, and tells it.
    pub(super) async fn report_stopped(&mut self, order: &Order, pause: &mut Duration) {
        if order.wish == Wish::Keep && matches!(self.seen, Seen::Ended | Seen::Failed) {
            // Memory of a time when it was suspended is not wanted any more.
            if let Err(error) = self.host.runtime.stop(self.id, FAILED_GRACE).await {
                return self.pause(pause, &format!("cannot keep it switched off: {error}")).await;
            }
            self.suspended = false;
        }
        let message = match (order.wish, &self.memory_lost, self.suspended, self.started) {
            (Wish::Suspend, Some(why), false, _) => why,
            (Wish::Suspend, _, true, _) => "its memory is kept beside its disk",
            (_, _, _, false) => "it has not run yet",
            _ => "it is switched off",
        };
        self.host.uplink.tell(self.id, order.boot, Observation::Stopped { message: message.to_owned() });
        self.seen = plan::forgotten(self.seen);
        self.rest().await;
    }

    pub(super) async fn suspend(&mut self, pause: &mut Duration) {
        let (progress, told) = Progress::new();
        let suspended = {
            let runtime = self.host.runtime.clone();
            let suspension = runtime.suspend(self.id, &progress);
            tokio::pin!(suspension);
            let mut look = tokio::time::interval(PROGRESS_PERIOD);
            let mut newer = self.orders.clone();
            loop {
                // Cancel safe: the suspension is polled in place and goes on; one that is given up is ended by the deletion.
                tokio::select! {
                    biased;
                    suspended = &mut suspension => break suspended,
                    () = condemned(&mut newer) => return,
                    _ = look.tick() => {
                        let said = told.borrow().clone();
                        if !said.is_empty() {
                            let message = format!("suspending: {said}");
                            let generation = self.generation;
                            self.tell(Observation::Running { message, ready: false, generation, image_fqn: None });
                        }
                    }
                }
            }
        };
        match suspended {
            Ok(()) => (self.seen, self.suspended) = (Seen::Ended, true),
            Err(error) => self.not_suspended(&error, pause).await,
        }
    }
}
