//! What a step of the core wants stored, told and sent. Records are named, not copied: the writer stores their newest
//! form once, however often a batch changed them.

use std::collections::BTreeSet;
use std::time::Duration;

use super::once::SpentKey;
use crate::bus::log::{LogLine, MAX_LOG_LINE};
use crate::model::account::JoinId;
use crate::model::audit::AuditRecord;
use crate::model::event::{Event, EventNumber, EventObject, EventType, LogStream};
use crate::model::image::PullId;
use crate::model::secret::redact_urls;
use crate::model::vm::Vm;
use crate::model::{AccountName, CopyId, Now, VmUid, WorkerName};

/// The outcome of one or more steps.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// VMs whose record changed or ended.
    pub vms: BTreeSet<VmUid>,
    /// Workers whose record changed.
    pub workers: BTreeSet<WorkerName>,
    /// Copies to be removed that came or went.
    pub leaving: BTreeSet<CopyId>,
    /// Copies that were given up with their worker, or are no longer remembered as such.
    pub given_up: BTreeSet<CopyId>,
    /// What is known of the last restoring changed.
    pub restored: bool,
    /// Keys of requests whose VMs were deleted, new or no longer remembered.
    pub spent: BTreeSet<SpentKey>,
    /// Requests to fetch images that came or went.
    pub pulls: BTreeSet<PullId>,
    /// The settings of the cluster changed.
    pub settings: bool,
    /// Accounts that came, went, or have another token, other roles or another end.
    pub accounts: BTreeSet<AccountName>,
    /// Join tokens that came, went or were used.
    pub joins: BTreeSet<JoinId>,
    /// Workers whose key came, went or is another.
    pub keys: BTreeSet<WorkerName>,
    /// New events, in number order.
    pub events: Vec<Event>,
    /// New audit records, in number order.
    pub audit: Vec<AuditRecord>,
    /// Workers to be sent their assignment once all this is durable.
    pub assign: BTreeSet<WorkerName>,
    /// What the step at hand did, for the audit trail; the writer takes it after each step.
    pub said: Said,
}

/// What a step did, in words, without secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// What was made, where the request cannot say so.
    pub target: Option<String>,
    /// What changed, and how.
    pub message: String,
}

/// Events and audit records that there is memory for between batches: those of a batch of ordinary requests.
const KEPT: usize = 2_048;

/// From this on a log line counts as late, and its event says when it was read: batches that wait for each other, and clocks
/// that differ a little, make less.
const LATE: Duration = Duration::from_secs(10);

/// The longest text of an event, in bytes: the longest line of output, whose bytes need not have been UTF-8. A million
/// events of this length take less than half of the store.
const MAX_TEXT: usize = 3 * MAX_LOG_LINE;

impl Changes {
    /// Whether anything must be stored.
    pub fn is_empty(&self) -> bool {
        let copies = self.leaving.is_empty()
            && self.given_up.is_empty()
            && self.spent.is_empty()
            && !self.restored
            && !self.settings
            && self.pulls.is_empty();
        let objects = self.vms.is_empty() && self.workers.is_empty();
        copies && objects && !self.concern_access() && self.events.is_empty() && self.audit.is_empty()
    }

    /// Makes it that of no step, with the memory that it has.
    pub fn clear(&mut self) {
        let (mut events, mut audit) = (std::mem::take(&mut self.events), std::mem::take(&mut self.audit));
        events.clear();
        audit.clear();
        // After a flood of output they give it back.
        events.shrink_to(KEPT);
        audit.shrink_to(KEPT);
        *self = Self { events, audit, ..Self::default() };
    }

    /// Adds what a later step wants. So each step can be given changes of its own, and whoever called it sees whether that
    /// one changed anything ([`Changes::is_empty`]).
    pub fn absorb(&mut self, later: Changes) {
        // Each by its name, so that none is forgotten.
        let Changes {
            vms,
            workers,
            leaving,
            given_up,
            restored,
            spent,
            pulls,
            settings,
            accounts,
            joins,
            keys,
            events,
            audit,
            assign,
            said,
        } = later;
        self.vms.extend(vms);
        self.workers.extend(workers);
        self.leaving.extend(leaving);
        self.given_up.extend(given_up);
        self.restored |= restored;
        self.spent.extend(spent);
        self.pulls.extend(pulls);
        self.settings |= settings;
        self.accounts.extend(accounts);
        self.joins.extend(joins);
        self.keys.extend(keys);
        self.events.extend(events);
        self.audit.extend(audit);
        self.assign.extend(assign);
        self.said = said;
    }

    /// Whether they change who may do what.
    pub fn concern_access(&self) -> bool {
        !(self.accounts.is_empty() && self.joins.is_empty() && self.keys.is_empty())
    }

    /// Notes for the audit trail what this step changes.
    pub(super) fn say(&mut self, message: String) {
        self.said.message = message;
    }

    /// Marks `vm` and appends an event about it, with the next number.
    pub(super) fn vm_event(&mut self, last: &mut EventNumber, now: Now, vm: &Vm, kind: EventType, message: String) {
        self.vms.insert(vm.uid);
        self.push(last, now, kind, vm_object(vm), message, vm.worker.clone(), None);
    }

    /// Appends a line of output of `vm`.
    pub(super) fn log(&mut self, last: &mut EventNumber, now: Now, vm: &Vm, line: LogLine) {
        // A word of a later worker's is not kept as one that nobody said.
        let stream = Some(line.stream).filter(|stream| *stream != LogStream::Unknown);
        self.push(last, now, EventType::Log, vm_object(vm), line.text, vm.worker.clone(), stream);
        let late = line.time.filter(|said| said.until(now.wall) > LATE);
        if let Some(event) = self.events.last_mut() {
            event.said_at = late;
        }
    }

    /// Appends an event about a worker.
    pub(super) fn worker_event(
        &mut self,
        last: &mut EventNumber,
        now: Now,
        name: &WorkerName,
        kind: EventType,
        message: String,
    ) {
        self.push(last, now, kind, EventObject::Worker { name: name.clone() }, message, None, None);
    }

    /// Appends an event about `object`.
    #[allow(clippy::too_many_arguments)] // the fields of an event, each of another type
    pub(super) fn push(
        &mut self,
        last: &mut EventNumber,
        now: Now,
        kind: EventType,
        object: EventObject,
        mut message: String,
        worker: Option<WorkerName>,
        stream: Option<LogStream>,
    ) {
        message.truncate(message.floor_char_boundary(MAX_TEXT));
        *last += 1;
        // What a script prints is its own; all else may name the image.
        let message = if kind == EventType::Log { message } else { redact_urls(&message) };
        let time = now.wall;
        self.events.push(Event { number: *last, time, kind, object, message, worker, stream, said_at: None });
    }
}

fn vm_object(vm: &Vm) -> EventObject {
    EventObject::Vm { name: vm.name.clone(), uid: vm.uid, attempt: vm.copy_id().attempt }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    #[test]
    fn no_event_is_longer_than_the_longest_line() {
        let (mut changes, mut last) = (Changes::default(), 0);
        let now = Now { wall: Timestamp::default(), mono: std::time::Duration::ZERO };
        let text = "ä".repeat(MAX_TEXT);
        changes.worker_event(&mut last, now, &"w".parse().unwrap(), EventType::Stray, text);
        assert!(changes.events[0].message.len() <= MAX_TEXT);
    }
}
