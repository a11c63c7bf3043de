//! VMs of which the worker is only one of the owners: adopted, foreign, suspended, dialled.

use std::time::Duration;

use orchard::model::vm::{RuntimeKind, VmSpec};
use orchard::worker::runtime::tart::names::disk_name;
use orchard::worker::runtime::{Exit, FoundState, Progress, Runtime, RuntimeError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::host::{Host, copy, create};
use crate::harness::LIMIT;
use crate::wait;

fn vm() -> orchard::worker::runtime::CopySpec {
    copy(0, VmSpec::default())
}

#[tokio::test]
async fn foreign_vms_are_neither_listed_nor_touched() {
    let host = Host::tart();
    let runtime = host.runtime();
    create(&runtime, &vm()).await.unwrap();
    for foreign in ["ubuntu", "orchard-mine", "orchard-x-1-2"] {
        std::fs::write(host.file("vms").join(foreign), "").unwrap();
    }
    let found = runtime.list().await.unwrap();
    assert_eq!(found.iter().map(|vm| vm.id).collect::<Vec<_>>(), [vm().id]);
    runtime.delete(copy(1, VmSpec::default()).id).await.unwrap();
    assert_eq!(host.disks().len(), 4);
    assert_eq!(host.count("delete"), 0);
}

#[tokio::test]
async fn a_new_worker_sees_how_an_old_ones_vm_ended() {
    let host = Host::tart();
    let first = host.runtime();
    create(&first, &vm()).await.unwrap();
    first.start(&vm()).await.unwrap();
    drop(first);
    let second = host.runtime();
    assert_eq!(second.list().await.unwrap()[0].state, FoundState::Running);
    second.start(&vm()).await.unwrap();
    assert_eq!(host.count("run"), 1, "it runs already");
    std::fs::write(host.file("crash"), disk_name(&vm().name, vm().id)).unwrap();
    match second.wait_exit(vm().id).await {
        Exit::Crashed(why) => assert!(why.contains("code 7") && why.contains("the guest fell over"), "{why}"),
        Exit::PoweredOff => panic!("a crash was taken for a power-off"),
    }
}

#[tokio::test]
async fn what_a_guest_writes_to_its_console_does_not_fill_the_workers_disk() {
    for kind in [RuntimeKind::Tart, RuntimeKind::Vetu] {
        let host = Host::new(kind);
        let runtime = host.runtime();
        create(&runtime, &vm()).await.unwrap();
        runtime.start(&vm()).await.unwrap();
        let name = disk_name(&vm().name, vm().id);
        let log = host.file(&format!("notes/{name}.log"));
        std::fs::OpenOptions::new().append(true).open(&log).unwrap().set_len(100 << 20).unwrap();
        let mut exit = runtime.wait_exit(vm().id);
        let emptied = wait::until("the log to be emptied", LIMIT, || async {
            let len = std::fs::metadata(&log).unwrap().len();
            if len < 1 << 20 { Ok(()) } else { Err(len) }
        });
        tokio::select! {
            exit = &mut exit => panic!("{exit:?}"),
            () = emptied => {}
        }
        // It goes on at the new end.
        std::fs::write(host.file("crash"), name).unwrap();
        match exit.await {
            Exit::Crashed(why) => assert!(why.contains("the guest fell over"), "{why}"),
            Exit::PoweredOff => panic!("a crash was taken for a power-off"),
        }
        assert!(std::fs::metadata(&log).unwrap().len() < 1 << 20);
    }
}

#[tokio::test]
async fn what_was_noted_of_a_vm_that_is_gone_goes_with_the_worker_that_noted_it() {
    let host = Host::tart();
    let first = host.runtime();
    let kept = copy(1, VmSpec::default());
    for vm in [&vm(), &kept] {
        create(&first, vm).await.unwrap();
    }
    drop(first);
    // As a worker leaves it that is killed in the middle of a deletion.
    std::fs::remove_file(host.file("vms").join(disk_name(&vm().name, vm().id))).unwrap();
    let second = host.runtime();
    assert_eq!(second.list().await.unwrap().len(), 1);
    let left = std::fs::read_dir(host.file("notes")).unwrap().flatten().map(|note| note.file_name());
    let kept = disk_name(&kept.name, kept.id);
    let others: Vec<_> = left.filter(|name| !name.to_str().unwrap().starts_with(&format!("{kept}."))).collect();
    assert!(others.is_empty() && host.notes() > 0, "{others:?}");
}

#[tokio::test]
async fn a_vm_runs_in_a_session_of_its_own() {
    let host = Host::tart();
    let runtime = host.runtime();
    create(&runtime, &vm()).await.unwrap();
    runtime.start(&vm()).await.unwrap();
    let name = disk_name(&vm().name, vm().id);
    let running = std::fs::read_to_string(host.file("running").join(&name)).unwrap().trim().parse().unwrap();
    let noted = std::fs::read(host.file(&format!("notes/{name}.json"))).unwrap();
    let started = serde_json::from_slice::<orchard::worker::runtime::process::Process>(&noted).unwrap().pid;
    // Not compared with this test's own session: its leader may stand outside of a container's PID namespace, where it
    // has no number.
    let [running, started] = [running, started].map(rustix::process::Pid::from_raw);
    assert_eq!(rustix::process::getsid(running).ok(), started, "what the worker started leads the session");
    assert_eq!(rustix::process::getpgid(running).ok(), started);
}

#[tokio::test]
async fn a_suspended_vm_goes_on_and_a_stop_drops_its_memory() {
    let host = Host::tart();
    let runtime = host.runtime();
    let vm = copy(0, VmSpec { suspendable: true, ..VmSpec::default() });
    let name = disk_name(&vm.name, vm.id);
    create(&runtime, &vm).await.unwrap();
    runtime.start(&vm).await.unwrap();
    runtime.suspend(vm.id, &Progress::new().0).await.unwrap();
    assert!(host.file("suspended").join(&name).exists());
    assert_eq!(runtime.list().await.unwrap()[0].state, FoundState::Stopped);
    host.nothing_left().await;
    runtime.suspend(vm.id, &Progress::new().0).await.unwrap();
    runtime.start(&vm).await.unwrap();
    let log = std::fs::read_to_string(host.file(&format!("notes/{name}.log"))).unwrap();
    assert!(log.contains("restoring VM state"), "{log}");
    runtime.suspend(vm.id, &Progress::new().0).await.unwrap();
    runtime.stop(vm.id, Duration::from_secs(1)).await.unwrap();
    assert!(!host.file("suspended").join(&name).exists());
    runtime.delete(vm.id).await.unwrap();
    assert_eq!((host.disks().len(), host.notes()), (0, 0));
    let vetu = Host::new(RuntimeKind::Vetu);
    let runtime = vetu.runtime();
    create(&runtime, &self::vm()).await.unwrap();
    runtime.start(&self::vm()).await.unwrap();
    assert!(
        matches!(runtime.suspend(vm.id, &Progress::new().0).await, Err(RuntimeError::State(why)) if why.contains("vetu"))
    );
}

#[tokio::test]
async fn a_dial_reaches_the_address_that_the_tool_tells_and_asks_once() {
    let host = Host::tart();
    let runtime = host.runtime();
    create(&runtime, &vm()).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (stream, accepted) = tokio::join!(runtime.dial(vm().id, port), listener.accept());
    let mut stream = stream.unwrap();
    accepted.unwrap().0.write_all(b"hello").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    let many = (0..20).map(|_| runtime.dial(vm().id, port));
    assert!(futures_util::future::join_all(many).await.iter().all(Result::is_ok));
    drop(listener);
    wait::until("a refusal", Duration::from_secs(10), || async {
        match runtime.dial(vm().id, port).await {
            Err(RuntimeError::Refused(_)) => Ok(()),
            Err(other) => Err(other.to_string()),
            Ok(_) => Err("connected".to_owned()),
        }
    })
    .await;
    let calls = std::fs::read_to_string(host.file("calls")).unwrap();
    assert_eq!(calls.matches("begin\u{1f}ip\u{1f}--wait\u{1f}60").count(), 1, "an address is remembered");
    let other = copy(9, VmSpec::default()).id;
    assert!(matches!(runtime.dial(other, port).await, Err(RuntimeError::NotFound)));
}

#[tokio::test]
async fn the_address_of_a_bridged_guest_is_asked_of_its_agent_and_then_of_the_host() {
    let host = Host::tart();
    let vm = copy(0, VmSpec { net_bridged: Some("en0".into()), ..VmSpec::default() });
    create(&host.runtime(), &vm).await.unwrap();
    host.play("ip", "agent", "fail 1 'no agent'");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    // Another worker process knows that it is bridged.
    host.runtime().dial(vm.id, listener.local_addr().unwrap().port()).await.unwrap();
    let calls = std::fs::read_to_string(host.file("calls")).unwrap().replace('\u{1f}', " ");
    let agent = calls.find("begin ip --wait 5 --resolver agent orchard-vm-1").unwrap();
    assert!(agent < calls.find("begin ip --wait 60 --resolver arp orchard-vm-1").unwrap());
}

/// The runtime's own process group and session have no number there: a worker in a container started by another program.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_vm_starts_inside_of_a_pid_namespace() {
    let mut inside = tokio::process::Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        inside.arg("--map-root-user");
    }
    inside.args(["--pid", "--fork", "--mount-proc"]).arg(std::env::current_exe().unwrap());
    inside.args(["--exact", "tart::life::a_vm_runs_in_a_session_of_its_own"]).kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, inside.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}
