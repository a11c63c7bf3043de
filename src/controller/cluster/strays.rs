//! Copies that a worker has found on its machine although nobody here wishes for them: told of, and left alone.

use std::ops::Bound::{Included, Unbounded};
use std::time::Duration;

use super::{Changes, Cluster, Leaving, WorkerEntry};
use crate::bus::strays::StrayView;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::event::EventType;
use crate::model::resources::Resources;
use crate::model::vm::Vm;
use crate::model::worker::WorkerState;
use crate::model::{CopyId, Now, SessionId, WorkerName};

/// Unknown copies of which each worker may tell: far more than a machine can hold. Those beyond are not told of.
const MAX_STRAYS: usize = 1024;
/// The same with those of VMs that are known, which decide what may start after a backup was restored.
const MAX_KNOWN_STRAYS: usize = 16 * MAX_STRAYS;

/// Strays of one worker that time deletes at once; more follow with the next tick.
const UNKNOWN_AT_ONCE: usize = 64;

/// What a worker has told of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stray {
    /// The name it bears there.
    pub(super) name: String,
    /// Whether it ran when it was told of; not, if the worker does not say.
    pub(super) running: bool,
    /// In which session it was told of last.
    session: Option<SessionId>,
    /// When it was told of first in that, by the monotonic clock.
    since: Duration,
}

impl Cluster {
    /// `worker` has found a copy that it was not told of.
    pub(super) fn stray(
        &mut self,
        worker: &WorkerName,
        id: CopyId,
        (name, running): (&str, Option<bool>),
        now: Now,
        changes: &mut Changes,
    ) -> Result<(), ApiError> {
        if self.reclaim_stray(worker, id, now, changes) {
            return Ok(());
        }
        let vm = self.vm_record(id.uid);
        let own = |vm: &Vm| vm.worker.as_ref() == Some(worker) && vm.copy_id() == id;
        if vm.is_some_and(|vm| own(vm) && !self.is_kept_from_worker(vm)) {
            // Named since, which the worker will hear of.
            return Ok(());
        }
        let known = vm.is_some();
        if let Some(vm) = self.names.get(&id.uid).and_then(|name| self.vms.get(name)).filter(|vm| vm.uid == id.uid) {
            self.restored.is_told(vm, id.attempt);
        }
        let Some(entry) = self.workers.get_mut(worker) else { return Ok(()) };
        let most = if known { MAX_KNOWN_STRAYS } else { MAX_STRAYS };
        let told = entry.strays.get(&id);
        if told.is_none() && entry.strays.len() >= most {
            return Ok(());
        }
        let (first, name) = (told.is_none(), name.chars().take(crate::model::MAX_NAME_LEN).collect::<String>());
        let session = entry.live.as_ref().map(|live| live.session);
        let since = told.filter(|told| told.session == session).map_or(now.mono, |told| told.since);
        let stray = Stray { name: name.clone(), running: running.unwrap_or(false), session, since };
        entry.strays.insert(id, stray);
        if !self.adopt(id.uid, now, changes) && first {
            let what = if known { "which is not that VM's copy" } else { "which is not known here" };
            let message = format!("runs or holds VM {name} ({id}), {what}; it is left alone");
            changes.worker_event(&mut self.last_event, now, worker, EventType::Stray, message);
        }
        Ok(())
    }

    /// The worker says something else of the copy now, which is true of it: were a stray forgotten at any other word, one that
    /// says now this, now that would be told of without end.
    pub(super) fn is_stray_no_more(&mut self, worker: &WorkerName, id: CopyId) {
        if let Some(entry) = self.workers.get_mut(worker) {
            entry.strays.remove(&id);
        }
    }

    /// At most `limit` stray copies, of `worker` or of all, after `after`, and whether there are more.
    pub fn strays(
        &self,
        worker: Option<&WorkerName>,
        after: Option<&(WorkerName, CopyId)>,
        limit: usize,
    ) -> (Vec<StrayView>, bool) {
        let from = worker.or(after.map(|(name, _)| name)).map_or(Unbounded, |name| Included(name.clone()));
        let workers =
            self.workers.range((from, Unbounded)).take_while(|(name, _)| worker.is_none_or(|only| only == *name));
        let all = workers.flat_map(|(name, entry)| entry.strays.iter().map(move |(id, stray)| (name, *id, stray)));
        let mut rest = all.filter(|(name, id, _)| after.is_none_or(|(last, copy)| (last, copy) < (*name, id)));
        let view = |(name, id, stray): (&WorkerName, CopyId, &Stray)| StrayView {
            worker: name.clone(),
            id,
            name: stray.name.clone(),
            running: stray.running,
            deleting: self.leaving.contains_key(&id),
        };
        let page = rest.by_ref().take(limit).map(view).collect();
        (page, rest.next().is_some())
    }

    /// Has `worker` remove a stray copy. One that a VM wants, or may want while it is held, is none.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] when the worker has told of no such copy; [`ErrorCode::Conflict`] when a VM may want it.
    pub fn delete_stray(
        &mut self,
        worker: &WorkerName,
        id: CopyId,
        now: Now,
        changes: &mut Changes,
    ) -> Result<(), ApiError> {
        let stray = self.workers.get(worker).and_then(|entry| entry.strays.get(&id)).cloned();
        let Some(stray) = stray else {
            let what = format!(
                "worker {worker} has told of no stray copy {}/{}; `orchard list strays` shows those there are. What a worker \
                 has is known once it has registered",
                id.uid, id.attempt
            );
            return Err(ApiError::new(ErrorCode::NotFound, what));
        };
        if let Some(vm) = self.vm_record(id.uid).filter(|vm| self.may_want(vm, id)) {
            let name = &vm.name;
            let what = format!(
                "VM {name} may go on with this copy once all workers have told what they have (`orchard explain vm {name}`); \
                 wait for that, or delete the VM first"
            );
            return Err(ApiError::new(ErrorCode::Conflict, what));
        }
        changes.say(format!("copy {id} of VM {}", stray.name));
        if self.leaving.contains_key(&id) {
            return Ok(());
        }
        let message = format!("is to delete its stray copy of VM {} ({id})", stray.name);
        changes.worker_event(&mut self.last_event, now, worker, EventType::Stray, message);
        // The name is the worker's word; where it cannot be one, the copy's uid stands for it.
        let name = stray.name.parse().or_else(|_| id.uid.to_string().parse())?;
        // That a VM is gone is told of those that were known.
        self.insert_leaving(Leaving {
            name,
            id,
            worker: worker.clone(),
            held: Resources::default(),
            deleted: false,
            replaceable: false,
        });
        changes.leaving.insert(id);
        self.reassign(worker, changes);
        Ok(())
    }

    /// Has workers whose operators want that (`orchard worker run --delete-unknown`) remove strays that have been told of, in
    /// the worker's present session, for as long as they said. By the same rules as for [`Cluster::delete_stray`], so never what
    /// a VM may want; and nothing at all while it is not known what was there before a backup was restored.
    pub(super) fn delete_unknown(&mut self, now: Now, changes: &mut Changes) {
        if !self.restored_record().waiting.is_empty() {
            return;
        }
        let due = |entry: &WorkerEntry| {
            let live = entry.live.as_ref().filter(|_| entry.state == WorkerState::Online)?;
            let after = live.delete_unknown?;
            let old =
                |stray: &Stray| stray.session == Some(live.session) && now.mono.saturating_sub(stray.since) >= after;
            let due = entry.strays.iter().filter(|(id, stray)| old(stray) && !self.leaving.contains_key(*id));
            Some(due.map(|(id, _)| *id).take(UNKNOWN_AT_ONCE).collect::<Vec<_>>())
        };
        let with_strays = self.workers.iter().filter(|(_, entry)| !entry.strays.is_empty());
        let due: Vec<(WorkerName, Vec<CopyId>)> =
            with_strays.filter_map(|(name, entry)| Some((name.clone(), due(entry)?))).collect();
        for (name, ids) in due {
            for id in ids {
                // One that a VM may want is kept, and asked about again.
                let _ = self.delete_stray(&name, id, now, changes);
            }
        }
    }

    /// Whether the copy is the VM's, or may become it.
    fn may_want(&self, vm: &Vm, id: CopyId) -> bool {
        vm.copy_id() == id && vm.worker.is_some() || self.is_held(vm.uid) && id.attempt >= vm.copy_id().attempt
    }
}
