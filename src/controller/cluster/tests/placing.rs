//! Where VMs go and what is said about it; pauses; ends.

use super::*;

#[test]
fn a_vm_that_fits_nowhere_says_what_stands_in_the_way_and_a_placed_one_why_it_is_there() {
    let mut world = World::new();
    world.join("small", 4);
    world.join("paused", 64);
    world.cluster.set_paused(&name("paused"), true, world.now, &mut world.changes).unwrap();
    world.create("big", VmSpec { cpu: 32, ..VmSpec::default() }).unwrap();
    let expected = "waiting for a worker: of 2 none fits: 1 paused, 1 too small for 32 cores (the largest has 16)";
    assert_eq!(world.vm("big").status_message, expected);
    assert_eq!(world.cluster.vms(None, 10, 1 << 20, world.now).0[0].status_message, expected);
    let explained = world.cluster.explain(&name("big"), world.now).unwrap();
    assert_eq!((explained.reason.as_str(), explained.workers, explained.fitting), (expected, 2, 0));
    assert_eq!(explained.obstacles.len(), 2);

    world.cluster.set_paused(&name("paused"), false, world.now, &mut world.changes).unwrap();
    world.cluster.place(world.now, &mut world.changes);
    let vm = world.vm("big");
    assert_eq!(vm.worker, Some(name("paused")));
    assert_eq!(vm.status_message, "placed on paused, the only one of 2 workers that could take it");
    let explained = world.cluster.explain(&name("big"), world.now).unwrap();
    assert_eq!(explained.reason, "it was placed on paused, the only one of 2 workers that could take it");
    assert_eq!(world.cluster.explain(&name("none"), world.now).unwrap_err().code, ErrorCode::NotFound);
    let events = world.events();
    assert!(events.contains(&EventType::Paused) && events.contains(&EventType::Resumed));
}

#[test]
fn a_pause_outlives_the_worker_and_the_controller_and_no_heartbeat_undoes_it() {
    let mut world = World::new();
    let session = world.join("w", 4);
    world.cluster.set_paused(&name("w"), true, world.now, &mut world.changes).unwrap();
    world.cluster.set_paused(&name("w"), true, world.now, &mut world.changes).unwrap();
    assert_eq!(world.events().iter().filter(|kind| **kind == EventType::Paused).count(), 1);
    let beat = Heartbeat { session, revision: 1, told: None, load: None, digest: None };
    world.cluster.heartbeat(&name("w"), &beat, world.now, &mut world.changes).unwrap();
    let workers = vec![world.cluster.worker_record(&name("w")).unwrap().clone()];
    world.cluster = Cluster::load(Records { workers, ..Records::default() }, Timing::default(), world.now);
    world.join("w", 8);
    world.create("a", VmSpec::default()).unwrap();
    assert_eq!(world.vm("a").worker, None);
    let missing = world.cluster.set_paused(&name("x"), true, world.now, &mut world.changes);
    assert_eq!(missing.unwrap_err().code, ErrorCode::NotFound);
}

#[test]
fn the_more_important_of_two_gets_the_last_place() {
    let mut world = World::new();
    let cpu = |priority| VmSpec { cpu: 16, priority, ..VmSpec::default() };
    world.create("first", cpu(0)).unwrap();
    world.create("urgent", cpu(1)).unwrap();
    world.join("w", 4);
    assert_eq!(world.vm("urgent").worker, Some(name("w")));
    assert_eq!(world.vm("first").worker, None);
}

#[test]
fn a_vm_deletes_itself_when_its_time_is_over_also_across_a_restart() {
    let mut world = World::new();
    world.join("w", 4);
    let short = VmSpec { ttl_s: 60, cpu: 1, ..VmSpec::default() };
    world.create("a", short.clone()).unwrap();
    world.create("b", short).unwrap();
    world.create("stays", VmSpec { cpu: 1, ..VmSpec::default() }).unwrap();
    world.cluster.delete_vm(&name("b"), world.now, &mut world.changes).unwrap();
    world.pass(40_000);
    let kept = Records {
        vms: world.cluster.vms.values().cloned().collect(),
        workers: vec![world.cluster.worker_record(&name("w")).unwrap().clone()],
        last_event: world.cluster.last_event,
        ..Records::default()
    };
    world.cluster = Cluster::load(kept, Timing::default(), world.now);
    world.pass(19_000);
    assert_eq!(world.vm("a").status, VmStatus::Pending);
    world.pass(1_000);
    assert_eq!(world.cluster.vm(&name("a"), world.now).unwrap_err().code, ErrorCode::NotFound);
    let last = world.changes.events.last().unwrap();
    assert_eq!((last.kind, last.message.as_str()), (EventType::Deleting, "the 60 s it was given are over"));
    world.vm("stays");
}

#[test]
fn a_pause_before_a_restart_outlives_the_controller() {
    let mut world = World::new();
    let session = world.join("w", 4);
    let uid = world.create("a", VmSpec { restart_policy: RestartPolicy::OnFailure, ..VmSpec::default() }).unwrap();
    for attempt in 0..2 {
        world.report("w", session, CopyId { uid, attempt }, failed()).unwrap();
    }
    let record = world.cluster.vm_record(uid).unwrap().clone();
    let workers = vec![world.cluster.worker_record(&name("w")).unwrap().clone()];
    let records =
        Records { vms: vec![Box::new(record)], workers, last_event: world.cluster.last_event, ..Records::default() };
    world.pass(2_000);
    world.cluster = Cluster::load(records, Timing::default(), world.now);
    world.join("w", 4);
    world.pass(2_000);
    assert_eq!(world.vm("a").worker, None, "5 s are not over");
    world.pass(2_000);
    assert_eq!(world.vm("a").worker, Some(name("w")));
}
