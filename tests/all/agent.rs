//! The worker's agent: what it tells of its host, what becomes of VMs when it ends on purpose or with its machine, and how
//! copies go that nobody knows.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use orchard::model::{CopyId, WorkerName};
use orchard::worker::lease::{Moment, Written};
use orchard::worker::runtime::qemu::args::Accel;
use orchard::worker::runtime::qemu::{Qemu, QemuOptions};
use orchard::worker::runtime::synthetic::Synthetic;
use orchard::worker::runtime::synthetic::host::SyntheticHost;
use orchard::worker::runtime::{FoundState, Progress, Runtime};
use orchard::worker::{Worker, WorkerOptions};
use serde_json::Value;
use tokio::io::AsyncReadExt as _;

use crate::guest::guest_image;
use crate::harness::{Access, Cluster, LIMIT, worker_options};
use crate::processes::{Server, within};
use crate::qemu::{copy, kill, processes_in};
use crate::wait::until;

async fn wait_for(cluster: &Cluster, vm: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    until(what, LIMIT, || async {
        let seen = cluster.json(&["get", "vm", vm]).await;
        if is(&seen) { Ok(seen) } else { Err(seen.to_string()) }
    })
    .await
}

fn boots_again(boot: u64) -> impl Fn(&Value) -> bool {
    move |vm| vm["boot"] == boot && vm["ready"] == true
}

fn waits_for_its_worker(vm: &Value) -> bool {
    let message = vm["status_message"].as_str().unwrap_or_default();
    vm["status"] == "pending" && message.contains("boots again from its disk when its worker is back")
}

fn running(host: &SyntheticHost) -> usize {
    host.found().iter().filter(|found| found.state == FoundState::Running).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_tells_how_busy_its_host_is() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", Arc::new(Synthetic::new())).await;
    let load = until("the worker to tell", LIMIT, || async {
        let workers = cluster.json(&["list", "workers"]).await;
        workers[0].get("load").cloned().ok_or(workers)
    })
    .await;
    assert!(cluster.run(&["get", "worker", "w1"]).await.contains("Disk free"));
    let number = |key: &str| load[key].as_u64().unwrap_or_else(|| panic!("{key}: {load}"));
    assert!(number("memoryMib") >= number("memoryAvailableMib") && number("memoryAvailableMib") > 0, "{load}");
    assert!(number("diskMib") >= number("diskFreeMib") && number("cpuPermille") <= 1_000, "{load}");
    assert!(cluster.run(&["list", "workers"]).await.contains(" GiB"));
}

#[tokio::test(flavor = "multi_thread")]
async fn vms_that_were_stopped_with_their_worker_boot_again_with_it_whatever_their_policy() {
    let mut cluster = Cluster::start().await;
    let host = Synthetic::new().host().clone();
    cluster.add_worker("w1", Arc::new(Synthetic::on(host.clone()))).await;
    for (vm, policy) in [("never", "Never"), ("over", "OnFailure"), ("always", "Always"), ("off", "Always")] {
        cluster.run(&["create", "vm", vm, "--image", "any", "--restart-policy", policy, "--wait"]).await;
    }
    cluster.run(&["stop", "vm", "off", "--wait"]).await;
    let mut told = Vec::new();
    let left = cluster.workers.pop().unwrap().shutdown_with_vms(|left| told.push(left)).await;
    assert_eq!((left, told.last(), running(&host)), (Some(0), Some(&0), 0), "{told:?}");
    for vm in ["never", "over", "always"] {
        wait_for(&cluster, vm, "the VM to wait", waits_for_its_worker).await;
    }

    cluster.add_worker("w1", Arc::new(Synthetic::on(host.clone()))).await;
    for vm in ["never", "over", "always"] {
        let vm = wait_for(&cluster, vm, "the VM to boot again", boots_again(1)).await;
        assert_eq!(vm["restart_count"], 0, "from its own disk: {vm}");
    }
    assert_eq!((host.ledger().counts().creates, running(&host)), (4, 3));
    assert_eq!(cluster.json(&["get", "vm", "off"]).await["powerState"], "stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn vms_that_were_stopped_while_the_controller_was_away_boot_again_all_the_same() {
    let mut cluster = Cluster::start().await;
    let host = Synthetic::new().host().clone();
    cluster.add_worker("w1", Arc::new(Synthetic::on(host.clone()))).await;
    cluster.run(&["create", "vm", "a", "--image", "any", "--wait"]).await;
    let dir = cluster.worker_dir("w1");
    cluster.workers.pop().unwrap().shutdown().await;
    // A worker that reaches nobody: it has not heard what it shall run, and ends what does.
    let name: WorkerName = "w1".parse().unwrap();
    let nobody = Access { url: "tls://127.0.0.1:1".into(), ..cluster.access.clone() };
    let login = orchard::bus::client::Login::Password(nobody.token.clone());
    let bus = orchard::bus::client::BusOptions { patient: true, ..nobody.options("worker/w1", login) };
    let cut_off = Worker::start(worker_options(bus, dir, &name, Arc::new(Synthetic::on(host.clone())))).await.unwrap();
    assert_eq!((cut_off.shutdown_with_vms(|_| ()).await, running(&host)), (Some(0), 0));
    assert_eq!(cluster.json(&["get", "vm", "a"]).await["status"], "running", "nobody has told");

    cluster.add_worker("w1", Arc::new(Synthetic::on(host.clone()))).await;
    wait_for(&cluster, "a", "the VM to boot again", boots_again(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_that_nobody_knows_are_deleted_only_by_a_worker_that_is_told_to() {
    let cluster = Cluster::start().await;
    let mut hosts = Vec::new();
    for (name, delete_unknown_after) in [("keeps", None), ("deletes", Some(Duration::from_secs(1)))] {
        let runtime = Synthetic::new();
        let unknown = copy(&format!("lost-{name}"), Path::new("any"));
        runtime.create(&unknown, &Progress::new().0).await.unwrap();
        runtime.start(&unknown).await.unwrap();
        let (host, dir) = (runtime.host().clone(), cluster.worker_dir(name));
        let name: WorkerName = name.parse().unwrap();
        let bus = orchard::bus::client::BusOptions { patient: true, ..cluster.access.join(&name, &dir).await };
        let options = worker_options(bus, dir, &name, Arc::new(runtime));
        let worker = Worker::start(WorkerOptions { delete_unknown_after, ..options }).await.unwrap();
        hosts.push((host, unknown.id, worker));
    }
    let [(kept, kept_id, _), (emptied, ..)] = &hosts[..] else { panic!() };
    until("the unknown copy to go", LIMIT, || async {
        if emptied.found().is_empty() { Ok(()) } else { Err(emptied.found()) }
    })
    .await;
    // The worker tells of it after it is gone.
    let strays = until("one stray to be left", LIMIT, || async {
        let strays = cluster.json(&["list", "strays"]).await;
        if strays.as_array().unwrap().len() == 1 { Ok(strays) } else { Err(strays) }
    })
    .await;
    assert_eq!(running(kept), 1);
    let found: Vec<CopyId> = kept.found().iter().map(|found| found.id).collect();
    assert_eq!((&strays[0]["worker"], found), (&Value::from("keeps"), vec![*kept_id]));
}

/// What runs in a folder ends with the test, however it ends.
struct Guests(PathBuf);

impl Drop for Guests {
    fn drop(&mut self) {
        if self.0.exists() {
            processes_in(&self.0).into_iter().for_each(kill);
        }
    }
}

async fn create_real(cluster: &Cluster, vm: &str, policy: &str) {
    let image = guest_image();
    let size = ["--cpu", "1", "--memory", "128", "--restart-policy", policy];
    cluster.run(&[&["create", "vm", vm, "--image", image.to_str().unwrap(), "--wait"], &size[..]].concat()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_reboot_of_the_host_real_guests_boot_again_from_their_disks_as_their_policy_says() {
    let mut cluster = Cluster::start().await;
    let folder = cluster.dir.path().join("qemu");
    let runtime = || async {
        let options = QemuOptions { accel: Some(Accel::Tcg), ..QemuOptions::new(folder.clone()) };
        Arc::new(Qemu::new(options).await.unwrap())
    };
    let _guests = Guests(folder.clone());
    cluster.add_worker("w1", runtime().await).await;
    create_real(&cluster, "always", "Always").await;
    create_real(&cluster, "never", "Never").await;
    cluster.run(&["ssh", "vm", "always", "echo kept > kept && sync"]).await;

    // All processes of the machine end, and its next start has another name.
    cluster.workers.pop().unwrap().shutdown().await;
    let guests = processes_in(&folder);
    assert_eq!(guests.len(), 2);
    guests.into_iter().for_each(kill);
    until("the guests to be gone", LIMIT, || async {
        let left = processes_in(&folder);
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    let lease = Written { boot: "0".repeat(36), until: Moment::since_boot(Duration::from_secs(1)) };
    std::fs::write(cluster.worker_dir("w1").join("guard/lease"), lease.to_string()).unwrap();

    cluster.add_worker("w1", runtime().await).await;
    wait_for(&cluster, "always", "the VM to boot again", boots_again(1)).await;
    assert_eq!(cluster.run(&["ssh", "vm", "always", "cat kept"]).await.trim(), "kept");
    let never = wait_for(&cluster, "never", "the other to have failed", |vm| vm["status"] == "failed").await;
    let message = never["status_message"].as_str().unwrap();
    assert!(message.contains("its worker's machine was started anew"), "{message}");
    for vm in ["always", "never"] {
        cluster.run(&["delete", "vm", vm]).await;
    }
    until("nothing to be left", LIMIT, || async {
        let left = processes_in(&folder);
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

/// `orchard worker run --stop-vms-on-exit` in `folder`, with these words more.
async fn worker_process(folder: &Path, more: &[&str]) -> Server {
    let mut command = within(&[]);
    command.env("ORCHARD_HOME", folder).env("ORCHARD_QEMU_ACCEL", "tcg");
    command.args(["worker", "run", "--name", "w1", "--runtime", "qemu", "--stop-vms-on-exit"]).args(more);
    command.arg("--data-dir").arg(folder.join("data")).stderr(Stdio::piped());
    Server::start(command).await
}

/// SIGTERM; what it says until it has ended well.
async fn terminate(mut server: Server) -> String {
    let pid = rustix::process::Pid::from_raw(server.child.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let mut said = String::new();
    let mut errors = server.child.stderr.take().unwrap();
    let ended = async {
        errors.read_to_string(&mut said).await.unwrap();
        server.child.wait().await.unwrap()
    };
    let status = tokio::time::timeout(LIMIT, ended).await.expect("the worker does not end");
    assert!(status.success(), "{status}: {said}");
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_process_takes_its_real_guest_with_it_when_it_is_told_to_and_brings_it_back() {
    let cluster = Cluster::start().await;
    let folder = cluster.dir.path().join("far");
    std::fs::create_dir(&folder).unwrap();
    let _guests = Guests(folder.clone());
    let token = cluster.access.bootstrap_token().await.to_text();
    let server = worker_process(&folder, &["--bootstrap-token", token.expose()]).await;
    create_real(&cluster, "a", "Never").await;
    cluster.run(&["ssh", "vm", "a", "echo kept > kept"]).await; // not even synced: the guest is shut down in order
    let said = terminate(server).await;
    assert!(said.contains("VMs still to stop: 1") && said.contains("all VMs are stopped"), "{said}");
    assert_eq!(processes_in(&folder), Vec::<i32>::new());
    wait_for(&cluster, "a", "the VM to wait", waits_for_its_worker).await;

    let server = worker_process(&folder, &[]).await;
    wait_for(&cluster, "a", "the VM to boot again", boots_again(1)).await;
    assert_eq!(cluster.run(&["ssh", "vm", "a", "cat kept"]).await.trim(), "kept");
    cluster.run(&["delete", "vm", "a"]).await;
    until("nothing to be left", LIMIT, || async {
        let left = std::fs::read_dir(folder.join("data/qemu/vms")).unwrap().count();
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
    assert!(terminate(server).await.contains("all VMs are stopped"));
}
