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

const MINUTE: u64 = 60_000;

impl World {
    /// A worker whose operator wants unknown copies gone after ten minutes.
    fn join_to_delete(&mut self, worker: &str) -> SessionId {
        let session = SessionId(self.id());
        let info = self.info(worker, 4);
        let hello = Hello { session, info, place: String::new(), delete_unknown_s: Some(600) };
        self.cluster.hello(&name(worker), hello, self.now, &mut self.changes).unwrap();
        session
    }

    /// Lets time pass while a worker is heard of.
    fn pass_with(&mut self, worker: &str, session: SessionId, millis: u64) {
        for _ in 0..millis / 10_000 {
            self.pass(10_000);
            let beat = Heartbeat { session, revision: 99, told: Some(true), load: None, digest: None };
            self.cluster.heartbeat(&name(worker), &beat, self.now, &mut self.changes).unwrap();
        }
    }
}

#[test]
fn an_unknown_copy_is_deleted_only_where_that_is_wanted_and_only_after_its_time_in_one_session() {
    let mut world = World::new();
    let (keeps, deletes) = (world.join("v", 4), world.join_to_delete("w"));
    let (kept, unknown) =
        (CopyId { uid: VmUid(world.id()), attempt: 0 }, CopyId { uid: VmUid(world.id()), attempt: 2 });
    told(&mut world, "v", keeps, kept);
    told(&mut world, "w", deletes, unknown);
    world.pass_with("w", deletes, 9 * MINUTE);
    told(&mut world, "w", deletes, unknown);
    assert_eq!(world.wants("w"), [], "its time is not over");

    // Another session counts anew, and one that has not told of it counts nothing.
    let deletes = world.join_to_delete("w");
    world.pass_with("w", deletes, 20 * MINUTE);
    assert_eq!(world.wants("w"), [], "it was not told of in this session");
    told(&mut world, "w", deletes, unknown);
    world.pass_with("w", deletes, 9 * MINUTE);
    told(&mut world, "w", deletes, unknown);
    assert_eq!(world.wants("w"), []);
    world.pass_with("w", deletes, MINUTE);
    assert_eq!(world.wants("w"), [(unknown, "absent")]);
    world.report("w", deletes, unknown, Observation::Absent).unwrap();
    assert_eq!(world.cluster.worker(&name("w")).unwrap().strays, 0);
    assert_eq!(world.cluster.strays(Some(&name("v")), None, 9).0.len(), 1, "nobody asked for that");
}

#[test]
fn no_unknown_copy_is_deleted_of_a_worker_that_is_silent() {
    let mut world = World::new();
    let session = world.join_to_delete("w");
    let unknown = CopyId { uid: VmUid(world.id()), attempt: 0 };
    told(&mut world, "w", session, unknown);
    world.pass(11 * MINUTE);
    assert!(world.cluster.strays(None, None, 9).0.iter().all(|stray| !stray.deleting));
}

#[test]
fn no_unknown_copy_is_deleted_while_a_restored_backup_is_not_settled() {
    let mut world = World::new();
    world.now = at(1_800_000_000_000);
    world.join("v", 4);
    world.join_to_delete("w");
    let backup = world.records();
    let restored = Restoration::of(&backup, world.now.wall, world.now.wall);
    world.load(Records { restored, ..backup });
    let session = world.join_to_delete("w");
    let unknown = CopyId { uid: VmUid(world.id()), attempt: 0 };
    told(&mut world, "w", session, unknown);
    world.pass_with("w", session, 20 * MINUTE);
    assert_eq!(world.wants("w"), [], "v has not told what it has");
    let other = world.join("v", 4);
    world.pass_with("v", other, 10_000);
    let beat = Heartbeat { session, revision: 99, told: Some(true), load: None, digest: None };
    world.cluster.heartbeat(&name("w"), &beat, world.now, &mut world.changes).unwrap();
    world.pass(1_000);
    assert_eq!(world.wants("w"), [(unknown, "absent")]);
}
