//! Silence of workers: unseen, gone, and what becomes of their VMs.

use super::*;
use crate::bus::message::HeartbeatAck;
use crate::model::vm::{OnUnseen, PowerState};

/// A little more than it takes until a worker is gone for certain.
const GONE: u64 = 72_000;

fn on_unseen(on_unseen: OnUnseen) -> VmSpec {
    VmSpec { on_unseen, ..VmSpec::default() }
}

impl World {
    /// A VM that runs on the only worker there is.
    fn running(&mut self, vm: &str, spec: VmSpec, session: SessionId) -> CopyId {
        let uid = self.create(vm, spec).unwrap();
        let id = CopyId { uid, attempt: 0 };
        let worker = self.vm(vm).worker.unwrap();
        let up = Observation::Running { message: "up".into(), ready: true, generation: 0, image_fqn: None };
        self.report(worker.as_str(), session, id, up).unwrap();
        id
    }

    fn state(&self, worker: &str) -> WorkerState {
        self.cluster.worker(&name(worker)).unwrap().state
    }

    fn beat(&mut self, worker: &str, session: SessionId) -> Result<HeartbeatAck, ApiError> {
        self.cluster.heartbeat(
            &name(worker),
            &Heartbeat { session, revision: 0, told: None, load: None, digest: None },
            self.now,
            &mut self.changes,
        )
    }

    fn told(&self, kind: EventType) -> Vec<String> {
        self.changes.events.iter().filter(|e| e.kind == kind).map(|e| e.message.clone()).collect()
    }
}

#[test]
fn after_its_lease_a_silent_worker_is_gone_and_only_what_may_be_replaced_starts_over_elsewhere() {
    let mut world = World::new();
    let session = world.join("w1", 8);
    let moved = world.running("moved", on_unseen(OnUnseen::Replace), session);
    let kept = world.running("kept", on_unseen(OnUnseen::Keep), session);
    world.pass(16_500);
    assert_eq!(world.state("w1"), WorkerState::Unseen);
    let before_it_is_over = GONE - 16_500 - 2_500;
    world.join("w2", 8);
    world.pass(before_it_is_over);
    assert_eq!((world.state("w1"), world.vm("moved").restart_count), (WorkerState::Unseen, 0));
    let second = world.join("w2", 8);
    world.pass(2_500);
    assert_eq!(world.state("w1"), WorkerState::Gone);
    let vm = world.vm("moved");
    assert_eq!((vm.worker, vm.restart_count, vm.quick_failures), (Some(name("w2")), 1, 0));
    let vm = world.vm("kept");
    assert_eq!((vm.worker, vm.restart_count, vm.status), (Some(name("w1")), 0, VmStatus::Running));
    assert!(vm.status_message.contains("--force"), "{}", vm.status_message);
    assert!(world.told(EventType::Gone)[0].contains("over elsewhere: 1, kept there: 1"));
    assert!(world.told(EventType::Restarting)[0].starts_with("replaced: worker w1 is gone"));

    // Its session is closed, and what is still under way of it opens none.
    assert_eq!(world.beat("w1", session).unwrap_err().code, ErrorCode::Unauthenticated);
    let again = Hello { session, info: world.info("w1", 8), place: String::new(), delete_unknown_s: None };
    let refused = world.cluster.hello(&name("w1"), again, world.now, &mut world.changes);
    assert_eq!(refused.unwrap_err().code, ErrorCode::Unauthenticated);

    // Once back it removes the one and goes on with the other.
    world.join("w1", 8);
    assert_eq!(world.state("w1"), WorkerState::Online);
    assert_eq!(world.wants("w1"), [(kept, "run"), (moved, "absent")]);
    assert_eq!(world.wants("w2"), [(CopyId { attempt: 1, ..moved }, "run")]);
    let up = Observation::Running { message: "up".into(), ready: true, generation: 0, image_fqn: None };
    world.report("w2", second, CopyId { attempt: 1, ..moved }, up).unwrap();
    assert_eq!(world.vm("moved").status, VmStatus::Running);
}

#[test]
fn what_it_was_told_last_is_what_counts_for_a_worker_that_is_gone() {
    let mut world = World::new();
    let session = world.join("w1", 8);
    let id = world.running("a", on_unseen(OnUnseen::Replace), session);
    // It was kept before, and the worker has not said that it knows better.
    let vm = world.cluster.vms.get_mut(&name::<VmName>("a")).unwrap();
    (vm.generation, vm.replace_since) = (3, 2);
    world.pass(GONE);
    assert_eq!((world.state("w1"), world.vm("a").restart_count), (WorkerState::Gone, 0));
    world.cluster.vms.get_mut(&name::<VmName>("a")).unwrap().observed_generation = 2;
    world.pass(250);
    assert_eq!((world.vm("a").restart_count, world.vm("a").replace_since), (1, 0));
    let session = world.join("w1", 8);
    assert_eq!(world.report("w1", session, id, Observation::Absent), Ok(()));
}

#[test]
fn a_vm_that_is_switched_off_is_not_replaced_until_it_is_switched_on() {
    let mut world = World::new();
    let session = world.join("w1", 8);
    world.running("a", on_unseen(OnUnseen::Replace), session);
    world.cluster.vms.get_mut(&name::<VmName>("a")).unwrap().spec.power_state = PowerState::Stopped;
    world.pass(GONE);
    assert_eq!((world.state("w1"), world.vm("a").restart_count), (WorkerState::Gone, 0));
    world.cluster.vms.get_mut(&name::<VmName>("a")).unwrap().spec.power_state = PowerState::Running;
    world.pass(250);
    assert_eq!(world.vm("a").restart_count, 1);
}

#[test]
fn after_a_start_a_loss_of_the_bus_or_a_standstill_every_worker_has_a_whole_lease() {
    let mut world = World::new();
    let session = world.join("w1", 8);
    world.running("a", on_unseen(OnUnseen::Replace), session);
    world.pass(GONE - 3_000);
    world.cluster.bus_lost(world.now);
    world.pass(GONE - 3_000);
    assert_eq!(world.state("w1"), WorkerState::Unseen);
    world.stall(10_000);
    world.pass(GONE - 3_000);
    assert_eq!(world.state("w1"), WorkerState::Unseen);
    let records = Records {
        vms: world.cluster.vms.values().cloned().collect(),
        workers: vec![world.cluster.worker_record(&name("w1")).unwrap().clone()],
        ..Records::default()
    };
    world.cluster = Cluster::load(records, Timing::default(), world.now);
    world.pass(GONE - 3_000);
    assert_eq!((world.state("w1"), world.vm("a").restart_count), (WorkerState::Unseen, 0));
    world.pass(3_000);
    assert_eq!((world.state("w1"), world.vm("a").restart_count), (WorkerState::Gone, 1));
}

#[test]
fn a_fenced_copy_starts_over_whatever_its_policy_and_counts_as_no_failure() {
    let mut world = World::new();
    let session = world.join("w1", 8);
    let id = world.running("a", on_unseen(OnUnseen::Replace), session);
    let fenced = Observation::Fenced { message: "no answer for 60 s".into() };
    world.report("w1", session, id, fenced.clone()).unwrap();
    let vm = world.vm("a");
    assert_eq!((vm.status, vm.restart_count, vm.quick_failures), (VmStatus::Pending, 1, 1));
    assert_eq!(world.wants("w1"), [(CopyId { attempt: 1, ..id }, "run"), (id, "absent")]);
    assert_eq!(world.report("w1", session, id, fenced).unwrap_err().code, ErrorCode::Conflict);
}

/// It was acknowledged that the VM is kept while its worker was cut off, which stopped it, not knowing.
#[test]
fn a_fenced_copy_that_is_to_be_kept_by_now_boots_from_its_disk() {
    let mut world = World::new();
    let session = world.join("w1", 8);
    let id = world.running("a", on_unseen(OnUnseen::Replace), session);
    let change = crate::bus::life::SpecChange { on_unseen: Some(OnUnseen::Keep), ..Default::default() };
    world.alter("a", change).unwrap();
    let fenced = Observation::Fenced { message: "no answer for 60 s".into() };
    world.report("w1", session, id, fenced.clone()).unwrap();
    let vm = world.vm("a");
    assert_eq!((vm.status, vm.restart_count, vm.boot), (VmStatus::Pending, 0, 1));
    assert!(vm.status_message.contains("lease was over"), "{}", vm.status_message);
    assert_eq!(world.wants("w1"), [(id, "run")]);
    assert_eq!(world.report("w1", session, id, fenced).unwrap_err().code, ErrorCode::Conflict, "of the boot before");
}

#[test]
fn what_was_still_to_be_removed_from_a_worker_that_is_gone_holds_back_its_vm_no_longer() {
    let mut world = World::new();
    let session = world.join("w1", 8);
    world.running("a", on_unseen(OnUnseen::Replace), session);
    world.join("w2", 8);
    world.cluster.drain_worker(&name("w1"), Some(0), world.now, &mut world.changes).unwrap();
    world.pass(250);
    world.join("w2", 8);
    assert_eq!(world.vm("a").worker, None);
    world.pass(GONE);
    world.join("w2", 8);
    assert_eq!(world.vm("a").worker, Some(name("w2")));
}

#[test]
fn a_worker_found_gone_is_found_so_again_when_that_could_not_be_stored() {
    let mut world = World::new();
    let session = world.join("w1", 8);
    world.running("a", on_unseen(OnUnseen::Replace), session);
    world.pass(GONE - 3_000);
    let stored = Records {
        vms: world.cluster.vms.values().cloned().collect(),
        workers: vec![world.cluster.worker_record(&name("w1")).unwrap().clone()],
        ..Records::default()
    };
    while world.state("w1") != WorkerState::Gone {
        world.pass(250);
    }
    let mut back = Cluster::load(stored, Timing::default(), world.now);
    back.keep_liveness_of(&world.cluster);
    world.cluster = back;
    assert_eq!((world.state("w1"), world.vm("a").restart_count), (WorkerState::Unseen, 0));
    assert!(!world.cluster.has_session(&name("w1")));
    world.pass(250);
    assert_eq!((world.state("w1"), world.vm("a").restart_count), (WorkerState::Gone, 1));
}

#[test]
fn a_controller_with_shorter_leases_waits_for_the_longer_one_that_a_worker_may_hold() {
    let mut world = World::new();
    let session = world.join("w1", 4);
    let records = world.records();
    let short = Timing { lease: Duration::from_secs(5), unseen: Duration::from_secs(5), ..Timing::default() };
    world.cluster = Cluster::load(records, short, world.now);
    let held = |world: &World| world.cluster.worker_record(&name("w1")).unwrap().lease_ms;
    world.pass(40_000);
    assert_eq!(world.state("w1"), WorkerState::Unseen);
    // Once it speaks in a session of this controller it has one of the shorter leases.
    assert_eq!(world.beat("w1", session).unwrap_err().code, ErrorCode::Unauthenticated);
    let session = world.join("w1", 4);
    assert_eq!(held(&world), 60_000);
    world.beat("w1", session).unwrap();
    assert_eq!(held(&world), 5_000);
}

#[test]
fn a_worker_that_stops_a_vm_again_and_again_does_not_make_it_start_without_end() {
    let mut world = World::new();
    let session = world.join("w1", 8);
    let id = world.running("a", on_unseen(OnUnseen::Replace), session);
    let fenced = Observation::Fenced { message: "the lease cannot be written down".into() };
    world.report("w1", session, id, fenced.clone()).unwrap();
    world.report("w1", session, CopyId { attempt: 1, ..id }, fenced).unwrap();
    assert_eq!((world.vm("a").restart_count, world.vm("a").worker), (2, None));
    world.pass(6_000);
    assert_eq!(world.vm("a").worker, Some(name("w1")));
}

#[test]
fn a_worker_where_a_moved_or_deleted_vm_may_still_run_is_taken_out_by_force_only() {
    let mut world = World::new();
    let session = world.join("w1", 8);
    world.running("a", VmSpec::default(), session);
    world.join("w2", 8);
    world.cluster.drain_worker(&name("w1"), Some(0), world.now, &mut world.changes).unwrap();
    world.pass(250);
    let mut remove =
        |force| world.cluster.delete_worker(&name("w1"), force, world.now, &mut world.changes).map_err(|e| e.code);
    assert_eq!(remove(false), Err(ErrorCode::Conflict));
    assert_eq!(remove(true), Ok(()));
}

#[test]
fn a_vm_that_may_be_replaced_since_its_worker_fell_silent_is_kept_and_says_so() {
    let mut world = World::new();
    let session = world.join("w1", 8);
    let id = world.running("a", on_unseen(OnUnseen::Keep), session);
    world.pass(20_000);
    let change = crate::bus::life::SpecChange { on_unseen: Some(OnUnseen::Replace), ..Default::default() };
    world.alter("a", change).unwrap();
    for (passes, state) in [(250, WorkerState::Unseen), (GONE, WorkerState::Gone)] {
        world.pass(passes);
        assert_eq!(world.state("w1"), state);
        let explained = world.cluster.explain(&name("a"), world.now).unwrap().reason;
        for said in [world.vm("a").status_message, explained] {
            assert!(said.contains("has not said that it knows that this VM may be replaced"), "{said}");
            assert!(said.contains("is kept there"), "{said}");
        }
    }
    assert_eq!(world.vm("a").restart_count, 0);
    let session = world.join("w1", 8);
    let up = Observation::Running { message: "up".into(), ready: true, generation: 1, image_fqn: None };
    world.report("w1", session, id, up).unwrap();
    world.pass(20_000);
    let said = world.vm("a").status_message;
    assert!(said.contains("not been heard of") && !said.contains("may be replaced"), "{said}");
}
