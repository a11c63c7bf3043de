//! Which steps change nothing: what they answer is true even if nothing can be stored.

use super::*;

/// Does one step with changes of its own; yields whether it changed nothing.
fn quiet<T>(world: &mut World, step: impl FnOnce(&mut Cluster, Now, &mut Changes) -> T) -> (T, bool) {
    let mut own = Changes::default();
    let done = step(&mut world.cluster, world.now, &mut own);
    let quiet = own.is_empty();
    world.changes.absorb(own);
    (done, quiet)
}

#[test]
fn a_lease_is_renewed_without_a_change_unless_it_brings_the_worker_back() {
    let mut world = World::new();
    let session = world.join("w", 8);
    world.create("a", VmSpec::default()).unwrap();
    let beat = |world: &mut World, revision| {
        let beat = Heartbeat { session, revision, told: Some(true), load: None, digest: None };
        let (done, quiet) = quiet(world, |cluster, now, changes| cluster.heartbeat(&name("w"), &beat, now, changes));
        (done.is_ok(), quiet)
    };
    assert_eq!(beat(&mut world, 99), (true, true));
    world.changes.assign.clear();
    assert_eq!(beat(&mut world, 0), (true, true), "that it is told again what to run is nothing to be stored");
    assert!(world.changes.assign.contains(&name("w")));
    world.pass(20_000);
    assert_eq!(beat(&mut world, 99), (true, false), "it is online again, which is told of");
    assert_eq!(beat(&mut world, 99), (true, true));
}

#[test]
fn what_is_reported_twice_changes_nothing_the_second_time() {
    let mut world = World::new();
    let session = world.join("w", 8);
    let uid = world.create("a", VmSpec::default()).unwrap();
    for again in [false, true] {
        let report = Report { session, uid, attempt: 0, boot: 0, observation: running() };
        let (done, quiet) = quiet(&mut world, |cluster, now, changes| cluster.report(&name("w"), report, now, changes));
        assert_eq!((done, quiet), (Ok(()), again));
    }
}

proptest! {
    #[test]
    fn steps_that_each_note_their_own_changes_note_all_together_what_they_would_have(
        steps in prop::collection::vec((0..5u8, 0..3u8), 0..40),
    ) {
        let (mut each, mut all) = (World::new(), World::new());
        let sessions = (each.join("w", 8), all.join("w", 8));
        prop_assert_eq!(sessions.0, sessions.1);
        for (what, n) in steps {
            all.act(what, n, sessions.1);
            let before = std::mem::take(&mut each.changes);
            each.act(what, n, sessions.0);
            let own = std::mem::replace(&mut each.changes, before);
            each.changes.absorb(own);
            prop_assert_eq!(format!("{:?}", each.changes), format!("{:?}", all.changes));
        }
    }
}

impl World {
    /// A step, before which the writer forgets what the one before said.
    fn act(&mut self, what: u8, n: u8, session: SessionId) {
        self.changes.said = Said::default();
        match what {
            0 => self.create_nth(n),
            1 => self.delete_nth(n),
            2 => self.pass(3_000),
            _ => {
                let known = self.cluster.vm(&name(&format!("vm{n}")), self.now);
                let said = if what == 3 { failed() } else { running() };
                let _ = known.map(|vm| self.report("w", session, vm.copy_id(), said));
            }
        }
    }
}

#[test]
fn a_worker_that_renews_its_lease_while_nothing_can_be_stored_keeps_what_it_runs() {
    let mut world = World::new();
    let session = world.join("w", 8);
    let spec = VmSpec { on_unseen: crate::model::vm::OnUnseen::Replace, ..VmSpec::default() };
    let uid = world.create("a", spec).unwrap();
    world.report("w", session, CopyId { uid, attempt: 0 }, running()).unwrap();
    let stored = world.records();
    for n in 0..100 {
        world.pass(3_000);
        // What another wants in the same batch cannot be stored, and all that is not goes back.
        world.create(&format!("b{n}"), VmSpec::default()).unwrap();
        let beat = Heartbeat { session, revision: 99, told: Some(true), load: None, digest: None };
        let renew =
            |cluster: &mut Cluster, now, changes: &mut Changes| cluster.heartbeat(&name("w"), &beat, now, changes);
        let (done, quiet) = quiet(&mut world, renew);
        assert!(done.is_ok() && quiet);
        world.go_back(stored.clone());
    }
    assert_eq!(world.cluster.worker(&name("w")).unwrap().state, WorkerState::Online);
    assert_eq!((world.vm("a").restart_count, world.vm("a").worker), (0, Some(name("w"))));
}
