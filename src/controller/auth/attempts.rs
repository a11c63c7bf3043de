//! Failed logins, counted for each pair of address and account, so that guessing is slow and nobody else is kept out: not
//! the account from other addresses, not other accounts from this address. Pure.
//!
//! Names that no account has share one count for each address. Without that, whoever makes up names could fill the memory,
//! and push out the count that matters.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// Failures that are let through at once: a worker or a script with a wrong token shows itself as such.
const BURST: u32 = 10;
/// How long until one more is let through.
const REFILL: Duration = Duration::from_secs(6);
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
}

impl Count {
    /// What is left of it at `now`: one is forgiven each [`REFILL`].
    fn at(self, now: Duration) -> Self {
        let passed = now.saturating_sub(self.since).as_millis().checked_div(REFILL.as_millis()).unwrap_or(0);
        let forgiven = u32::try_from(passed).unwrap_or(u32::MAX);
        let failed = self.failed.saturating_sub(forgiven);
        let since = if failed == 0 { now } else { self.since.saturating_add(REFILL.saturating_mul(forgiven)) };
        Self { failed, since }
    }
}

impl Attempts {
    /// Whether an attempt of this pair may be looked at now.
    pub(super) fn may_try(&self, address: IpAddr, account: Option<&str>, now: Duration) -> bool {
        let count = self.failures.get(&pair(address, account));
        count.is_none_or(|count| count.at(now).failed < BURST)
    }

    /// Counts a failure.
    pub(super) fn failed(&mut self, address: IpAddr, account: Option<&str>, now: Duration) {
        let pair = pair(address, account);
        if !self.failures.contains_key(&pair) && self.failures.len() >= MAX_PAIRS {
            self.make_room(now);
        }
        let count = self.failures.entry(pair).or_insert(Count { failed: 0, since: now });
        *count = count.at(now);
        count.failed = count.failed.saturating_add(1);
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

/// One machine has a whole /64 of IPv6.
fn pair(address: IpAddr, account: Option<&str>) -> Pair {
    let address = match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    };
    (address, account.map(str::to_owned))
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
            assert!(attempts.may_try(here, Some("a"), secs(0)));
            attempts.failed(here, Some("a"), secs(0));
        }
        assert!(!attempts.may_try(here, Some("a"), secs(5)));
        for (address, account) in [(here, Some("b")), (here, None), (ip("192.0.2.2"), Some("a"))] {
            assert!(attempts.may_try(address, account, secs(0)));
        }
        assert!(attempts.may_try(here, Some("a"), secs(6)));
        attempts.failed(here, Some("a"), secs(6));
        assert!(!attempts.may_try(here, Some("a"), secs(7)));
        assert!(attempts.may_try(here, Some("a"), secs(3_600)));
    }

    #[test]
    fn one_network_is_one_address() {
        let mut attempts = Attempts::default();
        for n in 0..BURST {
            attempts.failed(ip(&format!("2001:db8::{n:x}")), Some("a"), secs(0));
        }
        assert!(!attempts.may_try(ip("2001:db8::ffff"), Some("a"), secs(0)));
        assert!(attempts.may_try(ip("2001:db8:0:1::1"), Some("a"), secs(0)));
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
