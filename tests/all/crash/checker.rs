//! Compares what clients were told with what there is: in the store of a dead controller, and in the answers of the next.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use orchard::bus::access::{ListAccounts, ListAudit};
use orchard::bus::message::{ListEvents, ListVms, ListWorkers};
use orchard::controller::auth::BOOTSTRAP_ADMIN;
use orchard::controller::store::{Room, Store};
use orchard::model::audit::{AuditRecord, Outcome};
use orchard::model::error::ApiError;
use orchard::model::event::{Event, EventFilter, EventObject, EventType};
use orchard::model::vm::{Vm, VmStatus};
use orchard::model::{AccountName, VmUid, WorkerName};

use super::READ;
use super::load::{Client, State, Thing, spec};
use crate::harness::{Access, LIMIT};
use crate::wait;

/// Everything there is, and what happened since somebody looked.
#[derive(Debug)]
pub struct Seen {
    vms: Vec<Vm>,
    accounts: BTreeSet<AccountName>,
    paused: BTreeSet<WorkerName>,
    events: Vec<Event>,
    audit: Vec<AuditRecord>,
}

/// What is known beyond what the clients remember.
#[derive(Debug, Default)]
pub struct Checker {
    /// Of every VM that there ever was.
    created: BTreeSet<VmUid>,
    deleted: BTreeSet<VmUid>,
    /// Changes that were made, acknowledged or found done, by verb.
    done: BTreeMap<&'static str, u64>,
    /// What events and audit trail tell.
    told_created: BTreeSet<VmUid>,
    told_deleted: BTreeSet<VmUid>,
    told_pauses: [u64; 2],
    recorded: BTreeMap<String, u64>,
    /// The last event and audit record looked at.
    last: (u64, u64),
    pub acknowledged: u64,
    /// Requests that nobody answered: done and not done.
    pub unanswered: (u64, u64),
}

impl Checker {
    /// Reads what a dead controller has left behind.
    pub fn read_store(&self, data: &Path) -> Seen {
        let store = Store::open(data).unwrap();
        let records = store.records().unwrap();
        let room = Room { items: usize::MAX, bytes: usize::MAX };
        let workers = records.workers.into_iter().filter(|worker| worker.scheduling_paused);
        Seen {
            vms: records.vms.into_iter().map(|vm| *vm).collect(),
            accounts: records.accounts.into_iter().map(|account| account.view.name).collect(),
            paused: workers.map(|worker| worker.info.name).collect(),
            events: store.events(self.last.0, room, &EventFilter::default()).unwrap().items,
            audit: store.audit(self.last.1, room).unwrap().items,
        }
    }

    /// Asks a living one, again if a busy machine has it answer late.
    pub async fn ask(&self, access: &Access) -> Seen {
        wait::until("the controller to answer", LIMIT, || self.try_ask(access)).await
    }

    async fn try_ask(&self, access: &Access) -> Result<Seen, ApiError> {
        let (bus, by) = (access.try_bus().await?, access.account());
        let vms = bus.call(&by, &ListVms::default(), READ).await?;
        let accounts = bus.call(&by, &ListAccounts::default(), READ).await?;
        let workers = bus.call(&by, &ListWorkers::default(), READ).await?;
        assert!(!vms.more && !accounts.more && !workers.more, "more than a page");
        let paused = workers.workers.into_iter().filter(|view| view.worker.scheduling_paused);
        let mut seen = Seen {
            vms: vms.vms,
            accounts: accounts.accounts.into_iter().map(|account| account.name).collect(),
            paused: paused.map(|view| view.worker.info.name).collect(),
            events: Vec::new(),
            audit: Vec::new(),
        };
        let mut after = self.last.0;
        loop {
            let page = bus.call(&by, &ListEvents { after, ..ListEvents::default() }, READ).await?;
            seen.events.extend(page.events);
            after = page.next;
            if page.next >= page.last {
                break;
            }
        }
        let mut after = self.last.1;
        loop {
            let page = bus.call(&by, &ListAudit { after, ..ListAudit::default() }, READ).await?;
            seen.audit.extend(page.records);
            after = page.next;
            if page.next >= page.last {
                break;
            }
        }
        Ok(seen)
    }

    /// Holds what was seen against what the clients were told, and settles what they are in doubt about. Panics with what
    /// does not agree.
    pub fn check(&mut self, seen: &Seen, clients: &mut [Client]) {
        for client in clients.iter_mut() {
            for (thing, before, after) in std::mem::take(&mut client.acknowledged) {
                self.acknowledged += 1;
                self.note(&thing, before, after);
            }
            let doubt = client.doubt.take();
            for (thing, known) in &mut client.things {
                let found = seen.state(thing);
                if found == *known {
                    self.unanswered.1 += u64::from(doubt.as_ref() == Some(thing));
                    continue;
                }
                let changed = (found == State::Absent) != (*known == State::Absent);
                assert!(
                    doubt.as_ref() == Some(thing) && changed,
                    "{thing:?} was acknowledged to be {known:?} and is {found:?}; in doubt is {doubt:?}"
                );
                self.unanswered.0 += 1;
                self.note(thing, *known, found);
                *known = found;
            }
        }
        let names: BTreeSet<_> = clients.iter().flat_map(|client| client.things.keys()).collect();
        for vm in &seen.vms {
            assert!(names.contains(&Thing::Vm(vm.name.clone())), "nobody asked for {vm:?}");
            assert!(!self.deleted.contains(&vm.uid), "deleted and back: {vm:?}");
            let whole = vm.spec == spec(&vm.name) && vm.restart_count == 0 && vm.status != VmStatus::Failed;
            assert!(whole, "not as it was asked for: {vm:?}");
        }
        for account in seen.accounts.iter().filter(|account| account.as_str() != BOOTSTRAP_ADMIN) {
            assert!(names.contains(&Thing::Account(account.clone())), "nobody asked for {account}");
        }
        self.follow(seen);
    }

    fn note(&mut self, thing: &Thing, before: State, after: State) {
        *self.done.entry(thing.next_verb(before)).or_default() += 1;
        if let State::Vm(uid) = after {
            assert!(self.created.insert(uid), "{uid} was given twice");
        }
        if let State::Vm(uid) = before {
            assert!(self.deleted.insert(uid), "{uid} was deleted twice");
        }
    }

    /// Each change has its event and its record, and there are none of what was never done.
    fn follow(&mut self, seen: &Seen) {
        let (events, records) = (&seen.events, &seen.audit);
        let numbers = |after: u64, count: usize| after + 1..=after + count as u64;
        assert!(events.iter().map(|event| event.number).eq(numbers(self.last.0, events.len())), "a gap: {events:?}");
        assert!(
            records.iter().map(|record| record.number).eq(numbers(self.last.1, records.len())),
            "a gap: {records:?}"
        );
        self.last = (self.last.0 + events.len() as u64, self.last.1 + records.len() as u64);
        for event in events {
            match (&event.object, event.kind) {
                (EventObject::Vm { uid, .. }, EventType::Created) => {
                    assert!(self.told_created.insert(*uid), "told twice: {event:?}");
                }
                (EventObject::Vm { uid, .. }, EventType::Deleting | EventType::Deleted) => {
                    self.told_deleted.insert(*uid);
                }
                (EventObject::Vm { .. }, EventType::Failed | EventType::Restarting) => {
                    panic!("not asked for: {event:?}")
                }
                (_, EventType::Paused) => self.told_pauses[0] += 1,
                (_, EventType::Resumed) => self.told_pauses[1] += 1,
                _ => {}
            }
        }
        for record in records.iter().filter(|record| record.outcome == Outcome::Done) {
            *self.recorded.entry(record.verb.clone()).or_default() += 1;
        }
        let differ = |what: &str, one: &BTreeSet<VmUid>, other: &BTreeSet<VmUid>| {
            assert!(one == other, "{what}: {:?}", one.symmetric_difference(other).collect::<Vec<_>>());
        };
        differ("VMs made and events of that", &self.created, &self.told_created);
        differ("VMs deleted and events of that", &self.deleted, &self.told_deleted);
        let done = |verb| self.done.get(verb).copied().unwrap_or(0);
        assert_eq!([done("worker.pause"), done("worker.resume")], self.told_pauses, "pauses made and events of that");
        for (verb, count) in &self.done {
            assert_eq!(self.recorded.get(*verb), Some(count), "records of {verb}");
        }
    }

    /// The VMs that there are now.
    pub fn alive(&self) -> BTreeSet<VmUid> {
        self.created.difference(&self.deleted).copied().collect()
    }
}

impl Seen {
    fn state(&self, thing: &Thing) -> State {
        let present = |is| if is { State::Present } else { State::Absent };
        match thing {
            Thing::Vm(name) => {
                self.vms.iter().find(|vm| vm.name == *name).map_or(State::Absent, |vm| State::Vm(vm.uid))
            }
            Thing::Account(name) => present(self.accounts.contains(name)),
            Thing::Pause(worker) => present(self.paused.contains(worker)),
        }
    }
}
