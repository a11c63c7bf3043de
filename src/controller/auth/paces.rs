//! How much each user of the embedded broker may use of it: connections, and how fast it may send. One pace for a name, kept
//! here and not with its connections, so that whoever comes back does not come back with a full bucket.
//!
//! What they protect is the controller's own way to the broker: it takes a hundred thousand messages a second, so that
//! many users at their bound leave room for the others. What is beyond waits in the sender's own socket.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::broker::pace::{Pace, Rates};

/// An account may have 128 requests under way: programs that wait for answers stay below, and a burst of 2,000 of eight
/// accounts at once fits into what waits for the API here.
pub(super) const OF_ACCOUNT: Rates = Rates {
    operations: 5_000,
    burst: 2_000,
    bytes: 32 << 20,
    burst_bytes: 16 << 20,
    connections: 500,
    subscriptions: 10_000,
};
/// A worker with 500 VMs whose scripts all print has 500 batches of lines on the way, and its heartbeat behind them: a
/// quarter of a second. It has one connection, and for some minutes those that a bad network left behind.
pub(super) const OF_WORKER: Rates = Rates {
    operations: 2_000,
    burst: 2_000,
    bytes: 32 << 20,
    burst_bytes: 16 << 20,
    connections: 200,
    subscriptions: 1_000,
};
/// All machines that join with one token: each has said what it wants after some five operations, and a fleet that comes
/// with one token is in at forty a second.
pub(super) const OF_JOINING: Rates = Rates {
    operations: 200,
    burst: 400,
    bytes: 1 << 20,
    burst_bytes: 1 << 20,
    connections: 2_000,
    subscriptions: 10_000,
};

/// Paces kept: those in use, and those that are not rested. Names are only of users who have proven who they are.
const MAX_KEPT: usize = 16 * 1024;

/// The paces.
#[derive(Debug, Default)]
pub(super) struct Paces(Mutex<HashMap<String, Arc<Pace>>>);

impl Paces {
    /// That of the user `name`: the same for as long as one of its connections is there, or it matters.
    pub(super) fn of(&self, name: &str, rates: Rates, now: Instant) -> Arc<Pace> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pace) = kept.get(name) {
            return pace.clone();
        }
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, pace| Arc::strong_count(pace) > 1 || !pace.is_rested(now));
        }
        // More users than that, and all of them busy: the newest share one for their kind.
        let name = if kept.len() < MAX_KEPT { name.to_owned() } else { format!("any at {}", rates.operations) };
        kept.entry(name).or_insert_with(|| Arc::new(Pace::new(rates, now))).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_back_finds_its_debt() {
        let (paces, now) = (Paces::default(), Instant::now());
        let pace = paces.of("ann", OF_ACCOUNT, now);
        pace.charge(10_000, 0, now);
        drop(pace);
        assert!(paces.of("ann", OF_ACCOUNT, now).debt(now).is_some());
        assert!(paces.of("bob", OF_ACCOUNT, now).debt(now).is_none());
    }

    #[test]
    fn memory_is_bounded_and_who_is_here_keeps_the_same() {
        let (paces, now) = (Paces::default(), Instant::now());
        let here = paces.of("here", OF_ACCOUNT, now);
        for n in 0..3 * MAX_KEPT {
            paces.of(&format!("join/{n}"), OF_JOINING, now);
        }
        assert!(paces.0.lock().unwrap().len() <= MAX_KEPT);
        assert_eq!(paces.of("here", OF_ACCOUNT, now), here);
        let busy: Vec<_> = (0..MAX_KEPT + 50).map(|n| paces.of(&format!("busy/{n}"), OF_JOINING, now)).collect();
        assert!(paces.0.lock().unwrap().len() <= MAX_KEPT + 1);
        assert_eq!(busy.last(), busy.get(busy.len() - 2), "the last ones share theirs");
    }
}
