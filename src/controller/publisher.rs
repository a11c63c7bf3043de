//! What goes out after each durable batch: events and audit records, in order, and assignments to workers.
//!
//! Events are read back from the store by number, never handed over in memory: a slow or absent bus costs nothing, and
//! after a crash publishing resumes where it was noted. A subscriber sees every number at least once, in order.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::{HeaderMap, HeaderName};
use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::store::writer::Writer;
use super::store::{Room, Store};
use crate::bus::client::Bus;
use crate::bus::{message, parts, subject};
use crate::model::audit::AuditRecord;
use crate::model::error::ApiError;
use crate::model::event::{Event, EventFilter, EventObject};
use crate::model::{Timestamp, WorkerName};

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

/// One thing to publish.
struct Item {
    number: u64,
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

    fn read(self, store: &Store, after: u64) -> Result<Vec<Item>, Failure> {
        let items = match self {
            Feed::Events => store
                .events(after, PAGE, &EventFilter::default())?
                .items
                .iter()
                .map(event_item)
                .collect::<Result<_, _>>(),
            Feed::Audit => store.audit(after, PAGE)?.items.iter().map(audit_item).collect::<Result<_, _>>(),
        };
        Ok(items?)
    }
}

fn event_item(event: &Event) -> Result<Item, ApiError> {
    let (number, subject) = (event.number, subject::event(event));
    Ok(Item { number, subject, headers: cloud_event(event), payload: message::encode(event)? })
}

fn audit_item(record: &AuditRecord) -> Result<Item, ApiError> {
    let (number, subject) = (record.number, subject::audit(record));
    Ok(Item { number, subject, headers: cloud_audit(record), payload: message::encode(record)? })
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Publishes everything of `feed` after the last that was noted as published, then each new one. Runs until dropped.
pub(super) async fn publish(feed: Feed, bus: Bus, store: Store, writer: Writer, mut last: watch::Receiver<u64>) {
    let mut cursor = feed.published(&writer);
    loop {
        let target = *last.borrow_and_update();
        while cursor < target {
            match publish_page(feed, &bus, &store, cursor).await {
                // The store holds nothing between here and there any more.
                Ok(None) => cursor = target,
                Ok(Some(number)) => cursor = number,
                Err(error) => {
                    tracing::warn!("{feed:?} after {cursor} cannot be published yet: {error}");
                    tokio::time::sleep(RETRY).await;
                }
            }
            feed.set_published(&writer, cursor);
        }
        if last.changed().await.is_err() {
            return;
        }
    }
}

async fn publish_page(feed: Feed, bus: &Bus, store: &Store, after: u64) -> Result<Option<u64>, Failure> {
    let store = store.clone();
    let items = tokio::task::spawn_blocking(move || feed.read(&store, after)).await??;
    let last = items.last().map(|item| item.number);
    for item in items {
        bus.publish(item.subject, Some(item.headers), Bytes::from(item.payload)).await?;
    }
    bus.flush().await?;
    Ok(last)
}

/// CloudEvents 1.0 attributes in NATS headers (binary content mode). `Nats-Msg-Id` lets a JetStream of an outside
/// nats-server drop repetitions.
fn cloud_event(event: &Event) -> HeaderMap {
    let (what, name) = match &event.object {
        EventObject::Vm { name, .. } => ("vm", name.to_string()),
        EventObject::Worker { name } => ("worker", name.to_string()),
    };
    let number = event.number.to_string();
    let kind = format!("orchard.v1.{what}.{}", event.kind.as_str());
    headers(number.clone(), number, "/orchard/controller", kind, name, event.time)
}

/// The same for the audit trail, whose numbers are its own: so is its source, and the id for JetStream.
fn cloud_audit(record: &AuditRecord) -> HeaderMap {
    let number = record.number.to_string();
    let kind = format!("orchard.v1.audit.{}", record.kind.as_str());
    // A failed login calls itself what it likes, line ends included, which no header may hold.
    let name: String = record.account.chars().map(|c| if c.is_ascii_graphic() { c } else { '_' }).collect();
    headers(format!("audit-{number}"), number, "/orchard/controller/audit", kind, name, record.time)
}

/// Built for three messages of each create: names are static, and values moved.
fn headers(
    message: String,
    number: String,
    source: &'static str,
    kind: String,
    name: String,
    time: Timestamp,
) -> HeaderMap {
    const MESSAGE_ID: HeaderName = HeaderName::from_static("Nats-Msg-Id");
    const SPEC_VERSION: HeaderName = HeaderName::from_static("ce-specversion");
    const ID: HeaderName = HeaderName::from_static("ce-id");
    const SOURCE: HeaderName = HeaderName::from_static("ce-source");
    const TYPE: HeaderName = HeaderName::from_static("ce-type");
    const SUBJECT: HeaderName = HeaderName::from_static("ce-subject");
    const TIME: HeaderName = HeaderName::from_static("ce-time");
    const CONTENT_TYPE: HeaderName = HeaderName::from_static("content-type");
    let headers = [
        (MESSAGE_ID, message.into()),
        (SPEC_VERSION, "1.0".into()),
        (ID, number.into()),
        (SOURCE, source.into()),
        (TYPE, kind.into()),
        (SUBJECT, name.into()),
        (TIME, time.to_string().into()),
        (CONTENT_TYPE, "application/msgpack".into()),
    ];
    headers.into_iter().collect()
}

/// Sends each named worker what it shall run now. Runs until dropped.
pub(super) async fn send_assignments(bus: Bus, writer: Writer, mut workers: mpsc::Receiver<WorkerName>) {
    let mut named = Vec::new();
    while workers.recv_many(&mut named, MAX_NAMED).await > 0 {
        // However often a worker was named meanwhile, one message tells it all.
        for worker in std::mem::take(&mut named).into_iter().collect::<BTreeSet<_>>() {
            if let Err(error) = send_assignment(&bus, &writer, &worker).await {
                // Its next heartbeat shows the gap and brings it up again.
                tracing::warn!("the assignment of {worker} could not be sent: {error}");
            }
        }
    }
}

async fn send_assignment(bus: &Bus, writer: &Writer, worker: &WorkerName) -> Result<(), ApiError> {
    let name = worker.clone();
    let Some(assignment) = writer.submit(move |step| Ok(step.cluster.assignment(&name))).await? else { return Ok(()) };
    for part in parts::split(assignment)? {
        bus.publish(subject::assign(worker), None, message::encode(&part)?.into()).await?;
    }
    Ok(())
}
