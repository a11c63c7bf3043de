//! What goes out after each durable batch: events and audit records, in order, and assignments to workers.
//!
//! Events are read back from the store by number, never handed over in memory: a slow or absent bus costs nothing, and
//! after a crash publishing resumes where it was noted, which is somewhat earlier than where it was (`lag`): a subscriber who
//! keeps up sees every number at least once, in order. A page counts as published once the bus has it (`echo`).
//!
//! Whoever listens to JSON gets the same in JSON, behind the first. It is made only where somebody does, as far as that can
//! be known: our own broker says so, on another one it is always made. A subscriber who asks the API for what he has not
//! seen once his subscription is confirmed has everything: what was left out for want of a listener was stored before.

pub(super) mod echo;
mod lag;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{HeaderMap, HeaderName};
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use self::echo::Echo;
use self::lag::Lag;
use super::store::writer::Writer;
use super::store::{Published, Room, Store};
use crate::broker::Listeners;
use crate::bus::client::Bus;
use crate::bus::encoding::Encoding;
use crate::bus::message::Assignment;
use crate::bus::traces::{self, TRACES};
use crate::bus::{message, parts, subject};
use crate::model::audit::AuditRecord;
use crate::model::error::ApiError;
use crate::model::event::{Event, EventFilter, EventObject};
use crate::model::{ClusterId, Timestamp, VmUid, WorkerName};
use crate::trace::{self, UnderWay};

/// Events or records read from the store at a time.
const PAGE: Room = Room { items: 256, bytes: 512 * 1024 };
/// Notices of changed assignments taken at a time.
const MAX_NAMED: usize = 1_024;
/// Pause after a failure to read or publish.
const RETRY: Duration = Duration::from_millis(500);

/// What is published by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Feed {
    /// Events of VMs and workers.
    Events,
    /// The audit trail.
    Audit,
}

/// One message to publish.
struct Item {
    subject: String,
    headers: HeaderMap,
    payload: Vec<u8>,
}

impl Feed {
    fn published(self, writer: &Writer) -> u64 {
        match self {
            Feed::Events => writer.published().events,
            Feed::Audit => writer.published().audit,
        }
    }

    fn set_published(self, writer: &Writer, number: u64) {
        match self {
            Feed::Events => writer.set_published(number),
            Feed::Audit => writer.set_audit_published(number),
        }
    }

    /// Notes up to where it went out.
    fn set_sent(self, writer: &Writer, number: u64) {
        writer.set_sent(match self {
            Feed::Events => Published { events: number, audit: 0 },
            Feed::Audit => Published { events: 0, audit: number },
        });
    }

    /// The messages to publish after the number `after`, and the last number among them; none when there is nothing.
    fn read(self, store: &Store, after: u64, listeners: &Audience) -> Result<Option<(u64, Vec<Item>)>, Failure> {
        let mut items = Vec::new();
        let mut last = None;
        let cluster = store.cluster();
        match self {
            Feed::Events => {
                for event in store.events(after, PAGE, &EventFilter::default())?.items {
                    last = Some(event.number);
                    listeners
                        .items(&mut items, subject::event(&event), &event, |form| cloud_event(cluster, &event, form))?;
                }
            }
            Feed::Audit => {
                for record in store.audit(after, PAGE)?.items {
                    last = Some(record.number);
                    listeners.items(&mut items, subject::audit(&record), &record, |form| {
                        cloud_audit(cluster, &record, form)
                    })?;
                }
            }
        }
        Ok(last.map(|last| (last, items)))
    }
}

/// Who listens, as far as that is known: to the broker in this process, that is; of another one nothing is.
#[derive(Clone, Debug)]
pub(super) struct Audience(pub(super) Option<Listeners>);

impl Audience {
    fn may_listen(&self, subject: &str) -> bool {
        self.0.as_ref().is_none_or(|listeners| listeners.has(subject))
    }

    /// Adds what is to be published of `thing`.
    fn items<T: Serialize>(
        &self,
        items: &mut Vec<Item>,
        subject: String,
        thing: &T,
        headers: impl Fn(Encoding) -> HeaderMap,
    ) -> Result<(), ApiError> {
        let json = subject::in_json(&subject);
        let twin = self.may_listen(&json).then_some((Encoding::Json, json));
        for (form, subject) in [(Encoding::MessagePack, subject)].into_iter().chain(twin) {
            items.push(Item { subject, headers: headers(form), payload: form.encode(thing)? });
        }
        Ok(())
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Publishes everything of `feed` after the last that was noted as published, then each new one. Runs until dropped.
pub(super) async fn publish(
    feed: Feed,
    (bus, audience): (Bus, Audience),
    store: Store,
    writer: Writer,
    mut last: watch::Receiver<u64>,
) {
    let (mut cursor, mut echo, mut lag) = (feed.published(&writer), None, Lag::default());
    loop {
        let target = *last.borrow_and_update();
        while cursor < target {
            match publish_page(feed, (&bus, &audience), &mut echo, &store, cursor).await {
                // The store holds nothing between here and there any more.
                Ok(None) => cursor = target,
                Ok(Some(number)) => cursor = number,
                Err(error) => {
                    echo = None;
                    tracing::warn!("{feed:?} after {cursor} cannot be published yet: {error}");
                    tokio::time::sleep(RETRY).await;
                }
            }
            feed.set_sent(&writer, cursor);
            lag.note(cursor, Instant::now());
            count(feed, &writer, &mut lag);
        }
        let due = lag.next();
        let settles = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        // Cancel safe: both only wait.
        tokio::select! {
            changed = last.changed() => match changed {
                Ok(()) => {}
                Err(_) => return,
            },
            () = settles => count(feed, &writer, &mut lag),
        }
    }
}

fn count(feed: Feed, writer: &Writer, lag: &mut Lag) {
    if let Some(number) = lag.settled(Instant::now()) {
        feed.set_published(writer, number);
    }
}

async fn publish_page(
    feed: Feed,
    (bus, audience): (&Bus, &Audience),
    echo: &mut Option<Echo>,
    store: &Store,
    after: u64,
) -> Result<Option<u64>, Failure> {
    let (store, audience) = (store.clone(), audience.clone());
    let read = tokio::task::spawn_blocking(move || feed.read(&store, after, &audience)).await??;
    let Some((last, items)) = read else { return Ok(None) };
    let echo = match echo {
        Some(echo) => echo,
        none => none.insert(Echo::over(bus).await?),
    };
    for item in items {
        bus.publish(item.subject, Some(item.headers), Bytes::from(item.payload)).await?;
    }
    echo.heard().await?;
    Ok(Some(last))
}

/// CloudEvents 1.0 attributes in NATS headers (binary content mode). `Nats-Msg-Id` lets a JetStream of an outside
/// nats-server drop repetitions; the twin in JSON has one of its own, as one stream may take both. Numbers are of one cluster,
/// so its id stands in the source and before them: several may share a stream.
fn cloud_event(cluster: ClusterId, event: &Event, form: Encoding) -> HeaderMap {
    let (what, name) = match &event.object {
        EventObject::Vm { name, .. } => ("vm", name.to_string()),
        EventObject::Worker { name } => ("worker", name.to_string()),
        EventObject::Unknown => ("unknown", "unknown".to_owned()),
    };
    let number = event.number.to_string();
    let kind = format!("orchard.v1.{what}.{}", event.kind.as_str());
    headers(format!("{cluster}-{number}"), number, format!("/orchard/{cluster}"), kind, name, event.time, form)
}

/// The same for the audit trail, whose numbers are its own: so is its source, and the id for JetStream.
fn cloud_audit(cluster: ClusterId, record: &AuditRecord, form: Encoding) -> HeaderMap {
    let number = record.number.to_string();
    let kind = format!("orchard.v1.audit.{}", record.kind.as_str());
    // A failed login calls itself what it likes, line ends included.
    let name = header_value(&record.account);
    let source = format!("/orchard/{cluster}/audit");
    headers(format!("{cluster}-audit-{number}"), number, source, kind, name, record.time, form)
}

/// Any text as the value of an attribute, as the binding writes it: with percent signs for what is no visible ASCII.
fn header_value(text: &str) -> String {
    let mut value = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'"' | b'%' => value.push_str(&format!("%{byte:02X}")),
            visible if visible.is_ascii_graphic() => value.push(char::from(visible)),
            other => value.push_str(&format!("%{other:02X}")),
        }
    }
    value
}

/// Built for three messages of each create: names are static, and values moved.
fn headers(
    message: String,
    number: String,
    source: String,
    kind: String,
    name: String,
    time: Timestamp,
    form: Encoding,
) -> HeaderMap {
    const MESSAGE_ID: HeaderName = HeaderName::from_static("Nats-Msg-Id");
    const SPEC_VERSION: HeaderName = HeaderName::from_static("ce-specversion");
    const ID: HeaderName = HeaderName::from_static("ce-id");
    const SOURCE: HeaderName = HeaderName::from_static("ce-source");
    const TYPE: HeaderName = HeaderName::from_static("ce-type");
    const SUBJECT: HeaderName = HeaderName::from_static("ce-subject");
    const TIME: HeaderName = HeaderName::from_static("ce-time");
    const DATA_CONTENT_TYPE: HeaderName = HeaderName::from_static("ce-datacontenttype");
    const CONTENT_TYPE: HeaderName = HeaderName::from_static("content-type");
    let message = match form {
        Encoding::MessagePack => message,
        Encoding::Json => message + "-json",
    };
    let headers = [
        (MESSAGE_ID, message.into()),
        (SPEC_VERSION, "1.0".into()),
        (ID, number.into()),
        (SOURCE, source.into()),
        (TYPE, kind.into()),
        (SUBJECT, name.into()),
        (TIME, time.to_string().into()),
        (DATA_CONTENT_TYPE, form.media_type().into()),
        (CONTENT_TYPE, form.media_type().into()),
    ];
    headers.into_iter().collect()
}

/// Sends each named worker what it shall run now. Runs until dropped.
pub(super) async fn send_assignments(
    (bus, traces): (Bus, Arc<UnderWay<VmUid>>),
    writer: Writer,
    mut workers: mpsc::Receiver<WorkerName>,
) {
    let mut named = Vec::new();
    while workers.recv_many(&mut named, MAX_NAMED).await > 0 {
        // However often a worker was named meanwhile, one message tells it all.
        for worker in std::mem::take(&mut named).into_iter().collect::<BTreeSet<_>>() {
            if let Err(error) = send_assignment((&bus, &traces), &writer, &worker).await {
                // Its next heartbeat shows the gap and brings it up again.
                tracing::warn!("the assignment of {worker} could not be sent: {error}");
            }
        }
    }
}

async fn send_assignment(
    (bus, traced): (&Bus, &UnderWay<VmUid>),
    writer: &Writer,
    worker: &WorkerName,
) -> Result<(), ApiError> {
    let name = worker.clone();
    let Some(assignment) = writer.submit(move |step| Ok(step.cluster.assignment(&name))).await? else { return Ok(()) };
    for part in parts::split(assignment)? {
        let headers = if traced.is_empty() { None } else { traces_of(&part, traced, worker) };
        bus.publish(subject::assign(worker), headers, message::encode(&part)?.into()).await?;
    }
    Ok(())
}

/// The same for a worker whose assignment goes out in the answer to its registration.
pub(super) async fn traces_for(worker: &WorkerName, traced: &UnderWay<VmUid>, writer: &Writer) -> Option<HeaderMap> {
    let name = worker.clone();
    let assignment = writer.submit(move |step| Ok(step.cluster.assignment(&name))).await.ok()??;
    traces_of(&assignment, traced, worker)
}

/// A header for each copy that a request is traced to: told once, as a trace is no state. One that gets lost ends there.
fn traces_of(part: &Assignment, traced: &UnderWay<VmUid>, worker: &WorkerName) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for copy in &part.copies {
        let Some(parent) = traced.take(&copy.uid) else { continue };
        let span = tracing::info_span!(
            target: trace::TARGET,
            "assign",
            otel.kind = "producer",
            worker = worker.as_str(),
            vm = copy.name.as_str()
        );
        if let Some(here) = trace::begin(&span, Some(parent)) {
            headers.append(TRACES, traces::line(copy.uid, here).as_str());
        }
    }
    (!headers.is_empty()).then_some(headers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::audit::{AuditType, Deed, Outcome};

    #[test]
    fn whatever_a_failed_login_calls_itself_is_one_header_that_can_be_read_back() {
        let deed = Deed {
            kind: AuditType::LoginFailed,
            account: "a b\r\nX: \"100 %\" ä".into(),
            address: String::new(),
            verb: String::new(),
            target: String::new(),
            outcome: Outcome::Refused,
            message: String::new(),
            request: String::new(),
        };
        let cluster = ClusterId(uuid::Uuid::from_u128(9));
        let headers = cloud_audit(cluster, &AuditRecord::new(7, Timestamp::default(), deed), Encoding::Json);
        let value = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
        assert_eq!(value("ce-subject").as_deref(), Some("a%20b%0D%0AX:%20%22100%20%25%22%20%C3%A4"));
        assert_eq!(value("ce-datacontenttype").as_deref(), Some("application/json"));
        assert_eq!(value("Nats-Msg-Id"), Some(format!("{cluster}-audit-7-json")));
        assert_eq!(value("ce-source"), Some(format!("/orchard/{cluster}/audit")));
        assert_eq!((value("ce-id").as_deref(), value("ce-specversion").as_deref()), (Some("7"), Some("1.0")));
    }
}
