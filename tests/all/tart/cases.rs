//! What people may rely on with a worker of any kind, shown with the stand-in: defaults, connections of every sort, scripts
//! with odd variables, and changes that start `run` anew.

use std::net::SocketAddr;

use orchard::bus::message::CreateVm;
use orchard::model::secret::Secret;
use orchard::model::vm::{StartupScript, VmSpec};
use orchard::task::{self, Task};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::guest::Guest;
use super::host::{Host, LIMITS};
use crate::chaos::link::{Link, Mode};
use crate::flow::{echo_through_forward, forward};
use crate::harness::{Access, Cluster, LIMIT};
use crate::wait::until;

/// A host with a guest, in a cluster, and a VM on it that is ready.
async fn world() -> (Host, Guest, Cluster) {
    let host = Host::tart();
    let guest = Guest::of(&host).await;
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", host.shared(LIMITS)).await;
    cluster.run(&["create", "vm", "a", "--image", "i", "--wait"]).await;
    (host, guest, cluster)
}

/// A port of the guests where everything comes back.
async fn echo(host: &Host) -> (Task, SocketAddr) {
    let ip = std::fs::read_to_string(host.file("ip")).unwrap();
    let listener = TcpListener::bind((ip.trim(), 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let task = task::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(async move {
                let (mut from, mut to) = stream.into_split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    (task, addr)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_asks_for_no_size_gets_its_workers_defaults() {
    let (host, _guest, cluster) = world().await;
    let vm = cluster.json(&["get", "vm", "a"]).await;
    assert_eq!((&vm["assignedCPU"], &vm["assignedMemory"]), (&1.into(), &128.into()), "{vm}");
    let name = &host.disks()[0];
    let typed = host.typed();
    for set in [format!("set --memory 128 {name}"), format!("set --cpu 1 {name}")] {
        assert!(typed.contains(&set), "{set} in {typed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_forwarded_unchanged_and_one_where_nothing_listens_ends_the_connection_alone() {
    let (host, _guest, cluster) = world().await;
    let (_echo, addr) = echo(&host).await;
    let data = (0..64 * 1024u32).map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap()).collect();
    echo_through_forward(&cluster, "a", addr.port(), data).await;
    let (mut refused, local) = forward(&cluster, "a", 1).await;
    for _ in 0..2 {
        // It may be over before this machine comes to say that it began.
        let mut stream = match TcpStream::connect(&local).await {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => continue,
            connected => connected.unwrap(),
        };
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest)).await.expect("it hangs");
        assert!(!matches!(ended, Ok(1..)), "{rest:?}");
    }
    assert_eq!(refused.try_wait().unwrap(), None, "the next connection may find something");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forward_outlives_a_heartbeat_that_is_lost() {
    let host = Host::tart();
    let _guest = Guest::of(&host).await;
    let cluster = Cluster::start().await;
    let link = Link::to(cluster.access.url.replace("tls://", "")).await;
    let through = Access { url: format!("tls://{}", link.addr), ..cluster.access.clone() };
    let _worker = through.worker("w1", &cluster.worker_dir("w1"), host.shared(LIMITS)).await;
    cluster.run(&["create", "vm", "a", "--image", "i", "--wait"]).await;
    let (_echo, addr) = echo(&host).await;
    let (_forward, local) = forward(&cluster, "a", addr.port()).await;
    let mut stream = TcpStream::connect(&local).await.unwrap();
    let mut through_it = async |word: &[u8]| {
        stream.write_all(word).await.unwrap();
        let mut back = vec![0; word.len()];
        tokio::time::timeout(LIMIT, stream.read_exact(&mut back)).await.expect("it hangs").unwrap();
        assert_eq!(back, word);
    };
    let state = async |wanted: &str| {
        until("the worker's state", LIMIT, || async {
            let worker = cluster.json(&["get", "worker", "w1"]).await;
            if worker["state"] == wanted { Ok(()) } else { Err(worker) }
        })
        .await;
    };
    through_it(b"before").await;
    for mode in [Mode::Cut, Mode::Silent] {
        link.set(mode);
        state("unseen").await;
        through_it(b"while nothing is heard of it").await;
        link.set(Mode::Open);
        state("online").await;
        through_it(b"after").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_commands_at_once_on_one_vm_all_succeed() {
    let (_host, _guest, cluster) = world().await;
    let mut commands = JoinSet::new();
    for n in 0..32 {
        let command = cluster.cli(&["ssh", "vm", "a", "echo", &n.to_string()]);
        commands.spawn(async move { (n, crate::standin::run(command).await) });
    }
    for (n, ran) in commands.join_all().await {
        assert_eq!((ran.code, ran.stdout.trim()), (Some(0), n.to_string().as_str()), "{}", ran.stderr);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_sees_its_variables_exactly_and_how_it_ended_is_told() {
    let (_host, _guest, cluster) = world().await;
    let odd = "it's \"quoted\" `id` $(id) \\ and\non two lines; exit 9";
    let script = StartupScript {
        script_content: "echo \"$ODD\"; echo last words >&2; exit 23".to_owned(),
        env: [("ODD".to_owned(), Secret::new(odd))].into(),
    };
    let spec = VmSpec { image: "i".into(), startup_script: Some(script), ..VmSpec::default() };
    cluster.access.call(&CreateVm { name: "b".parse().unwrap(), spec, key: None }).await.unwrap();
    let failed = until("the script to fail", LIMIT, || async {
        let vm = cluster.json(&["get", "vm", "b"]).await;
        if vm["status"] == "failed" { Ok(vm) } else { Err(vm) }
    })
    .await;
    assert!(failed["status_message"].as_str().unwrap().contains("exit status 23"), "{failed}");
    let mut logs: Vec<String> = cluster.run(&["logs", "vm", "b"]).await.lines().map(str::to_owned).collect();
    assert_eq!(
        logs.iter().position(|line| line == "last words").map(|at| logs.remove(at)).as_deref(),
        Some("last words")
    );
    assert_eq!(logs.join("\n"), odd);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_isolation_of_the_network_starts_run_anew_on_the_same_disk() {
    let (host, _guest, cluster) = world().await;
    let runs = || host.typed().into_iter().filter(|call| call.starts_with("run")).collect::<Vec<_>>();
    let in_effect = async |generation: u64| {
        until("the change to be in effect", LIMIT, || async {
            let vm = cluster.json(&["get", "vm", "a"]).await;
            let holds = vm["observedGeneration"] == generation && vm["ready"] == true;
            if holds { Ok(()) } else { Err(vm) }
        })
        .await;
    };
    let name = host.disks()[0].clone();
    cluster.run(&["update", "vm", "a", "--net-softnet-allow", "10.0.0.0/8,1.1.1.1/32"]).await;
    in_effect(1).await;
    cluster.run(&["update", "vm", "a", "--net-softnet-allow", "", "--net-softnet-block", "0.0.0.0/0"]).await;
    in_effect(2).await;
    cluster.run(&["update", "vm", "a", "--net-softnet-allow", ""]).await;
    cluster.run(&["update", "vm", "a", "--net-softnet-block", "", "--net-softnet=false"]).await;
    in_effect(3).await;
    let expected = [
        format!("run --no-graphics {name}"),
        format!("run --net-softnet --net-softnet-allow 10.0.0.0/8,1.1.1.1/32 --no-graphics {name}"),
        format!("run --net-softnet --net-softnet-block 0.0.0.0/0 --no-graphics {name}"),
        format!("run --no-graphics {name}"),
    ];
    assert_eq!((runs(), host.count("clone")), (expected.to_vec(), 1));
}
