//! How many streams a peer may open at the same time: few at first, and more as it uses them. By the worker and the relay,
//! each for what the other side opens.
//!
//! quinn makes two entries for each stream that it allows, in advance: 8,192 of them cost a millisecond and half a megabyte
//! for each connection, and a fleet that comes back opens thousands of connections, of which most never carry a session.

use quinn::{Connection, VarInt};

/// Streams that are allowed from the beginning.
pub const FIRST_STREAMS: u32 = 64;

/// What is allowed on one connection. Never less than before: QUIC cannot take an allowance back.
#[derive(Debug)]
pub struct Allowance {
    granted: u32,
    most: u32,
}

impl Allowance {
    /// For a connection on which [`FIRST_STREAMS`] are allowed, and `most` may come to be.
    pub fn up_to(most: u32) -> Self {
        Self { granted: FIRST_STREAMS.min(most), most }
    }

    /// Notes that `open` streams are open. Half of the room is always free, so that whoever opens many at once waits for
    /// one round trip at each doubling and never for a session to end.
    pub fn fit(&mut self, open: usize, connection: &Connection) {
        if let Some(granted) = self.next(open) {
            connection.set_max_concurrent_bi_streams(VarInt::from_u32(granted));
        }
    }

    /// What is to be allowed now, if that is more than is.
    fn next(&mut self, open: usize) -> Option<u32> {
        let before = self.granted;
        let open = u32::try_from(open).unwrap_or(u32::MAX);
        while self.granted < self.most && open.saturating_mul(2) >= self.granted {
            self.granted = self.granted.saturating_mul(2).min(self.most);
        }
        (self.granted > before).then_some(self.granted)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_doubles_when_half_of_it_is_used_and_ends_at_the_most() {
        let mut allowance = Allowance::up_to(200);
        assert_eq!(allowance.next(31), None);
        assert_eq!(allowance.next(32), Some(128));
        assert_eq!(allowance.next(0), None, "nothing is taken back");
        assert_eq!(allowance.next(64), Some(200));
        assert_eq!(allowance.next(200), None);
    }

    proptest! {
        #[test]
        fn there_is_room_for_one_more_until_there_is_the_most(most in 1u32..20_000, open in prop::collection::vec(0usize..20_000, 1..50)) {
            let mut allowance = Allowance::up_to(most);
            for open in open {
                allowance.next(open);
                prop_assert!(allowance.granted <= most);
                prop_assert!(allowance.granted as usize > open || allowance.granted == most);
            }
        }
    }
}
