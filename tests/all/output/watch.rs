//! `orchard list … --watch`, into a pipe and on a terminal, across a restart of the controller.

use std::process::Stdio;
use std::sync::Arc;

use orchard::worker::runtime::synthetic::Synthetic;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::harness::{Cluster, LIMIT, succeed};
use crate::processes::{APART, controller};
use crate::terminal::{Terminal, client};

/// A watch whose lines are read.
struct Watching {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    seen: Vec<String>,
}

impl Watching {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines, seen: Vec::new() }
    }

    /// The first line from here on that `is` what is waited for.
    async fn until(&mut self, is: impl Fn(&str) -> bool) -> String {
        loop {
            let next = tokio::time::timeout(LIMIT, self.lines.next_line()).await;
            let line = next.unwrap_or_else(|_| panic!("nothing new after {:?}", self.seen)).unwrap().unwrap();
            self.seen.push(line.clone());
            if is(&line) {
                return line;
            }
        }
    }

    /// Presses Ctrl-C, and yields the exit code.
    async fn end(mut self) -> Option<i32> {
        let pid = Pid::from_raw(self.child.id().unwrap().cast_signed()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        tokio::time::timeout(LIMIT, self.child.wait()).await.expect("it does not end").unwrap().code()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_gets_each_row_again_when_it_changes() {
    let mut cluster = Cluster::start().await;
    let mut vms = Watching::start(cluster.cli(&["list", "vms", "--watch"]));
    let mut workers = Watching::start(cluster.cli(&["list", "workers", "-w", "-o", "name"]));
    let mut records = Watching::start(cluster.cli(&["list", "vms", "-w", "-o", "json"]));
    vms.until(|line| line.starts_with("Name  Created")).await;
    cluster.add_worker("w1", Arc::new(Synthetic::new())).await;
    workers.until(|line| line == "w1").await;
    cluster.run(&["create", "vm", "a", "--image", "any", "--wait"]).await;
    vms.until(|line| line.starts_with("a ") && line.contains(" running ") && line.ends_with(" w1")).await;
    // It may have come to look later than the others.
    records.until(|line| line.contains("ADDED")).await;
    cluster.run(&["delete", "vm", "a"]).await;
    vms.until(|line| line.starts_with("a ") && line.contains(" deleted ")).await;
    let record = records.until(|line| line.contains("DELETED")).await;
    let record: Value = serde_json::from_str(&record).unwrap();
    assert_eq!((&record["type"], &record["object"]["name"]), (&"DELETED".into(), &"a".into()), "{record}");
    let kinds: Vec<Value> = records.seen.iter().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect();
    assert!(kinds[0]["type"] == "ADDED" && kinds[1..kinds.len() - 1].iter().all(|one| one["type"] == "MODIFIED"));
    for watching in [vms, workers, records] {
        assert_eq!(watching.end().await, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_when_the_controller_was_killed_and_started_again() {
    let dir = tempfile::tempdir().unwrap();
    let (home, data) = (dir.path().join("home"), dir.path().join("controller"));
    let (server, access) = controller(&home, &data, APART, APART).await;
    let (bus, tunnels) = (server.value("bus").replace("tls://", ""), server.value("tunnels"));
    let create = |name: &'static str| succeed(access.cli(&home, &["create", "vm", name, "--image", "any"]));
    create("before").await;
    let mut watching = Watching::start(access.cli(&home, &["list", "vms", "--watch"]));
    watching.until(|line| line.starts_with("before ")).await;
    server.kill().await;
    let _server = controller(&home, &data, &bus, &tunnels).await;
    create("after").await;
    watching.until(|line| line.starts_with("after ")).await;
    assert_eq!(watching.seen.iter().filter(|line| line.starts_with("before ")).count(), 1, "{:?}", watching.seen);
    assert_eq!(watching.end().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_shows_the_list_as_it_is() {
    let Some(python) = client("python") else { return };
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", Arc::new(Synthetic::new())).await;
    cluster.run(&["create", "vm", "a", "--image", "any", "--wait"]).await;
    let mut terminal = Terminal::start(python, &cluster.cli(&["list", "vms", "--watch"]));
    terminal.until("the list", |screen| screen.lines[1].starts_with("a ") && screen.has(" running ")).await;
    cluster.run(&["create", "vm", "b-with-a-name-that-is-long", "--image", "any", "--labels", "role=none"]).await;
    let screen = terminal.until("the other one", |screen| screen.has("b-with-a-name-that-is-long")).await;
    assert_eq!(screen.lines.iter().filter(|line| line.starts_with("Name ")).count(), 1, "{screen:?}");
    assert!(screen.lines.iter().all(|line| line.chars().count() <= 80), "{screen:?}");
    assert!(screen.has(" Status ") && !screen.has("Restart policy"), "what matters least is left out: {screen:?}");
    terminal.resize(6, 40).await;
    for name in ["c", "d", "e", "f"] {
        cluster.run(&["create", "vm", name, "--image", "any", "--labels", "role=none"]).await;
    }
    let screen = terminal.until("what fits", |screen| screen.has("… and 3 more")).await;
    assert!(screen.lines[0].starts_with("Name "), "{screen:?}");
    cluster.run(&["delete", "vm", "c", "d", "e", "f", "b-with-a-name-that-is-long"]).await;
    terminal
        .until("those that are left", |screen| screen.lines.iter().filter(|line| !line.is_empty()).count() == 2)
        .await;
    terminal.keys("\x03").await;
    let screen = terminal.until("the end", |screen| screen.ended.is_some()).await;
    assert_eq!((screen.ended, screen.restored), (Some(0), true), "{screen:?}");
    assert!(screen.lines[1].starts_with("a "), "it stays to be read: {screen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_at_a_terminal_sees_for_how_long() {
    let Some(python) = client("python") else { return };
    let cluster = Cluster::start().await;
    let create = ["create", "vm", "a", "--image", "any", "--wait", "--timeout", "5m"];
    let mut terminal = Terminal::start(python, &cluster.cli(&create));
    let counted = |line: &String| {
        let before = line.split_once("  VM a is pending").map(|(before, _)| before.split_whitespace().last());
        let seconds = before.flatten().and_then(|time| time.strip_suffix('s')?.parse().ok());
        seconds.is_some_and(|seconds: u64| seconds >= 1)
    };
    terminal.until("the seconds before the state", |screen| screen.lines.iter().any(counted)).await;
    terminal.keys("\x03").await;
    let screen = terminal.until("the end", |screen| screen.ended.is_some()).await;
    assert_eq!(screen.ended, Some(130), "{screen:?}");
}
