//! What silence of a worker means.
//!
//! A worker that has not been heard of for [`Timing::unseen`] is *unseen*: no new VMs go there, and nothing else happens.
//! Silence is not death, and the network may be to blame.
//!
//! A worker is *gone* once its lease is over for certain. The worker counts its lease from the moment it sent the last
//! message that was answered; the controller from the moment it took in that same message or a later one, so never from
//! an earlier moment than the worker. What may go wrong on top of that are clocks of different pace and the time that it
//! takes to stop VMs, both of which [`Timing::certainly_over`] adds. From then on the worker runs none of those VMs
//! that may be replaced, whatever it is that keeps it silent: its process or its guard has stopped them. They start over
//! elsewhere (`replace`). All others stay as they are for as long as it takes.
//!
//! For this to hold nothing may extend the lease unnoticed: the session of a worker that is gone is closed, so its next
//! heartbeat is refused, and it has to register and take what it shall run now before it starts anything.
//!
//! Nor is a worker called gone while it may be the controller that does not hear: after its own start, a loss of its bus, or
//! a standstill every worker has a whole lease again ([`Cluster::bus_lost`]). This makes nothing safer, as workers
//! whose messages are not answered stop those VMs in any case; but those that are answered again in time have not, and
//! keep them.
//!
//! None of this asks the clock on the wall.

use std::time::Duration;

use super::replace::is_replaceable;
use super::{Changes, Cluster, WorkerEntry, drain};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::event::EventType;
use crate::model::planted::{Bug, planted};
use crate::model::vm::{OnUnseen, Vm, VmStatus};
use crate::model::worker::WorkerState;
use crate::model::{Now, SessionId, WorkerName};

/// Durations that rule liveness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often a worker renews its lease.
    pub heartbeat: Duration,
    /// A worker that is silent for longer is unseen.
    pub unseen: Duration,
    /// How long a lease lasts without renewal, by the worker's clock.
    pub lease: Duration,
    /// How long a worker may take, once its lease is over, until the VMs that may be replaced are stopped for certain.
    pub fence: Duration,
}

impl Default for Timing {
    /// Five missed heartbeats until a worker is unseen: an ordinary network hiccup or a reconnect does not show. Twenty
    /// until its lease is over: a switch or a controller may be started anew meanwhile, and nothing is stopped.
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(3),
            unseen: Duration::from_secs(15),
            lease: Duration::from_secs(60),
            fence: Duration::from_secs(10),
        }
    }
}

impl Timing {
    /// Workers with leases of that length, which they try to renew five times before it is over.
    pub fn with_lease(lease: Duration) -> Self {
        let usual = Self::default();
        Self { heartbeat: usual.heartbeat.min(lease / 5), unseen: usual.unseen.min(lease), lease, ..usual }
    }

    /// After so much silence a lease of that length is over, and what it covered is stopped, even if the clocks of controller and
    /// worker differ in pace by one part in a hundred; those of real machines differ by one in ten thousand at most.
    pub fn certainly_over(&self, lease: Duration) -> Duration {
        if planted(Bug::NoMargin) {
            return lease;
        }
        lease.saturating_add(lease / 100).saturating_add(self.fence)
    }
}

impl Cluster {
    /// `name` has registered or renewed its lease.
    pub(super) fn heard_of(&mut self, name: &WorkerName, now: Now, changes: &mut Changes) {
        let Some(entry) = self.workers.get_mut(name) else { return };
        entry.heard = now.mono;
        entry.lease_from = now.mono;
        entry.last_seen = Some(now.wall);
        entry.gone_since = None;
        if entry.state != WorkerState::Online {
            entry.state = WorkerState::Online;
            self.note_standing(name);
            changes.worker_event(&mut self.last_event, now, name, EventType::Online, String::new());
        }
    }

    /// `name` is about to be told of its lease. What it may hold is written down first: whoever is started with shorter leases
    /// must not take a worker for gone that was cut off with a longer one.
    pub(super) fn grant_lease(&mut self, name: &WorkerName, changes: &mut Changes) {
        let lease = self.lease_ms();
        if let Some(entry) = self.workers.get_mut(name).filter(|entry| entry.record.lease_ms < lease) {
            entry.record.lease_ms = lease;
            changes.workers.insert(name.clone());
        }
    }

    /// `name` speaks in a session of this controller, so it has a lease of the present length, and no longer one.
    pub(super) fn has_lease(&mut self, name: &WorkerName, changes: &mut Changes) {
        let lease = self.lease_ms();
        if let Some(entry) = self.workers.get_mut(name).filter(|entry| entry.record.lease_ms > lease) {
            entry.record.lease_ms = lease;
            changes.workers.insert(name.clone());
        }
    }

    fn lease_ms(&self) -> u64 {
        u64::try_from(self.timing.lease.as_millis()).unwrap_or(u64::MAX)
    }

    /// The controller cannot hear its workers, or could not for a moment before `now`: whatever they said since was perhaps
    /// lost, so the lease of each counts as renewed now. What people are told of when each was heard of stays true.
    pub fn bus_lost(&mut self, now: Now) {
        self.workers.values_mut().for_each(|entry| entry.lease_from = now.mono);
    }

    /// Looks who is silent; yields those that have become unseen.
    pub(super) fn notice_silence(&mut self, now: Now, changes: &mut Changes) -> Vec<WorkerName> {
        let Timing { unseen, .. } = self.timing;
        // Whoever was silent while this process itself stood still (a stopped process, a hanging disk) may have spoken:
        // what it said waits in the queue. Silence is not death.
        let before = self.ticked.replace(now.mono).unwrap_or(now.mono);
        let stalled = now.mono.saturating_sub(before);
        if stalled > unseen / 2 {
            for entry in self.workers.values_mut() {
                entry.heard = entry.heard.saturating_add(stalled).min(now.mono);
            }
            self.bus_lost(now);
        }
        let mut silent = Vec::new();
        let mut gone = Vec::new();
        for (name, entry) in &mut self.workers {
            // What came before the last tick has been taken in since; what came later may still wait behind this one.
            if entry.state == WorkerState::Online && before.saturating_sub(entry.heard) > unseen {
                entry.state = WorkerState::Unseen;
                let message = format!("not heard of for {} s; its VMs are left alone", entry.silence(now));
                changes.worker_event(&mut self.last_event, now, name, EventType::Unseen, message);
                silent.push(name.clone());
            }
            let granted = Duration::from_millis(entry.record.lease_ms);
            let over = self.timing.certainly_over(self.timing.lease.max(granted));
            let at_once = planted(Bug::GoneAtStart) && entry.live.is_none();
            if entry.state == WorkerState::Unseen && (before.saturating_sub(entry.lease_from) > over || at_once) {
                entry.state = WorkerState::Gone;
                entry.gone_since = Some(now.mono);
                entry.closed = entry.live.take().map(|live| live.session).or(entry.closed);
                gone.push(name.clone());
            }
        }
        for name in &gone {
            let message = self.what_gone_means(name, now);
            changes.worker_event(&mut self.last_event, now, name, EventType::Gone, message);
        }
        silent.iter().chain(&gone).for_each(|name| self.note_standing(name));
        silent
    }

    fn what_gone_means(&self, name: &WorkerName, now: Now) -> String {
        let Some(entry) = self.workers.get(name) else { return String::new() };
        let placed = entry.vms.iter().filter_map(|uid| self.vm_record(*uid));
        let (moved, kept): (Vec<&Vm>, Vec<&Vm>) = placed.partition(|vm| self.is_to_be_replaced(vm));
        let (moved, kept) = (moved.len(), kept.len());
        let silence = entry.silence(now);
        format!(
            "not heard of for {silence} s, so its lease is over; VMs started over elsewhere: {moved}, kept there: {kept}"
        )
    }

    /// Refuses to open a session again that was closed when its worker was gone: what is still under way of it is old, and
    /// a worker that goes on in it would go by what it was told to run then.
    pub(super) fn check_not_closed(&self, name: &WorkerName, session: SessionId) -> Result<(), ApiError> {
        if self.workers.get(name).is_some_and(|entry| entry.closed == Some(session)) {
            let what = format!("session {session} of worker {name} was closed as its lease was over: register anew");
            return Err(ApiError::new(ErrorCode::Unauthenticated, what));
        }
        Ok(())
    }

    /// Why `worker` cannot be reached now, in words; `None` when it is online.
    pub fn silence_of(&self, worker: &WorkerName, now: Now) -> Option<String> {
        let entry = self.workers.get(worker)?;
        let silence = entry.silence(now);
        match entry.state {
            WorkerState::Online | WorkerState::Unknown => None,
            WorkerState::Unseen => Some(format!("worker {worker} has been unseen for {silence} s")),
            WorkerState::Gone => Some(format!("worker {worker} is gone: it has not been heard of for {silence} s")),
        }
    }

    /// What the silence of its worker means for a VM, in words; `None` when there is none, or it means nothing.
    pub(super) fn fate_of(&self, vm: &Vm, now: Now) -> Option<String> {
        let worker = vm.worker.as_ref().filter(|_| vm.status != VmStatus::Failed)?;
        let entry = self.workers.get(worker)?;
        let silence = entry.silence(now);
        // It goes by what it was told before, and may go on running it.
        let unheard = match vm.spec.on_unseen {
            OnUnseen::Replace if !is_replaceable(vm) && !vm.is_to_be_off() => {
                ", and has not said that it knows that this VM may be replaced, so it may go on running it"
            }
            OnUnseen::Replace | OnUnseen::Keep => "",
        };
        match entry.state {
            WorkerState::Online | WorkerState::Unknown => None,
            WorkerState::Unseen if unheard.is_empty() => {
                Some(format!("worker {worker} has not been heard of for {silence} s"))
            }
            WorkerState::Unseen => Some(format!(
                "worker {worker} has not been heard of for {silence} s{unheard}: the VM is kept there, however long that takes"
            )),
            WorkerState::Gone => Some(format!(
                "worker {worker} has been gone for {silence} s{unheard}, and the VM is kept there until it is back; `orchard delete \
                 worker {worker} --force` gives it up"
            )),
        }
    }
}

impl WorkerEntry {
    /// Whole seconds since it was last heard of.
    fn silence(&self, now: Now) -> u64 {
        now.mono.saturating_sub(self.heard).as_secs()
    }

    /// Takes over what `known`, which time last passed for at `ticked`, knows of the same worker beyond the store. That it
    /// was found to be gone only just then does not count: what follows from it was perhaps not stored, and is to
    /// follow again. Its session stays closed.
    pub(super) fn keep_liveness_of(&mut self, known: &WorkerEntry, ticked: Option<Duration>) {
        (self.state, self.gone_since) = (known.state, known.gone_since);
        if known.gone_since.is_some() && known.gone_since == ticked {
            (self.state, self.gone_since) = (WorkerState::Unseen, None);
        }
        self.heard = known.heard;
        self.last_seen = known.last_seen;
        self.lease_from = known.lease_from;
        self.closed = known.closed;
        self.load = known.load;
        if drain::is_same(self.record.drain.as_ref(), known.record.drain.as_ref()) {
            self.drain_until = known.drain_until;
        }
    }
}
