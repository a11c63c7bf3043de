//! VMs that are switched off and on, and such as boot again by their policy.

use super::*;
use crate::bus::life::{SpecChange, UpdateVm};
use crate::model::vm::{OnUnseen, PowerState};

pub(super) fn stopped() -> Observation {
    Observation::Stopped { message: "it is switched off".into() }
}

fn crashed() -> Observation {
    Observation::Failed { message: "broke".into(), disk: true, halted: false }
}

impl World {
    pub(super) fn alter(&mut self, vm: &str, change: SpecChange) -> Result<Vm, ApiError> {
        let request = UpdateVm { name: name(vm), if_generation: None, change };
        let done = self.cluster.update_vm(request, self.now, &mut self.changes);
        self.cluster.place(self.now, &mut self.changes);
        done
    }

    pub(super) fn switch(&mut self, vm: &str, to: PowerState) -> Result<Vm, ApiError> {
        self.alter(vm, SpecChange { power_state: Some(to), ..SpecChange::default() })
    }

    /// What is wished of each copy on `worker`, with its boot.
    pub(super) fn boots(&self, worker: &str) -> Vec<(u32, &'static str)> {
        let wants = self.wants(worker);
        let copies = self.cluster.assignment(&name(worker)).unwrap().copies;
        copies.iter().zip(wants).map(|(copy, (_, want))| (copy.boot, want)).collect()
    }

    /// A VM that takes all of worker `w` and runs there.
    fn running_vm(&mut self, spec: VmSpec) -> (SessionId, CopyId) {
        let session = self.join("w", 1);
        let uid = self.create("a", VmSpec { cpu: 4, ..spec }).unwrap();
        let copy = CopyId { uid, attempt: 0 };
        self.report("w", session, copy, running()).unwrap();
        (session, copy)
    }

    fn cores_in_use(&self) -> u64 {
        self.cluster.worker(&name("w")).unwrap().used.get(LOGICAL_CORES)
    }
}

#[test]
fn a_vm_that_is_switched_off_gives_its_room_back_and_waits_for_room_to_be_switched_on() {
    let mut world = World::new();
    let (session, copy) = world.running_vm(VmSpec::default());
    world.switch("a", PowerState::Stopped).unwrap();
    assert_eq!((world.boots("w"), world.cores_in_use()), (vec![(0, "keep")], 4), "it may run still");
    assert!(!world.vm("a").is_off() && world.vm("a").conditions.running());
    world.report("w", session, copy, stopped()).unwrap();
    let vm = world.vm("a");
    assert!(vm.is_off() && !vm.conditions.running() && !vm.ready, "{vm:?}");
    assert_eq!((vm.status, vm.worker.clone(), world.cores_in_use()), (VmStatus::Running, Some(name("w")), 0));
    assert_eq!((vm.generation, vm.observed_generation), (1, 1));
    assert!(world.cluster.explain(&name("a"), world.now).unwrap().reason.contains("stopped; its disk is on w"));

    // Another one takes its room; it waits for that, on its own worker alone.
    let b = world.create("b", VmSpec { cpu: 4, ..VmSpec::default() }).unwrap();
    world.join("v", 8);
    world.switch("a", PowerState::Running).unwrap();
    let vm = world.vm("a");
    assert_eq!((vm.status, vm.boot, vm.conditions.scheduled()), (VmStatus::Pending, 1, false));
    assert!(vm.status_message.contains("waiting for room on w"), "{}", vm.status_message);
    assert!(world.cluster.explain(&name("a"), world.now).unwrap().reason.contains("waits for room on w"));
    let of_a = world.boots("w").into_iter().find(|(_, want)| *want == "keep");
    assert_eq!(of_a, Some((0, "keep")), "until there is room it is off, in the boot that has ended");
    world.cluster.delete_vm(&name("b"), world.now, &mut world.changes).unwrap();
    world.report("w", session, CopyId { uid: b, attempt: 0 }, Observation::Absent).unwrap();
    assert_eq!((world.boots("w"), world.cores_in_use()), (vec![(1, "run")], 4));

    // What is told of the first boot means nothing now.
    for late in [running(), failed(), stopped()] {
        assert_eq!(world.report("w", session, copy, late).unwrap_err().code, ErrorCode::Conflict);
    }
    world.report_boot("w", session, (copy, 1), running()).unwrap();
    assert_eq!((world.vm("a").status, world.vm("a").ready), (VmStatus::Running, true));
    assert_eq!(world.cluster.worker(&name("w")).unwrap().vms, 1);
    use EventType::{Scheduled, Stopped, Updated};
    let told: Vec<_> = world.events().into_iter().filter(|kind| [Stopped, Updated].contains(kind)).collect();
    assert_eq!(told, [Updated, Stopped, Updated]);
    assert_eq!(world.events().iter().filter(|kind| **kind == Scheduled).count(), 3);
}

#[test]
fn a_late_word_that_it_is_off_frees_nothing_of_the_next_boot() {
    let mut world = World::new();
    let (session, copy) = world.running_vm(VmSpec::default());
    world.switch("a", PowerState::Stopped).unwrap();
    world.switch("a", PowerState::Running).unwrap();
    assert_eq!(world.boots("w"), [(1, "run")], "both together are a reboot");
    world.switch("a", PowerState::Stopped).unwrap();
    assert_eq!(world.report("w", session, copy, stopped()).unwrap_err().code, ErrorCode::Conflict);
    assert_eq!((world.boots("w"), world.cores_in_use()), (vec![(1, "keep")], 4));
    world.report_boot("w", session, (copy, 1), stopped()).unwrap();
    assert_eq!(world.cores_in_use(), 0);
    // Nor does "it runs" bring it back.
    world.report_boot("w", session, (copy, 1), running()).unwrap();
    assert!(world.vm("a").is_off());
}

#[test]
fn a_vm_that_never_ran_can_be_switched_off_and_on_too() {
    let mut world = World::new();
    world.create("a", VmSpec::default()).unwrap();
    world.switch("a", PowerState::Stopped).unwrap();
    let session = world.join("w", 4);
    world.pass(1_000);
    assert_eq!(world.vm("a").worker, None, "one that is off needs no worker");
    assert_eq!((world.vm("a").generation, world.vm("a").observed_generation), (1, 1));
    let uid = world.switch("a", PowerState::Running).unwrap().uid;
    assert_eq!(world.boots("w"), [(0, "run")]);
    world.switch("a", PowerState::Stopped).unwrap();
    world.report("w", session, CopyId { uid, attempt: 0 }, stopped()).unwrap();
    assert!(world.vm("a").is_off());
    world.cluster.delete_vm(&name("a"), world.now, &mut world.changes).unwrap();
    world.report("w", session, CopyId { uid, attempt: 0 }, Observation::Absent).unwrap();
    assert_eq!(world.cluster.worker(&name("w")).unwrap().vms, 0);
}

#[test]
fn only_what_was_made_for_it_is_suspended_and_its_memory_is_kept_while_it_waits() {
    let mut world = World::new();
    let (session, copy) = world.running_vm(VmSpec::default());
    assert_eq!(world.switch("a", PowerState::Suspended).unwrap_err().code, ErrorCode::Invalid);
    world.alter("a", SpecChange { suspendable: Some(true), ..SpecChange::default() }).unwrap();
    assert_eq!(world.boots("w"), [(1, "run")], "it boots again for that");
    let back = SpecChange { suspendable: Some(false), ..SpecChange::default() };
    assert_eq!(world.alter("a", back).unwrap_err().code, ErrorCode::Invalid);
    world.report_boot("w", session, (copy, 1), running()).unwrap();
    world.switch("a", PowerState::Suspended).unwrap();
    assert_eq!(world.boots("w"), [(1, "suspend")]);
    // It cannot be done at first; that is told, and it goes on.
    let observation =
        Observation::Running { message: "cannot suspend it".into(), ready: false, generation: 1, image_fqn: None };
    world.report_boot("w", session, (copy, 1), observation).unwrap();
    assert_eq!((world.vm("a").status_message.as_str(), world.cores_in_use()), ("cannot suspend it", 4));
    world.report_boot("w", session, (copy, 1), stopped()).unwrap();
    assert!(world.events().contains(&EventType::Suspended));
    world.create("b", VmSpec { cpu: 4, ..VmSpec::default() }).unwrap();
    world.switch("a", PowerState::Running).unwrap();
    assert!(world.boots("w").contains(&(1, "suspend")), "{:?}", world.boots("w"));
    world.switch("a", PowerState::Stopped).unwrap();
    assert!(world.boots("w").contains(&(2, "keep")));
    assert_eq!(world.switch("a", PowerState::Suspended).unwrap_err().code, ErrorCode::Conflict, "there is no memory");
}

#[test]
fn always_boots_again_from_its_disk_with_growing_pauses_and_never_stops_trying() {
    let mut world = World::new();
    let (session, copy) = world.running_vm(VmSpec { restart_policy: RestartPolicy::Always, ..VmSpec::default() });
    world.report("w", session, copy, crashed()).unwrap();
    assert_eq!(world.boots("w"), [(1, "run")], "the first time at once");
    assert_eq!(world.report("w", session, copy, crashed()).unwrap_err().code, ErrorCode::Conflict, "told twice");
    for (boot, pause) in [(1, 5), (2, 10), (3, 20)] {
        world.report_boot("w", session, (copy, boot), running()).unwrap();
        world.report_boot("w", session, (copy, boot), crashed()).unwrap();
        assert_eq!((world.boots("w"), world.cores_in_use()), (vec![(boot, "keep")], 4), "its room is kept");
        let message = world.vm("a").status_message;
        assert!(message.contains(&format!("in {pause} s, after: broke")), "{message}");
        world.pass(pause * 1000 - 100);
        assert_eq!(world.boots("w"), [(boot, "keep")]);
        world.pass(200);
        assert_eq!(world.boots("w"), [(boot + 1, "run")]);
    }
    assert_eq!(world.vm("a").restart_count, 0, "the same copy");
    // Its disk is lost: from its image again.
    world.report_boot("w", session, (copy, 4), failed()).unwrap();
    assert_eq!((world.vm("a").restart_count, world.vm("a").boot), (1, 0));
}

#[test]
fn the_pause_before_a_boot_outlasts_a_restart_of_the_controller_and_a_stop_ends_it() {
    let mut world = World::new();
    let (session, copy) = world.running_vm(VmSpec { restart_policy: RestartPolicy::Always, ..VmSpec::default() });
    world.report("w", session, copy, crashed()).unwrap();
    world.report_boot("w", session, (copy, 1), crashed()).unwrap();
    let records = Records {
        vms: world.cluster.vms.values().cloned().collect(),
        workers: world.cluster.workers.values().map(|entry| entry.record.clone()).collect(),
        last_event: world.cluster.last_event,
        ..Records::default()
    };
    world.cluster = Cluster::load(records, Timing::default(), world.now);
    world.join("w", 1);
    assert_eq!(world.boots("w"), [(1, "keep")]);
    world.switch("a", PowerState::Stopped).unwrap();
    assert_eq!(world.boots("w"), [(2, "keep")]);
    world.switch("a", PowerState::Running).unwrap();
    assert_eq!(world.boots("w"), [(3, "run")], "whoever switches it on need not wait for a pause");
}

#[test]
fn a_failure_on_the_way_off_is_what_was_wished() {
    let mut world = World::new();
    let (session, copy) = world.running_vm(VmSpec { restart_policy: RestartPolicy::Always, ..VmSpec::default() });
    world.switch("a", PowerState::Stopped).unwrap();
    world.report("w", session, copy, crashed()).unwrap();
    assert!(world.vm("a").is_off() && world.vm("a").boot == 0, "{:?}", world.vm("a"));
}

#[test]
fn a_worker_that_is_taken_out_takes_the_disks_of_what_is_off_with_it() {
    let mut world = World::new();
    let policy = RestartPolicy::OnFailure;
    let (session, copy) = world.running_vm(VmSpec { restart_policy: policy, ..VmSpec::default() });
    world.switch("a", PowerState::Stopped).unwrap();
    world.report("w", session, copy, stopped()).unwrap();
    world.cluster.delete_worker(&name("w"), true, world.now, &mut world.changes).unwrap();
    world.join("v", 4);
    world.pass(1_000);
    let vm = world.vm("a");
    assert_eq!((vm.worker.clone(), vm.restart_count), (None, 1), "it does not run, as is wished");
    assert!(vm.status_message.contains("from its image when it is switched on"), "{}", vm.status_message);
    world.switch("a", PowerState::Running).unwrap();
    assert_eq!(world.vm("a").worker, Some(name("v")));
}

fn halted() -> Observation {
    Observation::Failed { message: "stopped as its worker ends".into(), disk: true, halted: true }
}

#[test]
fn what_its_worker_stopped_as_it_ended_boots_again_whatever_its_policy_and_counts_as_no_failure() {
    for restart_policy in [RestartPolicy::Never, RestartPolicy::OnFailure, RestartPolicy::Always] {
        let mut world = World::new();
        let (session, copy) = world.running_vm(VmSpec { restart_policy, ..VmSpec::default() });
        for boot in 0..5 {
            world.report_boot("w", session, (copy, boot), running()).unwrap();
            world.report_boot("w", session, (copy, boot), halted()).unwrap();
            let vm = world.vm("a");
            assert_eq!((vm.status, vm.boot, vm.quick_failures), (VmStatus::Pending, boot + 1, 0), "{restart_policy}");
            assert_eq!((world.boots("w"), world.cores_in_use()), (vec![(boot + 1, "run")], 4), "its room is kept");
            assert!(vm.status_message.contains("when its worker is back"), "{}", vm.status_message);
        }
        let told = world.report("w", session, copy, halted()).unwrap_err();
        assert_eq!(told.code, ErrorCode::Conflict, "told twice");
        assert!(world.events().contains(&EventType::Stopped) && !world.events().contains(&EventType::Failed));
        assert_eq!(world.vm("a").restart_count, 0, "the same copy");
    }
}

#[test]
fn what_its_worker_stopped_as_it_ended_stays_off_if_that_is_wished() {
    let mut world = World::new();
    let (session, copy) = world.running_vm(VmSpec::default());
    world.switch("a", PowerState::Stopped).unwrap();
    world.report("w", session, copy, halted()).unwrap();
    assert!(world.vm("a").is_off() && world.vm("a").boot == 0, "{:?}", world.vm("a"));
}

#[test]
fn a_vm_that_may_be_replaced_starts_over_elsewhere_if_the_worker_that_stopped_it_stays_away() {
    let mut world = World::new();
    let (session, copy) = world.running_vm(VmSpec { on_unseen: OnUnseen::Replace, ..VmSpec::default() });
    world.report("w", session, copy, halted()).unwrap();
    world.join("v", 1);
    world.pass(50_000);
    assert_eq!(world.vm("a").worker, Some(name("w")), "its worker may be back in time");
    world.pass(60_000);
    assert_eq!(world.vm("a").restart_count, 1);
    assert_eq!(world.vm("a").worker, None, "v is silent, too");
}

#[test]
fn lines_of_the_boot_before_are_stored_once_though_the_next_was_asked_for_already() {
    let mut world = World::new();
    let (session, copy) = world.running_vm(VmSpec::default());
    let log = |world: &mut World, boot: u32, first: u64, lines: &[&str]| {
        let lines =
            lines.iter().map(|text| LogLine { stream: LogStream::Stdout, text: (*text).into(), time: None }).collect();
        let log = LogLines { session, uid: copy.uid, attempt: copy.attempt, boot, first, lines };
        world.cluster.log(&name("w"), log, world.now, &mut world.changes)
    };
    log(&mut world, 0, 0, &["1", "2"]).unwrap();
    // While its worker is cut off.
    world.switch("a", PowerState::Stopped).unwrap();
    world.switch("a", PowerState::Running).unwrap();
    assert_eq!(world.vm("a").boot, 1);
    log(&mut world, 0, 1, &["2", "3"]).unwrap();
    log(&mut world, 1, 0, &["new"]).unwrap();
    log(&mut world, 0, 3, &["4"]).unwrap();
    log(&mut world, 0, 3, &["4"]).unwrap();
    log(&mut world, 1, 0, &["new", "newer"]).unwrap();
    assert_eq!(log(&mut world, 2, 0, &["never"]).unwrap_err().code, ErrorCode::Conflict);
    let lines: Vec<_> =
        world.changes.events.iter().filter(|e| e.kind == EventType::Log).map(|e| e.message.as_str()).collect();
    assert_eq!(lines, ["1", "2", "3", "new", "4", "newer"]);
    let vm = world.vm("a");
    assert_eq!((vm.log_lines, vm.redacted().earlier_log), (2, None));
}
