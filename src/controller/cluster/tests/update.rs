//! Changes of what a VM shall be: none is lost, whatever the VM is about to do.

use super::*;
use crate::bus::life::{SpecChange, UpdateVm};
use crate::model::vm::{Arch, OnUnseen, Os, PowerState, RuntimeKind};

fn priority(priority: i32) -> SpecChange {
    SpecChange { priority: Some(priority), ..SpecChange::default() }
}

fn runs_at(generation: u64) -> Observation {
    Observation::Running { message: "up".into(), ready: true, generation, image_fqn: None }
}

#[test]
fn what_needs_no_process_is_in_effect_as_soon_as_the_worker_has_heard_of_it() {
    let mut world = World::new();
    let session = world.join("w", 4);
    let uid = world.create("a", VmSpec::default()).unwrap();
    let copy = CopyId { uid, attempt: 0 };
    world.report("w", session, copy, running()).unwrap();
    let change = SpecChange {
        restart_policy: Some(RestartPolicy::OnFailure),
        on_unseen: Some(OnUnseen::Replace),
        ttl_s: Some(3_600),
        priority: Some(3),
        ..SpecChange::default()
    };
    let vm = world.alter("a", change.clone()).unwrap();
    assert_eq!((vm.generation, vm.observed_generation, vm.boot), (1, 0, 0));
    assert_eq!(world.alter("a", change).unwrap().generation, 1, "the same again changes nothing");
    let assigned = world.cluster.assignment(&name("w")).unwrap().copies.remove(0);
    assert!(matches!(&assigned.want, Want::Run(run) if run.generation == 1 && run.spec.priority == 3));
    world.report("w", session, copy, runs_at(1)).unwrap();
    assert_eq!(world.vm("a").observed_generation, 1);
    world.report("w", session, copy, runs_at(0)).unwrap();
    assert_eq!(world.vm("a").observed_generation, 1, "one that came late");
    world.report("w", session, copy, failed()).unwrap();
    assert_eq!(world.vm("a").restart_count, 1, "by its new policy");
    assert_eq!(world.vm("a").spec.priority, 3);
    world.pass(3_601_000);
    assert_eq!(world.cluster.vm(&name("a"), world.now).unwrap_err().code, ErrorCode::NotFound, "its time is over");
}

#[test]
fn no_change_is_lost_while_the_vm_waits_is_prepared_or_its_worker_is_away() {
    let mut world = World::new();
    let uid = world.create("a", VmSpec { restart_policy: RestartPolicy::OnFailure, ..VmSpec::default() }).unwrap();
    world.alter("a", priority(1)).unwrap();
    let session = world.join("w", 4);
    world.pass(1);
    world.alter("a", priority(2)).unwrap();
    world.alter("a", priority(3)).unwrap();
    world.pass(60_000);
    assert_eq!(world.cluster.worker(&name("w")).unwrap().state, WorkerState::Unseen);
    world.alter("a", priority(4)).unwrap();
    world.report("w", session, CopyId { uid, attempt: 0 }, failed()).unwrap();
    world.join("w", 4);
    let session = world.join("w", 4);
    world.report("w", session, CopyId { uid, attempt: 1 }, failed()).unwrap();
    assert_eq!(world.vm("a").worker, None);
    world.alter("a", priority(5)).unwrap();
    world.pass(5_100);
    let assigned = world.cluster.assignment(&name("w")).unwrap().copies;
    let run = assigned.iter().find_map(|copy| if let Want::Run(run) = &copy.want { Some(run) } else { None }).unwrap();
    assert_eq!((run.generation, run.spec.priority), (5, 5));
}

#[test]
fn a_vm_whose_priority_is_raised_while_it_waits_is_placed_first() {
    let mut world = World::new();
    world.create("a", VmSpec { cpu: 4, ..VmSpec::default() }).unwrap();
    world.create("b", VmSpec { cpu: 4, ..VmSpec::default() }).unwrap();
    world.alter("b", priority(1)).unwrap();
    world.join("w", 1);
    world.pass(1);
    assert_eq!((world.vm("a").worker, world.vm("b").worker), (None, Some(name("w"))));
}

#[test]
fn a_change_that_expects_another_generation_is_refused() {
    let mut world = World::new();
    world.create("a", VmSpec::default()).unwrap();
    let request = UpdateVm { name: name("a"), if_generation: Some(0), change: priority(1) };
    world.cluster.update_vm(request.clone(), world.now, &mut world.changes).unwrap();
    let again = UpdateVm { change: priority(2), ..request };
    let refused = world.cluster.update_vm(again, world.now, &mut world.changes).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Conflict);
    assert!(refused.message.contains("generation 1, and not at 0"), "{refused}");
    assert_eq!(world.vm("a").spec.priority, 1);
}

#[test]
fn what_cannot_change_is_refused_with_the_reason() {
    let mut world = World::new();
    let session = world.join("w", 4);
    let uid = world.create("a", VmSpec { os: Some(Os::Linux), ..VmSpec::default() }).unwrap();
    assert!(world.alter("a", SpecChange { os: Some(Os::Linux), ..SpecChange::default() }).is_ok(), "the same");
    let wrong = [
        (SpecChange { os: Some(Os::Darwin), ..SpecChange::default() }, "os"),
        (SpecChange { arch: Some(Arch::Amd64), ..SpecChange::default() }, "arch"),
        (SpecChange { runtime: Some(RuntimeKind::Qemu), ..SpecChange::default() }, "runtime"),
        (SpecChange { power_state: Some(PowerState::Suspended), ..SpecChange::default() }, "--suspendable"),
    ];
    for (change, why) in wrong {
        let refused = world.alter("a", change).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Invalid);
        assert!(refused.message.contains(why), "{refused}");
    }
    world.pass(10_000);
    let over = SpecChange { ttl_s: Some(5), ..SpecChange::default() };
    assert_eq!(world.alter("a", over).unwrap_err().code, ErrorCode::Invalid);
    world.report("w", session, CopyId { uid, attempt: 0 }, failed()).unwrap();
    assert_eq!(world.alter("a", priority(1)).unwrap_err().code, ErrorCode::Conflict, "it has failed");
    assert_eq!(world.alter("b", priority(1)).unwrap_err().code, ErrorCode::NotFound);
    assert_eq!(world.vm("a").generation, 0);
}

#[test]
fn another_network_isolation_has_the_vm_boot_again_from_its_disk() {
    let mut world = World::new();
    let session = world.join("w", 4);
    let uid = world.create("a", VmSpec::default()).unwrap();
    world.report("w", session, CopyId { uid, attempt: 0 }, running()).unwrap();
    let allow = |list: &[&str]| SpecChange {
        net_softnet_allow: Some(list.iter().map(|one| (*one).to_owned()).collect()),
        ..SpecChange::default()
    };
    let vm = world.alter("a", allow(&[])).unwrap();
    assert_eq!((vm.generation, vm.boot), (0, 0), "an empty list is none");
    let vm = world.alter("a", allow(&["10.0.0.0/8"])).unwrap();
    assert_eq!((vm.generation, vm.boot, vm.restart_count), (1, 1, 0));
    let vm = world.alter("a", SpecChange { net_softnet: Some(true), ..SpecChange::default() }).unwrap();
    assert_eq!((vm.generation, vm.boot), (2, 1), "the list has turned it on already");
    for wrong in ["x", "10.0.0.1", ""] {
        assert_eq!(world.alter("a", allow(&[wrong])).unwrap_err().code, ErrorCode::Invalid, "{wrong:?}");
    }
    let block = SpecChange { net_softnet_block: Some(vec!["0.0.0.0/0".to_owned()]), ..SpecChange::default() };
    assert_eq!(world.alter("a", block).unwrap().boot, 2);
}

#[test]
fn of_a_vm_that_can_be_suspended_isolation_is_neither_turned_on_nor_off_but_its_lists_change() {
    let mut world = World::new();
    world.join("w", 8);
    let list = vec!["10.0.0.0/8".to_owned()];
    let off = |on| SpecChange { net_softnet: Some(on), ..SpecChange::default() };
    world.create("open", VmSpec { suspendable: true, ..VmSpec::default() }).unwrap();
    assert_eq!(world.alter("open", off(true)).unwrap_err().code, ErrorCode::Invalid);
    let spec = VmSpec { suspendable: true, net_softnet: true, ..VmSpec::default() };
    world.create("closed", spec).unwrap();
    assert_eq!(world.alter("closed", off(false)).unwrap_err().code, ErrorCode::Invalid);
    let change = SpecChange { net_softnet_allow: Some(list), ..SpecChange::default() };
    assert_eq!(world.alter("closed", change).unwrap().generation, 1);
}
