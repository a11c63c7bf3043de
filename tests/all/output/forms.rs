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

/// What is made, changed or differs from one moment to the next: printed once in each form, in this order.
const MADE: &[&[&str]] = &[
    &["get", "bootstrap-token"],
    &["list", "bootstrap-tokens"],
    &["list", "bootstrap-tokens", "-o", "wide"],
    &["list", "bootstrap-tokens", "-o", "json"],
    &["list", "bootstrap-tokens", "-q"],
    &["get", "bootstrap-token", "-o", "json"],
    &["get", "bootstrap-token", "--worker", "w9", "--uses", "2", "-o", "yaml"],
    &["get", "bootstrap-token", "-q"],
    &["create", "service-account", "ann", "--roles", "compute:read"],
    &["create", "service-account", "bob", "--roles", "compute:read", "-q"],
    &["create", "service-account", "eve", "--roles", "compute:read", "-o", "json"],
    &["create", "service-account", "joe", "--roles", "compute:read", "--token", TOKEN],
    &["create", "service-account", "kim", "--roles", "compute:read", "--token", TOKEN, "-q"],
    &["rotate", "service-account", "ann"],
    &["rotate", "service-account", "ann", "-o", "json"],
    &["rotate", "service-account", "ann", "-o", "name"],
    &["pull", "image", IMAGE],
    &["pull", "image", IMAGE, "-o", "json"],
    &["pull", "image", IMAGE, "-q"],
    &["pull", "image", "--cancel", IMAGE],
    &["pull", "image", IMAGE, "-o", "yaml"],
    &["pull", "image", "--cancel", IMAGE, "-o", "json"],
    &["pull", "image", IMAGE, "-q"],
    &["pull", "image", "--cancel", IMAGE, "-q"],
    &["set", "cluster-settings", "--cpu-overcommit", "2"],
    &["controller", "status"],
    &["controller", "status", "-o", "json"],
];
const TOKEN: &str = "a-token-that-was-chosen-by-hand-and-is-long";
const IMAGE: &str = "https://images.example/other.qcow2";

/// What is in each field, in place of the value.
fn kinds(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            // These are of the machine.
            let fields = fields.iter().filter(|(name, _)| *name != "warnings");
            fields.map(|(name, field)| (name.clone(), kinds(field))).collect()
        }
        Value::Array(items) => items.iter().take(1).map(kinds).collect(),
        Value::String(_) => "<text>".into(),
        Value::Number(_) => "<number>".into(),
        Value::Bool(_) | Value::Null => value.clone(),
    }
}

/// Blots out ids of 16 hexadecimal digits.
fn without_ids(text: &str) -> String {
    let hex = |word: &str| word.len() == 16 && word.chars().all(|c| c.is_ascii_hexdigit());
    let ids = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| hex(word));
    ids.fold(text.to_owned(), |text, id| text.replace(id, "<id>"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_is_told_in_every_form_and_a_token_never_gets_lost() {
    let cluster = cluster().await;
    let mut texts = String::new();
    for command in MADE {
        let ran = run(cluster.cli(command)).await;
        assert_eq!(ran.code, Some(0), "{command:?}: {ran:?}");
        assert!(!ran.stdout.contains("null"), "{command:?}: what is not set is left out: {}", ran.stdout);
        let shown = match (command[0], command.contains(&"json") || command.contains(&"yaml")) {
            (_, true) => format!("{:#}", kinds(&serde_saphyr::from_str(&ran.stdout).unwrap())),
            // Of figures that are never the same, only what they are of; what deserves a look differs from machine to machine.
            ("controller", _) => {
                let lines = ran.stdout.lines().filter(|line| !line.starts_with("WARNING"));
                lines.map(|line| line.split("  ").next().unwrap()).collect::<Vec<_>>().join("\n")
            }
            _ => steady_table(&ran.stdout),
        };
        let mut shown: Vec<&str> = shown.lines().collect();
        // They are in the order of their ids, which are random.
        if command[..2] == ["list", "bootstrap-tokens"] && shown[0].starts_with("ID") {
            shown[1..].sort_by_key(|row| without_ids(row));
        }
        let secret = |line: &str| line.len() >= 40 && !line.contains([' ', '/']) && line != TOKEN;
        let shown: Vec<&str> = shown.into_iter().map(|line| if secret(line) { "<secret>" } else { line }).collect();
        texts.push_str(&format!("$ orchard {}\n{}\n{}\n", command.join(" "), shown.join("\n"), ran.stderr));
    }
    let address = cluster.access.url.replace("127.0.0.1", "<address>");
    golden::check(
        "made.txt",
        &golden::steady(&without_ids(&texts), &[(&cluster.access.url, "<url>"), (&address, "<url>")]),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_are_told_of_in_the_forms_of_all_things() {
    let cluster = Cluster::start().await;
    let (url, fingerprint) = (&cluster.access.url, cluster.controller.fingerprint().unwrap().to_string());
    for (name, form) in [("one", "name"), ("two", "json")] {
        let mut create =
            cluster.cli(&["context", "create", url, "--name", name, "--fingerprint", &fingerprint, "-o", form]);
        let token = cluster.access.token.expose();
        create.args(["--service-account-name", "bootstrap-admin", "--service-account-token", token]);
        let made = run(create).await;
        assert!(made.code == Some(0) && made.stderr.is_empty(), "{made:?}");
        match form {
            "name" => assert_eq!(made.stdout, "one\n"),
            _ => {
                let made: Value = serde_json::from_str(&made.stdout).unwrap();
                assert_eq!(
                    (&made["name"], &made["default"], &made["fingerprint"]),
                    (&json!("two"), &json!(false), &json!(fingerprint))
                );
            }
        }
    }
    assert_eq!(cluster.run(&["context", "default", "two", "-q"]).await, "two\n");
    let told = run(cluster.cli(&["context", "default", "one"])).await;
    assert!(told.stdout.is_empty() && told.stderr.contains("context one, which leads to"), "{told:?}");
    // A pipe gets all of it.
    assert!(cluster.run(&["context", "list"]).await.contains(&fingerprint));
    assert_eq!(cluster.json(&["context", "delete", "two"]).await, json!({"name": "two", "deleted": true}));
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
