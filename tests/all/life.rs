//! VMs that are switched off and on, changed, and created once: through the real binary, on synthetic guests and on a real one.

use std::sync::Arc;

use orchard::worker::runtime::qemu::args::Accel;
use orchard::worker::runtime::qemu::{Qemu, QemuOptions};
use orchard::worker::runtime::synthetic::Synthetic;
use orchard::worker::runtime::synthetic::behaviour::Step;
use serde_json::{Value, json};

use crate::guest::guest_image;
use crate::harness::{Cluster, LIMIT};
use crate::standin::run;
use crate::wait::until;

fn conditions(scheduled: bool, running: bool) -> Value {
    json!([
        {"type": "scheduled", "state": scheduled.to_string()},
        {"type": "running", "state": running.to_string()},
    ])
}

async fn wait_for(cluster: &Cluster, vm: &str, what: &str, is: impl Fn(&Value) -> bool) {
    until(what, LIMIT, || async {
        let seen = cluster.json(&["get", "vm", vm]).await;
        if is(&seen) { Ok(()) } else { Err(seen.to_string()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_stopped_and_started_suspended_and_changed() {
    let mut cluster = Cluster::start().await;
    let runtime = Synthetic::new();
    let host = runtime.host().clone();
    cluster.add_worker("w1", Arc::new(runtime)).await;
    let create =
        ["create", "vm", "a", "--image", "any", "--suspendable", "--startup-script", "echo hello-boot", "--wait"];
    cluster.run(&create).await;
    assert_eq!(cluster.json(&["get", "vm", "a"]).await["conditions"], conditions(true, true));

    cluster.run(&["stop", "vm", "a", "--wait"]).await;
    let vm = cluster.json(&["get", "vm", "a"]).await;
    assert_eq!((&vm["conditions"], &vm["status"]), (&conditions(false, false), &json!("running")), "{vm}");
    assert_eq!((&vm["powerState"], &vm["generation"]), (&json!("stopped"), &vm["observedGeneration"]));
    let used = cluster.json(&["get", "worker", "w1"]).await["used"].clone();
    assert_eq!(used["org.cirruslabs.logical-cores"], 0, "its room is free");
    assert!(cluster.run(&["explain", "vm", "a"]).await.contains("its disk is on w1"));

    cluster.run(&["start", "vm", "a", "--wait"]).await;
    let logs = cluster.run(&["logs", "vm", "a"]).await;
    assert_eq!(logs.matches("hello-boot").count(), 2, "the script ran after each boot: {logs}");
    assert_eq!(host.ledger().counts().creates, 1, "the disk is the same");

    cluster.run(&["suspend", "vm", "a", "--wait"]).await;
    let id = host.found()[0].id;
    assert!(host.is_frozen(id));
    cluster.run(&["start", "vm", "a", "--wait"]).await;
    assert!(!host.is_frozen(id));

    // What needs no other process is in effect at once, without one.
    let boots = cluster.json(&["get", "vm", "a"]).await["boot"].clone();
    cluster.run(&["update", "vm", "a", "--restart-policy", "Always", "--priority", "-3"]).await;
    wait_for(&cluster, "a", "the change to be in effect", |vm| vm["generation"] == vm["observedGeneration"]).await;
    assert_eq!(cluster.json(&["get", "vm", "a"]).await["boot"], boots);
    let stale = run(cluster.cli(&["update", "vm", "a", "--ttl", "1h", "--if-generation", "0"])).await;
    assert!(stale.code == Some(1) && stale.stderr.contains("not at 0"), "{stale:?}");

    // It crashes, and boots again from its disk; one that cannot be suspended goes on running.
    host.crash(id, "boom");
    wait_for(&cluster, "a", "the VM to boot again", |vm| vm["boot"] != boots && vm["ready"] == true).await;
    host.fail_next(Step::Suspend, 3, "no room for its memory");
    let refused = run(cluster.cli(&["suspend", "vm", "a", "--wait"])).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("no room for its memory"), "{refused:?}");
    wait_for(&cluster, "a", "the last try", |vm| vm["conditions"] == conditions(false, false)).await;
    cluster.run(&["delete", "vm", "a"]).await;
    until("nothing to be left", LIMIT, || async { if host.found().is_empty() { Ok(()) } else { Err(host.found()) } })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_off_stays_so_and_is_not_lost_over_restarts_of_its_worker_and_host() {
    let mut cluster = Cluster::start().await;
    let host = Synthetic::new().host().clone();
    cluster.add_worker("w1", Arc::new(Synthetic::on(host.clone()))).await;
    for (vm, policy) in [("off", "Never"), ("always", "Always")] {
        cluster.run(&["create", "vm", vm, "--image", "any", "--restart-policy", policy, "--wait"]).await;
    }
    cluster.run(&["stop", "vm", "off", "--wait"]).await;
    cluster.workers.pop().unwrap().shutdown().await;
    host.reboot();
    cluster.add_worker("w1", Arc::new(Synthetic::on(host.clone()))).await;
    wait_for(&cluster, "always", "the other VM to boot again", |vm| vm["boot"] == 1 && vm["ready"] == true).await;
    assert_eq!(cluster.json(&["get", "vm", "off"]).await["status"], "running");
    cluster.run(&["start", "vm", "off", "--wait"]).await;
    assert_eq!(host.found().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_with_a_key_makes_one_vm() {
    let cluster = Cluster::start().await;
    let create = ["create", "vm", "a", "--image", "any", "--idempotency-key", "k1", "-o", "json"];
    let (first, again) = (cluster.json(&create[..7]).await, cluster.json(&create[..7]).await);
    assert_eq!(first["uid"], again["uid"]);
    assert_eq!(first.get("once"), None, "{first}");
    let other = run(cluster.cli(&["create", "vm", "b", "--image", "any", "--idempotency-key", "k1"])).await;
    assert!(other.code == Some(1) && other.stderr.contains("used to create VM a"), "{other:?}");
    let without = run(cluster.cli(&["create", "vm", "a", "--image", "any"])).await;
    assert!(without.code == Some(1) && without.stderr.contains("already is a VM named a"), "{without:?}");
    cluster.run(&["delete", "vm", "a"]).await;
    let late = run(cluster.cli(&create)).await;
    assert!(late.code == Some(1) && late.stderr.contains("was deleted"), "{late:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_guest_keeps_its_disk_over_stop_and_start() {
    let mut cluster = Cluster::start().await;
    let options = QemuOptions { accel: Some(Accel::Tcg), ..QemuOptions::new(cluster.dir.path().join("qemu")) };
    cluster.add_worker("w1", Arc::new(Qemu::new(options).await.unwrap())).await;
    let image = guest_image();
    let create = ["create", "vm", "a", "--image", image.to_str().unwrap(), "--cpu", "1", "--memory", "128", "--wait"];
    cluster.run(&create).await;
    cluster.run(&["ssh", "vm", "a", "echo kept > kept && sync"]).await;
    cluster.run(&["stop", "vm", "a", "--wait"]).await;
    cluster.run(&["start", "vm", "a", "--wait"]).await;
    assert_eq!(cluster.run(&["ssh", "vm", "a", "cat kept"]).await.trim(), "kept");
    cluster.run(&["delete", "vm", "a"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_script_said_before_it_switched_its_guest_off_is_not_lost() {
    let mut cluster = Cluster::start().await;
    let options = QemuOptions { accel: Some(Accel::Tcg), ..QemuOptions::new(cluster.dir.path().join("qemu")) };
    cluster.add_worker("w1", Arc::new(Qemu::new(options).await.unwrap())).await;
    let image = guest_image();
    let create = ["create", "vm", "a", "--image", image.to_str().unwrap(), "--cpu", "1", "--memory", "128"];
    let script = "i=0; while [ $i -lt 200 ]; do echo line-$i; i=$((i+1)); done; sudo poweroff; sleep 600";
    cluster.run(&[&create[..], &["--startup-script", script]].concat()).await;
    wait_for(&cluster, "a", "the guest to be off", |vm| vm["status"] == "failed").await;
    let logs = cluster.run(&["logs", "vm", "a"]).await;
    assert!((0..200).all(|n| logs.lines().any(|line| line.ends_with(&format!("line-{n}")))), "{logs}");
    cluster.run(&["delete", "vm", "a"]).await;
}
