//! From when on what was published counts as published for good. Pure; used by the publisher.
//!
//! Our own broker is part of this process: what its subscribers have not taken yet is lost with it. One that takes nothing for
//! as long as this is cut off and knows it, so what is older is with everybody who listens.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// What was published within this time before a crash is published again after it.
const LAG: Duration = Duration::from_secs(10);
/// Numbers that came within this time count together, as the first of them.
const STEP: Duration = Duration::from_millis(250);

/// Numbers that do not count yet: some forty at most.
#[derive(Debug, Default)]
pub(super) struct Lag(VecDeque<(Instant, u64)>);

impl Lag {
    /// All up to `number` is published.
    pub(super) fn note(&mut self, number: u64, now: Instant) {
        match self.0.back_mut() {
            Some((at, last)) if now.saturating_duration_since(*at) < STEP => *last = number,
            _ => self.0.push_back((now, number)),
        }
    }

    /// Up to where it counts by now, if that is news.
    pub(super) fn settled(&mut self, now: Instant) -> Option<u64> {
        let mut settled = None;
        while let Some((_, number)) = self.0.pop_front_if(|(at, _)| now.saturating_duration_since(*at) >= LAG) {
            settled = Some(number);
        }
        settled
    }

    /// When there will be news.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.front().map(|(at, _)| *at + LAG)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_count_after_the_lag_and_are_few() {
        let (mut lag, start) = (Lag::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!((lag.next(), lag.settled(start)), (None, None));
        for n in 0..20_000 {
            lag.note(n, at(n));
            if let Some(settled) = lag.settled(at(n)) {
                assert!(n - settled > 9_700, "{settled} counts at {n}");
            }
            assert!(lag.0.len() <= 41);
        }
        assert_eq!(lag.settled(at(40_000)), Some(19_999));
        assert_eq!((lag.next(), lag.settled(at(50_000))), (None, None));
        lag.note(20_000, at(50_000));
        assert_eq!(lag.next(), Some(at(60_000)));
        assert_eq!((lag.settled(at(59_999)), lag.settled(at(60_000))), (None, Some(20_000)));
    }
}
