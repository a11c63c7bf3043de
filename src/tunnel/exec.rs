//! What is said over a stream to the exec sessions that a worker holds, and its codec. Pure; the command line says the one
//! half, `worker::execs` the other. The stream is asked for with [`EXEC_PORT`](super::header::EXEC_PORT).
//!
//! ```text
//! client → worker   open | list | end                                          first, once
//! worker → client   attached, then lost? and records, at last exited | failed   to open; or refused
//! client → worker   stdin*, eof?, resize*                                       while attached
//! worker → client   sessions | refused                                          to list
//! worker → client   ended | refused                                             to end
//! ```
//! Records are numbered from 1, without gaps. Who closes the stream leaves the session as it is. A frame is four bytes of
//! length, big-endian, and MessagePack with field names.

use bytes::{Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_util::codec::LengthDelimitedCodec;

use crate::model::error::{ApiError, ErrorCode};
use crate::model::secret::Secret;
use crate::model::{AccountName, Timestamp};

/// The longest command with its variables, in bytes: Linux takes 128 KiB in one argument.
pub const MAX_COMMAND: usize = 100 * 1024;

/// The most bytes in one record, and of input in one message: what SSH carries at a time.
pub const MAX_DATA: usize = 32 * 1024;

/// The longest message in bytes: a command, or a list of sessions with the beginnings of theirs.
const MAX_MESSAGE: usize = 256 * 1024;

/// The longest name of a session.
pub const MAX_SESSION_NAME: usize = 64;

/// Whose sessions a worker holds: of an account, as it was when it began them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holder {
    /// Its name.
    pub account: AccountName,
    /// Since when it has had the token of then: one with another token, or made anew under the name, is not the same. None =
    /// the controller does not know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// The most that are told at a time: as many as surely fit a frame.
pub const MAX_HOLDERS: usize = 16;

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Asked {
    /// Attaches to a session, which is begun if there is none and it is said how.
    Open(Box<OpenExec>),
    /// Asks which sessions the account has in this VM.
    List {},
    /// Ends a session's command.
    End {
        /// Which.
        session: String,
    },
    /// Input for the command.
    Stdin {
        /// At most [`MAX_DATA`].
        data: Bytes,
    },
    /// The input has ended.
    Eof {},
    /// The terminal has another size.
    Resize {
        /// Characters in a row.
        columns: u32,
        /// Rows.
        rows: u32,
    },
}

/// How to attach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenExec {
    /// The session's name among those of the account in this start of the VM.
    pub session: String,
    /// Only records with a higher number.
    #[serde(default)]
    pub after: u64,
    /// What to run if there is no such session, and what one that is there must run; none = it must be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<RunExec>,
}

/// What a session runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunExec {
    /// For the user's shell, at most [`MAX_COMMAND`] bytes. A secret, as variables stand in it.
    pub line: Secret,
    /// The first words of it without the variables, for lists.
    pub shown: String,
    /// It has an input.
    #[serde(default)]
    pub interactive: bool,
    /// The terminal to run it in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<Tty>,
    /// The guest's user; none = the VM's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// That user's password; none = the VM's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
}

impl RunExec {
    /// `line` for the shell of the VM's user, without an input or a terminal.
    pub fn shell(line: &str) -> Self {
        Self { line: Secret::new(line), shown: shown(line), interactive: false, tty: None, user: None, password: None }
    }

    /// Whether a session that runs `other` is what was asked for. A terminal's size may change, and a password is no matter
    /// of what runs.
    pub fn is_same(&self, other: &RunExec) -> bool {
        let term = |run: &RunExec| run.tty.as_ref().map(|tty| tty.term.clone());
        (self.line.expose(), self.interactive, &self.user, term(self))
            == (other.line.expose(), other.interactive, &other.user, term(other))
    }
}

/// A terminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tty {
    /// Its type, as in `TERM`.
    pub term: String,
    /// Characters in a row.
    pub columns: u32,
    /// Rows.
    pub rows: u32,
}

/// What a worker says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Told {
    /// The client is attached.
    Attached {
        /// The session was begun by this.
        begun: bool,
        /// The number that the next record gets.
        next: u64,
    },
    /// Records that are kept no more.
    Lost {
        /// The first of them.
        from: u64,
        /// The last of them.
        to: u64,
    },
    /// A piece of the standard output; with a terminal, of everything.
    Stdout {
        /// Its number.
        number: u64,
        /// At most [`MAX_DATA`].
        data: Bytes,
    },
    /// A piece of the standard error.
    Stderr {
        /// Its number.
        number: u64,
        /// At most [`MAX_DATA`].
        data: Bytes,
    },
    /// The command has ended, and this was the last record.
    Exited {
        /// Its number.
        number: u64,
        /// As a shell's `$?`.
        code: i32,
        /// How it ended, in words.
        how: String,
    },
    /// What became of the command is not known, and this was the last record.
    Failed {
        /// Its number.
        number: u64,
        /// Why.
        why: String,
    },
    /// The account's sessions.
    Sessions {
        /// By name.
        sessions: Vec<ExecView>,
    },
    /// The session's command is being ended.
    Ended {},
    /// What was asked is not done.
    Refused(ApiError),
}

/// A session in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecView {
    /// Its name.
    pub session: String,
    /// The first words of its command.
    pub command: String,
    /// When it began.
    pub started_at: Timestamp,
    /// How many are attached.
    pub attached: u32,
    /// The number of the first record that is kept.
    pub first: u64,
    /// The number that the next record gets.
    pub next: u64,
    /// How it ended, as a shell's `$?`; none while it runs, or when that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i32>,
    /// How it ended, in words; none while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<String>,
}

/// Cuts a stream into messages of a bounded length.
pub fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(MAX_MESSAGE).new_codec()
}

/// A message as the codec takes it.
///
/// # Errors
/// [`ErrorCode::Internal`]; does not happen for the types here.
pub fn encode<T: Serialize>(message: &T) -> Result<Bytes, ApiError> {
    rmp_serde::to_vec_named(message)
        .map(Bytes::from)
        .map_err(|error| ApiError::new(ErrorCode::Internal, format!("cannot encode a message: {error}")))
}

/// A message as the codec gives it.
///
/// # Errors
/// [`ErrorCode::Invalid`].
pub fn decode<T: DeserializeOwned>(frame: &BytesMut) -> Result<T, ApiError> {
    rmp_serde::from_slice(frame).map_err(|error| {
        ApiError::new(
            ErrorCode::Invalid,
            format!("a message about execs that this release does not understand: {error}"),
        )
    })
}

/// The longest beginning of a command that a list shows, in characters of up to four bytes.
const MAX_SHOWN: usize = 50;

/// The beginning of `command` as it is put into lists.
pub fn shown(command: &str) -> String {
    command.chars().filter(|c| !c.is_control()).take(MAX_SHOWN).collect()
}

/// Checks a session's name: it stands in lists and commands.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match name.chars().find(|c| !allowed(*c)) {
        Some(bad) => Err(format!("the session name {name:?} contains {bad:?}; allowed are A-Z a-z 0-9 - _ .")),
        None if name.is_empty() => Err("the session name is empty".to_owned()),
        None if name.len() > MAX_SESSION_NAME => {
            Err(format!("a session name has at most {MAX_SESSION_NAME} characters"))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> RunExec {
        RunExec {
            line: Secret::new("make"),
            shown: "make".into(),
            interactive: true,
            tty: Some(Tty { term: "xterm".into(), columns: 80, rows: 24 }),
            user: Some("ci".into()),
            password: Some(Secret::new("pw")),
        }
    }

    #[test]
    fn messages_survive_the_wire() {
        let open = Asked::Open(Box::new(OpenExec { session: "s".into(), after: 7, run: Some(run()) }));
        for asked in [open, Asked::List {}, Asked::Stdin { data: Bytes::from_static(b"\0\xff") }, Asked::Eof {}] {
            assert_eq!(decode::<Asked>(&BytesMut::from(encode(&asked).unwrap())).unwrap(), asked);
        }
        let data = Bytes::from(vec![0xff; MAX_DATA]);
        let told = Told::Stdout { number: u64::MAX, data };
        let bytes = encode(&told).unwrap();
        assert!(bytes.len() < MAX_DATA + 64, "bytes go as bytes");
        assert_eq!(decode::<Told>(&BytesMut::from(bytes)).unwrap(), told);
        assert_eq!(encode(&Asked::Eof {}).unwrap(), &b"\x81\xa3eof\x80"[..]);
        assert!(decode::<Told>(&BytesMut::from(&b"\x81\xa3new\x80"[..])).is_err());
    }

    #[test]
    fn a_session_is_the_same_with_another_size_or_password_and_with_nothing_else() {
        let resized = RunExec { tty: Some(Tty { term: "xterm".into(), columns: 1, rows: 1 }), password: None, ..run() };
        assert!(run().is_same(&resized));
        for other in [
            RunExec { line: Secret::new("make all"), ..run() },
            RunExec { interactive: false, ..run() },
            RunExec { tty: None, ..run() },
            RunExec { user: None, ..run() },
        ] {
            assert!(!run().is_same(&other));
        }
    }

    #[test]
    fn names_of_sessions_follow_a_rule() {
        assert!(check_name("nightly-1.a_b").is_ok());
        for bad in ["", "a b", "a/b", "ä", &"x".repeat(65)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
