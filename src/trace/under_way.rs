//! Things that go on after the request by which they began: which trace they belong to, for a while. Bounded, and empty where
//! nobody traces.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::TraceParent;

/// Things remembered; those beyond belong to no trace.
const MOST: usize = 1_024;
/// For so long: an image of 100 GB is fetched in half an hour, and what comes later is another story.
const KEPT: Duration = Duration::from_secs(45 * 60);

/// See the module.
#[derive(Debug)]
pub struct UnderWay<K>(Mutex<HashMap<K, (TraceParent, Instant)>>);

impl<K> Default for UnderWay<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq> UnderWay<K> {
    fn all(&self) -> MutexGuard<'_, HashMap<K, (TraceParent, Instant)>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `key` belongs to the trace of `parent` from now on.
    pub fn note(&self, key: K, parent: TraceParent) {
        let (mut all, now) = (self.all(), Instant::now());
        if all.len() >= MOST {
            all.retain(|_, (_, since)| now.saturating_duration_since(*since) < KEPT);
        }
        if all.len() >= MOST {
            let oldest = all.values().map(|(_, since)| *since).min();
            all.retain(|_, (_, since)| Some(*since) != oldest);
        }
        all.insert(key, (parent, now));
    }

    /// What `key` is a part of.
    pub fn of(&self, key: &K) -> Option<TraceParent> {
        self.all().get(key).filter(|(_, since)| since.elapsed() < KEPT).map(|(parent, _)| *parent)
    }

    /// The same, which is forgotten here.
    pub fn take(&self, key: &K) -> Option<TraceParent> {
        self.all().remove(key).filter(|(_, since)| since.elapsed() < KEPT).map(|(parent, _)| parent)
    }

    /// Whether nothing belongs to any trace, as is usual.
    pub fn is_empty(&self) -> bool {
        self.all().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_are_remembered() {
        let parent = TraceParent::parse("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").unwrap();
        let under_way = UnderWay::default();
        assert!(under_way.is_empty());
        let last = 2 * MOST;
        (0..=last).for_each(|key| under_way.note(key, parent));
        assert!(under_way.all().len() <= MOST);
        assert_eq!((under_way.of(&0), under_way.of(&last)), (None, Some(parent)));
        assert_eq!((under_way.take(&last), under_way.take(&last)), (Some(parent), None));
    }
}
