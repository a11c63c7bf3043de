//! The writer against a real LMDB in a temp folder.

use super::super::{Bounds, Retention, Room};
use super::*;
use crate::bus::message::{CreateVm, Hello, Observation, Report};
use crate::controller::cluster::Records;
use crate::model::audit::{AuditType, Outcome};
use crate::model::event::{Event, EventFilter, EventObject, EventType};
use crate::model::vm::{StartupScript, VmSpec};
use crate::model::worker::{WorkerInfo, sample};
use crate::model::{SessionId, Timestamp, VmUid};

fn create(name: String) -> impl FnOnce(&mut Step<'_>) -> Result<VmUid, ApiError> {
    move |step| {
        let spec = VmSpec { image: "img".into(), ..VmSpec::default() };
        let request = CreateVm { name: name.parse()?, spec, key: None };
        step.cluster.create_vm(None, request, VmUid(uuid::Uuid::now_v7()), step.now, step.changes).map(|vm| vm.uid)
    }
}

fn open(folder: &std::path::Path) -> (Writer, Signals, WriterThread) {
    start(Store::open(folder).unwrap(), Timing::default(), Clock::start()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_a_restart_with_gapless_events() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, signals, thread) = open(dir.path());
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..200 {
        let writer = writer.clone();
        calls.spawn(async move { writer.submit(create(format!("vm{n}"))).await });
    }
    let uids: Vec<_> = calls.join_all().await.into_iter().map(Result::unwrap).collect();
    writer.set_published(7);
    writer.submit(create("last".into())).await.unwrap();
    assert_eq!(*signals.events.borrow(), 201);
    drop((writer, signals));
    thread.join().await;

    let store = Store::open(dir.path()).unwrap();
    let records = store.records().unwrap();
    assert_eq!((records.vms.len(), records.last_event), (201, 201));
    assert!(uids.iter().all(|uid| records.vms.iter().any(|vm| vm.uid == *uid)));
    assert_eq!(store.published().unwrap().events, 7);
    let room = Room { items: 1000, bytes: usize::MAX };
    let page = store.events(0, room, &EventFilter::default()).unwrap();
    assert_eq!((page.first_kept, page.more), (1, false));
    assert!(page.items.iter().map(|event| event.number).eq(1..=201));
    let of_one = store.events(0, room, &EventFilter::of(uids[5])).unwrap();
    assert_eq!(of_one.items.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_command_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (writer, _signals, _thread) = open(dir.path());
    let good = writer.submit(create("a".into()));
    let bad = writer.submit(create("a".into()));
    let other = writer.submit(create("b".into()));
    let (good, bad, other) = tokio::join!(good, bad, other);
    assert!(good.is_ok() && other.is_ok());
    assert_eq!(bad.unwrap_err().code, ErrorCode::Conflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_controller_on_the_same_folder_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Store::open(dir.path()).unwrap();
    let second = Store::open(dir.path()).unwrap_err();
    assert!(matches!(second, super::super::OpenError::Lock(_)), "{second}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_stored_is_neither_shown_nor_built_upon_even_if_the_store_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (writer, _signals, _thread) = start(store.clone(), Timing::default(), Clock::start()).unwrap();
    writer.submit(create("a".into())).await.unwrap();
    let exists = |name: &'static str| move |step: &mut Step<'_>| step.cluster.vm(&name.parse()?, step.now).map(drop);
    store.spoil(true);
    assert_eq!(writer.submit(create("b".into())).await.unwrap_err().code, ErrorCode::Unavailable);
    for name in ["a", "b"] {
        assert_eq!(writer.submit(exists(name)).await.unwrap_err().code, ErrorCode::Unavailable, "{name}");
    }
    store.spoil(false);
    writer.submit(exists("a")).await.unwrap();
    assert_eq!(writer.submit(exists("b")).await.unwrap_err().code, ErrorCode::NotFound);
    writer.submit(create("b".into())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_cannot_read_the_store_any_more_ends_so_that_a_new_process_opens_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (writer, _signals, thread) = start(store.clone(), Timing::default(), Clock::start()).unwrap();
    writer.submit(create("a".into())).await.unwrap();
    store.spoil(true);
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    let asked = async {
        while !writer.queue.is_closed() {
            assert_eq!(writer.submit(create("b".into())).await.unwrap_err().code, ErrorCode::Unavailable);
            // Nobody asks without a breath, which would cost the other tests a core.
            pause.tick().await;
        }
        writer.ended().await;
    };
    tokio::time::timeout(10 * MOST_ASTRAY, asked).await.unwrap();
    thread.join().await;
    store.spoil(false);
    let records = store.records().unwrap();
    assert_eq!(records.vms.iter().map(|vm| vm.name.as_str()).collect::<Vec<_>>(), ["a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_that_changes_nothing_is_answered_beside_a_change_that_cannot_be_stored() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (writer, _signals, _thread) = start(store.clone(), Timing::default(), Clock::start()).unwrap();
    store.spoil(true);
    // The writer is held until all have come, so that they share a batch.
    let (let_go, held) = std::sync::mpsc::channel();
    let (is_held, begun) = oneshot::channel();
    let mut holding = tokio::task::JoinSet::new();
    let holder = writer.clone();
    holding.spawn(async move {
        let hold = move |_: &mut Step<'_>| {
            is_held.send(()).unwrap();
            held.recv().unwrap();
            Ok(())
        };
        holder.submit(hold).await
    });
    begun.await.unwrap();
    let (change, read) = (writer.submit(create("a".into())), writer.submit(|step| Ok(step.cluster.last_event())));
    let renewal = writer.submit_renewal(|_| Ok(7));
    let changing = writer.submit_renewal(create("b".into()));
    let release = async {
        while writer.queue.max_capacity() - writer.queue.capacity() < 4 {
            tokio::task::yield_now().await;
        }
        let_go.send(()).unwrap();
    };
    let (change, read, renewal, changing, ()) = tokio::join!(change, read, renewal, changing, release);
    assert_eq!(renewal.unwrap(), 7);
    for (what, refused) in [("change", change.is_err()), ("read", read.is_err()), ("changing", changing.is_err())] {
        assert!(refused, "{what}");
    }
    assert!(holding.join_all().await.iter().all(Result::is_err));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nearly_full_store_takes_nothing_new_and_keeps_room_for_deletions_reports_and_the_audit_trail() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { map_size: 8 << 20, ..Bounds::default() };
    let store = Store::open_with(dir.path(), bounds).unwrap();
    let (writer, _signals, _thread) = start(store.clone(), Timing::default(), Clock::start()).unwrap();
    let session = SessionId(uuid::Uuid::now_v7());
    writer.submit(move |step| join(session, step)).await.unwrap();
    let (made, refused) = loop_until_refused(&writer).await;
    assert_eq!(refused.code, ErrorCode::LimitExceeded);
    assert!(refused.message.contains("of 8192 KiB are in use") && refused.message.contains("delete"), "{refused}");
    let deed = Deed {
        kind: AuditType::Request,
        account: "ann".into(),
        address: String::new(),
        verb: "vm.delete".into(),
        target: String::new(),
        outcome: Outcome::Done,
        message: "x".repeat(200),
        request: String::new(),
    };
    // Deeds and what workers report go on being stored.
    for n in 0..200 {
        let report = move |step: &mut Step<'_>| {
            let vm = step.cluster.vm(&format!("vm{}", n % made).parse()?, step.now)?;
            let observation = Observation::Preparing { message: format!("{n} %") };
            let report = Report { session, uid: vm.uid, attempt: vm.restart_count, boot: 0, observation };
            step.cluster.report(&"w".parse()?, report, step.now, step.changes)
        };
        writer.audited(deed.clone()).submit(report).await.unwrap();
    }
    for n in 0..made {
        let delete =
            move |step: &mut Step<'_>| step.cluster.delete_vm(&format!("vm{n}").parse()?, step.now, step.changes);
        writer.audited(deed.clone()).submit(delete).await.unwrap();
    }
    writer.submit(create("again".into())).await.unwrap();
    let audit = store.audit(0, Room { items: 1000, bytes: usize::MAX }).unwrap();
    assert_eq!(audit.items.len(), 200 + made);
}

/// A worker with room for all VMs.
fn join(session: SessionId, step: &mut Step<'_>) -> Result<(), ApiError> {
    let info = WorkerInfo { default_cpu: 1, default_memory: 1, ..sample("w", 1 << 20, 1 << 30) };
    step.cluster
        .hello(
            &"w".parse()?,
            Hello { session, info, place: String::new(), delete_unknown_s: None },
            step.now,
            step.changes,
        )
        .map(drop)
}

/// Creates VMs until one is refused; says how many were made, and why no more.
async fn loop_until_refused(writer: &Writer) -> (usize, ApiError) {
    for n in 0..1_000 {
        let made = writer.submit(move |step| {
            let script = StartupScript { script_content: "x".repeat(50_000), env: Default::default() };
            let spec = VmSpec { image: "img".into(), startup_script: Some(script), ..VmSpec::default() };
            let request = CreateVm { name: format!("vm{n}").parse()?, spec, key: None };
            step.cluster.create_vm(None, request, VmUid(uuid::Uuid::now_v7()), step.now, step.changes)
        });
        if let Err(error) = made.await {
            return (n, error);
        }
    }
    panic!("never full");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_audited_step_says_stands_in_its_record() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (writer, _signals, _thread) = start(store.clone(), Timing::default(), Clock::start()).unwrap();
    let deed = Deed {
        kind: AuditType::Request,
        account: "ann".into(),
        address: String::new(),
        verb: "vm.create".into(),
        target: "a".into(),
        outcome: Outcome::Done,
        message: String::new(),
        request: String::new(),
    };
    let uid = writer.audited(deed).submit(create("a".into())).await.unwrap();
    let audit = store.audit(0, Room { items: 10, bytes: usize::MAX }).unwrap();
    assert_eq!(
        audit.items[0].message,
        format!("uid {uid}, cores: the worker's default, MiB: the worker's default, image img")
    );
}

#[test]
fn the_crowd_of_events_goes_before_new_things_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_with(dir.path(), Bounds { map_size: 4 << 20, ..Bounds::default() }).unwrap();
    let mut cluster = Cluster::load(store.records().unwrap(), Timing::default(), Clock::start().now());
    for n in 0..300u64 {
        let events = (1..=20).map(|k| Event {
            number: n * 20 + k,
            time: Timestamp::default(),
            kind: EventType::Log,
            object: EventObject::Worker { name: "w".parse().unwrap() },
            message: "x".repeat(2_000),
            worker: None,
            stream: None,
            said_at: None,
        });
        let changes = Changes { events: events.collect(), ..Changes::default() };
        cluster.set_full(store.is_full());
        store.commit(&cluster, &changes, Published::default()).unwrap();
        assert_eq!(store.is_full(), None);
    }
    let page = store.events(0, Room { items: 1, bytes: usize::MAX }, &EventFilter::default()).unwrap();
    assert!(page.first_kept > 1);
}

#[test]
fn a_lower_bound_of_events_is_reached_in_steps_that_stay_small() {
    let dir = tempfile::tempdir().unwrap();
    let event = |number| Event {
        number,
        time: Timestamp::default(),
        kind: EventType::Log,
        object: EventObject::Vm { name: "a".parse().unwrap(), uid: VmUid(uuid::Uuid::nil()), attempt: 0 },
        message: String::new(),
        worker: None,
        stream: None,
        said_at: None,
    };
    let commit = |store: &Store, numbers: std::ops::RangeInclusive<u64>| {
        let records = Records { last_event: *numbers.end(), ..store.records().unwrap() };
        let cluster = Cluster::load(records, Timing::default(), Clock::start().now());
        let changes = Changes { events: numbers.map(event).collect(), ..Changes::default() };
        store.commit(&cluster, &changes, Published::default()).unwrap();
        store.events(0, Room { items: usize::MAX, bytes: usize::MAX }, &EventFilter::default()).unwrap().items.len()
    };
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(commit(&store, 1..=2_000), 2_000);
    drop(store);
    let store = Store::open_with(
        dir.path(),
        Bounds { kept: Retention { events: 10, ..Retention::default() }, ..Bounds::default() },
    )
    .unwrap();
    let mut left = 2_000;
    for number in 2_001..2_010 {
        let now = commit(&store, number..=number);
        assert!(now == 10 || (now < left && left - now <= 256), "{left} {now}");
        left = now;
    }
    assert_eq!(left, 10);
    let of_one =
        store.events(0, Room { items: 100, bytes: usize::MAX }, &EventFilter::of(VmUid(uuid::Uuid::nil()))).unwrap();
    assert_eq!(of_one.items.len(), 10);
}
