//! What becomes of each command that fails, hangs, is killed or prints nonsense: what is told of it, and that neither a
//! process nor a disk stays behind.

use std::time::Duration;

use orchard::model::vm::{ImagePullPolicy, RuntimeKind, VmSpec};
use orchard::worker::runtime::tart::names::disk_name;
use orchard::worker::runtime::tart::{Limits, Tart, TartOptions};
use orchard::worker::runtime::{CopySpec, Exit, FoundState, Progress, Runtime, RuntimeError};

use super::host::{Host, LIMITS, SHORT, copy, create, limits_for};

/// How a command can go wrong, and what is told of it.
const WRONGS: [(&str, &[&str]); 4] = [
    ("fail 3 'the first reason' 'more' 'the last words'", &["(exit status: 3)", "the first reason", "the last words"]),
    ("hang", &["did not end within 6 s", "hanging"]),
    ("die", &["signal: 9"]),
    ("flood", &["(exit status: 5)", "drowned"]),
];

/// One that has as many commands run as there are.
fn vm_of(kind: RuntimeKind) -> CopySpec {
    let random_serial = kind == RuntimeKind::Tart;
    copy(0, VmSpec { image_pull_policy: ImagePullPolicy::Always, random_serial, disk_size: 9, ..VmSpec::default() })
}

fn vm() -> CopySpec {
    vm_of(RuntimeKind::Tart)
}

/// Both tools go wrong in the same ways. One after the other: what is cut off after some seconds must not wait for the other.
async fn with_both(test: impl AsyncFn(RuntimeKind)) {
    for kind in [RuntimeKind::Tart, RuntimeKind::Vetu] {
        test(kind).await;
    }
}

fn name() -> String {
    disk_name(&vm().name, vm().id)
}

fn told(error: &RuntimeError, parts: &[&str]) {
    let text = error.to_string();
    assert!(parts.iter().all(|part| text.contains(part)), "{parts:?} in {text:?}");
    assert!(text.len() < 2_000, "{text}");
}

#[tokio::test]
async fn a_command_of_a_creation_that_goes_wrong_is_told_of_and_leaves_nothing() {
    with_both(async |kind| {
        let host = Host::new(kind);
        let vm = vm_of(kind);
        let mut commands = vec!["pull", "clone", "set", "set@--memory", "set@--disk-size"];
        if kind == RuntimeKind::Tart {
            commands.extend(["set@--random-mac", "set@--random-serial"]);
        }
        for command in commands {
            let (verb, part) = command.split_once('@').unwrap_or((command, ""));
            for (play, parts) in WRONGS {
                host.play(verb, part, play);
                let error = create(&host.runtime_within(limits_for(play)), &vm).await.unwrap_err();
                let image = matches!(verb, "pull" | "clone");
                let is_image = matches!(error, RuntimeError::Image(_));
                assert_eq!(is_image, image && play != "hang", "{kind} {command} {play}: {error}");
                told(&error, &[parts, &[verb, part]].concat());
                host.nothing_left().await;
                assert_eq!((host.disks(), host.notes()), (vec![], 0), "{kind} {command} {play}");
                host.stop_playing();
            }
        }
        create(&host.runtime(), &vm).await.unwrap();
        assert_eq!(host.disks(), [name()]);
    })
    .await;
}

#[tokio::test]
async fn nonsense_from_a_command_that_says_it_did_well_is_found_out() {
    let host = Host::tart();
    let runtime = host.runtime();
    // What is made is checked by the next step; what is only told is left out.
    host.play("pull", "", "garbage");
    host.play("fqn", "", "garbage");
    create(&runtime, &vm()).await.unwrap();
    assert_eq!(runtime.image_fqn(vm().id).await, None);
    runtime.delete(vm().id).await.unwrap();
    host.play("clone", "", "garbage");
    told(&create(&runtime, &vm()).await.unwrap_err(), &["set --memory", "does not exist"]);
    host.stop_playing();
    host.play("list", "", "garbage");
    told(&runtime.list().await.unwrap_err(), &["tart list did not answer in the expected JSON"]);
    host.nothing_left().await;
    assert_eq!((host.disks().len(), host.notes()), (0, 0));
}

#[tokio::test]
async fn a_digest_that_cannot_be_had_is_no_reason_not_to_make_a_vm() {
    for play in ["fail 1 'not now'", "hang", "die"] {
        let host = Host::tart();
        host.play("fqn", "", play);
        let runtime = host.runtime_within(limits_for(play));
        create(&runtime, &vm()).await.unwrap();
        assert_eq!(runtime.image_fqn(vm().id).await, None);
    }
}

#[tokio::test]
async fn a_run_that_goes_wrong_at_its_start_is_told_of_and_ended() {
    let wrongs: [(&str, &[&str]); 5] = [
        ("fail 1 'too many VMs on this host'", &["ended at once", "too many VMs on this host"]),
        ("hang", &["was not running 6 s after its start", "hanging"]),
        ("deaf", &["was not running 6 s after its start", "deaf"]),
        ("garbage", &["ended at once"]),
        ("die", &["ended at once"]),
    ];
    with_both(async |kind| {
        let host = Host::new(kind);
        let vm = vm_of(kind);
        for (play, parts) in wrongs {
            let runtime = host.runtime_within(limits_for(play));
            create(&runtime, &vm).await.unwrap();
            host.play("run", "", play);
            let error = runtime.start(&vm).await.unwrap_err();
            told(&error, parts);
            host.nothing_left().await;
            assert_eq!(runtime.list().await.unwrap()[0].state, FoundState::Stopped);
            host.stop_playing();
            runtime.delete(vm.id).await.unwrap();
            assert_eq!((host.disks().len(), host.notes()), (0, 0), "{kind} {play}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_list_that_fails_while_a_vm_starts_does_not_end_it() {
    let host = Host::tart();
    let runtime = host.runtime();
    create(&runtime, &vm()).await.unwrap();
    // The VM does not run before a list has failed, so that none sees it first.
    host.play("run", "", "while [ ! -e \"$here/failed\" ]; do sleep 0.02; done");
    let fails = |starts: u8, how: &str| {
        let started = format!("[ \"$(grep -c begin.run \"$here/calls\")\" -ge {starts} ]");
        format!("if {started}; then {how} touch \"$here/failed\"; fail 1 'the list is busy'; fi")
    };
    host.play("list", "", &fails(1, "once;"));
    runtime.start(&vm()).await.unwrap();
    assert!(!host.file("play/list").exists(), "it failed once");
    assert_eq!((host.count("run"), runtime.list().await.unwrap()[0].state), (1, FoundState::Running));
    runtime.kill(vm().id).await.unwrap();
    host.nothing_left().await;
    std::fs::remove_file(host.file("running").join(name())).unwrap();
    // For ever is too long.
    std::fs::remove_file(host.file("failed")).unwrap();
    host.play("list", "", &fails(2, ""));
    let runtime = host.runtime_within(SHORT);
    told(&runtime.start(&vm()).await.unwrap_err(), &["was not running 6 s", "booting", "the list is busy"]);
    host.nothing_left().await;
}

async fn running(host: &Host, kind: RuntimeKind, limits: Limits) -> Tart {
    let runtime = host.runtime_within(limits);
    create(&runtime, &vm_of(kind)).await.unwrap();
    runtime.start(&vm_of(kind)).await.unwrap();
    runtime
}

#[tokio::test]
async fn a_vm_that_the_tool_does_not_stop_is_ended_all_the_same() {
    with_both(async |kind| {
        for play in ["fail 1 'cannot'", "hang", "die", "garbage", "deaf"] {
            let host = Host::new(kind);
            let runtime = running(&host, kind, limits_for(play)).await;
            host.play("stop", "", play);
            runtime.stop(vm().id, Duration::from_secs(1)).await.unwrap();
            host.nothing_left().await;
            assert_eq!(runtime.list().await.unwrap()[0].state, FoundState::Stopped, "{kind} {play}");
            match runtime.wait_exit(vm().id).await {
                Exit::Crashed(why) => assert!(why.contains("was killed"), "{why}"),
                Exit::PoweredOff => panic!("it was killed"),
            }
            runtime.delete(vm().id).await.unwrap();
            assert_eq!((host.disks().len(), host.notes()), (0, 0));
        }
    })
    .await;
}

#[tokio::test]
async fn a_guest_that_does_not_heed_the_tool_is_ended_by_it_or_with_its_process() {
    let host = Host::tart();
    let runtime = host.runtime();
    create(&runtime, &vm()).await.unwrap();
    host.play("run", "", "unheeding=1");
    runtime.start(&vm()).await.unwrap();
    runtime.stop(vm().id, Duration::ZERO).await.unwrap();
    host.nothing_left().await;
    runtime.start(&vm()).await.unwrap();
    runtime.kill(vm().id).await.unwrap();
    host.nothing_left().await;
    assert_eq!(host.count("stop"), 1, "a kill asks nobody");
}

#[tokio::test]
async fn a_deletion_that_goes_wrong_can_be_tried_again() {
    with_both(async |kind| {
        let host = Host::new(kind);
        let runtime = running(&host, kind, SHORT).await;
        for (play, parts) in WRONGS {
            host.play("delete", "", play);
            told(&runtime.delete(vm().id).await.unwrap_err(), &[parts, &["delete"]].concat());
            assert_eq!(host.disks(), [name()]);
            host.nothing_left().await;
        }
        host.stop_playing();
        runtime.delete(vm().id).await.unwrap();
        assert_eq!((host.disks().len(), host.notes()), (0, 0));
    })
    .await;
}

#[tokio::test]
async fn a_suspend_that_fails_leaves_the_guest_running_and_one_that_loses_its_memory_says_so() {
    let host = Host::tart();
    let runtime = host.runtime_within(SHORT);
    let vm = copy(0, VmSpec { suspendable: true, ..VmSpec::default() });
    create(&runtime, &vm).await.unwrap();
    runtime.start(&vm).await.unwrap();
    for (play, parts) in WRONGS {
        host.play("suspend", "", play);
        told(&runtime.suspend(vm.id, &Progress::new().0).await.unwrap_err(), parts);
        assert_eq!(runtime.list().await.unwrap()[0].state, FoundState::Running);
    }
    // Says that it did well, and nothing happens.
    host.play("suspend", "", "garbage");
    told(&runtime.suspend(vm.id, &Progress::new().0).await.unwrap_err(), &["still runs 6 s after it was suspended"]);
    // The process of `run` cannot write the memory, and ends.
    host.play("suspend", "", &format!("echo {} >> \"$here/crash\"; finish 0", name()));
    told(
        &runtime.suspend(vm.id, &Progress::new().0).await.unwrap_err(),
        &["without keeping its memory", "the guest fell over"],
    );
    host.nothing_left().await;
}

#[tokio::test]
async fn an_address_that_cannot_be_had_is_told_of_with_what_the_tool_said() {
    let host = Host::tart();
    let runtime = running(&host, RuntimeKind::Tart, LIMITS).await;
    let refused = async |parts: &[&str]| match runtime.dial(vm().id, 22).await {
        Err(error @ RuntimeError::Refused(_)) => told(&error, &[parts, &["no address yet"]].concat()),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it connects"),
    };
    host.play("ip", "", "fail 1 'no IP address found'");
    refused(&["ip --wait 60", "no IP address found"]).await;
    host.play("ip", "", "garbage");
    refused(&["tart ip answered"]).await;
    host.play("ip", "", "die");
    refused(&["signal: 9"]).await;
}

#[tokio::test]
async fn a_tool_that_is_not_there_or_may_not_be_run_is_named() {
    let host = Host::tart();
    let with = |program: &str| Tart::new(TartOptions { program: program.into(), ..host.options(LIMITS) }).unwrap();
    let missing = with("no-such-tart");
    for error in [missing.list().await.unwrap_err(), create(&missing, &vm()).await.unwrap_err()] {
        told(&error, &["no-such-tart is not installed, or not on the worker's PATH: install it"]);
    }
    let plain = host.file("plain");
    std::fs::write(&plain, "#!/bin/sh\n").unwrap();
    let plain = with(plain.to_str().unwrap());
    for error in [plain.list().await.unwrap_err(), create(&plain, &vm()).await.unwrap_err()] {
        told(&error, &["not executable"]);
    }
    assert_eq!(host.disks().len(), 0);
    for kind in [RuntimeKind::Tart, RuntimeKind::Vetu] {
        let host = Host::new(kind);
        assert_eq!(Tart::detect(&host.file(kind.as_str())).await.unwrap(), "2.30.1");
    }
}

#[tokio::test]
async fn a_guest_that_falls_over_or_is_killed_is_told_of_by_its_last_words() {
    with_both(async |kind| {
        let host = Host::new(kind);
        let (runtime, vm) = (running(&host, kind, LIMITS).await, vm_of(kind));
        std::fs::write(host.file("crash"), name()).unwrap();
        match runtime.wait_exit(vm.id).await {
            Exit::Crashed(why) => assert!(why.contains("code 7") && why.contains("the guest fell over"), "{why}"),
            Exit::PoweredOff => panic!("a crash was taken for a power-off"),
        }
        std::fs::remove_file(host.file("crash")).unwrap();
        runtime.start(&vm).await.unwrap();
        let pid: i32 = std::fs::read_to_string(host.file("running").join(name())).unwrap().trim().parse().unwrap();
        let exit = runtime.wait_exit(vm.id);
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        match exit.await {
            Exit::Crashed(why) => assert!(why.contains("signal 9") && why.contains("booting"), "{why}"),
            Exit::PoweredOff => panic!("a kill was taken for a power-off"),
        }
        runtime.start(&vm).await.unwrap();
        std::fs::write(host.file("off"), name()).unwrap();
        assert_eq!(runtime.wait_exit(vm.id).await, Exit::PoweredOff);
        host.nothing_left().await;
    })
    .await;
}
