//! The trail in a real LMDB against a model that does the same on a list.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::controller::store::Bounds;
use crate::controller::store::tables;
use crate::model::Timestamp;
use crate::model::audit::{Deed, Outcome};

const DAY_MS: i64 = 24 * 3600 * 1000;
const ALL: Room = Room { items: usize::MAX, bytes: usize::MAX };

fn record(number: AuditNumber, account: &str, kind: AuditType, day: i64) -> AuditRecord {
    let deed = Deed {
        kind,
        account: account.to_owned(),
        address: String::new(),
        verb: "vm.create".to_owned(),
        target: String::new(),
        outcome: Outcome::Done,
        message: String::new(),
        request: String::new(),
    };
    AuditRecord::new(number, Timestamp::from_millis(day * DAY_MS), deed)
}

/// The naive form: a list.
#[derive(Default)]
struct Model(Vec<AuditRecord>);

impl Model {
    fn append(&mut self, records: &[AuditRecord], kept: Kept) {
        self.0.extend_from_slice(records);
        let Some(newest) = records.last() else { return };
        let mut left = records.len() + MAX_TRIMMED;
        while left > 0 && self.0.len() as u64 > kept.records {
            let mut counts: BTreeMap<String, u64> = BTreeMap::new();
            for record in &self.0 {
                *counts.entry(holder(record).to_owned()).or_default() += 1;
            }
            let (_, most) = counts.into_iter().map(|(name, count)| (count, name)).max().unwrap();
            let oldest = self.0.iter().position(|record| holder(record) == most).unwrap();
            self.0.remove(oldest);
            left -= 1;
        }
        while left > 0 && self.0.first().is_some_and(|first| first.time.until(newest.time) > kept.age) {
            self.0.remove(0);
            left -= 1;
        }
    }
}

fn batches() -> impl Strategy<Value = Vec<Vec<(u8, bool, u8)>>> {
    // Few accounts, of which one does most; some logins fail; days go by.
    let account = prop_oneof![3 => Just(0u8), 1 => 0u8..4];
    proptest::collection::vec(proptest::collection::vec((account, prop::bool::weighted(0.2), 0u8..3), 1..30), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn what_is_kept_is_what_the_naive_model_keeps(batches in batches(), most in 1u64..40, days in 1u64..40) {
        let dir = tempfile::tempdir().unwrap();
        let (env, tables) = tables::open(dir.path(), 1 << 26).unwrap();
        let kept = Kept { records: most, age: Duration::from_secs(days * 24 * 3600) };
        let (mut model, mut held) = (Model::default(), Shares::default());
        let (mut number, mut day) = (0, 0);
        for batch in batches {
            let records: Vec<_> = batch.into_iter().map(|(account, failed, passed)| {
                number += 1;
                day += i64::from(passed);
                let kind = if failed { AuditType::LoginFailed } else { AuditType::Request };
                record(number, ["ann", "anna", "bob", ""][usize::from(account)], kind, day)
            }).collect();
            let mut txn = env.write_txn().unwrap();
            append(&tables, (&mut txn, &mut Vec::new()), &mut held, &records, kept).unwrap();
            txn.commit().unwrap();
            model.append(&records, kept);
            let txn = env.read_txn().unwrap();
            let stored: Vec<AuditRecord> = tables::all(&txn, tables.audit, "audit").unwrap();
            prop_assert_eq!(&stored, &model.0);
        }
        prop_assert_eq!(shares(&env, &tables).unwrap(), held);
    }
}

#[test]
fn nobodys_volume_pushes_out_what_another_did() {
    let dir = tempfile::tempdir().unwrap();
    let (env, tables) = tables::open(dir.path(), 1 << 26).unwrap();
    let kept = Kept { records: 100, age: Duration::from_secs(400 * 24 * 3600) };
    let mut held = Shares::default();
    let mut add = |number, account, kind| {
        let mut txn = env.write_txn().unwrap();
        append(&tables, (&mut txn, &mut Vec::new()), &mut held, &[record(number, account, kind, 0)], kept).unwrap();
        txn.commit().unwrap();
    };
    add(1, "victim", AuditType::Request);
    add(2, "mallory", AuditType::Request);
    // Another account of mallory's, and strangers who call themselves as the victim.
    (3..400).for_each(|number| add(number, "helper", AuditType::Request));
    (400..900).for_each(|number| add(number, "victim", AuditType::LoginFailed));
    let txn = env.read_txn().unwrap();
    let stored: Vec<AuditRecord> = tables::all(&txn, tables.audit, "audit").unwrap();
    assert_eq!(stored.len(), 100);
    let first: Vec<_> = stored.iter().take(2).map(|record| (record.number, record.account.as_str())).collect();
    assert_eq!(first, [(1, "victim"), (2, "mallory")]);
    assert_eq!(stored.iter().filter(|record| record.account == "helper").count(), 49);
}

#[test]
fn a_trail_of_an_older_release_is_counted_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), Bounds { map_size: 1 << 26, ..Bounds::default() }).unwrap();
    let mut txn = store.env.write_txn().unwrap();
    for number in 1..=10_000u64 {
        let account = if number % 2 == 0 { "ann" } else { "bob" };
        let bytes = rmp_serde::to_vec_named(&record(number, account, AuditType::Request, 0)).unwrap();
        store.tables.audit.put(&mut txn, &number.to_be_bytes(), &bytes).unwrap();
    }
    txn.commit().unwrap();
    let counted = shares(&store.env, &store.tables).unwrap();
    assert_eq!((counted.total(), counted.largest()), (10_000, Some(&"bob".to_owned())));
    assert_eq!(store.audit(0, ALL).unwrap().items.len(), 10_000);
    assert_eq!(shares(&store.env, &store.tables).unwrap(), counted);
}

#[test]
fn a_lower_bound_is_reached_in_steps_that_stay_small() {
    let dir = tempfile::tempdir().unwrap();
    let (env, tables) = tables::open(dir.path(), 1 << 26).unwrap();
    let age = Duration::from_secs(400 * 24 * 3600);
    let mut held = Shares::default();
    let records: Vec<_> = (1..=2_000).map(|number| record(number, "ann", AuditType::Request, 0)).collect();
    let mut txn = env.write_txn().unwrap();
    append(&tables, (&mut txn, &mut Vec::new()), &mut held, &records, Kept { records: 2_000, age }).unwrap();
    for number in 2_001..2_010 {
        let before = held.total();
        // By number, and by age: these are of two years later.
        let kept = Kept { records: if number < 2_005 { 10 } else { 2_000 }, age };
        append(
            &tables,
            (&mut txn, &mut Vec::new()),
            &mut held,
            &[record(number, "ann", AuditType::Request, 800)],
            kept,
        )
        .unwrap();
        let gone = (before + 1).saturating_sub(held.total());
        assert!(gone > 0 && gone <= MAX_TRIMMED as u64 + 1 || held.total() <= 10, "{gone} at {number}");
    }
    txn.commit().unwrap();
    assert!(held.total() <= 10, "{}", held.total());
}
