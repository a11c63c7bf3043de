//! `orchard context`: whom it trusts, what it asks, what it refuses, and what it tells to strangers: nothing.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::json;
use tokio::process::Command;

use crate::standin::{ACCOUNT, PlainStranger, Ran, StandIn, orchard, run, run_with, secret};
use crate::stock::certificates::Certificates;

fn create(home: &Path, url: &str, more: &[&str]) -> Command {
    let own = ["context", "create", url, "--service-account-name", ACCOUNT.0, "--service-account-token-stdin"];
    orchard(home, &[&own[..], more].concat())
}

/// Runs `command` in a terminal of its own, where `answers` are typed after what they answer; yields what that showed.
pub async fn in_terminal(command: Command, answers: &[(&str, &str)]) -> Ran {
    let mut person = Command::new("python3");
    person.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/dialogue.py")).arg(json!(answers).to_string());
    person.arg(command.as_std().get_program()).args(command.as_std().get_args()).env_clear();
    for (key, value) in command.as_std().get_envs() {
        person.env(key, value.unwrap());
    }
    run(person).await
}

fn saved(home: &Path) -> String {
    std::fs::read_to_string(home.join("orchard.yml")).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_shown_and_trusted_once_a_person_says_yes() {
    let server = StandIn::start().await;
    let home = tempfile::tempdir().unwrap();
    let url = server.addr.to_string();
    let print = server.fingerprint.to_string();
    let ask = || orchard(home.path(), &["context", "create", &url]);
    let no = in_terminal(ask(), &[("(yes/no)", "y\r"), ("type yes or no", "no\r")]).await;
    assert!(no.code == Some(1) && no.stdout.contains(&print), "{no:?}");
    assert!(no.stdout.contains("is not trusted; nothing was told to it and nothing is saved"), "{no:?}");
    let silent =
        in_terminal(ask(), &[("(yes/no)", "yes\r"), ("Service account: ", "ann\r"), ("Token of ann", "\r")]).await;
    assert!(silent.code == Some(2) && silent.stdout.contains("the token is empty"), "{silent:?}");
    assert_eq!(saved(home.path()), "");

    let token = format!("{}\r", ACCOUNT.1);
    let answers = [(&*print, ""), ("(yes/no)", "yes\r"), ("Service account: ", "ann\r"), ("Token of ann", &*token)];
    let yes = in_terminal(ask(), &answers).await;
    assert_eq!(yes.code, Some(0), "{yes:?}");
    assert!(yes.stdout.contains("context default leads to") && !yes.stdout.contains(ACCOUNT.1), "{yes:?}");
    assert!(saved(home.path()).contains(&print) && saved(home.path()).contains(ACCOUNT.1));
    let mode = std::fs::metadata(home.path().join("orchard.yml")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // From now on it is known, also when only its address is given.
    let version = run(orchard(home.path(), &["version", "--controller"])).await;
    assert_eq!((version.code, version.stdout.contains("controller stand-in")), (Some(0), true), "{version:?}");
    let mut by_address = orchard(home.path(), &["version", "--controller"]);
    by_address.env("ORCHARD_URL", format!("tls://{url}/"));
    assert_eq!(run(by_address).await.code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_at_a_question_ends_as_it_does_elsewhere() {
    let server = StandIn::start().await;
    let home = tempfile::tempdir().unwrap();
    let (url, print) = (server.addr.to_string(), server.fingerprint.to_string());
    let ask = || orchard(home.path(), &["context", "create", &url, "--fingerprint", &print]);
    for answers in
        [&[("Service account: ", "\u{3}")][..], &[("Service account: ", "ann\r"), ("Token of ann", "abc\u{3}")]]
    {
        let ended = in_terminal(ask(), answers).await;
        assert_eq!(ended.code, Some(130), "{ended:?}");
        assert!(!ended.stdout.contains("error") && !ended.stdout.contains("abc"), "{ended:?}");
    }
    assert_eq!(saved(home.path()), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_terminal_nobody_is_trusted_unless_the_fingerprint_is_given() {
    let server = StandIn::start().await;
    let home = tempfile::tempdir().unwrap();
    let refused = run_with(create(home.path(), &server.url(), &[]), ACCOUNT.1).await;
    for said in [
        "no public CA vouches for the certificate of ",
        "), and there is no terminal to ask on whether to trust it; if the controller itself says that its certificate has this SHA-256, give it with --fingerprint ",
        "--fingerprint",
    ] {
        assert!(refused.code == Some(1) && refused.stderr.contains(said), "{said}: {refused:?}");
    }
    assert_eq!(saved(home.path()), "");

    let print = server.fingerprint.to_string();
    let given = run_with(create(home.path(), &server.url(), &["--fingerprint", &print]), ACCOUNT.1).await;
    assert_eq!((given.code, given.stdout.as_str()), (Some(0), ""), "{given:?}");
    // As openssl prints it.
    let pairs: Vec<&str> = (0..print.len()).step_by(2).map(|at| &print[at..at + 2]).collect();
    let colons = pairs.join(":").to_uppercase();
    let again = run_with(create(home.path(), &server.url(), &["--fingerprint", &colons, "--force"]), ACCOUNT.1).await;
    assert_eq!(again.code, Some(0), "{again:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_certificate_than_the_trusted_one_is_told_nothing() {
    let (server, other) = (StandIn::start().await, StandIn::start().await);
    let home = tempfile::tempdir().unwrap();
    let wrong = other.fingerprint.to_string();
    let refused = run_with(create(home.path(), &server.url(), &["--fingerprint", &wrong]), ACCOUNT.1).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("another certificate"), "{refused:?}");
    assert!(refused.stderr.contains("nothing is saved") && !refused.stderr.contains(ACCOUNT.1), "{refused:?}");
    assert_eq!(saved(home.path()), "");

    // A saved context whose controller is another one by now, and the same by the environment.
    let right = server.fingerprint.to_string();
    let good = run_with(create(home.path(), &server.url(), &["--fingerprint", &right]), ACCOUNT.1).await;
    assert_eq!(good.code, Some(0), "{good:?}");
    let moved = saved(home.path()).replace(&server.url(), &other.url());
    std::fs::write(home.path().join("orchard.yml"), moved).unwrap();
    let refused = run(orchard(home.path(), &["list", "vms"])).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("another certificate"), "{refused:?}");
    let mut by_environment = orchard(home.path(), &["list", "vms"]);
    by_environment.env("ORCHARD_URL", server.url()).env("ORCHARD_FINGERPRINT", &wrong);
    by_environment.env("ORCHARD_SERVICE_ACCOUNT_NAME", ACCOUNT.0).env("ORCHARD_SERVICE_ACCOUNT_TOKEN", ACCOUNT.1);
    let refused = run(by_environment).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("another certificate"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_that_answers_in_plain_text_gets_no_token() {
    let stranger = PlainStranger::start().await;
    let home = tempfile::tempdir().unwrap();
    let address = stranger.addr.to_string();
    let print = "ab".repeat(32);
    let refused = run_with(create(home.path(), &address, &[]), ACCOUNT.1).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("plain text"), "{refused:?}");
    let pinned = run_with(create(home.path(), &address, &["--fingerprint", &print]), ACCOUNT.1).await;
    assert_eq!(pinned.code, Some(1), "{pinned:?}");
    // A context that was made in better times.
    let context = format!(
        "default-context: x\ncontexts:\n  x:\n    url: {address}\n    serviceAccountName: ann\n    serviceAccountToken: {}\n",
        ACCOUNT.1
    );
    for pin in [String::new(), format!("    fingerprint: {print}\n")] {
        let text = format!("{context}{pin}");
        orchard::identity::write_private(&home.path().join("orchard.yml"), text.as_bytes()).unwrap();
        let refused = run(orchard(home.path(), &["list", "vms"])).await;
        assert!(refused.code == Some(1) && refused.stderr.starts_with("error: "), "{refused:?}");
    }
    stranger.learnt_nothing_of(ACCOUNT.1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_credentials_are_refused_before_anything_is_saved() {
    let server = StandIn::start().await;
    let home = tempfile::tempdir().unwrap();
    let print = server.fingerprint.to_string();
    let wrong = secret();
    let refused = run_with(create(home.path(), &server.url(), &["--fingerprint", &print]), &wrong).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("token") && refused.stderr.contains("ann"), "{refused:?}");
    assert!(!refused.stderr.contains(&wrong));
    assert_eq!(saved(home.path()), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_is_replaced_by_force_only_and_chosen_and_forgotten_by_name() {
    let server = StandIn::start().await;
    let home = tempfile::tempdir().unwrap();
    let print = server.fingerprint.to_string();
    let make = async |more: &[&str]| {
        let more = [&["--fingerprint", print.as_str()], more].concat();
        run_with(create(home.path(), &server.url(), &more), ACCOUNT.1).await
    };
    assert_eq!(make(&["--name", "a"]).await.code, Some(0));
    let taken = make(&["--name", "a"]).await;
    assert!(taken.code == Some(1) && taken.stderr.contains("--force"), "{taken:?}");
    assert_eq!(make(&["--name", "a", "--force"]).await.code, Some(0));
    assert_eq!(make(&["--name", "b"]).await.code, Some(0));
    assert_eq!(make(&["--name", "a b"]).await.code, Some(2));

    let call = async |arguments: &[&str]| run(orchard(home.path(), &[&["context"], arguments].concat())).await;
    let list = call(&["list", "-o", "json"]).await.stdout;
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let of = |index: usize, key: &str| list[index][key].clone();
    assert_eq!((of(0, "name"), of(0, "default"), of(1, "default")), (json!("a"), json!(true), json!(false)));
    assert!(!list.to_string().contains(ACCOUNT.1), "the list shows the token");
    assert_eq!(call(&["default", "b"]).await.code, Some(0));
    assert!(call(&["list"]).await.stdout.lines().any(|line| line.starts_with("b ") && line.contains('*')));
    for wrong in [&["default", "x"][..], &["delete", "x"]] {
        let refused = call(wrong).await;
        assert!(refused.code == Some(1) && refused.stderr.contains("a, b"), "{refused:?}");
        let advised = refused.stderr.contains("context create");
        assert_eq!(advised, wrong[0] == "default", "{refused:?}");
    }
    assert_eq!(call(&["delete", "b"]).await.code, Some(0));
    assert!(!saved(home.path()).contains("b:"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_ca_is_trusted_for_the_name_that_is_dialled_unless_it_is_ruled_out() {
    let certificates = Certificates::new();
    let read = |file: &str| std::fs::read_to_string(certificates.path(file)).unwrap();
    let server = StandIn::with_pem(&read("server.pem"), &read("server.key")).await;
    let home = tempfile::tempdir().unwrap();
    let with_ca = |arguments: &[&str]| {
        let mut command = create(home.path(), &format!("localhost:{}", server.addr.port()), arguments);
        command.env("SSL_CERT_FILE", certificates.path("ca.pem"));
        command
    };
    let made = run_with(with_ca(&[]), ACCOUNT.1).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    assert!(!saved(home.path()).contains("fingerprint"));
    let ruled_out = run_with(with_ca(&["--no-pki", "--name", "b"]), ACCOUNT.1).await;
    assert!(ruled_out.code == Some(1) && ruled_out.stderr.contains("--no-pki"), "{ruled_out:?}");
    // Without that CA the saved context trusts nobody there.
    let refused = run(orchard(home.path(), &["version", "--controller"])).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("no public CA"), "{refused:?}");
}
