//! Which workers time has to look at, kept in order so that a tick costs nothing while there are none: those that are gone
//! and those that are drained. Kept by [`Cluster::note_standing`], which is called whenever either changes.

use std::collections::BTreeSet;

use super::{Cluster, WorkerEntry};
use crate::model::WorkerName;
use crate::model::worker::WorkerState;

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Watched {
    /// Workers whose lease is over for certain.
    pub(super) gone: BTreeSet<WorkerName>,
    /// Workers that are to be rid of their VMs.
    pub(super) draining: BTreeSet<WorkerName>,
}

impl Watched {
    fn note(&mut self, name: &WorkerName, entry: &WorkerEntry) {
        keep(&mut self.gone, name, entry.state == WorkerState::Gone);
        keep(&mut self.draining, name, entry.record.drain.is_some());
    }

    /// That worker is none any more.
    pub(super) fn forget(&mut self, name: &WorkerName) {
        self.gone.remove(name);
        self.draining.remove(name);
    }
}

fn keep(set: &mut BTreeSet<WorkerName>, name: &WorkerName, is_in: bool) {
    if !is_in {
        set.remove(name);
    } else if !set.contains(name) {
        set.insert(name.clone());
    }
}

impl Cluster {
    /// Takes note of what is true of a worker now: what the scheduler is to know of it, and whether time has to look at it.
    pub(super) fn note_standing(&mut self, name: &WorkerName) {
        if let Some(entry) = self.workers.get(name) {
            self.scheduler.put_worker(&entry.record.info, entry.standing());
            self.watched.note(name, entry);
        }
    }

    /// Panics unless a look at all workers finds the same ones. Each tick of a test and of the simulation asks.
    #[cfg(test)]
    pub(super) fn check_watched(&self) {
        let mut found = Watched::default();
        self.workers.iter().for_each(|(name, entry)| found.note(name, entry));
        assert_eq!(self.watched, found);
    }
}
