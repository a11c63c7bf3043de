//! Ways onto a worker's own machine: with `admin:write` alone, to a real OpenSSH server there, unless its operator lets nobody in.

use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Instant;

use orchard::bus::access::UpdateAccount;
use orchard::bus::connect::{HostTicket, OpenHost, OpenTunnel};
use orchard::bus::message::CreateVm;
use orchard::model::access::Role;
use orchard::model::error::{ApiError, ErrorCode};
use orchard::model::vm::VmSpec;
use orchard::tunnel::client::Client;
use orchard::tunnel::stream::TunnelStream;
use orchard::tunnel::{Address, Transport};
use orchard::worker::runtime::synthetic::Synthetic;
use orchard::worker::{Worker, WorkerOptions};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{Access, Cluster, LIMIT, finish, refusing, succeed, worker_options};
use crate::ssh::sshd::{Agent, PASSWORD, Sshd, TESTER, make_key};
use crate::tunnel::rights::account;
use crate::wait::{PROMPT, until};

async fn cluster() -> Cluster {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", Arc::new(Synthetic::new())).await;
    until("the way to it", LIMIT, || async { ask(&cluster.access, 22).await.map(drop) }).await;
    cluster
}

async fn ask(user: &Access, port: u16) -> Result<HostTicket, ApiError> {
    user.call(&OpenHost { worker: "w1".parse().unwrap(), port }).await
}

async fn open(user: &Access, port: u16) -> Result<(Client, TunnelStream), ApiError> {
    let HostTicket { endpoint, ticket, .. } = ask(user, port).await?;
    let address = Address { host: endpoint.host.unwrap_or_else(|| "127.0.0.1".into()), port: endpoint.port };
    let client = Client::connect(address, endpoint.fingerprint.parse().unwrap(), Transport::default()).await?;
    let stream = client.open(&ticket, LIMIT).await?;
    Ok((client, stream))
}

/// Something on this machine that answers each line with the same.
async fn echo() -> (u16, orchard::task::Task) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = orchard::task::spawn(async move {
        let mut running = tokio::task::JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            running.spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    (port, task)
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn path(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workers_machine_is_logged_in_to_and_its_ports_are_reached() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    let Some(sshd) = Sshd::start(&make_key(&key, "ed25519", ""), true).await else { return };
    let cluster = cluster().await;
    let port = sshd.port.to_string();
    let ssh = |more: &[&str]| cluster.cli(&[&["ssh", "worker", "--port", &port, "-u", TESTER], more].concat());

    let ended = finish(ssh(&["-i", path(&key), "w1", "echo in; exit 3"])).await;
    assert_eq!((ended.status.code(), ended.stdout.as_slice()), (Some(3), &b"in\n"[..]), "{}", told(&ended));
    assert_eq!(succeed(ssh(&["-p", PASSWORD, "w1", "echo", "password"])).await, "password\n");
    let agent = Agent::start(&[&key]).await;
    let mut by_agent = ssh(&["w1", "echo", "agent"]);
    by_agent.env("SSH_AUTH_SOCK", &agent.socket).env("HOME", dir.path());
    assert_eq!(succeed(by_agent).await, "agent\n");
    let mut nothing = ssh(&["w1", "true"]);
    nothing.env_remove("SSH_AUTH_SOCK").env("HOME", dir.path());
    let refused = finish(nothing).await;
    assert!(told(&refused).contains("tried: nothing") && told(&refused).contains("--identity"), "{}", told(&refused));

    let exec = ["exec", "worker", "--port", &port, "-u", TESTER, "--identity", path(&key), "-e", "A=b c", "w1", "--"];
    let said = cluster.run(&[&exec[..], &["sh", "-c", "echo \"$A\""]].concat()).await;
    assert_eq!(said, "b c\n", "word for word");

    let known = std::fs::read_to_string(cluster.dir.path().join("home/known_hosts")).unwrap();
    assert!(known.starts_with("orchard-worker-w1-") && known.lines().count() == 1, "{known}");
    sshd.change_host_key();
    let changed = told(&finish(ssh(&["-i", path(&key), "w1", "true"])).await);
    assert!(
        changed.contains("worker w1 showed before") && changed.contains("ssh-keygen -R orchard-worker-w1-"),
        "{changed}"
    );

    ports_are_reached(&cluster, &port).await;
    what_is_not_there_is_said(&cluster).await;
    let of_host = |line: &&str| line.contains("connect.host") && line.contains(&format!("worker/w1:{port}"));
    // It is written down beside the sessions.
    until("the record of it", LIMIT, || async {
        let audit = cluster.run(&["audit", "--output", "json"]).await;
        let told = |what: &str| audit.lines().filter(of_host).any(|line| line.contains(what));
        if told("tunnel-opened") && told("bytes to the host") { Ok(()) } else { Err(audit) }
    })
    .await;
}

async fn ports_are_reached(cluster: &Cluster, sshd: &str) {
    let greeting = cluster.run(&["proxy", "worker", "w1", sshd]).await;
    assert!(greeting.starts_with("SSH-2.0-OpenSSH"), "{greeting}");
    let (port, _echo) = echo().await;
    let mut forward = cluster.cli(&["port-forward", "worker", "w1", &port.to_string()]);
    let mut forward = forward.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(forward.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(LIMIT, lines.next_line()).await.unwrap().unwrap().unwrap();
    let local = line.split_whitespace().find_map(|word| word.strip_prefix("127.0.0.1:")).unwrap();
    assert_eq!(talk(local.parse().unwrap()).await, b"there and back");
    forward.kill().await.unwrap();
}

async fn talk(port: u16) -> Vec<u8> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(b"there and back").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    tokio::time::timeout(LIMIT, stream.read_to_end(&mut back)).await.unwrap().unwrap();
    back
}

async fn what_is_not_there_is_said(cluster: &Cluster) {
    let (_held, closed) = refusing();
    let closed = closed.port().to_string();
    for (arguments, why) in [
        (["proxy", "worker", "w1", &closed], "nothing listens there"),
        (["proxy", "worker", "never-was", "22"], "never-was"),
    ] {
        let output = finish(cluster.cli(&arguments)).await;
        assert!(output.status.code() == Some(1) && told(&output).contains(why), "{}", told(&output));
    }
    assert_eq!(ask(&cluster.access, 0).await.unwrap_err().code, ErrorCode::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_of_an_ssh_connection_lead_further_while_it_lasts() {
    let Some(sshd) = Sshd::start("", true).await else { return };
    let cluster = cluster().await;
    let (far, _echo) = echo().await;
    let (sshd_port, forward) = (sshd.port.to_string(), format!("0:localhost:{far}"));
    let options = ["ssh", "worker", "--port", &sshd_port, "-u", TESTER, "-p", PASSWORD];
    let mut ssh = cluster.cli(&[&options[..], &["-N", "-L", &forward, "-L", &forward, "w1"]].concat());
    let mut ssh = ssh.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(ssh.stderr.take().unwrap()).lines();
    let mut ports = Vec::new();
    while ports.len() < 2 {
        let line = tokio::time::timeout(LIMIT, lines.next_line()).await.unwrap().unwrap().unwrap();
        ports.extend(line.split_whitespace().find_map(|word| word.strip_prefix("127.0.0.1:")?.parse::<u16>().ok()));
    }
    for port in ports {
        assert_eq!(talk(port).await, b"there and back");
    }
    ssh.kill().await.unwrap();

    // Beside a command, and refused with the server's reason.
    let (_held, closed) = refusing();
    let forward = format!("0:localhost:{}", closed.port());
    let mut ssh = cluster.cli(&[&options[..], &["-L", &forward, "w1", "echo begun; cat"]].concat());
    let mut ssh = ssh.stderr(Stdio::piped()).stdout(Stdio::piped()).stdin(Stdio::piped()).spawn().unwrap();
    let mut begun = BufReader::new(ssh.stdout.take().unwrap()).lines();
    assert_eq!(tokio::time::timeout(LIMIT, begun.next_line()).await.unwrap().unwrap().as_deref(), Some("begun"));
    let mut said = BufReader::new(ssh.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("forwarding ") {
        assert!(tokio::time::timeout(LIMIT, said.read_line(&mut line)).await.unwrap().unwrap() > 0, "{line}");
    }
    let local = line.split_whitespace().find_map(|word| word.strip_prefix("127.0.0.1:")?.parse::<u16>().ok());
    assert!(talk_in_vain(local.unwrap_or_else(|| panic!("{line}"))).await.is_empty());
    drop(ssh.stdin.take());
    let status = tokio::time::timeout(LIMIT, ssh.wait()).await.unwrap().unwrap();
    said.read_to_string(&mut line).await.unwrap();
    assert!(status.success() && line.contains("does not connect to localhost"), "{line}");
}

async fn talk_in_vain(port: u16) -> Vec<u8> {
    let mut back = Vec::new();
    // A reset says as much, and may be there before a slow machine has looked at what became of the dial.
    match TcpStream::connect(("127.0.0.1", port)).await {
        Ok(mut stream) => {
            let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut back)).await.unwrap();
        }
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
    back
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_roles_never_lead_to_a_host_and_admin_write_does() {
    let cluster = cluster().await;
    let (port, _echo) = echo().await;
    for (n, roles) in
        [&[Role::ComputeConnect][..], &[Role::ComputeRead, Role::ComputeWrite, Role::ComputeConnect, Role::AdminRead]]
            .into_iter()
            .enumerate()
    {
        let user = account(&cluster, &format!("user{n}"), roles).await;
        let refused = ask(&user, port).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Forbidden, "{refused}");
        for way in [
            &["ssh", "worker", "-u", "me", "w1", "true"][..],
            &["port-forward", "worker", "w1", "22"],
            &["proxy", "worker", "w1", "22"],
        ] {
            let output = finish(user.cli(&cluster.dir.path().join("home"), way)).await;
            let said = told(&output);
            assert!(output.status.code() == Some(1) && said.contains("admin:write"), "{way:?}: {said}");
        }
    }
    let admin = account(&cluster, "admin", &[Role::AdminWrite]).await;
    let (_client, mut stream) = open(&admin, port).await.unwrap();
    stream.write_all(b"in").await.unwrap();
    let mut back = [0; 2];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"in");
    // And that role alone leads into no VM.
    let vm = admin.call(&OpenTunnel { vm: "box".parse().unwrap(), port: 22 }).await.unwrap_err();
    assert_eq!(vm.code, ErrorCode::Forbidden);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_loses_admin_write_loses_the_hosts_and_keeps_the_vms() {
    let cluster = cluster().await;
    let spec = VmSpec { image: "any".into(), ..VmSpec::default() };
    cluster.access.call(&CreateVm { name: "box".parse().unwrap(), spec, key: None }).await.unwrap();
    let user = account(&cluster, "user", &[Role::AdminWrite, Role::ComputeConnect]).await;
    let in_vm = until("the VM", LIMIT, || async {
        let ticket = crate::tunnel::rights::ticket(&user).await?;
        crate::tunnel::rights::redeem(&ticket).await
    });
    let (_in_vm, mut in_vm) = in_vm.await;
    let mut greeting = [0; 4];
    in_vm.read_exact(&mut greeting).await.unwrap();
    let (port, _echo) = echo().await;
    let (_on_host, mut on_host) = open(&user, port).await.unwrap();
    let roles = Some([Role::ComputeConnect].into_iter().collect());
    let (started, name) = (Instant::now(), user.account());
    cluster.access.call(&UpdateAccount { name, roles, expiry: None, ssh_keys: None }).await.unwrap();
    let end = tokio::time::timeout(LIMIT, on_host.read_to_end(&mut Vec::new())).await.unwrap().unwrap_err();
    assert!(end.to_string().contains("may not connect any more"), "{end}");
    assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
    in_vm.write_all(b"SSH-2.0-still-there\r\n").await.unwrap();
    let next = tokio::time::timeout(LIMIT, in_vm.read_u8()).await.unwrap();
    assert!(next.is_ok(), "{next:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_who_lets_nobody_onto_his_machine_has_the_last_word() {
    let cluster = Cluster::start().await;
    let (name, data_dir): (_, PathBuf) = ("w1".parse().unwrap(), cluster.worker_dir("w1"));
    let bus = cluster.access.join(&name, &data_dir).await;
    let options = worker_options(bus, data_dir, &name, Arc::new(Synthetic::new()));
    let _worker = Worker::start(WorkerOptions { host_access: false, ..options }).await.unwrap();
    until("the way to it", LIMIT, || async { ask(&cluster.access, 22).await.map(drop) }).await;
    let (port, _echo) = echo().await;
    let refused = open(&cluster.access, port).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Forbidden);
    assert!(refused.message.contains("--no-host-access"), "{refused}");
    let output = finish(cluster.cli(&["proxy", "worker", "--wait", "w1", &port.to_string()])).await;
    assert!(output.status.code() == Some(1) && told(&output).contains("--no-host-access"), "{}", told(&output));
}

/// A job that is cancelled leaves nothing running that would have noticed a proper end.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_line_that_is_told_to_end_says_goodbye() {
    let Some(sshd) = Sshd::start("", true).await else { return };
    let cluster = cluster().await;
    let (port, ended) = (sshd.port.to_string(), sshd.home.path().join("ended"));
    let script = format!("echo begun; cat; touch '{}'", ended.display());
    for way in ["ssh", "exec"] {
        let mut line = vec![way, "worker", "--port", &port, "-u", TESTER, "-p", PASSWORD];
        match way {
            "ssh" => line.extend(["w1", &script]),
            _ => line.extend(["-i", "w1", "--", "sh", "-c", &script]),
        }
        let mut child = cluster.cli(&line).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let begun = tokio::time::timeout(LIMIT, lines.next_line()).await.unwrap().unwrap();
        assert_eq!(begun.as_deref(), Some("begun"));
        let id = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
        rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
        let status = tokio::time::timeout(LIMIT, child.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(128 + 15), "{way}");
        // Sooner than the silence of a client is noticed.
        until("the command to hear of it", PROMPT, || async { std::fs::metadata(&ended).map(drop) }).await;
        std::fs::remove_file(&ended).unwrap();
    }
}

/// Keys that are locked ask for their passphrase, and a password for itself, on the user's terminal.
#[tokio::test(flavor = "multi_thread")]
async fn what_only_a_person_knows_is_asked_for_on_the_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("locked");
    let Some(sshd) = Sshd::start(&make_key(&key, "ed25519", "a phrase"), true).await else { return };
    let cluster = cluster().await;
    let port = sshd.port.to_string();
    let ssh = ["ssh", "worker", "--port", &port, "-u", TESTER];
    let locked = finish(cluster.cli(&[&ssh[..], &["-i", path(&key), "w1", "true"]].concat())).await;
    assert!(told(&locked).contains("locked with a passphrase"), "nobody is there: {}", told(&locked));

    for (more, keys) in [
        (
            &["-i", path(&key)][..],
            &[("Passphrase of the key", "wrong"), ("does not unlock", ""), ("Passphrase", "a phrase")][..],
        ),
        (&[], &[("Password of tester", "wrong"), ("Password of tester", PASSWORD)]),
    ] {
        let line = [&ssh[..], more, &["w1", "echo in as $USER:$((6*7))"]].concat();
        let seen = typed(&cluster, dir.path(), &line, keys).await;
        assert!(seen.contains(":42"), "{seen}");
        assert!(!seen.contains("a phrase") && !seen.contains(PASSWORD), "shown: {seen}");
    }
}

/// Runs the command line in a terminal where somebody waits for each text and then types the line beside it. Yields what the
/// screen has shown.
async fn typed(cluster: &Cluster, home: &std::path::Path, line: &[&str], keys: &[(&str, &str)]) -> String {
    let cli = cluster.cli(line);
    let words = [cli.as_std().get_program()].into_iter().chain(cli.as_std().get_args());
    let quoted: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let mut script = tokio::process::Command::new("script");
    script
        .args(["-qec", &quoted.join(" "), "/dev/null"])
        .envs(cli.as_std().get_envs().filter_map(|(name, value)| Some((name, value?))));
    script.env("HOME", home).env("SHELL", "/bin/sh").env_remove("SSH_AUTH_SOCK");
    script.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = script.spawn().unwrap();
    let (mut keyboard, mut screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut seen = Vec::new();
    let mut from = 0;
    let work = async {
        for (what, answer) in keys {
            while !String::from_utf8_lossy(&seen[from..]).contains(what) {
                assert!(screen.read_buf(&mut seen).await.unwrap() > 0, "{:?}", String::from_utf8_lossy(&seen));
            }
            from += String::from_utf8_lossy(&seen[from..]).find(what).unwrap() + what.len();
            if !answer.is_empty() {
                keyboard.write_all(format!("{answer}\r").as_bytes()).await.unwrap();
            }
        }
        screen.read_to_end(&mut seen).await.unwrap();
    };
    tokio::time::timeout(LIMIT, work).await.unwrap();
    String::from_utf8_lossy(&seen).into_owned()
}
