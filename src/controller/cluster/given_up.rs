//! Copies that were given up with their worker: it was taken out of the cluster while its machine still had them. They are
//! remembered, so that the machine is told to stop and remove them should it ever come back; a copy that nobody here gave
//! up is never removed.
//!
//! A copy is one by uid and attempt, and neither is used again: a VM that starts over does so in another attempt. So what is
//! removed can be no copy that anybody wants.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Changes, Cluster, Leaving};
use crate::model::event::EventType;
use crate::model::resources::Resources;
use crate::model::{CopyId, Now, Timestamp, VmName, WorkerName};

/// Copies remembered: those of many broken workers with hundreds of VMs each. The oldest go first; should one of them turn
/// up after all, it is a stray, which is told of and left alone.
const MAX_GIVEN_UP: usize = 10_000;
/// How long they are remembered: a machine that comes back from a year in a cupboard still gives its disk back.
const REMEMBERED: Duration = Duration::from_secs(366 * 24 * 3600);

/// A copy that was given up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenUp {
    /// The VM's name, as it was.
    pub name: VmName,
    /// Which copy.
    pub id: CopyId,
    /// Who had it.
    pub worker: WorkerName,
    /// The machine that was that worker, as in `WorkerInfo`.
    #[serde(default)]
    pub machine_id: String,
    /// What it may still take there.
    #[serde(default, skip_serializing_if = "Resources::is_empty")]
    pub held: Resources,
    /// When.
    pub at: Timestamp,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(super) struct GivenUps {
    records: BTreeMap<CopyId, GivenUp>,
    by_age: BTreeSet<(Timestamp, CopyId)>,
}

impl GivenUps {
    pub(super) fn load(records: Vec<GivenUp>) -> Self {
        Self {
            by_age: records.iter().map(|record| (record.at, record.id)).collect(),
            records: records.into_iter().map(|record| (record.id, record)).collect(),
        }
    }

    fn insert(&mut self, record: GivenUp) {
        self.remove(record.id);
        self.by_age.insert((record.at, record.id));
        self.records.insert(record.id, record);
    }

    fn remove(&mut self, id: CopyId) -> Option<GivenUp> {
        let record = self.records.remove(&id)?;
        self.by_age.remove(&(record.at, id));
        Some(record)
    }
}

impl Cluster {
    /// The stored form of a copy that was given up; `None` once it is not remembered as such any more.
    pub fn given_up_record(&self, id: CopyId) -> Option<&GivenUp> {
        self.given_up.records.get(&id)
    }

    /// Every copy that is remembered as given up.
    pub fn given_up_records(&self) -> impl Iterator<Item = &GivenUp> {
        self.given_up.records.values()
    }

    /// Remembers a copy.
    pub(super) fn give_up(&mut self, record: GivenUp, changes: &mut Changes) {
        changes.given_up.insert(record.id);
        self.given_up.insert(record);
        while self.given_up.records.len() > MAX_GIVEN_UP
            && let Some((_, oldest)) = self.given_up.by_age.first().copied()
        {
            self.given_up.remove(oldest);
            changes.given_up.insert(oldest);
        }
    }

    /// Forgets those that are too old.
    pub(super) fn forget_given_up(&mut self, now: Now, changes: &mut Changes) {
        while let Some((at, id)) = self.given_up.by_age.first().copied()
            && at.until(now.wall) > REMEMBERED
        {
            self.given_up.remove(id);
            changes.given_up.insert(id);
        }
    }

    /// The machine that is `worker` has registered: what was given up with it, under whatever name it was known then, is to
    /// be removed from it. What it takes there counts until that is done.
    pub(super) fn reclaim(&mut self, worker: &WorkerName, now: Now, changes: &mut Changes) {
        let Some(machine_id) = self.machine_of(worker) else { return };
        let found: Vec<CopyId> = self
            .given_up
            .records
            .values()
            .filter(|record| record.machine_id == machine_id)
            .map(|record| record.id)
            .collect();
        let removed = found.into_iter().filter(|id| self.remove_from(worker, *id, changes)).count();
        if removed > 0 {
            let message = format!("came back; {removed} copies of VMs that were given up are removed from it");
            changes.worker_event(&mut self.last_event, now, worker, EventType::Stray, message);
        }
    }

    /// Whether the copy that `worker` has found on its machine was given up there, and is now to be removed. It counts as
    /// there when either the worker's name or its machine is the same: what another worker says of it is not believed, as
    /// it would be forgotten here and go on there.
    pub(super) fn reclaim_stray(&mut self, worker: &WorkerName, id: CopyId, now: Now, changes: &mut Changes) -> bool {
        let Some(record) = self.given_up.records.get(&id) else { return false };
        if record.worker != *worker && self.machine_of(worker).as_ref() != Some(&record.machine_id) {
            return false;
        }
        let message = format!("holds VM {} ({id}), which was given up; it is removed", record.name);
        let removed = self.remove_from(worker, id, changes);
        if removed {
            changes.worker_event(&mut self.last_event, now, worker, EventType::Stray, message);
        }
        removed
    }

    /// Makes a copy that was given up one that `worker` is to remove.
    fn remove_from(&mut self, worker: &WorkerName, id: CopyId, changes: &mut Changes) -> bool {
        let Some(record) = self.given_up.remove(id) else { return false };
        changes.given_up.insert(id);
        // Neither can be, as attempts are not used again. Whatever may come: a copy that is wanted is not removed.
        let wanted = self.vm_record(id.uid).is_some_and(|vm| vm.worker.is_some() && vm.copy_id() == id);
        if wanted || self.leaving.contains_key(&id) {
            return false;
        }
        // That the VM was deleted, if it was, has been told when it was given up.
        let GivenUp { name, held, .. } = record;
        self.insert_leaving(Leaving { name, id, worker: worker.clone(), held, deleted: false, replaceable: false });
        changes.leaving.insert(id);
        self.reassign(worker, changes);
        true
    }

    fn machine_of(&self, worker: &WorkerName) -> Option<String> {
        let machine_id = &self.workers.get(worker)?.record.info.machine_id;
        (!machine_id.is_empty()).then(|| machine_id.clone())
    }
}
