//! Sessions that survive the loss of what carries them: a link that is down, a relay or a worker whose process is replaced.
//!
//! A session has two ends, one in the user's program ([`client`]) and one beside the guest (the worker's session keeper,
//! `worker::sessions`). Each numbers the bytes it sends and keeps them until the other end has handed them on; when the
//! stream between them is lost the client opens another one, both say how far they got, and both go on from there. Relay
//! and worker carry the bytes and understand none of them.
//!
//! ```text
//! program ⇄ client ⇄ end ═══ frames over any stream: QUIC, relay, QUIC, Unix socket ═══ end ⇄ keeper ⇄ guest
//! ```
//!
//! | file | what |
//! |---|---|
//! | `frame` | the frames and their bytes; pure |
//! | [`end`] | one end of a session; pure, made of `outbound` and `inbound` |
//! | [`drive`] | moves bytes between an end, its local side and the stream that carries it |
//! | [`client`] | the client's end: what a program reads and writes, and who dials again |
//! | [`guest`] | the guest's end: holds the connection into the guest while nobody is there |
//!
//! # What holds
//!
//! * What arrives is what was sent, in order, once, wherever the stream was cut; half-closes included.
//! * Back-pressure reaches through: an end keeps at most [`WINDOW`] bytes that were not handed on, then takes no more from its
//!   side. One direction that stands still does not hold up the other.
//! * A lost stream is no end. What ends a session: both directions finished, one side broke it off or broke down (the
//!   other end is told the reason), the protocol was broken, or nobody came back for [`GIVE_UP_AFTER`] ([`KEPT_FOR`]).
//! * Who resumes a session must be let in anew, by a ticket like that for a new one, to the same port of the same copy, and must
//!   know the session's secret name.

pub mod client;
pub mod drive;
pub mod end;
mod frame;
pub mod guest;
mod inbound;
mod outbound;
#[cfg(test)]
mod tests;

use std::fmt;
use std::time::Duration;

use super::reason::Reason;

/// The protocol's number. An end that does not know another's number says so before any session begins.
pub const VERSION: u16 = 1;

/// The most bytes of one direction that an end keeps until the other has handed them on: 10 MB/s at a round trip of 100 ms.
/// Memory is taken only as it is needed.
pub const WINDOW: u32 = 1 << 20;

/// How many may be under way before the other end has said how many it takes.
pub const FIRST_WINDOW: u32 = 64 << 10;

/// After so many bytes it is acknowledged at once that they were handed on: a window is worth many acknowledgements.
pub const ACK_EVERY: u64 = (WINDOW / 16) as u64;

/// For how long an acknowledgement waits for something to go along with; only memory is held meanwhile.
pub const ACK_DELAY: Duration = Duration::from_millis(500);

/// For how long a client tries to come back. Longer than any restart of a part takes, and than most tunnels for trains.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(5 * 60);

/// For how long the guest's end waits for its client: as long as that tries, and until the last try has come through.
pub const KEPT_FOR: Duration = Duration::from_secs(GIVE_UP_AFTER.as_secs() + 30);

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Both directions came to their ends.
    Finished,
    /// The other end broke it off.
    Reset(Reason),
    /// This end did.
    Broken(Reason),
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Over::Finished => f.write_str("finished"),
            Over::Reset(reason) | Over::Broken(reason) => reason.fmt(f),
        }
    }
}

/// How the other end broke the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A frame of a kind that there is not.
    #[error("a frame of unknown kind {0}")]
    Unknown(u8),
    /// A data frame that is empty or too long.
    #[error("a data frame of {0} bytes")]
    Length(u16),
    /// Something before the hello, or a second hello.
    #[error("a frame out of order")]
    Order,
    /// A hello that fits nothing of what was sent.
    #[error("a hello from {received}, where {from} to {to} was possible")]
    Hello {
        /// What it says was received.
        received: u64,
        /// What was acknowledged before.
        from: u64,
        /// What was sent.
        to: u64,
    },
    /// Bytes are missing.
    #[error("data at {offset}, where {expected} was expected")]
    Gap {
        /// Where the data begins.
        offset: u64,
        /// Where it should.
        expected: u64,
    },
    /// More than was allowed to be under way.
    #[error("more data than the window allows")]
    Window,
    /// Acknowledges what was never sent.
    #[error("an acknowledgement of {0}, which was not sent")]
    Ack(u64),
    /// The stream's end is not where it was, or something comes behind it.
    #[error("the stream's end or something behind it at {0}")]
    Finish(u64),
}
