//! Amounts of named resources: what a worker offers, what a VM takes. Arithmetic never wraps.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Logical CPU cores.
pub const LOGICAL_CORES: &str = "org.cirruslabs.logical-cores";
/// Memory in MiB.
pub const MEMORY_MIB: &str = "org.cirruslabs.memory-mib";
/// Slots for macOS guests (Apple's licence allows two a host).
pub const TART_VMS: &str = "org.cirruslabs.tart-vms";

/// The label that every worker has of itself: its name.
pub const WORKER_NAME_LABEL: &str = "worker-name";

/// Named amounts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Resources(pub BTreeMap<String, u64>);

impl Resources {
    /// The amount of `name`; absent counts as zero.
    pub fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Adds `other`, saturating.
    pub fn add(&mut self, other: &Resources) {
        for (name, amount) in &other.0 {
            let sum = self.0.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    /// Takes `other` away, never below zero.
    pub fn subtract(&mut self, other: &Resources) {
        for (name, amount) in &other.0 {
            if let Some(left) = self.0.get_mut(name) {
                *left = left.saturating_sub(*amount);
            }
        }
    }

    /// The first resource of `wanted` that `self` (an offer) with `used` taken cannot give.
    pub fn lacking<'a>(&self, used: &Resources, wanted: &'a Resources) -> Option<&'a str> {
        let lacks = |name: &str, amount: u64| amount > self.get(name).saturating_sub(used.get(name));
        wanted.0.iter().find(|(name, amount)| **amount > 0 && lacks(name, **amount)).map(|(name, _)| name.as_str())
    }

    /// Whether no amount is given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<const N: usize> From<[(&str, u64); N]> for Resources {
    fn from(pairs: [(&str, u64); N]) -> Self {
        Self(pairs.into_iter().map(|(name, amount)| (name.to_owned(), amount)).collect())
    }
}

/// Key/value labels: a VM's are required of its worker.
pub type Labels = BTreeMap<String, String>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shrunk_worker_has_nothing_left_rather_than_everything() {
        let offer = Resources::from([("x", 1)]);
        let used = Resources::from([("x", 2)]);
        assert_eq!(offer.lacking(&used, &Resources::from([("x", 1)])), Some("x"));
        assert_eq!(offer.lacking(&used, &Resources::from([("x", 0)])), None);
    }
}
