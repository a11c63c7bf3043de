//! What startup scripts say while the controller cannot be reached: nothing of it is lost, nothing comes twice.

use orchard::model::vm::SCRIPT_INTERRUPTED;
use serde_json::Value;

use crate::chaos::link::Mode;
use crate::chaos::node::Node;
use crate::harness::{Cluster, LIMIT};
use crate::wait::until;

/// A cluster with a worker on a machine of its own, and a VM whose script has said one line, just before its link is cut.
async fn cut_off(rest: &str) -> (Cluster, Node) {
    let cluster = Cluster::start().await;
    let bus = cluster.access.url.replace("tls://", "");
    let node = Node::join(&cluster.access, bus, "w1", cluster.dir.path().join("far")).await;
    // It goes on once the link is cut, also where that takes a while.
    let script = format!("echo first; sleep 20; {rest}");
    cluster.run(&["create", "vm", "a", "--image", "i", "--startup-script", &script]).await;
    until("the first line", LIMIT, || async {
        let lines = said(&cluster).await;
        if lines == ["first"] { Ok(()) } else { Err(lines) }
    })
    .await;
    node.link.set(Mode::Cut);
    (cluster, node)
}

async fn said(cluster: &Cluster) -> Vec<String> {
    cluster.run(&["logs", "vm", "a"]).await.lines().map(str::to_owned).collect()
}

/// The only file in a folder of the worker's data.
fn only(node: &Node, folder: &str, ending: &str) -> Option<String> {
    let names = node.left_in(folder);
    let name = names.iter().find(|name| name.ends_with(ending))?;
    std::fs::read_to_string(node.data().join(folder).join(name)).ok()
}

async fn until_it_is(cluster: &Cluster, what: &str, is: impl Fn(&Value) -> bool) {
    until(what, LIMIT, || async {
        let vm = cluster.json(&["get", "vm", "a"]).await;
        if is(&vm) { Ok(()) } else { Err(vm) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_goes_on_and_ends_while_nobody_listens_and_all_of_it_is_told_later_by_another_process() {
    let (cluster, mut node) = cut_off("seq 500; echo last >&2").await;
    until("the script to end", LIMIT, || async {
        match only(&node, "copies", ".script") {
            Some(note) if note == "done" => Ok(()),
            other => Err(other),
        }
    })
    .await;
    assert_eq!(said(&cluster).await, ["first"], "the controller cannot be reached");
    node.kill().await;
    assert!(only(&node, "logs", ".lines").is_some_and(|text| text.contains("last")));
    node.link.set(Mode::Open);
    node.start().await;
    until_it_is(&cluster, "the VM to be ready", |vm| vm["ready"] == true).await;
    let numbers = (1..=500).map(|n| n.to_string());
    let expected: Vec<String> = ["first".to_owned()].into_iter().chain(numbers).chain(["last".to_owned()]).collect();
    let mut lines = said(&cluster).await;
    // The two streams have no order between them.
    lines.sort_by_key(|line| line == "last");
    assert_eq!(lines, expected);
    let late = cluster.run(&["logs", "vm", "a", "--output", "json"]).await;
    assert_eq!(late.lines().count(), expected.len());
    until("the spool to be gone", LIMIT, || async {
        let left = node.left_in("logs");
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_was_cut_short_with_its_worker_has_told_all_that_it_said() {
    let (cluster, mut node) = cut_off("echo second; sleep 600; echo never").await;
    until("the second line on the disk", LIMIT, || async {
        let text = only(&node, "logs", ".lines");
        if text.as_ref().is_some_and(|text| text.contains("second")) { Ok(()) } else { Err(text) }
    })
    .await;
    node.kill().await;
    node.link.set(Mode::Open);
    node.start().await;
    until_it_is(&cluster, "it to be told", |vm| vm["status_message"] == SCRIPT_INTERRUPTED).await;
    let vm = cluster.json(&["get", "vm", "a"]).await;
    assert_eq!((&vm["status"], &vm["ready"]), (&"running".into(), &false.into()), "{vm}");
    assert_eq!(said(&cluster).await, ["first", "second"]);
    cluster.run(&["delete", "vm", "a"]).await;
    until("nothing to be left", LIMIT, || async {
        let left = ["logs", "copies"].map(|folder| node.left_in(folder));
        if left.iter().all(Vec::is_empty) { Ok(()) } else { Err(left) }
    })
    .await;
}
