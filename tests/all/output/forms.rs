//! The forms in which lists and single things are printed, of one small cluster.

use std::sync::Arc;

use orchard::model::vm::Arch;
use orchard::worker::runtime::synthetic::Synthetic;
use orchard::worker::runtime::synthetic::behaviour::Step;
use serde_json::{Value, json};

use super::golden::{self, steady_table, steady_value};
use crate::harness::{Cluster, LIMIT};
use crate::standin::run;
use crate::wait::until;

/// Those of which every form is pinned.
const SHOWN: [&[&str]; 14] = [
    &["list", "vms"],
    &["list", "workers"],
    &["list", "service-accounts"],
    &["list", "images"],
    &["list", "pulls"],
    &["list", "strays"],
    &["list", "execs", "vm", "a"],
    &["get", "vm", "a"],
    &["get", "vm", "waits"],
    &["get", "worker", "w1"],
    &["get", "service-account", "ci"],
    &["get", "cluster-settings"],
    &["explain", "vm", "waits"],
    &["context", "list"],
];

async fn cluster() -> Cluster {
    let mut cluster = Cluster::start().await;
    let runtime = Synthetic::new();
    let host = runtime.host().clone();
    cluster.add_worker("w1", Arc::new(runtime)).await;
    let create =
        ["create", "vm", "a", "--image", "any", "--wait", "--labels", "zone=test", "--startup-script", "echo hi"];
    cluster.run(&create).await;
    host.fail_next(Step::Create, 1, "no such image");
    cluster.run(&["create", "vm", "broken", "--image", "none", "--ttl", "8h", "--priority", "3"]).await;
    cluster.run(&["create", "vm", "waits", "--image", "any", "--labels", "role=ci", "--cpu", "2"]).await;
    cluster.run(&["create", "service-account", "ci", "--roles", "compute:read,compute:write"]).await;
    until("what was asked for", LIMIT, || async {
        let (broken, waits) =
            (cluster.json(&["get", "vm", "broken"]).await, cluster.json(&["get", "vm", "waits"]).await);
        let worker = cluster.json(&["get", "worker", "w1"]).await;
        let said = waits["status_message"].as_str().unwrap_or_default().contains("role=ci");
        match broken["status"] == "failed"
            && said
            && worker["connectable"] == true
            && !worker["path"].is_null()
            && !worker["load"]["cpuPermille"].is_null()
        {
            true => Ok(()),
            false => Err(format!("{broken} {waits} {worker}")),
        }
    })
    .await;
    cluster
}

#[tokio::test(flavor = "multi_thread")]
async fn every_form_says_the_same() {
    let cluster = cluster().await;
    let mut texts = String::new();
    for command in SHOWN {
        let print = async |form: &[&str]| cluster.run(&[command, form].concat()).await;
        texts.push_str(&format!("$ orchard {}\n", command.join(" ")));
        texts.push_str(&steady_table(&print(&[]).await));
        texts.push_str(&format!("\n\n$ orchard {} -o wide\n", command.join(" ")));
        texts.push_str(&steady_table(&print(&["-o", "wide"]).await));
        let mut json: Value = serde_json::from_str(&print(&["-o", "json"]).await).unwrap();
        let mut yaml: Value = serde_saphyr::from_str(&print(&["-o", "yaml"]).await).unwrap();
        steady_value(&mut json);
        steady_value(&mut yaml);
        assert_eq!(json, yaml, "{command:?}");
        texts.push_str(&format!("\n\n$ orchard {} -o json\n{json:#}\n\n", command.join(" ")));
        if command.last() != Some(&"cluster-settings") {
            let names = print(&["-o", "name"]).await;
            assert_eq!(names, print(&["-q"]).await, "{command:?}");
            texts.push_str(&format!("$ orchard {} -o name\n{names}\n", command.join(" ")));
        }
    }
    golden::check(
        "forms.txt",
        &golden::steady(&texts, &[(&cluster.access.url, "<url>"), (Arch::HOST.as_str(), "<arch>")]),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn names_can_be_piped_into_other_commands() {
    let cluster = Cluster::start().await;
    for name in ["a", "b"] {
        assert_eq!(cluster.run(&["create", "vm", name, "--image", "any", "-q"]).await, format!("{name}\n"));
    }
    let names = cluster.run(&["list", "vms", "-q"]).await;
    let names: Vec<&str> = names.lines().collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(cluster.run(&[&["delete", "vm", "-o", "name"][..], &names].concat()).await, "a\nb\n");
    let again = run(cluster.cli(&["delete", "vm", "a", "--ignore-missing", "-o", "yaml"])).await;
    assert_eq!((again.code, again.stdout.as_str()), (Some(0), "- name: a\n  deleted: false\n"), "{again:?}");
    cluster.run(&["create", "service-account", "ci", "--roles", "compute:read"]).await;
    assert_eq!(cluster.run(&["delete", "service-account", "ci", "-q"]).await, "ci\n");
    let id = cluster.json(&["get", "bootstrap-token"]).await["id"].as_str().unwrap().to_owned();
    assert_eq!(cluster.run(&["list", "bootstrap-tokens", "-q"]).await, format!("{id}\n"));
    assert_eq!(cluster.run(&["delete", "bootstrap-token", &id, "-q"]).await, format!("{id}\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_field_is_printed_alone() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", Arc::new(Synthetic::new())).await;
    let script = "echo one\necho two";
    cluster
        .run(&["create", "vm", "a", "--image", "any", "--wait", "--labels", "zone=test", "--startup-script", script])
        .await;
    for (field, value) in [
        ("status", "running"),
        ("StatusMessage", "ready"),
        ("worker", "w1"),
        ("labels/zone", "test"),
        ("startup_script/script_content", script),
        ("cpu", "0"),
        ("username", ""),
    ] {
        assert_eq!(cluster.run(&["get", "vm", &format!("a/{field}")]).await, format!("{value}\n"), "{field}");
    }
    assert_eq!(cluster.json(&["get", "vm", "a/conditions/0"]).await, json!({"type": "scheduled", "state": "true"}));
    assert_eq!(cluster.run(&["get", "vm", "a/ready", "-o", "yaml"]).await, "true\n");
    assert_eq!(cluster.run(&["get", "worker", "w1/machineID"]).await, "test-w1\n");
    let roles = cluster.json(&["get", "service-account", "bootstrap-admin/roles"]).await;
    assert!(roles.as_array().is_some_and(|roles| roles.contains(&json!("admin:write"))), "{roles}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_one_by_one_does_so_in_every_form() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", Arc::new(Synthetic::new())).await;
    let create = ["create", "vm", "a", "--image", "any", "--wait", "--startup-script", "echo hello"];
    cluster.run(&create).await;
    for command in [&["events", "--vm", "a"][..], &["audit"], &["logs", "vm", "a"]] {
        let json = cluster.run(&[command, &["-o", "json"]].concat()).await;
        let yaml = cluster.run(&[command, &["-o", "yaml"]].concat()).await;
        let json: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let yaml: Vec<Value> = serde_saphyr::from_multiple(&yaml).unwrap();
        assert!(!json.is_empty() && yaml.starts_with(&json), "{command:?}: {json:?} {yaml:?}");
    }
    let names = cluster.run(&["events", "--vm", "a", "-q"]).await;
    assert!(names.lines().count() > 2 && names.lines().all(|name| name == "a"), "{names}");
    assert!(cluster.run(&["audit", "-o", "name"]).await.lines().any(|name| name == "bootstrap-admin"));
    let wide = cluster.run(&["logs", "vm", "a", "-o", "wide"]).await;
    assert!(wide.contains("Z  #") && wide.contains("  hello\n"), "{wide}");
    assert!(cluster.run(&["logs", "vm", "a"]).await.contains("hello\n"));
}
