//! Who may connect and what they may do: each kind of credentials, their end, and rights that change while clients are
//! connected. Texts as recorded from nats-server 2.15.1.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_nats::{ConnectErrorKind, ConnectOptions};
use orchard::broker::auth::{Authenticator, Credentials, Denied, Exchangeable, StaticUsers, User};
use orchard::broker::permission::{Permissions, Responses, Rules};
use orchard::broker::{Broker, Limits};

use super::support::{Raw, start};

fn all() -> Permissions {
    Permissions::default()
}

fn options(user: &str) -> String {
    format!(r#"{{"verbose":false,"headers":true,"no_responders":true,"user":"{user}","pass":"x"}}"#)
}

async fn login(broker: &Broker, user: &str) -> Raw {
    let mut raw = Raw::with(broker, &options(user)).await;
    assert_eq!(raw.until_pong().await, "");
    raw
}

#[tokio::test]
async fn a_token_opens_and_is_not_shown() {
    let users = StaticUsers::default().with_token("t0ken", all());
    let broker = start(Broker::builder().authenticator(Arc::new(users))).await;
    let mut raw = Raw::silent(&broker).await;
    let info = raw.line().await;
    assert!(info.contains("\"auth_required\":true") && !info.contains("nonce"), "{info}");
    raw.send(b"CONNECT {\"verbose\":false,\"auth_token\":\"t0ken\"}\r\nSUB i 1\r\nPUB $SYS.REQ.USER.INFO i 0\r\n\r\n")
        .await;
    let answer = raw.until_pong().await;
    assert!(answer.contains("\"user\":\"[REDACTED]\"") && !answer.contains("t0ken"), "{answer}");
    for wrong in [r#"{"auth_token":"no"}"#, r#"{"user":"t0ken"}"#, r#"{"user":"x","pass":"t0ken"}"#, "{}"] {
        let seen = Raw::with(&broker, wrong).await.until_closed().await;
        assert_eq!(seen, "-ERR 'Authorization Violation'\r\n", "{wrong}");
    }
    let address = broker.local_addr().to_string();
    ConnectOptions::with_token("t0ken".into()).connect(&address).await.unwrap().flush().await.unwrap();
    broker.shutdown().await;
}

#[tokio::test]
async fn the_owner_of_an_nkey_signs_the_nonce() {
    let (ann, other) = (nkeys::KeyPair::new_user(), nkeys::KeyPair::new_user());
    let users = StaticUsers::default().with_nkey(&ann.public_key(), all());
    let broker = start(Broker::builder().authenticator(Arc::new(users))).await;
    let mut raw = Raw::silent(&broker).await;
    let info = raw.line().await;
    let info: serde_json::Value = serde_json::from_str(info.strip_prefix("INFO ").unwrap()).unwrap();
    assert_eq!(info["nonce"].as_str().unwrap().len(), 15);
    let again = Raw::silent(&broker).await.line().await;
    assert!(!again.contains(info["nonce"].as_str().unwrap()), "a nonce is used once");
    let address = broker.local_addr().to_string();
    let client = ConnectOptions::with_nkey(ann.seed().unwrap()).connect(&address).await.unwrap();
    client.flush().await.unwrap();
    let refused = ConnectOptions::with_nkey(other.seed().unwrap()).connect(&address).await.unwrap_err();
    assert_eq!(refused.kind(), ConnectErrorKind::AuthorizationViolation);
    let nkey = format!(r#"{{"nkey":"{}","sig":"AAAA"}}"#, ann.public_key());
    assert_eq!(Raw::with(&broker, &nkey).await.until_closed().await, "-ERR 'Authorization Violation'\r\n");
    broker.shutdown().await;
}

#[tokio::test]
async fn signed_claims_reach_the_embedders_authenticator() {
    struct Claims;
    impl Authenticator for Claims {
        fn authenticate(&self, credentials: &Credentials<'_>) -> Result<User, Denied> {
            let known = credentials.jwt == Some("a.b.c") && credentials.sig == Some("s") && credentials.nonce.is_some();
            if known { Ok(User::new("claimed", all())) } else { Err(Denied::because("no claims")) }
        }

        fn wants_nonce(&self) -> bool {
            true
        }
    }
    let broker = start(Broker::builder().authenticator(Arc::new(Claims))).await;
    let mut raw = Raw::with(&broker, r#"{"verbose":false,"jwt":"a.b.c","sig":"s"}"#).await;
    assert_eq!(raw.until_pong().await, "");
    broker.shutdown().await;
}

#[tokio::test]
async fn pings_begin_when_a_client_is_let_in() {
    let (ping_interval, auth_timeout) = (Duration::from_millis(50), Duration::from_secs(3_600));
    let limits = Limits { ping_interval, auth_timeout, ..Limits::default() };
    let users = StaticUsers::default().with("a", "x", all());
    let broker = start(Broker::builder().authenticator(Arc::new(users)).limits(limits)).await;
    let mut client = login(&broker, "a").await;
    assert_eq!(client.line().await, "PING", "and not an hour later");
    broker.shutdown().await;
}

#[tokio::test]
async fn credentials_that_expire_close_the_connection() {
    struct Brief;
    impl Authenticator for Brief {
        fn authenticate(&self, credentials: &Credentials<'_>) -> Result<User, Denied> {
            // The brief one is long enough for an answer before its end, on a busy machine, too.
            let life = Duration::from_secs(if credentials.user == Some("long") { 3_600 } else { 3 });
            Ok(User { expires: Some(SystemTime::now() + life), ..User::new("brief", all()) })
        }
    }
    let broker = start(Broker::builder().authenticator(Arc::new(Brief))).await;
    let mut long = login(&broker, "long").await;
    let mut brief = login(&broker, "brief").await;
    assert_eq!(brief.until_closed().await, "-ERR 'User Authentication Expired'\r\n");
    long.send(b"SUB i 1\r\nPUB $SYS.REQ.USER.INFO i 0\r\n\r\n").await;
    let answer = long.until_pong().await;
    assert!(answer.contains("\"expires\":35"), "the hour that is left, in nanoseconds: {answer}");
    broker.shutdown().await;
}

#[tokio::test]
async fn who_may_answer_answers_where_it_was_asked() {
    let responses = Responses { max: Some(2), expires: Some(Duration::from_secs(60)) };
    let service = Permissions { subscribe: Rules::allow(["req"]), allow_responses: Some(responses), ..all() };
    let brief = Responses { max: None, expires: Some(Duration::ZERO) };
    let late = Permissions { allow_responses: Some(brief), ..service.clone() };
    let users = StaticUsers::default().with("s", "x", service).with("late", "x", late).with("z", "x", all());
    let broker = start(Broker::builder().authenticator(Arc::new(users))).await;
    let (mut service, mut late, mut asker) =
        (login(&broker, "s").await, login(&broker, "late").await, login(&broker, "z").await);
    service.send(b"SUB req 1\r\n").await;
    late.send(b"SUB req 1\r\n").await;
    assert_eq!((service.until_pong().await, late.until_pong().await), (String::new(), String::new()));
    asker.send(b"SUB in.> 1\r\nPUB req in.1 0\r\n\r\n").await;
    asker.until_pong().await;
    for asked in [&mut service, &mut late] {
        assert_eq!(asked.until_pong().await, "MSG req 1 in.1 0\r\n\r\n");
    }
    let refused = "-ERR 'Permissions Violation for Publish to \"in.1\"'\r\n";
    for expected in ["", "", refused, refused] {
        service.send(b"PUB in.1 1\r\nx\r\n").await;
        assert_eq!(service.until_pong().await, expected);
    }
    late.send(b"PUB in.1 1\r\ny\r\n").await;
    assert_eq!(late.until_pong().await, refused, "its time is over");
    service.send(b"PUB in.2 1\r\nx\r\n").await;
    assert_eq!(service.until_pong().await, refused.replace("in.1", "in.2"), "nobody asked there");
    assert_eq!(asker.until_pong().await, "MSG in.1 1 1\r\nx\r\n".repeat(2));
    broker.shutdown().await;
}

#[tokio::test]
async fn rights_that_change_hold_at_once() {
    let rules = |subscribe: Rules, publish: Rules| Permissions { subscribe, publish, ..all() };
    let before = rules(Rules::allow(["s.>", "q.* qq", "f.>"]), Rules::allow(["foo", "s.>"]));
    let after = rules(Rules::allow(["s.x", "f.>"]).deny(["f.secret"]), Rules::allow(["bar", "s.>"]));
    let list = |permissions| StaticUsers::default().with("a", "x", permissions).with("z", "x", all());
    let users = Arc::new(Exchangeable::new(list(before)));
    let broker = start(Broker::builder().authenticator(users.clone())).await;
    let (mut a, mut z) = (login(&broker, "a").await, login(&broker, "z").await);
    a.send(b"SUB s.> 1\r\nSUB q.a qq 2\r\nSUB s.x 3\r\nSUB f.> 4\r\nPUB foo 0\r\n\r\n").await;
    assert_eq!(a.until_pong().await, "");
    z.send(b"SUB s.> 1\r\nPUB f.secret 1\r\n1\r\n").await;
    assert_eq!(z.until_pong().await, "");
    assert_eq!(a.until_pong().await, "MSG f.secret 4 1\r\n1\r\n");

    users.replace(list(after));
    assert_eq!(broker.recheck_user("nobody"), 0);
    assert_eq!(broker.recheck_user("a"), 1);
    let mut told = [a.line().await, a.line().await];
    told.sort();
    assert_eq!(
        told,
        [
            "-ERR 'Permissions Violation for Subscription to \"q.a\" using queue \"qq\" (sid \"2\")'",
            "-ERR 'Permissions Violation for Subscription to \"s.>\" (sid \"1\")'",
        ]
    );
    z.send(b"PUB s.x 0\r\n\r\nPUB s.y 0\r\n\r\nPUB f.secret 1\r\n2\r\nPUB f.open 1\r\n3\r\n").await;
    z.until_pong().await;
    a.send(b"PUB foo 0\r\n\r\nPUB bar 0\r\n\r\n").await;
    let seen = a.until_pong().await;
    assert!(!seen.contains("f.secret") && !seen.contains("s.y"), "{seen}");
    let refused = "-ERR 'Permissions Violation for Publish to \"foo\"'\r\n";
    assert_eq!(seen, format!("MSG s.x 3 0\r\n\r\nMSG f.open 4 1\r\n3\r\n{refused}"));
    broker.shutdown().await;
}

#[tokio::test]
async fn who_is_no_longer_a_user_is_sent_off() {
    let list = |password: &str| StaticUsers::default().with("a", password, all()).with("z", "x", all());
    let users = Arc::new(Exchangeable::new(list("x")));
    let broker = start(Broker::builder().authenticator(users.clone())).await;
    let (mut a, mut z) = (login(&broker, "a").await, login(&broker, "z").await);
    assert_eq!(broker.recheck_all(), 2);
    assert_eq!((a.until_pong().await, z.until_pong().await), (String::new(), String::new()), "nothing has changed");
    users.replace(list("another"));
    assert_eq!(broker.recheck_all(), 2);
    assert_eq!(a.until_closed().await, "-ERR 'Authorization Violation'\r\n");
    assert_eq!(broker.disconnect_user("z"), 1);
    assert_eq!(z.until_closed().await, "-ERR 'User Authentication Revoked'\r\n");
    broker.shutdown().await;
}

#[tokio::test]
async fn a_busy_client_is_rechecked_too() {
    let list = |publish| StaticUsers::default().with("a", "x", Permissions { publish, ..all() });
    let users = Arc::new(Exchangeable::new(list(Rules::allow(["foo"]))));
    let broker = start(Broker::builder().authenticator(users.clone())).await;
    let mut busy = login(&broker, "a").await;
    let frames = b"PUB foo 0\r\n\r\n".repeat(2_000);
    busy.send(&frames).await;
    users.replace(list(Rules::allow(["bar"])));
    broker.recheck_all();
    busy.send(&frames).await;
    let seen = busy.until_pong().await;
    assert!(seen.contains("Permissions Violation for Publish to \"foo\""), "{}", seen.len());
    broker.shutdown().await;
}

/// Whoever listens on a denied pattern gets what is published with a wildcard in its place, and is shielded from it too.
#[tokio::test]
async fn a_published_wildcard_does_not_get_around_a_denial() {
    let publisher = Permissions { publish: Rules::default().deny(["a.*"]), ..all() };
    let listener = Permissions { subscribe: Rules::default().deny(["b.*"]), ..all() };
    let users = StaticUsers::default().with("publisher", "x", publisher).with("listener", "x", listener);
    let broker = start(Broker::builder().authenticator(Arc::new(users))).await;
    let mut publisher = login(&broker, "publisher").await;
    let mut listener = login(&broker, "listener").await;
    listener.send(b"SUB a.* 1\r\nSUB b.> 2\r\n").await;
    assert_eq!(listener.until_pong().await, "");
    publisher.send(b"CONNECT {\"pedantic\":false,\"verbose\":false,\"user\":\"publisher\",\"pass\":\"x\"}\r\n").await;
    publisher.send(b"PUB a.> 1\r\nx\r\nPUB b.> 1\r\nx\r\nPUB b.* 1\r\nx\r\nPUB b.b.c 1\r\nx\r\n").await;
    assert_eq!(publisher.until_pong().await, "-ERR 'Permissions Violation for Publish to \"a.>\"'\r\n");
    assert_eq!(listener.until_pong().await, "MSG b.b.c 2 1\r\nx\r\n");
    broker.shutdown().await;
}
