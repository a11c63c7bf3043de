//! Promises 1 to 3: a controller that is killed loses nothing it acknowledged, stops no VM and starts none twice.

mod checker;
mod kills;
pub mod load;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use orchard::bus::message::{CreateVm, ListEvents, ListVms};
use orchard::model::vm::{Vm, VmSpec, VmStatus};
use orchard::worker::runtime::synthetic::Synthetic;
use orchard::worker::runtime::synthetic::host::SyntheticHost;
use tokio::task::JoinSet;

use crate::harness::{Access, LIMIT};
use crate::{processes, wait};

const CREATES: usize = 50;

/// How long a change may take that a kill may meet: nobody answers it any more then.
const CALL: Duration = Duration::from_secs(5);

/// How long a question to a controller may take that nobody kills.
const READ: Duration = Duration::from_secs(30);

async fn list(access: &Access) -> Result<Vec<Vm>, orchard::model::error::ApiError> {
    let request = ListVms::default();
    access.try_bus().await?.call(&access.account(), &request, READ).await.map(|page| page.vms)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn killed_in_the_middle_of_fifty_creates_the_controller_keeps_each_acknowledged_vm_and_runs_it_once() {
    let dir = tempfile::tempdir().unwrap();
    let (home, data) = (dir.path().join("home"), dir.path().join("controller"));
    let (server, access) = processes::controller(&home, &data, processes::APART, processes::APART).await;
    let (bus_address, tunnels) = (server.value("bus").replace("tls://", ""), server.value("tunnels"));
    let host = Arc::new(SyntheticHost::default());
    let runtime = Arc::new(Synthetic::on(host.clone()));
    let worker = access.worker("w", &dir.path().join("worker"), runtime.clone()).await;

    let bus = access.bus().await;
    let mut calls = JoinSet::new();
    for n in 0..CREATES {
        let (bus, account) = (bus.clone(), access.account());
        calls.spawn(async move {
            let spec = VmSpec { image: "any".into(), cpu: 1, memory: 1, ..VmSpec::default() };
            let request = CreateVm { name: format!("vm{n}").parse().unwrap(), spec, key: None };
            bus.call(&account, &request, CALL).await.map(|vm| vm.uid)
        });
    }
    let mut acknowledged = BTreeSet::new();
    let mut server = Some(server);
    let mut killed_at = None;
    while let Some(outcome) = calls.join_next().await {
        acknowledged.extend(outcome.unwrap().ok());
        if acknowledged.len() >= 10
            && let Some(server) = server.take()
        {
            server.kill().await;
            killed_at = Some(acknowledged.len());
        }
    }
    assert!(killed_at.is_some(), "no creation was acknowledged");

    let (_server, access) = processes::controller(&home, &data, &bus_address, &tunnels).await;
    let vms = wait::until("all VMs to run", LIMIT, || async {
        let vms = list(&access).await.map_err(|error| error.to_string())?;
        let waiting: Vec<_> =
            vms.iter().filter(|vm| !vm.ready).map(|vm| format!("{}: {}", vm.name, vm.status_message)).collect();
        if waiting.is_empty() { Ok(vms) } else { Err(format!("{waiting:?}")) }
    })
    .await;
    let there: BTreeSet<_> = vms.iter().map(|vm| vm.uid).collect();
    assert!(acknowledged.is_subset(&there), "lost: {:?}", acknowledged.difference(&there).collect::<Vec<_>>());
    let counts = host.ledger().counts();
    assert_eq!((counts.starts, counts.most_copies), (vms.len() as u64, 1), "each VM starts exactly once");

    // Events tell the story of each without a gap.
    let page = access.call(&ListEvents::default()).await.unwrap();
    assert!(page.events.iter().map(|event| event.number).eq(1..=page.events.len() as u64));
    worker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_a_dead_controller_nor_a_dead_worker_stops_a_vm() {
    let dir = tempfile::tempdir().unwrap();
    let (home, data) = (dir.path().join("home"), dir.path().join("controller"));
    let (server, access) = processes::controller(&home, &data, processes::APART, processes::APART).await;
    let (bus_address, tunnels) = (server.value("bus").replace("tls://", ""), server.value("tunnels"));
    let host = Arc::new(SyntheticHost::default());
    let worker_dir = dir.path().join("worker");
    let worker = access.worker("w", &worker_dir, Arc::new(Synthetic::on(host.clone()))).await;
    let spec = VmSpec { image: "any".into(), cpu: 1, memory: 1, ..VmSpec::default() };
    let request = CreateVm { name: "a".parse().unwrap(), spec, key: None };
    let uid = access.call(&request).await.unwrap().uid;
    let running = async |access: &Access| {
        wait::until("the VM to be ready on a worker that is heard", LIMIT, || async {
            let vms = list(access).await.map_err(|error| error.to_string())?;
            let good = vms.iter().any(|vm| vm.uid == uid && vm.status == VmStatus::Running && vm.ready);
            if good { Ok(()) } else { Err(format!("{vms:?}")) }
        })
        .await;
    };
    running(&access).await;

    server.kill().await;
    drop(worker);
    let (_server, access) = processes::controller(&home, &data, &bus_address, &tunnels).await;
    let _worker = access.worker("w", &worker_dir, Arc::new(Synthetic::on(host.clone()))).await;
    wait::until("the new worker process to adopt the VM", LIMIT, || async {
        let home = dir.path().join("home");
        let reached = access.cli(&home, &["ssh", "vm", "a", "echo", "still here"]).output().await.unwrap();
        let said = String::from_utf8_lossy(&reached.stdout).into_owned();
        if said.contains("still here") {
            Ok(())
        } else {
            Err(format!("{said} {}", String::from_utf8_lossy(&reached.stderr)))
        }
    })
    .await;
    running(&access).await;
    assert_eq!(host.ledger().counts().starts, 1);
}
