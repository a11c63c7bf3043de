//! The audit trail as it is stored, and which of its records go when there is no room for more.
//!
//! What goes is the oldest record of whoever holds the most: an account that makes many records pushes out its own, and
//! neither what others did nor what it did under another name. Whoever has not proven to be an account, such as all whose
//! logins fail, counts as one: strangers can push out what strangers did.

use std::ops::Bound::{Included, Unbounded};
use std::time::Duration;

use heed::{Env, RoTxn, RwTxn};

use super::history::{Page, Room, cut, number_of};
use super::tables::{Tables, append as put_last, decode};
use super::{Store, StoreError};
use crate::controller::shares::Shares;
use crate::model::audit::{AuditNumber, AuditRecord, AuditType};

/// So many more records than come in may go in one transaction: enough to come down to a lower bound in time, so few that
/// no commit becomes slow by it.
const MAX_TRIMMED: usize = 256;

/// What is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// At most so many records.
    pub(super) records: u64,
    /// None that is older than this.
    pub(super) age: Duration,
}

impl Store {
    /// Audit records with numbers above `after`. Numbers are missing where records went: not only the oldest do.
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
}

/// Stores `records`, each made in `buffer`, and lets go what there is no room for then.
pub(super) fn append(
    tables: &Tables,
    (txn, buffer): (&mut RwTxn<'_>, &mut Vec<u8>),
    shares: &mut Shares<String>,
    records: &[AuditRecord],
    kept: Kept,
) -> Result<(), StoreError> {
    for record in records {
        put_last(tables.audit, txn, record.number, record, buffer)?;
        tables.audit_of.put(txn, &held_key(holder(record), record.number), &[])?;
        shares.add(holder(record).to_owned());
    }
    let Some(newest) = records.last() else { return Ok(()) };
    let mut left = records.len().saturating_add(MAX_TRIMMED);
    while left > 0 && shares.total() > kept.records {
        let Some(holder) = shares.largest().cloned() else { break };
        let Some(number) = oldest_of(tables, txn, &holder)? else { break };
        remove(tables, txn, shares, &holder, number)?;
        left -= 1;
    }
    while left > 0 {
        let Some((key, bytes)) = tables.audit.first(txn)? else { break };
        // One that is damaged is not known to be old; it goes by its number, and is in nobody's way until then.
        let Ok(oldest) = decode::<AuditRecord>("audit", key, bytes) else { break };
        if oldest.time.until(newest.time) <= kept.age {
            break;
        }
        remove(tables, txn, shares, holder(&oldest), oldest.number)?;
        left -= 1;
    }
    Ok(())
}

/// Who holds how much, as it is stored. Puts the table that says so right first, if an older release wrote records without.
pub(super) fn shares(env: &Env, tables: &Tables) -> Result<Shares<String>, StoreError> {
    let mut txn = env.write_txn()?;
    let shares = shares_in(tables, &mut txn)?;
    txn.commit()?;
    Ok(shares)
}

/// The same within a transaction.
pub(super) fn shares_in(tables: &Tables, txn: &mut RwTxn<'_>) -> Result<Shares<String>, StoreError> {
    if !is_complete(tables, txn)? {
        tables.audit_of.clear(txn)?;
        let mut after = 0u64;
        loop {
            // Page by page: a table must not change while it is walked through.
            let from = after.saturating_add(1).to_be_bytes();
            let found = tables.audit.range(txn, &(Included(from.as_slice()), Unbounded))?;
            let room = Room { items: 4_096, bytes: usize::MAX };
            let page: Page<AuditRecord> = cut("audit", found.map(|entry| Ok(entry?)), room, 0)?;
            for record in &page.items {
                tables.audit_of.put(txn, &held_key(holder(record), record.number), &[])?;
                after = record.number;
            }
            if !page.more {
                break;
            }
        }
    }
    let mut shares = Shares::default();
    // In the order of holders, so that each is looked up once, however many records there are.
    let (mut holder, mut count) = (Vec::new(), 0);
    for entry in tables.audit_of.iter(txn)? {
        let (key, _) = entry?;
        let next = key.len().checked_sub(NUMBER_LEN + 1).and_then(|len| key.get(..len)).unwrap_or_default();
        if holder != next {
            shares.add_many(String::from_utf8_lossy(&holder).into_owned(), count);
            (holder, count) = (next.to_vec(), 0);
        }
        count += 1;
    }
    shares.add_many(String::from_utf8_lossy(&holder).into_owned(), count);
    Ok(shares)
}

/// Whether each record stands in the table by holder. A release that does not know the table adds at the end.
fn is_complete(tables: &Tables, txn: &RoTxn<'_>) -> Result<bool, StoreError> {
    if tables.audit.len(txn)? != tables.audit_of.len(txn)? {
        return Ok(false);
    }
    let Some((key, bytes)) = tables.audit.last(txn)? else { return Ok(true) };
    let Ok(last) = decode::<AuditRecord>("audit", key, bytes) else { return Ok(false) };
    Ok(tables.audit_of.get(txn, &held_key(holder(&last), last.number))?.is_some())
}

/// Whose room `record` takes; empty for strangers.
fn holder(record: &AuditRecord) -> &str {
    let claimed = record.stranger || record.kind == AuditType::LoginFailed;
    if claimed { "" } else { &record.account }
}

fn oldest_of(tables: &Tables, txn: &RoTxn<'_>, holder: &str) -> Result<Option<AuditNumber>, StoreError> {
    let (low, high) = (held_key(holder, 0), held_key(holder, AuditNumber::MAX));
    let mut held = tables.audit_of.range(txn, &(Included(low.as_slice()), Included(high.as_slice())))?;
    let Some(entry) = held.next() else { return Ok(None) };
    let (key, _) = entry?;
    Ok(key.len().checked_sub(NUMBER_LEN).and_then(|at| key.get(at..)).map(number_of))
}

fn remove(
    tables: &Tables,
    txn: &mut RwTxn<'_>,
    shares: &mut Shares<String>,
    holder: &str,
    number: AuditNumber,
) -> Result<(), StoreError> {
    tables.audit.delete(txn, &number.to_be_bytes())?;
    tables.audit_of.delete(txn, &held_key(holder, number))?;
    shares.remove(holder.to_owned());
    Ok(())
}

/// Length of a number at the end of a key.
const NUMBER_LEN: usize = size_of::<AuditNumber>();

/// The holder, a zero byte, which stands in no name, and the number.
fn held_key(holder: &str, number: AuditNumber) -> Vec<u8> {
    [holder.as_bytes(), &[0], &number.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests;
