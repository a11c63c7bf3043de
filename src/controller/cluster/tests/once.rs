//! Creates that bear a key.

use super::*;
use crate::model::AccountName;

impl World {
    fn create_once(&mut self, by: &str, vm: &str, key: &str, spec: VmSpec) -> Result<Vm, ApiError> {
        let uid = VmUid(self.id());
        let spec = VmSpec { image: "img".into(), ..spec };
        let request = CreateVm { name: name(vm), spec, key: Some(key.into()) };
        let by: AccountName = name(by);
        self.cluster.create_vm(Some(by), request, uid, self.now, &mut self.changes)
    }
}

#[test]
fn a_create_that_comes_again_is_answered_with_the_vm_that_it_made() {
    let mut world = World::new();
    let made = world.create_once("ann", "a", "k", VmSpec::default()).unwrap();
    assert_eq!(made.once, None, "not for readers");
    assert_eq!(world.create_once("ann", "a", "k", VmSpec::default()).unwrap().uid, made.uid);
    world.restart();
    let created = world.events().len();
    assert_eq!(world.create_once("ann", "a", "k", VmSpec::default()).unwrap().uid, made.uid);
    assert_eq!(world.events().len(), created, "nothing happened");
    // Also when it was changed since: what counts is what was asked for.
    world.alter("a", crate::bus::life::SpecChange { priority: Some(1), ..Default::default() }).unwrap();
    assert_eq!(world.create_once("ann", "a", "k", VmSpec::default()).unwrap().uid, made.uid);
}

#[test]
fn a_key_is_good_for_one_request_of_one_account() {
    let mut world = World::new();
    world.create_once("ann", "a", "k", VmSpec::default()).unwrap();
    for (vm, spec, why) in [
        ("b", VmSpec::default(), "to create VM a, and not b"),
        ("a", VmSpec { cpu: 2, ..VmSpec::default() }, "another specification"),
    ] {
        let refused = world.create_once("ann", vm, "k", spec).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Conflict);
        assert!(refused.message.contains(why), "{refused}");
    }
    world.create_once("bob", "b", "k", VmSpec::default()).unwrap();
    let long = "x".repeat(crate::bus::message::MAX_KEY + 1);
    for bad in ["", "a b", "ä", long.as_str()] {
        assert_eq!(
            world.create_once("ann", "c", bad, VmSpec::default()).unwrap_err().code,
            ErrorCode::Invalid,
            "{bad:?}"
        );
    }
}

#[test]
fn the_key_of_a_deleted_vm_is_remembered_for_a_day() {
    let mut world = World::new();
    world.create_once("ann", "a", "k", VmSpec::default()).unwrap();
    world.cluster.delete_vm(&name("a"), world.now, &mut world.changes).unwrap();
    world.restart();
    let refused = world.create_once("ann", "a", "k", VmSpec::default()).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Conflict);
    assert!(refused.message.contains("was deleted"), "{refused}");
    world.stall(24 * 3_600_000 + 1);
    world.create_once("ann", "a", "k", VmSpec::default()).unwrap();
}

#[test]
fn nobody_pushes_out_the_keys_of_others() {
    let mut world = World::new();
    world.cluster.spent = spent::SpentKeys::at_most(3, Vec::new());
    let mut spend = |by: &str, key: &str| {
        world.create_once(by, "a", key, VmSpec::default()).unwrap();
        world.pass(1_000);
        world.cluster.delete_vm(&name("a"), world.now, &mut world.changes).unwrap();
    };
    spend("ann", "k");
    (0..9).for_each(|n| spend("bob", &n.to_string()));
    let again = |world: &mut World, by, key| {
        world.create_once(by, "b", key, VmSpec::default()).map(drop).map_err(|error| error.code)
    };
    assert_eq!(again(&mut world, "ann", "k"), Err(ErrorCode::Conflict));
    assert_eq!(again(&mut world, "bob", "8"), Err(ErrorCode::Conflict));
    let forgotten = (Some(name("bob")), "6".to_owned());
    assert!(world.cluster.spent_record(&forgotten).is_none() && world.changes.spent.contains(&forgotten));
}
