//! Workers that are not heard of, and workers that are drained, through the real command line.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use orchard::controller::BusSource;
use orchard::controller::cluster::Timing;
use orchard::identity::new_token;
use orchard::task::{self, Task};
use orchard::worker::runtime::FoundState;
use orchard::worker::runtime::synthetic::Synthetic;
use orchard::worker::runtime::synthetic::host::SyntheticHost;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::harness::{Access, Cluster, LIMIT, any_port};
use crate::wait::until;

/// Short leases. Not shorter: on a machine that has much else to do, a loop that stands still would be taken for a controller
/// that heard nothing.
const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(500),
    unseen: Duration::from_secs(3),
    lease: Duration::from_secs(15),
    fence: Duration::from_millis(500),
};

/// A cable to the bus that can be cut.
struct Cable {
    address: SocketAddr,
    whole: watch::Sender<bool>,
    _task: Task,
}

impl Cable {
    async fn to(bus: SocketAddr) -> Self {
        let listener = TcpListener::bind(any_port()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (whole, state) = watch::channel(true);
        let carry = async move {
            let mut streams = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let mut state = state.clone();
                streams.spawn(async move {
                    let Ok(mut far) = TcpStream::connect(bus).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = state.wait_for(|whole| !whole) => {}
                    }
                });
            }
        };
        Self { address, whole, _task: task::spawn(carry) }
    }
}

async fn state_of(cluster: &Cluster, worker: &str) -> String {
    let shown = cluster.cli(&["get", "worker", worker, "--output", "json"]).output().await.unwrap();
    // It may not have registered yet.
    let view: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap_or_default();
    view["state"].as_str().unwrap_or_default().to_owned()
}

async fn until_state(cluster: &Cluster, worker: &str, wanted: &str) {
    until(&format!("worker {worker} to be {wanted}"), LIMIT, || async {
        let state = state_of(cluster, worker).await;
        if state == wanted { Ok(()) } else { Err(state) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_cut_off_is_unseen_then_gone_and_what_may_be_replaced_runs_elsewhere() {
    let bus = BusSource::Embedded { listen: any_port(), tls: true, host: None };
    let mut cluster = Cluster::start_with(bus, new_token(), TIMING).await;
    let cable = Cable::to(cluster.controller.bus_addr().unwrap()).await;
    let by_cable = Access { url: format!("tls://{}", cable.address), ..cluster.access.clone() };
    let host = Arc::new(SyntheticHost::default());
    let data_dir = cluster.worker_dir("w1");
    let worker = by_cable.worker("w1", &data_dir, Arc::new(Synthetic::on(host.clone()))).await;
    cluster.workers.push(worker);
    cluster.run(&["create", "vm", "moved", "--image", "any", "--on-unseen", "replace", "--wait"]).await;
    cluster.run(&["create", "vm", "kept", "--image", "any", "--wait"]).await;
    cluster.add_worker("w2", Arc::new(Synthetic::new())).await;
    until_state(&cluster, "w2", "online").await;

    cable.whole.send_replace(false);
    until_state(&cluster, "w1", "unseen").await;
    assert_eq!(cluster.json(&["get", "vm", "moved"]).await["restart_count"], 0);
    until_state(&cluster, "w1", "gone").await;
    until("the VM to run elsewhere", LIMIT, || async {
        let vm = cluster.json(&["get", "vm", "moved"]).await;
        if vm["worker"] == "w2" && vm["ready"] == true { Ok(()) } else { Err(vm.to_string()) }
    })
    .await;
    let moved = cluster.json(&["get", "vm", "moved"]).await;
    assert_eq!((&moved["restart_count"], &moved["restart_policy"]), (&1.into(), &"Never".into()), "{moved}");
    let kept = cluster.json(&["get", "vm", "kept"]).await;
    assert_eq!((&kept["worker"], &kept["status"]), (&"w1".into(), &"running".into()), "{kept}");
    assert!(kept["status_message"].as_str().unwrap().contains("delete worker w1 --force"), "{kept}");

    // The cable is mended: it removes the one, and goes on with the other as if nothing had been.
    cable.whole.send_replace(true);
    until_state(&cluster, "w1", "online").await;
    until("the old copy to be removed", LIMIT, || async {
        let found = host.found();
        let only_kept = found.len() == 1 && found[0].name.as_str() == "kept" && found[0].state == FoundState::Running;
        if only_kept { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    assert_eq!(host.ledger().counts().starts, 2, "each was started once there");
    let kept = cluster.json(&["get", "vm", "kept"]).await;
    assert_eq!((&kept["worker"], &kept["restart_count"]), (&"w1".into(), &0.into()), "{kept}");
    let events = cluster.run(&["events", "--worker", "w1"]).await;
    for told in ["unseen", "gone", "over elsewhere: 1, kept there: 1"] {
        assert!(events.contains(told), "{told}: {events}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_worker_is_rid_of_its_vms_and_says_so() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", Arc::new(Synthetic::new())).await;
    cluster.run(&["create", "vm", "a", "--image", "any", "--wait"]).await;
    cluster.add_worker("w2", Arc::new(Synthetic::new())).await;
    until_state(&cluster, "w2", "online").await;
    cluster.run(&["drain", "worker", "w1", "--deadline", "1h"]).await;
    let view = cluster.json(&["get", "worker", "w1"]).await;
    assert_eq!((&view["drain"]["deadlineSeconds"], &view["drain"]["done"]), (&3600.into(), &false.into()), "{view}");
    assert!(cluster.run(&["list", "workers"]).await.contains("draining"));

    cluster.run(&["drain", "worker", "w1", "--deadline", "0", "--wait=2m"]).await;
    assert_eq!(cluster.json(&["get", "worker", "w1"]).await["vms"], 0);
    assert!(cluster.run(&["list", "workers"]).await.contains("drained"));
    until("the VM to run elsewhere", LIMIT, || async {
        let vm = cluster.json(&["get", "vm", "a"]).await;
        if vm["worker"] == "w2" && vm["ready"] == true { Ok(()) } else { Err(vm.to_string()) }
    })
    .await;
    let events = cluster.run(&["events", "--worker", "w1"]).await;
    assert!(events.contains("draining") && events.contains("drained"), "{events}");
    cluster.run(&["resume", "worker", "w1"]).await;
    assert_eq!(cluster.json(&["get", "worker", "w1"]).await.get("drain"), None);
}
