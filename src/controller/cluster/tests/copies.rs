//! A worker's data folder that is used on two machines: which of them is the worker.

use super::*;
use crate::bus::access::{CreateJoinToken, Join};
use crate::model::account::{JoinId, SecretHash};

/// Lets a machine with the key of `w` register from `place`.
fn hello(world: &mut World, machine_id: &str, place: &str) -> Result<SessionId, ApiError> {
    let session = SessionId(world.id());
    let info = WorkerInfo { machine_id: machine_id.into(), ..world.info("w", 4) };
    let hello = Hello { session, info, place: place.into() };
    world.cluster.hello(&name("w"), hello, world.now, &mut world.changes).map(|_| session)
}

fn beat(world: &mut World, session: SessionId) -> Result<(), ApiError> {
    let beat = Heartbeat { session, revision: 9 };
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
