//! The store on a real disk: what its files hold, and what becomes of those of an older release.

use std::path::Path;

use super::seal::KeyError;
use super::tables::SCHEMA_KEY;
use super::*;
use crate::bus::message::CreateVm;
use crate::controller::cluster::Timing;
use crate::model::event::{Event, EventFilter, EventType};
use crate::model::secret::Secret;
use crate::model::vm::{StartupScript, Vm, VmSpec};
use crate::model::{Clock, Timestamp, VmUid};

const SECRETS: [&str; 2] = ["correct-horse-battery-staple", "xoxb-environment-of-a-script"];

/// A VM with secrets, `filler` bytes of script and the number `n` in its name.
fn request(n: usize, filler: usize) -> CreateVm {
    let script = StartupScript {
        script_content: "x".repeat(filler),
        env: [("TOKEN".to_owned(), Secret::new(SECRETS[1]))].into(),
    };
    let spec = VmSpec {
        image: "img".into(),
        password: Some(Secret::new(SECRETS[0])),
        startup_script: Some(script),
        ..VmSpec::default()
    };
    CreateVm { name: format!("vm{n}").parse().unwrap(), spec, key: None }
}

fn cluster(store: &Store) -> Cluster {
    Cluster::load(store.records().unwrap(), Timing::default(), Clock::start().now())
}

fn create(store: &Store, cluster: &mut Cluster, n: usize) {
    let mut changes = Changes::default();
    let uid = VmUid(uuid::Uuid::now_v7());
    cluster.create_vm(None, request(n, 10), uid, Clock::start().now(), &mut changes).unwrap();
    store.commit(cluster, &changes, Published::default()).unwrap();
}

/// The secrets that stand in any file of `folder`.
fn found_in(folder: &Path) -> Vec<&'static str> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(found_in(&path));
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        found.extend(SECRETS.iter().filter(|secret| memchr::memmem::find(&bytes, secret.as_bytes()).is_some()));
    }
    found
}

/// A folder as the release before sealing left it: many changes, so that old pages hold plain text, too.
#[allow(clippy::vec_box)] // as records have it
fn plain_store(folder: &Path) -> Vec<Box<Vm>> {
    crate::identity::make_private_dir(&folder.join("db")).unwrap();
    let (env, tables) = tables::open(&folder.join("db"), Bounds::default().map_size).unwrap();
    let mut kept = Vec::new();
    for n in 0..60 {
        let request = request(n, n * 50);
        let uid = VmUid(uuid::Uuid::now_v7());
        let vm = Vm::requested(request.name, uid, Clock::start().now().wall, request.spec);
        let mut txn = env.write_txn().unwrap();
        tables.vms.put(&mut txn, uid.0.as_bytes(), &rmp_serde::to_vec_named(&vm).unwrap()).unwrap();
        tables.events.put(&mut txn, &1u64.to_be_bytes(), &[]).unwrap();
        tables.meta.put(&mut txn, SCHEMA_KEY, &rmp_serde::to_vec(&PLAIN_SCHEMA).unwrap()).unwrap();
        tables.meta.put(&mut txn, LAST_EVENT_KEY, &rmp_serde::to_vec(&77u64).unwrap()).unwrap();
        txn.commit().unwrap();
        kept.push(Box::new(vm));
        if n % 2 == 1 {
            let gone = kept.remove(n / 4);
            let mut txn = env.write_txn().unwrap();
            tables.vms.delete(&mut txn, gone.uid.0.as_bytes()).unwrap();
            txn.commit().unwrap();
        }
    }
    env.prepare_for_closing().wait();
    kept
}

#[test]
fn no_file_of_the_data_folder_holds_a_secret_of_a_vm() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut state = cluster(&store);
    for n in 0..20 {
        create(&store, &mut state, n);
    }
    let mut changes = Changes::default();
    state.delete_vm(&"vm3".parse().unwrap(), Clock::start().now(), &mut changes).unwrap();
    store.commit(&state, &changes, Published::default()).unwrap();
    assert_eq!(found_in(dir.path()), Vec::<&str>::new());
    let read = store.records().unwrap().vms;
    assert_eq!(read.len(), 19);
    assert!(read.iter().all(|vm| vm.spec.password.as_ref().unwrap().expose() == SECRETS[0]));
}

#[test]
fn a_store_of_the_release_before_sealing_is_taken_over_and_no_plain_text_stays() {
    let dir = tempfile::tempdir().unwrap();
    let kept = plain_store(dir.path());
    assert!(!found_in(dir.path()).is_empty());
    // Of an attempt that was broken off.
    std::fs::create_dir(dir.path().join("db.new")).unwrap();
    std::fs::write(dir.path().join("db.new/data.mdb"), b"half").unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(found_in(dir.path()), Vec::<&str>::new());
    let records = store.records().unwrap();
    assert_eq!((records.vms, records.last_event), (kept, 77));
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    let mut state = cluster(&store);
    create(&store, &mut state, 1000);
    assert_eq!(found_in(dir.path()), Vec::<&str>::new());
    assert!(!dir.path().join("db.new").exists());
}

#[test]
fn a_store_without_its_key_says_that_a_backup_is_needed_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join(seal::KEY_FILE);
    let store = Store::open(dir.path()).unwrap();
    let mut state = cluster(&store);
    create(&store, &mut state, 1);
    drop((store, state));
    let bytes = std::fs::read(&key).unwrap();
    std::fs::remove_file(&key).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, OpenError::Key(KeyError::Missing(_))), "{error:?}");
    assert!(!key.exists());
    identity::write_private(&key, &[9; 32]).unwrap();
    let error = Store::open(dir.path()).unwrap().records().unwrap_err();
    assert!(matches!(error, StoreError::Sealed { table: VMS, .. }), "{error:?}");
    identity::write_private(&key, &bytes).unwrap();
    assert_eq!(Store::open(dir.path()).unwrap().records().unwrap().vms.len(), 1);
}

#[test]
fn a_store_of_a_newer_release_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut txn = store.env.write_txn().unwrap();
    store.tables.meta.put(&mut txn, SCHEMA_KEY, &rmp_serde::to_vec(&(SCHEMA + 1)).unwrap()).unwrap();
    txn.commit().unwrap();
    drop(store);
    assert!(matches!(Store::open(dir.path()).unwrap_err(), OpenError::Newer { .. }));
}

#[test]
fn pages_of_long_lines_are_small_enough_to_be_sent_and_leave_nothing_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let state = cluster(&store);
    let events = (1..=500).map(|number| Event {
        number,
        time: Timestamp::default(),
        kind: EventType::Log,
        object: EventObject::Worker { name: "w".parse().unwrap() },
        message: "x".repeat(8 * 1024),
        worker: None,
        stream: None,
        said_at: None,
    });
    let changes = Changes { events: events.collect(), ..Changes::default() };
    store.commit(&state, &changes, Published::default()).unwrap();
    let room = Room { items: 500, bytes: 512 * 1024 };
    let (mut after, mut pages) = (0, 0);
    loop {
        let page = store.events(after, room, &EventFilter::default()).unwrap();
        let size: usize = page.items.iter().map(|event| rmp_serde::to_vec_named(event).unwrap().len()).sum();
        assert!(size <= room.bytes && page.items.first().unwrap().number == after + 1);
        after = page.items.last().unwrap().number;
        pages += 1;
        if !page.more {
            break;
        }
    }
    assert!(after == 500 && pages > 5, "{after} in {pages}");
    let one = store.events(0, Room { items: 500, bytes: 1 }, &EventFilter::default()).unwrap();
    assert_eq!((one.items.len(), one.more), (1, true));
    assert!(!store.events(499, Room { items: 1, bytes: 1 }, &EventFilter::default()).unwrap().more);
}

/// Names the folder that the test to be run in a process of its own shall open.
const OPEN: &str = "ORCHARD_TEST_OPEN_STORE";

/// This test binary, to run [`opens_a_store_in_a_process_of_its_own`] alone on `folder`.
fn own_process(folder: &Path) -> std::process::Command {
    as_program(&std::env::current_exe().unwrap(), folder)
}

/// The same out of a copy of this program.
fn as_program(program: &Path, folder: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(program);
    let name = "controller::store::tests::opens_a_store_in_a_process_of_its_own";
    command.args(["--exact", name, "--nocapture"]).env(OPEN, folder);
    command
}

#[test]
fn opens_a_store_in_a_process_of_its_own() {
    let Some(folder) = std::env::var_os(OPEN) else { return };
    match Store::open(Path::new(&folder)) {
        Ok(store) => match store.records() {
            Ok(records) => println!("opened with {} VMs", records.vms.len()),
            Err(error) => println!("{error:?}: {error}"),
        },
        Err(error) => println!("{error:?}: {error}"),
    }
}

#[test]
fn an_upgrade_that_is_killed_anywhere_loses_nothing_and_is_done_at_the_next_start() {
    use std::os::unix::process::ExitStatusExt;
    for place in ["begun", "copying", "copied", "closed", "renamed"] {
        let dir = tempfile::tempdir().unwrap();
        let kept = plain_store(dir.path());
        let killed = own_process(dir.path()).env(upgrade::KILL_AT, place).output().unwrap();
        assert_eq!(killed.status.signal(), Some(9), "{place}: {killed:?}");
        let store = Store::open(dir.path()).unwrap();
        let records = store.records().unwrap();
        assert_eq!((&records.vms, records.last_event), (&kept, 77), "{place}");
        assert_eq!(found_in(dir.path()), Vec::<&str>::new(), "{place}");
    }
}

#[test]
fn a_database_that_may_only_be_read_is_told_as_such() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let dir = tempfile::tempdir().unwrap();
    drop(Store::open(dir.path()).unwrap());
    let file = dir.path().join("db/data.mdb");
    let set = |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    set(&file, 0o400);
    let mut opening = own_process(dir.path());
    // Where nobody else may enter the folder of this program, they may here.
    let open_to_all = tempfile::Builder::new().permissions(PermissionsExt::from_mode(0o755)).tempdir().unwrap();
    if rustix::process::geteuid().is_root() {
        // To root everything is writable: as somebody else, then, from a place that all may enter.
        const NOBODY: u32 = 65_534;
        let everything = [dir.path().to_owned(), dir.path().join("db"), file.clone(), dir.path().join("db/lock.mdb")];
        let files = [dir.path().join("serve.lock"), dir.path().join(seal::KEY_FILE)];
        for path in everything.iter().chain(&files) {
            std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let program = open_to_all.path().join("opening");
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        opening = as_program(&program, dir.path());
        opening.uid(NOBODY).gid(NOBODY);
    }
    let said = opening.output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout);
    assert!(said.contains("ReadOnly") && said.contains("cannot be written"), "{said}");
}

#[test]
fn a_database_with_flipped_bytes_is_refused_or_read_and_ends_no_process() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut state = cluster(&store);
    for n in 0..40 {
        create(&store, &mut state, n);
    }
    drop((store, state));
    let name = "controller::store::tests::flips_bytes_in_a_process_of_its_own";
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]).env(FLIP, dir.path());
    let ended = command.output().unwrap();
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(ended.status.success(), "{:?} after {:?}", ended.status, said.lines().last());
    let count = |what| said.lines().filter(|line| line.contains(what)).count();
    let (read, refused) = (count("read with 40 VMs"), count("damaged") + count("cannot be"));
    assert!(refused > 20 && read > 20, "{refused} refused, {read} read");
    assert_eq!(Store::open(dir.path()).unwrap().records().unwrap().vms.len(), 40);
}

/// Names the folder whose database is to be changed.
const FLIP: &str = "ORCHARD_TEST_FLIP";

#[test]
fn flips_bytes_in_a_process_of_its_own() {
    let Some(folder) = std::env::var_os(FLIP) else { return };
    let file = Path::new(&folder).join("db/data.mdb");
    let whole = std::fs::read(&file).unwrap();
    for n in 0..400 {
        // Spread over all pages, and within them mostly over their heads, where the structure is.
        let page = n * 7919 % (whole.len() / 4096);
        let at = page * 4096 + if n % 4 == 3 { n * 104_729 % 4096 } else { n * 31 % 64 };
        let mut changed = whole.clone();
        changed[at] ^= 1 << (n % 8);
        std::fs::write(&file, &changed).unwrap();
        println!("page {page}, byte {}", at % 4096);
        match Store::open(Path::new(&folder)).map(|store| store.records()) {
            Ok(Ok(records)) => println!("read with {} VMs", records.vms.len()),
            Ok(Err(error)) => println!("{error}"),
            Err(error) => println!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string)),
        }
    }
    std::fs::write(&file, &whole).unwrap();
}

#[test]
fn a_cluster_keeps_its_id_and_no_other_has_it() {
    let [one, other] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let id = |folder: &Path| Store::open(folder).unwrap().cluster();
    let first = id(one.path());
    assert_eq!(id(one.path()), first);
    assert_ne!(id(other.path()), first);
}
