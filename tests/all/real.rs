//! The main flow on a real QEMU guest, and over a real nats-server.

use std::process::Stdio;
use std::sync::Arc;

use orchard::controller::BusSource;
use orchard::model::secret::Secret;
use orchard::worker::runtime::Runtime;
use orchard::worker::runtime::qemu::{Qemu, QemuOptions};
use orchard::worker::runtime::synthetic::Synthetic;
use sha2::{Digest, Sha256};
use testcontainers::core::{IntoContainerPort, WaitFor};
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};
use tokio::io::AsyncBufReadExt;

use crate::flow::{Guest, main_flow};
use crate::guest::guest_image;
use crate::harness::{Cluster, LIMIT, succeed};
use crate::processes::Server;
use crate::qemu::{kill, processes_in};
use crate::wait;

/// What an operator of an outside nats-server configures: a user each for controller, account and worker, with the
/// rights that the embedded broker would give them. The README shows the same.
const NATS_CONFIG: &str = r#"
authorization: { users: [
  { user: "controller", password: "outside" }
  { user: "bootstrap-admin", password: "outside", permissions: {
      publish: ["orchard.v1.api.bootstrap-admin.>"],
      subscribe: ["orchard.v1.events.>", "orchard.v1.events-json.>", "_INBOX.bootstrap-admin.>"] } }
  { user: "worker/w1", password: "outside", permissions: {
      publish: ["orchard.v1.worker.w1.*"],
      subscribe: ["orchard.v1.worker.w1.assign", "orchard.v1.worker.w1.command.>", "_INBOX.worker/w1.>"] } }
] }
"#;

/// Size of the file that goes into the guest and back.
const FILE_SIZE: usize = 6_000_000;

/// A cluster whose worker runs real guests; they are ended with it.
pub struct QemuCluster {
    pub cluster: Cluster,
    pub runtime: Arc<Qemu>,
}

impl QemuCluster {
    pub async fn start() -> Self {
        Self::on(Cluster::start().await).await
    }

    pub async fn on(mut cluster: Cluster) -> Self {
        let runtime = Arc::new(Qemu::new(QemuOptions::new(cluster.worker_dir("q").join("qemu"))).await.unwrap());
        cluster.add_worker("q", runtime.clone()).await;
        Self { cluster, runtime }
    }
}

impl Drop for QemuCluster {
    fn drop(&mut self) {
        // Guests outlive workers, so a test that fails must end them itself.
        let runtime = self.runtime.clone();
        let end = async move {
            for found in runtime.list().await.unwrap_or_default() {
                let _ = runtime.delete(found.id).await;
            }
        };
        let handle = tokio::runtime::Handle::current();
        tokio::task::block_in_place(|| handle.block_on(tokio::time::timeout(LIMIT, end))).ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_flow_works_on_a_real_guest() {
    let real = QemuCluster::start().await;
    let image = guest_image();
    main_flow(&real.cluster, &Guest { image: image.to_str().unwrap(), uname: "Linux first" }).await;
    let left = real.runtime.list().await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_scp_copies_a_file_into_a_real_guest_and_back_through_a_port_forward() {
    let real = QemuCluster::start().await;
    let cluster = &real.cluster;
    let image = guest_image();
    let create = ["create", "vm", "box", "--image", image.to_str().unwrap(), "--cpu", "1", "--memory", "128", "--wait"];
    cluster.run(&create).await;

    let mut forward = cluster.cli(&["port-forward", "vm", "box", "0:22"]);
    let mut forward = forward.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = tokio::io::BufReader::new(forward.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(LIMIT, lines.next_line()).await.unwrap().unwrap().unwrap();
    let address = line.split_whitespace().find_map(|word| word.strip_prefix("127.0.0.1:")).unwrap().to_owned();

    let (there, back) = (cluster.dir.path().join("there"), cluster.dir.path().join("back"));
    let data: Vec<u8> = (0..FILE_SIZE).map(|n| (n.wrapping_mul(2_654_435_761) >> 16) as u8).collect();
    std::fs::write(&there, &data).unwrap();
    let (there, back) = (there.to_str().unwrap(), back.to_str().unwrap());
    for (from, to) in [(there, "admin@127.0.0.1:copied"), ("admin@127.0.0.1:copied", back)] {
        let mut scp = tokio::process::Command::new("sshpass");
        scp.args([
            "-p",
            "admin",
            "scp",
            "-P",
            &address,
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ]);
        succeed({
            scp.args([from, to]).kill_on_drop(true);
            scp
        })
        .await;
    }
    assert!(Sha256::digest(std::fs::read(back).unwrap()) == Sha256::digest(&data), "the file came back changed");
    forward.kill().await.unwrap();

    // A crash of the hypervisor is seen and told, and with `Never` the VM stays failed.
    let vm = cluster.json(&["get", "vm", "box"]).await;
    let vms = cluster.worker_dir("q").join("qemu/vms");
    let pid_file = std::fs::read_dir(vms).unwrap().next().unwrap().unwrap().path().join("qemu.pid");
    let pid = std::fs::read_to_string(pid_file).unwrap();
    let killed = std::process::Command::new("kill").args(["-KILL", pid.trim()]).status().unwrap();
    assert!(killed.success());
    let uid = vm["uid"].as_str().unwrap().to_owned();
    wait::until("the crash to be told", LIMIT, || async {
        let vm = cluster.json(&["get", "vm", "box"]).await;
        assert_eq!(vm["uid"].as_str(), Some(uid.as_str()));
        if vm["status"] == "failed" { Ok(()) } else { Err(vm["status_message"].clone()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_hypervisor_is_killed_boots_again_from_its_disk_or_starts_over_as_its_policy_says() {
    let real = QemuCluster::start().await;
    let (cluster, image) = (&real.cluster, guest_image());
    let folder = cluster.worker_dir("q").join("qemu");
    for (vm, policy, boot, starts, left) in [("again", "Always", 1, 0, "kept"), ("over", "OnFailure", 0, 1, "gone")] {
        let size = ["--cpu", "1", "--memory", "128", "--restart-policy", policy, "--wait"];
        cluster.run(&[&["create", "vm", vm, "--image", image.to_str().unwrap()], &size[..]].concat()).await;
        cluster.run(&["ssh", "vm", vm, "echo kept > kept && sync"]).await;
        let [pid] = processes_in(&folder)[..] else { panic!("one VM runs at a time") };
        kill(pid);
        wait::until("the VM to be back", LIMIT, || async {
            let seen = cluster.json(&["get", "vm", vm]).await;
            let count = |key: &str| seen[key].as_u64().unwrap_or(0);
            if (count("boot"), count("restart_count")) == (boot, starts) && seen["ready"] == true {
                Ok(())
            } else {
                Err(seen)
            }
        })
        .await;
        assert_eq!(cluster.run(&["ssh", "vm", vm, "cat kept || echo gone"]).await.trim(), left, "{policy}");
        cluster.run(&["delete", "vm", vm]).await;
        wait::until("nothing to be left", LIMIT, || async {
            let left = processes_in(&folder);
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
    }
}

/// A real nats-server in Docker with [`NATS_CONFIG`], and its URL.
async fn nats_server() -> (ContainerAsync<GenericImage>, String) {
    let image = std::env::var("ORCHARD_TEST_NATS_IMAGE").unwrap_or_else(|_| "nats:2.12".to_owned());
    let (name, tag) = image.split_once(':').unwrap_or((&image, "latest"));
    let container = GenericImage::new(name, tag)
        .with_exposed_port(4222.tcp())
        .with_wait_for(WaitFor::message_on_stderr("Server is ready"))
        .with_copy_to("/nats.conf", NATS_CONFIG.as_bytes().to_vec())
        .with_cmd(["-c", "/nats.conf"])
        .with_startup_timeout(LIMIT)
        .start()
        .await
        .expect("a nats-server in Docker; tests/run.sh starts the engine and builds the image");
    let port = container.get_host_port_ipv4(4222.tcp()).await.unwrap();
    (container, format!("nats://127.0.0.1:{port}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_flow_works_over_a_real_nats_server() {
    let (_container, url) = nats_server().await;
    let bus = BusSource::Outside { url, user: "controller".into(), password: Secret::new("outside") };
    let mut cluster = Cluster::start_on(bus, Secret::new("outside")).await;
    cluster.add_worker("w1", Arc::new(Synthetic::new())).await;
    main_flow(&cluster, &Guest { image: "any", uname: "synthetic" }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn controller_run_uses_the_nats_server_that_it_is_pointed_at() {
    let (_container, url) = nats_server().await;
    let dir = tempfile::tempdir().unwrap();
    let (home, data) = (dir.path().join("home"), dir.path().join("c"));
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("token"), "outside").unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_orchard"));
    command.env("ORCHARD_HOME", &home).env("ORCHARD_BUS_PASSWORD", "outside");
    command.args(["controller", "run", "--bus-url", &url, "--bus-user", "controller", "--listen", "127.0.0.1:0"]);
    command.arg("--data-dir").arg(&data);
    let _controller = Server::start(command).await;
    let mut list = tokio::process::Command::new(env!("CARGO_BIN_EXE_orchard"));
    list.env("ORCHARD_HOME", &home).args(["list", "workers", "--output", "json"]);
    assert_eq!(succeed(list).await.trim(), "[]");
}
