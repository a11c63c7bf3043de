//! The bus as others see it: stock tools, unknown verbs, and who may say what.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use orchard::bus::message::{Done, GetVm, ListVms, ListWorkers};
use orchard::bus::subject;
use orchard::model::error::ErrorCode;
use orchard::worker::runtime::synthetic::Synthetic;

use crate::harness::{Cluster, LIMIT};
use crate::wait::until;

/// What is refused by silence is waited for so long.
const SILENCE: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_verb_and_an_unreadable_request_are_answered() {
    let cluster = Cluster::start().await;
    let bus = cluster.access.bus().await;
    // The broker lets nobody say what the table of verbs does not hold, and the client tells that at once.
    let subject = subject::api(&cluster.access.account(), "vm", "frobnicate");
    let answer = bus.request::<_, Done>(subject, &ListVms::default(), LIMIT).await;
    assert_eq!(answer.unwrap_err().code, ErrorCode::Forbidden);
    let subject = subject::api(&cluster.access.account(), "vm", "get");
    let answer = bus.request::<_, Done>(subject, &"no such message", LIMIT).await;
    assert_eq!(answer.unwrap_err().code, ErrorCode::Invalid);
    let absent = GetVm { name: "absent".parse().unwrap() };
    assert_eq!(bus.call(&cluster.access.account(), &absent, LIMIT).await.unwrap_err().code, ErrorCode::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controller_answers_to_inboxes_only_and_speaks_on_no_subject_in_anothers_stead() {
    let cluster = Cluster::start().await;
    let bus = cluster.access.bus().await;
    let forged = "orchard.v1.events.vm.a.deleted";
    let mut heard = bus.subscribe(forged).await.unwrap();
    let subject = subject::api(&cluster.access.account(), "vm", "list");
    bus.raw().publish_with_reply(subject, forged, "".into()).await.unwrap();
    cluster.run(&["list", "vms"]).await;
    let heard = tokio::time::timeout(SILENCE, heard.next()).await;
    assert!(!matches!(heard, Ok(Some(_))), "{heard:?}");
}

/// The asker says where its answers go, so the controller would speak to others in the asker's place.
#[tokio::test(flavor = "multi_thread")]
async fn the_nats_service_api_is_not_for_accounts() {
    let cluster = Cluster::start().await;
    let bus = cluster.access.bus().await;
    for subject in ["$SRV.PING", "$SRV.INFO.orchard", "$SRV.STATS.orchard"] {
        let refused = bus.request::<_, Done>(subject.to_owned(), &ListVms::default(), LIMIT).await;
        assert_eq!(refused.unwrap_err().code, ErrorCode::Forbidden, "{subject}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_is_told_so_at_once() {
    let cluster = Cluster::start().await;
    let mut command = cluster.cli(&["list", "vms"]);
    command.env("ORCHARD_SERVICE_ACCOUNT_TOKEN", "wrong");
    let output = crate::harness::finish(command).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("token"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_works_in_a_terminal_in_the_guest() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("w", Arc::new(Synthetic::new())).await;
    cluster.run(&["create", "vm", "desk", "--image", "any", "--wait"]).await;
    let ssh = cluster.cli(&["ssh", "vm", "desk"]);
    let mut person = tokio::process::Command::new("python3");
    person.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/interactive.py"));
    person.arg(ssh.as_std().get_program()).args(ssh.as_std().get_args());
    for (key, value) in ssh.as_std().get_envs() {
        person.env(key, value.unwrap());
    }
    let output = crate::harness::finish(person).await;
    assert_eq!(output.status.code(), Some(5), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_come_in_pages_and_the_command_line_shows_them_all() {
    let mut cluster = Cluster::start().await;
    for name in ["w1", "w2", "w3"] {
        cluster.add_worker(name, Arc::new(Synthetic::new())).await;
    }
    let (mut after, mut names, mut pages) = (None, Vec::new(), 0);
    until("all workers", LIMIT, || async {
        let all = cluster.access.call(&ListWorkers::default()).await.unwrap();
        if all.workers.len() == 3 && !all.more { Ok(()) } else { Err(all.workers.len()) }
    })
    .await;
    loop {
        let page = cluster.access.call(&ListWorkers { after, limit: 2 }).await.unwrap();
        names.extend(page.workers.iter().map(|view| view.worker.info.name.to_string()));
        after = page.workers.last().map(|view| view.worker.info.name.clone());
        pages += 1;
        if !page.more {
            break;
        }
    }
    assert_eq!((names, pages), (vec!["w1".to_owned(), "w2".to_owned(), "w3".to_owned()], 2));
    assert_eq!(cluster.run(&["list", "workers", "--quiet"]).await.split_whitespace().count(), 3);
}
