//! Every set of roles × every verb and kind of events: allowed exactly what the one table says.

use futures_util::StreamExt;
use orchard::bus::message::Done;
use orchard::bus::subject;
use orchard::model::AccountName;
use orchard::model::access::{EVENTS, Role, Roles, VERBS};
use orchard::model::error::ErrorCode;

use super::people::{Raw, account, as_account};
use crate::harness::{Access, Cluster, LIMIT};

fn subsets() -> impl Iterator<Item = Vec<Role>> {
    (0..1u32 << Role::ALL.len())
        .map(|set| Role::ALL.iter().enumerate().filter(|(bit, _)| set >> bit & 1 == 1).map(|(_, role)| *role).collect())
}

async fn everyone(cluster: &Cluster) -> Vec<(Access, Roles)> {
    futures_util::stream::iter(subsets().enumerate())
        .map(|(n, roles)| async move {
            let access = account(cluster, &format!("set.{n}"), &roles).await;
            (access, roles.into_iter().collect())
        })
        .buffer_unordered(8)
        .collect()
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_set_of_roles_may_call_what_the_table_says() {
    let cluster = Cluster::start().await;
    for (access, roles) in everyone(&cluster).await {
        let bus = access.bus().await;
        let calls = VERBS.iter().map(|verb| {
            let (bus, subject) = (bus.clone(), subject::api(&access.account, verb.resource, verb.verb));
            // Nothing that any verb takes: who is answered "invalid" was let through.
            async move { (verb, bus.request::<_, Done>(subject, &"nonsense", LIMIT).await.unwrap_err()) }
        });
        for (verb, error) in futures_util::future::join_all(calls).await {
            let expected = if roles.satisfy(verb.needs) { ErrorCode::Invalid } else { ErrorCode::Forbidden };
            assert_eq!(error.code, expected, "[{roles}] {verb:?}: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_itself_refuses_what_the_table_does_not_say() {
    let cluster = Cluster::start().await;
    let other: AccountName = "other".parse().unwrap();
    for (access, roles) in everyone(&cluster).await {
        let raw = Raw::connect(&as_account(&access)).await.unwrap();
        let mut expected = Vec::new();
        for verb in VERBS {
            let own = subject::api(&access.account, verb.resource, verb.verb);
            // Without a reply subject the controller does nothing at all.
            raw.client.publish(own.clone(), "".into()).await.unwrap();
            if !roles.satisfy(verb.needs) {
                expected.push(own);
            }
            let foreign = subject::api(&other, verb.resource, verb.verb);
            raw.client.publish(foreign.clone(), "".into()).await.unwrap();
            expected.push(foreign);
        }
        for foreign in ["$SRV.PING", "_INBOX.other.x", "orchard.v1.worker.w.hello", "orchard.v1.events.vm.a.deleted"] {
            raw.client.publish(foreign, "".into()).await.unwrap();
            expected.push(foreign.to_owned());
        }
        assert_eq!(raw.refused("Publish").await, expected, "[{roles}]");

        let mut expected = Vec::new();
        let mut heard = Vec::new();
        for (kind, needs) in EVENTS {
            let all = subject::events_of_kind(kind);
            heard.push(raw.client.subscribe(all.clone()).await.unwrap());
            if !roles.satisfy(*needs) {
                expected.push(all);
            }
        }
        let own = format!("{}.>", subject::inbox(access.account.as_str()));
        heard.push(raw.client.subscribe(own).await.unwrap());
        for foreign in [">", "orchard.>", "_INBOX.>", "_INBOX.other.>", subject::ALL_EVENTS, subject::ALL_API, "$SRV.>"]
        {
            heard.push(raw.client.subscribe(foreign).await.unwrap());
            expected.push(foreign.to_owned());
        }
        assert_eq!(raw.refused("Subscription").await, expected, "[{roles}]");
    }
}
