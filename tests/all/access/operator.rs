//! `orchard controller run` as its operator meets it: the first account, what is told and what is not, data folders that
//! cannot be trusted.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use orchard::bus::client::Trust;
use orchard::bus::message::ListVms;
use orchard::controller::Controller;
use orchard::identity::new_token;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command;

use crate::harness::{Access, LIMIT, controller_options, finish};
use crate::processes::access;
use crate::wait::until;

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

/// Where a start may be cut short: after the token was written down, after the account was stored, after it was kept.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_accounts_token_is_not_lost_wherever_a_start_is_cut_short() {
    let dir = tempfile::tempdir().unwrap();
    let (data, token) = (dir.path().join("c"), new_token());
    let waiting = data.join("bootstrap-admin.token");
    orchard::identity::make_private_dir(&data).unwrap();
    // A reading that was under way at the end of the one before may hold the store for a moment.
    let start = async || until("the store", LIMIT, || Controller::start(controller_options(&data))).await;
    orchard::identity::write_private(&waiting, token.expose().as_bytes()).unwrap();
    let first = start().await;
    assert_eq!(first.bootstrap_token(), Some(&token), "written down and not stored");
    first.shutdown().await;
    assert_eq!(std::fs::metadata(&waiting).unwrap().permissions().mode() & 0o777, 0o600);
    let second = start().await;
    assert_eq!(second.bootstrap_token(), Some(&token), "stored and not kept");
    let access = Access {
        url: second.bus_url().to_owned(),
        trust: Trust::Certificate(second.fingerprint().unwrap()),
        account: "bootstrap-admin".parse().unwrap(),
        token: token.clone(),
    };
    access.call(&ListVms::default()).await.unwrap();
    second.bootstrap_token_is_saved().unwrap();
    second.shutdown().await;
    assert!(!waiting.exists());
    let third = start().await;
    assert_eq!(third.bootstrap_token(), None, "kept");
    third.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_leaves_no_core_dump() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    while_running(controller(&home, &ANY), || async {
        let id = std::fs::read_to_string(home.join("controller/serve.lock")).unwrap();
        let limits = std::fs::read_to_string(format!("/proc/{id}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
        assert!(!home.join("controller/bootstrap-admin.token").exists(), "its token is in the context");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_is_told_with_the_option_that_gives_another() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (tcp, udp) = (tcp.local_addr().unwrap().to_string(), udp.local_addr().unwrap().to_string());
    for (listen, option) in [(["--bus-listen", tcp.as_str()], "--bus-listen"), (["--listen", udp.as_str()], "--listen")]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orchard"));
        command.env("ORCHARD_HOME", &home).args(["controller", "run"]).args(listen);
        let other = if option == "--listen" { "--bus-listen" } else { "--listen" };
        let output = finish({
            command.args([other, "127.0.0.1:0"]);
            command
        })
        .await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(option), "{said}");
        assert!(said.contains(listen[1]) && !said.contains(&format!(" {other}")), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_cannot_be_used_is_told_as_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own");
    orchard::identity::ca::Identity::load_or_create(&own, &[]).unwrap();
    let (certificate, key) = (own.join("controller.crt"), own.join("controller.key"));
    let encrypted = own.join("encrypted.key");
    let pem = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n";
    std::fs::write(&encrypted, pem).unwrap();
    std::fs::set_permissions(&encrypted, PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::set_permissions(&certificate, PermissionsExt::from_mode(0o644)).unwrap();
    for (certificate, key, hint) in [
        (&key, &certificate, "swapped"),
        (&certificate, &encrypted, "encrypted"),
        (&certificate, &certificate, "holds a certificate and no private key"),
        (&key, &key, "holds a private key and no certificate"),
    ] {
        let home = dir.path().join("home");
        let mut command = controller(&home, &ANY);
        command.arg("--controller-cert").arg(certificate).arg("--controller-key").arg(key);
        command.env_remove("RUST_LOG");
        let output = finish(command).await;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && said.contains(hint), "{hint}: {said}");
        assert!(said.contains(key.to_str().unwrap()), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_can_be_guessed_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = controller(&dir.path().join("home"), &ANY);
    command.env("ORCHARD_BOOTSTRAP_ADMIN_TOKEN", "hunter2");
    let output = finish(command).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("32"), "{said}");
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
