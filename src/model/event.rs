//! Events: the numbered story of every VM and worker, stored with the change they tell of.

use serde::{Deserialize, Serialize};

use super::{Attempt, Timestamp, VmName, VmUid, WorkerName};

/// An event's number: one more than the one before, over the whole cluster, for ever.
pub type EventNumber = u64;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EventType {
    /// A VM was asked for.
    Created,
    /// A VM was placed on a worker.
    Scheduled,
    /// The worker tells how far it is.
    Progress,
    /// The VM's process runs.
    Running,
    /// The guest answered, and its startup script ended well.
    Ready,
    /// The VM failed.
    Failed,
    /// The VM starts over.
    Restarting,
    /// Deletion was asked for.
    Deleting,
    /// Nothing of the VM is left on any worker; or a worker was taken out of the cluster.
    Deleted,
    /// A line of output of the startup script.
    Log,
    /// A worker registered for the first time.
    Registered,
    /// A worker is online.
    Online,
    /// A worker was not heard of for longer than its lease.
    Unseen,
    /// A worker accepts no new VMs.
    Paused,
    /// A worker accepts new VMs again.
    Resumed,
    /// A worker has a VM that the controller did not name: one that was given up is removed, an unknown one left alone.
    Stray,
    /// A type of a newer release.
    #[serde(other)]
    Unknown,
}

impl EventType {
    /// The type as it stands in the event's subject.
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::Created => "created",
            EventType::Scheduled => "scheduled",
            EventType::Progress => "progress",
            EventType::Running => "running",
            EventType::Ready => "ready",
            EventType::Failed => "failed",
            EventType::Restarting => "restarting",
            EventType::Deleting => "deleting",
            EventType::Deleted => "deleted",
            EventType::Log => "log",
            EventType::Registered => "registered",
            EventType::Online => "online",
            EventType::Unseen => "unseen",
            EventType::Paused => "paused",
            EventType::Resumed => "resumed",
            EventType::Stray => "stray",
            EventType::Unknown => "unknown",
        }
    }
}

/// Whom an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum EventObject {
    /// A VM.
    Vm {
        /// Its name.
        name: VmName,
        /// Its identity.
        uid: VmUid,
        /// Which start of it.
        attempt: Attempt,
    },
    /// A worker.
    Worker {
        /// Its name.
        name: WorkerName,
    },
}

/// Which stream a log line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Said by the worker itself.
    System,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number.
    pub number: EventNumber,
    /// When it happened, by the controller's clock.
    pub time: Timestamp,
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// To whom.
    pub object: EventObject,
    /// For people: the cause, the progress, or the log line.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The worker concerned, for events of VMs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerName>,
    /// For log lines: the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<LogStream>,
}
