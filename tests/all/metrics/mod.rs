//! What an operator's collectors and probers get from a cluster that lives, and from one that is ill.

mod exposition;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use orchard::bus::message::CreateVm;
use orchard::metrics::names;
use orchard::metrics::server::{Door, Server};
use orchard::model::secret::Secret;
use orchard::model::vm::VmSpec;
use orchard::worker::runtime::synthetic::Synthetic;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use self::exposition::Page;
use crate::harness::{Access, Cluster, LIMIT, any_port, finish};
use crate::processes::{self, controller_command};
use crate::storage::Immutable;
use crate::wait::until;

/// Status and text of what is at `path`.
pub async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let asked = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    };
    tokio::time::timeout(LIMIT, asked).await.unwrap_or_else(|_| panic!("no answer for {path}"))
}

async fn scrape(address: SocketAddr) -> Page {
    let (status, text) = get(address, "/metrics").await;
    assert_eq!(status, 200, "{text}");
    Page::read(&text)
}

/// Waits until `/readyz` has this status and says this.
async fn readiness(address: SocketAddr, status: u16, says: &str) {
    until(&format!("readyz to say {status} {says}"), LIMIT, || async {
        let answer = get(address, "/readyz").await;
        if answer.0 == status && answer.1.contains(says) { Ok(()) } else { Err(answer) }
    })
    .await;
}

async fn create(access: &Access, name: &str) {
    let spec = VmSpec { image: "any".into(), cpu: 1, memory: 1, ..VmSpec::default() };
    access.call(&CreateVm { name: name.parse().unwrap(), spec, key: None }).await.unwrap();
}

async fn watched(cluster: &Cluster) -> Server {
    let workers = cluster.workers.iter().map(|worker| worker.watch());
    let sources = std::iter::once(cluster.controller.watch()).chain(workers).collect();
    Door::open(any_port()).await.unwrap().serve(sources)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_a_cluster_is_valid_and_its_figures_move_with_what_happens() {
    let mut cluster = Cluster::start().await;
    for name in ["one", "two"] {
        cluster.add_worker(name, Arc::new(Synthetic::default())).await;
    }
    let server = watched(&cluster).await;
    let address = server.address();
    readiness(address, 200, "ok").await;
    assert_eq!(get(address, "/healthz").await.0, 200);
    let before = scrape(address).await;
    assert_eq!(before.value("orchard_controller_placements_total"), 0.0);
    assert_eq!(before.value("orchard_controller_workers{state=\"online\"}"), 2.0);
    for name in ["a", "b", "c"] {
        create(&cluster.access, name).await;
    }
    let page = until("three VMs to run and both workers to have been answered", LIMIT, || async {
        let page = scrape(address).await;
        let ready = page.value("orchard_controller_vms_ready");
        let beats = ["one", "two"]
            .map(|name| page.value(&format!("orchard_worker_heartbeat_rtt_seconds_count{{worker=\"{name}\"}}")));
        if ready == 3.0 && beats.iter().all(|count| *count > 0.0) { Ok(page) } else { Err((ready, beats)) }
    })
    .await;
    let both = |id: &str| page.value(&id.replace('W', "one")) + page.value(&id.replace('W', "two"));
    assert_eq!(page.value("orchard_controller_vms{status=\"running\"}"), 3.0);
    assert_eq!(page.value("orchard_controller_placements_total"), 3.0);
    assert_eq!(page.value("orchard_controller_scheduling_time_seconds_count"), 3.0);
    assert_eq!(page.value("orchard_controller_requests_total{verb=\"vm.create\",result=\"ok\"}"), 3.0);
    assert_eq!(page.value("orchard_controller_request_seconds_count{verb=\"vm.create\"}"), 3.0);
    assert_eq!(page.value("orchard_controller_events_total{type=\"created\"}"), 3.0);
    assert_eq!(both("orchard_worker_vms{worker=\"W\",state=\"running\"}"), 3.0);
    assert_eq!(both("orchard_controller_worker_vms{worker=\"W\"}"), 3.0);
    assert_eq!(both("orchard_worker_runtime_command_seconds_count{worker=\"W\",command=\"start\"}"), 3.0);
    for grows in [
        "orchard_controller_commit_seconds_count",
        "orchard_controller_commit_batch_sum",
        "orchard_controller_store_used_bytes",
        "orchard_controller_event_number{feed=\"events\"}",
        "orchard_broker_messages_total{direction=\"in\"}",
        "orchard_broker_message_bytes_total{direction=\"out\"}",
    ] {
        assert!(page.value(grows) > before.value(grows), "{grows}: {}", page.value(grows));
    }
    assert!(both("orchard_worker_heartbeat_rtt_seconds_count{worker=\"W\"}") > 0.0);
    let disk = page.value("orchard_controller_store_disk_free_bytes");
    assert!(disk > 0.0 && page.value("orchard_controller_store_map_bytes") > 1e9, "{disk}");
    let missing: Vec<&str> =
        names::ALL.iter().map(|family| family.name).filter(|name| !page.kinds.contains_key(*name)).collect();
    assert!(missing.is_empty(), "not on the page of a whole cluster: {missing:?}");
    server.shutdown().await;
    cluster.controller.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_cannot_write_its_store_is_alive_and_not_ready() {
    let dir = tempfile::tempdir().unwrap();
    let (home, data) = (dir.path().join("home"), dir.path().join("controller"));
    let mut command = controller_command(&home, &data, "127.0.0.1:0", "127.0.0.1:0");
    command.args(["--listen-metrics", "127.0.0.1:0"]);
    let server = processes::Server::start(command).await;
    let url = server.value("metrics");
    let address: SocketAddr =
        url.strip_prefix("http://").and_then(|url| url.strip_suffix("/metrics")).unwrap().parse().unwrap();
    readiness(address, 200, "ok").await;
    let Some(immutable) = Immutable::make(&data.join("db/data.mdb")) else { return };
    // Nobody has asked for a change: it is found out all the same.
    readiness(address, 503, "cannot be written").await;
    assert_eq!(get(address, "/healthz").await.0, 200);
    let page = scrape(address).await;
    assert!(page.value("orchard_controller_commit_failures_total") > 0.0);
    assert_eq!(page.value("orchard_ready{part=\"controller\"}"), 0.0);
    drop(immutable);
    readiness(address, 200, "ok").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_loses_its_bus_is_alive_and_not_ready() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w", Arc::new(Synthetic::default())).await;
    let worker = cluster.workers.pop().unwrap();
    let server = Door::open(any_port()).await.unwrap().serve(vec![worker.watch()]);
    readiness(server.address(), 200, "ok").await;
    cluster.controller.shutdown().await;
    readiness(server.address(), 503, "worker w is not connected to the bus").await;
    assert_eq!(get(server.address(), "/healthz").await.0, 200);
    let page = scrape(server.address()).await;
    assert_eq!(page.value("orchard_worker_bus_connected{worker=\"w\"}"), 0.0);
    drop(server);
    tokio::time::timeout(Duration::from_secs(60), worker.shutdown()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_for_metrics_that_is_taken_is_told_before_anything_begins() {
    let dir = tempfile::tempdir().unwrap();
    let (home, data) = (dir.path().join("home"), dir.path().join("controller"));
    let taken = Door::open(any_port()).await.unwrap();
    let mut command = controller_command(&home, &data, "127.0.0.1:0", "127.0.0.1:0");
    command.args(["--listen-metrics", &taken.address().to_string()]);
    let output = finish(command).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("--listen-metrics"), "{said}");
    assert!(!data.join("db").exists(), "nothing was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_shows_how_the_controller_is_doing_and_what_deserves_a_look() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w", Arc::new(Synthetic::default())).await;
    create(&cluster.access, "a").await;
    let status = until("the VM to run", LIMIT, || async {
        let status = cluster.json(&["controller", "status"]).await;
        // The worker's data path comes up beside its work.
        let there = status["vms"]["running"] == 1 && status["workers"]["connectable"] == 1;
        if there { Ok(status) } else { Err(status.to_string()) }
    })
    .await;
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"), "{status}");
    assert_eq!(status["workers"]["states"]["online"], 1, "{status}");
    assert_eq!(status["scheduler"]["placements"], 1, "{status}");
    assert_eq!(status["events"]["first"], 1, "{status}");
    for positive in ["/store/schema", "/store/used_bytes", "/store/commits", "/events/last", "/broker/connections"] {
        assert!(status.pointer(positive).and_then(serde_json::Value::as_u64) > Some(0), "{positive}: {status}");
    }
    let shown = cluster.run(&["controller", "status"]).await;
    for part in ["Version", "Store", "Disk", "1 running", "1 online; 1 connectable, 0 paused", "1 VMs placed"] {
        assert!(shown.contains(part), "{part} is not in\n{shown}");
    }
    assert!(!shown.contains("WARNING: workers"), "{shown}");
    cluster.workers.pop().unwrap().shutdown().await;
    until("a warning of the worker", LIMIT, || async {
        let shown = cluster.run(&["controller", "status"]).await;
        if shown.contains("WARNING: workers not seen: 1 (w)") { Ok(()) } else { Err(shown) }
    })
    .await;
    let made = cluster.run(&["create", "service-account", "reader", "--roles", "compute:read"]).await;
    let reader = cluster.access.of("reader", &Secret::new(made.lines().last().unwrap().trim()));
    let refused = finish(reader.cli(&cluster.dir.path().join("home"), &["controller", "status"])).await;
    let refused = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.contains("admin:read"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_bears_one_name_on_both_sides() {
    let cluster = Cluster::start().await;
    let output = finish(cluster.cli(&["create", "vm", "a", "--image", "any", "-v"])).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = said.lines().find(|line| line.contains("vm.create")).unwrap_or_else(|| panic!("{said}"));
    let id: String = line.split("request=").nth(1).unwrap().chars().take_while(char::is_ascii_hexdigit).collect();
    assert_eq!(id.len(), 32, "{line}");
    let trail = cluster.run(&["audit", "--output", "json"]).await;
    let records = trail.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let created: Vec<_> = records.filter(|record| record["verb"] == "vm.create").collect();
    assert_eq!(created.len(), 1, "{trail}");
    assert_eq!(created[0]["request"], id, "{trail}");
    // People are shown it when they ask for more.
    let lines = cluster.run(&["audit", "-o", "wide"]).await;
    let ends = format!("  request {id}");
    assert!(lines.lines().any(|line| line.contains("  vm.create  ") && line.ends_with(&ends)), "{lines}");
    assert!(!cluster.run(&["audit"]).await.contains(&id));
}
