//! `orchard worker run` with a bootstrap token: one exchange, a key of its own ever after, and what is refused.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use tokio::process::Command;

use crate::processes::Server;
use crate::standin::{PlainStranger, StandIn, orchard, run, run_with};

fn worker(dir: &Path, more: &[&str]) -> Command {
    let data = dir.join("data");
    let own = ["worker", "run", "--runtime", "synthetic", "--data-dir", data.to_str().unwrap()];
    orchard(&dir.join("home"), &[&own[..], more].concat())
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_joins_once_and_then_needs_no_token() {
    let server = StandIn::start().await;
    let dir = tempfile::tempdir().unwrap();
    let token = server.bootstrap_token().to_text();
    let first = Server::start(worker(dir.path(), &["--name", "w", "--bootstrap-token", token.expose()])).await;
    let joins = || server.joins.lock().unwrap().clone();
    assert_eq!((joins().len(), joins()[0].worker.as_str()), (1, "w"));
    first.kill().await;
    let data = dir.path().join("data");
    assert_eq!((mode(&data), mode(&data.join("worker.nk")), mode(&data.join("worker.join"))), (0o700, 0o600, 0o600));
    let seed = std::fs::read_to_string(data.join("worker.nk")).unwrap();
    assert!(seed.starts_with("SU") && !joins()[0].public_key.contains(&seed));
    assert!(!data.join("worker.nk.next").exists());

    // It knows where and who; a token that is given all the same is left alone.
    Server::start(worker(dir.path(), &[])).await.kill().await;
    Server::start(worker(dir.path(), &["--bootstrap-token", token.expose()])).await.kill().await;
    assert_eq!(joins().len(), 1);
    let other = run(worker(dir.path(), &["--name", "other"])).await;
    assert!(other.code == Some(1) && other.stderr.contains("belongs to worker w"), "{other:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_worker_says_what_to_do_and_comes_back_with_a_new_key() {
    let server = StandIn::start().await;
    let dir = tempfile::tempdir().unwrap();
    let token = server.bootstrap_token().to_text();
    Server::start(worker(dir.path(), &["--name", "w", "--bootstrap-token", token.expose()])).await.kill().await;
    server.revoke();
    let refused = run(worker(dir.path(), &[])).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("orchard get bootstrap-token"), "{refused:?}");
    let again = Server::start(worker(dir.path(), &["--bootstrap-token", token.expose()])).await;
    again.kill().await;
    let joins = server.joins.lock().unwrap().clone();
    assert_eq!((joins.len(), joins[1].worker.as_str()), (2, "w"));
    assert_ne!(joins[0].public_key, joins[1].public_key, "a key that was revoked is not brought back");
    Server::start(worker(dir.path(), &[])).await.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_was_cut_short_goes_on_with_the_same_key() {
    let server = StandIn::start().await;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let token = server.bootstrap_token().to_text();
    Server::start(worker(dir.path(), &["--name", "w", "--bootstrap-token", token.expose()])).await.kill().await;
    // As after a power cut between the answer and the first write.
    std::fs::rename(data.join("worker.nk"), data.join("worker.nk.next")).unwrap();
    std::fs::remove_file(data.join("worker.join")).unwrap();
    let again = ["--name", "w", "--bootstrap-token", token.expose()];
    Server::start(worker(dir.path(), &again)).await.kill().await;
    let joins = || server.joins.lock().unwrap().clone();
    assert_eq!((joins().len(), &joins()[0]), (2, &joins()[1]));
    // And before the last one: it has joined, and needs no token for the rest.
    std::fs::rename(data.join("worker.nk"), data.join("worker.nk.next")).unwrap();
    Server::start(worker(dir.path(), &[])).await.kill().await;
    assert_eq!(joins().len(), 2);
    assert!(!data.join("worker.nk.next").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_with_another_certificate_or_none_does_not_get_the_join_secret() {
    let (server, other, stranger) = (StandIn::start().await, StandIn::start().await, PlainStranger::start().await);
    let secret = server.bootstrap_token().secret;
    for url in [other.url(), format!("tls://{}", stranger.addr)] {
        let dir = tempfile::tempdir().unwrap();
        let mut token = server.bootstrap_token();
        token.url = url;
        let mut joining = worker(dir.path(), &["--name", "w", "--bootstrap-token", token.to_text().expose()]);
        // It waits for a controller that may be starting; what it says meanwhile is enough.
        joining.stderr(std::process::Stdio::piped());
        let mut child = joining.spawn().unwrap();
        let mut lines = tokio::io::BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("trying again") {
            let read = tokio::io::AsyncBufReadExt::read_line(&mut lines, &mut said).await.unwrap();
            assert!(read > 0, "{said}");
        }
        assert!(!said.contains(secret.expose()), "{said}");
    }
    assert!(other.joins.lock().unwrap().is_empty());
    stranger.learnt_nothing_of(secret.expose());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_token_or_a_refused_one_is_said_and_not_shown() {
    let server = StandIn::start().await;
    let dir = tempfile::tempdir().unwrap();
    let mut token = server.bootstrap_token();
    let text = token.to_text();
    let cut = &text.expose()[..text.expose().len() - 20];
    for (given, hint) in [("hunter2", "no bootstrap token"), (cut, "damaged"), ("", "empty")] {
        let refused = run(worker(dir.path(), &["--bootstrap-token", given])).await;
        assert_eq!(refused.code, Some(2), "{refused:?}");
        assert!(refused.stderr.contains(hint) && (given.is_empty() || !refused.stderr.contains(given)), "{refused:?}");
    }
    token.secret = orchard::model::secret::Secret::new(crate::standin::secret());
    let unknown = token.to_text();
    let refused = run_with(worker(dir.path(), &["--bootstrap-token-stdin"]), unknown.expose()).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("used up"), "{refused:?}");
    assert!(!refused.stderr.contains(token.secret.expose()));
    let none = run(worker(dir.path(), &[])).await;
    assert!(none.code == Some(1) && none.stderr.contains("--bootstrap-token-stdin"), "{none:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_others_may_read_and_a_folder_that_is_a_link_are_refused() {
    let server = StandIn::start().await;
    let dir = tempfile::tempdir().unwrap();
    let token = server.bootstrap_token().to_text();
    Server::start(worker(dir.path(), &["--name", "w", "--bootstrap-token", token.expose()])).await.kill().await;
    let key = dir.path().join("data/worker.nk");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = run(worker(dir.path(), &[])).await;
    assert!(refused.code == Some(1) && refused.stderr.contains("chmod 600"), "{refused:?}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();

    std::fs::rename(dir.path().join("data"), dir.path().join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), dir.path().join("data")).unwrap();
    for command in [
        worker(dir.path(), &[]),
        orchard(
            &dir.path().join("home"),
            &["controller", "run", "--data-dir", dir.path().join("data").to_str().unwrap()],
        ),
        orchard(&dir.path().join("home"), &["dev", "--data-dir", dir.path().join("data").to_str().unwrap()]),
    ] {
        let refused = run(command).await;
        assert!(refused.code == Some(1) && refused.stderr.contains("symbolic link"), "{refused:?}");
    }
}

/// As a service manager has it, which starts a worker the same way each time.
#[tokio::test(flavor = "multi_thread")]
async fn the_file_of_a_bootstrap_token_may_be_gone_once_the_worker_has_joined() {
    let server = StandIn::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bootstrap-token");
    let arguments = ["--name", "w", "--bootstrap-token-file", file.to_str().unwrap()];
    let early = run(worker(dir.path(), &arguments)).await;
    assert!(early.code == Some(1) && early.stderr.contains("has not joined"), "{early:?}");

    orchard::identity::write_private(&file, server.bootstrap_token().to_text().expose().as_bytes()).unwrap();
    Server::start(worker(dir.path(), &arguments)).await.kill().await;
    std::fs::remove_file(&file).unwrap();
    Server::start(worker(dir.path(), &arguments)).await.kill().await;
    assert_eq!(server.joins.lock().unwrap().len(), 1);
}
