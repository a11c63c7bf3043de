//! Logging in with keys and with an agent to OpenSSH's server, and connections through it.

use std::net::SocketAddr;
use std::path::Path;

use orchard::ssh::auth::Proof;
use orchard::ssh::client::Session;
use orchard::ssh::key::Key;
use orchard::ssh::{AcceptAny, Login, SshError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::sshd::{Agent, PASSWORD, Sshd, TESTER, certify, make_key};
use super::*;

async fn log_in(sshd: &Sshd, proofs: Vec<Proof>) -> Result<Session, SshError> {
    let stream = TcpStream::connect(("127.0.0.1", sshd.port)).await.unwrap();
    let login = Login { user: TESTER.to_owned(), proofs };
    Session::connect(stream, login, AcceptAny, DEADLINE).await.inspect_err(|_| eprintln!("{}", sshd.log()))
}

fn key(path: &Path) -> Proof {
    Proof::Key(Key::read(path).unwrap())
}

fn password(text: &str) -> Proof {
    Proof::Password(Secret::new(text))
}

async fn works(session: Session) {
    assert_eq!(exec(&session, "echo in", b"").await.1, "in\n");
    session.close().await;
    assert!(matches!(timeout(DEADLINE, session.ended()).await.unwrap(), SshError::Lost(_)));
}

#[tokio::test]
async fn keys_of_all_usual_kinds_open_a_session_and_the_first_that_fits_is_enough() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut allowed = String::new();
    for kind in ["ed25519", "ecdsa", "rsa"] {
        allowed += &make_key(&at(kind), kind, "");
    }
    make_key(&at("other"), "ed25519", "");
    let Some(sshd) = Sshd::start(&allowed, true).await else { return };
    for kind in ["ed25519", "ecdsa", "rsa"] {
        works(log_in(&sshd, vec![key(&at("other")), key(&at(kind))]).await.unwrap()).await;
    }
    works(log_in(&sshd, vec![key(&at("other")), password("wrong"), password(PASSWORD)]).await.unwrap()).await;
    let older = std::process::Command::new("ssh-keygen")
        .args(["-q", "-p", "-N", "", "-m", "PEM", "-f"])
        .arg(at("rsa"))
        .output();
    assert!(older.unwrap().status.success());
    works(log_in(&sshd, vec![key(&at("rsa"))]).await.unwrap()).await;
}

#[tokio::test]
async fn a_refusal_names_what_was_tried_and_what_would_be_taken() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("other");
    make_key(&path, "ed25519", "");
    let Some(sshd) = Sshd::start("", false).await else { return };
    let agent = Proof::Agent("/nowhere/agent".into());
    let refused = log_in(&sshd, vec![password("x"), agent, key(&path), key(&path)]).await.unwrap_err();
    let SshError::AuthRefused { user, tried, takes_password, .. } = &refused else { panic!("{refused:?}") };
    assert_eq!((user.as_str(), *takes_password), (TESTER, false));
    assert!(tried.starts_with("the password, the agent (cannot be asked: "), "{tried}");
    assert!(tried.ends_with(&format!(", the key {}", path.display())), "once each: {tried}");
    assert!(refused.to_string().ends_with("(it takes: publickey)"), "{refused}");
    let after = log_in(&sshd, vec![key(&path), password("x")]).await.unwrap_err().to_string();
    assert!(after.contains("the password (not taken)"), "{after}");
}

#[tokio::test]
async fn an_agent_signs_for_its_keys_and_for_those_that_are_locked_here() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let allowed = make_key(&at("good"), "ed25519", "") + &make_key(&at("rsa"), "rsa", "");
    make_key(&at("other"), "ed25519", "");
    let Some(sshd) = Sshd::start(&allowed, true).await else { return };
    let agent = Agent::start(&[&at("other"), &at("good")]).await;
    let asked = || Proof::Agent(agent.socket.clone());
    works(log_in(&sshd, vec![asked()]).await.unwrap()).await;
    works(log_in(&sshd, vec![key(&at("good.pub")), asked()]).await.unwrap()).await;
    let lock =
        std::process::Command::new("ssh-keygen").args(["-q", "-p", "-N", "a phrase", "-f"]).arg(at("good")).output();
    assert!(lock.unwrap().status.success());
    works(log_in(&sshd, vec![key(&at("good")), asked()]).await.unwrap()).await;

    let with_rsa = Agent::start(&[&at("rsa")]).await;
    works(log_in(&sshd, vec![Proof::Agent(with_rsa.socket.clone())]).await.unwrap()).await;
    let none = Agent::start(&[&at("other")]).await;
    let refused = log_in(&sshd, vec![Proof::Agent(none.socket.clone())]).await.unwrap_err().to_string();
    assert!(refused.contains("the agent's key made for a test"), "{refused}");
    // What only the public half is there of, no agent has.
    let half = log_in(&sshd, vec![key(&at("good.pub")), Proof::Agent(none.socket.clone())]).await.unwrap_err();
    assert!(half.to_string().contains("only its public half"), "{half}");
}

#[tokio::test]
async fn a_locked_key_is_only_missed_when_the_server_takes_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let allowed = make_key(&at("good"), "ed25519", "a phrase");
    make_key(&at("other"), "ed25519", "a phrase");
    let Some(sshd) = Sshd::start(&allowed, true).await else { return };
    works(log_in(&sshd, vec![key(&at("other")), password(PASSWORD)]).await.unwrap()).await;
    let locked = log_in(&sshd, vec![key(&at("other")), key(&at("good"))]).await.unwrap_err();
    assert!(matches!(&locked, SshError::KeyLocked { path } if *path == at("good")), "{locked:?}");
    let open = Key::read(&at("good")).unwrap().unlock(&Secret::new("a phrase")).unwrap();
    works(log_in(&sshd, vec![Proof::Key(open)]).await.unwrap()).await;
}

/// The server knows none of the keys, only who certifies some.
#[tokio::test]
async fn a_certificate_beside_a_key_opens_a_session_where_the_key_alone_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let authority = make_key(&at("authority"), "ed25519", "");
    let alone = make_key(&at("alone"), "ed25519", "");
    let Some(sshd) = Sshd::start_trusting(&authority, &alone, false).await else { return };
    for kind in ["ed25519", "ecdsa", "rsa"] {
        make_key(&at(kind), kind, "");
        assert!(log_in(&sshd, vec![key(&at(kind))]).await.is_err(), "{kind}");
        certify(&at("authority"), &at(kind), "+1h");
        works(log_in(&sshd, vec![key(&at(kind))]).await.unwrap()).await;
    }
    // One that is of no use leaves the key as good as it was, and is named.
    certify(&at("authority"), &at("alone"), "-2h:-1h");
    works(log_in(&sshd, vec![key(&at("alone"))]).await.unwrap()).await;
    certify(&at("authority"), &at("rsa"), "-2h:-1h");
    let refused = log_in(&sshd, vec![key(&at("rsa"))]).await.unwrap_err().to_string();
    let both = format!("the certificate of the key {0}, the key {0}", at("rsa").display());
    assert!(refused.contains(&both), "{refused}");

    // An agent signs for the public half, also one that was never told of the certificate.
    std::fs::rename(at("ed25519-cert.pub"), at("kept")).unwrap();
    let agent = Agent::start(&[&at("ed25519")]).await;
    std::fs::rename(at("kept"), at("ed25519-cert.pub")).unwrap();
    let asked = || Proof::Agent(agent.socket.clone());
    assert!(log_in(&sshd, vec![asked()]).await.is_err());
    works(log_in(&sshd, vec![key(&at("ed25519.pub")), asked()]).await.unwrap()).await;

    make_key(&at("locked"), "ed25519", "a phrase");
    certify(&at("authority"), &at("locked"), "+1h");
    let locked = log_in(&sshd, vec![key(&at("locked"))]).await.unwrap_err();
    assert!(matches!(&locked, SshError::KeyLocked { path } if *path == at("locked")), "{locked:?}");
    let open = Key::read(&at("locked")).unwrap().unlock(&Secret::new("a phrase")).unwrap();
    works(log_in(&sshd, vec![Proof::Key(open)]).await.unwrap()).await;

    std::fs::rename(at("locked-cert.pub"), at("alone-cert.pub")).unwrap();
    let other = Key::read(&at("alone")).unwrap_err().to_string();
    assert!(other.contains("alone-cert.pub") && other.contains("another key"), "{other}");
}

#[tokio::test]
async fn connections_go_further_through_the_server_or_are_refused_with_its_reason() {
    let Some(sshd) = Sshd::start("", true).await else { return };
    let session = log_in(&sshd, vec![password(PASSWORD)]).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let _reverse = orchard::task::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.unwrap();
            bytes.reverse();
            stream.write_all(&bytes).await.unwrap();
        }
    });
    let origin: SocketAddr = "127.0.0.1:1".parse().unwrap();
    for length in [3u32, 1_000_000] {
        let mut stream = session.connect_on("localhost", port, origin).await.unwrap();
        let bytes: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
        stream.write_all(&bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = Vec::new();
        timeout(DEADLINE, stream.read_to_end(&mut back)).await.unwrap().unwrap();
        back.reverse();
        assert!(back == bytes, "{length} bytes there and back");
    }
    let (_held, closed) = crate::harness::refusing();
    let closed = closed.port();
    let Err(refused) = session.connect_on("localhost", closed, origin).await else { panic!("nothing listens there") };
    assert!(matches!(&refused, SshError::Forward { to, .. } if to.contains(&closed.to_string())), "{refused}");
    works(session).await;
}
