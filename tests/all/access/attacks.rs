//! What an account may not do, each tried: other people's inboxes, rights that were taken away, names that are none.

use std::time::Duration;

use futures_util::StreamExt;
use orchard::bus::access::{CreateAccount, DeleteAccount, Expiry, RotateAccount, UpdateAccount};
use orchard::bus::client::{Login, Trust};
use orchard::bus::message::{Done, GetInfo, ListVms, encode};
use orchard::bus::subject;
use orchard::model::Timestamp;
use orchard::model::access::{Role, Roles};
use orchard::model::error::ErrorCode;
use serde::Serialize;

use super::people::{Raw, account, as_account};
use crate::harness::{Cluster, LIMIT};
use crate::wait::{self, PROMPT};

/// What a wrong token waits for its answer once there were too many.
const PENALTY: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_accounts_connection_is_closed_at_once() {
    let cluster = Cluster::start().await;
    let thief = account(&cluster, "thief", &[Role::ComputeRead]).await;
    let raw = Raw::connect(&as_account(&thief)).await.unwrap();
    cluster.access.call(&DeleteAccount { name: thief.account() }).await.unwrap();
    assert!(raw.ended().await < PROMPT);
    assert_eq!(thief.try_bus().await.unwrap_err().code, ErrorCode::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_rotated_away_opens_nothing_and_keeps_nothing_open() {
    let cluster = Cluster::start().await;
    let old = account(&cluster, "ci", &[Role::ComputeRead]).await;
    let raw = Raw::connect(&as_account(&old)).await.unwrap();
    let new = cluster.access.call(&RotateAccount { name: old.account() }).await.unwrap();
    assert!(raw.ended().await < PROMPT);
    assert_eq!(old.try_bus().await.unwrap_err().code, ErrorCode::Unauthenticated);
    cluster.access.of("ci", &new.token).call(&ListVms::default()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_given_and_taken_hold_for_open_connections_at_once() {
    let cluster = Cluster::start().await;
    let reader = account(&cluster, "reader", &[Role::ComputeRead]).await;
    let bus = reader.bus().await;
    let mut events = bus.subscribe("orchard.v1.events.vm.>").await.unwrap();
    bus.call(&reader.account, &ListVms::default(), LIMIT).await.unwrap();
    let become_ =
        |roles: Roles| UpdateAccount { name: reader.account(), roles: Some(roles), expiry: None, ssh_keys: None };
    cluster.access.call(&become_(Roles::default())).await.unwrap();
    let started = std::time::Instant::now();
    wait::until("the verb to be refused", LIMIT, || async {
        match bus.call(&reader.account, &ListVms::default(), LIMIT).await {
            Err(error) if error.code == ErrorCode::Forbidden => Ok(()),
            other => Err(other.map(drop)),
        }
    })
    .await;
    assert!(started.elapsed() < PROMPT);
    cluster.run(&["create", "vm", "unseen", "--image", "any"]).await;
    bus.flush().await.unwrap();
    assert!(futures_util::FutureExt::now_or_never(events.next()).flatten().is_none(), "the subscription has ended");
    cluster.access.call(&become_([Role::ComputeRead].into_iter().collect())).await.unwrap();
    let list = ListVms::default();
    wait::until("the verb to be allowed", PROMPT, || bus.call(&reader.account, &list, LIMIT)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_ends_is_cut_off_then() {
    let cluster = Cluster::start().await;
    let guest = account(&cluster, "guest", &[Role::ComputeRead]).await;
    let raw = Raw::connect(&as_account(&guest)).await.unwrap();
    // Open before the time is counted: the request must be there before the end.
    let bus = cluster.access.bus().await;
    let ends_in = Duration::from_secs(5);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let end = Timestamp::from_millis(i64::try_from((now + ends_in).as_millis()).unwrap());
    let update = UpdateAccount { name: guest.account(), roles: None, expiry: Some(Expiry::At(end)), ssh_keys: None };
    bus.call(&cluster.access.account, &update, LIMIT).await.unwrap();
    assert!(raw.ended().await < ends_in + PROMPT);
    assert_eq!(guest.try_bus().await.unwrap_err().code, ErrorCode::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_does_not_answer_into_anothers_inbox() {
    let cluster = Cluster::start().await;
    let attacker = account(&cluster, "attacker", Role::ALL).await;
    let victim = account(&cluster, "victim", &[Role::ComputeRead]).await.bus().await;
    let inbox = subject::inbox("victim");
    let mut heard = victim.subscribe(&format!("{inbox}.>")).await.unwrap();
    let raw = Raw::connect(&as_account(&attacker)).await.unwrap();
    let verb = subject::api(&attacker.account, "controller", "info");
    let request = encode(&GetInfo {}).unwrap();
    for reply in [format!("{inbox}.x"), "orchard.v1.events.vm.a.deleted".into(), "orchard.v1.worker.w.assign".into()] {
        raw.client.publish_with_reply(verb.clone(), reply, request.clone().into()).await.unwrap();
    }
    // Answered after those, were they answered.
    attacker.bus().await.call(&attacker.account, &GetInfo {}, LIMIT).await.unwrap();
    raw.client.flush().await.unwrap();
    attacker.bus().await.call(&attacker.account, &GetInfo {}, LIMIT).await.unwrap();
    victim.flush().await.unwrap();
    assert!(futures_util::FutureExt::now_or_never(heard.next()).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_none_are_refused_wherever_they_stand() {
    #[derive(Serialize)]
    struct Named<'a> {
        name: &'a str,
        roles: [&'a str; 0],
    }
    let cluster = Cluster::start().await;
    let bus = cluster.access.bus().await;
    let long = "x".repeat(129);
    for name in ["..", ".", "", "a/b", "worker/w", "controller/self", "a b", "a*", ">", "-a", "ä", "a\r\nb", &long] {
        let make = subject::api(&cluster.access.account, "service-account", "create");
        let refused = bus.request::<_, Done>(make, &Named { name, roles: [] }, LIMIT).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Invalid, "{name:?}: {refused}");
        let login = cluster.access.options(name, Login::Password(cluster.access.token.clone()));
        if !name.contains(['*', '>', ' ', '\r']) && !name.is_empty() && !name.starts_with('.') {
            assert!(Raw::connect(&login).await.is_err(), "{name:?}");
        }
    }
    let huge = "x".repeat(100_000);
    let make = subject::api(&cluster.access.account, "service-account", "create");
    let refused = bus.request::<_, Done>(make, &Named { name: &huge, roles: [] }, LIMIT).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Invalid);
    assert!(refused.message.len() < 1_000, "{} bytes of error", refused.message.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_plain_text_is_not_let_in() {
    let cluster = Cluster::start().await;
    let plain = crate::harness::Access {
        url: cluster.access.url.replace("tls://", "nats://"),
        trust: Trust::Plain,
        ..cluster.access.clone()
    };
    assert!(plain.try_bus().await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_account_that_manages_accounts_stays() {
    let cluster = Cluster::start().await;
    let name = cluster.access.account();
    assert_eq!(cluster.access.call(&DeleteAccount { name }).await.unwrap_err().code, ErrorCode::Conflict);
}

#[tokio::test(flavor = "multi_thread")]
async fn guessing_is_slowed_down_and_locks_out_nobody_else() {
    let cluster = Cluster::start().await;
    let other = account(&cluster, "other", &[Role::ComputeRead]).await;
    let victim = account(&cluster, "victim", &[Role::ComputeRead]).await;
    let guess = cluster.access.options("victim", Login::Password(orchard::identity::new_token()));
    // On a machine so slow that one is forgiven meanwhile, it takes one more.
    let (mut quick, mut late_ones) = (0, 0);
    loop {
        let asked = std::time::Instant::now();
        assert!(Raw::connect(&guess).await.is_err());
        // One alone may be late because the machine is.
        late_ones = if asked.elapsed() >= PENALTY { late_ones + 1 } else { 0 };
        if late_ones == 2 && quick >= 10 {
            break;
        }
        quick += 1;
        assert!(quick < 100, "nothing slows it down");
    }
    let asked = std::time::Instant::now();
    let late = async {
        assert!(Raw::connect(&guess).await.is_err());
        asked.elapsed()
    };
    let right = async {
        let mut times = Vec::new();
        for _ in 0..5 {
            let asked = std::time::Instant::now();
            victim.call(&ListVms::default()).await.unwrap();
            other.call(&ListVms::default()).await.unwrap();
            times.push(asked.elapsed());
        }
        times.into_iter().min().unwrap()
    };
    let (late, right) = tokio::join!(late, right);
    assert!(
        late >= PENALTY && right < PENALTY,
        "a wrong token waits {late:?}, the right one from there only {right:?}"
    );
    // A crowd that guesses on is told as a number.
    let crowd = (0..100).map(|_| Raw::connect(&guess));
    assert!(futures_util::future::join_all(crowd).await.iter().all(Result::is_err));
    victim.call(&ListVms::default()).await.unwrap();
    let records = cluster.run(&["audit", "--output", "json"]).await;
    let told = records.lines().filter(|record| record.contains("login-failed")).count();
    assert!(quick >= 10 && told <= quick + 1, "{told} records of {quick} and a crowd: {records}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_shown_once_and_in_no_answer_after_that() {
    let cluster = Cluster::start().await;
    let chosen = orchard::identity::new_token();
    let request = CreateAccount {
        name: "ci".parse().unwrap(),
        roles: Roles::default(),
        expires_at: None,
        token: Some(chosen.clone()),
        ssh_keys: Vec::new(),
    };
    let made = cluster.access.call(&request).await.unwrap();
    assert_eq!(made.token, chosen);
    for command in [&["get", "service-account", "ci"][..], &["list", "service-accounts"]] {
        let shown = cluster.json(command).await.to_string();
        assert!(shown.contains("ci") && !shown.contains(chosen.expose()) && !shown.contains("ash"), "{shown}");
    }
}
