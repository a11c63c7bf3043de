//! Messages that only a worker could send that means harm, or is broken.

use super::power::stopped;
use super::*;
use crate::bus::access::{CreateAccount, CreateJoinToken, Join, UpdateAccount};
use crate::model::access::Roles;
use crate::model::account::{JoinId, SecretHash};
use crate::model::error::ErrorCode;

#[test]
fn a_number_of_a_log_line_that_cannot_be_is_refused() {
    let mut world = World::new();
    let session = world.join("w", 8);
    let uid = world.create("a", VmSpec::default()).unwrap();
    let line = || LogLine { stream: LogStream::Stdout, text: "x".into(), time: None };
    let mut log = |first: u64| {
        let lines = LogLines { session, uid, attempt: 0, boot: 0, first, lines: vec![line(), line()] };
        world.cluster.log(&name("w"), lines, world.now, &mut world.changes)
    };
    for first in [u64::MAX, u64::MAX - 1, 1 << 60] {
        assert_eq!(log(first).unwrap_err().code, ErrorCode::Invalid, "{first}");
    }
    log(0).unwrap();
    assert_eq!(world.vm("a").log_lines, 2);
}

#[test]
fn a_worker_that_says_too_much_of_itself_is_refused() {
    let mut world = World::new();
    let mut info = world.info("w", 8);
    info.labels = (0..600).map(|n| (format!("label-{n}"), "x".repeat(100))).collect();
    let hello = Hello { session: SessionId(world.id()), info, place: String::new(), delete_unknown_s: None };
    let refused = world.cluster.hello(&name("w"), hello, world.now, &mut world.changes).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Invalid);
    assert!(world.cluster.workers(None, 1, 1).0.is_empty());
}

/// A token to join with, made by `by`.
fn joinable(world: &mut World, by: &str) -> JoinId {
    let id = JoinId::new(u64::try_from(world.id().as_u128()).unwrap().to_be_bytes());
    let request = CreateJoinToken { ttl_s: 3600, uses: 3, worker: None };
    let made = (id.clone(), SecretHash([1; 32]));
    world.cluster.create_join_token(name(by), request, made, world.now, &mut world.changes).unwrap();
    id
}

#[test]
fn what_an_account_gave_out_ends_with_its_right_to_give_it_out() {
    let mut world = World::new();
    world.cluster.restore_admin(&name("root"), SecretHash([0; 32]), world.now, &mut world.changes);
    let ends: [fn(&mut World); 3] = [
        |w| drop(w.cluster.rotate_account(&name("boss"), SecretHash([3; 32]), w.now, &mut w.changes).unwrap()),
        |w| {
            let fewer =
                UpdateAccount { name: name("boss"), roles: Some(Roles::default()), expiry: None, ssh_keys: None };
            drop(w.cluster.update_account(&fewer, w.now, &mut w.changes).unwrap());
        },
        |w| w.cluster.delete_account(&name("boss"), &mut w.changes).unwrap(),
    ];
    for end in ends {
        let request = CreateAccount {
            name: name("boss"),
            roles: Roles::all(),
            expires_at: None,
            token: None,
            ssh_keys: Vec::new(),
        };
        // There from the last round, unless this is the first.
        let _ = world.cluster.create_account(&request, SecretHash([2; 32]), world.now, &mut world.changes);
        let (own, other) = (joinable(&mut world, "boss"), joinable(&mut world, "root"));
        end(&mut world);
        assert_eq!(world.cluster.join_record(&own), None);
        assert!(world.changes.joins.contains(&own) && world.cluster.join_record(&other).is_some());
    }
}

#[test]
fn a_worker_that_was_taken_out_does_not_come_back_with_what_it_came_with() {
    let mut world = World::new();
    let id = joinable(&mut world, "root");
    let join = || Join { worker: name("w"), public_key: "U1".into(), machine_id: "m".into() };
    world.cluster.join(&id, join(), world.now, &mut world.changes).unwrap();
    world.cluster.delete_worker(&name("w"), false, world.now, &mut world.changes).unwrap();
    let back = world.cluster.join(&id, join(), world.now, &mut world.changes).unwrap_err();
    assert_eq!(back.code, ErrorCode::Unauthenticated);
}

#[test]
fn a_worker_that_registers_again_and_again_does_not_fill_the_store_with_events() {
    let mut world = World::new();
    for n in 0..50u128 {
        let session = world.join("w", 8);
        for copy in 0..100 {
            let id = CopyId { uid: VmUid(uuid::Uuid::from_u128(n * 100 + copy)), attempt: 0 };
            world.report("w", session, id, Observation::Stray { name: "x".into(), running: None }).unwrap();
        }
    }
    assert!(world.changes.events.len() < 1_100, "{}", world.changes.events.len());
}

#[test]
fn a_worker_that_says_now_this_now_that_of_a_stray_does_not_fill_the_store_with_events() {
    let mut world = World::new();
    let session = world.join("w", 8);
    let own = world.create("a", VmSpec::default()).unwrap();
    let unknown = CopyId { uid: VmUid(uuid::Uuid::max()), attempt: 0 };
    let another = CopyId { uid: own, attempt: 7 };
    let before = world.changes.events.len();
    for _ in 0..50 {
        for id in [unknown, another] {
            world.report("w", session, id, Observation::Stray { name: "x".into(), running: None }).unwrap();
            let fenced = Observation::Fenced { message: String::new() };
            for said in [Observation::Absent, failed(), running(), stopped(), fenced] {
                assert_eq!(world.report("w", session, id, said).unwrap_err().code, ErrorCode::Conflict);
            }
            world.report("w", session, id, Observation::Stray { name: "x".into(), running: None }).unwrap();
        }
    }
    assert_eq!(world.changes.events.len(), before + 2);
    assert_eq!(world.cluster.strays(None, None, 9).0.len(), 2);
}

/// What a worker may say of a copy, true or not.
fn said() -> impl Strategy<Value = Observation> {
    prop_oneof![
        Just(Observation::Absent),
        Just(failed()),
        (any::<bool>(), any::<u64>()).prop_map(|(ready, generation)| Observation::Running {
            image_fqn: ready.then(|| "i@sha256:1".into()),
            message: String::new(),
            ready,
            generation
        }),
        "\\PC{0,300}".prop_map(|name| Observation::Stray { name, running: None }),
        "\\PC{0,300}".prop_map(|message| Observation::Preparing { message }),
    ]
}

proptest! {
    #[test]
    fn nothing_that_a_worker_says_changes_what_another_has(
        said in prop::collection::vec((said(), 0..4usize, prop_oneof![0..3u32, any::<u32>()], any::<u64>()), 1..60),
    ) {
        let mut world = World::new();
        let other = world.join("w", 8);
        let running_one = world.create("a", VmSpec::default()).unwrap();
        world.report("w", other, CopyId { uid: running_one, attempt: 0 }, running()).unwrap();
        let leaving = world.create("b", VmSpec::default()).unwrap();
        world.cluster.delete_vm(&name("b"), world.now, &mut world.changes).unwrap();
        world.join("gone", 8);
        let gone = world.create("c", VmSpec::default()).unwrap();
        let on = world.vm("c").worker.unwrap();
        let evil = world.join("evil", 8);
        let uids = [running_one, leaving, gone, VmUid(uuid::Uuid::max())];
        let of_others = |world: &World| {
            let copy = |uid| CopyId { uid, attempt: 0 };
            (
                uids.map(|uid| world.cluster.vm_record(uid).cloned()),
                uids.map(|uid| world.cluster.leaving_record(copy(uid)).cloned()),
                world.wants("w"),
                world.cluster.worker(&name("w")).unwrap(),
            )
        };
        prop_assert_ne!(on, name("evil"));
        let before = of_others(&world);
        for (observation, uid, attempt, number) in said {
            let id = CopyId { uid: uids[uid], attempt };
            let _ = world.report("evil", evil, id, observation.clone());
            // In another's session, and with another's name in none.
            let _ = world.report("evil", other, id, observation);
            let line = LogLine { stream: LogStream::Stdout, text: "x".into(), time: None };
            let log = LogLines { session: evil, uid: id.uid, attempt, boot: 0, first: number, lines: vec![line] };
            let _ = world.cluster.log(&name("evil"), log, world.now, &mut world.changes);
            let beat = Heartbeat { session: evil, revision: number, told: None, load: None, digest: None };
            let _ = world.cluster.heartbeat(&name("evil"), &beat, world.now, &mut world.changes);
            prop_assert_eq!(&of_others(&world), &before);
        }
    }
}
