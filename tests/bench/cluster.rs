//! How long a VM takes from `create` to running on a synthetic host without delays, over the real bus, store and
//! worker; beside it, in the same run, what the disk allows: one synced write of the same size.
//!
//! `cargo bench --bench cluster`
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)] // a bench that cannot run panics

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use orchard::bus::client::{Bus, BusOptions, Login, Trust};
use orchard::bus::message::{CreateVm, DeleteVm, decode};
use orchard::bus::subject;
use orchard::config::join::BootstrapToken;
use orchard::controller::auth::BOOTSTRAP_ADMIN;
use orchard::controller::cluster::Timing;
use orchard::controller::{BusSource, Controller, ControllerOptions};
use orchard::identity;
use orchard::model::AccountName;
use orchard::model::event::{Event, EventType};
use orchard::model::resources::{LOGICAL_CORES, MEMORY_MIB};
use orchard::model::vm::{Arch, Os, RuntimeKind, VmSpec};
use orchard::model::worker::WorkerInfo;
use orchard::worker::join::Candidate;
use orchard::worker::runtime::synthetic::Synthetic;
use orchard::worker::{Worker, WorkerOptions};

/// Lone creations measured, one after another.
const LONE: usize = 300;
/// Creations in the crowd.
const CROWD: usize = 2_000;
/// Creations under way at once in the crowd.
const IN_FLIGHT: usize = 64;
/// A call that takes longer is broken.
const CALL: Duration = Duration::from_secs(30);

fn main() {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(run());
}

async fn run() {
    let dir = tempfile::tempdir().unwrap();
    let synced = synced_writes(dir.path());
    let token = identity::new_token();
    let local = "127.0.0.1:0".parse().unwrap();
    let controller = Controller::start(ControllerOptions {
        data_dir: dir.path().join("controller"),
        bus: BusSource::Embedded { listen: local, tls: true, host: None },
        listen: local,
        tunnel_host: None,
        timing: Timing::default(),
        certificate: None,
        jump: None,
        events_kept: orchard::controller::store::Retention::default(),
        bootstrap_token: Some(token.clone()),
    })
    .await
    .unwrap();
    let login = BusOptions {
        url: controller.bus_url().to_owned(),
        user: BOOTSTRAP_ADMIN.into(),
        trust: controller.fingerprint().map_or(Trust::Plain, Trust::Certificate),
        login: Login::Password(token),
        client_name: "bench".into(),
        patient: false,
    };
    let name: orchard::model::WorkerName = "w".parse().unwrap();
    let info = WorkerInfo {
        name: name.clone(),
        machine_id: "bench".into(),
        os: Os::Linux,
        arch: Arch::HOST,
        runtime: RuntimeKind::Synthetic,
        resources: [(LOGICAL_CORES, 1 << 20), (MEMORY_MIB, 1 << 30)].into(),
        labels: Default::default(),
        default_cpu: 1,
        default_memory: 1,
        version: String::new(),
    };
    let data_dir = dir.path().join("worker");
    identity::make_private_dir(&data_dir).unwrap();
    let made = controller.create_join_token(CALL, 1, None).await.unwrap();
    let token = BootstrapToken {
        url: login.url.clone(),
        fingerprint: controller.fingerprint(),
        id: made.id.parse().unwrap(),
        secret: made.secret,
    };
    let (name, machine_id) = (Some(name), "bench");
    let candidate = Candidate { data_dir: &data_dir, name, default_name: None, machine_id, token: Some(token) };
    let bus = candidate.become_member().await.unwrap().bus();
    let options = WorkerOptions {
        bus,
        data_dir,
        info,
        runtime: Arc::new(Synthetic::new()),
        guard: None,
        sessions: None,
        give_up_after: orchard::worker::GIVE_UP_AFTER,
        keep_free: 0,
        delete_unknown_after: None,
        host_access: true,
    };
    let worker = Worker::start(options).await.unwrap();
    let bus = Bus::connect(login).await.unwrap();

    // The first needs the worker to have registered; it warms everything up.
    create_to_running(&bus, "warm".into()).await;
    let mut lone = Vec::new();
    let mut acknowledged = Vec::new();
    for n in 0..LONE {
        let (ack, running) = create_to_running(&bus, format!("lone{n}")).await;
        acknowledged.push(ack);
        lone.push(running);
        delete(&bus, format!("lone{n}")).await;
    }
    let started = Instant::now();
    let crowd: Vec<Duration> = futures_util::stream::iter(0..CROWD)
        .map(|n| create_to_running(&bus, format!("crowd{n}")))
        .buffer_unordered(IN_FLIGHT)
        .map(|(_, running)| running)
        .collect()
        .await;
    let rate = CROWD as f64 / started.elapsed().as_secs_f64();

    println!("one synced write of 4 KiB          p50 {:>8.2?}  p99 {:>8.2?}", at(&synced, 50), at(&synced, 99));
    row("lone create, acknowledged", &acknowledged, &synced);
    row("lone create, running", &lone, &synced);
    row(&format!("create, running, {IN_FLIGHT} at once"), &crowd, &synced);
    println!("{CROWD} VMs with {IN_FLIGHT} at once: {rate:.0} created and running per second");
    worker.shutdown().await;
    controller.shutdown().await;
}

fn row(what: &str, times: &[Duration], synced: &[Duration]) {
    let ratio = at(times, 50).as_secs_f64() / at(synced, 50).as_secs_f64();
    println!("{what:<34} p50 {:>8.2?}  p99 {:>8.2?}  = {ratio:.1} synced writes", at(times, 50), at(times, 99));
}

fn at(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

/// What a durable acknowledgement costs at least on this disk.
fn synced_writes(folder: &std::path::Path) -> Vec<Duration> {
    let mut file = std::fs::File::create(folder.join("probe")).unwrap();
    (0..500)
        .map(|_| {
            let started = Instant::now();
            file.write_all(&[7; 4096]).unwrap();
            file.sync_data().unwrap();
            started.elapsed()
        })
        .collect()
}

fn account() -> AccountName {
    BOOTSTRAP_ADMIN.parse().unwrap()
}

/// Until the acknowledgement, and until the event that tells of the running process.
async fn create_to_running(bus: &Bus, name: String) -> (Duration, Duration) {
    let name: orchard::model::VmName = name.parse().unwrap();
    let mut events = bus.subscribe(&subject::events_of_vm(&name)).await.unwrap();
    let spec = VmSpec { image: "any".into(), cpu: 1, memory: 1, ..VmSpec::default() };
    let started = Instant::now();
    bus.call(&account(), &CreateVm { name, spec, key: None }, CALL).await.unwrap();
    let acknowledged = started.elapsed();
    let running = async {
        while let Some(message) = events.next().await {
            if decode::<Event>(&message.payload).unwrap().kind == EventType::Running {
                return;
            }
        }
    };
    tokio::time::timeout(CALL, running).await.expect("the VM does not run");
    (acknowledged, started.elapsed())
}

async fn delete(bus: &Bus, name: String) {
    bus.call(&account(), &DeleteVm { name: name.parse().unwrap() }, CALL).await.unwrap();
}
