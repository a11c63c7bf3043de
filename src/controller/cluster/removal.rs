//! Taking a worker out of the cluster.
//!
//! Its key is revoked and its session ended in the same step, before anything starts elsewhere: whatever it still says is
//! refused, and its connections are closed by the shell before the next assignments go out. What its machine does with
//! copies that it still runs is out of reach from then on; this is why it takes `force` while there are any. They are
//! remembered (`given_up`), and removed should the machine ever come back.

use super::given_up::GivenUp;
use super::{Changes, Cluster};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::event::EventType;
use crate::model::resources::Resources;
use crate::model::{CopyId, Now, VmName, VmUid, WorkerName};

/// VMs named in the refusal; more help nobody.
const NAMED: usize = 3;

impl Cluster {
    /// Deletes a worker. With `force` the VMs on it fail, and those that shall start over do so elsewhere.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`]; [`ErrorCode::Conflict`] while VMs are placed on it, unless `force`.
    pub fn delete_worker(
        &mut self,
        worker: &WorkerName,
        force: bool,
        now: Now,
        changes: &mut Changes,
    ) -> Result<(), ApiError> {
        let entry = self.workers.get(worker);
        if entry.is_none() && !self.access.keys.contains_key(worker) {
            let what =
                format!("there is no worker named {worker} to delete; `orchard list workers` shows those there are");
            return Err(ApiError::new(ErrorCode::NotFound, what));
        }
        let placed: Vec<VmUid> = entry.map(|entry| entry.vms.iter().copied().collect()).unwrap_or_default();
        if !placed.is_empty() && !force {
            return Err(ApiError::new(ErrorCode::Conflict, self.still_placed(worker, &placed)));
        }
        let leaving = entry.into_iter().flat_map(|entry| &entry.leaving).filter_map(|id| self.leaving.get(id));
        let running: Vec<&str> = leaving.filter(|l| !l.held.is_empty()).map(|l| l.name.as_str()).collect();
        if !running.is_empty() && !force {
            let (count, named) = (running.len(), running.get(..NAMED).unwrap_or(&running).join(", "));
            let (copies, they) =
                if count == 1 { ("copy of a VM that was", "it") } else { ("copies of VMs that were", "they") };
            let what = format!(
                "{count} {copies} moved away or deleted may still run on worker {worker} ({named}), which has not \
                 said that {they} ended; wait until it is heard of, or give up with `orchard delete worker {worker} \
                 --force`: VMs among them then start elsewhere, even if this machine goes on running them"
            );
            return Err(ApiError::new(ErrorCode::Conflict, what));
        }
        if !force && self.restored.waits_for(worker) {
            let what = format!(
                "a backup was restored, and worker {worker} has not told since what it has: VMs that run there may start \
                 elsewhere, too, if it is not waited for. Start it; or, if its machine is off for good, `orchard delete \
                 worker {worker} --force`"
            );
            return Err(ApiError::new(ErrorCode::Conflict, what));
        }
        // What it has told of is nobody's to adopt any more.
        if let Some(entry) = self.workers.get_mut(worker) {
            entry.strays.clear();
        }
        // The token that it joined with ends too: who has this machine may have that as well.
        if let Some(joined_with) = self.access.keys.get(worker).map(|key| key.joined_with.clone()) {
            self.end_joins(|token| token.id == joined_with, changes);
        }
        self.revoke(worker, changes);
        let given_up = self.copies_on(worker, now);
        let forced = if force { ", by force" } else { "" };
        changes.say(format!("{} VMs were placed on it{forced}", placed.len()));
        for uid in placed {
            self.abandon(worker, uid, now, changes);
        }
        let leaving: Vec<CopyId> =
            self.workers.get(worker).map(|entry| entry.leaving.iter().copied().collect()).unwrap_or_default();
        for id in leaving {
            self.copy_gone(worker, id, now, changes)?;
        }
        for copy in given_up {
            self.give_up(copy, changes);
        }
        self.scheduler.remove_worker(worker);
        self.forget_images_of(worker);
        self.watched.forget(worker);
        if self.workers.remove(worker).is_some() {
            changes.workers.insert(worker.clone());
            changes.worker_event(&mut self.last_event, now, worker, EventType::Deleted, String::new());
        }
        changes.assign.remove(worker);
        self.no_longer_awaited(worker, now, changes);
        Ok(())
    }

    /// Every copy that may be on `worker`, placed there or still to be removed.
    fn copies_on(&self, worker: &WorkerName, now: Now) -> Vec<GivenUp> {
        let Some(entry) = self.workers.get(worker) else { return Vec::new() };
        let copy = |name: &VmName, id: CopyId, held: &Resources| GivenUp {
            name: name.clone(),
            id,
            worker: worker.clone(),
            machine_id: entry.record.info.machine_id.clone(),
            held: held.clone(),
            at: now.wall,
        };
        let placed = entry.vms.iter().filter_map(|uid| self.vm_record(*uid));
        let leaving = entry.leaving.iter().filter_map(|id| self.leaving.get(id));
        let placed = placed.map(|vm| copy(&vm.name, vm.copy_id(), &vm.assigned));
        placed.chain(leaving.map(|leaving| copy(&leaving.name, leaving.id, &leaving.held))).collect()
    }

    /// Gives up the copy of a VM on a worker that is taken out.
    fn abandon(&mut self, worker: &WorkerName, uid: VmUid, now: Now, changes: &mut Changes) {
        let why = format!("its worker {worker} was taken out of the cluster; what became of it there is not known");
        self.failed(worker, uid, why, now, changes);
        if self.workers.get_mut(worker).is_some_and(|entry| entry.vms.remove(&uid)) {
            self.scheduler.release(worker, &Resources::default(), 1);
        }
        // One that stays failed has no worker any more; one that starts over has none yet.
        if let Some(vm) = self.names.get(&uid).and_then(|name| self.vms.get_mut(name))
            && vm.worker.as_ref() == Some(worker)
        {
            vm.worker = None;
            vm.assigned = Resources::default();
            changes.vms.insert(uid);
        }
    }

    fn still_placed(&self, worker: &WorkerName, placed: &[VmUid]) -> String {
        let names: Vec<&str> =
            placed.iter().filter_map(|uid| self.names.get(uid)).take(NAMED).map(VmName::as_str).collect();
        let more = if placed.len() > names.len() { ", …" } else { "" };
        let (vms, them) = if placed.len() == 1 { ("VM is", "it") } else { ("VMs are", "them") };
        format!(
            "{} {vms} placed on worker {worker} ({}{more}); delete {them} first, or give {them} up with `orchard delete worker \
             {worker} --force`: VMs there then fail, and those that shall start over do so elsewhere, even if this machine \
             goes on running them; should it ever join again, it removes them",
            placed.len(),
            names.join(", ")
        )
    }
}
