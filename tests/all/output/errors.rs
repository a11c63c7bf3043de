//! What goes wrong at a running cluster, and what is said of it: what was asked, what was found, and what to do next.

use std::sync::Arc;

use orchard::worker::runtime::synthetic::Synthetic;

use super::golden;
use crate::harness::{Access, Cluster, LIMIT};
use crate::standin::{Ran, run};
use crate::wait::until;

/// The id of no token.
const NO_TOKEN: &str = "0123456789abcdef";
/// No copy.
const NO_COPY: &str = "00000000-0000-0000-0000-000000000001/0";

/// What the first account asks for in vain.
const REFUSED: &[&[&str]] = &[
    &["get", "vm", "none"],
    &["get", "vm", "a/colour"],
    &["get", "vm", "a/status/x"],
    &["get", "vm", "a/conditions/7"],
    &["get", "worker", "none"],
    &["get", "worker", "w1/colour"],
    &["get", "service-account", "none"],
    &["get", "service-account", "reader/token"],
    &["get", "service-account", "reader/colour"],
    &["explain", "vm", "none"],
    &["logs", "vm", "none"],
    &["create", "vm", "a", "--image", "any"],
    &["create", "vm", "new", "--image", "any", "--host-dirs", "src:/srv/none"],
    &["create", "vm", "new", "--image", "any", "--runtime", "vetu", "--nested"],
    &["create", "service-account", "reader", "--roles", "compute:read"],
    &["delete", "vm", "none"],
    &["delete", "vm", "none", "nobody"],
    &["delete", "worker", "none"],
    &["delete", "worker", "w1"],
    &["delete", "service-account", "none"],
    &["delete", "service-account", "bootstrap-admin"],
    &["delete", "bootstrap-token", NO_TOKEN],
    &["delete", "bootstrap-token", "the-token-itself"],
    &["delete", "stray", "w1", NO_COPY],
    &["delete", "stray", "none", NO_COPY],
    &["stop", "vm", "none"],
    &["start", "vm", "none"],
    &["suspend", "vm", "none"],
    &["suspend", "vm", "a"],
    &["update", "vm", "none", "--priority", "1"],
    &["update", "vm", "a"],
    &["update", "vm", "a", "--priority", "1", "--if-generation", "77"],
    &["update", "service-account", "none", "--ttl", "1h"],
    &["update", "service-account", "bootstrap-admin", "--roles", "compute:read"],
    &["rotate", "service-account", "none"],
    &["pause", "worker", "none"],
    &["pause", "worker", "w1", "--wait", "0s"],
    &["resume", "worker", "none"],
    &["drain", "worker", "none"],
    &["set", "cluster-settings"],
    &["pull", "image", "any", "--labels", "role=none"],
    &["pull", "image", "--cancel", "any"],
    &["ssh", "vm", "none", "true"],
    &["ssh", "vm", "-p", "wrong", "a", "true"],
    &["ssh", "worker", "none", "true"],
    &["ssh", "worker", "-u", "me", "none", "true"],
    &["exec", "vm", "none", "--", "true"],
    &["exec", "worker", "none", "--", "true"],
    &["exec", "vm", "--session", "none", "--attach", "a"],
    &["cp", "none:/etc/hostname", "."],
    &["cp", "missing", "a:/tmp"],
    &["cp", "folder", "a:/tmp"],
    &["cp", "/dev/null", "a:/tmp"],
    &["cp", "a:/x", "gone/x"],
    &["ssh-config", "--username", "a\"b", "a"],
    &["cp", "a:/etc/hostname", "missing/hostname"],
    &["create", "vm", "new", "--image", "any", "--startup-script", "@missing"],
    &["create", "vm", "new", "--image", "any", "--startup-script", "@."],
    &["create", "vm", "new", "--image", "any", "--password-file", "missing"],
    &["create", "vm", "new", "--image", "any", "--ssh-key", "@missing"],
    &["create", "service-account", "new", "--roles", "compute:read", "--ssh-key", "missing"],
    &["ssh", "vm", "--identity", "missing/id", "a", "true"],
    &["vnc", "vm", "a", "--screenshot", "missing/screen.png"],
    &["ip", "vm", "none"],
    &["proxy", "vm", "none", "22"],
    &["proxy", "worker", "none", "22"],
    &["port-forward", "vm", "none", "0:22"],
    &["port-forward", "worker", "none", "0:22"],
    &["proxy", "vm", "--copy", NO_COPY, "a", "22"],
    &["vnc", "vm", "none", "--no-viewer"],
    &["vnc", "vm", "a", "--screenshot", "picture.png"],
    &["vnc", "vm", "a", "--screenshot", "folder"],
    &["vnc", "vm", "a", "--screenshot", "gone/a.png"],
    &["list", "execs", "vm", "none"],
    &["ssh-config", "none"],
    &["context", "default", "work"],
    &["context", "delete", "work"],
    &["list", "vms", "--context", "work"],
    &["controller", "restore", "missing"],
    &["controller", "restore", "."],
    &["controller", "backup", "missing/backup"],
    &["broker", "run", "--listen", "127.0.0.1:0", "--users-file", "missing"],
    &["broker", "run", "--listen", "127.0.0.1:0", "--no-auth", "--tls-cert", "missing", "--tls-key", "missing"],
    &["broker", "run", "--listen", "127.0.0.1:0", "--no-auth", "--ports-file", "missing/ports.json"],
];

/// What an account that may only read asks for in vain.
const FORBIDDEN: &[&[&str]] = &[
    &["create", "vm", "new", "--image", "any"],
    &["delete", "vm", "a"],
    &["stop", "vm", "a"],
    &["pause", "worker", "w1"],
    &["list", "service-accounts"],
    &["create", "service-account", "new", "--roles", "admin:write"],
    &["get", "bootstrap-token"],
    &["get", "cluster-settings"],
    &["audit"],
    &["audit", "--follow"],
    &["ssh", "vm", "a", "true"],
    &["pull", "image", "any"],
];

/// A command, how it ended, and what it said.
pub fn protocol(arguments: &[&str], ran: &Ran) -> String {
    let said = |name: &str, text: &str| text.lines().map(|line| format!("{name} {line}\n")).collect::<String>();
    let (stdout, stderr) = (said("|", &ran.stdout), said("!", &ran.stderr));
    format!("$ orchard {}\n{stdout}{stderr}= {}\n\n", arguments.join(" "), ran.code.unwrap())
}

async fn all(cluster: &Cluster, access: &Access, commands: &[&[&str]]) -> String {
    let home = cluster.dir.path().join("home");
    let mut texts = String::new();
    for arguments in commands {
        let mut command = access.cli(&home, arguments);
        command.current_dir(cluster.dir.path()).env_remove("HOME").env_remove("USER").env_remove("LOGNAME");
        let ran = run(command).await;
        assert_ne!(ran.code, Some(0), "{arguments:?}: {ran:?}");
        texts.push_str(&protocol(arguments, &ran));
    }
    let dir = cluster.dir.path().to_str().unwrap();
    let address = access.url.trim_start_matches("tls://");
    golden::steady(&texts, &[(dir, "<dir>"), (&access.url, "<url>"), (address, "<address>")])
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_says_what_was_found_and_what_to_do() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w1", Arc::new(Synthetic::new())).await;
    cluster.run(&["create", "vm", "a", "--image", "any", "--wait"]).await;
    let token = cluster.run(&["create", "service-account", "reader", "--roles", "compute:read"]).await;
    until("the worker can be reached", LIMIT, || async {
        let worker = cluster.json(&["get", "worker", "w1"]).await;
        if worker["connectable"] == true { Ok(()) } else { Err(worker) }
    })
    .await;
    std::fs::write(cluster.dir.path().join("picture.png"), "").unwrap();
    std::fs::create_dir(cluster.dir.path().join("folder")).unwrap();
    let refused = all(&cluster, &cluster.access, REFUSED).await;
    let reader = cluster.access.of("reader", &orchard::model::secret::Secret::new(token.trim()));
    let forbidden = all(&cluster, &reader, FORBIDDEN).await;
    let stranger = cluster.access.of("nobody", &orchard::model::secret::Secret::new("wrong"));
    let not_let_in = all(&cluster, &stranger, &[&["list", "vms"], &["list", "vms", "--watch"]]).await;
    golden::check("errors.txt", &format!("{refused}{forbidden}{not_let_in}"));
}
