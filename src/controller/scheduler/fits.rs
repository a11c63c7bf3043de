//! What one shape knows: the workers that it fits on, best first, and who of it waits.

use std::collections::{BTreeMap, BTreeSet};

use super::Place;
use super::node::{Node, Rank};
use super::shape::Shape;
use crate::model::settings::Profile;
use crate::model::{VmUid, WorkerName};

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Fits {
    /// By preference, then by name, so that the same state gives the same placement.
    workers: BTreeSet<(Rank, WorkerName)>,
    pub(super) waiting: BTreeSet<VmUid>,
    /// The first of those who wait, as the scheduler has noted it.
    pub(super) head: Option<Place>,
    /// How many have passed it.
    pub(super) overtaken: u32,
    /// The worker that is kept free for it.
    pub(super) reservation: Option<WorkerName>,
    pub(super) used_at: u64,
}

impl Fits {
    /// Of a shape that is used for the first time.
    pub(super) fn used_at(clock: u64) -> Self {
        Self { used_at: clock, ..Self::default() }
    }

    /// Looks at every worker.
    pub(super) fn find(&mut self, shape: &Shape, nodes: &BTreeMap<WorkerName, Node>, profile: Profile) {
        let fitting = nodes.iter().filter(|(_, node)| node.takes(shape).is_ok());
        self.workers = fitting.map(|(name, node)| (node.rank(shape, profile), name.clone())).collect();
    }

    pub(super) fn insert(&mut self, rank: Rank, name: WorkerName) {
        self.workers.insert((rank, name));
    }

    pub(super) fn remove(&mut self, rank: Rank, name: &WorkerName) {
        if !self.workers.is_empty() {
            self.workers.remove(&(rank, name.clone()));
        }
    }

    pub(super) fn best(&self) -> Option<&WorkerName> {
        self.workers.first().map(|(_, name)| name)
    }

    pub(super) fn len(&self) -> usize {
        self.workers.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.workers.is_empty()
    }
}
