//! A worker's data folder that is used on two machines: which of them is the worker.

use super::*;
use crate::bus::access::{CreateJoinToken, Join};
use crate::model::account::{JoinId, SecretHash};

/// Lets a machine with the key of `w` register from `place`.
fn hello(world: &mut World, machine_id: &str, place: &str) -> Result<SessionId, ApiError> {
    let session = SessionId(world.id());
    let info = WorkerInfo { machine_id: machine_id.into(), ..world.info("w", 4) };
    let hello = Hello { session, info, place: place.into(), delete_unknown_s: None };
    world.cluster.hello(&name("w"), hello, world.now, &mut world.changes).map(|_| session)
}

fn beat(world: &mut World, session: SessionId) -> Result<(), ApiError> {
    let beat = Heartbeat { session, revision: 9, told: None, load: None, digest: None };
    world.cluster.heartbeat(&name("w"), &beat, world.now, &mut world.changes).map(drop)
}

fn join(world: &mut World, key: &str, machine_id: &str) {
    let id = JoinId::new(u64::try_from(world.id().as_u128()).unwrap().to_be_bytes());
    let request = CreateJoinToken { ttl_s: 3600, uses: 1, worker: Some(name("w")) };
    let made = (id.clone(), SecretHash([1; 32]));
    world.cluster.create_join_token(name("boss"), request, made, world.now, &mut world.changes).unwrap();
    let join = Join { worker: name("w"), public_key: key.into(), machine_id: machine_id.into() };
    world.cluster.join(&id, join, world.now, &mut world.changes).unwrap();
}

#[test]
fn a_key_on_another_machine_is_told_apart_before_the_worker_ever_came() {
    let mut world = World::new();
    join(&mut world, "U1", "m");
    let refused = hello(&mut world, "other", "here").unwrap_err();
    assert_eq!(refused.code, ErrorCode::Conflict);
    for hint in ["machine-id", "worker.nk", "orchard get bootstrap-token", "orchard delete worker w", "--name"] {
        assert!(refused.message.contains(hint), "{hint}: {refused}");
    }
    hello(&mut world, "m", "here").unwrap();
}

#[test]
fn of_two_holders_of_one_key_the_first_stays_while_it_is_heard() {
    let mut world = World::new();
    join(&mut world, "U1", "m");
    let first = hello(&mut world, "m", "first").unwrap();
    for _ in 0..20 {
        let refused = hello(&mut world, "m", "copy").unwrap_err();
        assert!(refused.code == ErrorCode::Unavailable && refused.message.contains("is a copy"), "{refused}");
        world.pass(3_000);
        beat(&mut world, first).unwrap();
    }
    // The same place again: its process was restarted.
    let again = hello(&mut world, "m", "first").unwrap();
    beat(&mut world, again).unwrap();
    // It is gone, as after a restart of its machine, which has another place then.
    world.pass(14_000);
    hello(&mut world, "m", "copy").unwrap_err();
    world.pass(2_000);
    let copy = hello(&mut world, "m", "copy").unwrap();
    // And does not take the session back.
    assert_eq!(beat(&mut world, again).unwrap_err().code, ErrorCode::Unauthenticated);
    for _ in 0..20 {
        hello(&mut world, "m", "first").unwrap_err();
        world.pass(3_000);
        beat(&mut world, copy).unwrap();
    }
}

#[test]
fn a_restart_of_the_controller_does_not_let_the_copy_come_first() {
    let mut world = World::new();
    join(&mut world, "U1", "m");
    hello(&mut world, "m", "first").unwrap();
    assert!(world.changes.keys.contains(&name("w")), "the place is stored with the key");
    let records = Records {
        workers: vec![world.cluster.worker_record(&name("w")).unwrap().clone()],
        keys: world.cluster.key_records().cloned().collect(),
        ..Records::default()
    };
    world.cluster = Cluster::load(records, Timing::default(), world.now);
    world.pass(5_000);
    hello(&mut world, "m", "copy").unwrap_err();
    let first = hello(&mut world, "m", "first").unwrap();
    beat(&mut world, first).unwrap();
}

#[test]
fn a_new_key_opens_in_a_new_place_at_once() {
    let mut world = World::new();
    join(&mut world, "U1", "m");
    hello(&mut world, "m", "first").unwrap();
    join(&mut world, "U2", "m");
    hello(&mut world, "m", "second").unwrap();
    let long = "x".repeat(200);
    assert_eq!(hello(&mut world, "m", &long).unwrap_err().code, ErrorCode::Invalid);
}

/// A worker that came from `place` and has a VM which runs, then is silent for an hour.
fn silent_with_vm(place: &str) -> (World, SessionId, CopyId) {
    let mut world = World::new();
    join(&mut world, "U1", "m");
    let session = hello(&mut world, "m", place).unwrap();
    let uid = world.create("a", VmSpec::default()).unwrap();
    let copy = CopyId { uid, attempt: 0 };
    world.report("w", session, copy, running()).unwrap();
    world.pass(20_000);
    world.stall(3_600_000);
    (world, session, copy)
}

/// Another machine, the same start of the same with another folder or another disk, another folder after a reboot, and those
/// that say less.
const OTHERS: [&str; 7] = ["i.b.d.f", "i.c.e.g", "h.b.d.g", "h.b.e.f", "h.c.d.g", "older", ""];

#[test]
fn a_copy_is_not_let_in_where_it_would_lose_vms_however_long_the_first_is_silent() {
    let (mut world, _, copy) = silent_with_vm("h.b.d.f");
    for place in OTHERS {
        let refused = hello(&mut world, "m", place).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Conflict, "{place}: {refused}");
        for hint in
            ["1 VMs are placed", "(a)", "where it was", "orchard delete worker w --force", "is a copy", "--name"]
        {
            assert!(refused.message.contains(hint), "{place}: {hint}: {refused}");
        }
        world.pass(1_000);
    }
    let found = |world: &mut World, place| hello(world, "m", place).unwrap_err().message;
    assert!(found(&mut world, "i.b.d.f").contains("another machine"));
    assert!(found(&mut world, "h.b.d.g").contains("another data folder"));
    assert!(found(&mut world, "older").contains("does not say where"));
    // The first finds everything as it was.
    let session = hello(&mut world, "m", "h.b.d.f").unwrap();
    assert_eq!((world.vm("a").status, world.wants("w")), (VmStatus::Running, vec![(copy, "run")]));
    world.report("w", session, copy, running()).unwrap();
}

#[test]
fn a_restart_of_the_controller_does_not_let_the_copy_lose_vms_either() {
    let (mut world, ..) = silent_with_vm("h.b.d.f");
    let records = Records {
        workers: vec![world.cluster.worker_record(&name("w")).unwrap().clone()],
        keys: world.cluster.key_records().cloned().collect(),
        vms: vec![Box::new(world.vm("a"))],
        ..Records::default()
    };
    world.cluster = Cluster::load(records, Timing::default(), world.now);
    world.pass(60_000);
    for place in OTHERS {
        assert_eq!(hello(&mut world, "m", place).unwrap_err().code, ErrorCode::Conflict, "{place}");
    }
    hello(&mut world, "m", "h.b.d.f").unwrap();
}

#[test]
fn the_same_folder_after_a_reboot_is_let_in_once_the_lease_is_over() {
    for after in ["h.c.d.f", "h.c.e.f"] {
        let (mut world, ..) = silent_with_vm("h.b.d.f");
        let session = hello(&mut world, "m", after).unwrap();
        beat(&mut world, session).unwrap();
        world.pass(10_000);
        assert_eq!(hello(&mut world, "m", "h.e.d.f").unwrap_err().code, ErrorCode::Unavailable);
    }
}

#[test]
fn a_worker_without_vms_that_may_run_moves_freely_once_the_lease_is_over() {
    for place in OTHERS {
        // Failed, and so stopped; deleted, and gone.
        let (mut world, _, copy) = silent_with_vm("h.b.d.f");
        let session = hello(&mut world, "m", "h.b.d.f").unwrap();
        world.report("w", session, copy, failed()).unwrap();
        world.pass(14_000);
        assert_eq!(hello(&mut world, "m", place).unwrap_err().code, ErrorCode::Unavailable, "{place}");
        world.pass(2_000);
        hello(&mut world, "m", place).unwrap();
    }
}

#[test]
fn a_deleted_vm_keeps_the_place_until_its_copy_is_gone() {
    let (mut world, _, copy) = silent_with_vm("h.b.d.f");
    world.cluster.delete_vm(&name("a"), world.now, &mut world.changes).unwrap();
    let refused = hello(&mut world, "m", "i.b.d.f").unwrap_err();
    assert!(refused.code == ErrorCode::Conflict && refused.message.contains("(a)"), "{refused}");
    let session = hello(&mut world, "m", "h.b.d.f").unwrap();
    world.report("w", session, copy, Observation::Absent).unwrap();
    world.pass(16_000);
    hello(&mut world, "m", "i.b.d.f").unwrap();
}

#[test]
fn a_place_of_the_older_form_or_none_is_left_as_before() {
    for before in ["older", ""] {
        for place in ["h.b.d.f", "another"] {
            let (mut world, ..) = silent_with_vm(before);
            hello(&mut world, "m", place).unwrap();
        }
    }
}

#[test]
fn a_place_that_is_gone_for_good_is_given_up_by_force() {
    let (mut world, _, copy) = silent_with_vm("h.b.d.f");
    hello(&mut world, "m", "i.b.d.f").unwrap_err();
    world.cluster.delete_worker(&name("w"), true, world.now, &mut world.changes).unwrap();
    join(&mut world, "U2", "m");
    hello(&mut world, "m", "i.b.d.f").unwrap();
    assert_eq!(world.vm("a").status, VmStatus::Failed);
    assert_eq!(world.wants("w"), [(copy, "absent")]);
}
