//! Who holds how much of the audit trail. Pure. Rebuilt from the store at start, kept by the trail's own code.

use std::collections::{BTreeSet, HashMap};

/// How many records each holder has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Shares {
    counts: HashMap<String, u64>,
    /// The same, least first.
    order: BTreeSet<(u64, String)>,
    total: u64,
}

impl Shares {
    /// One more of `holder`.
    pub(super) fn add(&mut self, holder: &str) {
        self.add_many(holder, 1);
    }

    /// So many more.
    pub(super) fn add_many(&mut self, holder: &str, more: u64) {
        self.change(holder, |count| count.saturating_add(more));
        self.total = self.total.saturating_add(more);
    }

    /// One less.
    pub(super) fn remove(&mut self, holder: &str) {
        self.change(holder, |count| count.saturating_sub(1));
        self.total = self.total.saturating_sub(1);
    }

    /// Whoever has the most; of several, the last by name.
    pub(super) fn largest(&self) -> Option<&str> {
        self.order.last().map(|(_, holder)| holder.as_str())
    }

    /// All records.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    fn change(&mut self, holder: &str, by: impl Fn(u64) -> u64) {
        let before = self.counts.remove(holder).unwrap_or(0);
        self.order.remove(&(before, holder.to_owned()));
        let after = by(before);
        if after > 0 {
            self.counts.insert(holder.to_owned(), after);
            self.order.insert((after, holder.to_owned()));
        }
    }
}
