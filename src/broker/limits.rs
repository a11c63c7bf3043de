//! What clients may use, and how the broker reckons with it. Whoever builds a broker sets it; `router` keeps it.

use std::time::Duration;

use tokio::time::Instant;

use super::delivery::MAX_BATCH;

/// Longer than any broker runs: what lies beyond it never comes. Clocks cannot be asked for more than they can count.
const FOREVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// What clients may use. The defaults are nats-server's, but for the time to authenticate, and the subscriptions and
/// strangers, which it does not bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Largest message body in bytes, headers included. No larger than [`Limits::most_payload`]: a broker that is asked for
    /// more allows that much.
    pub max_payload: usize,
    /// Longest line of an operation in bytes.
    pub max_control_line: usize,
    /// Subscriptions of one client. One counts as another for each 16 tokens of its subject, or for each 256 bytes of
    /// subject, queue group and sid if that is more: so this bounds the memory that a client's subscriptions take, at
    /// about 2 KiB each.
    pub max_subscriptions: usize,
    /// Clients at a time, those in the TLS handshake among them. Whoever is one too many is told so in the clear.
    pub max_connections: usize,
    /// Of those, clients of one network (an IPv4 address, a /64 of IPv6) that have not yet said who they are, so that a
    /// stranger cannot take the room of all. A /48 has four times as many, and all networks together a quarter of the room,
    /// or 64. A fleet behind one address that comes back at once comes in turns. With half of them taken, new ones have
    /// three seconds to say who they are.
    pub max_unproven_per_network: usize,
    /// Bytes waiting for one client, above which it is cut off.
    pub max_pending: usize,
    /// Time within which a client must take what is written to it.
    pub write_deadline: Duration,
    /// Time between pings.
    pub ping_interval: Duration,
    /// Pings that may go unanswered.
    pub max_pings_out: u32,
    /// Time within which a client must say who it is. nats-server's two seconds are too few when a thousand workers come
    /// back at once.
    pub auth_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_payload: 1024 * 1024,
            max_control_line: 4096,
            max_subscriptions: 100_000,
            max_connections: 64 * 1024,
            max_unproven_per_network: 1024,
            max_pending: 64 * 1024 * 1024,
            write_deadline: Duration::from_secs(10),
            ping_interval: Duration::from_secs(120),
            max_pings_out: 2,
            auth_timeout: Duration::from_secs(10),
        }
    }
}

/// What a frame has besides its body and what clients put on its line: operation, sizes, ends of lines. And room for what
/// the broker says by itself meanwhile.
const FRAME_SLACK: usize = 2 * 1024;

impl Limits {
    /// The largest payload in bytes that the other limits leave room for: a message, with subject and reply of its
    /// publisher's line and the id of its receiver's, behind a batch that is not quite full yet, must not cut off a client
    /// that has nothing else pending.
    pub fn most_payload(&self) -> usize {
        let lines = self.max_control_line.saturating_mul(2);
        self.max_pending.saturating_sub(MAX_BATCH).saturating_sub(lines).saturating_sub(FRAME_SLACK)
    }
}

/// The point in time `duration` after `now`, or one so far away that nobody lives to see it.
pub(super) fn after(now: Instant, duration: Duration) -> Instant {
    now.checked_add(duration.min(FOREVER)).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_duration_is_too_long_to_wait_for() {
        let now = Instant::now();
        assert_eq!(after(now, Duration::from_secs(1)), now + Duration::from_secs(1));
        assert_eq!(after(now, Duration::MAX), now + FOREVER);
    }
}
