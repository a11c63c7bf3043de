//! Why a stream or a connection ended early, as the code that QUIC carries. Numbers are wire format: never reuse one.

use std::fmt;
use std::io;

use quinn::{ApplicationClose, ConnectionError, VarInt};

/// Why a side gave up. Sent with a stream's reset or stop, or a connection's close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// This direction is not wanted any more; the other goes on. Also what QUIC sends for a stream that nobody reads.
    Closed = 0,
    /// The user's program let go of the session without ending it.
    Aborted = 1,
    /// The guest reset its connection.
    GuestReset = 2,
    /// The connection between relay and client broke.
    ClientLost = 3,
    /// The connection between relay and worker broke.
    WorkerLost = 4,
    /// The side is shutting down.
    ShuttingDown = 5,
    /// The other side broke the protocol.
    Protocol = 6,
    /// The other side did not prove who it is in time, or not at all.
    Unauthenticated = 7,
    /// A newer connection of the same worker took over.
    Replaced = 8,
    /// Nothing happened for long.
    Idle = 9,
    /// The account that opened it may not do so any more.
    Revoked = 10,
    /// The account that opened it has a new token.
    Rotated = 11,
    /// The worker was deleted.
    WorkerDeleted = 12,
    /// A code of a later release.
    Unknown = 255,
}

const ALL: &[Reason] = &[
    Reason::Closed,
    Reason::Aborted,
    Reason::GuestReset,
    Reason::ClientLost,
    Reason::WorkerLost,
    Reason::ShuttingDown,
    Reason::Protocol,
    Reason::Unauthenticated,
    Reason::Replaced,
    Reason::Idle,
    Reason::Revoked,
    Reason::Rotated,
    Reason::WorkerDeleted,
];

impl Reason {
    /// The number as a session's own frames carry it.
    pub(super) fn number(self) -> u32 {
        self as u32
    }

    /// The reason for such a number.
    pub(super) fn from_number(number: u32) -> Self {
        ALL.iter().copied().find(|reason| reason.number() == number).unwrap_or(Self::Unknown)
    }

    /// The number on the wire.
    pub(super) fn code(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }

    /// The reason for a number.
    pub(super) fn from_code(code: VarInt) -> Self {
        ALL.iter().copied().find(|reason| reason.code() == code).unwrap_or(Self::Unknown)
    }

    /// What a reader or writer of the stream is told.
    pub(super) fn to_io(self) -> io::Error {
        let kind = match self {
            Reason::Closed => io::ErrorKind::BrokenPipe,
            Reason::ClientLost | Reason::WorkerLost => io::ErrorKind::ConnectionAborted,
            _ => io::ErrorKind::ConnectionReset,
        };
        io::Error::new(kind, self.to_string())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Closed => "the other end does not read any more",
            Reason::Aborted => "the other end broke the session off",
            Reason::GuestReset => "the VM reset the connection",
            Reason::ClientLost => "the connection to the client was lost",
            Reason::WorkerLost => "the connection to the worker was lost",
            Reason::ShuttingDown => "the other end is shutting down",
            Reason::Protocol => "the other end did not follow the tunnel protocol",
            Reason::Unauthenticated => "no valid proof of identity was given in time",
            Reason::Replaced => "a newer connection of the same worker took over",
            Reason::Idle => "the connection was idle",
            Reason::Revoked => {
                "the account may not connect any more: it was deleted, has expired, or lost the role that it needs"
            }
            Reason::Rotated => "the account's token was changed; connect again with the new one",
            Reason::WorkerDeleted => "the worker was deleted",
            Reason::Unknown => "the other end gave a reason that this release does not know",
        })
    }
}

/// Why a whole connection ended, for people.
pub fn describe(error: &ConnectionError) -> String {
    match error {
        ConnectionError::ApplicationClosed(ApplicationClose { error_code, .. }) => {
            Reason::from_code(*error_code).to_string()
        }
        ConnectionError::TimedOut => {
            format!("nothing was heard over it for {} s", super::IDLE_TIMEOUT.as_secs())
        }
        ConnectionError::Reset => "the other end has restarted".to_owned(),
        ConnectionError::LocallyClosed => "it was closed on this side".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_survives_the_wire_and_unknown_codes_do_no_harm() {
        for reason in ALL {
            assert_eq!(Reason::from_code(reason.code()), *reason);
        }
        assert_eq!(Reason::from_code(VarInt::from_u32(77)), Reason::Unknown);
        assert_eq!(ALL.iter().map(|r| *r as u32).collect::<Vec<_>>(), (0..13).collect::<Vec<_>>());
    }
}
