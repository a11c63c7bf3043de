//! What people meet who use the command line for the first time: waits in vain end at once, and errors say what to do next.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orchard::worker::runtime::synthetic::Synthetic;
use orchard::worker::runtime::synthetic::behaviour::{Delay, Step};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};

use crate::harness::{Cluster, LIMIT};
use crate::standin::{Ran, run};
use crate::wait::until;

async fn cluster() -> (Cluster, Arc<Synthetic>) {
    let mut cluster = Cluster::start().await;
    let runtime = Arc::new(Synthetic::new());
    cluster.add_worker("w1", runtime.clone()).await;
    until("the worker is online", LIMIT, || async {
        let workers = cluster.json(&["list", "workers"]).await;
        if workers[0]["state"] == "online" { Ok(()) } else { Err(workers.to_string()) }
    })
    .await;
    (cluster, runtime)
}

async fn ask(cluster: &Cluster, arguments: &[&str]) -> Ran {
    run(cluster.cli(arguments)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_nothing_can_take_says_so_when_it_is_made() {
    let (cluster, _) = cluster().await;
    for (name, options, why) in [
        ("a", ["--worker", "nope"], "VM a waits: no worker named nope is known"),
        ("b", ["--labels", "a=b"], "VM b waits: of 1 worker none fits: 1 without label a=b"),
        ("c", ["--cpu", "9999"], "VM c waits: of 1 worker none fits: 1 too small for 9999 cores (the largest has "),
    ] {
        let made = ask(&cluster, &[&["create", "vm", name, "--image", "any"], &options[..]].concat()).await;
        assert!(made.code == Some(0) && made.stderr.contains(why), "{made:?}");
    }
    let made = ask(&cluster, &["create", "vm", "d", "--image", "any"]).await;
    assert!(made.code == Some(0) && !made.stderr.contains("waits"), "{made:?}");
    let again = ask(&cluster, &["create", "vm", "d", "--image", "any"]).await;
    assert!(again.code == Some(1) && again.stderr.contains("`orchard get vm d` shows it"), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_a_guest_that_is_switched_off() {
    let (cluster, _) = cluster().await;
    cluster.run(&["create", "vm", "first", "--image", "any", "--wait"]).await;
    cluster.run(&["stop", "vm", "first", "--wait"]).await;
    let began = Instant::now();
    let refused = ask(&cluster, &["ssh", "vm", "first", "true"]).await;
    let why = "error: VM first is stopped; `orchard start vm first` switches it on";
    assert!(refused.code == Some(1) && refused.stderr.trim() == why, "{refused:?}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_that_end_badly_say_how_it_goes_on() {
    let (cluster, runtime) = cluster().await;
    runtime.host().fail_next(Step::Create, 1, "no such image");
    let failed = ask(&cluster, &["create", "vm", "bad", "--image", "any", "--wait"]).await;
    let last = failed.stderr.lines().last().unwrap();
    assert!(last.starts_with("error: VM bad failed: ") && last.contains("no such image"), "{failed:?}");
    assert!(last.ends_with("; it keeps its name until `orchard delete vm bad`"), "{failed:?}");

    runtime.host().adjust(|host| host.boot = Delay::Fixed(LIMIT * 10));
    let late = ask(&cluster, &["create", "vm", "slow", "--image", "any", "--wait", "--timeout", "1s"]).await;
    let last = late.stderr.lines().last().unwrap();
    assert!(last.starts_with("error: VM slow is not ready after 1s: "), "{late:?}");
    assert!(last.ends_with("; it goes on, `orchard get vm slow` shows how"), "{late:?}");

    let mut command = cluster.cli(&["create", "vm", "left", "--image", "any", "--wait"]);
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut told = String::new();
    while !told.contains("VM left is ") {
        assert!(stderr.read_line(&mut told).await.unwrap() > 0, "{told}");
    }
    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    let status = tokio::time::timeout(LIMIT, child.wait()).await.unwrap().unwrap();
    stderr.read_to_string(&mut told).await.unwrap();
    assert_eq!(status.code(), Some(130), "{told}");
    assert!(told.ends_with("VM left goes on; `orchard get vm left` shows how far it is\n"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_change_nothing_are_told_apart() {
    let (cluster, _) = cluster().await;
    cluster.run(&["create", "vm", "a", "--image", "any", "--wait"]).await;
    let nothing = ask(&cluster, &["update", "vm", "a"]).await;
    assert!(nothing.code == Some(2) && nothing.stderr.contains("--priority 5"), "{nothing:?}");
    let same = ask(&cluster, &["update", "vm", "a", "--ttl", "0"]).await;
    assert!(same.code == Some(0) && same.stderr.contains("VM a is as it was"), "{same:?}");
    let other = ask(&cluster, &["update", "vm", "a", "--priority", "3"]).await;
    assert!(other.code == Some(0) && other.stderr.contains("VM a is changed"), "{other:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_events_are_shown() {
    let (cluster, _) = cluster().await;
    cluster.run(&["create", "vm", "a", "--image", "any", "--wait"]).await;
    let all = cluster.run(&["events"]).await;
    let last: Vec<&str> = all.lines().rev().take(2).collect();
    let shown = cluster.run(&["events", "-n", "2"]).await;
    assert_eq!(shown.lines().rev().collect::<Vec<_>>(), last, "{all}");
    assert_eq!(cluster.run(&["events", "--tail", "0"]).await, "");
    let created = cluster.run(&["events", "--tail", "1", "--type", "created"]).await;
    assert!(created.lines().count() == 1 && created.contains("vm/a  created"), "{created}");
    let wrong = ask(&cluster, &["logs", "vm", "a", "--tail", "x"]).await;
    assert!(wrong.code == Some(2) && wrong.stderr.contains("not a whole number from 0 up"), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_cannot_end_says_who_stays_and_why() {
    let (cluster, _) = cluster().await;
    cluster.run(&["create", "vm", "a", "--image", "any", "--worker", "w1", "--wait"]).await;
    let waits = ask(&cluster, &["drain", "worker", "w1", "--wait=0s"]).await;
    assert_eq!(waits.code, Some(1), "{waits:?}");
    assert!(waits.stderr.contains("VM a stays until it ends by itself; --deadline says when"), "{waits:?}");
    assert!(waits.stderr.contains("the drain goes on, until `orchard resume worker w1`"), "{waits:?}");
    let stays = ask(&cluster, &["drain", "worker", "w1", "--deadline", "0", "--wait=0s"]).await;
    assert!(stays.stderr.contains("VM a cannot go elsewhere: of 1 worker none fits: 1 "), "{stays:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_right_after_its_last_vm() {
    let (cluster, runtime) = cluster().await;
    cluster.run(&["create", "vm", "a", "--image", "any", "--wait"]).await;
    runtime.host().adjust(|host| host.delete = Delay::Fixed(Duration::from_secs(1)));
    cluster.run(&["delete", "vm", "a"]).await;
    cluster.run(&["delete", "worker", "w1"]).await;
}
