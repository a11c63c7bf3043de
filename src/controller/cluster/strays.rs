//! Copies that a worker has found on its machine although nobody here wishes for them: told of, and left alone.

use super::{Changes, Cluster};
use crate::model::error::ApiError;
use crate::model::event::EventType;
use crate::model::vm::Vm;
use crate::model::{CopyId, Now, WorkerName};

/// Unknown copies of which each worker may tell: far more than a machine can hold. Those beyond are not told of.
const MAX_STRAYS: usize = 1024;
/// The same with those of VMs that are known, which decide what may start after a backup was restored.
const MAX_KNOWN_STRAYS: usize = 16 * MAX_STRAYS;

/// What a worker has told of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stray {
    /// The name it bears there.
    pub(super) name: String,
    /// Whether it ran when it was told of; not, if the worker does not say.
    pub(super) running: bool,
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
        let Some(entry) = self.workers.get_mut(worker) else { return Ok(()) };
        let most = if known { MAX_KNOWN_STRAYS } else { MAX_STRAYS };
        let told = entry.strays.get(&id);
        if told.is_none() && entry.strays.len() >= most {
            return Ok(());
        }
        let (first, name) = (told.is_none(), name.chars().take(crate::model::MAX_NAME_LEN).collect::<String>());
        let stray = Stray { name: name.clone(), running: running.unwrap_or(false) };
        entry.strays.insert(id, stray);
        if !self.adopt(id.uid, now, changes) && first {
            let what = if known { "which is not that VM's copy" } else { "which is not known here" };
            let message = format!("runs or holds VM {name} ({id}), {what}; it is left alone");
            changes.worker_event(&mut self.last_event, now, worker, EventType::Stray, message);
        }
        Ok(())
    }

    /// The worker says something else of the copy now.
    pub(super) fn is_stray_no_more(&mut self, worker: &WorkerName, id: CopyId) {
        if let Some(entry) = self.workers.get_mut(worker) {
            entry.strays.remove(&id);
        }
    }
}
