//! A worker behind a NAT, as far as one machine can play it: its own process in a network namespace of its own, which
//! refuses every connection from outside and can only dial out.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::guest::guest_image;
use crate::harness::{Access, LIMIT, finish, succeed};
use crate::{processes, wait};

/// A network namespace with one cable to this one; removed when dropped.
struct Namespace {
    name: String,
    /// This side's address.
    here: String,
    /// The other side's.
    there: String,
}

impl Namespace {
    fn new() -> Self {
        let id = std::process::id();
        let name = format!("orchard{id}");
        // A /30 of the range that is set aside for tests of networks (RFC 2544), by process.
        let net = format!("198.18.{}.", id % 256);
        let (here, there) = (format!("{net}1"), format!("{net}2"));
        let (near, far) = (format!("on{id}"), format!("of{id}"));
        let space = Self { name: name.clone(), here: here.clone(), there: there.clone() };
        for line in [
            format!("ip netns add {name}"),
            format!("ip link add {near} type veth peer name {far} netns {name}"),
            format!("ip addr add {here}/30 dev {near}"),
            format!("ip link set {near} up"),
            format!("ip -n {name} addr add {there}/30 dev {far}"),
            format!("ip -n {name} link set {far} up"),
            format!("ip -n {name} link set lo up"),
            format!("ip netns exec {name} iptables -P INPUT DROP"),
            format!("ip netns exec {name} iptables -A INPUT -i lo -j ACCEPT"),
            format!("ip netns exec {name} iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"),
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        }
        space
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The guest outlives its worker by design, so the test ends it: whatever runs in the namespace.
        if let Ok(pids) = Command::new("ip").args(["netns", "pids", &self.name]).output() {
            for pid in String::from_utf8_lossy(&pids.stdout).split_whitespace() {
                let _ = Command::new("kill").args(["-KILL", pid]).status();
            }
        }
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Namespaces need root; CI has it.
fn may_run(what: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "{what} needs root, and CI must run it");
    if !root {
        eprintln!("SKIPPED, NOT PASSED: {what} needs root for network namespaces; run tests/run.sh as root");
    }
    root
}

#[tokio::test(flavor = "multi_thread")]
async fn ssh_reaches_a_real_guest_on_a_worker_that_can_only_dial_out() {
    if !may_run("ssh_reaches_a_real_guest_on_a_worker_that_can_only_dial_out") {
        return;
    }
    let space = Namespace::new();
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let any = format!("{}:0", space.here);
    let (_controller, access) = processes::controller(&home, &dir.path().join("c"), &any, &any).await;
    let inside = ["ip", "netns", "exec", &space.name];
    let worker = processes::worker(&access, &access.url, &dir.path().join("w"), "qemu", &inside).await;

    // Nothing in there can be dialled, not even a port that is open: the guest's own forwards are on its loopback.
    let port: SocketAddr = format!("{}:22", space.there).parse().unwrap();
    let dialled = tokio::time::timeout(Duration::from_secs(1), TcpStream::connect(port)).await;
    assert!(!matches!(dialled, Ok(Ok(_))), "the namespace lets connections in");

    let run = |arguments: &[&str]| succeed(access.cli(&home, arguments));
    let image = guest_image();
    run(&["create", "vm", "far-vm", "--image", image.to_str().unwrap(), "--wait"]).await;
    assert!(run(&["ssh", "vm", "far-vm", "hostname"]).await.contains("far-vm"));

    // The worker's process is killed: the VM goes on, and the next process reaches it again.
    worker.kill().await;
    let boot_id = "cat /proc/sys/kernel/random/boot_id";
    let _worker = processes::worker(&access, &access.url, &dir.path().join("w"), "qemu", &inside).await;
    let before = reach(&access, &home, boot_id).await;
    assert_eq!(reach(&access, &home, boot_id).await, before);
    let vm: serde_json::Value = serde_json::from_str(&run(&["get", "vm", "far-vm", "--output", "json"]).await).unwrap();
    assert_eq!((vm["status"].as_str(), vm["restart_count"].as_u64()), (Some("running"), Some(0)), "{vm}");
    run(&["delete", "vm", "far-vm"]).await;
    wait::until("QEMU to be gone", LIMIT, || async {
        let pids = Command::new("ip").args(["netns", "pids", &space.name]).output().unwrap();
        let count = String::from_utf8_lossy(&pids.stdout).split_whitespace().count();
        if count == 1 { Ok(()) } else { Err(format!("{count} processes in the namespace; only the worker should be")) }
    })
    .await;
}

/// Runs `command` in the guest once it can be reached.
async fn reach(access: &Access, home: &std::path::Path, command: &str) -> String {
    wait::until("the guest to be reached through the new worker process", LIMIT, || async {
        let output = finish(access.cli(home, &["ssh", "vm", "far-vm", command])).await;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if output.status.success() { Ok(said) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    })
    .await
}
