//! Failed logins, counted for each pair of network and account. Pure.
//!
//! Who shows the right token is let in however many failed before: nobody is locked out by a neighbour behind the same
//! address, or by an old script of his own. Guessing gains nothing by that, as tokens are too long to be guessed. What is
//! beyond a few failures is answered late, and told as a number now and then, so that it fills neither logs nor the trail.
//!
//! Names that no account has share one count for each network. Without that, whoever makes up names could fill the memory,
//! and push out the count that matters.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::model::network::network_of;

/// Failures that are answered at once and told singly: a worker or a script with a wrong token shows itself as such.
const BURST: u32 = 10;
/// How long until one of them is forgiven.
const REFILL: Duration = Duration::from_secs(6);
/// Failures counted at most: two minutes of silence forgive any flood.
const MOST: u32 = 2 * BURST;
/// How often it is told how many there were, once they are no longer told singly.
const TELL: Duration = Duration::from_secs(60);
/// Pairs remembered; the oldest are forgotten first.
const MAX_PAIRS: usize = 16 * 1024;

/// Who tries, from where: none for a name that nobody has.
type Pair = (IpAddr, Option<String>);

/// The counts.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    failures: HashMap<Pair, Count>,
}

#[derive(Debug, Clone, Copy)]
struct Count {
    failed: u32,
    since: Duration,
    /// Failures since the last that was told.
    untold: u64,
    told: Duration,
}

/// What is to be done about a failed login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Answer it and tell of it.
    Single,
    /// Answer it late and say nothing.
    Late,
    /// Answer it late, and tell of it and of so many before it.
    LateWith(u64),
}

impl Count {
    /// What is left of it at `now`: one is forgiven each [`REFILL`].
    fn at(self, now: Duration) -> Self {
        let passed = now.saturating_sub(self.since).as_millis().checked_div(REFILL.as_millis()).unwrap_or(0);
        let forgiven = u32::try_from(passed).unwrap_or(u32::MAX);
        let failed = self.failed.saturating_sub(forgiven);
        let since = if failed == 0 { now } else { self.since.saturating_add(REFILL.saturating_mul(forgiven)) };
        Self { failed, since, ..self }
    }
}

impl Attempts {
    /// Counts a failure.
    pub(super) fn failed(&mut self, address: IpAddr, account: Option<&str>, now: Duration) -> Verdict {
        let pair = (network_of(address), account.map(str::to_owned));
        if !self.failures.contains_key(&pair) && self.failures.len() >= MAX_PAIRS {
            self.make_room(now);
        }
        let count = self.failures.entry(pair).or_insert(Count { failed: 0, since: now, untold: 0, told: now });
        *count = count.at(now);
        count.failed = count.failed.saturating_add(1).min(MOST);
        let late = count.failed > BURST;
        if late && now.saturating_sub(count.told) < TELL {
            count.untold = count.untold.saturating_add(1);
            return Verdict::Late;
        }
        count.told = now;
        match (late, std::mem::take(&mut count.untold)) {
            (true, untold) => Verdict::LateWith(untold),
            (false, _) => Verdict::Single,
        }
    }

    /// Drops what is forgiven; if that is too little, the older half.
    fn make_room(&mut self, now: Duration) {
        self.failures.retain(|_, count| count.at(now).failed > 0);
        if self.failures.len() < MAX_PAIRS {
            return;
        }
        let mut ages: Vec<Duration> = self.failures.values().map(|count| count.since).collect();
        let (_, median, _) = ages.select_nth_unstable(MAX_PAIRS / 2);
        let median = *median;
        self.failures.retain(|_, count| count.since > median);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_pair_is_slowed_down_and_nobody_else() {
        let mut attempts = Attempts::default();
        let here = ip("192.0.2.1");
        for _ in 0..BURST {
            assert_eq!(attempts.failed(here, Some("a"), secs(0)), Verdict::Single);
        }
        assert_eq!(attempts.failed(here, Some("a"), secs(5)), Verdict::Late);
        for (address, account) in [(here, Some("b")), (here, None), (ip("192.0.2.2"), Some("a"))] {
            assert_eq!(attempts.failed(address, account, secs(5)), Verdict::Single);
        }
        assert_eq!(attempts.failed(here, Some("a"), secs(120)), Verdict::Single);
    }

    #[test]
    fn a_flood_is_told_once_a_minute_and_forgiven_after_two() {
        let mut attempts = Attempts::default();
        let mut told = Vec::new();
        for tenth in 0..3_000u64 {
            let now = Duration::from_millis(tenth * 100);
            match attempts.failed(ip("192.0.2.1"), Some("a"), now) {
                Verdict::Single => told.push(0),
                Verdict::LateWith(count) => told.push(count),
                Verdict::Late => {}
            }
        }
        assert_eq!(told.len(), 10 + 4, "{told:?}");
        assert!(told.iter().skip(10).all(|count| (590..=600).contains(count)), "{told:?}");
        assert_eq!(attempts.failed(ip("192.0.2.1"), Some("a"), secs(300 + 120)), Verdict::Single);
    }

    #[test]
    fn one_network_is_one_address() {
        let mut attempts = Attempts::default();
        for n in 0..BURST {
            attempts.failed(ip(&format!("2001:db8::{n:x}")), Some("a"), secs(0));
        }
        assert_eq!(attempts.failed(ip("2001:db8::ffff"), Some("a"), secs(0)), Verdict::Late);
        assert_eq!(attempts.failed(ip("2001:db8:0:1::1"), Some("a"), secs(0)), Verdict::Single);
    }

    #[test]
    fn memory_is_bounded() {
        let mut attempts = Attempts::default();
        for n in 0..40_000u32 {
            attempts.failed(IpAddr::V4(n.into()), Some("a"), secs(u64::from(n) / 1000));
        }
        assert!(attempts.failures.len() <= MAX_PAIRS);
    }
}
