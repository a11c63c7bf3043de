//! Counts what happened on synthetic hosts, for the invariants of tests: above all, that no VM ever ran twice at once.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::model::VmUid;

/// The counts, shared by as many hosts as a test has.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Counts>);

/// What was counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Copies created, whole or not.
    pub creates: u64,
    /// Processes started.
    pub starts: u64,
    /// The same, by VM.
    pub starts_of: BTreeMap<VmUid, u64>,
    /// Connections made into guests.
    pub dials: u64,
    /// Copies running now, by VM.
    pub running: BTreeMap<VmUid, u64>,
    /// The most copies of one VM that ever ran at the same time: must never pass 1.
    pub most_copies: u64,
    /// The VMs of which more than one ran at the same time.
    pub doubled: Vec<VmUid>,
}

impl Ledger {
    /// The counts so far.
    pub fn counts(&self) -> Counts {
        self.lock().clone()
    }

    pub(super) fn created(&self) {
        self.lock().creates += 1;
    }

    pub(super) fn dialled(&self) {
        self.lock().dials += 1;
    }

    pub(super) fn started(&self, uid: VmUid) {
        let mut counts = self.lock();
        counts.starts += 1;
        *counts.starts_of.entry(uid).or_default() += 1;
        let copies = counts.running.entry(uid).or_default();
        *copies += 1;
        let copies = *copies;
        counts.most_copies = counts.most_copies.max(copies);
        if copies == 2 {
            counts.doubled.push(uid);
        }
    }

    pub(super) fn ended(&self, uid: VmUid) {
        let mut counts = self.lock();
        if let Some(copies) = counts.running.get_mut(&uid) {
            *copies -= 1;
            if *copies == 0 {
                counts.running.remove(&uid);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
