//! What a controller does whose older backup was restored: it starts nothing that may run already.

use super::*;

/// What has told of the copies on a machine: its worker's session.
struct Told<'a>(&'a str, SessionId);

impl World {
    /// Puts `backup` in place of all that is known, as `orchard controller restore` does.
    fn restore(&mut self, backup: Records) {
        let restored = Restoration::of(&backup, self.now.wall, self.now.wall);
        self.load(Records { restored, ..backup });
    }

    fn says(&mut self, worker: &Told<'_>, told: Option<bool>) {
        let beat = Heartbeat { session: worker.1, revision: 99, told, load: None, digest: None };
        self.cluster.heartbeat(&name(worker.0), &beat, self.now, &mut self.changes).unwrap();
        self.cluster.place(self.now, &mut self.changes);
    }

    fn comes<'a>(&mut self, worker: &'a str) -> Told<'a> {
        Told(worker, self.join(worker, 4))
    }

    fn finds(&mut self, worker: &Told<'_>, id: CopyId, running: Option<bool>) {
        self.report(worker.0, worker.1, id, Observation::Stray { name: "a".into(), running }).unwrap();
    }
}

/// A controller with workers v and w that knows VM a, waiting for a worker; and its backup of then.
fn waiting(policy: RestartPolicy) -> (World, CopyId, Records) {
    let mut world = World::new();
    world.now = at(1_800_000_000_000);
    let uid = world.create("a", VmSpec { restart_policy: policy, ..VmSpec::default() }).unwrap();
    let backup = world.records();
    world.join("v", 4);
    world.join("w", 4);
    let backup = Records { workers: world.records().workers, ..backup };
    (world, CopyId { uid, attempt: 0 }, backup)
}

#[test]
fn a_vm_that_was_placed_since_is_not_placed_again_but_adopted_where_it_runs() {
    let (mut world, copy, backup) = waiting(RestartPolicy::OnFailure);
    world.restore(backup);
    let v = world.comes("v");
    world.says(&v, Some(true));
    assert_eq!(world.vm("a").worker, None, "w may have it");
    let why = world.vm("a").status_message;
    assert!(why.contains("still to tell: w. ") && why.contains("orchard delete worker NAME --force"), "{why}");
    assert_eq!(world.cluster.explain(&name("a"), world.now).unwrap().reason, why);
    let w = world.comes("w");
    // It failed once and was started over there.
    let id = CopyId { attempt: 1, ..copy };
    world.finds(&w, id, Some(true));
    let vm = world.vm("a");
    assert_eq!((vm.status, vm.worker, vm.restart_count), (VmStatus::Running, Some(name("w")), 0));
    assert_eq!(world.wants("w"), [(id, "run")]);
    assert_eq!(world.cluster.worker(&name("w")).unwrap().used.get(LOGICAL_CORES), 4, "its room is taken");
    // It is known to run nowhere else, so its policy counts again.
    world.report("w", w.1, id, failed()).unwrap();
    let again = world.vm("a");
    assert!(again.copy_id().attempt >= world.cluster.restored_record().floor && again.worker.is_some());
}

#[test]
fn what_nobody_has_is_placed_once_all_have_told_in_an_attempt_that_never_was() {
    let (mut world, copy, backup) = waiting(RestartPolicy::Never);
    world.restore(backup);
    let fresh = world.create("fresh", VmSpec { cpu: 1, ..VmSpec::default() }).unwrap();
    let (v, w) = (world.comes("v"), world.comes("w"));
    assert!(world.vm("fresh").worker.is_some(), "new VMs do not wait");
    world.says(&v, Some(true));
    world.says(&w, Some(false));
    assert_eq!(world.vm("a").worker, None);
    world.says(&w, Some(true));
    let vm = world.vm("a");
    let floor = world.cluster.restored_record().floor;
    assert!(vm.worker.is_some() && vm.copy_id().attempt == floor && floor > 0, "{vm:?}");
    assert!(world.vm("fresh").uid == fresh && world.vm("fresh").copy_id().attempt == floor);
    assert!(world.cluster.restored_record().waiting.is_empty());
    // An older copy of it that turns up now is a stray.
    world.finds(&v, copy, Some(true));
    assert_eq!(world.vm("a").copy_id(), vm.copy_id());
}

#[test]
fn of_several_copies_that_do_not_run_the_last_is_adopted_at_the_end() {
    let (mut world, copy, backup) = waiting(RestartPolicy::Never);
    world.restore(backup);
    let (v, w) = (world.comes("v"), world.comes("w"));
    let (first, last) = (CopyId { attempt: 1, ..copy }, CopyId { attempt: 2, ..copy });
    world.finds(&w, last, None);
    world.finds(&v, first, Some(false));
    world.says(&v, Some(true));
    assert_eq!(world.vm("a").worker, None);
    world.says(&w, Some(true));
    assert_eq!((world.wants("w"), world.wants("v")), (vec![(last, "run")], vec![]));
    assert_eq!(world.vm("a").status, VmStatus::Pending, "its worker says what it is");
}

#[test]
fn a_vm_that_was_placed_when_the_backup_was_made_is_not_begun_where_it_was() {
    let (mut world, copy, mut backup) = waiting(RestartPolicy::Never);
    backup.vms[0].worker = Some(name("v"));
    for elsewhere in [true, false] {
        world.restore(backup.clone());
        let (v, w) = (world.comes("v"), world.comes("w"));
        assert_eq!(world.wants("v"), [], "it may run elsewhere by now");
        let id = CopyId { attempt: 3, ..copy };
        if elsewhere {
            world.finds(&w, id, Some(true));
            assert_eq!(world.vm("a").worker, Some(name("v")), "v may have begun it");
        }
        world.says(&v, Some(true));
        world.says(&w, Some(true));
        let vm = world.vm("a");
        assert_eq!((vm.worker.as_ref() == Some(&name("w")), vm.copy_id() == id), (elsewhere, elsewhere), "{vm:?}");
        assert!(vm.worker.is_some());
    }
}

#[test]
fn the_hold_outlives_restarts_and_ends_with_a_worker_that_is_given_up() {
    let (mut world, copy, backup) = waiting(RestartPolicy::OnFailure);
    world.restore(backup);
    let v = world.comes("v");
    world.says(&v, Some(true));
    world.restart();
    let w = world.comes("w");
    world.says(&w, Some(true));
    assert_eq!(world.vm("a").worker, None, "what v told was in memory only");
    let refused = world.cluster.delete_worker(&name("v"), false, world.now, &mut world.changes).unwrap_err();
    assert!(refused.code == ErrorCode::Conflict && refused.message.contains("--force"), "{refused}");
    world.cluster.delete_worker(&name("v"), true, world.now, &mut world.changes).unwrap();
    world.cluster.place(world.now, &mut world.changes);
    assert_eq!(world.vm("a").worker, Some(name("w")));
    assert!(world.vm("a").copy_id().attempt > copy.attempt && world.changes.restored);
}

#[test]
fn a_failure_that_is_told_while_others_have_not_is_made_good_later() {
    let (mut world, copy, mut backup) = waiting(RestartPolicy::OnFailure);
    let vm = &mut backup.vms[0];
    (vm.worker, vm.status, vm.started_at) = (Some(name("v")), VmStatus::Running, Some(world.now.wall));
    vm.set_conditions(true, true);
    world.restore(backup);
    let v = world.comes("v");
    assert_eq!(world.wants("v"), [(copy, "run")]);
    world.report("v", v.1, copy, failed()).unwrap();
    let vm = world.vm("a");
    assert!(vm.status == VmStatus::Failed && vm.status_message.contains("still to tell: "), "{vm:?}");
    world.says(&v, Some(true));
    let w = world.comes("w");
    world.says(&w, Some(true));
    assert!(world.vm("a").status == VmStatus::Pending && world.vm("a").worker.is_some());
}

#[test]
fn a_worker_cannot_take_a_vm_by_claiming_an_attempt_that_cannot_be() {
    let (mut world, copy, backup) = waiting(RestartPolicy::OnFailure);
    world.restore(backup);
    let liar = world.comes("v");
    for attempt in [world.cluster.restored_record().floor, u32::MAX] {
        world.finds(&liar, CopyId { attempt, ..copy }, Some(true));
        assert_eq!(world.vm("a").worker, None);
    }
}

#[test]
fn an_older_worker_counts_as_heard_after_a_lease() {
    let (mut world, _, backup) = waiting(RestartPolicy::Never);
    world.restore(backup);
    let (v, w) = (world.comes("v"), world.comes("w"));
    world.says(&w, Some(true));
    for _ in 0..4 {
        world.says(&v, None);
        assert_eq!(world.vm("a").worker, None);
    }
    world.says(&v, None);
    assert!(world.vm("a").worker.is_some());
}

#[test]
fn attempts_of_two_restorings_of_one_backup_never_meet() {
    let (_, _, backup) = waiting(RestartPolicy::Never);
    let at = |millis: i64| Restoration::of(&backup, Timestamp::from_millis(0), Timestamp::from_millis(millis)).floor;
    let now = 1_800_000_000_000;
    assert!(at(now) > 0 && at(now + 60_000) >= at(now) + 240);
    // A clock that stands in the past does not lead back below what the backup knows.
    let later = Records { restored: Restoration { floor: at(now), ..Restoration::default() }, ..backup.clone() };
    let floor = Restoration::of(&later, Timestamp::from_millis(0), Timestamp::from_millis(5)).floor;
    assert!(floor > at(now));
}

#[test]
fn what_is_said_of_a_failed_vm_that_is_held_is_what_will_happen() {
    for (policy, fenced) in
        [(RestartPolicy::Never, false), (RestartPolicy::Never, true), (RestartPolicy::OnFailure, false)]
    {
        let (mut world, copy, mut backup) = waiting(policy);
        let vm = &mut backup.vms[0];
        (vm.worker, vm.status, vm.started_at) = (Some(name("v")), VmStatus::Running, Some(world.now.wall));
        vm.set_conditions(true, true);
        world.restore(backup);
        let (v, w) = (world.comes("v"), world.comes("w"));
        let ended = if fenced { Observation::Fenced { message: String::new() } } else { failed() };
        world.report("v", v.1, copy, ended).unwrap();
        let why = |world: &World| world.cluster.explain(&name("a"), world.now).unwrap().reason;
        let (said, shown) = (why(&world), world.vm("a").status_message);
        let starts_over = fenced || policy == RestartPolicy::OnFailure;
        assert_eq!(said.contains("is held until every worker has told"), starts_over, "{said}");
        assert_eq!(shown.contains("is held until every worker has told"), starts_over, "{shown}");
        assert_eq!(said.contains("its policy is to stay so; but a backup"), !starts_over, "{said}");
        assert!(said.contains("still to tell: v, w. "), "{said}");
        world.says(&v, Some(true));
        world.says(&w, Some(true));
        assert_eq!(world.vm("a").status == VmStatus::Pending, starts_over, "{:?}", world.vm("a"));
        let said = why(&world);
        assert_eq!(
            said.contains("waits for nothing: it has failed") && said.contains("left of it is on v"),
            !starts_over,
            "{said}"
        );
    }
}

#[test]
fn a_copy_that_does_not_run_is_adopted_only_where_its_vm_may_be_and_one_that_runs_anywhere() {
    for (running, on) in [(false, "v"), (true, "w")] {
        let (mut world, copy, mut backup) = waiting(RestartPolicy::Never);
        backup.vms[0].spec.labels = [("worker-name".to_owned(), "v".to_owned())].into();
        world.restore(backup);
        let (v, w) = (world.comes("v"), world.comes("w"));
        world.finds(&w, CopyId { attempt: 3, ..copy }, Some(running));
        world.says(&v, Some(true));
        world.says(&w, Some(true));
        assert_eq!(world.vm("a").worker, Some(name(on)));
        assert_eq!(world.cluster.strays(None, None, 9).0.len(), 1, "it is left alone in any case");
        assert_eq!(world.vm("a").copy_id().attempt == 3, running);
    }
}

#[test]
fn an_attempt_that_a_worker_tells_of_is_not_given_again_after_the_clock_went_back_between_two_restorings() {
    let (mut world, copy, backup) = waiting(RestartPolicy::Never);
    world.restore(backup.clone());
    let first = world.cluster.restored_record().floor;
    world.now.wall = Timestamp::from_millis(0);
    world.restore(backup);
    assert!(world.cluster.restored_record().floor < first);
    let (v, w) = (world.comes("v"), world.comes("w"));
    // The first controller had it begin there, after it was restored.
    let given = CopyId { attempt: first + 3, ..copy };
    world.finds(&w, given, Some(false));
    let liars = CopyId { attempt: u32::MAX, ..copy };
    world.finds(&v, liars, Some(false));
    world.says(&v, Some(true));
    world.says(&w, Some(true));
    let vm = world.vm("a");
    assert!(vm.worker.is_some() && vm.copy_id().attempt == given.attempt + 1, "{vm:?}");
}

#[test]
fn a_copy_that_does_not_run_is_adopted_without_room_and_begins_when_there_is_some() {
    let (mut world, copy, mut backup) = waiting(RestartPolicy::Never);
    backup.workers.retain(|worker| worker.info.name == name("w"));
    world.restore(backup);
    let w = world.comes("w");
    let used = |world: &World| world.cluster.worker(&name("w")).unwrap().used;
    // Another VM was placed meanwhile and takes all of the worker.
    world.create("b", VmSpec { memory: 1 << 20, ..VmSpec::default() }).unwrap();
    let other = world.vm("b").copy_id();
    let full = used(&world);
    assert_eq!(world.vm("b").worker, Some(name("w")));
    let last = CopyId { attempt: 2, ..copy };
    world.finds(&w, last, Some(false));
    world.says(&w, Some(true));
    assert_eq!((world.vm("a").worker, world.vm("a").copy_id()), (Some(name("w")), last));
    assert_eq!(used(&world), full, "no room is promised twice");
    assert!(!world.wants("w").contains(&(last, "run")));
    assert!(world.vm("a").status_message.contains("waiting for room on w"), "{}", world.vm("a").status_message);
    world.cluster.delete_vm(&name("b"), world.now, &mut world.changes).unwrap();
    world.report("w", w.1, other, Observation::Absent).unwrap();
    world.cluster.place(world.now, &mut world.changes);
    assert!(world.wants("w").contains(&(last, "run")));
    assert!(used(&world) != full && !used(&world).is_empty());
}
