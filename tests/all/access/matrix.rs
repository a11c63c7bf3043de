//! Every set of roles × every verb and kind of events: allowed exactly what the one table says.

use futures_util::StreamExt;
use orchard::bus::message::Done;
use orchard::bus::subject;
use orchard::model::AccountName;
use orchard::model::access::{EVENTS, Role, Roles, VERBS};
use orchard::model::error::ErrorCode;

use super::people::{Raw, account, as_account};
use crate::harness::{Access, Cluster, LIMIT, succeed};
use crate::stock::scripts::installed;

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

/// The same by nats.py, which trusts the controller's own certificate as any CA, host name and all.
#[tokio::test(flavor = "multi_thread")]
async fn a_stock_client_in_python_finds_the_same_rights() {
    let Some(python) = installed("ORCHARD_TEST_PYTHON", "nats.py") else { return };
    let cluster = Cluster::start().await;
    for (n, role) in [None].into_iter().chain(Role::ALL.iter().map(Some)).enumerate() {
        let roles: Roles = role.into_iter().copied().collect();
        let access = account(&cluster, &format!("stock{n}"), &roles.iter().collect::<Vec<_>>()).await;
        let foreign: AccountName = "other".parse().unwrap();
        let mut refused = Vec::new();
        let mut publish = Vec::new();
        for verb in VERBS {
            let (own, other) = (&access.account, &foreign);
            let [own, other] = [own, other].map(|name| subject::api(name, verb.resource, verb.verb));
            refused.extend((!roles.satisfy(verb.needs)).then(|| own.clone()));
            refused.push(other.clone());
            publish.extend([own, other]);
        }
        let mut subscribe = Vec::new();
        for (kind, needs) in EVENTS {
            let all = subject::events_of_kind(kind);
            refused.extend((!roles.satisfy(*needs)).then(|| all.clone()));
            subscribe.push(all);
        }
        for all in ["orchard.>", "_INBOX.>", subject::ALL_EVENTS] {
            refused.push(all.to_owned());
            subscribe.push(all.to_owned());
        }
        let options = serde_json::json!({
            "url": access.url.replace("127.0.0.1", "localhost"),
            "ca": cluster.dir.path().join("controller/controller.crt"),
            "user": access.account.as_str(), "password": access.token.expose(),
            "publish": publish, "subscribe": subscribe, "refused": refused,
            "ask": subject::api(&access.account, "controller", "info"),
        });
        let mut command = tokio::process::Command::new(&python);
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/stock_nats.py"));
        command.args(["rights", &options.to_string()]).kill_on_drop(true);
        assert!(succeed(command).await.contains("done"), "[{roles}]");
    }
}
