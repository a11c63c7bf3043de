//! How commands that go on for long end: when their account is let in no more, by Ctrl-C, and not because a connection broke.

use std::process::Stdio;
use std::sync::Arc;

use orchard::controller::BusSource;
use orchard::identity::new_token;
use orchard::model::secret::Secret;
use orchard::worker::runtime::synthetic::Synthetic;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::harness::{Access, Cluster, LIMIT};
use crate::stock::standalone::Standalone;
use crate::wait;

/// A command that runs and has said something.
struct Running {
    child: Child,
    first: String,
    /// What it says besides, on both outputs.
    rest: [Box<dyn AsyncRead + Unpin>; 2],
}

/// Starts `command` and waits for its first line, on standard error if `on_stderr`.
async fn start(mut command: Command, on_stderr: bool) -> Running {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (told, other): (Box<dyn AsyncRead + Unpin>, Box<dyn AsyncRead + Unpin>) = match on_stderr {
        true => (Box::new(err), Box::new(out)),
        false => (Box::new(out), Box::new(err)),
    };
    let mut told = BufReader::new(told);
    let mut first = String::new();
    let read = tokio::time::timeout(LIMIT, told.read_line(&mut first)).await;
    read.unwrap_or_else(|_| panic!("{command:?} says nothing")).unwrap();
    assert!(!first.is_empty(), "{command:?} ended at once: {:?}", child.wait().await);
    Running { child, first, rest: [Box::new(told), other] }
}

impl Running {
    /// Its exit code, and what else it said.
    async fn end(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        let end = async {
            for output in &mut self.rest {
                output.read_to_string(&mut said).await.unwrap();
            }
            self.child.wait().await.unwrap()
        };
        let status = tokio::time::timeout(LIMIT, end).await.expect("it does not end");
        (status.code(), said)
    }

    fn interrupt(&self) {
        let id = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), Signal::INT).unwrap();
    }
}

async fn cluster() -> Cluster {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w", Arc::new(Synthetic::new())).await;
    cluster.run(&["create", "vm", "a", "--image", "any", "--startup-script", "echo hello", "--wait"]).await;
    cluster
}

/// Each command that follows something, once it does.
async fn followers(cluster: &Cluster, access: &Access) -> Vec<(String, Running)> {
    let mut running = Vec::new();
    for arguments in [
        &["events", "--follow", "--after", "0"][..],
        &["audit", "--follow"],
        &["logs", "vm", "a", "--follow"],
        &["port-forward", "vm", "a", "22"],
    ] {
        let command = access.cli(&cluster.dir.path().join("home"), arguments);
        running.push((arguments.join(" "), start(command, false).await));
    }
    running
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_let_in_no_more_is_told_so_and_the_command_ends() {
    let cluster = cluster().await;
    let roles = ["--roles", "compute:read,compute:connect,admin:read"];
    for end in ["rotate", "delete"] {
        let token = cluster.run(&[&["create", "service-account", "ann"], &roles[..]].concat()).await;
        let ann = cluster.access.of("ann", &Secret::new(token.trim()));
        let running = followers(&cluster, &ann).await;
        cluster.run(&[end, "service-account", "ann"]).await;
        for (command, running) in running {
            let (code, said) = running.end().await;
            assert_eq!(code, Some(1), "{command} after {end}: {said}");
            let why = ["refuses user \"ann\"", "no service account ann, or it has ended"];
            assert!(why.iter().any(|why| said.contains(why)), "{command} after {end}: {said}");
        }
        cluster.run(&["delete", "service-account", "ann", "--ignore-missing"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_is_made_again() {
    let mut broker = Standalone::start(&["--no-auth"]).await;
    let bus = BusSource::Outside { url: broker.url(), user: "controller".into(), password: new_token() };
    let cluster = Cluster::start_on(bus, new_token()).await;
    cluster.run(&["create", "vm", "before", "--image", "any"]).await;
    let running = start(cluster.cli(&["events", "--follow", "--after", "0"]), false).await;
    assert!(running.first.contains("before"), "{}", running.first);
    let forward = start(cluster.cli(&["port-forward", "vm", "before", "22"]), false).await;
    broker.restart().await;
    wait::until("the controller to be back", LIMIT, || async {
        let created = crate::harness::finish(cluster.cli(&["create", "vm", "after", "--image", "any"])).await;
        if created.status.success() { Ok(()) } else { Err(created) }
    })
    .await;
    for mut running in [running, forward] {
        assert!(running.child.try_wait().unwrap().is_none(), "it has ended");
        running.interrupt();
        let (code, said) = running.end().await;
        assert!(code == Some(130) && !said.contains("error"), "{code:?} {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_every_client_command_alike() {
    let cluster = cluster().await;
    let mut running = followers(&cluster, &cluster.access).await;
    for arguments in [
        &["create", "vm", "b", "--image", "any", "--cpu", "60000", "--wait"][..],
        &["ssh", "vm", "b", "--wait", "1h", "true"],
    ] {
        running.push((arguments.join(" "), start(cluster.cli(arguments), true).await));
    }
    for (command, running) in running {
        running.interrupt();
        let (code, said) = running.end().await;
        assert!(code == Some(130) && !said.contains("error"), "{command}: {code:?} {said}");
    }
    // Also one that reads what nobody writes.
    let mut command = cluster.cli(&["create", "service-account", "x", "--roles", "compute:read", "--token-stdin"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let _nobody_writes = child.stdin.take(); // waiting for the end would close it
    let id = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    wait::until("it to listen for signals", LIMIT, || async {
        let status = std::fs::read_to_string(format!("/proc/{}/status", id.as_raw_nonzero())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap().trim();
        let caught = u64::from_str_radix(caught, 16).unwrap();
        if caught & 0b10 != 0 { Ok(()) } else { Err(caught) }
    })
    .await;
    kill_process(id, Signal::INT).unwrap();
    let status = tokio::time::timeout(LIMIT, child.wait()).await.expect("it does not end").unwrap();
    assert_eq!(status.code(), Some(130));
}

/// At a NATS server of the operator, what a command cannot do is said by it.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_outside_server_does_not_learn_of_is_said() {
    let broker = Standalone::start(&["--no-auth"]).await;
    let bus = BusSource::Outside { url: broker.url(), user: "controller".into(), password: new_token() };
    let mut cluster = Cluster::start_on(bus, new_token()).await;
    cluster.add_worker("w", Arc::new(Synthetic::new())).await;
    wait::until("the worker", LIMIT, || async {
        let workers = cluster.json(&["list", "workers"]).await;
        if workers.as_array().is_some_and(|all| all.len() == 1) { Ok(()) } else { Err(workers) }
    })
    .await;
    for (arguments, hint) in [
        (&["create", "service-account", "ci", "--roles", "compute:read"][..], "make a user ci there"),
        (&["update", "service-account", "ci", "--ttl", "1h"], "change there, too"),
        (&["rotate", "service-account", "ci"], "the new token as its password"),
        (&["delete", "service-account", "ci"], "take the user ci away there"),
        (&["delete", "worker", "w"], "take the user worker/w away there"),
    ] {
        let ran = crate::standin::run(cluster.cli(arguments)).await;
        assert_eq!(ran.code, Some(0), "{arguments:?}: {ran:?}");
        assert!(ran.stderr.contains("NOTE: the NATS server at") && ran.stderr.contains(hint), "{arguments:?}: {ran:?}");
    }
    let token = crate::standin::run(cluster.cli(&["get", "bootstrap-token"])).await;
    assert!(token.code == Some(1) && token.stderr.contains("NATS server of its operator"), "{token:?}");
    // With a broker of its own, the controller sees to it all.
    let own = Cluster::start().await;
    let ran = crate::standin::run(own.cli(&["create", "service-account", "ci", "--roles", "compute:read"])).await;
    assert!(ran.code == Some(0) && !ran.stderr.contains("NOTE"), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forward_that_nobody_may_use_does_not_begin() {
    let cluster = cluster().await;
    let token = cluster.run(&["create", "service-account", "eve", "--roles", "compute:read"]).await;
    let eve = cluster.access.of("eve", &Secret::new(token.trim()));
    let home = cluster.dir.path().join("home");
    let refused = crate::standin::run(eve.cli(&home, &["port-forward", "vm", "a", "22"])).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("compute:connect"), "{refused:?}");
    let missing = crate::standin::run(cluster.cli(&["port-forward", "vm", "none", "22"])).await;
    assert!(missing.code == Some(1) && missing.stderr.contains("no VM named none"), "{missing:?}");
}
