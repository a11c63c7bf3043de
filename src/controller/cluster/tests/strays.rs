//! Copies that a worker has and nobody wishes for: seen, and deleted when somebody says so, never when a VM wants them.

use super::*;

fn told(world: &mut World, worker: &str, session: SessionId, id: CopyId) {
    world.report(worker, session, id, Observation::Stray { name: "old".into(), running: Some(true) }).unwrap();
}

fn delete(world: &mut World, worker: &str, id: CopyId) -> Result<(), ErrorCode> {
    let deleted = world.cluster.delete_stray(&name(worker), id, world.now, &mut world.changes);
    deleted.map_err(|error| error.code)
}

#[test]
fn a_stray_is_listed_and_leaves_its_worker_when_somebody_deletes_it() {
    let mut world = World::new();
    let session = world.join("w", 4);
    let ids: Vec<CopyId> = (0..3).map(|attempt| CopyId { uid: VmUid(world.id()), attempt }).collect();
    ids.iter().for_each(|id| told(&mut world, "w", session, *id));
    assert_eq!(world.cluster.worker(&name("w")).unwrap().strays, 3);
    let (first, more) = world.cluster.strays(None, None, 2);
    assert!(more && first.len() == 2);
    let after = (name("w"), first[1].id);
    let (rest, more) = world.cluster.strays(None, Some(&after), 2);
    assert_eq!((rest.len(), more, rest[0].name.as_str(), rest[0].running), (1, false, "old", true));
    assert_eq!(world.cluster.strays(Some(&name("other")), None, 9).0, []);

    assert_eq!(world.wants("w"), [], "it is left alone");
    assert_eq!(delete(&mut world, "w", ids[1]), Ok(()));
    assert_eq!(delete(&mut world, "w", ids[1]), Ok(()), "asked for once more");
    assert_eq!(world.wants("w"), [(ids[1], "absent")]);
    assert!(world.cluster.strays(None, None, 9).0.iter().any(|stray| stray.id == ids[1] && stray.deleting));
    world.report("w", session, ids[1], Observation::Absent).unwrap();
    assert_eq!((world.wants("w").len(), world.cluster.strays(None, None, 9).0.len()), (0, 2));
    assert_eq!(delete(&mut world, "w", ids[1]), Err(ErrorCode::NotFound));
}

#[test]
fn what_a_vm_has_is_no_stray() {
    let mut world = World::new();
    let session = world.join("w", 4);
    let uid = world.create("a", VmSpec::default()).unwrap();
    let own = CopyId { uid, attempt: 0 };
    // A report of before it was named.
    told(&mut world, "w", session, own);
    assert_eq!(delete(&mut world, "w", own), Err(ErrorCode::NotFound));
    // What another worker has of it is one.
    let other = world.join("v", 4);
    told(&mut world, "v", other, CopyId { uid, attempt: 7 });
    assert_eq!(delete(&mut world, "v", CopyId { uid, attempt: 7 }), Ok(()));
    assert_eq!(world.wants("w"), [(own, "run")]);
    assert_eq!(delete(&mut world, "gone", own), Err(ErrorCode::NotFound));
}

#[test]
fn a_copy_that_a_held_vm_may_go_on_with_is_kept() {
    let mut world = World::new();
    world.now = at(1_800_000_000_000);
    let uid = world.create("a", VmSpec::default()).unwrap();
    let backup = world.records();
    world.join("v", 4);
    world.join("w", 4);
    let backup = Records { workers: world.records().workers, ..backup };
    let restored = Restoration::of(&backup, world.now.wall, world.now.wall);
    world.load(Records { restored, ..backup });
    let session = world.join("w", 4);
    let copy = CopyId { uid, attempt: 0 };
    world.report("w", session, copy, Observation::Stray { name: "a".into(), running: Some(false) }).unwrap();
    assert_eq!(delete(&mut world, "w", copy), Err(ErrorCode::Conflict));
    world.cluster.delete_vm(&name("a"), world.now, &mut world.changes).unwrap();
    assert_eq!(delete(&mut world, "w", copy), Ok(()));
}
