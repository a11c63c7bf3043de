//! What keeps `controller run`, `dev` and `worker run` from starting, and what is said of it: before anything is begun, with what was
//! found and what to do.

use std::net::{TcpListener, UdpSocket};
use std::path::Path;

use orchard::identity;
use tokio::process::Command;

use super::errors::protocol;
use super::golden;
use crate::processes::{Server, controller_command};
use crate::standin::{orchard, run};

/// What is asked for wrongly. `TCP` and `UDP` are ports that somebody has.
const CONTROLLER: &[&str] = &[
    "--listen nowhere",
    "--bus-listen 4222",
    "--listen-ssh 1.2.3",
    "--listen-metrics :x",
    "--lease 2h",
    "--events-keep-days 0",
    "--insecure-no-tls --bus-url nats://nats.example.com",
    "--bus-listen 127.0.0.1:0 --bus-url nats://nats.example.com",
    "--bus-url nats://nats.example.com --bus-user orchard",
    "--bus-url nats://nats.example.com --bus-user orchard --bus-password-file missing",
    "--bus-url nats://nats.example.com --bus-user orchard --bus-password-file empty",
    "--bus-url nats://nats.example.com --bus-user orchard --bus-password-file words",
    "--bus-password-file words",
    "--bus-user orchard --bus-listen 127.0.0.1:0",
    "--bus-user orchard --insecure-no-tls",
    "--controller-cert words",
    "--controller-cert missing --controller-key missing",
    "--controller-cert words --controller-key words",
    "--ssh-host-key words",
    "--listen-ssh 127.0.0.1:0 --ssh-host-key folder/missing",
    "--listen-ssh 127.0.0.1:0 --ssh-host-key words",
    "--data-dir words",
    "--data-dir words/in-a-file",
    "--data-dir link",
    "--data-dir taken",
    "--bus-listen TCP",
    "--listen UDP",
    "--listen-ssh TCP",
    "--listen-metrics TCP",
];

const DEV: &[&str] = &[
    "--workers many",
    "--runtime xen",
    "--listen nowhere",
    "--data-dir words",
    "--data-dir link",
    "--data-dir taken",
    "--bus-listen TCP",
    "--listen UDP",
    "--listen-metrics TCP",
];

const WORKER: &[&str] = &[
    "",
    "--name a/b",
    "--runtime xen",
    "--labels role",
    "--labels a=1,a=2",
    "--resources cpu-cores=many",
    "--default-cpu 0",
    "--default-memory little",
    "--give-up-after never",
    "--image-cache-min-free some",
    "--delete-unknown=1m",
    "--bootstrap-token nonsense",
    "--bootstrap-token-file missing",
    "--bootstrap-token-file empty",
    "--bootstrap-token-file words",
    "--bootstrap-token-file folder",
    "--bootstrap-token-stdin",
    "--bootstrap-token a --bootstrap-token-file words",
    "--fingerprint 12",
    "--token-file words --bootstrap-token a",
    "--token-stdin --bootstrap-token a",
    "--fingerprint aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa --bootstrap-token a",
    "--token-stdin",
    "nats://nats.example.com --token-file missing",
    "nats://nats.example.com --token-file folder",
    "nats://nats.example.com --token-file empty",
    "nats://nats.example.com --token-file words",
    "nats://nats.example.com --fingerprint 12 --token-stdin",
    "nats://nats.example.com --bootstrap-token-stdin",
    "--data-dir words",
    "--data-dir link",
    "--data-dir taken",
    "--listen-metrics TCP",
];

/// The command, with addresses and a runtime that every machine has unless the line names others.
fn command(dir: &Path, words: &[&str], line: &str, sockets: [&str; 2]) -> Command {
    let line = line.replace("TCP", sockets[0]).replace("UDP", sockets[1]);
    let mut arguments: Vec<&str> = words.iter().copied().chain(line.split_whitespace()).collect();
    let has = |arguments: &[&str], option: &str| arguments.contains(&option);
    if words[0] == "worker" {
        if !has(&arguments, "--runtime") {
            arguments.extend(["--runtime", "synthetic"]);
        }
    } else {
        for option in ["--listen", "--bus-listen"] {
            // Both are about the bus of somebody else, which this one has no say in.
            let outside = ["--bus-url", "--bus-user", "--bus-password-file"].iter().any(|other| has(&arguments, other));
            if !(outside && option == "--bus-listen" || has(&arguments, option)) {
                arguments.extend([option, "127.0.0.1:0"]);
            }
        }
    }
    let mut command = orchard(&dir.join("home"), &arguments);
    command.current_dir(dir);
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_why_and_how_it_could() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::create_dir(dir.join("folder")).unwrap();
    for (name, text) in [("empty", ""), ("words", "three short words\n")] {
        identity::write_private(&dir.join(name), text.as_bytes()).unwrap();
    }
    std::os::unix::fs::symlink("folder", dir.join("link")).unwrap();
    let taken = controller_command(&dir.join("other"), &dir.join("taken"), "127.0.0.1:0", "127.0.0.1:0");
    let controller = Server::start(taken).await;
    let (tcp, udp) = (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
    let (tcp, udp) = (tcp.local_addr().unwrap().to_string(), udp.local_addr().unwrap().to_string());

    let mut texts = String::new();
    for (words, lines) in [(&["controller", "run"][..], CONTROLLER), (&["dev"], DEV), (&["worker", "run"], WORKER)] {
        for line in lines {
            let ran = run(command(dir, words, line, [&tcp, &udp])).await;
            assert!(matches!(ran.code, Some(1 | 2)) && ran.stdout.is_empty(), "{words:?} {line}: {ran:?}");
            let shown: Vec<&str> = words.iter().copied().chain(line.split_whitespace()).collect();
            texts.push_str(&protocol(&shown, &ran));
        }
    }
    let holder = format!("process {}", controller.child.id().unwrap());
    let known = [(&*holder, "process <pid>"), (dir.to_str().unwrap(), "<dir>"), (&*tcp, "<tcp>"), (&*udp, "<udp>")];
    golden::check("servers.txt", &without_log(&golden::steady(&texts, &known)));
}

/// The text without lines of the log, which say when.
fn without_log(text: &str) -> String {
    let is_log = |line: &&str| line.starts_with("! 20") && line.contains("Z ");
    text.lines().filter(|line| !is_log(line)).map(|line| format!("{line}\n")).collect()
}
