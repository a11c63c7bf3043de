//! The API on the bus: subject → verb → core → answer. Every request is answered: done, refused with a reason, or
//! "unknown verb".
//!
//! One endpoint of the NATS service API takes all verbs, so that an unknown one is answered as such instead of with
//! silence; `nats service ls` shows it as `orchard`.

mod access;
pub(super) mod api;
mod guard;
mod images;
mod join;
mod placing;
pub(super) mod requests;
mod settings;
mod worker;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::service::{Service as NatsService, ServiceExt};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

pub(super) use self::access::new_join_token;
use self::guard::InFlight;
use self::requests::Asked;
use super::audit::Auditor;
use super::auth::AccessView;
use super::buses::Buses;
use super::gate::Gate;
use super::publisher::echo;
use super::publisher::traces_for;
use super::store::Store;
use super::store::writer::Writer;
use super::watch::Watch;
use crate::broker::Addresses;
use crate::broker::stamp::CLIENT_ADDRESS;
use crate::bus::client::Bus;
use crate::bus::connect::TunnelEndpoint;
use crate::bus::encoding::Encoding;
use crate::bus::message::Answer;
use crate::bus::subject::{self, WorkerVerb};
use crate::identity::ca::Fingerprint;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::request::{REQUEST_ID, RequestId};
use crate::model::{Clock, VmUid};
use crate::task::{self, Task};
use crate::trace::{self, TRACEPARENT, TraceParent, UnderWay};
use crate::tunnel::relay::Control;

/// Requests worked on at once; those beyond wait in the bus client's bounded subscription.
const MAX_IN_FLIGHT: usize = 1_024;

/// What a handler needs.
#[derive(Clone)]
pub(in crate::controller) struct Context {
    pub(super) writer: Writer,
    pub(super) store: Store,
    pub(super) gate: Arc<Gate>,
    pub(super) auditor: Auditor,
    /// From where users are connected; none when the broker is not ours.
    pub(super) addresses: Option<Addresses>,
    pub(super) clock: Clock,
    pub(super) timing: super::cluster::Timing,
    pub(super) watch: Arc<Watch>,
    /// The traces of requests that the VMs' workers were not told of yet.
    pub(super) traces: Arc<UnderWay<VmUid>>,
    pub(super) tunnel: TunnelEndpoint,
    /// Tells which workers are connected, and asks them.
    pub(super) relay: Control,
    pub(super) access: Arc<AccessView>,
    /// Where others reach the bus.
    pub(super) bus: BusAddress,
    /// Whether workers are known by their keys, as on the embedded broker; an outside one's operator lets them in.
    pub(super) workers_have_keys: bool,
    /// How many bytes a page of an answer may have.
    pub(super) page_size: usize,
}

/// Where others reach the bus and how they know it, as far as the controller can say.
#[derive(Clone, Debug, Default)]
pub(super) struct BusAddress {
    pub(super) url: Option<String>,
    pub(super) fingerprint: Option<Fingerprint>,
}

impl Context {
    /// From where a message of the bus user `name` comes, for people; empty when that is not known. Our broker says it in a
    /// header that nobody else can write; of another one's headers anybody may have written them.
    pub(super) fn address_of(&self, name: &str, headers: Option<&HeaderMap>) -> String {
        let Some(addresses) = &self.addresses else { return String::new() };
        let stamped = headers.and_then(|headers| headers.get(CLIENT_ADDRESS)).map(|value| value.as_str().to_owned());
        // Without it, as with one that came in before the broker knew of this, all that are the user's.
        stamped.unwrap_or_else(|| addresses.of(name).iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
    }
}

/// The running service. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Service {
    nats: NatsService,
    tasks: Vec<Task>,
}

impl Service {
    /// Starts to answer on `buses`; returns once the broker knows of it.
    pub(super) async fn start(buses: &Buses, context: Arc<Context>) -> Result<Self, ApiError> {
        let failed = |what: &str, error: async_nats::Error| {
            ApiError::new(ErrorCode::Unavailable, format!("cannot {what} on the bus: {error}"))
        };
        let nats = buses
            .api
            .raw()
            .service_builder()
            .description("Orchard controller: orchard.v1.api.<account>.<resource>.<verb>, MessagePack or JSON")
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
            let mut requests = buses.workers.subscribe(&subject::all_workers(verb)).await?;
            let (context, bus) = (context.clone(), buses.workers.clone());
            tasks.push(task::spawn(async move {
                let mut lane = Lane::new();
                let in_flight = InFlight::new(guard::most_of_worker(verb));
                while let Some(request) = requests.next().await {
                    let Some((from, _)) = subject::parse_worker(&request.subject) else { continue };
                    let user = subject::worker_user(&from);
                    let Some(reply) = own_inbox(request.reply.as_ref(), &user) else { continue };
                    let address = context.address_of(&user, request.headers.as_ref());
                    let underway = match in_flight.begin(&from) {
                        Ok(underway) => underway,
                        Err(many) => {
                            let refused = Err(many.refuse(&context, &user, verb.as_str(), address));
                            context.watch.requests.begin(Asked::Worker(verb)).answered(&refused);
                            send(&bus, reply, refused).await;
                            continue;
                        }
                    };
                    let (context, bus) = (context.clone(), bus.clone());
                    lane.run(async move {
                        let _underway = underway;
                        let counted = context.watch.requests.begin(Asked::Worker(verb));
                        let asked = (request.payload.as_ref(), address.as_str());
                        let begins = verb == WorkerVerb::Hello && !context.traces.is_empty();
                        let worker = begins.then(|| from.clone());
                        let answer = worker::handle(&context, from, verb, asked).await;
                        counted.answered(&answer);
                        let headers = match worker.filter(|_| answer.is_ok()) {
                            Some(worker) => traces_for(&worker, &context.traces, &context.writer).await,
                            None => None,
                        };
                        send_with(&bus, reply, headers, answer).await;
                    })
                    .await;
                }
            }));
        }
        let mut joins = buses.joins.subscribe(subject::ALL_JOINS).await?;
        let (joining, bus) = (context.clone(), buses.joins.clone());
        tasks.push(task::spawn(async move {
            let mut lane = Lane::new();
            let in_flight = InFlight::new(guard::MAX_PER_JOIN);
            while let Some(request) = joins.next().await {
                let Some(id) = subject::parse_join(&request.subject) else { continue };
                let user = subject::join_user(&id);
                let Some(reply) = own_inbox(request.reply.as_ref(), &user) else { continue };
                let address = joining.address_of(&user, request.headers.as_ref());
                let underway = match in_flight.begin(&id) {
                    Ok(underway) => underway,
                    Err(many) => {
                        let refused = Err(many.refuse(&joining, &user, "join", address));
                        joining.watch.requests.begin(Asked::Join).answered(&refused);
                        send(&bus, reply, refused).await;
                        continue;
                    }
                };
                let (context, bus) = (joining.clone(), bus.clone());
                lane.run(async move {
                    let _underway = underway;
                    let counted = context.watch.requests.begin(Asked::Join);
                    let answer = join::handle(&context, id, &request.payload, address).await;
                    counted.answered(&answer);
                    send(&bus, reply, answer).await;
                })
                .await;
            }
        }));
        let answers = buses.api.clone();
        tasks.push(task::spawn(async move {
            let mut lane = Lane::new();
            let in_flight = InFlight::new(guard::MAX_PER_ACCOUNT);
            while let Some(request) = endpoint.next().await {
                let Some((account, resource, verb)) = subject::parse_api(&request.message.subject) else { continue };
                if own_inbox(request.message.reply.as_ref(), account.as_str()).is_none() {
                    continue;
                }
                let message = &request.message;
                let address = context.address_of(account.as_str(), message.headers.as_ref());
                // Refused here and now: it takes no place in the lane, so that others need not wait for theirs.
                let underway = match in_flight.begin(&account) {
                    Ok(underway) => underway,
                    Err(many) => {
                        let error = many.refusal(ErrorCode::LimitExceeded, account.as_str());
                        let (payload_of, subject) = (&message.payload, message.subject.as_str());
                        let (account, address) = (&account, &address);
                        let id = id_of(message.headers.as_ref());
                        let id = id.as_ref();
                        guard::Asked { account, resource, verb, payload: payload_of, subject, address, request: id }
                            .record_failure(&context, &error);
                        let refused = Err(error);
                        context.watch.requests.begin(Asked::Api(resource, verb)).answered(&refused);
                        let answer = payload(Encoding::of(payload_of), refused, answers.max_payload());
                        let _ = request.respond(Ok(answer)).await;
                        continue;
                    }
                };
                let (context, bus) = (context.clone(), answers.clone());
                lane.run(async move {
                    let _underway = underway;
                    answer_account(&context, &bus, request, address).await;
                })
                .await;
            }
        }));
        // Its subscriptions are there: a request that nobody has subscribed to is lost, and who asked waits in vain.
        echo::settled(&buses.api).await?;
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

/// Does what one API request asks; what it changes, and that it was refused, goes into the audit trail.
async fn perform(context: &Context, request: &guard::Asked<'_>) -> Result<Vec<u8>, ApiError> {
    let verb = (request.resource, request.verb);
    let is_json = Encoding::of(request.payload) == Encoding::Json;
    let answer = if request.changes() || is_json {
        let writer = if request.changes() { context.writer.audited(request.deed()) } else { context.writer.clone() };
        let page_size = if is_json { api::JSON_PAGE_SIZE } else { context.page_size };
        let context = Context { writer, page_size, ..context.clone() };
        api::handle(&context, request.account.clone(), verb, request.payload).await
    } else {
        api::handle(context, request.account.clone(), verb, request.payload).await
    };
    if let Err(error) = &answer {
        request.record_failure(context, error);
    }
    answer
}

async fn answer_account(context: &Context, bus: &Bus, request: async_nats::service::Request, address: String) {
    let message = &request.message;
    let Some((account, resource, verb)) = subject::parse_api(&message.subject) else { return };
    let (payload_of, subject) = (&message.payload, message.subject.as_str());
    let id = id_of(message.headers.as_ref());
    let (account, address, request_id) = (&account, address.as_str(), id.as_ref());
    let asked = guard::Asked { account, resource, verb, payload: payload_of, subject, address, request: request_id };
    let counted = context.watch.requests.begin(Asked::Api(resource, verb));
    let parent = message.headers.as_ref().and_then(|headers| headers.get(TRACEPARENT));
    let parent = parent.and_then(|text| TraceParent::parse(text.as_str()));
    let answer = trace::run(asked.span(), parent, perform(context, &asked)).await;
    counted.answered(&answer);
    // By way of the service, which counts it.
    let answer = payload(Encoding::of(payload_of), answer, bus.max_payload());
    if let Err(error) = request.respond(Ok(answer)).await {
        tracing::warn!("an answer could not be sent: {error}");
    }
}

/// What the asker calls the request, if it is a name that can stand in a log.
fn id_of(headers: Option<&HeaderMap>) -> Option<RequestId> {
    RequestId::parse(headers?.get(REQUEST_ID)?.as_str())
}

async fn send(bus: &Bus, reply: String, answer: Result<Vec<u8>, ApiError>) {
    send_with(bus, reply, None, answer).await;
}

async fn send_with(bus: &Bus, reply: String, headers: Option<HeaderMap>, answer: Result<Vec<u8>, ApiError>) {
    if let Err(error) = bus.publish(reply, headers, payload(Encoding::MessagePack, answer, bus.max_payload())).await {
        tracing::warn!("an answer could not be sent: {error}");
    }
}

/// Where the answer goes; none unless that is the asker's own inbox. The controller may publish to any, its callers may not:
/// without this a caller could have it speak to somebody else in his stead.
fn own_inbox(reply: Option<&async_nats::Subject>, user: &str) -> Option<String> {
    let reply = reply?.to_string();
    let rest = reply.strip_prefix(&subject::inbox(user))?;
    rest.starts_with('.').then_some(reply)
}

/// The bytes of an answer, with errors encoded as such. One that the broker would refuse, being larger than `most`, is
/// replaced by an error: silence would look like a controller that hangs.
fn payload(encoding: Encoding, answer: Result<Vec<u8>, ApiError>, most: usize) -> Bytes {
    let fits = answer.and_then(|bytes| match bytes.len() {
        len if len <= most => Ok(bytes),
        len => Err(ApiError::new(
            ErrorCode::LimitExceeded,
            format!("the answer has {len} bytes, and the bus carries at most {most}; ask for less at once"),
        )),
    });
    fits.or_else(|error| encoding.encode(&Answer::<()>::Error(error))).unwrap_or_default().into()
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
    fn answers_go_to_the_askers_own_inbox_only() {
        let own = |reply: &str| own_inbox(Some(&reply.into()), "a.b").is_some();
        assert!(own("_INBOX.a%2Eb.x.1"));
        for other in ["_INBOX.a%2Eb", "_INBOX.a%2Ebc.x", "_INBOX.other.x", "orchard.v1.events.vm.a.deleted", ""] {
            assert!(!own(other), "{other}");
        }
        assert_eq!(own_inbox(None, "a"), None);
    }

    #[test]
    fn an_answer_too_large_for_the_bus_is_told_as_such() {
        for encoding in [Encoding::MessagePack, Encoding::Json] {
            assert_eq!(payload(encoding, Ok(vec![7; 100]), 100).len(), 100);
            let refused: Answer<()> = encoding.decode(&payload(encoding, Ok(vec![7; 101]), 100)).unwrap();
            assert!(matches!(refused, Answer::Error(error) if error.code == ErrorCode::LimitExceeded));
        }
    }
}
