//! Real guests that are suspended and go on: what runs in them goes on, whatever becomes of the worker, and memory that
//! cannot be loaded is never mixed with the disk.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use orchard::worker::runtime::qemu::Qemu;
use orchard::worker::runtime::qemu::args::Accel;
use orchard::worker::runtime::qemu::{QemuOptions, args};
use orchard::worker::runtime::{FoundState, Progress, Runtime, RuntimeError};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::guest::guest_image;
use crate::harness::Cluster;
use crate::qemu::{BOOT, Host, boot, copy, create, ssh_banner, states, turn};
use crate::wait;

async fn suspend(qemu: &Qemu, id: orchard::model::CopyId) -> Result<String, RuntimeError> {
    let (progress, told) = Progress::new();
    qemu.suspend(id, &progress).await.map(|()| told.borrow().clone())
}

fn state(host: &Host) -> PathBuf {
    host.vm_folders()[0].join("suspend.state")
}

/// Sends commands to QEMU as a worker would that then dies.
async fn tell_qemu(host: &Host, commands: &[&str]) {
    let socket = host.vm_folders()[0].join("qmp.sock");
    let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    for command in ["qmp_capabilities"].iter().chain(commands) {
        write.write_all(format!("{{\"execute\":\"{command}\"}}\n").as_bytes()).await.unwrap();
        while !lines.next_line().await.unwrap().unwrap().contains("\"return\"") {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_in_a_real_guest_goes_on_over_suspend_and_start() {
    let mut cluster = Cluster::start().await;
    let options = QemuOptions { accel: Some(Accel::Tcg), ..QemuOptions::new(cluster.dir.path().join("qemu")) };
    let runtime = Arc::new(Qemu::new(options).await.unwrap());
    cluster.add_worker("w1", runtime.clone()).await;
    let image = guest_image();
    let create = ["create", "vm", "a", "--image", image.to_str().unwrap(), "--cpu", "1", "--memory", "128"];
    cluster.run(&[&create[..], &["--disk-size", "1", "--suspendable", "--wait"]].concat()).await;
    let size = cluster.run(&["ssh", "vm", "a", "cat /sys/block/vda/size"]).await;
    assert_eq!(size.trim().parse::<u64>().unwrap() * 512, 1_000_000_000, "the guest sees the disk that was asked for");
    let seed = "cat /var/lib/cloud/instance-id; sudo mount -o ro -t vfat /dev/vdb /mnt; sudo cat /mnt/user-data";
    let seed = cluster.run(&["ssh", "vm", "a", seed]).await;
    let uid = cluster.json(&["get", "vm", "a"]).await["uid"].as_str().unwrap().to_owned();
    assert!(seed.starts_with(&uid) && seed.contains("plain_text_passwd: \"admin\""), "{seed}");
    // Seen once it is there, which takes an emulated guest a while.
    let begin = "setsid sleep 100000 >/dev/null 2>&1 </dev/null & until pid=$(pidof sleep); do :; done; echo $pid; \
                 cat /proc/sys/kernel/random/boot_id";
    let begun = cluster.run(&["ssh", "vm", "a", begin]).await;
    let (pid, boot) = begun.split_once('\n').unwrap();

    cluster.run(&["suspend", "vm", "a", "--wait"]).await;
    let folder = std::fs::read_dir(cluster.dir.path().join("qemu/vms")).unwrap().next().unwrap().unwrap().path();
    assert!(folder.join("suspend.state").exists());
    assert_eq!(runtime.list().await.unwrap()[0].state, FoundState::Stopped);

    cluster.run(&["start", "vm", "a", "--wait"]).await;
    let look = format!("tr '\\0' ' ' < /proc/{pid}/cmdline; cat /proc/sys/kernel/random/boot_id");
    let seen = cluster.run(&["ssh", "vm", "a", &look]).await;
    assert!(seen.contains("sleep 100000") && seen.ends_with(boot), "{seen:?} is not the guest of before: {begun:?}");
    assert!(!folder.join("suspend.state").exists());

    // One that is switched off is not suspended any more.
    cluster.run(&["suspend", "vm", "a", "--wait"]).await;
    cluster.run(&["stop", "vm", "a", "--wait"]).await;
    assert!(!folder.join("suspend.state").exists());
    cluster.run(&["start", "vm", "a", "--wait"]).await;
    let seen = cluster.run(&["ssh", "vm", "a", "cat /proc/sys/kernel/random/boot_id"]).await;
    assert_ne!(seen.trim(), boot.trim());
    cluster.run(&["delete", "vm", "a"]).await;
}

#[tokio::test]
async fn memory_that_cannot_be_loaded_is_said_and_the_next_start_boots_from_the_disk() {
    let host = Host::new();
    let qemu = host.qemu().await;
    let vm = copy("broken", &guest_image());
    create(&qemu, &vm).await.unwrap();
    for (spoil, why) in [(0u64, "bytes"), (1, "cannot make sense")] {
        boot(&qemu, &vm).await;
        let _turn = turn().await;
        suspend(&qemu, vm.id).await.unwrap();
        assert_eq!((states(&qemu).await, host.processes()), (vec![FoundState::Stopped], vec![]));
        let file = std::fs::File::options().write(true).open(state(&host)).unwrap();
        let len = file.metadata().unwrap().len();
        file.set_len(len / 2).unwrap();
        file.set_len(len - 1 + spoil).unwrap();
        let error = qemu.start(&vm).await.unwrap_err().to_string();
        assert!(error.contains("cannot be loaded") && error.contains("boots from it"), "{error}");
        assert!(error.contains(why) || spoil == 1, "{error}");
        assert_eq!((states(&qemu).await, host.processes()), (vec![FoundState::Stopped], vec![]));
        assert!(!state(&host).exists());
    }
    boot(&qemu, &vm).await;
    qemu.delete(vm.id).await.unwrap();
}

#[tokio::test]
async fn a_start_that_fails_for_another_reason_keeps_the_memory() {
    let host = Host::new();
    let qemu = host.qemu().await;
    let vm = copy("kept", &guest_image());
    create(&qemu, &vm).await.unwrap();
    boot(&qemu, &vm).await;
    suspend(&qemu, vm.id).await.unwrap();
    // Without its disk QEMU does not start.
    let disk = host.vm_folders()[0].join("disk.qcow2");
    std::fs::rename(&disk, disk.with_extension("away")).unwrap();
    qemu.start(&vm).await.unwrap_err();
    qemu.kill(vm.id).await.unwrap();
    assert!(state(&host).exists());
    std::fs::rename(disk.with_extension("away"), &disk).unwrap();
    let _turn = turn().await;
    qemu.start(&vm).await.unwrap();
    ssh_banner(&qemu, vm.id).await;
    assert!(!state(&host).exists());
    qemu.delete(vm.id).await.unwrap();
}

#[tokio::test]
async fn a_guest_that_stood_still_when_its_worker_died_goes_on_under_the_next() {
    let host = Host::new();
    let first = host.qemu().await;
    let vm = copy("still", &guest_image());
    create(&first, &vm).await.unwrap();
    boot(&first, &vm).await;
    drop(first);
    tell_qemu(&host, &["stop"]).await;
    // What the dead worker had written so far.
    std::fs::write(state(&host), "half").unwrap();
    let second = host.qemu().await;
    ssh_banner(&second, vm.id).await;
    assert!(!state(&host).exists(), "it must not be mistaken for the memory of a guest that has run since");
    suspend(&second, vm.id).await.unwrap();
    drop(second);

    // The next worker dies after it has started QEMU and before it has sent the memory.
    let folder = host.vm_folders()[0].clone();
    let saved: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.join("suspend.json")).unwrap()).unwrap();
    let words: Vec<String> = serde_json::from_value(saved["args"].clone()).unwrap();
    let log = std::fs::File::create(folder.join("qemu.log")).unwrap();
    let mut command = std::process::Command::new("qemu-system-x86_64");
    command.args(args::resume(&words, saved["machine"].as_str().unwrap())).current_dir(&folder);
    let mut child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    let _turn = turn().await;
    let socket = folder.join("qmp.sock");
    wait::until("QEMU's socket", BOOT, || async { std::os::unix::net::UnixStream::connect(&socket).map(drop) }).await;
    let third = host.qemu().await;
    ssh_banner(&third, vm.id).await;
    assert_eq!(host.processes(), [i32::try_from(child.id()).unwrap()]);
    third.delete(vm.id).await.unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn a_guest_with_host_directories_is_not_suspended_and_goes_on() {
    let host = Host::new();
    let qemu = host.qemu().await;
    let shared = tempfile::tempdir().unwrap();
    let mut vm = copy("shares", &guest_image());
    vm.spec.host_dirs = vec![format!("work:{}", shared.path().canonicalize().unwrap().display()).parse().unwrap()];
    create(&qemu, &vm).await.unwrap();
    boot(&qemu, &vm).await;
    let error = suspend(&qemu, vm.id).await.unwrap_err();
    assert!(error.to_string().contains("host directories"), "{error}");
    ssh_banner(&qemu, vm.id).await;
    qemu.delete(vm.id).await.unwrap();
}

#[tokio::test]
async fn a_qemu_that_hangs_is_stopped_by_killing_it_and_one_nobody_noted_is_found() {
    let host = Host::new();
    let qemu = host.qemu().await;
    let vm = copy("hangs", &guest_image());
    create(&qemu, &vm).await.unwrap();
    let turn = turn().await;
    qemu.start(&vm).await.unwrap();
    let pid = host.processes()[0];
    let raw = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(raw, rustix::process::Signal::STOP).unwrap();
    qemu.stop(vm.id, Duration::from_millis(100)).await.unwrap();
    assert_eq!((states(&qemu).await, host.processes()), (vec![FoundState::Stopped], vec![]));

    // A worker that is killed right after it has started QEMU: no note, and no socket that leads to it.
    qemu.start(&vm).await.unwrap();
    let pid = host.processes()[0];
    drop(qemu);
    let folder = host.vm_folders()[0].clone();
    for file in ["process.json", "qmp.sock"] {
        std::fs::remove_file(folder.join(file)).unwrap();
    }
    let second = host.qemu().await;
    assert_eq!(states(&second).await, [FoundState::Running]);
    let begun = tokio::time::timeout(BOOT, second.start(&vm)).await.unwrap();
    assert!(begun.is_err(), "it cannot be reached, and no second one is started: {begun:?}");
    assert_eq!(host.processes(), [pid]);
    second.kill(vm.id).await.unwrap();
    assert_eq!((states(&second).await, host.processes()), (vec![FoundState::Stopped], vec![]));
    drop(turn);
}
