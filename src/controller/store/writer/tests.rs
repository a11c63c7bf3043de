//! The writer against a real LMDB in a temp folder.

use super::super::Room;
use super::*;
use crate::bus::message::CreateVm;
use crate::model::VmUid;
use crate::model::vm::VmSpec;

fn create(name: String) -> impl FnOnce(&mut Step<'_>) -> Result<VmUid, ApiError> {
    move |step| {
        let spec = VmSpec { image: "img".into(), ..VmSpec::default() };
        let request = CreateVm { name: name.parse()?, spec };
        step.cluster.create_vm(request, VmUid(uuid::Uuid::now_v7()), step.now, step.changes).map(|vm| vm.uid)
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
    let page = store.events(0, room, None).unwrap();
    assert_eq!((page.first_kept, page.more), (1, false));
    assert!(page.items.iter().map(|event| event.number).eq(1..=201));
    let of_one = store.events(0, room, Some(uids[5])).unwrap();
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
    assert!(matches!(second, super::super::OpenError::InUse(_)), "{second}");
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
