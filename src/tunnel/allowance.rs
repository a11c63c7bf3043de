//! How many streams a peer may open at the same time, and how many of them it may fill: few at first, and more as it uses them.
//! By the worker and the relay, each for what the other side opens.
//!
//! quinn makes two entries for each stream that it allows, in advance: 8,192 of them cost a millisecond and half a megabyte
//! for each connection, and a fleet that comes back opens thousands of connections, of which most never carry a session.

use quinn::{Connection, VarInt};

use super::endpoint::make_room;

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

/// Of how many streams a client may fill the windows: of those that its sessions have, and of one at least that is yet to show
/// its ticket. So what a client can have the relay hold follows from the sessions that it was granted, not from the streams
/// that it may open.
#[derive(Debug)]
pub struct Room {
    sessions: u32,
    granted: u32,
}

impl Room {
    /// The least that there is room for: 16 MiB, which one session that copies at full speed never waits for.
    pub const LEAST: u32 = 4;

    /// Of a client with [`Room::LEAST`] granted and no session.
    pub fn new() -> Self {
        Self { sessions: 0, granted: Self::LEAST }
    }

    /// What is granted now.
    pub fn granted(&self) -> u32 {
        self.granted
    }

    /// A session more.
    pub fn enter(&mut self, connection: &Connection) {
        self.sessions = self.sessions.saturating_add(1);
        self.fit(connection);
    }

    /// One less.
    pub fn leave(&mut self) {
        self.sessions = self.sessions.saturating_sub(1);
    }

    fn fit(&mut self, connection: &Connection) {
        if let Some(granted) = self.next() {
            make_room(connection, granted);
        }
    }

    /// What is to be granted now, if that is more: in steps, as each is told to the client. Of what is granted anew with each byte
    /// that is read, quinn may leave an eighth of the whole untold. Nothing is taken back: to quinn that is a debt which only bytes
    /// that are read pay, and who lets room shrink and grow again would be granted the difference each time.
    fn next(&mut self) -> Option<u32> {
        let before = self.granted;
        while self.granted - self.granted / 8 <= self.sessions && self.granted < u32::MAX {
            self.granted = self.granted.saturating_mul(2);
        }
        (self.granted != before).then_some(self.granted)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn there_is_always_room_for_one_stream_beside_all_sessions_and_not_for_many() {
        let mut room = Room::new();
        let mut told = Room::LEAST;
        for sessions in 0..1_000 {
            room.sessions = sessions;
            told = room.next().unwrap_or(told);
            assert!(told - told / 8 > sessions, "{told} for {sessions}");
            assert!(told <= Room::LEAST.max(sessions * 4 + 3), "{told} for {sessions}");
        }
        room.leave();
        assert_eq!(room.next(), None, "nothing is taken back");
        room.sessions = u32::MAX;
        assert_eq!(room.next(), Some(u32::MAX));
    }

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
