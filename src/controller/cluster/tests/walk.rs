//! A random walk through the life of a cluster, whose invariants hold after every step.

use super::*;

/// A worker that does as it is told, for the random walk: what really runs on it.
#[derive(Default)]
struct FakeHost {
    session: Option<SessionId>,
    running: BTreeSet<CopyId>,
}

#[derive(Clone, Debug)]
enum Move {
    Create(u8),
    Delete(u8),
    Work(bool, u8),
    Fail(bool),
    Pass(u16),
    Join(bool),
    Remove(bool),
    RestartController,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        3 => (0..6u8).prop_map(Move::Create),
        2 => (0..6u8).prop_map(Move::Delete),
        8 => (any::<bool>(), 0..8u8).prop_map(|(w, n)| Move::Work(w, n)),
        2 => any::<bool>().prop_map(Move::Fail),
        2 => (0..9000u16).prop_map(Move::Pass),
        2 => any::<bool>().prop_map(Move::Join),
        1 => any::<bool>().prop_map(Move::Remove),
        1 => Just(Move::RestartController),
    ];
    prop::collection::vec(one, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_one_vm_runs_once_and_no_worker_is_overfilled(moves in moves()) {
        let mut world = World::new();
        let mut hosts: BTreeMap<&str, FakeHost> = [("v", FakeHost::default()), ("w", FakeHost::default())].into();
        for step in moves {
            match step {
                Move::Create(n) => world.create_nth(n),
                Move::Delete(n) => world.delete_nth(n),
                Move::Join(first) => {
                    let worker = if first { "v" } else { "w" };
                    hosts.get_mut(worker).unwrap().session = Some(world.join(worker, 1));
                }
                Move::Pass(millis) => world.pass(millis.into()),
                Move::Work(first, n) => {
                    let worker = if first { "v" } else { "w" };
                    let host = hosts.get_mut(worker).unwrap();
                    let Some(session) = host.session else { continue };
                    if world.cluster.assignment(&name(worker)).is_none() { continue }
                    let wants = world.wants(worker);
                    let Some((copy, want)) = wants.get(usize::from(n) % wants.len().max(1)).copied() else { continue };
                    let observation = match want {
                        "run" => { host.running.insert(copy); running() }
                        "absent" => { host.running.remove(&copy); Observation::Absent }
                        _ => { prop_assert!(!host.running.contains(&copy), "a kept copy must be dead"); continue }
                    };
                    let _ = world.report(worker, session, copy, observation);
                }
                Move::Fail(first) => {
                    let worker = if first { "v" } else { "w" };
                    let host = hosts.get_mut(worker).unwrap();
                    let (Some(session), Some(copy)) = (host.session, host.running.first().copied()) else { continue };
                    if let Ok(()) = world.report(worker, session, copy, failed()) {
                        host.running.remove(&copy);
                    }
                }
                Move::Remove(first) => {
                    // Whoever says "force" answers for it that the machine is off.
                    let worker = if first { "v" } else { "w" };
                    if world.cluster.delete_worker(&name(worker), true, world.now, &mut world.changes).is_ok() {
                        hosts.insert(worker, FakeHost::default());
                    }
                    world.cluster.place(world.now, &mut world.changes);
                }
                Move::RestartController => {
                    world.restart();
                    hosts.values_mut().for_each(|host| host.session = None);
                }
            }
            let mut uids = BTreeSet::new();
            for copy in hosts.values().flat_map(|host| host.running.iter()) {
                prop_assert!(uids.insert(copy.uid), "VM {} runs twice", copy.uid);
            }
            for (worker, entry) in &world.cluster.workers {
                let mut sum = Resources::default();
                entry.vms.iter().filter_map(|uid| world.cluster.vm_record(*uid)).for_each(|vm| sum.add(&vm.assigned));
                entry.leaving.iter().filter_map(|id| world.cluster.leaving.get(id)).for_each(|leaving| sum.add(&leaving.held));
                let held = world.cluster.scheduler.used(worker).unwrap();
                let used = |name| (held.get(name), sum.get(name));
                for (kept, counted) in [used(LOGICAL_CORES), used(MEMORY_MIB)] {
                    prop_assert_eq!(kept, counted, "the books of {} are wrong", worker);
                }
                prop_assert!(held.get(LOGICAL_CORES) <= 4, "{} is overfilled", worker);
            }
            let numbers: Vec<_> = world.changes.events.iter().map(|event| event.number).collect();
            prop_assert_eq!(&numbers, &(1..=u64::try_from(numbers.len()).unwrap()).collect::<Vec<_>>());
        }
    }
}
