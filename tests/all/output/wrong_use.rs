//! What is asked for wrongly, and without a controller: the text and the exit code of each.

use std::net::TcpListener;

use super::errors::protocol;
use super::golden;
use crate::cli::WRONG;
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

#[tokio::test(flavor = "multi_thread")]
async fn wrong_use_and_what_is_missing_are_told_word_for_word() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let mut texts = String::new();
    for (arguments, _) in WRONG {
        let mut command = orchard(&home, arguments);
        command.current_dir(dir.path());
        texts.push_str(&protocol(arguments, &run(command).await));
    }
    for arguments in NOBODY {
        texts.push_str(&protocol(arguments, &run(orchard(&home, arguments)).await));
    }
    // Nobody listens where somebody did a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
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
