//! How much of the same is recorded: a token bucket for each source, and one over all. Strangers, who can be as many as
//! they like, have buckets of their own, so that they use up nothing of those who have proven who they are; and so do those
//! who only claim a name that exists, so that attempts to be somebody stay visible among all others. Pure.
//!
//! What is beyond is counted, and told as one record with the number as soon as there is a token again: a flood of
//! refusals shows as a flood, and fills neither the store nor the way there.

use std::collections::HashMap;
use std::time::Duration;

use crate::model::audit::Deed;

/// Records of one source that are stored at once.
const BURST: u32 = 20;
/// One more of the same source every so often, which is 360 an hour.
const PAUSE: Duration = Duration::from_secs(10);
/// Of what is only counted, one record tells for so long.
const WINDOW: Duration = Duration::from_secs(60);
/// Records of all sources that are stored at once, and how often one more: at most some 43,000 a day.
const BURST_OF_ALL: u32 = 500;
const PAUSE_OF_ALL: Duration = Duration::from_secs(2);
/// Sources remembered. Those beyond share one bucket: somebody with very many addresses gains nothing by them.
const MAX_SOURCES: usize = 4_096;

/// The buckets.
#[derive(Debug)]
pub(super) struct Limiter {
    proven: Sources,
    claimed: Sources,
    strangers: Sources,
}

#[derive(Debug)]
struct Sources {
    sources: HashMap<String, Source>,
    all: Bucket,
}

/// Who did something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// Somebody who has proven to be it.
    Proven(String),
    /// Somebody who claims a name that exists, and has proven nothing.
    Claimed(String),
    /// Somebody at this address.
    Stranger(String),
}

#[derive(Debug)]
struct Source {
    bucket: Bucket,
    /// The last that was not recorded, and how many were not.
    held: Option<(Deed, u64)>,
}

#[derive(Debug)]
struct Bucket {
    tokens: u32,
    burst: u32,
    pause: Duration,
    /// Up to when tokens have been counted.
    counted: Duration,
}

impl Bucket {
    fn new(burst: u32, pause: Duration, now: Duration) -> Self {
        Self { tokens: burst, burst, pause, counted: now }
    }

    fn fill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.counted).as_millis() / self.pause.as_millis().max(1);
        let whole = u32::try_from(passed).unwrap_or(u32::MAX);
        self.counted = self.counted.saturating_add(self.pause.saturating_mul(whole));
        self.tokens = self.tokens.saturating_add(whole).min(self.burst);
        if self.tokens == self.burst {
            self.counted = now;
        }
    }

    fn is_full(&self) -> bool {
        self.tokens == self.burst
    }
}

impl Limiter {
    pub(super) fn new(now: Duration) -> Self {
        Self { proven: Sources::new(now), claimed: Sources::new(now), strangers: Sources::new(now) }
    }

    /// What of `deed`, done by `by`, is to be recorded now, if anything.
    pub(super) fn pass(&mut self, by: &By, deed: Deed, now: Duration) -> Option<Deed> {
        match by {
            By::Proven(name) => self.proven.pass(name, deed, now),
            By::Claimed(name) => self.claimed.pass(name, deed, now),
            By::Stranger(address) => self.strangers.pass(address, deed, now),
        }
    }

    /// The same for what is of interest by its number only: one record at once, then one with the number for each
    /// [`WINDOW`]. `name` must be no other one's.
    pub(super) fn pass_summed(&mut self, name: &str, deed: Deed, now: Duration) -> Option<Deed> {
        self.proven.pass_of(name, deed, now, (1, WINDOW))
    }

    /// What was held back and may be told now. To be called every now and then; also forgets quiet sources.
    pub(super) fn flush(&mut self, now: Duration) -> Vec<Deed> {
        let mut told = self.proven.flush(now);
        told.append(&mut self.claimed.flush(now));
        told.append(&mut self.strangers.flush(now));
        told
    }
}

impl Sources {
    fn new(now: Duration) -> Self {
        Self { sources: HashMap::new(), all: Bucket::new(BURST_OF_ALL, PAUSE_OF_ALL, now) }
    }

    fn pass(&mut self, source: &str, deed: Deed, now: Duration) -> Option<Deed> {
        self.pass_of(source, deed, now, (BURST, PAUSE))
    }

    fn pass_of(&mut self, source: &str, deed: Deed, now: Duration, (burst, pause): (u32, Duration)) -> Option<Deed> {
        let known = self.sources.contains_key(source) || self.sources.len() < MAX_SOURCES;
        let source = if known { source } else { "" };
        self.all.fill(now);
        let entry = self
            .sources
            .entry(source.to_owned())
            .or_insert_with(|| Source { bucket: Bucket::new(burst, pause, now), held: None });
        entry.bucket.fill(now);
        let before = entry.held.take().map_or(0, |(_, count)| count);
        if entry.bucket.tokens > 0 && self.all.tokens > 0 {
            entry.bucket.tokens -= 1;
            self.all.tokens -= 1;
            return Some(with_count(deed, before));
        }
        entry.held = Some((deed, before.saturating_add(1)));
        None
    }

    fn flush(&mut self, now: Duration) -> Vec<Deed> {
        let mut told = Vec::new();
        self.all.fill(now);
        for source in self.sources.values_mut() {
            source.bucket.fill(now);
            if source.bucket.tokens == 0 || self.all.tokens == 0 {
                continue;
            }
            if let Some((deed, count)) = source.held.take() {
                source.bucket.tokens -= 1;
                self.all.tokens -= 1;
                told.push(with_count(deed, count.saturating_sub(1)));
            }
        }
        self.sources.retain(|_, source| source.held.is_some() || !source.bucket.is_full());
        told
    }
}

fn with_count(mut deed: Deed, more: u64) -> Deed {
    if more > 0 {
        // First, as long texts are cut at their end.
        deed.message = format!("and {more} more; the last: {}", deed.message);
    }
    deed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::audit::{AuditType, Outcome};

    fn deed(message: &str) -> Deed {
        Deed {
            kind: AuditType::LoginFailed,
            account: "x".into(),
            address: "10.0.0.1".into(),
            verb: String::new(),
            target: String::new(),
            outcome: Outcome::Refused,
            message: message.into(),
            request: String::new(),
        }
    }

    fn known(name: &str) -> By {
        By::Proven(name.into())
    }

    #[test]
    fn whoever_has_proven_nothing_uses_up_nothing_of_those_who_have() {
        let mut limiter = Limiter::new(Duration::ZERO);
        for n in 0..100_000 {
            limiter.pass(&By::Stranger(format!("s{n}")), deed("no"), Duration::ZERO);
        }
        for n in 0..100_000 {
            let passed = limiter.pass(&By::Claimed(format!("c{n}")), deed("no"), Duration::ZERO);
            assert!(n >= 100 || passed.is_some(), "strangers hide nobody who claims a name");
        }
        for n in 0..100 {
            assert!(limiter.pass(&known(&format!("k{n}")), deed("no"), Duration::ZERO).is_some());
        }
    }

    #[test]
    fn a_flood_is_told_as_a_number_and_delays_no_other_source() {
        let mut limiter = Limiter::new(Duration::ZERO);
        let passed = (0..1000).filter(|_| limiter.pass(&known("a"), deed("no"), Duration::ZERO).is_some()).count();
        assert_eq!(passed, 20);
        assert!(limiter.pass(&known("b"), deed("no"), Duration::ZERO).is_some());
        assert!(limiter.flush(Duration::from_secs(9)).is_empty());
        let told = limiter.flush(Duration::from_secs(10));
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].message, "and 979 more; the last: no");
        let next = limiter.pass(&known("a"), deed("no"), Duration::from_secs(20)).unwrap();
        assert_eq!(next.message, "no");
    }

    #[test]
    fn what_is_only_counted_is_told_once_in_each_window() {
        let mut limiter = Limiter::new(Duration::ZERO);
        let mut told = Vec::new();
        for second in 0..120 {
            let now = Duration::from_secs(second);
            for _ in 0..10 {
                told.extend(limiter.pass_summed("limit ann", deed("full"), now).map(|deed| (second, deed.message)));
            }
            told.extend(limiter.flush(now).into_iter().map(|deed| (second, deed.message)));
        }
        let (first, second) = ((0, "full".to_owned()), (60, "and 599 more; the last: full".to_owned()));
        assert_eq!(told, [first, second]);
    }

    #[test]
    fn many_addresses_gain_nothing_and_quiet_ones_are_forgotten() {
        let mut limiter = Limiter::new(Duration::ZERO);
        let passed =
            (0..100_000).filter(|n| limiter.pass(&known(&format!("s{n}")), deed("no"), Duration::ZERO).is_some());
        assert_eq!(passed.count(), 500);
        assert!(limiter.proven.sources.len() <= MAX_SOURCES + 1);
        let (mut told, mut now) = (0, Duration::ZERO);
        while !limiter.proven.sources.is_empty() {
            now += Duration::from_secs(60);
            told += limiter.flush(now).len();
        }
        assert!(told > 3_000 && now.as_secs() > 2 * 3_000, "{told} {now:?}");
    }
}
