//! What happened to VMs and workers, by number: events are read from here, and old ones go. The rest of the store holds
//! what is; this only grows and is cut.

use std::ops::Bound::{Included, Unbounded};

use heed::RwTxn;
use serde::de::DeserializeOwned;

use super::tables::{Tables, decode};
use super::{Store, StoreError};
use crate::model::VmUid;
use crate::model::event::{Event, EventNumber, EventObject};

/// So many more old events than come in may go in one transaction: enough to come down to a lower bound in time, so few
/// that no commit becomes slow by it.
const MAX_PRUNED: usize = 256;
/// From how much of the map in use on, in hundredths, events go before their number is reached: well before new things are
/// refused for want of room.
const CROWDED: u64 = 80;

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

    /// Lets old events go: those above the number that is kept, and any while the map is nearly full, as they are the
    /// one thing that can be done without. `added` is how many came in with this transaction.
    pub(super) fn prune(&self, txn: &mut RwTxn<'_>, last: EventNumber, added: usize) -> Result<(), StoreError> {
        let Tables { events, events_of_vm, .. } = &self.tables;
        let mut crowded = self.fullness(txn)? > CROWDED;
        for pruned in 0..added.saturating_add(MAX_PRUNED) {
            if crowded && pruned % 64 == 63 {
                crowded = self.fullness(txn)? > CROWDED;
            }
            let Some((key, bytes)) = events.first(txn)? else { return Ok(()) };
            let number = number_of(key);
            if last.saturating_sub(number) < self.bounds.events && !crowded {
                return Ok(());
            }
            let event: Event = decode("events", key, bytes)?;
            if let EventObject::Vm { uid, .. } = event.object {
                events_of_vm.delete(txn, &vm_event_key(uid, number))?;
            }
            events.delete(txn, &number.to_be_bytes())?;
        }
        Ok(())
    }
}

/// As much of `found` as there is room for.
pub(super) fn cut<'a, T: DeserializeOwned>(
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

pub(super) fn number_of(key: &[u8]) -> EventNumber {
    key.try_into().map_or(0, EventNumber::from_be_bytes)
}
