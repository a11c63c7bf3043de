//! VMs for which something is due at a moment of the monotonic clock: the end of a pause after a failure, or of their time to
//! live. Pure.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::model::VmUid;

/// See the module. The first that is due is found at once, however many wait.
#[derive(Clone, Debug, Default)]
pub(super) struct Pauses {
    until: HashMap<VmUid, Duration>,
    order: BTreeSet<(Duration, VmUid)>,
}

impl Pauses {
    /// Has `uid` wait until then, and no more until what was said before.
    pub(super) fn insert(&mut self, uid: VmUid, until: Duration) {
        self.remove(uid);
        self.until.insert(uid, until);
        self.order.insert((until, uid));
    }

    /// `uid` waits no longer, if it did.
    pub(super) fn remove(&mut self, uid: VmUid) {
        if let Some(until) = self.until.remove(&uid) {
            self.order.remove(&(until, uid));
        }
    }

    /// Whether it waits.
    pub(super) fn contains(&self, uid: VmUid) -> bool {
        self.until.contains_key(&uid)
    }

    /// Takes out one that waits no longer at `now`, the first first.
    pub(super) fn pop_due(&mut self, now: Duration) -> Option<VmUid> {
        let (_, uid) = self.order.first().copied().filter(|(until, _)| *until <= now)?;
        self.remove(uid);
        Some(uid)
    }

    /// Each, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (VmUid, Duration)> + '_ {
        self.order.iter().map(|(until, uid)| (*uid, *until))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pauses_are_what_a_scan_of_a_plain_map_finds(
            steps in prop::collection::vec((0..3u8, 0..6u128, 0..20u64), 0..60),
        ) {
            let (mut pauses, mut plain) = (Pauses::default(), HashMap::new());
            for (what, uid, at) in steps {
                let (uid, at) = (VmUid(uuid::Uuid::from_u128(uid)), Duration::from_secs(at));
                match what {
                    0 => { pauses.insert(uid, at); plain.insert(uid, at); }
                    1 => { pauses.remove(uid); plain.remove(&uid); }
                    _ => {
                        let first = plain.iter().map(|(uid, until)| (*until, *uid)).min();
                        let due = first.filter(|(until, _)| *until <= at).map(|(_, uid)| uid);
                        due.map(|uid| plain.remove(&uid));
                        prop_assert_eq!(pauses.pop_due(at), due);
                    }
                }
                prop_assert_eq!(pauses.iter().collect::<HashMap<_, _>>(), plain.clone());
                prop_assert_eq!(pauses.contains(uid), plain.contains_key(&uid));
            }
        }
    }
}
