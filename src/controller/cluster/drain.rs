//! Draining a worker: no new VMs go there, and those that are there end by themselves or, once the deadline is over, start
//! over elsewhere. For an upgrade, or to take a machine away without a loss.
//!
//! A VM that is moved goes on running where it is until its worker has stopped it; only then is it placed anew. While the
//! worker is not heard of nothing is moved: what runs there would wait for its end in vain, and go on meanwhile. VMs that
//! failed or are switched off stay with their disks and keep no drain from ending. Those that can run nowhere else are not
//! moved but waited for, with and without a deadline.
//!
//! The deadline stands in the record as a length of time. While the controller runs it counts by the monotonic clock; only
//! a controller that starts looks at the clock on the wall.

use std::time::Duration;

use super::placing::unknown_worker;
use super::{Changes, Cluster, WorkerEntry};
use crate::controller::scheduler::Shape;
use crate::model::error::ApiError;
use crate::model::event::EventType;
use crate::model::planted::{Bug, planted};
use crate::model::resources::{Resources, WORKER_NAME_LABEL};
use crate::model::vm::{PowerState, Vm, VmStatus};
use crate::model::worker::{Drain, WorkerState};
use crate::model::{Now, VmUid, WorkerName};

/// VMs named in messages; more help nobody.
const NAMED: usize = 3;

/// When `drain` moves what is left, by the monotonic clock; `None` = it does not.
pub(super) fn until(drain: &Drain, now: Now) -> Option<Duration> {
    let left = Duration::from_secs(drain.deadline_s?).saturating_sub(drain.began.until(now.wall));
    Some(now.mono.saturating_add(left))
}

/// Whether both are one and the same drain.
pub(super) fn is_same(one: Option<&Drain>, other: Option<&Drain>) -> bool {
    let what = |drain: &Drain| (drain.began, drain.deadline_s);
    one.map(what) == other.map(what)
}

impl Cluster {
    /// Has a worker get rid of its VMs: of those that still run there after `deadline_s`, too, if there is one. Asked for
    /// again it counts anew. The worker does not need to be online.
    ///
    /// # Errors
    /// [`crate::model::error::ErrorCode::NotFound`].
    pub fn drain_worker(
        &mut self,
        name: &WorkerName,
        deadline_s: Option<u64>,
        now: Now,
        changes: &mut Changes,
    ) -> Result<(), ApiError> {
        let who_stays = self.who_stays(name);
        let entry = self.workers.get_mut(name).ok_or_else(|| unknown_worker(name))?;
        let drain = Drain { began: now.wall, deadline_s, done: false };
        entry.drain_until = until(&drain, now);
        entry.record.drain = Some(drain);
        let mut message = match deadline_s {
            Some(0) => "its VMs are moved at once".to_owned(),
            Some(seconds) => format!("VMs that still run there in {seconds} s are moved then"),
            None => "its VMs are waited for".to_owned(),
        };
        if deadline_s.is_some() {
            message.push_str(&who_stays);
        }
        changes.say(message.clone());
        changes.workers.insert(name.clone());
        changes.worker_event(&mut self.last_event, now, name, EventType::Draining, message);
        self.note_standing(name);
        Ok(())
    }

    /// Moves what is to be moved by now, and notes which workers are empty.
    pub(super) fn go_on_draining(&mut self, now: Now, changes: &mut Changes) {
        for name in self.watched.draining.iter().cloned().collect::<Vec<_>>() {
            let moved = self.to_be_moved(&name, now);
            for uid in moved {
                let Some(vm) = self.vm_record(uid) else { continue };
                let held = if planted(Bug::DrainedTooSoon) { Resources::default() } else { vm.assigned.clone() };
                self.start_elsewhere(uid, held, &format!("worker {name} is drained"), now, changes);
            }
            self.note_whether_drained(&name, now, changes);
        }
    }

    /// Whether `vm` would wait for nobody knows how long if it were moved away: it was asked for on that very worker, or sees
    /// folders of its host, or no other worker that takes VMs, once it is heard of and empty, could take it.
    fn runs_only_on(&self, vm: &Vm, worker: &WorkerName) -> bool {
        let asked_for = vm.spec.labels.get(WORKER_NAME_LABEL).is_some_and(|name| name == worker.as_str());
        let bound = asked_for || vm.bound_to.as_ref() == Some(worker);
        bound || !self.scheduler.could_go_elsewhere(worker, &Shape::of(&vm.spec))
    }

    fn to_be_moved(&self, name: &WorkerName, now: Now) -> Vec<VmUid> {
        let due = |entry: &&WorkerEntry| {
            let heard_of = entry.state == WorkerState::Online && entry.live.is_some();
            heard_of && entry.drain_until.is_some_and(|until| until <= now.mono)
        };
        let placed = self.workers.get(name).filter(due).into_iter().flat_map(|entry| &entry.vms);
        let runs = |vm: &&Vm| vm.status != VmStatus::Failed && vm.spec.power_state == PowerState::Running;
        // One that is held since a backup was restored may run elsewhere already.
        let moves = |vm: &&Vm| runs(vm) && !self.is_held(vm.uid) && !self.runs_only_on(vm, name);
        placed.filter_map(|uid| self.vm_record(*uid)).filter(moves).map(|vm| vm.uid).collect()
    }

    /// Says which VMs that run on a worker are not moved when it is drained, if there are any.
    fn who_stays(&self, name: &WorkerName) -> String {
        let placed = self.workers.get(name).into_iter().flat_map(|entry| &entry.vms);
        let placed = placed.filter_map(|uid| self.vm_record(*uid)).filter(|vm| !vm.assigned.is_empty());
        let bound: Vec<&str> = placed.filter(|vm| self.runs_only_on(vm, name)).map(|vm| vm.name.as_str()).collect();
        if bound.is_empty() {
            return String::new();
        }
        let named = bound.get(..NAMED).unwrap_or(&bound).join(", ");
        let more = if bound.len() > NAMED { ", …" } else { "" };
        format!("; {} that can run on no other worker are waited for ({named}{more})", bound.len())
    }

    fn note_whether_drained(&mut self, name: &WorkerName, now: Now, changes: &mut Changes) {
        let Some(entry) = self.workers.get(name) else { return };
        let placed = entry.vms.iter().filter_map(|uid| self.vm_record(*uid));
        let left = placed.filter(|vm| !vm.assigned.is_empty()).count();
        let leaving = entry.leaving.iter().filter_map(|id| self.leaving.get(id));
        let done = left == 0 && leaving.filter(|leaving| !leaving.held.is_empty()).count() == 0;
        let at_rest = entry.vms.len();
        let Some(drain) = self.workers.get_mut(name).and_then(|entry| entry.record.drain.as_mut()) else { return };
        if drain.done == done {
            return;
        }
        drain.done = done;
        changes.workers.insert(name.clone());
        if done {
            let rest = if at_rest == 0 { String::new() } else { format!("; VMs that do not run are left: {at_rest}") };
            let message = format!("nothing runs there any more{rest}");
            changes.worker_event(&mut self.last_event, now, name, EventType::Drained, message);
        }
    }
}

impl WorkerEntry {
    /// Whether its operator wants no new VMs on it.
    pub(super) fn takes_nothing(&self) -> bool {
        self.record.scheduling_paused || self.record.drain.is_some()
    }

    /// Ends a drain; whether there was one.
    pub(super) fn end_drain(&mut self) -> bool {
        self.drain_until = None;
        self.record.drain.take().is_some()
    }
}
