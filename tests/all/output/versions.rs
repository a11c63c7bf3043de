//! `orchard version`: of both sides, and of one when the other is not to be had.

use std::net::TcpListener;

use serde_json::{Value, json};

use crate::harness::{Cluster, refusing};
use crate::standin::{orchard, run};

const OWN: &str = env!("CARGO_PKG_VERSION");

#[tokio::test(flavor = "multi_thread")]
async fn both_releases_are_told() {
    let cluster = Cluster::start().await;
    assert_eq!(cluster.run(&["version"]).await, format!("orchard {OWN}\ncontroller {OWN}\n"));
    assert_eq!(cluster.run(&["version", "--client"]).await, format!("orchard {OWN}\n"));
    assert_eq!(cluster.json(&["version"]).await, json!({"version": OWN, "controller": OWN}));
    assert_eq!(cluster.json(&["version", "--client"]).await, json!({"version": OWN}));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_controller_its_own_release_is_told_and_why_the_other_is_missing() {
    let home = tempfile::tempdir().unwrap();
    // Nobody is known who could be asked: no failure, unless the controller was asked for.
    let nobody = run(orchard(home.path(), &["version"])).await;
    assert_eq!((nobody.code, nobody.stdout), (Some(0), format!("orchard {OWN}\n")));
    assert!(nobody.stderr.contains("orchard context create"), "{}", nobody.stderr);
    assert_eq!(run(orchard(home.path(), &["version", "--controller"])).await.code, Some(1));
    assert_eq!(run(orchard(home.path(), &["version", "--client", "--controller"])).await.code, Some(2));

    let (_held, closed) = refusing();
    let port = closed.port();
    let at = |url: String, arguments: &[&str]| {
        let mut command = orchard(home.path(), arguments);
        command.env("ORCHARD_URL", url).env("ORCHARD_SERVICE_ACCOUNT_NAME", "a");
        command.env("ORCHARD_SERVICE_ACCOUNT_TOKEN", "t");
        run(command)
    };
    let down = at(format!("nats://127.0.0.1:{port}"), &["version", "-o", "json"]).await;
    let told: Value = serde_json::from_str(&down.stdout).unwrap();
    assert_eq!((down.code, told), (Some(1), json!({"version": OWN})));
    let unknown = "the controller's release is not known (`orchard version --client` does not ask)";
    assert!(down.stderr.contains(unknown), "{}", down.stderr);
    assert!(down.stderr.contains(&port.to_string()) && down.stderr.contains("version --client"), "{}", down.stderr);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let hangs = at(format!("nats://{}", silent.local_addr().unwrap()), &["version"]).await;
    assert_eq!((hangs.code, hangs.stdout), (Some(1), format!("orchard {OWN}\n")), "{}", hangs.stderr);
    assert!(hangs.stderr.contains("timed out; is the controller running there?"), "{}", hangs.stderr);
}
