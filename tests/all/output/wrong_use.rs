//! What is asked for wrongly, and without a controller: the text and the exit code of each.

use super::errors::protocol;
use super::golden;
use crate::cli::WRONG;
use crate::harness::refusing;
use crate::standin::{orchard, run};

/// What is asked where no controller is known.
const NOBODY: &[&[&str]] = &[
    &["list", "vms"],
    &["list", "vms", "--watch"],
    &["create", "vm", "a", "--image", "/i"],
    &["ssh", "vm", "a"],
    &["version", "--controller"],
    &["context", "default", "work"],
    &["list", "vms", "--context", "work"],
];

/// What the command line that users come from takes, and what is there instead. `asked::instead` has a test of all.
const OTHER: &[&[&str]] = &[
    &["controller", "--data-dir", "/x", "run"],
    &["controller", "run", "-l", ":6120"],
    &["controller", "run", "--worker-offline-timeout", "3m"],
    &["worker", "run", "--log-file", "log"],
    &["worker", "run", "ctl", "--bootstrap-token", "t"],
    &["get", "bootstrap-token", "ci"],
    &["context", "create", "ctl", "--bootstrap-token", "t"],
];

/// What only shows when the parts are seen together, or in a file of this machine.
const TOGETHER: &[&[&str]] = &[
    &["create", "vm", "a", "--image", "/i", "--worker", "w1", "--labels", "worker-name=w2"],
    &["create", "vm", "a", "--image", "/i", "--ttl", "0s"],
    &["create", "vm", "a", "--image", "/i", "--ssh-key", "private"],
    &["create", "vm", "a", "--image", "/i", "--ssh-key", "@missing"],
    &["create", "vm", "a", "--image", "/i", "--password-file", "missing"],
    &["create", "vm", "a", "--image", "/i", "--password-file", "empty"],
    &["create", "vm", "a", "--image", "/i", "--password-file", "lines"],
    &["create", "vm", "a", "--image", "/i", "--password-file", "long"],
    &["create", "vm", "a", "--image", "/i", "--startup-script", "@missing"],
    &["create", "vm", "a", "--image", "/i", "--startup-script", "@huge"],
    &["create", "vm", "a", "--image", "/i", "--runtime", "vetu", "--suspendable"],
    &["context", "create", "ctl", "--service-account-token", ""],
    &["context", "create", "ctl", "--fingerprint", FINGERPRINT],
    &["context", "create", "nats://127.0.0.1:1", "--service-account-name", "a"],
    &["exec", "vm", "--session", "s", "--identity", "key", "a", "--", "true"],
    &["create", "service-account", "a", "--roles", "compute:read", "--token-stdin"],
    &["create", "vm", "a", "--image", "/i", "--password-stdin"],
    &["context", "create", "ctl", "--service-account-token-stdin"],
    &["man", "frobnicate"],
    &["man", "--dir", "long/x"],
    &["exec", "vm", "-e", "NOT_THERE", "a", "--", "true"],
];
const FINGERPRINT: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[tokio::test(flavor = "multi_thread")]
async fn wrong_use_and_what_is_missing_are_told_word_for_word() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    for (name, text) in [("empty", String::new()), ("lines", "a\nb".into()), ("long", "x".repeat(5_000))] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    std::fs::write(dir.path().join("huge"), vec![b'x'; 600 << 10]).unwrap();
    let mut texts = String::new();
    for arguments in WRONG.iter().map(|(arguments, _)| arguments).chain(OTHER).chain(TOGETHER) {
        let mut command = orchard(&home, arguments);
        command.current_dir(dir.path());
        texts.push_str(&protocol(arguments, &run(command).await));
    }
    for arguments in NOBODY {
        texts.push_str(&protocol(arguments, &run(orchard(&home, arguments)).await));
    }
    let (_held, closed) = refusing();
    let port = closed.port();
    for (name, value) in [("nats://", "2"), ("https://", "2"), ("tls://", "1"), ("nats://", "1")] {
        let mut command = orchard(&home, &["list", "vms"]);
        command.env("ORCHARD_URL", format!("{name}127.0.0.1:{port}"));
        if value == "1" {
            command.env("ORCHARD_SERVICE_ACCOUNT_NAME", "a").env("ORCHARD_SERVICE_ACCOUNT_TOKEN", "t");
        }
        texts.push_str(&protocol(&[&format!("list vms   # at {name}127.0.0.1:<port>")], &run(command).await));
    }
    let dir = dir.path().to_str().unwrap();
    golden::check("wrong_use.txt", &golden::steady(&texts, &[(dir, "<dir>"), (&port.to_string(), "<port>")]));
}
