//! Copies led through the end of a lease on a synthetic host, without a controller.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use super::clock::Clock;
use super::supervisor::Supervisor;
use super::{Keeper, Notes, lead};
use crate::bus::message::Observation;
use crate::model::vm::{OnUnseen, VmSpec};
use crate::model::{CopyId, SessionId, VmUid};
use crate::task::{self, Task};
use crate::worker::host::Host;
use crate::worker::lease::{FENCE_TIME, LOOK};
use crate::worker::plan::{Seen, Wish};
use crate::worker::runtime::synthetic::Synthetic;
use crate::worker::runtime::synthetic::behaviour::Delay;
use crate::worker::runtime::synthetic::host::SyntheticHost;
use crate::worker::runtime::{CopySpec, FoundState, Progress};
use crate::worker::vm::Order;

const LEASE: Duration = Duration::from_secs(60);
const SESSION: SessionId = SessionId(uuid::Uuid::from_u128(9));

fn id(n: u128) -> CopyId {
    CopyId { uid: VmUid(uuid::Uuid::from_u128(n)), attempt: 0 }
}

fn order(n: u128, on_unseen: OnUnseen) -> Order {
    let name = format!("vm-{n}").parse().unwrap();
    let spec = VmSpec { on_unseen, ..VmSpec::default() };
    let copy = CopySpec { id: id(n), name, spec, cpu: 1, memory: 1 };
    Order { wish: Wish::Run, name: copy.name.clone(), copy: Some(Arc::new(copy)), generation: 0, boot: 0, ran: false }
}

/// A worker's process on a synthetic host, without controller and reconciler.
struct World {
    dir: tempfile::TempDir,
    on: Arc<SyntheticHost>,
    host: Host,
    keeper: Keeper,
    _looks: Task,
    _supervises: Task,
}

impl World {
    async fn new() -> Self {
        Self::with(|_| Supervisor::new(None, false)).await
    }

    /// With a lease that has just begun.
    async fn with(supervisor: impl FnOnce(&Path) -> Supervisor) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let on = Arc::new(SyntheticHost::default());
        let host = Host::unheard(Arc::new(Synthetic::on(on.clone())), dir.path()).await;
        let host = Host { boot_slots: Arc::new(Semaphore::new(8)), ..host };
        let notes = host.journal.notes().clone();
        let keeper = Keeper::new(notes, "test".to_owned(), Clock::of_test(), supervisor(dir.path()));
        let (_looks, _supervises) = (task::spawn(keeper.clone().run()), task::spawn(keeper.clone().keep_guard()));
        let world = Self { dir, on, host, keeper, _looks, _supervises };
        world.register();
        world
    }

    /// The controller lets it in, and its copies have their orders of that session.
    fn register(&self) {
        self.keeper.granted(SESSION, self.keeper.now(), LEASE);
        self.keeper.has_ordered(SESSION);
    }

    fn notes(&self) -> Notes {
        Notes::of(self.dir.path())
    }

    fn lead(&self, n: u128, order: Order, seen: Seen) -> (watch::Sender<Order>, Task) {
        let (orders, receiver) = watch::channel(order);
        (orders, task::spawn(lead(id(n), self.host.clone(), self.keeper.clone(), receiver, seen)))
    }

    fn state(&self, n: u128) -> Option<FoundState> {
        self.on.found().iter().find(|found| found.id == id(n)).map(|found| found.state)
    }

    fn starts(&self) -> u64 {
        self.on.ledger().counts().starts
    }

    fn tells_fenced(&self, n: u128) -> bool {
        self.host.uplink.told(id(n)).is_some_and(|told| matches!(told, Observation::Fenced { .. }))
    }

    fn tells_failed(&self, n: u128) -> Option<String> {
        self.host.uplink.told(id(n)).and_then(|told| match told {
            Observation::Failed { message, .. } => Some(message),
            _ => None,
        })
    }

    async fn runs(&self, n: u128) {
        until("it runs", || self.state(n) == Some(FoundState::Running)).await;
    }
}

/// Lets time pass until something is the case; for some minutes at most.
async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..6_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never: {what}");
}

#[tokio::test(start_paused = true)]
async fn at_the_end_of_the_lease_what_may_run_elsewhere_is_ended_and_all_else_goes_on() {
    let world = World::new().await;
    let (replace, _a) = world.lead(1, order(1, OnUnseen::Replace), Seen::Missing);
    let (_keep, _b) = world.lead(2, order(2, OnUnseen::Keep), Seen::Missing);
    world.runs(1).await;
    world.runs(2).await;
    assert_eq!(world.notes().marked().unwrap(), [id(1)].into());
    // Renewed in time, nothing happens.
    tokio::time::sleep(LEASE - Duration::from_secs(5)).await;
    world.register();
    tokio::time::sleep(LEASE - LOOK).await;
    assert_eq!(world.state(1), Some(FoundState::Running));

    tokio::time::sleep(LOOK + FENCE_TIME).await;
    assert_eq!((world.state(1), world.state(2)), (Some(FoundState::Stopped), Some(FoundState::Running)));
    assert!(world.tells_fenced(1) && !world.tells_fenced(2));
    assert!(world.notes().fenced(id(1)).is_some());

    // It is for the controller to say what follows.
    world.register();
    tokio::time::sleep(LEASE / 2).await;
    assert!(world.tells_fenced(1));
    assert_eq!((world.state(1), world.starts()), (Some(FoundState::Stopped), 2));
    drop(replace);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_nobody_saw_ends_it_all_the_same() {
    let world = World::new().await;
    let (_orders, _task) = world.lead(1, order(1, OnUnseen::Replace), Seen::Missing);
    world.runs(1).await;
    // As after a standstill of the process: the first thing that it does is to take in an answer.
    tokio::time::advance(2 * LEASE).await;
    world.register();
    until("it is ended", || world.state(1) == Some(FoundState::Stopped)).await;
    until("it is told", || world.tells_fenced(1)).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_being_made_is_given_up() {
    let world = World::new().await;
    world.on.adjust(|behaviour| behaviour.create = Delay::Fixed(2 * LEASE));
    let (_orders, _task) = world.lead(1, order(1, OnUnseen::Replace), Seen::Missing);
    until("it is told", || world.tells_fenced(1)).await;
    tokio::time::sleep(4 * LEASE).await;
    assert_eq!((world.state(1), world.starts()), (Some(FoundState::Incomplete), 0));
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_had_failed_before_has_failed_and_was_not_fenced() {
    let world = World::new().await;
    let (_orders, _task) = world.lead(1, order(1, OnUnseen::Replace), Seen::Missing);
    world.runs(1).await;
    assert!(world.on.crash(id(1), "the guest crashed"));
    until("it failed", || world.tells_failed(1).is_some()).await;
    tokio::time::sleep(2 * LEASE).await;
    assert!(world.tells_failed(1).unwrap().contains("the guest crashed"));
    assert_eq!(world.notes().fenced(id(1)), None);
}

#[tokio::test(start_paused = true)]
async fn the_newest_wish_counts() {
    let world = World::new().await;
    let (to_keep, _a) = world.lead(1, order(1, OnUnseen::Replace), Seen::Missing);
    let (to_replace, _b) = world.lead(2, order(2, OnUnseen::Keep), Seen::Missing);
    world.runs(1).await;
    world.runs(2).await;
    to_keep.send_replace(Order { generation: 1, ..order(1, OnUnseen::Keep) });
    to_replace.send_replace(Order { generation: 1, ..order(2, OnUnseen::Replace) });
    until("it is marked", || world.notes().marked().unwrap() == [id(2)].into()).await;
    tokio::time::sleep(LEASE + FENCE_TIME).await;
    assert_eq!((world.state(1), world.state(2)), (Some(FoundState::Running), Some(FoundState::Stopped)));
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_the_guard_ended_is_told_of_by_the_next_worker_until_it_is_not_wished_for() {
    let world = World::new().await;
    let wanted = order(1, OnUnseen::Replace);
    let copy = wanted.copy.clone().unwrap();
    world.host.runtime.create(&copy, &Progress::new().0).await.unwrap();
    world.notes().mark(id(1), true).unwrap();
    world.notes().note_fenced(id(1), "by the guard").unwrap();
    let (orders, task) = world.lead(1, wanted.clone(), Seen::Incomplete);
    let fenced = Observation::Fenced { message: "by the guard".into() };
    until("it is told", || world.host.uplink.tells(id(1), &fenced)).await;
    assert_eq!(world.starts(), 0);
    // The next pass of the reconciler begins anew with what is left.
    orders.send_replace(Order { wish: Wish::Absent, copy: None, ..wanted.clone() });
    task.join().await.unwrap();
    let (_orders, task) = world.lead(1, orders.borrow().clone(), Seen::Incomplete);
    task.join().await.unwrap();
    assert_eq!((world.state(1), world.notes().fenced(id(1))), (None, None));
    assert!(world.notes().marked().unwrap().is_empty());
}

/// The controller was told to keep it meanwhile, and wishes for another boot.
#[tokio::test(start_paused = true)]
async fn a_fenced_copy_that_is_to_be_kept_by_now_boots_again_once_the_controller_knows_of_it() {
    let world = World::new().await;
    let (orders, task) = world.lead(1, order(1, OnUnseen::Replace), Seen::Missing);
    world.runs(1).await;
    tokio::time::sleep(LEASE + FENCE_TIME).await;
    until("it is told", || world.tells_fenced(1)).await;
    // It is told of until the next boot, whoever asks for this one.
    let kept = Order { generation: 1, ..order(1, OnUnseen::Keep) };
    orders.send_replace(kept.clone());
    tokio::time::sleep(FENCE_TIME).await;
    assert!(world.notes().fenced(id(1)).is_some() && world.state(1) == Some(FoundState::Stopped));
    let again = Order { boot: 1, ran: true, ..kept };
    orders.send_replace(again.clone());
    task.join().await.unwrap();
    // The next pass of the reconciler begins anew with what is left.
    let (_orders, _task) = world.lead(1, again, Seen::Ended);
    world.runs(1).await;
    assert_eq!(world.notes().fenced(id(1)), None);
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_ended_while_the_guard_was_at_work_was_fenced() {
    let world = World::new().await;
    let (_orders, _task) = world.lead(1, order(1, OnUnseen::Replace), Seen::Missing);
    world.runs(1).await;
    world.notes().note_fenced(id(1), "by the guard").unwrap();
    world.on.crash(id(1), "killed");
    until("it is told", || world.tells_fenced(1)).await;
}

#[tokio::test(start_paused = true)]
async fn without_a_guard_nothing_is_started_that_would_need_one() {
    let world = World::with(|_| Supervisor::new(None, true)).await;
    let (orders, _a) = world.lead(1, order(1, OnUnseen::Replace), Seen::Missing);
    let (_keep, _b) = world.lead(2, order(2, OnUnseen::Keep), Seen::Missing);
    world.runs(2).await;
    until("it is told", || world.tells_failed(1).is_some_and(|why| why.contains("guard"))).await;
    assert_eq!(world.state(1), None);
    // Then it is one that needs none.
    orders.send_replace(Order { generation: 1, ..order(1, OnUnseen::Keep) });
    world.runs(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_ran_keeps_its_disk_when_the_guard_is_not_to_be_had() {
    let world = World::with(|_| Supervisor::new(None, true)).await;
    let told =
        |n, disk| matches!(world.host.uplink.told(id(n)), Some(Observation::Failed { disk: d, .. }) if d == disk);
    let again = |n| Order { boot: 1, ran: true, ..order(n, OnUnseen::Replace) };
    // To be started once more after its worker was, and after it was switched off for a while.
    let (_orders, _a) = world.lead(1, again(1), Seen::Ended);
    let (switched, _b) = world.lead(2, Order { wish: Wish::Keep, copy: None, ..again(2) }, Seen::Ended);
    let (_fresh, _c) = world.lead(3, order(3, OnUnseen::Replace), Seen::Missing);
    until("the first is told of", || told(1, true)).await;
    until("it is off", || matches!(world.host.uplink.told(id(2)), Some(Observation::Stopped { .. }))).await;
    switched.send_replace(again(2));
    until("the second is told of", || told(2, true)).await;
    until("the one that never ran is told of", || told(3, false)).await;
    assert_eq!(world.starts(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_is_not_to_be_stopped_is_killed_in_time() {
    let world = World::new().await;
    world.on.adjust(|behaviour| behaviour.stop = Delay::Fixed(LEASE));
    let (_orders, _task) = world.lead(1, order(1, OnUnseen::Replace), Seen::Missing);
    world.runs(1).await;
    tokio::time::sleep(LEASE + FENCE_TIME).await;
    assert!(world.state(1) == Some(FoundState::Stopped) && world.tells_fenced(1));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_starts_fences_what_is_left_before_it_has_reached_anybody() {
    let world = World::new().await;
    for n in [1, 2] {
        let copy = order(n, OnUnseen::Replace).copy.unwrap();
        world.host.runtime.create(&copy, &Progress::new().0).await.unwrap();
        world.host.runtime.start(&copy).await.unwrap();
    }
    world.notes().mark(id(1), true).unwrap();
    // The next process goes on with the lease of the one before.
    let supervisor = Supervisor::new(None, false);
    let next = Keeper::for_test_after(&world.keeper, supervisor);
    next.end_unled(&world.host.runtime).await;
    assert_eq!(world.state(1), Some(FoundState::Running), "the lease still lasts");
    tokio::time::sleep(LEASE).await;
    next.end_unled(&world.host.runtime).await;
    assert_eq!((world.state(1), world.state(2)), (Some(FoundState::Stopped), Some(FoundState::Running)));
    assert!(world.notes().fenced(id(1)).is_some());
}
