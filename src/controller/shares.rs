//! Who holds how much of something that is bounded for all together, so that whoever holds the most makes room. Pure. By the
//! audit trail of the store, and by the core for spent idempotency keys.

use std::collections::{BTreeMap, BTreeSet};

/// How many of them each holder has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shares<H> {
    counts: BTreeMap<H, u64>,
    /// The same, least first.
    order: BTreeSet<(u64, H)>,
    total: u64,
}

impl<H> Default for Shares<H> {
    fn default() -> Self {
        Self { counts: BTreeMap::new(), order: BTreeSet::new(), total: 0 }
    }
}

impl<H: Clone + Ord> Shares<H> {
    /// One more of `holder`.
    pub(super) fn add(&mut self, holder: H) {
        self.add_many(holder, 1);
    }

    /// So many more.
    pub(super) fn add_many(&mut self, holder: H, more: u64) {
        self.change(holder, |count| count.saturating_add(more));
        self.total = self.total.saturating_add(more);
    }

    /// One less.
    pub(super) fn remove(&mut self, holder: H) {
        self.change(holder, |count| count.saturating_sub(1));
        self.total = self.total.saturating_sub(1);
    }

    /// Whoever has the most; of several, the last by name.
    pub(super) fn largest(&self) -> Option<&H> {
        self.order.last().map(|(_, holder)| holder)
    }

    /// All of them.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    fn change(&mut self, holder: H, by: impl Fn(u64) -> u64) {
        let before = self.counts.remove(&holder).unwrap_or(0);
        self.order.remove(&(before, holder.clone()));
        let after = by(before);
        if after > 0 {
            self.counts.insert(holder.clone(), after);
            self.order.insert((after, holder));
        }
    }
}
