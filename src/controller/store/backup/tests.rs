//! Backups of stores on a real disk, whole and damaged, and restoring that is interrupted anywhere.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::restore::{REPLACED, RestoreError, Restored};
use super::*;
use crate::bus::message::CreateVm;
use crate::controller::cluster::{Changes, Cluster, Timing};
use crate::controller::store::{OpenError, Published, Room, SCHEMA, Store};
use crate::identity::ca::{Fingerprint, Identity};
use crate::identity::crash;
use crate::model::event::EventFilter;
use crate::model::vm::VmSpec;
use crate::model::{Clock, VmUid};

fn now() -> Timestamp {
    Clock::start().now().wall
}

/// A controller's data folder with a VM of each name.
fn controller(folder: &Path, vms: &[&str]) -> Fingerprint {
    let store = open(folder);
    let identity = Identity::load_or_create(folder, &["localhost".to_owned()]).unwrap();
    create(&store, vms);
    store.close();
    identity.fingerprint()
}

fn create(store: &Store, vms: &[&str]) {
    let mut cluster = Cluster::load(store.records().unwrap(), Timing::default(), Clock::start().now());
    for name in vms {
        let request = CreateVm {
            name: name.parse().unwrap(),
            spec: VmSpec { image: "img".into(), ..VmSpec::default() },
            key: None,
        };
        let mut changes = Changes::default();
        let uid = VmUid(uuid::Uuid::now_v7());
        cluster.create_vm(None, request, uid, Clock::start().now(), &mut changes).unwrap();
        store.commit(&cluster, &changes, Published::default()).unwrap();
    }
}

/// Names of the VMs, the certificate, and the last number of an event.
fn state(folder: &Path) -> (Vec<String>, Fingerprint, u64) {
    let store = open(folder);
    let fingerprint = Identity::load_or_create(folder, &["localhost".to_owned()]).unwrap().fingerprint();
    let records = store.records().unwrap();
    let mut names: Vec<String> = records.vms.iter().map(|vm| vm.name.to_string()).collect();
    names.sort();
    store.close();
    (names, fingerprint, records.last_event)
}

/// Opens it. A process that another test starts holds our locks, too, until it has become the one that it is to be.
fn open(folder: &Path) -> Store {
    loop {
        match Store::open(folder) {
            Err(OpenError::Lock(_)) => std::thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
}

/// Restores where nobody is in the way, see [`open`].
fn restore(file: &Path, folder: &Path, force: bool, now: Timestamp) -> Result<Restored, RestoreError> {
    loop {
        match restore::restore(file, folder, force, now) {
            Err(RestoreError::Lock(_)) => std::thread::yield_now(),
            done => return done,
        }
    }
}

/// Backs up `folder` in a process of its own, as LMDB wants it for a database that is open in this one.
fn back_up_hot(folder: &Path, file: &Path) -> String {
    let name = "controller::store::backup::tests::backs_up_in_a_process_of_its_own";
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env(BACK_UP, folder).env(TO, file);
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

const BACK_UP: &str = "ORCHARD_TEST_BACK_UP";
const TO: &str = "ORCHARD_TEST_BACK_UP_TO";

#[test]
fn backs_up_in_a_process_of_its_own() {
    let (Some(folder), Some(file)) = (std::env::var_os(BACK_UP), std::env::var_os(TO)) else { return };
    println!("{:?}", write(Path::new(&folder), Path::new(&file), now()));
}

#[test]
fn a_controller_comes_back_with_its_records_its_keys_and_its_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two, file) = (dir.path().join("one"), dir.path().join("two"), dir.path().join("backup"));
    let fingerprint = controller(&one, &["a", "b"]);
    let made = now();
    let size = write(&one, &file, made).unwrap();
    let about = std::fs::metadata(&file).unwrap();
    assert_eq!((about.len(), about.permissions().mode() & 0o777), (size, 0o600));
    assert!(matches!(write(&one, &file, made), Err(BackupError::Exists(_))));
    let before = state(&one).2;
    let restored = restore(&file, &two, false, now()).unwrap();
    assert_eq!((restored.created, restored.vms, restored.replaced), (made, 2, None));
    let (names, print, last) = state(&two);
    assert_eq!((names, print), (vec!["a".to_owned(), "b".to_owned()], fingerprint));
    assert!(last > before && last < 1 << 53, "{last}");
    // It says what happened to it, and events of before are kept.
    let store = open(&two);
    let room = Room { items: 100, bytes: usize::MAX };
    let audit = store.audit(0, room).unwrap().items;
    assert_eq!(audit.last().map(|record| record.verb.as_str()), Some("controller.restore"));
    create(&store, &["c"]);
    let numbers: Vec<u64> =
        store.events(0, room, &EventFilter::default()).unwrap().items.into_iter().map(|event| event.number).collect();
    assert_eq!(numbers, [1, 2, last + 1]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "nothing is left beside the backup");
}

#[test]
fn numbers_never_repeat_whatever_is_restored() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, file) = (dir.path().join("data"), dir.path().join("backup"));
    controller(&folder, &["a"]);
    write(&folder, &file, now()).unwrap();
    let mut last = state(&folder).2;
    for round in 1..5i64 {
        // The same backup again and again, after changes that it does not know of.
        restore(&file, &folder, true, Timestamp::from_millis(now().as_millis() + round)).unwrap();
        let store = open(&folder);
        create(&store, &["x", "y"]);
        store.close();
        let next = state(&folder).2;
        assert!(next > last + 2, "{next} after {last}");
        last = next;
    }
    // Nor with a clock that stands in the past.
    let late = dir.path().join("late");
    write(&folder, &late, now()).unwrap();
    restore(&late, &folder, true, Timestamp::from_millis(5)).unwrap();
    assert!(state(&folder).2 > last);
}

#[test]
fn what_is_written_meanwhile_is_in_the_backup_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("data");
    controller(&folder, &["a"]);
    let store = open(&folder);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 0;
            while !done.load(std::sync::atomic::Ordering::SeqCst) {
                create(&store, &[&format!("n{n}")]);
                n += 1;
            }
        });
        for round in 0..5 {
            let file = dir.path().join(format!("backup{round}"));
            let said = back_up_hot(&folder, &file);
            assert!(said.contains("Ok("), "{said}");
            let there = dir.path().join(format!("there{round}"));
            let restored = restore(&file, &there, false, now()).unwrap();
            let copy = open(&there);
            let events =
                copy.events(0, Room { items: 100_000, bytes: usize::MAX }, &EventFilter::default()).unwrap().items;
            // One event for each VM, in the same transaction.
            assert_eq!(events.len(), restored.vms);
        }
        done.store(true, std::sync::atomic::Ordering::SeqCst);
    });
}

#[test]
fn a_folder_in_use_or_with_data_is_left_alone_unless_it_is_forced() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, file) = (dir.path().join("data"), dir.path().join("backup"));
    assert!(matches!(write(&folder, &file, now()), Err(BackupError::Nothing(_))));
    let old = controller(&folder, &["a"]);
    write(&folder, &file, now()).unwrap();
    let store = open(&folder);
    assert!(matches!(restore::restore(&file, &folder, true, now()), Err(RestoreError::Lock(_))));
    create(&store, &["later"]);
    store.close();
    let error = restore(&file, &folder, false, now()).unwrap_err();
    assert!(matches!(error, RestoreError::Occupied(_)) && error.to_string().contains("--force"), "{error}");
    assert_eq!(state(&folder).0, ["a", "later"]);
    let replaced = restore(&file, &folder, true, now()).unwrap().replaced.unwrap();
    assert_eq!((state(&folder).0, state(&folder).1), (vec!["a".to_owned()], old));
    assert_eq!(replaced, folder.join(REPLACED));
    assert_eq!(state(&replaced).0, ["a", "later"], "what was replaced is a data folder itself");
}

#[test]
fn a_backup_that_is_cut_short_changed_or_none_at_all_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, file) = (dir.path().join("data"), dir.path().join("backup"));
    controller(&folder, &["a"]);
    write(&folder, &file, now()).unwrap();
    let before = state(&folder);
    let whole = std::fs::read(&file).unwrap();
    let bad = dir.path().join("bad");
    let mut forms: Vec<Vec<u8>> = vec![b"".to_vec(), b"something else".to_vec(), [&whole[..], b"x"].concat()];
    for at in (0..whole.len()).step_by(whole.len() / 40) {
        forms.push(whole[..at].to_vec());
        let mut changed = whole.clone();
        changed[at] ^= 0x20;
        forms.push(changed);
    }
    for form in forms {
        std::fs::write(&bad, &form).unwrap();
        let error = restore(&bad, &folder, true, now()).unwrap_err();
        assert!(matches!(error, RestoreError::Backup { .. }), "{error:?}");
        assert!(!folder.join("restore.new").exists());
    }
    assert_eq!(state(&folder), before);
    let newer = [b"orchard-backup/2\n", &whole[17..]].concat();
    std::fs::write(&bad, newer).unwrap();
    let error = restore(&bad, &folder, true, now()).unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("newer release"));
}

#[test]
fn a_backup_of_a_newer_schema_or_without_its_key_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, other, file) = (dir.path().join("data"), dir.path().join("other"), dir.path().join("backup"));
    controller(&folder, &["a"]);
    controller(&other, &["b"]);
    let store = open(&other);
    let mut txn = store.env.write_txn().unwrap();
    store.tables.meta.put(&mut txn, "schema", &rmp_serde::to_vec(&(SCHEMA + 1)).unwrap()).unwrap();
    txn.commit().unwrap();
    store.close();
    write(&other, &file, now()).unwrap();
    let error = restore(&file, &folder, true, now()).unwrap_err();
    assert!(
        matches!(&error, RestoreError::Unusable { source, .. } if matches!(**source, OpenError::Newer { .. })),
        "{error:?}"
    );
    let (third, keyless) = (dir.path().join("third"), dir.path().join("keyless"));
    controller(&third, &["c"]);
    std::fs::remove_file(third.join("store.key")).unwrap();
    write(&third, &keyless, now()).unwrap();
    let error = restore(&keyless, &folder, true, now()).unwrap_err();
    assert!(
        matches!(&error, RestoreError::Unusable { source, .. } if matches!(**source, OpenError::Key(_))),
        "{error:?}"
    );
    assert_eq!(state(&folder).0, ["a"]);
}

#[tokio::test]
async fn restoring_that_is_killed_anywhere_leaves_the_old_or_the_new() {
    let dir = tempfile::tempdir().unwrap();
    let (new, file) = (dir.path().join("new"), dir.path().join("backup"));
    let fresh = controller(&new, &["new"]);
    write(&new, &file, now()).unwrap();
    let (mut old, mut renewed) = (0, 0);
    for place in 0.. {
        let folder: PathBuf = dir.path().join(format!("data{place}"));
        let stale = controller(&folder, &["old"]);
        // Of the old alone: it must not stay beside the new.
        crate::identity::write_private(&folder.join("token"), b"old").unwrap();
        let (_, killed) = crash::tests::killed_at(place, async { restore(&file, &folder, true, now()) }).await;
        let (names, print, _) = state(&folder);
        match names[0].as_str() {
            "old" => {
                assert!(print == stale && folder.join("token").exists(), "place {place}");
                old += 1;
            }
            _ => {
                assert!(print == fresh && !folder.join("token").exists(), "place {place}");
                assert_eq!(state(&folder.join(REPLACED)).0, ["old"]);
                renewed += 1;
            }
        }
        assert!(!folder.join("restore.new").exists() && !folder.join("restore.ready").exists());
        if !killed {
            break;
        }
    }
    assert!(old > 10 && renewed > 5, "{old} {renewed}");
}
