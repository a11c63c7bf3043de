//! How urgent a stream is: one that sends little goes before those that send much, so that typing is not held up by a copy on the
//! same connection. Pure; asked by [`super::stream`] at each write, on the client's, the relay's and the worker's side alike.
//!
//! A stream may send [`BURST`] at once and [`RATE`] for ever and stays urgent; what is beyond makes it bulk, until it has been
//! quiet. One that waits for room is not quiet: where many copy over a narrow link, each of them gets less than that rate, and wants
//! more. Among streams of one kind QUIC sends a packet of each in turn. Bulk waits for all urgent ones, so that these could hold
//! it up as long as there are enough of them to fill the link at that rate.

use std::time::{Duration, Instant};

/// How much an urgent stream may send at once, in bytes: a screen drawn anew, or some pages of output.
const BURST: u32 = 32 << 10;

/// How much it may send for ever, in bytes a second: far above what is typed and read, far below what is worth being called a
/// transfer; forty of them fill a link of 10 Mbit/s.
const RATE: u32 = 32 << 10;

/// What an urgent stream may be ahead of its rate.
const AHEAD: Duration = Duration::from_millis(BURST as u64 * 1_000 / RATE as u64);

/// How far a bulk stream must be back before it is urgent again: it does not go to and fro with each piece.
const BACK: Duration = Duration::from_millis(AHEAD.as_millis() as u64 / 2);

/// As far ahead as is remembered, so that whoever has copied for an hour can type after a second.
const FARTHEST: Duration = Duration::from_millis(AHEAD.as_millis() as u64 * 2);

/// QUIC's priorities: the larger goes first, and nothing else is at stake.
const URGENT: i32 = 0;
const BULK: i32 = -1;

/// What one stream has sent lately.
#[derive(Debug)]
pub(super) struct Urgency {
    /// When it will have been quiet for long enough for all that it sent, at [`RATE`].
    paid: Instant,
    bulk: bool,
    /// Since when it has waited for room to send.
    waits: Option<Instant>,
}

impl Urgency {
    /// A stream that begins is urgent, which is QUIC's own priority for it.
    pub(super) fn new(now: Instant) -> Self {
        Self { paid: now, bulk: false, waits: None }
    }

    /// Whether it goes first.
    pub(super) fn is_urgent(&self) -> bool {
        !self.bulk
    }

    /// Looks at it anew before it sends; its priority, if that is another one now.
    pub(super) fn look(&mut self, now: Instant) -> Option<i32> {
        if let Some(since) = self.waits.take() {
            self.paid = (self.paid + now.saturating_duration_since(since)).min(now + FARTHEST);
        }
        let ahead = self.paid.saturating_duration_since(now);
        let bulk = ahead > if self.bulk { BACK } else { AHEAD };
        let changed = std::mem::replace(&mut self.bulk, bulk) != bulk;
        changed.then_some(if bulk { BULK } else { URGENT })
    }

    /// Notes that it has something to send for which there is no room.
    pub(super) fn waits(&mut self, now: Instant) {
        self.waits.get_or_insert(now);
    }

    /// Notes that it has sent `bytes`; its priority, if that is another one now.
    pub(super) fn sent(&mut self, bytes: usize, now: Instant) -> Option<i32> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let cost = Duration::from_secs(1) * bytes.min(2 * BURST) / RATE;
        self.paid = (self.paid.max(now) + cost).min(now + FARTHEST);
        self.look(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_copies_is_bulk_and_urgent_again_after_a_while() {
        let start = Instant::now();
        let mut stream = Urgency::new(start);
        assert_eq!(stream.sent(BURST as usize, start), None, "a burst is allowed");
        assert_eq!(stream.sent(1, start), Some(BULK));
        for _ in 0..1_000 {
            assert_eq!(stream.sent(1 << 20, start), None, "it is told once");
        }
        assert!(!stream.is_urgent());
        assert_eq!(stream.look(start + FARTHEST - BACK - Duration::from_millis(1)), None);
        assert_eq!(stream.look(start + FARTHEST - BACK), Some(URGENT));
        assert!(stream.is_urgent());
        assert_eq!(stream.look(start), Some(BULK), "a clock that goes back harms nothing");
    }

    #[test]
    fn who_waits_for_room_is_not_quiet() {
        let mut now = Instant::now();
        let (mut copy, mut typing) = (Urgency::new(now), Urgency::new(now));
        assert_eq!(copy.sent(2 * BURST as usize, now), Some(BULK));
        for _ in 0..100 {
            copy.waits(now);
            typing.waits(now);
            now += Duration::from_secs(10);
            assert_eq!((copy.look(now), copy.sent(1_000, now)), (None, None), "it copies on");
            assert_eq!((typing.look(now), typing.sent(1, now)), (None, None), "however long it has to wait");
        }
        assert_eq!(copy.look(now + FARTHEST), Some(URGENT), "once it has nothing more to send");
    }

    #[test]
    fn who_types_and_reads_stays_urgent() {
        let mut now = Instant::now();
        let mut stream = Urgency::new(now);
        for second in 0..1_000 {
            now += Duration::from_secs(1);
            assert_eq!(stream.sent(RATE as usize, now), None, "second {second}");
        }
    }

    proptest! {
        #[test]
        fn what_is_told_is_what_holds_and_changes_each_time(steps in prop::collection::vec((0usize..300_000, 0u64..3_000), 1..200)) {
            let mut now = Instant::now();
            let mut stream = Urgency::new(now);
            let mut told = URGENT;
            for (bytes, ms) in steps {
                now += Duration::from_millis(ms);
                for change in [stream.look(now), stream.sent(bytes, now)].into_iter().flatten() {
                    prop_assert_ne!(change, told);
                    told = change;
                }
                prop_assert_eq!(stream.is_urgent(), told == URGENT);
                prop_assert!(stream.paid <= now + FARTHEST);
            }
        }
    }
}
