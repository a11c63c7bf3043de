//! Events: the numbered story of every VM and worker, stored with the change they tell of.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Attempt, Timestamp, VmName, VmUid, WorkerName};

/// An event's number: one more than the one before, over the whole cluster, for ever.
pub type EventNumber = u64;

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = super::schema::open_enum)]
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
    /// The VM starts over, or boots again.
    Restarting,
    /// Its specification has changed.
    Updated,
    /// It is switched off, as was wished.
    Stopped,
    /// It is frozen into a file, as was wished.
    Suspended,
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
    /// A worker has not been heard of for a while; nothing happens to its VMs.
    Unseen,
    /// A worker's lease is certainly over; those of its VMs that may be replaced start over elsewhere.
    Gone,
    /// A worker accepts no new VMs.
    Paused,
    /// A worker accepts new VMs again.
    Resumed,
    /// A worker accepts no new VMs, and shall be rid of those it has.
    Draining,
    /// Nothing runs any more on a worker that is drained.
    Drained,
    /// A worker has a VM that the controller did not name: one that was given up is removed, an unknown one left alone.
    Stray,
    /// A type of a newer release.
    #[serde(other)]
    Unknown,
}

impl EventType {
    /// All that this release knows, in the order of a VM's and then of a worker's life.
    pub const ALL: &[EventType] = &[
        EventType::Created,
        EventType::Scheduled,
        EventType::Progress,
        EventType::Running,
        EventType::Ready,
        EventType::Failed,
        EventType::Restarting,
        EventType::Updated,
        EventType::Stopped,
        EventType::Suspended,
        EventType::Deleting,
        EventType::Deleted,
        EventType::Log,
        EventType::Registered,
        EventType::Online,
        EventType::Unseen,
        EventType::Gone,
        EventType::Paused,
        EventType::Resumed,
        EventType::Draining,
        EventType::Drained,
        EventType::Stray,
    ];

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
            EventType::Updated => "updated",
            EventType::Stopped => "stopped",
            EventType::Suspended => "suspended",
            EventType::Deleting => "deleting",
            EventType::Deleted => "deleted",
            EventType::Log => "log",
            EventType::Registered => "registered",
            EventType::Online => "online",
            EventType::Unseen => "unseen",
            EventType::Gone => "gone",
            EventType::Paused => "paused",
            EventType::Resumed => "resumed",
            EventType::Draining => "draining",
            EventType::Drained => "drained",
            EventType::Stray => "stray",
            EventType::Unknown => "unknown",
        }
    }
}

/// Whom an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = super::schema::open_objects)]
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
    /// Something that only a newer release knows.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for EventObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EventObject::Vm { name, .. } => write!(f, "vm/{name}"),
            EventObject::Worker { name } => write!(f, "worker/{name}"),
            EventObject::Unknown => f.write_str("unknown"),
        }
    }
}

/// Which stream a log line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = super::schema::open_enum)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Said by the worker itself.
    System,
    /// One of a newer release.
    #[serde(other)]
    Unknown,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// For log lines that came late, as their worker was cut off: when it read them, by its own clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said_at: Option<Timestamp>,
}

/// Which events are wanted: those that fit all that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Of this one VM.
    pub uid: Option<VmUid>,
    /// Of VMs of this name.
    pub vm: Option<VmName>,
    /// Of this worker, and of VMs on it.
    pub worker: Option<WorkerName>,
    /// Of any of these types; all types if there is none here.
    pub types: Vec<EventType>,
}

impl EventFilter {
    /// Those of one VM.
    pub fn of(uid: VmUid) -> Self {
        Self { uid: Some(uid), ..Self::default() }
    }

    /// Whether `event` is wanted.
    pub fn matches(&self, event: &Event) -> bool {
        let (uid, vm, worker) = match &event.object {
            EventObject::Vm { name, uid, .. } => (Some(*uid), Some(name), event.worker.as_ref()),
            EventObject::Worker { name } => (None, None, Some(name)),
            EventObject::Unknown => (None, None, event.worker.as_ref()),
        };
        (self.uid.is_none() || self.uid == uid)
            && (self.vm.is_none() || self.vm.as_ref() == vm)
            && (self.worker.is_none() || self.worker.as_ref() == worker)
            && (self.types.is_empty() || self.types.contains(&event.kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(object: EventObject, worker: Option<&str>, kind: EventType) -> Event {
        let worker = worker.map(|name| name.parse().unwrap());
        Event {
            number: 1,
            time: Timestamp::default(),
            kind,
            object,
            message: String::new(),
            worker,
            stream: None,
            said_at: None,
        }
    }

    #[test]
    fn a_filter_lets_through_what_fits_all_of_it() {
        let uid = VmUid(uuid::Uuid::nil());
        let of_vm = EventObject::Vm { name: "a".parse().unwrap(), uid, attempt: 0 };
        let of_worker = EventObject::Worker { name: "w".parse().unwrap() };
        let placed = event(of_vm.clone(), Some("w"), EventType::Scheduled);
        let created = event(of_vm, None, EventType::Created);
        let online = event(of_worker, None, EventType::Online);
        let passed = |filter: EventFilter| [&placed, &created, &online].map(|event| filter.matches(event));
        let all = EventFilter::default();
        assert_eq!(passed(all.clone()), [true, true, true]);
        assert_eq!(passed(EventFilter::of(uid)), [true, true, false]);
        assert_eq!(passed(EventFilter::of(VmUid(uuid::Uuid::max()))), [false, false, false]);
        assert_eq!(passed(EventFilter { vm: Some("a".parse().unwrap()), ..all.clone() }), [true, true, false]);
        let of_w = EventFilter { worker: Some("w".parse().unwrap()), ..all.clone() };
        assert_eq!(passed(of_w.clone()), [true, false, true]);
        assert_eq!(passed(EventFilter { types: vec![EventType::Online], ..of_w }), [false, false, true]);
        let types = vec![EventType::Created, EventType::Online];
        assert_eq!(passed(EventFilter { types, ..all }), [false, true, true]);
    }

    #[test]
    fn every_known_type_is_in_the_list_once_and_comes_back_from_its_text() {
        for kind in EventType::ALL {
            assert_eq!(EventType::ALL.iter().filter(|other| *other == kind).count(), 1);
            assert_eq!(rmp_serde::from_slice::<EventType>(&rmp_serde::to_vec(kind.as_str()).unwrap()).unwrap(), *kind);
        }
    }
}
