//! Machines apart, as far as one can play them: processes in network namespaces of their own. A worker behind a NAT is in
//! one that refuses every connection from outside and can only dial out.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use orchard::config::Home;
use orchard::config::context::Context;
use orchard::config::file::ContextFile;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;

use crate::guest::guest_image;
use crate::harness::{Access, LIMIT, finish, succeed};
use crate::processes::Server;
use crate::{processes, wait};

/// A network namespace; removed when dropped, with all that runs in it.
pub struct Namespace {
    pub name: String,
}

impl Namespace {
    pub fn new(role: &str) -> Self {
        let name = format!("orchard{}{role}", std::process::id());
        sh(&format!("ip netns add {name}"));
        sh(&format!("ip -n {name} link set lo up"));
        Self { name }
    }

    /// What is put before a command to run it in here.
    pub fn prefix(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.name]
    }

    /// Lets nobody in who was not called.
    fn only_dials_out(&self) {
        let name = &self.name;
        sh(&format!("ip netns exec {name} iptables -P INPUT DROP"));
        sh(&format!("ip netns exec {name} iptables -A INPUT -i lo -j ACCEPT"));
        sh(&format!("ip netns exec {name} iptables -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"));
    }

    /// How many processes run in here.
    fn processes(&self) -> Vec<String> {
        let output = Command::new("ip").args(["netns", "pids", &self.name]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect()
    }
}

/// A cable between two namespaces (none = this one), with network `net` of this test process on it, a number that no two
/// tests share: yields the addresses of both ends.
pub fn cable(near: Option<&Namespace>, far: &Namespace, net: u32) -> (String, String) {
    let id = std::process::id();
    // A /30 of the range that is set aside for tests of networks (RFC 2544), by process.
    let base = format!("198.18.{}.", id % 256);
    let (here, there) = (format!("{base}{}", net * 4 + 1), format!("{base}{}", net * 4 + 2));
    let (plug, other) = (format!("o{id}n{net}"), format!("o{id}f{net}"));
    let (inside, far) = (near.map(|near| format!("-n {} ", near.name)).unwrap_or_default(), &far.name);
    sh(&format!("ip {inside}link add {plug} type veth peer name {other} netns {far}"));
    sh(&format!("ip {inside}addr add {here}/30 dev {plug}"));
    sh(&format!("ip {inside}link set {plug} up"));
    sh(&format!("ip -n {far} addr add {there}/30 dev {other}"));
    sh(&format!("ip -n {far} link set {other} up"));
    (here, there)
}

/// Runs a command that must succeed; its words are separated by single spaces.
pub fn sh(line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The guest outlives its worker by design, so the test ends it.
        for pid in self.processes() {
            let _ = Command::new("kill").args(["-KILL", &pid]).status();
        }
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Namespaces need root; CI has it.
pub fn may_run(what: &str) -> bool {
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
    let space = Namespace::new("w");
    let (here, there) = cable(None, &space, 0);
    space.only_dials_out();
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let any = format!("{here}:0");
    let (_controller, access) = processes::controller(&home, &dir.path().join("c"), &any, &any).await;
    let inside = space.prefix();
    let worker = processes::worker(&access, &access.url, &dir.path().join("w"), "qemu", &inside).await;

    // Nothing in there can be dialled, not even a port that is open: the guest's own forwards are on its loopback.
    let port: SocketAddr = format!("{there}:22").parse().unwrap();
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
        let count = space.processes().len();
        if count == 1 { Ok(()) } else { Err(format!("{count} processes in the namespace; only the worker should be")) }
    })
    .await;
}

/// How long the cable is out: longer than a connection that hears nothing lives.
const OUTAGE: Duration = Duration::from_secs(orchard::tunnel::IDLE_TIMEOUT.as_secs() + 5);

#[tokio::test(flavor = "multi_thread")]
async fn a_session_goes_on_after_a_link_was_down_for_longer_than_any_connection_lives() {
    if !may_run("a_session_goes_on_after_a_link_was_down_for_longer_than_any_connection_lives") {
        return;
    }
    let space = Namespace::new("l");
    let (here, _) = cable(None, &space, 3);
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let any = format!("{here}:0");
    let (_controller, access) = processes::controller(&home, &dir.path().join("c"), &any, &any).await;
    let _worker = processes::worker(&access, &access.url, &dir.path().join("w"), "qemu", &space.prefix()).await;
    let image = guest_image();
    succeed(access.cli(&home, &["create", "vm", "far-vm", "--image", image.to_str().unwrap(), "--wait"])).await;
    // A line each 100 ms, before, while and after the cable is out.
    let lines = OUTAGE.as_secs() * 10 + 100;
    let script = format!("i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo $i; sleep 0.1; done");
    let mut command = access.cli(&home, &["ssh", "vm", "far-vm", &script]);
    let mut session = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(session.stdout.take().unwrap()).lines();
    let first = tokio::time::timeout(LIMIT, out.next_line()).await.expect("the first line in time");
    assert_eq!(first.unwrap().as_deref(), Some("1"));
    let plug = format!("o{}n3", std::process::id());
    sh(&format!("ip link set {plug} down"));
    let back = tokio::time::Instant::now() + OUTAGE;
    wait::until("the end of the outage", LIMIT, || async {
        if tokio::time::Instant::now() >= back { Ok(()) } else { Err("it lasts") }
    })
    .await;
    sh(&format!("ip link set {plug} up"));
    let rest = async {
        for n in 2..=lines {
            assert_eq!(out.next_line().await.unwrap(), Some(n.to_string()));
        }
        session.wait_with_output().await.unwrap()
    };
    // Each of the guest's lines is a process that it starts, which takes an emulated machine long on a busy one.
    let output = tokio::time::timeout(3 * LIMIT, rest).await.expect("it hangs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(told.contains("connection lost") && told.contains("connected again"), "{told}");
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

/// The real binary, run by `prefix`.
fn within(prefix: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(prefix[0]);
    command.args(&prefix[1..]).arg(env!("CARGO_BIN_EXE_orchard"));
    command
}

/// What `orchard controller run` has saved for the user with this home folder.
fn saved(home: &Path) -> Context {
    let contexts = ContextFile::new(Home::at(home)).load().unwrap();
    contexts.get("bootstrap-context").unwrap().clone()
}

/// The way of the README: a controller, a worker elsewhere that can only dial out, and a user at a third place. Nothing is
/// copied between them but what is printed for that.
#[tokio::test(flavor = "multi_thread")]
async fn two_commands_join_a_worker_and_a_third_machine_uses_it() {
    if !may_run("two_commands_join_a_worker_and_a_third_machine_uses_it") {
        return;
    }
    let (controller, worker, user) = (Namespace::new("c"), Namespace::new("w2"), Namespace::new("u"));
    let (address, _) = cable(Some(&controller), &worker, 1);
    let (gateway, _) = cable(Some(&controller), &user, 2);
    // The user finds the controller by the same address; nobody is led from the user to the worker.
    sh(&format!("ip -n {} route add {address} via {gateway}", user.name));
    worker.only_dials_out();
    let dir = tempfile::tempdir().unwrap();
    let home = |who: &str| dir.path().join(who);

    let mut run = within(&controller.prefix());
    run.env("ORCHARD_HOME", home("c")).args(["controller", "run", "--tunnel-host", &address]);
    let _controller = Server::start(run).await;
    let mut get = within(&controller.prefix());
    get.env("ORCHARD_HOME", home("c")).args(["get", "bootstrap-token"]);
    let token = succeed(get).await;
    assert_eq!(token.lines().count(), 1);
    std::fs::write(dir.path().join("pipe"), &token).unwrap();
    let mut join = within(&worker.prefix());
    join.env("ORCHARD_HOME", home("w")).args(["worker", "run", "--runtime", "qemu", "--bootstrap-token-stdin"]);
    join.args(["--default-cpu", "1", "--default-memory", "128"]);
    let _worker = Server::start_with(join, std::fs::File::open(dir.path().join("pipe")).unwrap().into()).await;

    // What the operator read on the controller's terminal.
    let known = saved(&home("c"));
    std::fs::write(dir.path().join("pipe"), known.token.unwrap().expose()).unwrap();
    let as_user = |arguments: &[&str]| {
        let mut command = within(&user.prefix());
        command.env("ORCHARD_HOME", home("u")).args(arguments).kill_on_drop(true);
        command.stdin(std::fs::File::open(dir.path().join("pipe")).unwrap());
        command
    };
    let account = ["--service-account-name", "bootstrap-admin", "--service-account-token-stdin"];
    let print = known.fingerprint.unwrap().to_string();
    succeed(as_user(&[&["context", "create", &address, "--fingerprint", &print], &account[..]].concat())).await;
    let image = guest_image();
    succeed(as_user(&["create", "vm", "far-vm", "--image", image.to_str().unwrap(), "--wait"])).await;
    assert!(succeed(as_user(&["ssh", "vm", "far-vm", "hostname"])).await.contains("far-vm"));

    // Used up: another machine does not get in with it.
    std::fs::write(dir.path().join("pipe"), &token).unwrap();
    let mut again = within(&user.prefix());
    again.env("ORCHARD_HOME", home("x")).args(["worker", "run", "--runtime", "synthetic", "--bootstrap-token-stdin"]);
    again.args(["--name", "x"]).stdin(std::fs::File::open(dir.path().join("pipe")).unwrap());
    let refused = finish(again).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("get bootstrap-token"), "{said}");
    succeed(as_user(&["delete", "vm", "far-vm"])).await;
}
