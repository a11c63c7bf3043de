//! `orchard controller run` as its operator meets it: the first account, what is told and what is not, data folders that
//! cannot be trusted.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use orchard::bus::message::ListVms;
use orchard::identity::new_token;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

use crate::harness::{LIMIT, finish};
use crate::processes::access;

fn controller(home: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orchard"));
    command.env_remove("ORCHARD_BOOTSTRAP_ADMIN_TOKEN").env("ORCHARD_HOME", home).env("RUST_LOG", "trace");
    command.args(["controller", "run", "--listen", "127.0.0.1:0"]).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// Runs a controller until it is ready, does `work`, kills it; all that it said, on both outputs.
async fn while_running<F: Future<Output = ()>>(mut command: Command, work: impl FnOnce() -> F) -> String {
    let mut child = command.spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut err = child.stderr.take().unwrap();
    let reading = orchard::task::spawn(async move {
        let mut said = String::new();
        err.read_to_string(&mut said).await.unwrap();
        said
    });
    let mut said = String::new();
    while !said.contains("--bootstrap-token-stdin") {
        let line = tokio::time::timeout(LIMIT, out.next_line()).await.expect("it is not ready").unwrap();
        said += &line.unwrap_or_else(|| panic!("it ended: {said}"));
        said.push('\n');
    }
    work().await;
    child.start_kill().unwrap();
    child.wait().await.unwrap();
    said + &reading.join().await.unwrap()
}

const ANY: [&str; 2] = ["--bus-listen", "127.0.0.1:0"];

#[tokio::test(flavor = "multi_thread")]
async fn the_first_accounts_token_is_in_the_context_and_in_nothing_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let first = while_running(controller(&home, &ANY), || async {
        access(&home).call(&ListVms::default()).await.unwrap();
    })
    .await;
    let token = access(&home).token;
    assert!(!first.contains(token.expose()), "{first}");
    let data = home.join("controller");
    for (path, mode) in [("controller.key", 0o600), ("db", 0o700), ("", 0o700), ("../orchard.yml", 0o600)] {
        let found = std::fs::metadata(data.join(path)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{path}: {found:o}");
    }
    // The second start keeps the token, and the context follows to where the bus is now.
    let again = while_running(controller(&home, &ANY), || async {
        let now = access(&home);
        assert_eq!(now.token, token);
        now.call(&ListVms::default()).await.unwrap();
    })
    .await;
    assert!(!again.contains(token.expose()));
    // The operator's own token takes the place of whatever there was.
    let given = new_token();
    let mut command = controller(&home, &ANY);
    command.env("ORCHARD_BOOTSTRAP_ADMIN_TOKEN", given.expose());
    let said = while_running(command, || async {
        let now = access(&home);
        assert_eq!(now.token, given);
        now.call(&ListVms::default()).await.unwrap();
        assert!(now.of("bootstrap-admin", &token).try_bus().await.is_err());
    })
    .await;
    assert!(!said.contains(given.expose()) && !said.contains(token.expose()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_can_be_guessed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = controller(&dir.path().join("home"), &ANY);
    command.env("ORCHARD_BOOTSTRAP_ADMIN_TOKEN", "hunter2");
    let output = finish(command).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("32"), "{said}");
    assert!(!said.contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_that_others_may_have_touched_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let real = dir.path().join("real");
    let run = async |folder: &Path, hint: &str| {
        let folder = folder.to_str().unwrap();
        let output = finish(controller(&home, &[&ANY[..], &["--data-dir", folder]].concat())).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(hint), "{folder}: {said}");
    };
    while_running(controller(&home, &[&ANY[..], &["--data-dir", real.to_str().unwrap()]].concat()), || async {}).await;
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&real, &link).unwrap();
    run(&link, "symbolic link").await;

    let (key, elsewhere) = (real.join("controller.key"), dir.path().join("elsewhere"));
    std::fs::rename(&key, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &key).unwrap();
    run(&real, "symbolic link").await;
    std::fs::remove_file(&key).unwrap();
    std::fs::rename(&elsewhere, &key).unwrap();

    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    run(&real, "chmod 600").await;
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    let (lock, victim) = (real.join("serve.lock"), dir.path().join("victim"));
    std::fs::write(&victim, "precious").unwrap();
    std::fs::remove_file(&lock).unwrap();
    std::os::unix::fs::symlink(&victim, &lock).unwrap();
    run(&real, "symbolic link").await;
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tls_the_bus_warns_and_stays_on_this_machine() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let said = while_running(controller(&home, &[&ANY[..], &["--insecure-no-tls"]].concat()), || async {
        let plain = access(&home);
        assert!(plain.url.starts_with("nats://127.0.0.1:"), "{}", plain.url);
        plain.call(&ListVms::default()).await.unwrap();
    })
    .await;
    assert!(said.contains("WARNING") && said.contains("not encrypted"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_given_certificate_serves_bus_and_tunnels() {
    let dir = tempfile::tempdir().unwrap();
    let (home, other) = (dir.path().join("home"), dir.path().join("other"));
    let given = orchard::identity::ca::Identity::load_or_create(&other, &[]).unwrap();
    let (certificate, key) = (other.join("controller.crt"), other.join("controller.key"));
    let files = ["--controller-cert", certificate.to_str().unwrap(), "--controller-key", key.to_str().unwrap()];
    let said = while_running(controller(&home, &[&ANY[..], &files].concat()), || async {
        access(&home).call(&ListVms::default()).await.unwrap();
    })
    .await;
    assert!(said.contains(&given.fingerprint().to_string()), "{said}");
    assert!(!home.join("controller/controller.key").exists(), "none of its own is made");
}
