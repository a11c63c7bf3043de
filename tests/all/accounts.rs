//! Service accounts, bootstrap tokens and workers' keys, as an operator handles them on the command line.

use std::sync::Arc;

use orchard::bus::client::{REQUEST_TIMEOUT, Trust};
use orchard::config::join::BootstrapToken;
use orchard::worker::runtime::synthetic::Synthetic;
use serde_json::json;

use crate::harness::{Cluster, LIMIT};
use crate::standin::{Ran, run, run_with, secret};
use crate::wait;

/// A command as the account `name` with `token`.
async fn as_account(cluster: &Cluster, name: &str, token: &str, arguments: &[&str]) -> Ran {
    let mut command = cluster.cli(arguments);
    command.env("ORCHARD_SERVICE_ACCOUNT_NAME", name).env("ORCHARD_SERVICE_ACCOUNT_TOKEN", token);
    run(command).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_made_changed_rotated_and_deleted_and_its_token_is_shown_once() {
    let cluster = Cluster::start().await;
    let roles = ["--roles", "compute:read,admin:read", "--roles", "compute:write"];
    let token = cluster.run(&[&["create", "service-account", "ci"], &roles[..]].concat()).await;
    let token = token.trim();
    assert!(token.len() >= 43 && !token.contains(char::is_whitespace), "the token alone is on standard output");
    let account = cluster.json(&["get", "service-account", "ci"]).await;
    assert_eq!(account["roles"], json!(["compute:read", "compute:write", "admin:read"]));
    let list = cluster.run(&["list", "service-accounts"]).await;
    assert!(list.contains("bootstrap-admin") && list.contains("compute:read, compute:write, admin:read"), "{list}");
    for shown in [account.to_string(), list, cluster.json(&["list", "service-accounts"]).await.to_string()] {
        assert!(!shown.contains(token) && !shown.contains("hash"), "{shown}");
    }
    assert_eq!(as_account(&cluster, "ci", token, &["list", "vms"]).await.code, Some(0));
    let taken = run(cluster.cli(&["create", "service-account", "ci", "--roles", "compute:read"])).await;
    assert!(taken.code == Some(1) && taken.stdout.is_empty(), "{taken:?}");

    let updated = cluster.json(&["update", "service-account", "ci", "--roles", "compute:read", "--ttl", "30d"]).await;
    assert_eq!((&updated["roles"], updated["expiresAt"].is_string()), (&json!(["compute:read"]), true));
    let updated = cluster.json(&["update", "service-account", "ci", "--no-expiry"]).await;
    assert_eq!((&updated["roles"], &updated["expiresAt"]), (&json!(["compute:read"]), &json!(null)));
    let rotated = cluster.run(&["rotate", "service-account", "ci"]).await;
    assert_ne!(rotated.trim(), token);
    let old = as_account(&cluster, "ci", token, &["list", "vms"]).await;
    assert!(old.code == Some(1) && old.stderr.contains("token"), "{old:?}");
    assert_eq!(as_account(&cluster, "ci", rotated.trim(), &["list", "vms"]).await.code, Some(0));

    cluster.run(&["delete", "service-account", "ci"]).await;
    assert_eq!(as_account(&cluster, "ci", rotated.trim(), &["list", "vms"]).await.code, Some(1));
    assert_eq!(run(cluster.cli(&["delete", "service-account", "ci"])).await.code, Some(1));
    cluster.run(&["delete", "service-account", "ci", "--ignore-missing"]).await;

    let chosen = secret();
    let own = cluster.cli(&["create", "service-account", "own", "--roles", "compute:read", "--token-stdin"]);
    let made = run_with(own, &chosen).await;
    assert_eq!((made.code, made.stdout.as_str()), (Some(0), ""), "{made:?}");
    assert_eq!(as_account(&cluster, "own", &chosen, &["events"]).await.code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_role_is_named_at_once() {
    let cluster = Cluster::start().await;
    let token = cluster.run(&["create", "service-account", "dj", "--roles", "compute:connect"]).await;
    for (arguments, role) in [
        (&["list", "vms"][..], "compute:read"),
        (&["events", "--follow", "--after", "0"], "compute:read"),
        (&["create", "vm", "a", "--image", "any"], "compute:write"),
        (&["delete", "worker", "w"], "compute:write"),
        (&["list", "service-accounts"], "admin:read"),
        (&["audit"], "admin:read"),
        (&["get", "bootstrap-token"], "admin:write"),
        (&["rotate", "service-account", "dj"], "admin:write"),
    ] {
        let started = std::time::Instant::now();
        let refused = as_account(&cluster, "dj", token.trim(), arguments).await;
        assert!(refused.code == Some(1) && refused.stderr.contains(role), "{arguments:?}: {refused:?}");
        assert!(refused.stderr.contains("dj") && refused.stdout.is_empty(), "{refused:?}");
        // The whole list: it replaces the roles that there are.
        let grant = refused.stderr.split_once("`orchard update service-account dj --roles ").map(|(_, rest)| rest);
        let grant: Vec<&str> = grant.and_then(|rest| rest.split('`').next()).unwrap_or_default().split(',').collect();
        assert!(grant.len() == 2 && grant.contains(&"compute:connect") && grant.contains(&role), "{refused:?}");
        // Not after the deadline of a request that nobody answers.
        assert!(started.elapsed() < REQUEST_TIMEOUT, "{arguments:?} took {:?}", started.elapsed());
    }
    let me = as_account(&cluster, "dj", token.trim(), &["version", "--controller"]).await;
    assert_eq!(me.code, Some(0), "{me:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_token_is_one_string_that_leads_to_the_controller() {
    let cluster = Cluster::start().await;
    let made = run(cluster.cli(&["get", "bootstrap-token", "--ttl", "1h", "--uses", "2"])).await;
    assert_eq!((made.code, made.stdout.lines().count()), (Some(0), 1), "{made:?}");
    assert!(made.stderr.contains("this machine only"), "a loopback address is warned of: {made:?}");
    let token: BootstrapToken = made.stdout.parse().unwrap();
    assert_eq!(token.url, cluster.access.url);
    let Trust::Certificate(fingerprint) = cluster.access.trust else { panic!("no certificate") };
    assert_eq!(token.fingerprint, Some(fingerprint));
    let elsewhere = run(cluster.cli(&["get", "bootstrap-token", "--url", "ctl.example.com"])).await;
    let token: BootstrapToken = elsewhere.stdout.parse().unwrap();
    assert_eq!((token.url.as_str(), token.fingerprint), ("tls://ctl.example.com:4222", Some(fingerprint)));
    assert!(!elsewhere.stderr.contains("WARNING"), "{elsewhere:?}");
    let too_long = run(cluster.cli(&["get", "bootstrap-token", "--ttl", "9999d"])).await;
    assert_eq!((too_long.code, too_long.stdout.as_str()), (Some(2), ""), "{too_long:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bootstrap_tokens_are_listed_and_taken_back_and_both_is_on_record() {
    let cluster = Cluster::start().await;
    let made = run(cluster.cli(&["get", "bootstrap-token", "--uses", "3", "--worker", "mini-1"])).await;
    let token: BootstrapToken = made.stdout.parse().unwrap();
    let id = token.id.as_str();
    assert!(made.stderr.contains(id), "{made:?}");
    assert!(made.stderr.contains(&cluster.access.url) && made.stderr.contains("--url"), "{made:?}");
    let list = cluster.json(&["list", "bootstrap-tokens"]).await;
    let seen = &list[0];
    assert_eq!((&seen["id"], &seen["createdBy"]), (&json!(id), &json!("bootstrap-admin")), "{list}");
    assert_eq!((&seen["usesLeft"], &seen["worker"]), (&json!(3), &json!("mini-1")), "{list}");
    let table = cluster.run(&["list", "bootstrap-tokens"]).await;
    for shown in [list.to_string(), table] {
        assert!(shown.contains(id) && !shown.contains(token.secret.expose()) && !shown.contains("hash"), "{shown}");
    }
    assert_eq!(cluster.run(&["list", "bootstrap-tokens", "-q"]).await.trim(), id);
    cluster.run(&["delete", "bootstrap-token", id]).await;
    assert_eq!(cluster.json(&["list", "bootstrap-tokens"]).await, json!([]));
    let again = run(cluster.cli(&["delete", "bootstrap-token", id])).await;
    assert!(again.code == Some(1) && again.stderr.contains("list bootstrap-tokens"), "{again:?}");
    cluster.run(&["delete", "bootstrap-token", id, "--ignore-missing"]).await;
    // Whoever takes the token itself for its id does not have it shown.
    let whole = run(cluster.cli(&["delete", "bootstrap-token", made.stdout.trim()])).await;
    assert!(whole.code == Some(2) && whole.stderr.contains("16 hexadecimal"), "{whole:?}");
    assert!(!whole.stderr.contains(token.secret.expose()), "{whole:?}");
    let trail = cluster.run(&["audit", "-o", "json"]).await;
    let records = trail.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let deleted = |record: &serde_json::Value| record["verb"] == "bootstrap-token.delete" && record["target"] == id;
    assert!(records.filter(deleted).any(|record| record["outcome"] == "done"), "{trail}");
    assert!(!trail.contains(token.secret.expose()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_worker_is_out_and_its_name_is_free() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w", Arc::new(Synthetic::new())).await;
    cluster.run(&["create", "vm", "a", "--image", "any", "--wait"]).await;
    let busy = run(cluster.cli(&["delete", "worker", "w"])).await;
    assert!(busy.code == Some(1) && busy.stderr.contains("--force"), "{busy:?}");
    cluster.run(&["delete", "worker", "w", "--force"]).await;
    assert_eq!(cluster.json(&["list", "workers"]).await, json!([]));
    wait::until("the VM to count as failed", LIMIT, || async {
        let vm = cluster.json(&["get", "vm", "a"]).await;
        if vm["status"] == "failed" { Ok(()) } else { Err(vm) }
    })
    .await;
    // Another machine may have the name now.
    let dir = cluster.dir.path().join("another");
    cluster.access.join(&"w".parse().unwrap(), &dir).await;
    assert!(dir.join("worker.nk").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_trail_tells_who_did_what_and_goes_on_while_it_is_followed() {
    let cluster = Cluster::start().await;
    let token = cluster.run(&["create", "service-account", "ci", "--roles", "compute:read"]).await;
    let refused =
        as_account(&cluster, "ci", token.trim(), &["create", "service-account", "x", "--roles", "admin:read"]).await;
    assert_eq!(refused.code, Some(1));
    let of = |trail: &str, verb: &str| {
        let records = trail.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        records.filter(|record| record["verb"] == verb).collect::<Vec<_>>()
    };
    let trail = cluster.run(&["audit", "-o", "json"]).await;
    assert!(!trail.contains(token.trim()), "the trail shows a token");
    let made = of(&trail, "service-account.create");
    assert_eq!((&made[0]["account"], &made[0]["outcome"]), (&json!("bootstrap-admin"), &json!("done")), "{trail}");
    assert!(cluster.run(&["audit"]).await.contains("service-account.create"));

    let after = trail.lines().count().to_string();
    let mut follow = cluster.cli(&["audit", "--follow", "--after", &after, "-o", "json"]);
    let mut child = follow.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().unwrap()));
    cluster.run(&["delete", "service-account", "ci"]).await;
    let seen = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if !of(&line, "service-account.delete").is_empty() {
                return;
            }
        }
        panic!("the command ended");
    };
    tokio::time::timeout(LIMIT, seen).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_changes_his_own_account_gets_the_answer() {
    let cluster = Cluster::start().await;
    let roles = ["--roles", "admin:write,admin:read"];
    let token = cluster.run(&[&["create", "service-account", "boss"], &roles[..]].concat()).await;
    let rotated = as_account(&cluster, "boss", token.trim(), &["rotate", "service-account", "boss"]).await;
    assert!(rotated.code == Some(0) && rotated.stdout.trim().len() >= 43, "{rotated:?}");
    let token = rotated.stdout.trim();
    assert_eq!(as_account(&cluster, "boss", token, &["list", "service-accounts"]).await.code, Some(0));
    let gone = as_account(&cluster, "boss", token, &["delete", "service-account", "boss"]).await;
    assert_eq!(gone.code, Some(0), "{gone:?}");
    assert_eq!(as_account(&cluster, "boss", token, &["list", "service-accounts"]).await.code, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_connect_to_vms_need_not_see_them() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w", Arc::new(Synthetic::new())).await;
    cluster.run(&["create", "vm", "a", "--image", "any", "--wait"]).await;
    for role in ["compute:connect", "compute:write"] {
        let name = role.replace(':', "-");
        let token = cluster.run(&["create", "service-account", &name, "--roles", role]).await;
        let ran = as_account(&cluster, &name, token.trim(), &["ssh", "vm", "a", "echo there"]).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "there\n"), "{role}: {ran:?}");
        let absent = as_account(&cluster, &name, token.trim(), &["ssh", "vm", "b", "true"]).await;
        assert!(absent.code == Some(1) && absent.stderr.contains("no VM named b"), "{absent:?}");
    }
}
