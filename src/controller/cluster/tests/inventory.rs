//! A worker and the controller that do not know the same, and a host's load.

use super::*;
use crate::bus::inventory::{Inventory, State};
use crate::model::worker::HostLoad;

fn beat(world: &mut World, session: SessionId, digest: Option<u64>, load: Option<HostLoad>) -> bool {
    let revision = world.cluster.assignment(&name("w")).unwrap().revision;
    let beat = Heartbeat { session, revision, told: Some(true), load, digest };
    world.changes.clear();
    let ack = world.cluster.heartbeat(&name("w"), &beat, world.now, &mut world.changes).unwrap();
    assert!(world.changes.is_empty(), "a heartbeat stores nothing");
    ack.tell_all
}

fn digest(copies: &[(CopyId, u32, State)]) -> Option<u64> {
    let mut inventory = Inventory::default();
    copies.iter().for_each(|(id, boot, state)| inventory.add(*id, *boot, *state));
    Some(inventory.digest())
}

/// How many of so many heartbeats ask for all.
fn asked(world: &mut World, session: SessionId, digest: Option<u64>, beats: usize) -> usize {
    (0..beats).filter(|_| beat(world, session, digest, None)).count()
}

#[test]
fn a_worker_that_takes_something_else_to_be_known_is_asked_to_tell_all_and_not_without_end() {
    let mut world = World::new();
    let session = world.join("w", 8);
    let uid = world.create("a", VmSpec::default()).unwrap();
    let copy = CopyId { uid, attempt: 0 };
    let coming = digest(&[(copy, 0, State::Coming)]);
    assert_eq!(asked(&mut world, session, coming, 100), 0);
    let running = digest(&[(copy, 0, State::Running)]);
    assert_eq!(asked(&mut world, session, running, 3), 0, "a report may be under way");
    assert_eq!(asked(&mut world, session, running, 1), 1);
    assert_eq!(asked(&mut world, session, running, 99), 0, "it is not asked again at once");
    assert_eq!(asked(&mut world, session, running, 1), 1);
    world.report("w", session, copy, super::running()).unwrap();
    assert_eq!(asked(&mut world, session, running, 300), 0);
    // What was lost here although it was acknowledged is noticed even though the worker has nothing new.
    world.cluster.vms.get_mut(&name::<VmName>("a")).unwrap().status = VmStatus::Pending;
    assert_eq!(asked(&mut world, session, running, 30), 1);
}

#[test]
fn what_is_not_said_or_is_said_of_an_older_assignment_is_no_difference() {
    let mut world = World::new();
    let session = world.join("w", 8);
    world.create("a", VmSpec::default()).unwrap();
    assert_eq!(asked(&mut world, session, None, 100), 0);
    let old = Heartbeat { session, revision: 0, told: Some(true), load: None, digest: Some(1) };
    for _ in 0..100 {
        let ack = world.cluster.heartbeat(&name("w"), &old, world.now, &mut world.changes).unwrap();
        assert!(!ack.tell_all);
    }
}

#[test]
fn only_what_the_worker_is_told_to_run_counts() {
    let mut world = World::new();
    let session = world.join("w", 16);
    let vms: Vec<VmUid> = ["a", "b", "c"].iter().map(|vm| world.create(vm, VmSpec::default()).unwrap()).collect();
    for uid in &vms {
        world.report("w", session, CopyId { uid: *uid, attempt: 0 }, running()).unwrap();
    }
    world.report("w", session, CopyId { uid: vms[1], attempt: 0 }, failed()).unwrap();
    world.cluster.delete_vm(&name("c"), world.now, &mut world.changes).unwrap();
    let wanted: Vec<CopyId> =
        world.wants("w").into_iter().filter(|(_, want)| *want == "run").map(|(id, _)| id).collect();
    assert_eq!(wanted, [CopyId { uid: vms[0], attempt: 0 }]);
    let all = digest(&[(wanted[0], 0, State::Running)]);
    assert_eq!(asked(&mut world, session, all, 300), 0);
}

#[test]
fn a_worker_shows_how_busy_its_host_is_while_it_is_heard_of() {
    let mut world = World::new();
    let session = world.join("w", 8);
    assert_eq!(world.cluster.worker(&name("w")).unwrap().load, None);
    let load = HostLoad { cpu_permille: Some(250), disk_free_mib: Some(7), ..HostLoad::default() };
    beat(&mut world, session, None, Some(load));
    beat(&mut world, session, None, None);
    assert_eq!(world.cluster.worker(&name("w")).unwrap().load, Some(load), "not each heartbeat says it");
    world.pass(60_000);
    assert_eq!(world.cluster.worker(&name("w")).unwrap().load, None);
}
