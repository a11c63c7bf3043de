//! What becomes of copies whose worker was taken out of the cluster while its machine still had them.

use super::*;

/// Lets the machine `machine_id` register as `worker`.
fn register(world: &mut World, worker: &str, machine_id: &str) -> SessionId {
    let session = SessionId(world.id());
    let info = WorkerInfo { machine_id: machine_id.into(), ..world.info(worker, 4) };
    let hello = Hello { session, info, place: String::new(), delete_unknown_s: None };
    world.cluster.hello(&name(worker), hello, world.now, &mut world.changes).unwrap();
    session
}

fn give_up(world: &mut World, worker: &str) {
    world.cluster.delete_worker(&name(worker), true, world.now, &mut world.changes).unwrap();
    world.cluster.place(world.now, &mut world.changes);
}

fn stray(name: &str) -> Observation {
    Observation::Stray { name: name.into(), running: None }
}

/// A VM that runs on `w`, which is then given up; yields its copy there.
fn given_up(world: &mut World, policy: RestartPolicy) -> CopyId {
    let session = world.join("w", 4);
    let uid = world.create("a", VmSpec { cpu: 3, restart_policy: policy, ..VmSpec::default() }).unwrap();
    let copy = CopyId { uid, attempt: 0 };
    world.report("w", session, copy, running()).unwrap();
    give_up(world, "w");
    copy
}

#[test]
fn a_machine_that_comes_back_removes_what_was_given_up_with_it_and_then_it_is_forgotten() {
    for policy in [RestartPolicy::Never, RestartPolicy::OnFailure] {
        let mut world = World::new();
        let copy = given_up(&mut world, policy);
        world.join("v", 4);
        world.pass(10_000);
        assert!(world.changes.given_up.contains(&copy));
        let record = world.cluster.given_up_record(copy).unwrap();
        assert_eq!((record.name.as_str(), record.worker.as_str()), ("a", "w"));

        let session = world.join("w", 4);
        assert_eq!(world.wants("w"), [(copy, "absent")]);
        let used = |world: &World| world.cluster.worker(&name("w")).unwrap().used.get(LOGICAL_CORES);
        assert_eq!(used(&world), 3, "what it still runs takes its room");
        assert_eq!(world.cluster.given_up_record(copy), None);
        assert!(world.cluster.leaving_record(copy).is_some(), "remembered until it is gone");
        world.report("w", session, copy, Observation::Absent).unwrap();
        assert_eq!((world.wants("w"), used(&world)), (vec![], 0));
        world.join("w", 4);
        assert_eq!(world.wants("w"), []);
        let status = if policy == RestartPolicy::Never { VmStatus::Failed } else { VmStatus::Pending };
        assert_eq!(world.vm("a").status, status);
    }
}

#[test]
fn what_was_still_to_be_removed_is_remembered_too_and_its_end_is_told_once() {
    let mut world = World::new();
    let session = world.join("w", 4);
    let uid = world.create("a", VmSpec::default()).unwrap();
    let copy = CopyId { uid, attempt: 0 };
    world.report("w", session, copy, running()).unwrap();
    world.cluster.delete_vm(&name("a"), world.now, &mut world.changes).unwrap();
    // No VM is placed on it any more, but one may still run there.
    world.cluster.delete_worker(&name("w"), true, world.now, &mut world.changes).unwrap();
    let session = world.join("w", 4);
    assert_eq!(world.wants("w"), [(copy, "absent")]);
    world.report("w", session, copy, Observation::Absent).unwrap();
    let deleted = |event: &&crate::model::event::Event| {
        event.kind == EventType::Deleted && matches!(event.object, EventObject::Vm { .. })
    };
    assert_eq!(world.changes.events.iter().filter(deleted).count(), 1);
}

#[test]
fn the_machine_is_known_again_under_another_name_and_another_machine_is_not_mistaken_for_it() {
    let mut world = World::new();
    let copy = given_up(&mut world, RestartPolicy::Never);
    // The name went to another machine, which has nothing to do with it.
    let other = register(&mut world, "w", "new machine");
    assert_eq!(world.wants("w"), []);
    // Unless that is where it turns up: its disk was moved there.
    register(&mut world, "x", "w");
    assert_eq!(world.wants("x"), [(copy, "absent")]);
    assert_eq!(world.report("w", other, copy, stray("a")), Ok(()));
    assert_eq!(world.wants("w"), [], "it is x that has it");

    let mut world = World::new();
    let copy = given_up(&mut world, RestartPolicy::Never);
    let other = register(&mut world, "w", "new machine");
    world.report("w", other, copy, stray("a")).unwrap();
    assert_eq!(world.wants("w"), [(copy, "absent")]);
    assert!(world.changes.events.iter().any(|event| event.message.contains("which was given up; it is removed")));
}

#[test]
fn what_another_worker_says_of_it_is_not_believed() {
    let mut world = World::new();
    let copy = given_up(&mut world, RestartPolicy::Never);
    let liar = world.join("liar", 4);
    world.report("liar", liar, copy, stray("a")).unwrap();
    assert_eq!(world.wants("liar"), []);
    assert_eq!(world.report("liar", liar, copy, Observation::Absent).unwrap_err().code, ErrorCode::Conflict);
    assert!(world.cluster.given_up_record(copy).is_some());
}

#[test]
fn a_copy_that_nobody_gave_up_is_told_of_and_kept() {
    let mut world = World::new();
    let copy = given_up(&mut world, RestartPolicy::Never);
    let session = world.join("w", 4);
    for unknown in [CopyId { attempt: 1, ..copy }, CopyId { uid: VmUid(world.id()), attempt: 0 }] {
        world.report("w", session, unknown, stray("a")).unwrap();
        assert_eq!(world.wants("w"), [(copy, "absent")]);
    }
    let told = world.changes.events.iter().filter(|event| event.message.contains("it is left alone")).count();
    assert_eq!(told, 2);
}

#[test]
fn a_vm_that_is_to_start_over_waits_for_the_copy_that_came_back() {
    let mut world = World::new();
    let copy = given_up(&mut world, RestartPolicy::OnFailure);
    assert_eq!(world.vm("a").worker, None, "there is no other worker");
    let session = world.join("w", 4);
    assert_eq!(world.wants("w"), [(copy, "absent")]);
    world.report("w", session, copy, Observation::Absent).unwrap();
    assert_eq!(world.wants("w"), [(CopyId { attempt: 1, ..copy }, "run")]);
}

#[test]
fn the_memory_of_them_is_bounded_in_age_and_number() {
    let mut world = World::new();
    let copy = given_up(&mut world, RestartPolicy::Never);
    let year: u64 = 367 * 24 * 3600 * 1000;
    world.stall(year);
    assert_eq!(world.cluster.given_up_record(copy), None);
    world.join("w", 4);
    assert_eq!(world.wants("w"), []);

    let mut world = World::new();
    for n in 0..10_010u128 {
        let id = CopyId { uid: VmUid(uuid::Uuid::from_u128(n)), attempt: 0 };
        let (held, at) = (Resources::default(), Timestamp::from_millis(i64::try_from(n).unwrap()));
        let record = GivenUp { name: name("a"), id, worker: name("w"), machine_id: "w".into(), held, at };
        world.cluster.give_up(record, &mut world.changes);
    }
    let known = |n| world.cluster.given_up_record(CopyId { uid: VmUid(uuid::Uuid::from_u128(n)), attempt: 0 });
    assert!(known(9).is_none() && known(10).is_some() && known(10_009).is_some());
    assert_eq!(world.changes.given_up.len(), 10_010, "the store hears of those that went");
}

/// A machine that is given up and comes back, in any order with everything else: what really runs on it.
#[derive(Default)]
struct Machine {
    session: Option<SessionId>,
    running: BTreeSet<CopyId>,
}

#[derive(Clone, Debug)]
enum Move {
    Create(u8),
    Delete(u8),
    Work(usize, u8),
    Fail(usize),
    Tell(usize),
    Join(usize),
    GiveUp(usize),
    Pass(u16),
    RestartController,
}

const WORKERS: [&str; 2] = ["v", "w"];

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        3 => (0..5u8).prop_map(Move::Create),
        1 => (0..5u8).prop_map(Move::Delete),
        8 => (0..2usize, 0..8u8).prop_map(|(w, n)| Move::Work(w, n)),
        1 => (0..2usize).prop_map(Move::Fail),
        2 => (0..2usize).prop_map(Move::Tell),
        3 => (0..2usize).prop_map(Move::Join),
        2 => (0..2usize).prop_map(Move::GiveUp),
        1 => (0..9000u16).prop_map(Move::Pass),
        1 => Just(Move::RestartController),
    ];
    prop::collection::vec(one, 1..100)
}

impl Machine {
    /// Does what is wished for one of its copies, and tells of it; says whether there was anything to do.
    fn work(&mut self, world: &mut World, worker: &str, n: usize) -> bool {
        let Some(session) = self.session else { return false };
        if world.cluster.assignment(&name(worker)).is_none() {
            return false;
        }
        let wants = world.wants(worker);
        let done = |machine: &Machine, (copy, want): &(CopyId, &str)| match *want {
            "run" => {
                machine.running.contains(copy) && world.vm_of(*copy).is_some_and(|vm| vm.status == VmStatus::Running)
            }
            "keep" => !machine.running.contains(copy),
            _ => false,
        };
        let open: Vec<_> = wants.iter().filter(|one| !done(self, one)).copied().collect();
        let Some((copy, want)) = open.get(n % open.len().max(1)).copied() else { return false };
        match want {
            "run" => drop(self.running.insert(copy)),
            "keep" => drop(self.running.remove(&copy)),
            _ => {
                // The rule of all rules: nothing is removed that somebody wants.
                let wanted = world.vm_of(copy).is_some_and(|vm| vm.worker.is_some() && vm.copy_id() == copy);
                assert!(!wanted, "{copy} is wanted and would be removed from {worker}");
                self.running.remove(&copy);
            }
        }
        match want {
            "run" => drop(world.report(worker, session, copy, running())),
            "absent" => drop(world.report(worker, session, copy, Observation::Absent)),
            _ => {}
        }
        true
    }

    /// Tells of what nobody wished for.
    fn tell(&self, world: &mut World, worker: &str) {
        let Some(session) = self.session.filter(|_| world.cluster.assignment(&name(worker)).is_some()) else { return };
        let wanted: BTreeSet<CopyId> = world.wants(worker).into_iter().map(|(copy, _)| copy).collect();
        for copy in self.running.difference(&wanted) {
            let _ = world.report(worker, session, *copy, stray("x"));
        }
    }
}

impl World {
    fn vm_of(&self, copy: CopyId) -> Option<&Vm> {
        self.cluster.vm_record(copy.uid)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn machines_that_come_back_end_up_with_what_is_wanted_and_with_what_nobody_knows(moves in moves()) {
        let mut world = World::new();
        let mut machines = [Machine::default(), Machine::default()];
        let unknown = CopyId { uid: VmUid(world.id()), attempt: 3 };
        machines[0].running.insert(unknown);
        for step in moves {
            match step {
                Move::Create(n) => world.create_nth(n),
                Move::Delete(n) => world.delete_nth(n),
                Move::Work(w, n) => { machines[w].work(&mut world, WORKERS[w], n.into()); }
                Move::Fail(w) => {
                    let Some(session) = machines[w].session else { continue };
                    let Some(copy) = machines[w].running.last().copied().filter(|copy| *copy != unknown) else { continue };
                    if world.report(WORKERS[w], session, copy, failed()).is_ok() {
                        machines[w].running.remove(&copy);
                    }
                }
                Move::Tell(w) => machines[w].tell(&mut world, WORKERS[w]),
                Move::Join(w) => machines[w].session = Some(world.join(WORKERS[w], 2)),
                Move::GiveUp(w) => {
                    let _ = world.cluster.delete_worker(&name(WORKERS[w]), true, world.now, &mut world.changes);
                    world.cluster.place(world.now, &mut world.changes);
                }
                Move::Pass(millis) => world.pass(millis.into()),
                Move::RestartController => {
                    world.restart();
                    machines.iter_mut().for_each(|machine| machine.session = None);
                }
            }
        }
        // Both come back, and do as they are told until nothing is left to do.
        world.pass(400_000);
        for (worker, machine) in WORKERS.iter().zip(&mut machines) {
            machine.session = Some(world.join(worker, 2));
        }
        for _ in 0..500 {
            let mut busy = false;
            for (worker, machine) in WORKERS.iter().zip(&mut machines) {
                machine.tell(&mut world, worker);
                busy |= machine.work(&mut world, worker, 0);
            }
            if !busy { break }
        }
        prop_assert!(machines[0].running.remove(&unknown), "what nobody gave up is kept");
        for (worker, machine) in WORKERS.iter().zip(&machines) {
            let wanted: BTreeSet<CopyId> =
                world.wants(worker).into_iter().filter(|(_, want)| *want == "run").map(|(copy, _)| copy).collect();
            prop_assert_eq!(&machine.running, &wanted);
        }
        prop_assert_eq!(world.cluster.given_up_records().count(), 0);
    }
}
