//! The API on the bus: subject → verb → core → answer. Every request is answered: done, refused with a reason, or
//! "unknown verb".
//!
//! One endpoint of the NATS service API takes all verbs, so that an unknown one is answered as such instead of with
//! silence; `nats service ls` shows it as `orchard`.

mod api;
mod guard;
mod worker;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_nats::service::{Service as NatsService, ServiceExt};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::guard::InFlight;
use super::audit::Auditor;
use super::gate::Gate;
use super::store::Store;
use super::store::writer::Writer;
use crate::broker::Addresses;
use crate::bus::client::Bus;
use crate::bus::message::{self, Answer, TunnelEndpoint};
use crate::bus::subject::{self, WorkerVerb};
use crate::model::Clock;
use crate::model::error::{ApiError, ErrorCode};
use crate::task::{self, Task};

/// Requests worked on at once; those beyond wait in the bus client's bounded subscription.
const MAX_IN_FLIGHT: usize = 1_024;

/// What a handler needs.
#[derive(Clone)]
pub(super) struct Context {
    pub(super) writer: Writer,
    pub(super) store: Store,
    pub(super) gate: Arc<Gate>,
    pub(super) auditor: Auditor,
    /// From where users are connected; none when the broker is not ours.
    pub(super) addresses: Option<Addresses>,
    pub(super) clock: Clock,
    pub(super) timing: super::cluster::Timing,
    pub(super) tunnel: TunnelEndpoint,
}

impl Context {
    /// From where the bus user `name` is connected, for people; empty when that is not known.
    pub(super) fn addresses_of(&self, name: &str) -> String {
        let found = self.addresses.as_ref().map_or_else(Vec::new, |addresses| addresses.of(name));
        found.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }
}

/// The running service. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Service {
    nats: NatsService,
    tasks: Vec<Task>,
}

impl Service {
    /// Starts to answer on `bus`; returns once the broker knows of it.
    pub(super) async fn start(bus: &Bus, context: Arc<Context>) -> Result<Self, ApiError> {
        let failed = |what: &str, error: async_nats::Error| {
            ApiError::new(ErrorCode::Unavailable, format!("cannot {what} on the bus: {error}"))
        };
        let nats = bus
            .raw()
            .service_builder()
            .description("Orchard controller: orchard.v1.api.<account>.<resource>.<verb>, MessagePack")
            .start("orchard", env!("CARGO_PKG_VERSION"))
            .await
            .map_err(|error| failed("register the service", error))?;
        let mut endpoint = nats
            .endpoint_builder()
            .name("api")
            .add(subject::ALL_API)
            .await
            .map_err(|error| failed("register the API", error))?;
        let mut tasks = Vec::new();
        // Workers' messages have a lane each, so that a flood of API calls or log lines delays no heartbeat.
        for verb in WorkerVerb::ALL {
            let mut requests = bus.subscribe(&subject::all_workers(verb)).await?;
            let (context, bus) = (context.clone(), bus.clone());
            tasks.push(task::spawn(async move {
                let mut lane = Lane::new();
                while let Some(request) = requests.next().await {
                    let (context, bus) = (context.clone(), bus.clone());
                    lane.run(async move { answer_worker(&context, &bus, request).await }).await;
                }
            }));
        }
        let answers = bus.clone();
        tasks.push(task::spawn(async move {
            let mut lane = Lane::new();
            let in_flight = InFlight::default();
            while let Some(request) = endpoint.next().await {
                if !request.message.reply.as_ref().is_some_and(|reply| is_inbox(reply)) {
                    continue;
                }
                let account = subject::parse_api(&request.message.subject).map(|(account, ..)| account);
                // Refused here and now: it takes no place in the lane, so that others need not wait for theirs.
                let underway = match account.map(|account| in_flight.begin(&account)).transpose() {
                    Ok(underway) => underway,
                    Err(error) => {
                        let _ = request.respond(Ok(payload(Err(error), answers.max_payload()))).await;
                        continue;
                    }
                };
                let (context, bus) = (context.clone(), answers.clone());
                lane.run(async move {
                    let _underway = underway;
                    let answer = answer_api(&context, &request.message.subject, &request.message.payload).await;
                    if let Err(error) = request.respond(Ok(payload(answer, bus.max_payload()))).await {
                        tracing::warn!("an answer could not be sent: {error}");
                    }
                })
                .await;
            }
        }));
        bus.flush().await?;
        Ok(Self { nats, tasks })
    }

    /// Returns when a lane has ended, which none does on its own unless it panicked or the bus is gone for good.
    pub(super) async fn ended(&self) {
        task::any_ended(&self.tasks).await;
    }

    /// Stops answering; requests under way are dropped.
    pub(super) async fn stop(self) {
        for task in self.tasks {
            task.abort().await;
        }
        let _ = tokio::time::timeout(Duration::from_secs(1), self.nats.stop()).await;
    }
}

/// Answers one API request; what it changes, and that it was refused, goes into the audit trail.
async fn answer_api(context: &Context, subject: &str, payload: &[u8]) -> Result<Vec<u8>, ApiError> {
    let deed = if guard::changes(subject) { guard::deed_of(context, subject, payload) } else { None };
    let answer = match deed {
        Some(deed) => {
            let context = Context { writer: context.writer.audited(deed), ..context.clone() };
            api::handle(&context, subject, payload).await
        }
        None => api::handle(context, subject, payload).await,
    };
    if let Err(error) = &answer {
        guard::record_failure(context, subject, payload, error);
    }
    answer
}

async fn answer_worker(context: &Context, bus: &Bus, request: async_nats::Message) {
    // What expects no answer, or comes from nobody, is nothing a worker of ours sends.
    let (Some(reply), Some((from, verb))) = (request.reply, subject::parse_worker(&request.subject)) else { return };
    if !is_inbox(&reply) {
        return;
    }
    let answer = worker::handle(context, from, verb, &request.payload).await;
    if let Err(error) = bus.publish(reply.to_string(), None, payload(answer, bus.max_payload())).await {
        tracing::warn!("an answer could not be sent: {error}");
    }
}

/// Whether answers may go there. The controller may publish anywhere, its callers may not: without this a caller could
/// have it speak on a worker's or an event's subject in its stead.
fn is_inbox(reply: &str) -> bool {
    reply.starts_with("_INBOX.")
}

/// The bytes of an answer, with errors encoded as such. One that the broker would refuse, being larger than `most`, is
/// replaced by an error: silence would look like a controller that hangs.
fn payload(answer: Result<Vec<u8>, ApiError>, most: usize) -> Bytes {
    let fits = answer.and_then(|bytes| match bytes.len() {
        len if len <= most => Ok(bytes),
        len => Err(ApiError::new(
            ErrorCode::LimitExceeded,
            format!("the answer has {len} bytes, and the bus carries at most {most}; ask for less at once"),
        )),
    });
    fits.or_else(|error| message::encode(&Answer::<()>::Error(error))).unwrap_or_default().into()
}

/// Works on a bounded number of requests at once.
struct Lane {
    permits: Arc<Semaphore>,
    running: JoinSet<()>,
}

impl Lane {
    fn new() -> Self {
        Self { permits: Arc::new(Semaphore::new(MAX_IN_FLIGHT)), running: JoinSet::new() }
    }

    async fn run(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        while self.running.try_join_next().is_some() {}
        let Ok(permit) = self.permits.clone().acquire_owned().await else { return };
        self.running.spawn(async move {
            let _permit = permit;
            work.await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_too_large_for_the_bus_is_told_as_such() {
        assert_eq!(payload(Ok(vec![7; 100]), 100).len(), 100);
        let refused: Answer<()> = message::decode(&payload(Ok(vec![7; 101]), 100)).unwrap();
        assert!(matches!(refused, Answer::Error(error) if error.code == ErrorCode::LimitExceeded));
    }
}
