//! What startup scripts say, on its way from the worker to the controller. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::event::LogStream;
use crate::model::{Attempt, Boot, SessionId, Timestamp, VmUid};

/// Lines of a startup script, oldest first; acknowledged once durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogLines {
    /// The session.
    pub session: SessionId,
    /// Which VM.
    pub uid: VmUid,
    /// Which start of it.
    pub attempt: Attempt,
    /// Which boot of it: the script runs after each.
    #[serde(default)]
    pub boot: Boot,
    /// Number of the first line here, counting from 0 for this boot: a repeated send is recognised by it.
    pub first: u64,
    /// The lines.
    pub lines: Vec<LogLine>,
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogLine {
    /// Where it came from.
    pub stream: LogStream,
    /// Without its end of line, at most [`MAX_LOG_LINE`] bytes.
    pub text: String,
    /// When the worker read it, by the worker's clock; none from an older release, which does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
}

/// A longer line of output is split.
pub const MAX_LOG_LINE: usize = 8 * 1024;

/// The most lines in one message: with the longest lines still well below the usual payload limit of 1 MiB.
pub const MAX_LOG_BATCH: usize = 64;
