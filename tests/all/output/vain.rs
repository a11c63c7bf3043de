//! What is waited for in vain, or comes only after a while.

use std::sync::Arc;

use orchard::worker::runtime::synthetic::Synthetic;
use orchard::worker::runtime::synthetic::behaviour::Step;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::contexts::in_terminal;
use crate::harness::{Cluster, LIMIT};
use crate::standin::{Ran, run};
use crate::wait::until;

/// Runs it; it fails and says all of `said`.
async fn fails(cluster: &Cluster, arguments: &[&str], said: &[&str]) {
    told(run(cluster.cli(arguments)).await, said);
}

#[track_caller]
fn told(ran: Ran, said: &[&str]) {
    assert!(ran.code == Some(1) && said.iter().all(|said| ran.stderr.contains(said)), "{said:?}: {ran:?}");
}

async fn field(cluster: &Cluster, what: [&str; 2], field: &str, is: impl Fn(&serde_json::Value) -> bool) {
    until(field, LIMIT, || async {
        let seen = cluster.json(&["get", what[0], what[1]]).await;
        if is(&seen[field]) { Ok(()) } else { Err(seen) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_is_told_when_the_time_is_over_or_nothing_will_come() {
    let mut cluster = Cluster::start().await;
    let runtime = Synthetic::new();
    let host = runtime.host().clone();
    cluster.add_worker("w1", Arc::new(runtime)).await;
    for name in ["a", "b"] {
        cluster.run(&["create", "vm", name, "--image", "any", "--wait"]).await;
    }
    cluster.run(&["create", "vm", "waits", "--image", "any", "--labels", "role=none"]).await;
    host.adjust(|behaviour| behaviour.hang.extend([Step::Stop, Step::Pull]));

    let proxy = ["proxy", "vm", "waits", "22"];
    fails(&cluster, &proxy, &["VM waits did not accept a connection to port 22: ", "; --wait gives it time"]).await;
    let proxy = ["proxy", "vm", "--wait=1s", "waits", "22"];
    fails(&cluster, &proxy, &["did not accept a connection to port 22 within 1s: ", "; --wait gives it more time"])
        .await;
    let create = ["create", "vm", "more", "--image", "any", "--labels", "role=none", "--wait", "--timeout", "1s"];
    fails(
        &cluster,
        &create,
        &["VM more is not ready after 1s: pending: ", "; it goes on, `orchard get vm more` shows how"],
    )
    .await;
    let pull = ["pull", "image", "other", "--wait", "--timeout", "1s"];
    fails(
        &cluster,
        &pull,
        &["not all workers have it after 1s; last: ", "; it goes on by itself, see `orchard list pulls`"],
    )
    .await;
    fails(
        &cluster,
        &["audit", "--after", "99999999"],
        &[
            "record #99999999 was already seen, but the controller's newest is #",
            ": it runs on other data now; start again without --after",
        ],
    )
    .await;

    let limit = ["drain", "worker", "w1", "--wait=1s"];
    fails(
        &cluster,
        &limit,
        &["worker w1 is not drained after 1s; the drain goes on, until `orchard resume worker w1`"],
    )
    .await;
    cluster.run(&["resume", "worker", "w1"]).await;
    let (drain, ()) = tokio::join!(run(cluster.cli(&["drain", "worker", "w1", "--wait=1h"])), async {
        field(&cluster, ["worker", "w1"], "drain", |drain| !drain.is_null()).await;
        cluster.run(&["resume", "worker", "w1"]).await;
    });
    told(drain, &["somebody has ended the drain of worker w1 (`orchard events --worker w1`)"]);

    let stop = ["stop", "vm", "a", "--wait", "--timeout", "1s"];
    fails(&cluster, &stop, &["VM a is not off after 1s; last: ", "; it goes on by itself"]).await;
    let (stop, ()) = tokio::join!(run(cluster.cli(&["stop", "vm", "b", "--wait"])), async {
        field(&cluster, ["vm", "b"], "powerState", |state| state == "stopped").await;
        cluster.run(&["delete", "vm", "b"]).await;
    });
    told(stop, &["VM b was deleted while it was waited for"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_connection_waits_for_its_vm_if_it_shall() {
    let mut cluster = Cluster::start().await;
    cluster.run(&["create", "vm", "a", "--image", "any", "--worker", "late"]).await;
    let mut forward = cluster.cli(&["port-forward", "vm", "--wait", "5m", "a", "0:80"]);
    let forward = forward.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut forward = forward.kill_on_drop(true).spawn().unwrap();
    let mut said = [0; 64];
    let read = tokio::time::timeout(LIMIT, forward.stdout.as_mut().unwrap().read(&mut said)).await;
    let line = String::from_utf8_lossy(&said[..read.unwrap().unwrap()]).into_owned();
    let local = line.strip_prefix("forwarding ").unwrap().split(' ').next().unwrap();
    let mut stream = TcpStream::connect(local).await.unwrap();
    stream.write_all(b"there").await.unwrap();
    cluster.add_worker("late", Arc::new(Synthetic::new())).await;
    let mut back = [0; 5];
    tokio::time::timeout(LIMIT, stream.read_exact(&mut back)).await.expect("no answer").unwrap();
    assert_eq!(&back, b"there");

    let there = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = there.local_addr().unwrap();
    let said = format!("cannot listen on {taken}; another local port may be free");
    fails(&cluster, &["port-forward", "vm", "a", &format!("{taken}:80")], &[&said]).await;
    let why = "a terminal cannot show a picture: send the standard output to a file";
    let shown = in_terminal(cluster.cli(&["vnc", "vm", "a", "--screenshot", "-"]), &[]).await;
    assert!(shown.code == Some(2) && shown.stdout.contains(why), "{shown:?}");

    drop(stream);

    // One that is switched off comes back by nothing but a command: nobody waits for it.
    cluster.run(&["stop", "vm", "a", "--wait"]).await;
    let off = "VM a is stopped; `orchard start vm a` switches it on";
    let mut stream = TcpStream::connect(local).await.unwrap();
    let mut told = BufReader::new(forward.stderr.take().unwrap()).lines();
    let told = async {
        while let Some(line) = told.next_line().await.unwrap() {
            if line == format!("a:80: {off}") {
                return;
            }
        }
        panic!("it has ended");
    };
    tokio::time::timeout(LIMIT, told).await.expect("it waits");
    let ended = tokio::time::timeout(LIMIT, stream.read(&mut back)).await.expect("it is not ended");
    assert!(ended.is_err(), "a reset");
    for wait in [
        &["port-forward", "vm", "--wait", "5m", "a", "0:80"][..],
        &["proxy", "vm", "--wait=5m", "a", "80"],
        &["ssh", "vm", "--wait", "5m", "a", "true"],
        &["exec", "vm", "--wait", "5m", "a", "--", "true"],
        &["vnc", "vm", "--wait", "5m", "a", "--no-viewer"],
        &["ip", "vm", "--wait=5m", "a"],
    ] {
        tokio::time::timeout(LIMIT, fails(&cluster, wait, &[off])).await.expect("it waits");
    }
}
