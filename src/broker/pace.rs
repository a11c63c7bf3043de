//! How much a user may use: how many connections and subscriptions, and how fast it may send over all of them: a token
//! bucket for operations and one for bytes, shared by all connections of the user. Made by the embedder, handed out with
//! [`super::auth::User::pace`]; `connection` charges what it has performed and reads no more while there is a debt, so that
//! a flood ends in the sender's own socket. Pure: `now` is passed in.
//!
//! Charged afterwards, since what a read brings is only known then: a user is over its burst by one read for each thread
//! at most. Debts are bounded ([`MAX_DEBT`]), so that one careless read does not silence a slow user for minutes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest time for which a user can have to wait.
pub const MAX_DEBT: Duration = Duration::from_secs(5);

const NANOS: u128 = 1_000_000_000;

/// What a user may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// Operations in a second: messages, subscriptions and their ends, pings.
    pub operations: u32,
    /// Operations at once, after a pause.
    pub burst: u32,
    /// Bytes in a second, of everything that is sent.
    pub bytes: u32,
    /// Bytes at once, after a pause.
    pub burst_bytes: u32,
    /// Connections at a time; one too many is told so.
    pub connections: usize,
    /// Subscriptions on all of them, counted as by [`super::Limits::max_subscriptions`]: each event is copied for each.
    pub subscriptions: usize,
}

/// See the module. Two are the same only if they are one.
#[derive(Debug)]
pub struct Pace {
    rates: Rates,
    since: Instant,
    filled: Mutex<Filled>,
    connections: AtomicUsize,
    subscriptions: AtomicUsize,
}

/// The place of one connection, until it is dropped.
#[derive(Debug)]
pub struct Seat {
    pace: Arc<Pace>,
    subscriptions: usize,
}

/// When each bucket is full again, counted from [`Pace::since`].
#[derive(Debug, Default, Clone, Copy)]
struct Filled {
    operations: Duration,
    bytes: Duration,
}

impl Pace {
    /// Full buckets. A rate of zero counts as one.
    pub fn new(rates: Rates, now: Instant) -> Self {
        let (connections, subscriptions) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { rates, since: now, filled: Mutex::default(), connections, subscriptions }
    }

    /// A place for one more connection, if there is one.
    pub fn enter(self: &Arc<Self>) -> Option<Seat> {
        let seat = Seat { pace: self.clone(), subscriptions: 0 };
        (self.connections.fetch_add(1, Ordering::Relaxed) < self.rates.connections).then_some(seat)
    }

    /// Takes what was sent up to `now`.
    pub fn charge(&self, operations: u64, bytes: u64, now: Instant) {
        let now = now.saturating_duration_since(self.since);
        let Rates { operations: rate, burst, bytes: byte_rate, burst_bytes, .. } = self.rates;
        let mut filled = self.lock();
        filled.operations = taken(filled.operations, now, time_of(operations, rate), time_of(burst.into(), rate));
        let burst_bytes = time_of(burst_bytes.into(), byte_rate);
        filled.bytes = taken(filled.bytes, now, time_of(bytes, byte_rate), burst_bytes);
    }

    /// How long the user must pause, at `now`; none when it may send.
    pub fn debt(&self, now: Instant) -> Option<Duration> {
        let now = now.saturating_duration_since(self.since);
        let filled = *self.lock();
        let of_operations = now + time_of(self.rates.burst.into(), self.rates.operations);
        let of_bytes = now + time_of(self.rates.burst_bytes.into(), self.rates.bytes);
        let debt = filled.operations.saturating_sub(of_operations).max(filled.bytes.saturating_sub(of_bytes));
        (!debt.is_zero()).then_some(debt)
    }

    /// Whether both buckets are full at `now`: a new one would be no different.
    pub fn is_rested(&self, now: Instant) -> bool {
        let now = now.saturating_duration_since(self.since);
        let filled = *self.lock();
        filled.operations.max(filled.bytes) <= now
    }

    fn lock(&self) -> MutexGuard<'_, Filled> {
        // Nothing panics while it is held.
        self.filled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Whose place it is.
    pub fn pace(&self) -> &Arc<Pace> {
        &self.pace
    }

    /// Notes how many subscriptions the connection has now.
    pub fn holds(&mut self, subscriptions: usize) {
        let before = std::mem::replace(&mut self.subscriptions, subscriptions);
        let count = &self.pace.subscriptions;
        match subscriptions.checked_sub(before) {
            Some(more) => count.fetch_add(more, Ordering::Relaxed),
            None => count.fetch_sub(before - subscriptions, Ordering::Relaxed),
        };
    }

    /// Whether the user has as many subscriptions as it may.
    pub fn is_full(&self) -> bool {
        self.pace.subscriptions.load(Ordering::Relaxed) >= self.pace.rates.subscriptions
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.holds(0);
        self.pace.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PartialEq for Pace {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Pace {}

/// How long a bucket takes to get `count` at `rate`.
fn time_of(count: u64, rate: u32) -> Duration {
    let nanos = u128::from(count) * NANOS / u128::from(rate.max(1));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// When a bucket that was to be full at `full` is, after `cost` is taken from it.
fn taken(full: Duration, now: Duration, cost: Duration, burst: Duration) -> Duration {
    let most = now.saturating_add(burst).saturating_add(MAX_DEBT);
    full.max(now).saturating_add(cost).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates =
        Rates { operations: 100, burst: 50, bytes: 1_000, burst_bytes: 10_000, connections: 2, subscriptions: 5 };

    #[test]
    fn a_user_has_so_many_connections_and_subscriptions() {
        let pace = Arc::new(Pace::new(RATES, Instant::now()));
        let (mut one, mut two) = (pace.enter().unwrap(), pace.enter().unwrap());
        assert!(pace.enter().is_none() && pace.enter().is_none());
        one.holds(3);
        two.holds(1);
        assert!(!two.is_full());
        two.holds(2);
        assert!(one.is_full() && two.is_full());
        one.holds(2);
        assert!(!two.is_full());
        drop(one);
        let three = pace.enter().unwrap();
        assert!(pace.enter().is_none());
        drop((two, three));
        assert_eq!((pace.connections.load(Ordering::Relaxed), pace.subscriptions.load(Ordering::Relaxed)), (0, 0));
    }

    #[test]
    fn a_burst_is_free_and_what_is_beyond_costs_time() {
        let start = Instant::now();
        let pace = Pace::new(RATES, start);
        pace.charge(50, 0, start);
        assert_eq!(pace.debt(start), None);
        pace.charge(10, 0, start);
        assert_eq!(pace.debt(start), Some(Duration::from_millis(100)));
        let later = start + Duration::from_millis(100);
        assert_eq!(pace.debt(later), None);
        pace.charge(1, 0, later);
        assert_eq!(pace.debt(later), Some(Duration::from_millis(10)), "the burst comes back only slowly");
        assert!(!pace.is_rested(later));
        let rested = start + Duration::from_secs(1);
        assert!(pace.is_rested(rested));
        pace.charge(50, 0, rested);
        assert_eq!(pace.debt(rested), None);
    }

    #[test]
    fn bytes_count_for_themselves() {
        let start = Instant::now();
        let pace = Pace::new(RATES, start);
        pace.charge(1, 10_500, start);
        assert_eq!(pace.debt(start), Some(Duration::from_millis(500)));
        pace.charge(1, 0, start + Duration::from_millis(250));
        assert_eq!(pace.debt(start + Duration::from_millis(250)), Some(Duration::from_millis(250)));
    }

    #[test]
    fn the_rate_holds_over_time_however_it_is_asked() {
        let start = Instant::now();
        let pace = Pace::new(RATES, start);
        let (mut now, mut sent) = (start, 0u64);
        while now < start + Duration::from_secs(60) {
            match pace.debt(now) {
                Some(debt) => now += debt,
                None => {
                    pace.charge(7, 0, now);
                    sent += 7;
                }
            }
        }
        assert!((6_000..=6_100).contains(&sent), "{sent}");
    }

    #[test]
    fn no_debt_is_without_end_and_no_number_too_large() {
        let start = Instant::now();
        let pace = Pace::new(
            Rates { operations: 0, burst: u32::MAX, bytes: 0, burst_bytes: 0, connections: 0, ..RATES },
            start,
        );
        pace.charge(u64::MAX, u64::MAX, start);
        pace.charge(u64::MAX, u64::MAX, start);
        assert_eq!(pace.debt(start), Some(MAX_DEBT));
        assert_eq!(pace.debt(start + MAX_DEBT), None);
    }
}
