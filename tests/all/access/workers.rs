//! Workers and their keys: what a stolen one opens, and who may join how often.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use orchard::bus::access::{DeleteJoinToken, DeleteWorker, Join, Joined, ListJoinTokens};
use orchard::bus::client::{Bus, BusOptions, Login};
use orchard::bus::message::{Done, GetInfo, ListWorkers, Observation, Report};
use orchard::bus::subject::{self, WorkerVerb};
use orchard::config::join::BootstrapToken;
use orchard::identity::make_private_dir;
use orchard::model::error::ErrorCode;
use orchard::model::{SessionId, VmUid, WorkerName};
use orchard::worker::join::{Candidate, JoinError, Member};
use orchard::worker::runtime::synthetic::Synthetic;
use uuid::Uuid;

use super::people::Raw;
use crate::harness::{Cluster, LIMIT};
use crate::wait::{self, PROMPT};

fn name(text: &str) -> WorkerName {
    text.parse().unwrap()
}

async fn token(cluster: &Cluster, ttl: u64, uses: u32, worker: Option<&str>) -> BootstrapToken {
    let made = cluster.controller.create_join_token(Duration::from_secs(ttl), uses, worker.map(name)).await.unwrap();
    assert_eq!(made.bus_url.as_deref(), Some(cluster.access.url.as_str()));
    BootstrapToken {
        url: made.bus_url.unwrap(),
        fingerprint: made.fingerprint.map(|print| print.parse().unwrap()),
        id: made.id.parse().unwrap(),
        secret: made.secret,
    }
}

async fn join(token: &BootstrapToken, worker: &str, data_dir: &Path, machine_id: &str) -> Result<Member, JoinError> {
    make_private_dir(data_dir).unwrap();
    let candidate =
        Candidate { data_dir, name: Some(name(worker)), default_name: None, machine_id, token: Some(token.clone()) };
    candidate.become_member().await
}

fn code(refused: Result<Member, JoinError>) -> ErrorCode {
    match refused.unwrap_err() {
        JoinError::Bus(error) => error.code,
        JoinError::TokenRefused { .. } => ErrorCode::Unauthenticated,
        other => panic!("{other}"),
    }
}

/// A worker `victim` that runs, and the key of another, `thief`.
async fn thief() -> (Cluster, BusOptions) {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("victim", Arc::new(Synthetic::new())).await;
    let stolen = cluster.access.join(&name("thief"), &cluster.worker_dir("thief")).await;
    (cluster, stolen)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stolen_worker_key_calls_no_api() {
    let (cluster, stolen) = thief().await;
    let bus = Bus::connect(stolen.clone()).await.unwrap();
    let admin = cluster.access.account();
    assert_eq!(bus.call(&admin, &GetInfo {}, LIMIT).await.unwrap_err().code, ErrorCode::Forbidden);
    let as_itself = bus.call(&"thief".parse().unwrap(), &ListWorkers::default(), LIMIT).await;
    assert_eq!(as_itself.unwrap_err().code, ErrorCode::Forbidden);
    // A user's name beside the key changes nothing.
    let named = BusOptions { user: admin.to_string(), ..stolen };
    let bus = Bus::connect(named).await.unwrap();
    assert_eq!(bus.call(&admin, &GetInfo {}, LIMIT).await.unwrap_err().code, ErrorCode::Forbidden);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_cannot_forge_anothers_report() {
    let (_cluster, stolen) = thief().await;
    let bus = Bus::connect(stolen).await.unwrap();
    let report = Report {
        session: SessionId(Uuid::nil()),
        uid: VmUid(Uuid::nil()),
        attempt: 0,
        boot: 0,
        observation: Observation::Absent,
    };
    for verb in WorkerVerb::ALL {
        let refused = bus.request::<_, Done>(subject::worker(&name("victim"), verb), &report, LIMIT).await;
        assert_eq!(refused.unwrap_err().code, ErrorCode::Forbidden);
    }
    let own = bus.request::<_, Done>(subject::worker(&name("thief"), WorkerVerb::Report), &report, LIMIT).await;
    assert_eq!(own.unwrap_err().code, ErrorCode::Unauthenticated, "its own is heard, and has no session");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_reads_neither_anothers_assignments_nor_inbox_nor_events() {
    let (cluster, stolen) = thief().await;
    let raw = Raw::connect(&stolen).await.unwrap();
    let tried = [
        subject::assign(&name("victim")),
        "orchard.v1.worker.*.assign".into(),
        "orchard.v1.worker.>".into(),
        "_INBOX.>".into(),
        format!("{}.>", subject::inbox("worker/victim")),
        format!("{}.>", subject::inbox(cluster.access.account.as_str())),
        subject::ALL_EVENTS.into(),
        ">".into(),
    ];
    let mut heard = Vec::new();
    for subject in &tried {
        heard.push(raw.client.subscribe(subject.clone()).await.unwrap());
    }
    assert_eq!(raw.refused("Subscription").await, tried);
    cluster.run(&["create", "vm", "secret", "--image", "any", "--wait"]).await;
    raw.client.flush().await.unwrap();
    for mut subscription in heard {
        let message = futures_util::FutureExt::now_or_never(subscription.next()).flatten();
        assert!(message.is_none(), "{message:?}");
    }
}

/// A token with a short life, in use while it lives: on a busy machine a second may be over before anybody has connected.
async fn token_that_ends(cluster: &Cluster) -> (BootstrapToken, Raw, Duration) {
    for ttl in [1, 5, 20] {
        let short = token(cluster, ttl, 9, None).await;
        let login = cluster.access.options(&subject::join_user(&short.id), Login::Password(short.secret.clone()));
        if let Ok(raw) = Raw::connect(&login).await {
            return (short, raw, Duration::from_secs(ttl));
        }
    }
    panic!("no token lives for long enough to connect with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bootstrap_token_lets_in_as_many_machines_as_it_says_and_none_after_its_end() {
    let cluster = Cluster::start().await;
    let folder = |n: &str| cluster.dir.path().join(n);
    let once = token(&cluster, 600, 1, None).await;
    join(&once, "a", &folder("a"), "m-a").await.unwrap();
    assert_eq!(code(join(&once, "b", &folder("b"), "m-b").await), ErrorCode::LimitExceeded, "used up");
    let (short, lurker, ttl) = token_that_ends(&cluster).await;
    assert!(lurker.ended().await < ttl + PROMPT, "its connections end with it");
    assert_eq!(code(join(&short, "c", &folder("c"), "m-c").await), ErrorCode::Unauthenticated);
    let wrong = BootstrapToken { secret: orchard::identity::new_token(), ..token(&cluster, 600, 1, None).await };
    assert_eq!(code(join(&wrong, "d", &folder("d"), "m-d").await), ErrorCode::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_used_up_or_taken_back_keeps_nothing_open_and_the_last_machine_may_ask_again() {
    let cluster = Cluster::start().await;
    let login = |token: &BootstrapToken| {
        cluster.access.options(&subject::join_user(&token.id), Login::Password(token.secret.clone()))
    };
    let once = token(&cluster, 600, 1, None).await;
    let lurker = Raw::connect(&login(&once)).await.unwrap();
    let asked = |key: String| Join { worker: name("a"), public_key: key, machine_id: "m".into() };
    let key = nkeys::KeyPair::new_user().public_key();
    let bus = Bus::connect(login(&once)).await.unwrap();
    bus.request::<_, Joined>(subject::join(&once.id), &asked(key.clone()), LIMIT).await.unwrap();
    assert!(lurker.ended().await < PROMPT, "it is used up");
    // Its answer may have been lost: the same machine is answered the same, and no other one is let in.
    let again = Bus::connect(login(&once)).await.unwrap();
    again.request::<_, Joined>(subject::join(&once.id), &asked(key), LIMIT).await.unwrap();
    let other = nkeys::KeyPair::new_user().public_key();
    let refused = again.request::<_, Joined>(subject::join(&once.id), &asked(other), LIMIT).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::LimitExceeded);

    let many = token(&cluster, 600, 9, Some("b")).await;
    let lurker = Raw::connect(&login(&many)).await.unwrap();
    let listed = cluster.access.call(&ListJoinTokens::default()).await.unwrap().tokens;
    let seen = listed.iter().find(|seen| seen.id == many.id).unwrap();
    assert_eq!((seen.uses_left, seen.worker.as_ref()), (9, Some(&name("b"))));
    cluster.access.call(&DeleteJoinToken { id: many.id.clone() }).await.unwrap();
    assert!(lurker.ended().await < PROMPT, "it is taken back");
    assert_eq!(Bus::connect(login(&many)).await.unwrap_err().code, ErrorCode::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_joins_may_do_nothing_else() {
    let cluster = Cluster::start().await;
    let token = token(&cluster, 600, 5, None).await;
    let login = cluster.access.options(&subject::join_user(&token.id), Login::Password(token.secret.clone()));
    let bus = Bus::connect(login).await.unwrap();
    let other = orchard::model::account::JoinId::new([9; 8]);
    for subject in [
        subject::api(&cluster.access.account, "vm", "list"),
        subject::worker(&name("w"), WorkerVerb::Hello),
        subject::join(&other),
    ] {
        let refused = bus.request::<_, Done>(subject, &GetInfo {}, LIMIT).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Forbidden);
    }
    let bad = Join { worker: name("w"), public_key: "UABC".into(), machine_id: "m".into() };
    let refused = bus.request::<_, Joined>(subject::join(&token.id), &bad, LIMIT).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Invalid);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_machine_of_the_same_name_is_told_what_to_do() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w", Arc::new(Synthetic::new())).await;
    let token = token(&cluster, 600, 5, None).await;
    let refused = join(&token, "w", &cluster.dir.path().join("second"), "another").await.unwrap_err();
    let JoinError::Bus(error) = refused else { panic!("{refused}") };
    assert_eq!(error.code, ErrorCode::Conflict);
    assert!(error.message.contains("orchard delete worker w") && error.message.contains("--name"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_worker_is_cut_off_at_once_and_may_join_again() {
    let cluster = Cluster::start().await;
    let data_dir = cluster.worker_dir("w");
    let login = cluster.access.join(&name("w"), &data_dir).await;
    let raw = Raw::connect(&login).await.unwrap();
    cluster.access.call(&DeleteWorker { name: name("w"), force: false }).await.unwrap();
    assert!(raw.ended().await < PROMPT);
    assert_eq!(Bus::connect(login.clone()).await.unwrap_err().code, ErrorCode::Unauthenticated);
    let again = cluster.access.join(&name("w"), &data_dir).await;
    Bus::connect(again).await.unwrap();
    assert!(Bus::connect(login).await.is_err(), "with another key");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_lost_its_key_comes_back_with_a_token_of_its_own() {
    let cluster = Cluster::start().await;
    let data_dir = cluster.worker_dir("w");
    let old = cluster.access.join(&name("w"), &data_dir).await;
    let raw = Raw::connect(&old).await.unwrap();
    std::fs::remove_dir_all(&data_dir).unwrap();
    let any = token(&cluster, 600, 5, None).await;
    assert_eq!(code(join(&any, "w", &data_dir, "test-w").await), ErrorCode::Conflict);
    let bound = token(&cluster, 600, 5, Some("w")).await;
    assert_eq!(code(join(&bound, "v", &cluster.worker_dir("v"), "test-w").await), ErrorCode::Forbidden);
    join(&bound, "w", &data_dir, "test-w").await.unwrap();
    assert!(raw.ended().await < PROMPT, "the old key is nobody's");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vms_of_a_worker_that_was_given_up_start_elsewhere() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("old", Arc::new(Synthetic::new())).await;
    cluster.run(&["create", "vm", "a", "--image", "any", "--restart-policy", "OnFailure", "--wait"]).await;
    cluster.add_worker("new", Arc::new(Synthetic::new())).await;
    let delete = |force| DeleteWorker { name: name("old"), force };
    let refused = cluster.access.call(&delete(false)).await.unwrap_err();
    assert!(refused.code == ErrorCode::Conflict && refused.message.contains("--force"), "{refused}");
    cluster.access.call(&delete(true)).await.unwrap();
    wait::until("the VM to run elsewhere", LIMIT, || async {
        let vm = cluster.json(&["get", "vm", "a"]).await;
        if vm["worker"] == "new" && vm["status"] == "running" { Ok(()) } else { Err(vm) }
    })
    .await;
    let workers = cluster.access.call(&ListWorkers::default()).await.unwrap().workers;
    assert!(workers.iter().all(|seen| seen.worker.info.name != name("old")), "it does not come back by itself");
}
