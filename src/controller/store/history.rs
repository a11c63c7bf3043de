//! What happened to VMs and workers, by number: events are read from here, and old ones go. The rest of the store holds
//! what is; this only grows and is cut.
//!
//! Numbers only say which is older: after a restored backup they go on far above those before, so none is ever counted by
//! them. What goes is always the oldest: what is kept has no gap but the one that restoring makes.

use std::ops::Bound::{Included, Unbounded};
use std::time::Duration;

use heed::RwTxn;
use serde::de::DeserializeOwned;

use super::tables::{Tables, decode};
use super::{Store, StoreError};
use crate::model::event::{Event, EventFilter, EventNumber, EventObject};
use crate::model::{Timestamp, VmUid};

/// So many more old events than come in may go in one transaction: enough to come down to a lower bound in time, so few
/// that no commit becomes slow by it.
const MAX_PRUNED: usize = 256;
/// From how much of the map in use on, in hundredths, events go before their number is reached: well before new things are
/// refused for want of room.
const CROWDED: u64 = 80;

/// Events that one reading looks at when it is to find some among them: a tenth of a second's work. Who wants more goes on
/// from where it ended.
const MAX_SEEN: usize = 20_000;

/// How long events are kept: all of these hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// At most so many.
    pub events: u64,
    /// In at most so many bytes.
    pub bytes: u64,
    /// None that is older than this, once there are younger ones.
    pub age: Duration,
}

impl Default for Retention {
    /// A quarter of a year, unless the scripts of VMs say a great deal; a quarter of the map, however long their lines are.
    fn default() -> Self {
        Self { events: 1_000_000, bytes: 16 << 30, age: Duration::from_secs(90 * 24 * 3600) }
    }
}

/// Some of what is stored, in number order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// At least one, if there is any.
    pub items: Vec<T>,
    /// There may be more after them.
    pub more: bool,
    /// The number of the oldest still kept; 0 = none.
    pub first_kept: u64,
    /// The highest number that was looked at; 0 = none was.
    pub seen: u64,
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
    /// Events with numbers above `after` that `filter` lets through.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn events(&self, after: EventNumber, room: Room, filter: &EventFilter) -> Result<Page<Event>, StoreError> {
        let txn = self.env.read_txn()?;
        let Tables { events, events_of_vm, .. } = &self.tables;
        let first_kept = events.first(&txn)?.map_or(0, |(key, _)| number_of(key));
        let from = after.saturating_add(1);
        let wanted = |event: &Event| filter.matches(event);
        match filter.uid {
            None => {
                let found = events.range(&txn, &(Included(from.to_be_bytes().as_slice()), Unbounded))?;
                select("events", found.map(|entry| Ok(entry?)), room, first_kept, wanted)
            }
            Some(uid) => {
                let (low, high) = (vm_event_key(uid, from), vm_event_key(uid, EventNumber::MAX));
                let named = events_of_vm.range(&txn, &(Included(low.as_slice()), Included(high.as_slice())))?;
                let found = named.filter_map(|entry| {
                    let number = entry.map(|(key, _)| key.get(16..).unwrap_or_default());
                    let found = number.and_then(|number| Ok(events.get(&txn, number)?.map(|bytes| (number, bytes))));
                    found.map_err(StoreError::from).transpose()
                });
                select("events", found, room, first_kept, wanted)
            }
        }
    }

    /// Lets old events go: those that there is no keeping any more, and any while the map is nearly full, as they are the
    /// one thing that can be done without. `added` is how many came in with this transaction, the last of them at `newest`.
    pub(super) fn prune(&self, txn: &mut RwTxn<'_>, newest: Option<Timestamp>, added: usize) -> Result<(), StoreError> {
        let Tables { events, events_of_vm, .. } = &self.tables;
        let kept = self.bounds.kept;
        let mut crowded = self.is_crowded(txn)?;
        for pruned in 0..added.saturating_add(MAX_PRUNED) {
            if crowded && pruned % 64 == 63 {
                crowded = self.is_crowded(txn)?;
            }
            let Some((key, bytes)) = events.first(txn)? else { return Ok(()) };
            let number = number_of(key);
            // One that is damaged is of no use to anybody, and must not be in the way of all that comes.
            let event =
                decode::<Event>("events", key, bytes).inspect_err(|error| tracing::error!("{error}; it goes")).ok();
            let old =
                event.as_ref().is_none_or(|event| newest.is_some_and(|newest| event.time.until(newest) > kept.age));
            if events.len(txn)? <= kept.events && !old && !crowded {
                return Ok(());
            }
            if let Some(Event { object: EventObject::Vm { uid, .. }, .. }) = event {
                events_of_vm.delete(txn, &vm_event_key(uid, number))?;
            }
            events.delete(txn, &number.to_be_bytes())?;
        }
        Ok(())
    }

    /// Whether events must go for the room that they take: of their own, or of all.
    fn is_crowded(&self, txn: &RwTxn<'_>) -> Result<bool, StoreError> {
        let Tables { events, events_of_vm, .. } = &self.tables;
        let pages = [events.stat(txn)?.non_free_page_size(), events_of_vm.stat(txn)?.non_free_page_size()];
        let bytes = pages.iter().fold(0u64, |sum, size| sum.saturating_add(u64::try_from(*size).unwrap_or(u64::MAX)));
        Ok(bytes > self.bounds.kept.bytes || self.fullness(txn)? > CROWDED)
    }
}

/// As much of `found` as there is room for.
pub(super) fn cut<'a, T: DeserializeOwned>(
    table: &'static str,
    found: impl Iterator<Item = Result<(&'a [u8], &'a [u8]), StoreError>>,
    room: Room,
    first_kept: u64,
) -> Result<Page<T>, StoreError> {
    select(table, found, room, first_kept, |_| true)
}

/// The same of those that are wanted.
fn select<'a, T: DeserializeOwned>(
    table: &'static str,
    found: impl Iterator<Item = Result<(&'a [u8], &'a [u8]), StoreError>>,
    room: Room,
    first_kept: u64,
    wanted: impl Fn(&T) -> bool,
) -> Result<Page<T>, StoreError> {
    let mut page = Page { items: Vec::new(), more: false, first_kept, seen: 0 };
    let mut size = 0usize;
    for (index, entry) in found.enumerate() {
        let (key, bytes) = entry?;
        if index >= MAX_SEEN {
            page.more = true;
            break;
        }
        // One that is damaged must not keep all others from being told: its number is missing then.
        let item = decode(table, key, bytes).inspect_err(|error| tracing::error!("{error}; it is passed over")).ok();
        if let Some(item) = item.filter(|item| wanted(item)) {
            size = size.saturating_add(bytes.len());
            if page.items.len() >= room.items || (size > room.bytes && !page.items.is_empty()) {
                page.more = true;
                break;
            }
            page.items.push(item);
        }
        page.seen = number_of(key);
    }
    Ok(page)
}

pub(super) fn vm_event_key(uid: VmUid, number: EventNumber) -> [u8; 24] {
    let mut key = [0; 24];
    let (of_uid, of_number) = key.split_at_mut(16);
    of_uid.copy_from_slice(uid.0.as_bytes());
    of_number.copy_from_slice(&number.to_be_bytes());
    key
}

pub(super) fn number_of(key: &[u8]) -> EventNumber {
    key.try_into().map_or(0, EventNumber::from_be_bytes)
}

#[cfg(test)]
mod tests;
