//! Where VMs go, as people on the command line decide, ask and see it.

use std::sync::Arc;

use orchard::worker::runtime::synthetic::Synthetic;
use orchard::worker::runtime::synthetic::behaviour::Step;
use serde_json::json;

use crate::harness::Cluster;
use crate::harness::LIMIT;
use crate::standin::run;
use crate::wait::until;

#[tokio::test(flavor = "multi_thread")]
async fn a_pending_vm_is_explained_and_placed_once_its_worker_is_resumed() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", Arc::new(Synthetic::new())).await;
    until("the worker has registered", LIMIT, || async {
        let seen = run(cluster.cli(&["get", "worker", "w1"])).await;
        if seen.code == Some(0) { Ok(()) } else { Err(seen) }
    })
    .await;
    cluster.run(&["pause", "worker", "w1", "--wait", "2m"]).await;
    cluster.run(&["create", "vm", "a", "--image", "any", "--worker", "w1"]).await;
    let explained = cluster.json(&["explain", "vm", "a"]).await;
    assert_eq!(explained["reason"], "waiting for a worker: of 1 none fits: 1 paused");
    assert_eq!(explained["obstacles"], json!([{"what": "paused", "workers": 1}]));
    assert_eq!(cluster.json(&["get", "vm", "a"]).await["status_message"], explained["reason"]);
    let shown = cluster.run(&["explain", "vm", "a"]).await;
    assert!(shown.contains("Such a VM fits now on  0 of 1 workers"), "{shown}");

    let paused = cluster.json(&["pause", "worker", "w1"]).await;
    assert_eq!((&paused["name"], &paused["scheduling_paused"]), (&json!("w1"), &json!(true)), "{paused}");
    let resumed = cluster.json(&["resume", "worker", "w1"]).await;
    assert_ne!(resumed["scheduling_paused"], json!(true), "{resumed}");
    until("the VM is placed", LIMIT, || async {
        let explained = cluster.json(&["explain", "vm", "a"]).await;
        match explained["worker"].as_str() {
            Some("w1") => Ok(()),
            _ => Err(explained.to_string()),
        }
    })
    .await;
    let shown = cluster.run(&["explain", "vm", "a"]).await;
    assert!(shown.contains("it was placed on w1, the only worker there is"), "{shown}");

    let waits = run(cluster.cli(&["pause", "worker", "w1", "--wait", "0s"])).await;
    assert_eq!(waits.code, Some(1), "{waits:?}");
    assert!(waits.stderr.contains("worker w1 has VMs after 0s still: 1"), "{waits:?}");
    for (arguments, said) in [
        (&["explain", "vm", "none"][..], "no VM named none"),
        (&["pause", "worker", "none"], "no worker named none"),
        (&["resume", "worker", "none"], "no worker named none"),
    ] {
        let refused = run(cluster.cli(arguments)).await;
        assert!(refused.code == Some(1) && refused.stderr.contains(said), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_with_a_time_to_live_is_gone_after_it() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", Arc::new(Synthetic::new())).await;
    cluster.run(&["create", "vm", "short", "--image", "any", "--ttl", "2s"]).await;
    until("it is gone", LIMIT, || async {
        match cluster.json(&["list", "vms"]).await.as_array() {
            Some(vms) if vms.is_empty() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_waits_for_no_vm_that_has_failed() {
    let mut cluster = Cluster::start().await;
    let runtime = Arc::new(Synthetic::new());
    runtime.host().fail_next(Step::Create, 1, "no such image");
    cluster.add_worker("w1", runtime).await;
    cluster.run(&["create", "vm", "broken", "--image", "any"]).await;
    until("it fails", LIMIT, || async {
        let vm = cluster.json(&["get", "vm", "broken"]).await;
        if vm["status"] == "failed" { Ok(()) } else { Err(vm.to_string()) }
    })
    .await;
    assert_eq!(cluster.json(&["get", "worker", "w1"]).await["vms"], 1);
    cluster.run(&["pause", "worker", "w1", "--wait", "0s"]).await;
}
