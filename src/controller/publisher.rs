//! What goes out after each durable batch: events, in order, and assignments to workers.
//!
//! Events are read back from the store by number, never handed over in memory: a slow or absent bus costs nothing, and
//! after a crash publishing resumes where it was noted. A subscriber sees every number at least once, in order.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::store::Store;
use super::store::writer::Writer;
use crate::bus::client::Bus;
use crate::bus::{message, parts, subject};
use crate::model::WorkerName;
use crate::model::error::ApiError;
use crate::model::event::{Event, EventNumber, EventObject};

/// Events read from the store at a time.
const PAGE: usize = 256;
/// Notices of changed assignments taken at a time.
const MAX_NAMED: usize = 1_024;
/// Pause after a failure to read or publish.
const RETRY: Duration = Duration::from_millis(500);

/// Publishes every event after the last that was noted as published, then each new one. Runs until dropped.
pub(super) async fn publish_events(bus: Bus, store: Store, writer: Writer, mut last: watch::Receiver<EventNumber>) {
    let mut cursor = writer.published();
    loop {
        let target = *last.borrow_and_update();
        while cursor < target {
            match publish_page(&bus, &store, cursor).await {
                // The store holds nothing between here and there any more.
                Ok(None) => cursor = target,
                Ok(Some(number)) => cursor = number,
                Err(error) => {
                    tracing::warn!("events after {cursor} cannot be published yet: {error}");
                    tokio::time::sleep(RETRY).await;
                }
            }
            writer.set_published(cursor);
        }
        if last.changed().await.is_err() {
            return;
        }
    }
}

async fn publish_page(
    bus: &Bus,
    store: &Store,
    after: EventNumber,
) -> Result<Option<EventNumber>, Box<dyn std::error::Error + Send + Sync>> {
    let store = store.clone();
    let (events, _) = tokio::task::spawn_blocking(move || store.events(after, PAGE, None)).await??;
    for event in &events {
        bus.publish(subject::event(event), Some(cloud_event(event)), Bytes::from(message::encode(event)?)).await?;
    }
    bus.flush().await?;
    Ok(events.last().map(|event| event.number))
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
    let time = event.time.to_string();
    let mut headers = HeaderMap::new();
    for (key, value) in [
        ("Nats-Msg-Id", number.as_str()),
        ("ce-specversion", "1.0"),
        ("ce-id", &number),
        ("ce-source", "/orchard/controller"),
        ("ce-type", &kind),
        ("ce-subject", &name),
        ("ce-time", &time),
        ("content-type", "application/msgpack"),
    ] {
        headers.insert(key, value);
    }
    headers
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
