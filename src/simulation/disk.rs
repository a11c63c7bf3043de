//! The controller's disk: what `store::Store::commit` would have made durable, table by table, and how it can go wrong.
//! A commit is all or nothing, as LMDB's are.

use std::collections::BTreeMap;

use super::clock::Millis;
use crate::controller::cluster::{Changes, Cluster, GivenUp, Leaving, Records, Restoration, Spent, SpentKey};
use crate::model::account::WorkerKey;
use crate::model::event::{Event, EventNumber};
use crate::model::vm::Vm;
use crate::model::worker::Worker;
use crate::model::{CopyId, VmUid, WorkerName};

/// What is durable.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    pub(super) vms: BTreeMap<VmUid, Vm>,
    pub(super) workers: BTreeMap<WorkerName, Worker>,
    pub(super) leaving: BTreeMap<CopyId, Leaving>,
    pub(super) given_up: BTreeMap<CopyId, GivenUp>,
    pub(super) spent: BTreeMap<SpentKey, Spent>,
    pub(super) keys: BTreeMap<WorkerName, WorkerKey>,
    pub(super) restored: Restoration,
    pub(super) last_event: EventNumber,
    /// Up to where events were published, as far as a commit has noted it.
    pub(super) published: EventNumber,
}

/// How the disk fares, in times per thousand and milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Health {
    /// Commits that fail.
    pub(super) failing: u64,
    /// Readings of everything that fail.
    pub(super) unreadable: u64,
    /// Commits that take long, and how long.
    pub(super) slow: u64,
    pub(super) how_slow: Millis,
}

/// The newest form of everything that a batch changed; `None` = gone.
#[derive(Clone, Debug)]
pub(super) struct Delta {
    pub(super) vms: Vec<(VmUid, Option<Vm>)>,
    pub(super) workers: Vec<(WorkerName, Option<Worker>)>,
    pub(super) leaving: Vec<(CopyId, Option<Leaving>)>,
    pub(super) given_up: Vec<(CopyId, Option<GivenUp>)>,
    pub(super) spent: Vec<(SpentKey, Option<Spent>)>,
    pub(super) keys: Vec<(WorkerName, Option<WorkerKey>)>,
    pub(super) restored: Option<Restoration>,
    pub(super) events: Vec<Event>,
    pub(super) last_event: EventNumber,
    pub(super) published: EventNumber,
}

impl Delta {
    /// What `Store::commit` would write.
    pub(super) fn of(cluster: &Cluster, changes: &Changes, published: EventNumber) -> Self {
        Self {
            vms: changes.vms.iter().map(|uid| (*uid, cluster.vm_record(*uid).cloned())).collect(),
            workers: changes.workers.iter().map(|name| (name.clone(), cluster.worker_record(name).cloned())).collect(),
            leaving: changes.leaving.iter().map(|id| (*id, cluster.leaving_record(*id).cloned())).collect(),
            given_up: changes.given_up.iter().map(|id| (*id, cluster.given_up_record(*id).cloned())).collect(),
            spent: changes.spent.iter().map(|id| (id.clone(), cluster.spent_record(id).cloned())).collect(),
            keys: changes.keys.iter().map(|name| (name.clone(), cluster.key_record(name).cloned())).collect(),
            restored: changes.restored.then(|| cluster.restored_record().clone()),
            events: changes.events.clone(),
            last_event: cluster.last_event(),
            published,
        }
    }
}

impl Disk {
    pub(super) fn records(&self) -> Records {
        Records {
            vms: self.vms.values().cloned().map(Box::new).collect(),
            workers: self.workers.values().cloned().collect(),
            leaving: self.leaving.values().cloned().collect(),
            given_up: self.given_up.values().cloned().collect(),
            spent: self.spent.values().cloned().collect(),
            keys: self.keys.values().cloned().collect(),
            restored: self.restored.clone(),
            last_event: self.last_event,
            ..Records::default()
        }
    }

    pub(super) fn write(&mut self, delta: Delta) {
        put(&mut self.vms, delta.vms);
        put(&mut self.workers, delta.workers);
        put(&mut self.leaving, delta.leaving);
        put(&mut self.given_up, delta.given_up);
        put(&mut self.spent, delta.spent);
        put(&mut self.keys, delta.keys);
        if let Some(restored) = delta.restored {
            self.restored = restored;
        }
        self.last_event = delta.last_event;
        self.published = delta.published;
    }
}

fn put<K: Ord, V>(table: &mut BTreeMap<K, V>, records: Vec<(K, Option<V>)>) {
    for (key, record) in records {
        match record {
            Some(record) => drop(table.insert(key, record)),
            None => drop(table.remove(&key)),
        }
    }
}
