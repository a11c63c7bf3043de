//! Logs: whatever is secret in a run of controller, worker and commands stands in none of their logs, and neither in
//! anything else that they print unasked, however much they are told to log.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use orchard::bus::access::{CreateAccount, NewToken, RotateAccount};
use orchard::bus::message::{CreateVm, GetVm};
use orchard::identity::new_token;
use orchard::model::access::Role;
use orchard::model::secret::Secret;
use orchard::model::vm::{StartupScript, VmSpec, VmStatus};
use orchard::worker::runtime::synthetic::Synthetic;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::harness::{Cluster, LIMIT, finish};
use crate::processes::{self, Server};
use crate::tunnel::rights;
use crate::wait::until;

/// A command that logs all it can into `log`.
fn loud(home: &Path, log: &Path) -> Command {
    let mut command = processes::within(&[]);
    let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
    command.env("RUST_LOG", "trace").env("ORCHARD_HOME", home).stderr(Stdio::from(log));
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_in_an_images_address_are_shown_to_nobody_but_the_worker() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w", Arc::new(Synthetic::new())).await;
    let image = "http://ann:hunter2@127.0.0.1:1/i.qcow2";
    let vm = cluster.json(&["create", "vm", "a", "--image", image, "--wait"]).await;
    assert_eq!(vm["image"], "http://***@127.0.0.1:1/i.qcow2", "{vm}");
    let mut shown = vec![vm.to_string()];
    for arguments in [&["get", "vm", "a"][..], &["list", "vms"], &["events"], &["events", "-o", "json"], &["audit"]] {
        shown.push(cluster.run(arguments).await);
    }
    for text in shown {
        assert!(!text.contains("hunter2") && !text.contains("ann:"), "{text}");
    }
    let stored = cluster.access.call(&GetVm { name: "a".parse().unwrap() }).await.unwrap();
    assert_eq!(stored.status, VmStatus::Running, "the worker has it whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_holds_a_secret() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut secrets: Vec<(&str, Secret)> = Vec::new();

    let mut run = loud(&at("home"), &at("controller.log"));
    run.args(["controller", "run", "--bus-listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--data-dir"]);
    let controller = Server::start({
        run.arg(at("c"));
        run
    })
    .await;
    let admin = processes::access(&at("home"));
    secrets.push(("the first account's token", admin.token.clone()));

    let join = admin.bootstrap_token().await;
    secrets.push(("a join secret", join.secret.clone()));
    secrets.push(("a bootstrap token", join.to_text()));
    std::fs::write(at("pipe"), join.to_text().expose()).unwrap();
    let mut run = loud(&at("whome"), &at("worker.log"));
    run.args(["worker", "run", "--name", "w1", "--runtime", "synthetic", "--bootstrap-token-stdin", "--data-dir"]);
    run.arg(at("w"));
    let worker = Server::start_with(run, std::fs::File::open(at("pipe")).unwrap().into()).await;
    let seed = std::fs::read_to_string(at("w").join("worker.nk")).unwrap();
    secrets.push(("the worker's key", Secret::new(seed.trim())));

    let roles = [Role::ComputeConnect, Role::ComputeWrite, Role::ComputeRead].into_iter().collect();
    let chosen = new_token();
    let request = CreateAccount {
        name: "user".parse().unwrap(),
        roles,
        expires_at: None,
        token: Some(chosen.clone()),
        ssh_keys: Vec::new(),
    };
    secrets.push(("a token that was chosen", chosen));
    let NewToken { token: first, .. } = admin.call(&request).await.unwrap();
    let NewToken { token, .. } = admin.call(&RotateAccount { name: "user".parse().unwrap() }).await.unwrap();
    secrets.push(("a token that was made", token.clone()));
    assert!(admin.of("user", &first).try_bus().await.is_err());
    let wrong = new_token();
    assert!(admin.of("user", &wrong).try_bus().await.is_err());
    secrets.push(("what was tried", wrong));

    let (password, hidden) = (new_token(), new_token());
    let script = StartupScript { script_content: "true".into(), env: [("TOKEN".to_owned(), hidden.clone())].into() };
    let spec = VmSpec {
        image: "any".into(),
        password: Some(password.clone()),
        startup_script: Some(script),
        ..VmSpec::default()
    };
    secrets.push(("a guest's password", password));
    secrets.push(("a script's environment", hidden));
    let user = admin.of("user", &token);
    user.call(&CreateVm { name: "box".parse().unwrap(), spec, key: None }).await.unwrap();
    until("the VM", LIMIT, || async {
        let vm = user.call(&GetVm { name: "box".parse().unwrap() }).await.unwrap();
        if vm.status == VmStatus::Running { Ok(()) } else { Err(vm.status_message) }
    })
    .await;
    let ticket = until("the way to it", LIMIT, || rights::ticket(&user)).await;
    secrets.push(("a ticket", ticket.ticket.clone()));
    let (client, mut stream) = rights::redeem(&ticket).await.unwrap();
    stream.read_u8().await.unwrap();
    drop(stream);
    assert!(rights::redeem(&ticket).await.is_err());
    client.close().await;

    // Commands log as well.
    let mut commands = Vec::new();
    for arguments in
        [&["list", "vms"][..], &["get", "vm", "box"], &["ssh", "vm", "box", "true"], &["get", "bootstrap-token"]]
    {
        let mut command = user.cli(&at("home"), arguments);
        command.env("RUST_LOG", "trace");
        commands.extend(finish(command).await.stderr);
    }
    std::fs::write(at("commands.log"), commands).unwrap();
    let said = [controller.said.join("\n"), worker.said.join("\n")].join("\n");
    std::fs::write(at("said.log"), said).unwrap();
    worker.kill().await;
    controller.kill().await;

    let secrets = Arc::new(secrets);
    let mut leaks = Vec::new();
    for log in ["controller.log", "worker.log", "commands.log", "said.log"] {
        let bytes = std::fs::read(at(log)).unwrap();
        assert!(log == "said.log" || bytes.len() > 10_000, "{log} has {} bytes: nothing was logged", bytes.len());
        for (what, secret) in secrets.iter() {
            // As text, and as a list of bytes, as some libraries show what they send.
            let listed = secret.expose().bytes().map(|byte| byte.to_string()).collect::<Vec<_>>().join(", ");
            for form in [secret.expose(), &listed] {
                if let Some(place) = memchr::memmem::find(&bytes, form.as_bytes()) {
                    let start = bytes[..place].iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
                    let line: String = String::from_utf8_lossy(&bytes[start..place]).chars().take(300).collect();
                    leaks.push(format!("{log} holds {what}, after {line:?}"));
                }
            }
        }
    }
    assert!(leaks.is_empty(), "{}", leaks.join("\n"));
}
