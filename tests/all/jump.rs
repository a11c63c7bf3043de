//! The SSH jump host with stock OpenSSH: who gets where, what the others are told, and what ends when a right is taken away.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Arc;

use orchard::bus::access::{CreateAccount, DeleteAccount};
use orchard::controller::JumpOptions;
use orchard::model::access::{Role, Roles};
use orchard::model::audit::AuditType;
use orchard::worker::runtime::synthetic::Synthetic;
use russh::ChannelMsg;
use russh::keys::PublicKeyOrCertificate;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;

use crate::guest::guest_image;
use crate::harness::{Cluster, LIMIT, any_port, finish, succeed};
use crate::real::QemuCluster;
use crate::wait::{PROMPT, until};

/// What a person at another machine has: a configuration of OpenSSH, a key pair, and the passwords that are typed.
struct Person {
    dir: PathBuf,
}

impl Person {
    /// Called `account`, in a folder of the cluster's.
    async fn new(cluster: &Cluster, account: &str, token: &str) -> Self {
        let dir = cluster.dir.path().join(format!("person-{account}"));
        std::fs::create_dir(&dir).unwrap();
        let (address, _) = cluster.controller.jump_host().unwrap();
        let known = dir.join("known");
        let config = format!(
            "Host jump\n  HostName {}\n  Port {}\n  User {account}\nHost *\n  StrictHostKeyChecking accept-new\n  \
             UserKnownHostsFile {}\n  IdentityFile {}\n  IdentitiesOnly yes\n  ServerAliveInterval 5\n",
            address.ip(),
            address.port(),
            known.display(),
            dir.join("id").display(),
        );
        std::fs::write(dir.join("config"), config).unwrap();
        // Asked twice: by the jump host and by the guest.
        let ask = format!("#!/bin/sh\ncase \"$1\" in {account}@*) echo '{token}';; *) echo admin;; esac\n");
        std::fs::write(dir.join("ask"), ask).unwrap();
        std::fs::set_permissions(dir.join("ask"), std::fs::Permissions::from_mode(0o700)).unwrap();
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "somebody", "-f"]).arg(dir.join("id"));
        succeed(keygen).await;
        Self { dir }
    }

    fn key(&self) -> String {
        std::fs::read_to_string(self.dir.join("id.pub")).unwrap()
    }

    fn ssh(&self, arguments: &[&str]) -> Command {
        self.stock("ssh", arguments)
    }

    /// One of OpenSSH's programs.
    fn stock(&self, program: &str, arguments: &[&str]) -> Command {
        let mut ssh = Command::new(program);
        ssh.arg("-F").arg(self.dir.join("config")).args(arguments);
        ssh.env("SSH_ASKPASS", self.dir.join("ask")).env("SSH_ASKPASS_REQUIRE", "force").env("DISPLAY", ":0");
        ssh.env_remove("SSH_AUTH_SOCK").stdin(Stdio::null()).kill_on_drop(true);
        ssh
    }

    /// Runs a command in a VM by way of the jump host.
    async fn jump(&self, to: &str, command: &str) -> Output {
        finish(self.ssh(&["-J", "jump", to, command])).await
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What the jump host says to somebody who gets no further.
async fn refusal(person: &Person, to: &str) -> String {
    let output = person.jump(to, "true").await;
    assert!(!output.status.success());
    text(&output.stderr)
}

async fn account(cluster: &Cluster, name: &str, roles: &[Role], keys: &[String]) -> String {
    let request = CreateAccount {
        name: name.parse().unwrap(),
        roles: roles.iter().copied().collect::<Roles>(),
        expires_at: None,
        token: None,
        ssh_keys: keys.iter().map(|key| key.parse().unwrap()).collect(),
    };
    cluster.access.call(&request).await.unwrap().token.expose().to_owned()
}

async fn synthetic() -> Cluster {
    let mut cluster = Cluster::start_jumping(JumpOptions { listen: any_port(), host_key: None }).await;
    cluster.add_worker("w1", Arc::new(Synthetic::new())).await;
    cluster.run(&["create", "vm", "box", "--image", "any", "--wait"]).await;
    // The worker's data path comes up beside its work.
    until("the way to it", LIMIT, || async {
        let worker = cluster.json(&["get", "worker", "w1"]).await;
        if worker["connectable"] == true { Ok(()) } else { Err(worker) }
    })
    .await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_ssh_jumps_into_a_real_guest_by_token_and_by_key() {
    let real = QemuCluster::on(Cluster::start_jumping(JumpOptions { listen: any_port(), host_key: None }).await).await;
    let cluster = &real.cluster;
    let image = guest_image();
    let create = ["create", "vm", "box", "--image", image.to_str().unwrap(), "--cpu", "1", "--memory", "128", "--wait"];
    cluster.run(&create).await;
    let token = account(cluster, "ann", &[Role::ComputeConnect], &[]).await;
    let ann = Person::new(cluster, "ann", &token).await;
    let output = ann.jump("admin@box", "uname -n; cat; exit 7").await;
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(7), "box\n"), "{}", text(&output.stderr));

    // Files, by both protocols that `scp` knows.
    crate::openssh::bring_scp(cluster).await;
    let data: Vec<u8> = (0..2_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 16) as u8).collect();
    let (file, back) = (ann.dir.join("file"), ann.dir.join("back"));
    std::fs::write(&file, &data).unwrap();
    for protocol in ["-O", "-s"] {
        let there = [protocol, "-J", "jump", file.to_str().unwrap(), "admin@box:copied"];
        succeed(ann.stock("scp", &there)).await;
        let home = [protocol, "-J", "jump", "admin@box:copied", back.to_str().unwrap()];
        succeed(ann.stock("scp", &home)).await;
        assert!(std::fs::read(&back).unwrap() == data, "scp {protocol}");
        std::fs::remove_file(&back).unwrap();
    }

    // A key of another account's own, attached on the command line; its token is not known to the person.
    let ben = Person::new(cluster, "ben", "wrong").await;
    cluster.run(&["create", "service-account", "ben", "--roles", "compute:connect"]).await;
    assert!(refusal(&ben, "admin@box").await.contains("Permission denied"));
    let key = ben.dir.join("id.pub");
    cluster.run(&["update", "service-account", "ben", "--ssh-key", key.to_str().unwrap()]).await;
    let output = ben.jump("admin@box", "head -c 3000000 /dev/zero | wc -c").await;
    assert_eq!(text(&output.stdout).trim(), "3000000", "{}", text(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_is_told_so_at_once_and_it_is_recorded() {
    let cluster = synthetic().await;
    // Case 42 of the system that users come from.
    let token = account(&cluster, "ann", &[Role::ComputeConnect], &[]).await;
    let ann = Person::new(&cluster, "ann", &token).await;
    assert_eq!(text(&ann.jump("admin@box", "echo in").await.stdout), "in\n");
    let said = refusal(&ann, "admin@absent").await;
    assert!(said.contains("absent") && said.contains("connect failed"), "{said}");
    let said = text(&finish(ann.ssh(&["-W", "127.0.0.1:22", "jump"])).await.stderr);
    assert!(said.contains("no VM named 127.0.0.1"), "no other host: {said}");
    let said = text(&finish(ann.ssh(&["-W", "[::1]:22", "jump"])).await.stderr);
    assert!(said.contains("leads to VMs by their names"), "{said}");
    // Without -J: no shell and no command, but what to do instead; a terminal gets whole lines.
    let (address, _) = cluster.controller.jump_host().unwrap();
    let command = format!("  ssh -J ann@{address} USER@NAME");
    for (arguments, end) in [(&["jump", "true"][..], "\n"), (&["-T", "jump"], "\n"), (&["-tt", "jump"], "\r\n")] {
        let output = finish(ann.ssh(arguments)).await;
        let said = text(&output.stderr) + &text(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains(&format!("{command}{end}")) && said.contains("no shell"), "{arguments:?}: {said:?}");
    }

    account(&cluster, "other", &[Role::ComputeConnect], &[]).await;
    let wrong = Person::new(&cluster, "other", &token).await;
    assert!(refusal(&wrong, "admin@box").await.contains("Permission denied"), "another's token");
    let reader = Person::new(&cluster, "reader", "").await;
    account(&cluster, "reader", &[Role::ComputeRead], &[reader.key()]).await;
    let said = refusal(&reader, "admin@box").await;
    assert!(said.contains("compute:connect"), "{said}");

    let trail = async || cluster.run(&["audit", "--output", "json"]).await;
    until("the record of it", LIMIT, || async {
        let trail = trail().await;
        let all = [AuditType::LoginFailed, AuditType::TunnelOpened, AuditType::TunnelClosed];
        match all.iter().find(|kind| !trail.contains(kind.as_str())) {
            Some(kind) => Err(format!("no {} in {trail}", kind.as_str())),
            None => Ok(()),
        }
    })
    .await;
}

/// Takes any host key.
struct Anybody;

impl russh::client::Handler for Anybody {
    type Error = russh::Error;

    async fn check_server_key(&mut self, _: &PublicKeyOrCertificate) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

/// Else the answers would pile up in the controller.
#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_what_the_jump_host_says_is_told_it_once() {
    let cluster = Cluster::start_jumping(JumpOptions { listen: any_port(), host_key: None }).await;
    let token = account(&cluster, "ann", &[Role::ComputeConnect], &[]).await;
    let config = russh::client::Config { window_size: 0, ..russh::client::Config::default() };
    let (address, _) = cluster.controller.jump_host().unwrap();
    let mut client = russh::client::connect(Arc::new(config), address, Anybody).await.unwrap();
    assert!(client.authenticate_password("ann", token).await.unwrap().success());
    let mut channel = client.channel_open_session().await.unwrap();
    for (nth, is_answered) in [true, false, false].into_iter().enumerate() {
        channel.exec(true, "true").await.unwrap();
        let answer = loop {
            match tokio::time::timeout(LIMIT, channel.wait()).await.expect("an answer") {
                Some(ChannelMsg::Success) => break true,
                Some(ChannelMsg::Failure) => break false,
                // What fits through no window, and still comes.
                Some(ChannelMsg::ExitStatus { .. }) => {}
                other => panic!("{nth}: {other:?}"),
            }
        };
        assert_eq!(answer, is_answered, "{nth}");
    }
}

/// A connection may last for days, and open a port at any time: it goes by what is so then.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_ends_with_the_token_or_the_key_that_opened_it() {
    let cluster = synthetic().await;
    let token = account(&cluster, "ann", &[Role::ComputeConnect], &[]).await;
    let ann = Person::new(&cluster, "ann", &token).await;
    let ben = Person::new(&cluster, "ben", "").await;
    account(&cluster, "ben", &[Role::ComputeConnect], &[ben.key()]).await;
    for (person, name, take_away) in [
        (&ann, "ann", &["rotate", "service-account", "ann"][..]),
        (&ben, "ben", &["update", "service-account", "ben", "--no-ssh-keys"]),
    ] {
        let socket = person.dir.join("master");
        let socket = socket.to_str().unwrap();
        let mut master = person.ssh(&["-M", "-S", socket, "-N", "jump"]).spawn().unwrap();
        let opens = || async {
            let through = ["-S", socket, "-o", "ProxyCommand=false", "-W", "box:22", "jump"];
            let greeting = text(&finish(person.ssh(&through)).await.stdout);
            if greeting.starts_with("SSH-2.0-") { Ok(()) } else { Err(greeting) }
        };
        until("a port to be opened over it", LIMIT, opens).await;
        assert!(master.try_wait().unwrap().is_none());
        cluster.run(take_away).await;
        let ended = tokio::time::timeout(PROMPT, master.wait()).await.expect("the connection to end").unwrap();
        assert!(!ended.success(), "{name}");
        assert!(opens().await.is_err(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_ends_with_the_account_and_with_the_worker_the_reason_is_told() {
    let mut cluster = synthetic().await;
    let token = account(&cluster, "ann", &[Role::ComputeConnect], &[]).await;
    let ann = Person::new(&cluster, "ann", &token).await;
    let mut open = ann.ssh(&["-J", "jump", "admin@box", "cat"]);
    let mut open = open.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(open.stdout.take().unwrap()).lines();
    // Held, as waiting for the process would close it, and with that end what it does.
    let mut typed = open.stdin.take().unwrap();
    typed.write_all(b"there\n").await.unwrap();
    let line = tokio::time::timeout(LIMIT, lines.next_line()).await.unwrap().unwrap();
    assert_eq!(line.as_deref(), Some("there"));

    cluster.access.call(&DeleteAccount { name: "ann".parse().unwrap() }).await.unwrap();
    let ended = tokio::time::timeout(LIMIT, open.wait()).await.unwrap().unwrap();
    assert!(!ended.success(), "its session is cut");
    drop(typed);
    assert!(refusal(&ann, "admin@box").await.contains("Permission denied"));

    let token = account(&cluster, "cleo", &[Role::ComputeWrite], &[]).await;
    let cleo = Person::new(&cluster, "cleo", &token).await;
    assert_eq!(text(&cleo.jump("admin@box", "echo in").await.stdout), "in\n");
    cluster.workers.pop().unwrap().shutdown().await;
    let said = refusal(&cleo, "admin@box").await;
    assert!(said.contains("w1"), "not silence, but the worker that is away: {said}");
}
