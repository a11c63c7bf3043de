//! Workers that are to be rid of their VMs.

use super::*;

impl World {
    fn drain(&mut self, worker: &str, deadline_s: Option<u64>) {
        self.cluster.drain_worker(&name(worker), deadline_s, self.now, &mut self.changes).unwrap();
    }

    fn is_drained(&self, worker: &str) -> bool {
        self.cluster.worker_record(&name(worker)).unwrap().drain.as_ref().is_some_and(|drain| drain.done)
    }

    /// Time goes by, and the workers are heard of all the while.
    fn pass_online(&mut self, sessions: &[(&str, SessionId)], millis: u64) {
        for _ in 0..millis / 250 {
            for (worker, session) in sessions {
                let beat = Heartbeat { session: *session, revision: 0, told: None, load: None, digest: None };
                self.cluster.heartbeat(&name(worker), &beat, self.now, &mut self.changes).unwrap();
            }
            self.stall(250);
        }
    }

    fn up(&mut self, worker: &str, session: SessionId, id: CopyId) {
        let up = Observation::Running { message: "up".into(), ready: true, generation: 0, image_fqn: None };
        self.report(worker, session, id, up).unwrap();
    }

    fn told_of(&self, kind: EventType) -> usize {
        self.changes.events.iter().filter(|event| event.kind == kind).count()
    }
}

#[test]
fn vms_are_moved_after_the_deadline_and_placed_anew_only_when_the_old_copy_is_gone() {
    let mut world = World::new();
    let first = world.join("w1", 8);
    let uid = world.create("a", VmSpec::default()).unwrap();
    let id = CopyId { uid, attempt: 0 };
    world.up("w1", first, id);
    let second = world.join("w2", 8);
    let both = [("w1", first), ("w2", second)];
    world.drain("w1", Some(60));
    let b = world.create("b", VmSpec::default()).unwrap();
    assert_eq!(world.vm("b").worker, Some(name("w2")), "no new ones go there");
    world.pass_online(&both, 59_500);
    assert_eq!((world.vm("a").restart_count, world.is_drained("w1")), (0, false));
    world.pass_online(&both, 1_000);
    let vm = world.vm("a");
    assert_eq!((vm.restart_count, vm.worker, vm.quick_failures), (1, None, 0));
    assert_eq!(world.wants("w1"), [(id, "absent")]);
    assert!(!world.is_drained("w1"));
    world.report("w1", first, id, Observation::Absent).unwrap();
    assert_eq!(world.vm("a").worker, Some(name("w2")));
    world.pass_online(&both, 250);
    assert!(world.is_drained("w1"));
    assert_eq!((world.told_of(EventType::Draining), world.told_of(EventType::Drained)), (1, 1));
    assert_eq!(world.vm("b").uid, b);

    world.cluster.set_paused(&name("w1"), false, world.now, &mut world.changes).unwrap();
    assert_eq!(world.cluster.worker_record(&name("w1")).unwrap().drain, None);
    assert_eq!(world.told_of(EventType::Resumed), 1);
}

#[test]
fn without_a_deadline_vms_are_waited_for() {
    let mut world = World::new();
    let session = world.join("w1", 8);
    let uid = world.create("a", VmSpec::default()).unwrap();
    world.up("w1", session, CopyId { uid, attempt: 0 });
    world.drain("w1", None);
    world.pass_online(&[("w1", session)], 600_000);
    assert_eq!((world.vm("a").restart_count, world.is_drained("w1")), (0, false));
    world.cluster.delete_vm(&name("a"), world.now, &mut world.changes).unwrap();
    world.pass_online(&[("w1", session)], 250);
    assert!(!world.is_drained("w1"), "it may still run");
    world.report("w1", session, CopyId { uid, attempt: 0 }, Observation::Absent).unwrap();
    world.pass_online(&[("w1", session)], 250);
    assert!(world.is_drained("w1"));
}

#[test]
fn a_failed_vm_keeps_no_drain_from_ending_and_is_not_moved() {
    let mut world = World::new();
    let session = world.join("w1", 8);
    let uid = world.create("a", VmSpec::default()).unwrap();
    let id = CopyId { uid, attempt: 0 };
    world
        .report("w1", session, id, Observation::Failed { message: "broken".into(), disk: false, halted: false })
        .unwrap();
    world.drain("w1", Some(0));
    world.pass_online(&[("w1", session)], 250);
    assert_eq!((world.vm("a").worker, world.vm("a").restart_count), (Some(name("w1")), 0));
    assert!(world.is_drained("w1"));
}

#[test]
fn nothing_is_moved_from_a_worker_that_is_not_heard_of() {
    let mut world = World::new();
    let session = world.join("w1", 8);
    let uid = world.create("a", VmSpec::default()).unwrap();
    world.up("w1", session, CopyId { uid, attempt: 0 });
    world.join("w2", 8);
    world.pass(20_000);
    world.drain("w1", Some(0));
    world.pass(200_000);
    assert_eq!((world.vm("a").restart_count, world.is_drained("w1")), (0, false));
    world.join("w1", 8);
    world.pass(250);
    assert_eq!(world.vm("a").restart_count, 1);
}

#[test]
fn the_deadline_stands_over_a_restart_and_clock_jumps_move_it_only_then_and_never_beyond_its_length() {
    let mut world = World::new();
    let session = world.join("w1", 8);
    let uid = world.create("a", VmSpec::default()).unwrap();
    world.up("w1", session, CopyId { uid, attempt: 0 });
    world.drain("w1", Some(60));
    world.pass_online(&[("w1", session)], 30_000);
    // The clock on the wall jumps by a day, which nobody looks at.
    world.now.wall = Timestamp::from_millis(86_400_000);
    world.cluster.tick(world.now, &mut world.changes);
    assert_eq!(world.vm("a").restart_count, 0);
    let record = world.cluster.worker_record(&name("w1")).unwrap().clone();
    let until = |wall: i64, mono: u64| {
        let now = Now { wall: Timestamp::from_millis(wall), mono: Duration::from_secs(mono) };
        let records = Records { workers: vec![record.clone()], ..Records::default() };
        Cluster::load(records, Timing::default(), now).workers[&name::<WorkerName>("w1")].drain_until
    };
    assert_eq!(until(30_000, 5), Some(Duration::from_secs(35)), "the rest of it");
    assert_eq!(until(-86_400_000, 5), Some(Duration::from_secs(65)), "never more than all of it");
    assert_eq!(until(86_400_000, 5), Some(Duration::from_secs(5)));
}

#[test]
fn a_vm_that_was_asked_for_on_this_very_worker_is_waited_for_and_named() {
    let mut world = World::new();
    let session = world.join("w1", 8);
    world.join("w2", 2);
    let labels = crate::model::resources::Labels::from([("worker-name".to_owned(), "w1".to_owned())]);
    let pinned = world.create("pinned", VmSpec { labels, ..VmSpec::default() }).unwrap();
    let free = world.create("free", VmSpec::default()).unwrap();
    let (pinned, free) = (CopyId { uid: pinned, attempt: 0 }, CopyId { uid: free, attempt: 0 });
    world.up("w1", session, pinned);
    world.up("w1", session, free);
    world.drain("w1", Some(0));
    let told = world.changes.events.iter().rfind(|event| event.kind == EventType::Draining).unwrap();
    assert!(told.message.ends_with("; 1 that can run on no other worker are waited for (pinned)"), "{}", told.message);
    world.pass_online(&[("w1", session)], 250);
    assert_eq!((world.vm("pinned").restart_count, world.vm("free").restart_count), (0, 1));
    world.report("w1", session, free, Observation::Absent).unwrap();
    world.pass_online(&[("w1", session)], 60_000);
    assert!(!world.is_drained("w1") && world.vm("pinned").status == VmStatus::Running);
    world.switch("pinned", crate::model::vm::PowerState::Stopped).unwrap();
    world.report("w1", session, pinned, power::stopped()).unwrap();
    world.pass_online(&[("w1", session)], 250);
    assert!(world.is_drained("w1"));
}

#[test]
fn a_vm_that_no_other_worker_could_take_is_waited_for_until_one_can() {
    let mut world = World::new();
    let session = world.join("w1", 8);
    let large = VmSpec { cpu: 6, ..VmSpec::default() };
    let uid = world.create("large", large).unwrap();
    world.up("w1", session, CopyId { uid, attempt: 0 });
    // Two virtual cores for each real one, or as many as the settings say.
    world.join("w2", 1);
    world.drain("w1", Some(0));
    let told = world.changes.events.iter().rfind(|event| event.kind == EventType::Draining).unwrap();
    assert!(told.message.ends_with("; 1 that can run on no other worker are waited for (large)"), "{}", told.message);
    world.pass_online(&[("w1", session)], 60_000);
    assert_eq!((world.vm("large").restart_count, world.is_drained("w1")), (0, false));
    world.join("w3", 8);
    world.pass_online(&[("w1", session)], 250);
    assert_eq!(world.vm("large").restart_count, 1);
}
