//! Random subjects: whatever anybody tries, nobody ever receives a message that was not meant for it.

use std::sync::Arc;

use futures_util::StreamExt;
use orchard::bus::client::BusOptions;
use orchard::bus::client::Login;
use orchard::bus::subject;
use orchard::model::access::Role;
use orchard::worker::runtime::synthetic::Synthetic;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::people::{Raw, account, as_account};
use crate::harness::{Cluster, LIMIT};
use crate::wait;

/// What each identity tries.
const TRIES: usize = 300;
/// In every message of an attacker, and in none of the controller's.
const FORGED: &str = "forged by an attacker";

/// Subjects and patterns made of the words that mean something here.
fn tries(wildcards: bool) -> impl Strategy<Value = String> {
    let mut words = vec![
        "orchard",
        "v1",
        "api",
        "worker",
        "events",
        "vm",
        "audit",
        "join",
        "assign",
        "command",
        "report",
        "hello",
        "create",
        "list",
        "_INBOX",
        "reader",
        "admin",
        "bootstrap-admin",
        "victim",
        "worker/victim",
        "worker/thief",
        "thief",
        "controller/self",
        "$SYS",
        "$SRV",
        "PING",
        "REQ",
        "deleted",
        "a",
    ];
    if wildcards {
        words.extend(["*", "*", "*", ">"]);
    }
    let word = prop::sample::select(words);
    let begin = prop_oneof![
        2 => Just(""),
        3 => Just("orchard.v1."),
        3 => Just("orchard.v1.worker."),
        3 => Just("orchard.v1.events."),
        3 => Just("orchard.v1.api."),
        3 => Just("_INBOX."),
    ];
    (begin, prop::collection::vec(word, 1..5)).prop_map(|(begin, words)| {
        // A full wildcard stands last or is none.
        let (last, front) = words.split_last().unwrap();
        let front: Vec<&str> = front.iter().map(|word| if *word == ">" { "*" } else { word }).collect();
        let dot = if front.is_empty() { "" } else { "." };
        format!("{begin}{}{dot}{last}", front.join("."))
    })
}

/// Whether `subject` may reach the user `name`, written down apart from the code under test.
fn is_meant_for(name: &str, subject: &str) -> bool {
    let begins = |begin: &str| subject.starts_with(begin);
    match name {
        "reader" => begins("_INBOX.reader.") || begins("orchard.v1.events.vm.") || begins("orchard.v1.events.worker."),
        "auditor" => begins("_INBOX.auditor.") || begins("orchard.v1.events.audit."),
        "nothing" => begins("_INBOX.nothing."),
        "worker/thief" => {
            begins("_INBOX.worker/thief.")
                || subject == "orchard.v1.worker.thief.assign"
                || begins("orchard.v1.worker.thief.command.")
        }
        joining => begins(&format!("_INBOX.{joining}.")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_ever_receives_what_was_not_meant_for_it() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("victim", Arc::new(Synthetic::new())).await;
    let mut logins: Vec<BusOptions> = Vec::new();
    for (name, roles) in [("reader", &[Role::ComputeRead][..]), ("auditor", &[Role::AdminRead]), ("nothing", &[])] {
        logins.push(as_account(&account(&cluster, name, roles).await));
    }
    logins.push(cluster.access.join(&"thief".parse().unwrap(), &cluster.worker_dir("thief")).await);
    let made = cluster.controller.create_join_token(LIMIT, 1, None).await.unwrap();
    let joining = subject::join_user(&made.id.parse().unwrap());
    logins.push(cluster.access.options(&joining, Login::Password(made.secret)));

    let mut runner = TestRunner::default();
    let mut draw = |strategy: &dyn Fn() -> BoxedStrategy<String>| strategy().new_tree(&mut runner).unwrap().current();
    let (literal, pattern) = (|| tries(false).boxed(), || tries(true).boxed());
    let mut people = Vec::new();
    for login in &logins {
        let raw = Raw::connect(login).await.unwrap();
        let mut heard = Vec::new();
        for subject in ["orchard.v1.events.vm.>", "orchard.v1.events.>", ">", "*.>", "_INBOX.*.>", "_INBOX.>"] {
            heard.push(raw.client.subscribe(subject).await.unwrap());
        }
        for _ in 0..TRIES {
            heard.push(raw.client.subscribe(draw(&pattern)).await.unwrap());
        }
        raw.client.flush().await.unwrap();
        people.push((login.user.clone(), raw, heard));
    }
    for (_, raw, _) in &people {
        for _ in 0..TRIES {
            raw.client.publish_with_reply(draw(&literal), draw(&literal), FORGED.into()).await.unwrap();
        }
        raw.client.flush().await.unwrap();
    }
    // Real traffic: requests and answers, assignments, events.
    cluster.run(&["create", "vm", "a", "--image", "any", "--wait"]).await;
    cluster.run(&["delete", "vm", "a"]).await;
    let deleted = tokio::time::timeout(LIMIT, async {
        let events = &mut people[0].2[0];
        while let Some(message) = events.next().await {
            if message.subject.ends_with(".deleted") {
                return;
            }
        }
    });
    deleted.await.expect("the reader hears what it may");

    for (name, raw, heard) in people {
        raw.client.flush().await.unwrap();
        let told = raw.told();
        assert!(!told.iter().any(|said| said == "disconnected"), "{name}: {told:?}");
        for mut subscription in heard {
            while let Some(Some(message)) = futures_util::FutureExt::now_or_never(subscription.next()) {
                assert!(is_meant_for(&name, &message.subject), "{name} received {}", message.subject);
                assert!(&message.payload[..] != FORGED.as_bytes(), "{name} was deceived on {}", message.subject);
            }
        }
    }
    wait::until("the cluster to be as it should", LIMIT, || async {
        let workers = cluster.json(&["list", "workers"]).await;
        if workers.as_array().is_some_and(|all| all.len() == 1) { Ok(()) } else { Err(workers) }
    })
    .await;
}
