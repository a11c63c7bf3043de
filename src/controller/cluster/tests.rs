//! The core's rules, each as a story; and random walks that check the invariants after every step.

mod access;
mod bounds;
mod copies;
mod drain;
mod given_up;
mod going_back;
mod hostile;
mod images;
mod inventory;
mod liveness;
mod once;
mod placing;
mod power;
mod quiet;
mod restored;
mod settings;
mod strays;
mod update;
mod walk;
mod watched;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::bus::log::{LogLine, LogLines};
use crate::bus::message::{CreateVm, Heartbeat, Hello, Observation, Report};
use crate::model::Timestamp;
use crate::model::event::{EventObject, EventType, LogStream};
use crate::model::resources::{LOGICAL_CORES, MEMORY_MIB};
use crate::model::vm::{RestartPolicy, RuntimeKind, StartupScript, VmSpec};
use crate::model::worker::WorkerInfo;

struct World {
    cluster: Cluster,
    changes: Changes,
    now: Now,
    next_id: u128,
}

fn at(millis: u64) -> Now {
    Now { wall: Timestamp::from_millis(i64::try_from(millis).unwrap()), mono: Duration::from_millis(millis) }
}

fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

impl World {
    fn new() -> Self {
        let cluster = Cluster::load(Records::default(), Timing::default(), at(0));
        Self { cluster, changes: Changes::default(), now: at(0), next_id: 0 }
    }

    fn id(&mut self) -> uuid::Uuid {
        self.next_id += 1;
        uuid::Uuid::from_u128(self.next_id)
    }

    /// Time goes by, with a tick each second or more often.
    fn pass(&mut self, millis: u64) {
        for start in (0..millis).step_by(1000) {
            self.stall(1000.min(millis - start));
        }
    }

    /// Time goes by without a tick before its end.
    fn stall(&mut self, millis: u64) {
        let mono = self.now.mono + Duration::from_millis(millis);
        self.now = at(u64::try_from(mono.as_millis()).unwrap());
        self.cluster.tick(self.now, &mut self.changes);
        self.cluster.place(self.now, &mut self.changes);
    }

    fn create(&mut self, vm: &str, spec: VmSpec) -> Result<VmUid, ApiError> {
        let uid = VmUid(self.id());
        let spec = VmSpec { image: "img".into(), ..spec };
        let created = self.cluster.create_vm(
            None,
            CreateVm { name: name(vm), spec, key: None },
            uid,
            self.now,
            &mut self.changes,
        );
        self.cluster.place(self.now, &mut self.changes);
        created.map(|vm| vm.uid)
    }

    /// Somebody asks for the `n`th VM of a random walk: every other one starts over when it fails.
    fn create_nth(&mut self, n: u8) {
        let restart_policy = if n.is_multiple_of(2) { RestartPolicy::OnFailure } else { RestartPolicy::Never };
        let _ = self.create(&format!("vm{n}"), VmSpec { cpu: 2, restart_policy, ..VmSpec::default() });
    }

    /// Somebody deletes it.
    fn delete_nth(&mut self, n: u8) {
        let _ = self.cluster.delete_vm(&name(&format!("vm{n}")), self.now, &mut self.changes);
        self.cluster.place(self.now, &mut self.changes);
    }

    fn join(&mut self, worker: &str, cores: u64) -> SessionId {
        let session = SessionId(self.id());
        let hello = Hello { session, info: self.info(worker, cores), place: String::new(), delete_unknown_s: None };
        self.cluster.hello(&name(worker), hello, self.now, &mut self.changes).unwrap();
        session
    }

    fn info(&self, worker: &str, cores: u64) -> WorkerInfo {
        crate::model::worker::sample(worker, cores, 1 << 20)
    }

    fn report(
        &mut self,
        worker: &str,
        session: SessionId,
        id: CopyId,
        observation: Observation,
    ) -> Result<(), ApiError> {
        self.report_boot(worker, session, (id, 0), observation)
    }

    fn report_boot(
        &mut self,
        worker: &str,
        session: SessionId,
        (id, boot): (CopyId, u32),
        observation: Observation,
    ) -> Result<(), ApiError> {
        let report = Report { session, uid: id.uid, attempt: id.attempt, boot, observation };
        let done = self.cluster.report(&name(worker), report, self.now, &mut self.changes);
        self.cluster.place(self.now, &mut self.changes);
        done
    }

    /// What the store would hold.
    fn records(&self) -> Records {
        let cluster = &self.cluster;
        Records {
            vms: cluster.vms.values().cloned().collect(),
            workers: cluster.workers.values().map(|entry| entry.record.clone()).collect(),
            leaving: cluster.leaving.values().cloned().collect(),
            given_up: cluster.given_up_records().cloned().collect(),
            restored: cluster.restored_record().clone(),
            spent: cluster.spent_records().cloned().collect(),
            pulls: cluster.pulls.values().cloned().collect(),
            last_event: cluster.last_event,
            ..Records::default()
        }
    }

    /// The controller starts anew.
    fn restart(&mut self) {
        self.load(self.records());
    }

    fn load(&mut self, records: Records) {
        self.cluster = Cluster::load(records, Timing::default(), self.now);
    }

    fn vm(&self, vm: &str) -> Vm {
        self.cluster.vm(&name(vm), self.now).unwrap()
    }

    fn wants(&self, worker: &str) -> Vec<(CopyId, &'static str)> {
        let copies = self.cluster.assignment(&name(worker)).unwrap().copies;
        copies
            .iter()
            .map(|copy| {
                let want = match copy.want {
                    Want::Run(_) => "run",
                    Want::Keep => "keep",
                    Want::Suspend => "suspend",
                    Want::Absent => "absent",
                };
                (copy.id(), want)
            })
            .collect()
    }

    fn events(&self) -> Vec<EventType> {
        self.changes.events.iter().map(|event| event.kind).collect()
    }
}

fn running() -> Observation {
    Observation::Running { message: "up".into(), ready: true, generation: 0, image_fqn: None }
}

fn failed() -> Observation {
    Observation::Failed { message: "broke".into(), disk: false, halted: false }
}

#[test]
fn a_vm_is_placed_runs_and_is_deleted_and_every_event_has_the_next_number() {
    let mut world = World::new();
    let session = world.join("w", 4);
    let uid = world.create("a", VmSpec::default()).unwrap();
    let copy = CopyId { uid, attempt: 0 };
    assert_eq!(world.wants("w"), [(copy, "run")]);
    world.report("w", session, copy, running()).unwrap();
    assert_eq!((world.vm("a").status, world.vm("a").ready), (VmStatus::Running, true));

    world.cluster.delete_vm(&name("a"), world.now, &mut world.changes).unwrap();
    assert_eq!(world.cluster.vm(&name("a"), world.now).unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(world.wants("w"), [(copy, "absent")]);
    assert_eq!(world.cluster.worker(&name("w")).unwrap().used.get(LOGICAL_CORES), 4);
    world.report("w", session, copy, Observation::Absent).unwrap();
    assert_eq!(world.wants("w"), []);

    use EventType::*;
    assert_eq!(world.events(), [Registered, Online, Created, Scheduled, Running, Ready, Deleting, Deleted]);
    let numbers: Vec<_> = world.changes.events.iter().map(|event| event.number).collect();
    assert_eq!(numbers, (1..=8).collect::<Vec<_>>());
}

#[test]
fn the_room_of_a_deleted_vm_is_free_only_once_its_copy_is_gone() {
    let mut world = World::new();
    let session = world.join("w", 1);
    let a = world.create("a", VmSpec { cpu: 4, ..VmSpec::default() }).unwrap();
    world.create("b", VmSpec { cpu: 4, ..VmSpec::default() }).unwrap();
    assert!(world.vm("b").status_message.contains("4 cores free"), "{}", world.vm("b").status_message);
    world.cluster.delete_vm(&name("a"), world.now, &mut world.changes).unwrap();
    world.pass(1000);
    assert_eq!(world.vm("b").worker, None);
    world.report("w", session, CopyId { uid: a, attempt: 0 }, Observation::Absent).unwrap();
    assert_eq!(world.vm("b").worker, Some(name("w")));
}

#[test]
fn a_name_is_free_at_once_after_deletion_and_taken_before() {
    let mut world = World::new();
    world.join("w", 4);
    let first = world.create("a", VmSpec::default()).unwrap();
    assert_eq!(world.create("a", VmSpec::default()).unwrap_err().code, ErrorCode::Conflict);
    world.cluster.delete_vm(&name("a"), world.now, &mut world.changes).unwrap();
    assert_ne!(world.create("a", VmSpec::default()).unwrap(), first);
}

#[test]
fn on_failure_starts_over_with_growing_pauses_and_a_new_attempt() {
    let mut world = World::new();
    let session = world.join("w", 4);
    let uid = world.create("a", VmSpec { restart_policy: RestartPolicy::OnFailure, ..VmSpec::default() }).unwrap();
    world.report("w", session, CopyId { uid, attempt: 0 }, failed()).unwrap();
    // The first comes at once; the old copy is to be removed beside it.
    assert_eq!(world.wants("w"), [(CopyId { uid, attempt: 1 }, "run"), (CopyId { uid, attempt: 0 }, "absent")]);
    world.report("w", session, CopyId { uid, attempt: 1 }, failed()).unwrap();
    assert_eq!(world.vm("a").worker, None);
    world.pass(4_900);
    assert_eq!(world.vm("a").worker, None);
    world.pass(200);
    assert_eq!(world.vm("a").worker, Some(name("w")));
    assert_eq!(world.vm("a").restart_count, 2);
    // A VM that ran for long starts at the beginning of the pauses again.
    world.report("w", session, CopyId { uid, attempt: 2 }, running()).unwrap();
    world.pass(700_000);
    let session = world.join("w", 4);
    world.report("w", session, CopyId { uid, attempt: 2 }, failed()).unwrap();
    assert_eq!(world.vm("a").worker, Some(name("w")));
}

#[test]
fn never_keeps_the_failed_copy_and_frees_its_room() {
    let mut world = World::new();
    let session = world.join("w", 1);
    let uid = world.create("a", VmSpec { cpu: 4, ..VmSpec::default() }).unwrap();
    world.report("w", session, CopyId { uid, attempt: 0 }, failed()).unwrap();
    assert_eq!((world.vm("a").status, world.vm("a").status_message.as_str()), (VmStatus::Failed, "broke"));
    assert_eq!(world.wants("w"), [(CopyId { uid, attempt: 0 }, "keep")]);
    world.create("b", VmSpec { cpu: 4, ..VmSpec::default() }).unwrap();
    assert_eq!(world.vm("b").worker, Some(name("w")));
    // A late "running" does not bring it back.
    world.report("w", session, CopyId { uid, attempt: 0 }, running()).unwrap();
    assert_eq!(world.vm("a").status, VmStatus::Failed);
}

#[test]
fn stale_reports_and_foreign_sessions_are_refused() {
    let mut world = World::new();
    let old = world.join("w", 4);
    let uid = world.create("a", VmSpec::default()).unwrap();
    let other = world.join("v", 4);
    let copy = CopyId { uid, attempt: 0 };
    assert_eq!(world.report("v", other, copy, failed()).unwrap_err().code, ErrorCode::Conflict);
    let later = CopyId { uid, attempt: 1 };
    assert_eq!(world.report("w", old, later, failed()).unwrap_err().code, ErrorCode::Conflict);
    let new = world.join("w", 4);
    assert_eq!(world.report("w", old, copy, failed()).unwrap_err().code, ErrorCode::Unauthenticated);
    assert_eq!(world.report("w", new, copy, Observation::Absent).unwrap_err().code, ErrorCode::Conflict);
    assert_eq!(world.vm("a").status, VmStatus::Pending);
}

#[test]
fn silence_is_not_death() {
    let mut world = World::new();
    let session = world.join("w", 4);
    let uid = world.create("a", VmSpec { restart_policy: RestartPolicy::OnFailure, ..VmSpec::default() }).unwrap();
    world.report("w", session, CopyId { uid, attempt: 0 }, running()).unwrap();
    world.join("v", 4);
    world.pass(60_000);
    let vm = world.vm("a");
    assert_eq!((vm.status, vm.restart_count, vm.worker), (VmStatus::Running, 0, Some(name("w"))));
    assert!(vm.status_message.contains("not been heard of for 60 s"), "{}", vm.status_message);
    assert_eq!(world.cluster.worker(&name("w")).unwrap().state, WorkerState::Unseen);
    assert_eq!(world.events().iter().filter(|kind| **kind == EventType::Unseen).count(), 2);
    // The same session goes on when the worker is heard again.
    let beat = Heartbeat { session, revision: 0, told: None, load: None, digest: None };
    world.cluster.heartbeat(&name("w"), &beat, world.now, &mut world.changes).unwrap();
    assert_eq!(world.cluster.worker(&name("w")).unwrap().state, WorkerState::Online);
    // Nor does a longer silence end anything; but then it has to register again.
    world.pass(3_600_000);
    let vm = world.vm("a");
    assert_eq!((vm.status, vm.restart_count, vm.worker), (VmStatus::Running, 0, Some(name("w"))));
    assert_eq!(world.cluster.worker(&name("w")).unwrap().state, WorkerState::Gone);
    let refused = world.cluster.heartbeat(&name("w"), &beat, world.now, &mut world.changes);
    assert_eq!(refused.unwrap_err().code, ErrorCode::Unauthenticated);
}

#[test]
fn nothing_new_is_placed_on_a_silent_worker() {
    let mut world = World::new();
    world.join("w", 4);
    world.pass(60_000);
    world.create("a", VmSpec::default()).unwrap();
    assert!(world.vm("a").status_message.contains("1 not online"), "{}", world.vm("a").status_message);
}

#[test]
fn a_second_machine_of_the_same_name_is_refused() {
    let mut world = World::new();
    world.join("w", 4);
    let session = SessionId(world.id());
    let mut info = world.cluster.worker(&name("w")).unwrap().worker.info;
    info.machine_id = "other".into();
    let told = |info| Hello { session, info, place: String::new(), delete_unknown_s: None };
    let refused = world.cluster.hello(&name("w"), told(info.clone()), world.now, &mut world.changes);
    assert_eq!(refused.unwrap_err().code, ErrorCode::Conflict);
    let refused = world.cluster.hello(&name("v"), told(info), world.now, &mut world.changes);
    assert_eq!(refused.unwrap_err().code, ErrorCode::Forbidden);
}

#[test]
fn a_hello_that_comes_twice_does_not_set_revisions_back() {
    let mut world = World::new();
    let session = world.join("w", 8);
    world.create("a", VmSpec::default()).unwrap();
    let before = world.cluster.assignment(&name("w")).unwrap();
    let again = Hello { session, info: world.info("w", 8), place: String::new(), delete_unknown_s: None };
    world.cluster.hello(&name("w"), again, world.now, &mut world.changes).unwrap();
    let after = world.cluster.assignment(&name("w")).unwrap();
    assert_eq!(after.copies, before.copies);
    assert!(after.revision > before.revision, "{} after {}", after.revision, before.revision);
}

#[test]
fn repeated_log_lines_are_stored_once() {
    let mut world = World::new();
    let session = world.join("w", 4);
    let uid = world.create("a", VmSpec::default()).unwrap();
    let mut log = |first: u64, lines: &[&str]| {
        let lines =
            lines.iter().map(|text| LogLine { stream: LogStream::Stdout, text: (*text).into(), time: None }).collect();
        let log = LogLines { session, uid, attempt: 0, boot: 0, first, lines };
        world.cluster.log(&name("w"), log, world.now, &mut world.changes).unwrap();
    };
    log(0, &["1", "2"]);
    log(0, &["1", "2"]);
    log(1, &["2", "3"]);
    log(3, &["4"]);
    let lines: Vec<_> =
        world.changes.events.iter().filter(|e| e.kind == EventType::Log).map(|e| e.message.as_str()).collect();
    assert_eq!(lines, ["1", "2", "3", "4"]);
}

#[test]
fn specifications_that_cannot_work_are_refused_and_change_nothing() {
    let mut world = World::new();
    for image in ["", "-rf", "a\nb"] {
        let request =
            CreateVm { name: name("a"), spec: VmSpec { image: image.into(), ..VmSpec::default() }, key: None };
        let refused = world.cluster.create_vm(None, request, VmUid(uuid::Uuid::nil()), world.now, &mut world.changes);
        assert_eq!(refused.unwrap_err().code, ErrorCode::Invalid);
    }
    assert!(world.changes.is_empty());
}

#[test]
fn a_controller_that_stood_still_does_not_blame_its_workers() {
    let mut world = World::new();
    world.join("w", 4);
    world.pass(5_000);
    world.stall(60_000); // far above the lease
    assert_eq!(world.cluster.worker(&name("w")).unwrap().state, WorkerState::Online);
    world.pass(9_000);
    assert_eq!(world.cluster.worker(&name("w")).unwrap().state, WorkerState::Online, "5 + 9 s are within the lease");
    world.pass(3_000);
    assert_eq!(world.cluster.worker(&name("w")).unwrap().state, WorkerState::Unseen);
}

#[test]
fn a_worker_whose_message_may_still_wait_behind_the_tick_is_not_blamed() {
    let mut world = World::new();
    world.join("w", 4);
    world.pass(8_000);
    world.stall(7_100); // too short to count as standing still, too long for a tick to tell who spoke meanwhile
    assert_eq!(world.cluster.worker(&name("w")).unwrap().state, WorkerState::Online);
    world.pass(1_000);
    assert_eq!(world.cluster.worker(&name("w")).unwrap().state, WorkerState::Unseen, "it did not speak");
}

#[test]
fn a_page_of_large_vms_ends_early_and_the_next_goes_on_there() {
    let mut world = World::new();
    for vm in ["a", "b", "c"] {
        let script = StartupScript { script_content: "x".repeat(1000), env: BTreeMap::new() };
        world.create(vm, VmSpec { startup_script: Some(script), ..VmSpec::default() }).unwrap();
    }
    let page = |after: Option<&str>, bytes| {
        let after = after.map(name::<VmName>);
        let (vms, more) = world.cluster.vms(after.as_ref(), 10, bytes, world.now);
        (vms.iter().map(|vm| vm.name.to_string()).collect::<Vec<_>>().join(""), more)
    };
    assert_eq!(page(None, 3000), ("ab".to_owned(), true));
    assert_eq!(page(Some("b"), 3000), ("c".to_owned(), false));
    assert_eq!(page(None, 1), ("a".to_owned(), true), "one is always sent");
}
