//! The rules of schemas/README.md, each as a test.

use std::collections::BTreeSet;

use async_nats::ConnectOptions;
use futures_util::StreamExt as _;
use orchard::bus::encoding::Encoding;
use orchard::bus::message::{Done, ListVms};
use orchard::bus::subject;
use orchard::controller::BusSource;
use orchard::model::error::ErrorCode;
use orchard::model::secret::Secret;
use serde_json::{Value, json};

use super::{grown, validator};
use crate::harness::{Cluster, LIMIT};
use crate::stock::scripts::ANN;
use crate::stock::standalone::Standalone;
use crate::wire::samples;

#[test]
fn no_schema_forbids_fields_of_later_releases() {
    for message in super::catalog::messages() {
        let text = message.schema.to_string();
        assert!(!text.contains(r#""unevaluatedProperties":false"#), "{}", message.name);
        // An object with one field alone names a variant: that is no place for more.
        if !text.contains(r#""additionalProperties":false"#) {
            continue;
        }
        assert_variants_alone(&message.name, &message.schema);
    }
}

/// Only the variants of an enum, each an object of one field, may be closed.
fn assert_variants_alone(name: &str, value: &Value) {
    if value.get("additionalProperties") == Some(&Value::Bool(false)) {
        let fields = value.get("properties").and_then(Value::as_object).map_or(0, |fields| fields.len());
        assert_eq!(fields, 1, "{name}: {value:#}");
    }
    match value {
        Value::Object(fields) => fields.values().for_each(|value| assert_variants_alone(name, value)),
        Value::Array(values) => values.iter().for_each(|value| assert_variants_alone(name, value)),
        _ => {}
    }
}

/// What a later release adds to a message is read over in both forms, at every level: it is as if it were not there.
#[test]
fn fields_of_later_releases_fit_every_schema_and_change_nothing_that_is_read() {
    let messages = super::catalog::messages();
    let mut added = 0;
    for (name, sample) in samples().json {
        let message = super::message_of(&messages, &name);
        let places = grown::places(&message.schema, &sample);
        assert!(!places.is_empty(), "{name}");
        added += places.len();
        let newer = grown::with_unknown_fields(&sample, &places);
        let wrong: Vec<_> = validator(&message.schema).iter_errors(&newer).map(|error| error.to_string()).collect();
        assert!(wrong.is_empty(), "{name}: {wrong:#?} in {newer:#}");
        for form in [Encoding::MessagePack, Encoding::Json] {
            let read = (message.read)(form, &form.encode(&newer).unwrap());
            assert_eq!(read.as_ref(), Ok(&sample), "{name} with a field more in each of {places:?}, as {form:?}");
        }
    }
    assert!(added > 200, "{added}");
}

/// How often `value` holds what is made of something unknown.
fn unknowns(value: &Value) -> usize {
    match value {
        Value::Object(fields) => fields.values().map(unknowns).sum(),
        Value::Array(values) => values.iter().map(unknowns).sum(),
        value => usize::from(value == "unknown" || value == "internal"),
    }
}

/// Where a schema says that other words may come, or other kinds of objects, they do no harm to what stands around them.
#[test]
fn words_and_objects_of_later_releases_are_read_as_unknown() {
    let messages = super::catalog::messages();
    let mut seen = BTreeSet::new();
    for (name, sample) in samples().json {
        let message = super::message_of(&messages, &name);
        for place in grown::open_places(&message.schema, &sample) {
            let newer = grown::with_unknown_value(&sample, &place);
            assert!(validator(&message.schema).is_valid(&newer), "{name}: {newer:#}");
            for form in [Encoding::MessagePack, Encoding::Json] {
                let read = (message.read)(form, &form.encode(&newer).unwrap());
                let read = read.unwrap_or_else(|error| panic!("{name}, with another value at {place}: {error}"));
                // Not at the place itself, as a set has an order of its own.
                assert_eq!(unknowns(&read), unknowns(&sample) + 1, "{name}, {place}: {read:#}");
            }
            seen.insert(format!("{} {place}", message.name));
        }
    }
    for place in [
        "event /type",
        "event /object",
        "event /stream",
        "answer/event.list /ok/events/0/object",
        "answer/service-account.list /ok/accounts/0/roles/0",
        "answer/controller.info /ok/roles/0",
        "answer/vm.get /ok/status",
        "answer/vm.get /ok/runtime",
        "answer/vm.get /ok/os",
        "answer/vm.get /ok/arch",
        "answer/vm.explain /ok/status",
        "answer/worker.list /ok/workers/0/state",
        "answer/worker.list /ok/workers/0/runtime",
        "answer/image.get-pull /ok/workers/0/state",
        "audit/record /type",
        "answer/vm.delete /error/code",
        "worker/log /lines/0/stream",
        "worker/images /pulls/0/state",
    ] {
        assert!(seen.contains(place), "nothing else may come at {place}: {seen:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_are_read_over_and_unknown_verbs_answered() {
    let cluster = Cluster::start().await;
    let bus = cluster.access.bus().await;
    let newer = json!({ "name": "a", "spec": { "image": "any", "gpu_model": { "x": 1 } }, "urgency": 3 });
    let create = subject::api(&cluster.access.account(), "vm", "create");
    let made: Value = bus.request(create, &newer, LIMIT).await.unwrap();
    assert_eq!(made["name"], "a");
    // The embedded broker stops a verb that stands in no table, and the client tells that at once; with stock clients it is
    // an error of the connection.
    let subject = subject::api(&cluster.access.account(), "vm", "of-a-later-release");
    let answer = bus.request::<_, Done>(subject.clone(), &ListVms::default(), LIMIT).await;
    assert_eq!(answer.unwrap_err().code, ErrorCode::Forbidden);
}

/// Where the broker lets accounts say what they like under their names, as a NATS server of the operator may, the
/// controller answers.
#[tokio::test(flavor = "multi_thread")]
async fn on_a_bus_that_lets_it_through_an_unknown_verb_is_answered_as_such() {
    let server = Standalone::start(&ANN).await;
    let password = Secret::new("s3cret");
    let outside = BusSource::Outside { url: server.url(), user: "ann".into(), password: password.clone() };
    let cluster = Cluster::start_on(outside, password.clone()).await;
    let options = ConnectOptions::with_user_and_password("ann".into(), password.expose().to_owned());
    let options = options.custom_inbox_prefix("_INBOX.bootstrap-admin");
    let client = options.connect(server.url()).await.unwrap();
    let mut told = client.subscribe("orchard.v1.events-json.>").await.unwrap();
    let verb = "orchard.v1.api.bootstrap-admin.vm.of-a-later-release";
    let answer = client.request(verb, "{}".into()).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.payload).unwrap();
    assert_eq!(answer["error"]["code"], "unknown-verb", "{answer}");
    let create = "orchard.v1.api.bootstrap-admin.vm.create";
    client.request(create, r#"{"name": "a", "spec": {"image": "any"}}"#.into()).await.unwrap();
    let event = tokio::time::timeout(LIMIT, told.next()).await.unwrap().unwrap();
    assert!(event.subject.ends_with("vm.a.created") || event.subject.contains("audit"), "{}", event.subject);
    drop(cluster);
}
