//! A worker whose key is good and which means harm: it sends whatever it likes on its own subjects. The controller answers,
//! goes on, and nothing of another worker changes.

use std::sync::Arc;
use std::time::Duration;

use orchard::bus::client::Bus;
use orchard::bus::log::{LogLine, LogLines};
use orchard::bus::message::{
    Answer, GetVm, GetWorker, Heartbeat, Hello, ListEvents, ListWorkers, Observation, Report, Welcome, decode, encode,
};
use orchard::bus::subject::{self, WorkerVerb};
use orchard::model::event::{EventObject, LogStream};
use orchard::model::resources::{LOGICAL_CORES, MEMORY_MIB};
use orchard::model::vm::Vm;
use orchard::model::worker::WorkerInfo;
use orchard::model::{SessionId, VmUid, WorkerName};
use orchard::worker::runtime::synthetic::Synthetic;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::harness::{Cluster, LIMIT, info};

/// Messages of one run: some seconds.
const MESSAGES: usize = 600;

fn name(text: &str) -> WorkerName {
    text.parse().unwrap()
}

/// What a message may be made of.
#[derive(Clone, Debug)]
struct Known {
    sessions: Vec<SessionId>,
    /// VMs of the other worker, and one that is none.
    uids: Vec<VmUid>,
    info: WorkerInfo,
}

/// Numbers at the edges, where sums overflow and casts cut.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(1),
        Just(u64::from(u32::MAX)),
        Just(1 << 62),
        Just(u64::MAX - 1),
        Just(u64::MAX),
        any::<u64>()
    ]
}

/// Something in the place of a field: another type, negative, huge, deep.
fn odd() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number().prop_map(Value::from),
        any::<i64>().prop_map(|n| Value::from(n.saturating_abs().saturating_neg())),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,40}".prop_map(Value::from),
        (1usize..60_000).prop_map(|len| Value::from("x".repeat(len))),
        (1usize..2_000).prop_map(|len| Value::from(vec![0; len])),
        (1usize..2_000).prop_map(|len| (0..len).map(|n| (n.to_string(), Value::from(n))).collect::<Value>()),
        Just(json!({"victim": {"a": [{"b": null}]}})),
        Just(Value::from("-0001-01-01T00:00:00Z")),
        Just(Value::from("99999-12-31T23:59:59Z")),
    ]
}

fn observation() -> impl Strategy<Value = Observation> {
    let text = prop_oneof![Just(String::new()), "\\PC{0,200}", (1usize..100_000).prop_map(|n| "ä".repeat(n / 2))];
    prop_oneof![
        text.clone().prop_map(|message| Observation::Preparing { message }),
        (text.clone(), any::<bool>(), number()).prop_map(|(message, ready, generation)| Observation::Running {
            image_fqn: ready.then(|| message.clone()),
            message,
            ready,
            generation
        }),
        text.clone().prop_map(|message| Observation::Failed { message, disk: false, halted: false }),
        Just(Observation::Absent),
        text.prop_map(|name| Observation::Stray { name, running: None }),
    ]
}

/// Something that could be a message of this verb, and is wrong only in what it says.
fn wellformed(known: Known) -> impl Strategy<Value = (WorkerVerb, Vec<u8>)> {
    let Known { sessions, uids, info } = known;
    let copy =
        (prop::sample::select(sessions), prop::sample::select(uids), prop_oneof![Just(0), Just(1), any::<u32>()]);
    let report = (copy.clone(), observation()).prop_map(|((session, uid, attempt), observation)| {
        (WorkerVerb::Report, encode(&Report { session, uid, attempt, boot: 0, observation }).unwrap())
    });
    let lines =
        (copy.clone(), number(), 0usize..200, 0usize..2_000).prop_map(|((session, uid, attempt), first, n, len)| {
            let line = LogLine { stream: LogStream::Stdout, text: "x".repeat(len), time: None };
            (
                WorkerVerb::Log,
                encode(&LogLines { session, uid, attempt, boot: 0, first, lines: vec![line; n] }).unwrap(),
            )
        });
    let beat = (copy, number()).prop_map(|((session, ..), revision)| {
        (WorkerVerb::Heartbeat, encode(&Heartbeat { session, revision, told: None, load: None, digest: None }).unwrap())
    });
    let names = prop::sample::select(vec!["evil", "victim", "other"]);
    let hello = (names, number(), 0usize..500, "\\PC{0,200}").prop_map(move |(called, n, labels, place)| {
        let mut info = WorkerInfo { name: name(called), default_cpu: n, default_memory: n, ..info.clone() };
        info.resources = [(LOGICAL_CORES, n), (MEMORY_MIB, n), ("odd", n)].into();
        info.labels = (0..labels).map(|n| (format!("l{n}"), "x".repeat(n))).collect();
        (
            WorkerVerb::Hello,
            encode(&Hello { session: SessionId(Uuid::now_v7()), info, place, delete_unknown_s: None }).unwrap(),
        )
    });
    prop_oneof![4 => report, 2 => lines, 1 => beat, 1 => hello]
}

/// The same with one field that is something else.
fn bent(known: Known) -> impl Strategy<Value = (WorkerVerb, Vec<u8>)> {
    (wellformed(known), any::<prop::sample::Index>(), odd()).prop_map(|((verb, bytes), at, odd)| {
        let mut message: Value = rmp_serde::from_slice(&bytes).unwrap();
        let fields = message.as_object_mut().unwrap();
        let key = fields.keys().nth(at.index(fields.len())).unwrap().clone();
        fields.insert(key, odd);
        (verb, rmp_serde::to_vec_named(&message).unwrap())
    })
}

fn garbage() -> impl Strategy<Value = (WorkerVerb, Vec<u8>)> {
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..2_000),
        // Arrays in arrays, and ones that say they hold four thousand million things.
        (1usize..200_000).prop_map(|depth| vec![0x91; depth]),
        Just(vec![0xdd, 0xff, 0xff, 0xff, 0xff]),
        Just(vec![0x81, 0xa7, b's', b'e', b's', b's', b'i', b'o', b'n', 0xdb, 0xff, 0xff, 0xff, 0xff]),
    ];
    (prop::sample::select(WorkerVerb::ALL.to_vec()), bytes)
}

/// What of the victim must stay as it is.
async fn victim(cluster: &Cluster) -> (Vm, WorkerInfo, u64) {
    let vm = cluster.access.call(&GetVm { name: "a".parse().unwrap() }).await.unwrap();
    let worker = cluster.access.call(&GetWorker { name: name("victim") }).await.unwrap();
    (vm, worker.worker.info, worker.vms)
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_worker_sends_the_controller_answers_and_nothing_of_another_worker_changes() {
    let mut cluster = Cluster::start().await;
    cluster.add_worker("victim", Arc::new(Synthetic::new())).await;
    cluster.run(&["create", "vm", "a", "--image", "any", "--labels", "zone=test", "--wait"]).await;
    let before = victim(&cluster).await;
    let stolen = cluster.access.join(&name("evil"), &cluster.worker_dir("evil")).await;
    let bus = Bus::connect(stolen).await.unwrap();
    let base = WorkerInfo { labels: Default::default(), ..info(&name("evil"), &Synthetic::new()) };
    let first =
        Hello { session: SessionId(Uuid::now_v7()), info: base.clone(), place: String::new(), delete_unknown_s: None };
    let subject = |verb| subject::worker(&name("evil"), verb);
    bus.request::<_, Welcome>(subject(WorkerVerb::Hello), &first, LIMIT).await.unwrap();
    let mut known = Known {
        sessions: vec![first.session, SessionId(Uuid::nil())],
        uids: vec![before.0.uid, VmUid(Uuid::nil()), VmUid(Uuid::max())],
        info: base,
    };
    let mut runner = TestRunner::new(Config::default());
    for n in 0..MESSAGES {
        let any = prop_oneof![3 => wellformed(known.clone()), 2 => bent(known.clone()), 1 => garbage()];
        let (verb, payload) = any.new_tree(&mut runner).unwrap().current();
        let shown = || format!("message {n}, {verb:?}: {:?}", &payload[..payload.len().min(400)]);
        let sent = bus.raw().send_request(
            subject(verb),
            async_nats::Request::new().payload(payload.clone().into()).timeout(Some(Duration::from_secs(30))),
        );
        let reply = sent.await.unwrap_or_else(|error| panic!("{error} to {}", shown()));
        let answer: Answer<serde::de::IgnoredAny> =
            decode(&reply.payload).unwrap_or_else(|error| panic!("{error} to {}", shown()));
        if let (WorkerVerb::Hello, Answer::Ok(_)) = (verb, &answer) {
            known.sessions[0] = decode::<Hello>(&payload).unwrap().session;
        }
        if n % 20 == 0 {
            assert_eq!(victim(&cluster).await, before, "after {}", shown());
        }
    }
    assert_eq!(victim(&cluster).await, before);
    let workers = cluster.access.call(&ListWorkers::default()).await.unwrap().workers;
    let names: Vec<_> = workers.iter().map(|seen| seen.worker.info.name.to_string()).collect();
    assert_eq!(names, ["evil", "victim"]);
    // What it said of the other's VM is told of itself at most.
    let events =
        cluster.access.call(&ListEvents { vm: Some(before.0.uid), ..ListEvents::default() }).await.unwrap().events;
    assert!(events.iter().all(|event| event.worker != Some(name("evil"))), "{events:?}");
    assert!(events.iter().all(|event| matches!(&event.object, EventObject::Vm { uid, .. } if *uid == before.0.uid)));
    // The cluster works on.
    cluster.run(&["create", "vm", "b", "--image", "any", "--labels", "zone=test", "--wait"]).await;
    cluster.run(&["ssh", "vm", "a", "true"]).await;
}
