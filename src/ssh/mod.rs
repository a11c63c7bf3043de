//! The SSH client into guests, over any byte stream. The command line uses it through a tunnel, the worker through
//! `Runtime::dial` for startup scripts and commands.
//!
//! Order of use: [`banner::probe`] until the guest answers, [`Session::connect`](client::Session::connect), then any
//! number of [`exec`](client::Session::exec), [`terminal::interactive`] or [`script::run`], also at the same time.
//! Pure parts: [`quote`] and [`lines`].

pub mod auth;
pub mod banner;
mod channel;
pub mod client;
pub mod cut;
pub mod key;
pub mod lines;
pub mod quote;
pub mod script;
mod signer;
pub mod stdin;
pub mod terminal;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use self::auth::Proof;
use crate::model::secret::Secret;

/// Who logs in.
#[derive(Clone, Debug)]
pub struct Login {
    /// The server's user.
    pub user: String,
    /// What proves that it is that user: tried in this order.
    pub proofs: Vec<Proof>,
}

impl Login {
    /// With a password and nothing else.
    pub fn with_password(user: impl Into<String>, password: Secret) -> Self {
        Self { user: user.into(), proofs: vec![Proof::Password(password)] }
    }
}

/// The key by which a server proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostKey {
    /// `ssh-ed25519`, `ecdsa-sha2-nistp256`, …
    pub algorithm: String,
    /// `SHA256:…`, as OpenSSH prints it.
    pub fingerprint: String,
    /// Algorithm and key, as they stand in OpenSSH's file of known hosts.
    pub openssh: String,
}

/// Decides whether a server is the one it should be. Called once in every handshake, after the server proved that it
/// holds the key; must not block for long, since the deadline of the connect goes on.
pub trait HostKeyCheck: Send + 'static {
    /// Accepts the key, or refuses it with a reason for people.
    ///
    /// # Errors
    /// The reason: what was expected, and what to do if the change is intended.
    fn check(&mut self, key: &HostKey) -> Result<(), String>;
}

impl<F: FnMut(&HostKey) -> Result<(), String> + Send + 'static> HostKeyCheck for F {
    fn check(&mut self, key: &HostKey) -> Result<(), String> {
        self(key)
    }
}

/// Accepts every key: for the worker, whose stream ends in its own guest's port and whose guest makes its keys at the
/// first boot.
#[derive(Clone, Copy, Debug)]
pub struct AcceptAny;

impl HostKeyCheck for AcceptAny {
    fn check(&mut self, _: &HostKey) -> Result<(), String> {
        Ok(())
    }
}

/// How a remote command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(u32),
    /// It was killed by this signal, named without `SIG`.
    Signal(String),
    /// The server did not say.
    Unknown,
}

impl ExitStatus {
    /// Whether it exited with 0.
    pub fn success(&self) -> bool {
        *self == ExitStatus::Code(0)
    }

    /// As a shell's `$?`: the code, 128 + the signal's number, or 255 when nothing is known (as `ssh` has it).
    pub fn code(&self) -> i32 {
        match self {
            ExitStatus::Code(code) => i32::try_from(*code).unwrap_or(UNKNOWN_EXIT),
            ExitStatus::Signal(name) => {
                SIGNALS.iter().find(|(known, _)| known == name).map_or(UNKNOWN_EXIT, |(_, number)| 128 + number)
            }
            ExitStatus::Unknown => UNKNOWN_EXIT,
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExitStatus::Code(code) => write!(f, "exit status {code}"),
            ExitStatus::Signal(name) => write!(f, "killed by signal {name}"),
            ExitStatus::Unknown => f.write_str("ended without an exit status"),
        }
    }
}

/// Why there is no session, or why it ended early.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// The stream ended before the server said a word: the guest is not up, or runs no SSH server.
    #[error("the connection was closed before an SSH server answered; the machine may still be booting, or run none")]
    Closed,
    /// A deadline passed.
    #[error("the SSH server did not finish {what} within {} s", after.as_secs_f32())]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        after: Duration,
    },
    /// The user is not known there, or nothing of what was tried proves that it is that user.
    #[error("the SSH server refused user {user:?}; tried: {tried} ({offers})")]
    AuthRefused {
        /// Who tried.
        user: String,
        /// What was tried, in words.
        tried: String,
        /// What the server would take, in words.
        offers: String,
        /// Whether a password is, or may be, among that.
        takes_password: bool,
    },
    /// The server takes this key, which is locked with a passphrase.
    #[error(
        "the key {} is locked with a passphrase; give that on a terminal, or the key to an agent with ssh-add",
        path.display()
    )]
    KeyLocked {
        /// The key's file.
        path: PathBuf,
    },
    /// The check refused the server's key.
    #[error("the host key {} was refused: {reason}", key.fingerprint)]
    HostKeyRefused {
        /// The key that it showed.
        key: HostKey,
        /// What the check said.
        reason: String,
    },
    /// What runs on the other end does not speak SSH as we do.
    #[error("the SSH handshake failed")]
    Protocol(#[source] russh::Error),
    /// The server refused to open a session, a terminal or to run the command.
    #[error("the SSH server refused to {what}")]
    Refused {
        /// What was asked.
        what: &'static str,
    },
    /// The server did not connect any further.
    #[error("the SSH server does not connect to {to}: {reason}")]
    Forward {
        /// Where to, as `HOST:PORT`.
        to: String,
        /// What it said.
        reason: String,
    },
    /// The connection ended while it was needed.
    #[error("the SSH connection was lost: {0}")]
    Lost(String),
    /// Our side's input or output failed; a broken pipe here means that the reader of the output went away.
    #[error("cannot use the {what} of the command")]
    Local {
        /// Which one.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// [`ExitStatus::code`] when nothing better is known.
const UNKNOWN_EXIT: i32 = 255;

/// The signals that RFC 4254 names, with the numbers that Linux and macOS share.
const SIGNALS: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("ABRT", 6),
    ("FPE", 8),
    ("KILL", 9),
    ("SEGV", 11),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_follow_the_shell() {
        assert_eq!(ExitStatus::Code(3).code(), 3);
        assert_eq!(ExitStatus::Signal("TERM".into()).code(), 143);
        assert_eq!(ExitStatus::Signal("USR9".into()).code(), 255);
        assert_eq!(ExitStatus::Unknown.code(), 255);
        assert_eq!(ExitStatus::Code(u32::MAX).code(), 255);
    }
}
