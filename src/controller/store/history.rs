//! What happened, by number: events and audit records are read from here, and old ones go. The rest of the store holds
//! what is; this only grows and is cut.

use std::ops::Bound::{Included, Unbounded};

use heed::RwTxn;
use serde::de::DeserializeOwned;

use super::tables::{Tables, decode};
use super::{Store, StoreError};
use crate::model::VmUid;
use crate::model::audit::{AuditNumber, AuditRecord};
use crate::model::event::{Event, EventNumber, EventObject};

/// How many events are kept; older ones go in the transaction that adds newer ones.
const KEPT_EVENTS: u64 = 1_000_000;
/// How many audit records are kept; they go apart from events, so that neither can push out the other.
const KEPT_AUDIT: u64 = 500_000;
/// At most so many old events or audit records go in one transaction, so that no commit becomes slow after a change of the bound.
const MAX_PRUNED: u64 = 4_096;

/// Some of what is stored, in number order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// At least one, if there is any.
    pub items: Vec<T>,
    /// There may be more after them.
    pub more: bool,
    /// The number of the oldest still kept; 0 = none.
    pub first_kept: u64,
}

/// How much of what is stored is read at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// At most so many items.
    pub items: usize,
    /// At most so many bytes, as they are stored, which is as they are sent. One item alone may be larger.
    pub bytes: usize,
}

impl Store {
    /// Events with numbers above `after`, of one VM if `vm` is given.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn events(&self, after: EventNumber, room: Room, vm: Option<VmUid>) -> Result<Page<Event>, StoreError> {
        let txn = self.env.read_txn()?;
        let Tables { events, events_of_vm, .. } = &self.tables;
        let first_kept = events.first(&txn)?.map_or(0, |(key, _)| number_of(key));
        let from = after.saturating_add(1);
        match vm {
            None => {
                let found = events.range(&txn, &(Included(from.to_be_bytes().as_slice()), Unbounded))?;
                cut("events", found.map(|entry| Ok(entry?)), room, first_kept)
            }
            Some(uid) => {
                let (low, high) = (vm_event_key(uid, from), vm_event_key(uid, EventNumber::MAX));
                let named = events_of_vm.range(&txn, &(Included(low.as_slice()), Included(high.as_slice())))?;
                let found = named.filter_map(|entry| {
                    let number = entry.map(|(key, _)| key.get(16..).unwrap_or_default());
                    let found = number.and_then(|number| Ok(events.get(&txn, number)?.map(|bytes| (number, bytes))));
                    found.map_err(StoreError::from).transpose()
                });
                cut("events", found, room, first_kept)
            }
        }
    }

    /// Audit records with numbers above `after`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn audit(&self, after: AuditNumber, room: Room) -> Result<Page<AuditRecord>, StoreError> {
        let txn = self.env.read_txn()?;
        let first_kept = self.tables.audit.first(&txn)?.map_or(0, |(key, _)| number_of(key));
        let from = after.saturating_add(1).to_be_bytes();
        let found = self.tables.audit.range(&txn, &(Included(from.as_slice()), Unbounded))?;
        cut("audit", found.map(|entry| Ok(entry?)), room, first_kept)
    }

    pub(super) fn prune_audit(&self, txn: &mut RwTxn<'_>, last: AuditNumber) -> Result<(), StoreError> {
        for _ in 0..MAX_PRUNED {
            let Some((key, _)) = self.tables.audit.first(txn)? else { return Ok(()) };
            let number = number_of(key);
            if last.saturating_sub(number) < KEPT_AUDIT {
                return Ok(());
            }
            self.tables.audit.delete(txn, &number.to_be_bytes())?;
        }
        Ok(())
    }

    pub(super) fn prune(&self, txn: &mut RwTxn<'_>, last: EventNumber) -> Result<(), StoreError> {
        for _ in 0..MAX_PRUNED {
            let Some((key, bytes)) = self.tables.events.first(txn)? else { return Ok(()) };
            let number = number_of(key);
            if last.saturating_sub(number) < KEPT_EVENTS {
                return Ok(());
            }
            let event: Event = decode("events", key, bytes)?;
            if let EventObject::Vm { uid, .. } = event.object {
                self.tables.events_of_vm.delete(txn, &vm_event_key(uid, number))?;
            }
            self.tables.events.delete(txn, &number.to_be_bytes())?;
        }
        Ok(())
    }
}

/// As much of `found` as there is room for.
fn cut<'a, T: DeserializeOwned>(
    table: &'static str,
    found: impl Iterator<Item = Result<(&'a [u8], &'a [u8]), StoreError>>,
    room: Room,
    first_kept: u64,
) -> Result<Page<T>, StoreError> {
    let mut page = Page { items: Vec::new(), more: false, first_kept };
    let mut size = 0usize;
    for entry in found {
        let (key, bytes) = entry?;
        size = size.saturating_add(bytes.len());
        if page.items.len() >= room.items || (size > room.bytes && !page.items.is_empty()) {
            page.more = true;
            break;
        }
        page.items.push(decode(table, key, bytes)?);
    }
    Ok(page)
}

pub(super) fn vm_event_key(uid: VmUid, number: EventNumber) -> Vec<u8> {
    [uid.0.as_bytes().as_slice(), &number.to_be_bytes()].concat()
}

fn number_of(key: &[u8]) -> EventNumber {
    key.try_into().map_or(0, EventNumber::from_be_bytes)
}
