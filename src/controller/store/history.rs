//! What happened, by number: events and audit records are read from here, and old ones go. The rest of the store holds
//! what is; this only grows and is cut.

use std::ops::Bound::{Included, Unbounded};

use heed::RwTxn;

use super::{Store, StoreError, decode};
use crate::model::VmUid;
use crate::model::audit::{AuditNumber, AuditRecord};
use crate::model::event::{Event, EventNumber, EventObject};

/// How many events are kept; older ones go in the transaction that adds newer ones.
const KEPT_EVENTS: u64 = 1_000_000;
/// How many audit records are kept; they go apart from events, so that neither can push out the other.
const KEPT_AUDIT: u64 = 500_000;
/// At most so many old events or audit records go in one transaction, so that no commit becomes slow after a change of the bound.
const MAX_PRUNED: u64 = 4_096;

impl Store {
    /// At most `limit` events with numbers above `after`, of one VM if `vm` is given; with the number of the oldest
    /// event still kept (0 = none).
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn events(
        &self,
        after: EventNumber,
        limit: usize,
        vm: Option<VmUid>,
    ) -> Result<(Vec<Event>, EventNumber), StoreError> {
        let txn = self.env.read_txn()?;
        let first = self.events.first(&txn)?.map_or(0, |(key, _)| number_of(key));
        let from = after.saturating_add(1);
        let mut found = Vec::new();
        match vm {
            None => {
                for entry in self.events.range(&txn, &(Included(from.to_be_bytes().as_slice()), Unbounded))?.take(limit)
                {
                    let (key, bytes) = entry?;
                    found.push(decode("events", key, bytes)?);
                }
            }
            Some(uid) => {
                let (low, high) = (vm_event_key(uid, from), vm_event_key(uid, EventNumber::MAX));
                let range = (Included(low.as_slice()), Included(high.as_slice()));
                for entry in self.events_of_vm.range(&txn, &range)?.take(limit) {
                    let (key, _) = entry?;
                    let number = key.get(16..).unwrap_or_default();
                    if let Some(bytes) = self.events.get(&txn, number)? {
                        found.push(decode("events", number, bytes)?);
                    }
                }
            }
        }
        Ok((found, first))
    }

    /// At most `limit` audit records with numbers above `after`, and the number of the oldest still kept (0 = none).
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn audit(&self, after: AuditNumber, limit: usize) -> Result<(Vec<AuditRecord>, AuditNumber), StoreError> {
        let txn = self.env.read_txn()?;
        let first = self.audit.first(&txn)?.map_or(0, |(key, _)| number_of(key));
        let from = after.saturating_add(1).to_be_bytes();
        let mut found = Vec::new();
        for entry in self.audit.range(&txn, &(Included(from.as_slice()), Unbounded))?.take(limit) {
            let (key, bytes) = entry?;
            found.push(decode("audit", key, bytes)?);
        }
        Ok((found, first))
    }

    pub(super) fn prune_audit(&self, txn: &mut RwTxn<'_>, last: AuditNumber) -> Result<(), StoreError> {
        for _ in 0..MAX_PRUNED {
            let Some((key, _)) = self.audit.first(txn)? else { return Ok(()) };
            let number = number_of(key);
            if last.saturating_sub(number) < KEPT_AUDIT {
                return Ok(());
            }
            self.audit.delete(txn, &number.to_be_bytes())?;
        }
        Ok(())
    }

    pub(super) fn prune(&self, txn: &mut RwTxn<'_>, last: EventNumber) -> Result<(), StoreError> {
        for _ in 0..MAX_PRUNED {
            let Some((key, bytes)) = self.events.first(txn)? else { return Ok(()) };
            let number = number_of(key);
            if last.saturating_sub(number) < KEPT_EVENTS {
                return Ok(());
            }
            let event: Event = decode("events", key, bytes)?;
            if let EventObject::Vm { uid, .. } = event.object {
                self.events_of_vm.delete(txn, &vm_event_key(uid, number))?;
            }
            self.events.delete(txn, &number.to_be_bytes())?;
        }
        Ok(())
    }
}

pub(super) fn vm_event_key(uid: VmUid, number: EventNumber) -> Vec<u8> {
    [uid.0.as_bytes().as_slice(), &number.to_be_bytes()].concat()
}

fn number_of(key: &[u8]) -> EventNumber {
    key.try_into().map_or(0, EventNumber::from_be_bytes)
}
