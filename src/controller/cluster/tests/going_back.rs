//! A commit fails, and the core goes back to what is stored: whatever the batch did in memory only is still to come.

use super::*;

impl World {
    /// As the writer does when what came after `stored` could not be.
    pub(super) fn go_back(&mut self, stored: Records) {
        let mut cluster = Cluster::load(stored, Timing::default(), self.now);
        cluster.keep_liveness_of(&self.cluster);
        self.cluster = cluster;
    }
}

#[test]
fn a_vm_whose_end_could_not_be_stored_still_ends() {
    let mut world = World::new();
    world.create("a", VmSpec { ttl_s: 60, ..VmSpec::default() }).unwrap();
    let stored = world.records();
    world.pass(60_000);
    assert!(world.cluster.vm(&name("a"), world.now).is_err());
    world.go_back(stored);
    world.vm("a");
    world.pass(1_000);
    assert!(world.cluster.vm(&name("a"), world.now).is_err());
}

/// A VM that waits for its restart in 5 s.
fn held_back(world: &mut World) {
    let session = world.join("w", 4);
    let uid = world.create("a", VmSpec { restart_policy: RestartPolicy::OnFailure, ..VmSpec::default() }).unwrap();
    for attempt in 0..2 {
        world.report("w", session, CopyId { uid, attempt }, failed()).unwrap();
    }
    assert_eq!(world.vm("a").worker, None);
}

#[test]
fn a_vm_that_waits_for_its_restart_and_whose_deletion_could_not_be_stored_still_restarts() {
    let mut world = World::new();
    held_back(&mut world);
    let stored = world.records();
    world.cluster.delete_vm(&name("a"), world.now, &mut world.changes).unwrap();
    world.go_back(stored);
    world.pass(4_000);
    assert_eq!(world.vm("a").worker, None);
    world.pass(2_000);
    assert_eq!(world.vm("a").worker, Some(name("w")));
}

#[test]
fn a_restart_that_could_not_be_stored_comes_again_whatever_the_clock_on_the_wall_says() {
    let mut world = World::new();
    held_back(&mut world);
    let stored = world.records();
    world.pass(5_000);
    assert_eq!(world.vm("a").worker, Some(name("w")));
    world.now.wall = at(0).wall;
    world.go_back(stored);
    world.pass(6_000);
    assert_eq!(world.vm("a").worker, Some(name("w")));
}

#[test]
fn a_pause_before_a_restart_is_as_long_as_it_was_whatever_the_clock_on_the_wall_says() {
    let mut world = World::new();
    held_back(&mut world);
    world.now.wall = at(3_600_000).wall;
    world.go_back(world.records());
    world.cluster.place(world.now, &mut world.changes);
    assert_eq!(world.vm("a").worker, None);
    world.pass(6_000);
    assert_eq!(world.vm("a").worker, Some(name("w")));
}
