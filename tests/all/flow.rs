//! The main flow, from the command line to the guest's shell: on a synthetic guest, on a real one, and over a real
//! nats-server in place of the embedded broker.

use std::sync::Arc;

use orchard::worker::runtime::synthetic::Synthetic;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Cluster, LIMIT, finish};
use crate::wait;

/// What differs between guests.
pub struct Guest<'a> {
    /// Image to create the VM from.
    pub image: &'a str,
    /// A word that the guest's `uname -a` contains.
    pub uname: &'a str,
}

const SCRIPT: &str = "echo hello from $GREETING\necho oops >&2\n";

/// create → running → ready → ssh → logs → events → delete, all through the real binary.
pub async fn main_flow(cluster: &Cluster, guest: &Guest<'_>) {
    let script = cluster.dir.path().join("script.sh");
    std::fs::write(&script, SCRIPT.replace("$GREETING", "the guest")).unwrap();
    let script = format!("@{}", script.display());
    let create = ["create", "vm", "first", "--image", guest.image, "--cpu", "1", "--memory", "128"];
    cluster.run(&[&create[..], &["--startup-script", &script, "--labels", "zone=test", "--wait"]].concat()).await;

    let vm = cluster.json(&["get", "vm", "first"]).await;
    assert_eq!((vm["status"].as_str(), vm["ready"].as_bool()), (Some("running"), Some(true)), "{vm}");
    let list = cluster.json(&["list", "vms"]).await;
    assert_eq!(list[0]["name"], "first", "{list}");
    // On a busy machine a worker may not be heard of for a moment.
    wait::until("the worker to be online", LIMIT, || async {
        let workers = cluster.json(&["list", "workers"]).await;
        let is_heard = workers[0]["state"] == "online" && workers[0]["connectable"] == true;
        if is_heard { Ok(()) } else { Err(workers) }
    })
    .await;

    // A command, its exit code, its input.
    assert!(cluster.run(&["ssh", "vm", "first", "uname", "-a"]).await.contains(guest.uname));
    let failing = finish(cluster.cli(&["ssh", "vm", "first", "exit 7"])).await;
    assert_eq!(failing.status.code(), Some(7), "{}", String::from_utf8_lossy(&failing.stderr));
    let piped = cluster.dir.path().join("piped.sh");
    std::fs::write(&piped, "echo piped\nexit 3\n").unwrap();
    let mut command = cluster.cli(&["ssh", "vm", "first", "sh -s"]);
    command.stdin(std::fs::File::open(&piped).unwrap());
    let output = finish(command).await;
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stdout).trim()), (Some(3), "piped"));

    // Logs of the startup script, and the story as events with gapless numbers.
    let logs = cluster.run(&["logs", "vm", "first"]).await;
    assert!(logs.contains("hello from the guest") && logs.contains("oops"), "{logs}");
    let kinds = event_types(cluster).await;
    let order = ["created", "scheduled", "running", "log", "ready"];
    let places: Vec<_> = order.iter().map(|kind| kinds.iter().position(|k| k == kind)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{kinds:?}");

    let deleted = cluster.json(&["delete", "vm", "first", "never-was", "--ignore-missing"]).await;
    let told = |name: &str, deleted: bool| serde_json::json!({"name": name, "deleted": deleted});
    assert_eq!(deleted, serde_json::json!([told("first", true), told("never-was", false)]));
    let unknown = finish(cluster.cli(&["events", "--vm", "never-was"])).await;
    let said = String::from_utf8_lossy(&unknown.stderr);
    assert!(unknown.status.success() && said.contains("no VM named never-was is known now"), "{said}");
    let gone = finish(cluster.cli(&["get", "vm", "first"])).await;
    assert_eq!(gone.status.code(), Some(1));
    wait::until("the deletion to be confirmed by the worker", LIMIT, || async {
        let kinds = event_types(cluster).await;
        if kinds.last().is_some_and(|kind| kind == "deleted") { Ok(()) } else { Err(kinds) }
    })
    .await;
}

/// The types of all events of VMs so far; checks that numbers have no gap.
async fn event_types(cluster: &Cluster) -> Vec<String> {
    let text = cluster.run(&["events", "--output", "json"]).await;
    let events: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let numbers: Vec<_> = events.iter().map(|event| event["number"].as_u64().unwrap()).collect();
    assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "{numbers:?}");
    let of_vms = events.iter().filter(|event| event["object"]["kind"] == "vm");
    of_vms.map(|event| event["type"].as_str().unwrap().to_owned()).collect()
}

/// A `port-forward` to a VM's port; ends when dropped.
pub async fn forward(cluster: &Cluster, vm: &str, port: u16) -> (tokio::process::Child, String) {
    let mut forward = cluster.cli(&["port-forward", "vm", vm, &format!("0:{port}")]);
    forward.stdout(std::process::Stdio::piped());
    let mut forward = forward.spawn().unwrap();
    let mut lines = tokio::io::BufReader::new(forward.stdout.take().unwrap());
    let mut line = String::new();
    let read = tokio::io::AsyncBufReadExt::read_line(&mut lines, &mut line);
    tokio::time::timeout(LIMIT, read).await.expect("port-forward says nothing").unwrap();
    let address =
        line.split_whitespace().find(|word| word.starts_with("127.0.0.1:")).unwrap_or_else(|| panic!("{line:?}"));
    (forward, address.to_owned())
}

/// Sends `data` through a `port-forward` to a port that echoes, and compares hashes.
pub async fn echo_through_forward(cluster: &Cluster, vm: &str, port: u16, data: Vec<u8>) {
    let (_forward, address) = forward(cluster, vm, port).await;
    let expected = Sha256::digest(&data);
    let (mut from, mut to) = TcpStream::connect(address).await.unwrap().into_split();
    let length = data.len();
    let send = async move {
        to.write_all(&data).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let receive = async {
        let mut back = Vec::new();
        from.read_to_end(&mut back).await.unwrap();
        back
    };
    let (_, back) = tokio::time::timeout(LIMIT, async { tokio::join!(send, receive) }).await.expect("the echo hangs");
    assert_eq!(back.len(), length);
    assert!(Sha256::digest(&back) == expected, "bytes were changed on the way");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_main_flow_works_on_synthetic_guests() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", Arc::new(Synthetic::new())).await;
    main_flow(&cluster, &Guest { image: "any", uname: "synthetic" }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_ports_are_forwarded_at_once_or_none() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", Arc::new(Synthetic::new())).await;
    cluster.run(&["create", "vm", "a", "--image", "any", "--wait"]).await;
    let mut forward = cluster.cli(&["port-forward", "vm", "a", "80", "127.0.0.2:0:81"]);
    let mut forward = forward.stdout(std::process::Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = tokio::io::BufReader::new(forward.stdout.take().unwrap());
    for (host, port) in [("127.0.0.1", 80), ("127.0.0.2", 81)] {
        let mut line = String::new();
        let read = tokio::io::AsyncBufReadExt::read_line(&mut lines, &mut line);
        tokio::time::timeout(LIMIT, read).await.expect("port-forward says nothing").unwrap();
        let (local, remote) = line.trim().strip_prefix("forwarding ").unwrap().split_once(" -> ").unwrap();
        assert!(local.starts_with(&format!("{host}:")) && remote == format!("a:{port}"), "{line}");
        // The synthetic guest answers on every port with what it is sent.
        let mut stream = TcpStream::connect(local).await.unwrap();
        stream.write_all(b"there").await.unwrap();
        let mut back = [0; 5];
        tokio::time::timeout(LIMIT, stream.read_exact(&mut back)).await.expect("no answer").unwrap();
        assert_eq!(&back, b"there");
    }
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = format!("{}:80", taken.local_addr().unwrap());
    let output = finish(cluster.cli(&["port-forward", "vm", "a", "81", &taken])).await;
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_pass_a_port_forward_unchanged() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", Arc::new(Synthetic::new())).await;
    cluster.run(&["create", "vm", "echo", "--image", "any", "--wait"]).await;
    let data: Vec<u8> =
        (0..16_000_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes().into_iter().take(1)).collect();
    echo_through_forward(&cluster, "echo", 7, data).await;
}
