//! Stores of older releases, from the bytes that these wrote (`tests/fixtures/store`): each is taken over with all there was.

use std::path::Path;

use heed::CommitOrAbort;
use heed::types::Bytes;

use super::tables::{META, SCHEMA_KEY, open_env};
use super::*;
use crate::model::event::EventFilter;
use crate::model::settings::ClusterSettings;
use crate::model::vm::VmStatus;

/// Lays the records of a fixture into a data folder, as that release would have.
fn lay(fixture: &str, folder: &Path) {
    let database = folder.join("db");
    identity::make_private_dir(&database).unwrap();
    let env = open_env(&database, Bounds::default().map_size).unwrap();
    let bytes = |hex: &str| data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap();
    let lines =
        || fixture.lines().filter(|line| !line.starts_with('#')).map(|line| line.split(' ').collect::<Vec<_>>());
    for line in lines().filter(|line| line[0] == "key") {
        identity::write_private(&folder.join(seal::KEY_FILE), &bytes(line[2])).unwrap();
    }
    env.create_databases_and_commit(env.write_txn().unwrap(), |target, txn| {
        for line in lines().filter(|line| line[0] != "key") {
            let table = target.create_database::<Bytes, Bytes>(txn, Some(line[0]))?;
            table.put(txn, &bytes(line[1]), &bytes(line[2]))?;
        }
        Ok::<_, heed::Error>(CommitOrAbort::<(), ()>::Commit(()))
    })
    .unwrap();
    env.prepare_for_closing().wait();
}

fn schema_of(store: &Store) -> u32 {
    let txn = store.env.read_txn().unwrap();
    decode(META, SCHEMA_KEY.as_bytes(), store.tables.meta.get(&txn, SCHEMA_KEY).unwrap().unwrap()).unwrap()
}

fn is_taken_over(fixture: &str) {
    let dir = tempfile::tempdir().unwrap();
    lay(fixture, dir.path());
    // The second opening finds the present schema.
    for _ in 0..2 {
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(schema_of(&store), SCHEMA);
        let records = store.records().unwrap();
        let mut vms = records.vms;
        vms.sort_by(|a, b| a.name.cmp(&b.name));
        let [runs, waits] = vms.as_slice() else { panic!("{vms:?}") };
        assert_eq!((runs.name.as_str(), runs.status, runs.assigned_cpu), ("runs", VmStatus::Running, 4));
        assert_eq!(runs.worker.as_ref().map(|name| name.as_str()), Some("dev-1"));
        assert_eq!(runs.spec.password.as_ref().unwrap().expose(), "secret");
        assert_eq!((runs.copy_id().attempt, runs.attempts_from, runs.bound_to.as_ref()), (0, 0, None));
        assert_eq!((waits.name.as_str(), waits.status, waits.spec.priority), ("waits", VmStatus::Pending, 3));
        assert_eq!((records.workers.len(), records.accounts.len(), records.keys.len()), (1, 1, 1));
        assert_eq!((records.last_event, store.published().unwrap().events), (13, 12));
        assert_eq!((records.settings, records.restored.floor), (ClusterSettings::default(), 0));
        let room = Room { items: 100, bytes: usize::MAX };
        assert_eq!(store.events(0, room, &EventFilter::default()).unwrap().items.len(), 13);
        assert_eq!(store.events(0, room, &EventFilter::of(runs.uid)).unwrap().items.len(), 4);
        store.close();
    }
}

#[test]
fn a_store_of_schema_1_is_taken_over() {
    is_taken_over(include_str!("../../../tests/fixtures/store/schema-1.txt"));
}

#[test]
fn a_store_of_schema_2_is_taken_over() {
    is_taken_over(include_str!("../../../tests/fixtures/store/schema-2.txt"));
}

#[test]
fn every_older_schema_has_its_fixture() {
    assert_eq!(SCHEMA, 3, "keep a fixture of the schema before, and test it here");
}
