//! The settings of the cluster take effect at once, and VMs with folders of a host stay there.

use super::*;
use crate::bus::settings::SetSettings;
use crate::model::settings::Profile;

fn set(world: &mut World, request: SetSettings) -> Result<(), ErrorCode> {
    let set = world.cluster.set_settings(request, &mut world.changes).map(drop);
    world.cluster.place(world.now, &mut world.changes);
    set.map_err(|error| error.code)
}

fn with_dir(dir: &str) -> VmSpec {
    VmSpec { host_dirs: vec![dir.parse().unwrap()], cpu: 1, ..VmSpec::default() }
}

#[test]
fn profile_and_overcommit_count_from_the_next_placement_on_and_outlive_a_restart() {
    let mut world = World::new();
    for worker in ["v", "w"] {
        world.join(worker, 1);
    }
    let place = |world: &mut World, vm: &str| {
        world.create(vm, VmSpec { cpu: 1, ..VmSpec::default() }).unwrap();
        world.vm(vm).worker
    };
    let first = place(&mut world, "a");
    assert_eq!(place(&mut world, "b"), first, "packed");
    let spread = SetSettings { profile: Some(Profile::DistributeLoad), ..SetSettings::default() };
    set(&mut world, spread).unwrap();
    assert!(world.changes.settings);
    assert_ne!(place(&mut world, "c"), first);
    let tight = SetSettings { cpu_overcommit: Some(2), ..SetSettings::default() };
    set(&mut world, tight).unwrap();
    place(&mut world, "d");
    assert_eq!(place(&mut world, "e"), None, "two cores on each of two workers are all there is");
    let settings = world.cluster.settings_record().clone();
    let records = Records { settings: settings.clone(), ..world.records() };
    world.load(records);
    for worker in ["v", "w"] {
        world.join(worker, 1);
    }
    assert_eq!((world.cluster.settings_record(), world.vm("e").worker), (&settings, None));
    set(&mut world, SetSettings { cpu_overcommit: Some(3), ..SetSettings::default() }).unwrap();
    assert!(world.vm("e").worker.is_some(), "at once");
    assert_eq!(
        set(&mut world, SetSettings { cpu_overcommit: Some(0), ..SetSettings::default() }),
        Err(ErrorCode::Invalid)
    );
    assert_eq!(world.cluster.settings_record().cpu_overcommit, 3);
}

#[test]
fn host_directories_need_a_policy() {
    let mut world = World::new();
    let code = |result: Result<VmUid, ApiError>| result.map_err(|error| error.code).map(drop);
    assert_eq!(code(world.create("a", with_dir("src:/srv/src"))), Err(ErrorCode::Forbidden));
    let add =
        |policy: &str| SetSettings { add_host_dir_policies: vec![policy.parse().unwrap()], ..SetSettings::default() };
    set(&mut world, add("/srv:ro")).unwrap();
    assert_eq!(code(world.create("a", with_dir("src:/srv/src"))), Err(ErrorCode::Forbidden));
    assert_eq!(code(world.create("a", with_dir("src:/srv/src:ro"))), Ok(()));
    set(&mut world, add("/srv")).unwrap();
    assert_eq!(code(world.create("b", with_dir("src:/srv/src"))), Ok(()));
    let twice =
        VmSpec { host_dirs: vec!["x:/srv/a".parse().unwrap(), "x:/srv/b".parse().unwrap()], ..VmSpec::default() };
    assert_eq!(code(world.create("c", twice)), Err(ErrorCode::Invalid));
    let vetu = VmSpec { runtime: Some(RuntimeKind::Vetu), ..with_dir("src:/srv/src") };
    assert_eq!(code(world.create("c", vetu)), Err(ErrorCode::Invalid));
    set(&mut world, SetSettings { host_dir_policies: Some(Vec::new()), ..SetSettings::default() }).unwrap();
    assert_eq!(code(world.create("c", with_dir("src:/srv/src"))), Err(ErrorCode::Forbidden));
}

#[test]
fn a_vm_with_folders_of_a_host_starts_over_there_and_nowhere_else() {
    let mut world = World::new();
    let policy = vec!["/srv".parse().unwrap()];
    set(&mut world, SetSettings { add_host_dir_policies: policy, ..SetSettings::default() }).unwrap();
    let session = world.join("w", 4);
    let spec = VmSpec { restart_policy: RestartPolicy::OnFailure, ..with_dir("src:/srv/src") };
    let uid = world.create("a", spec).unwrap();
    world.join("v", 4);
    world.cluster.set_paused(&name("w"), true, world.now, &mut world.changes).unwrap();
    world.report("w", session, CopyId { uid, attempt: 0 }, failed()).unwrap();
    let vm = world.vm("a");
    assert_eq!((vm.worker, vm.bound_to), (None, Some(name("w"))));
    assert!(vm.status_message.contains("other than the one it is bound to"), "{}", vm.status_message);
    world.cluster.set_paused(&name("w"), false, world.now, &mut world.changes).unwrap();
    world.cluster.place(world.now, &mut world.changes);
    assert_eq!(world.vm("a").worker, Some(name("w")));
}
