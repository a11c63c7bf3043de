//! A connection to the bus, typed: requests with deadlines, answers decoded, errors kinded.

use std::future::pending;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::{ClientError, ConnectErrorKind, Event, HeaderMap, RequestErrorKind, Subscriber};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use super::message::{self, Answer, ApiCall};
use super::shut_out::{self, Row};
use super::{refusal, subject};
use crate::identity::ca::Fingerprint;
use crate::identity::tls;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::request::{REQUEST_ID, RequestId};
use crate::model::secret::Secret;
use crate::model::{AccountName, Clock, Timestamp};
use crate::trace::{self, TRACEPARENT};

/// How to reach the bus and who to be there.
#[derive(Clone, Debug)]
pub struct BusOptions {
    /// `nats://host:port` or `tls://host:port`; several, separated by commas, are tried in turn.
    pub url: String,
    /// Whom to expect there.
    pub trust: Trust,
    /// The user to log in as; also names the inbox.
    pub user: String,
    /// How it proves that it is.
    pub login: Login,
    /// Shown in the broker's list of connections.
    pub client_name: String,
    /// Keep trying when the first attempt fails (workers, controller) instead of giving up (CLI).
    pub patient: bool,
}

/// How a user proves who it is.
#[derive(Clone, Debug)]
pub enum Login {
    /// With a password or token.
    Password(Secret),
    /// By signing what the broker sends with this nkey seed (`SU…`).
    Key(Secret),
}

/// What the other side of the connection must show before anything is said to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Nothing: the connection is in plain text.
    Plain,
    /// Exactly this certificate.
    Certificate(Fingerprint),
    /// A certificate for the host name in the address that leads to a CA which this machine trusts.
    PublicCas,
}

impl Trust {
    /// What to expect at `url`: the certificate with this fingerprint; without one, what its scheme says. Plain text is
    /// spoken only where every address says `nats://` and no certificate is named.
    pub fn of(url: &str, fingerprint: Option<Fingerprint>) -> Self {
        match fingerprint {
            Some(fingerprint) => Trust::Certificate(fingerprint),
            None if url.split(',').all(|one| one.trim_start().starts_with("nats://")) => Trust::Plain,
            None => Trust::PublicCas,
        }
    }

    fn client_config(self) -> Result<Option<rustls::ClientConfig>, rustls::Error> {
        match self {
            Trust::Plain => Ok(None),
            Trust::Certificate(fingerprint) => tls::client_config(fingerprint, &[]).map(Some),
            Trust::PublicCas => tls::public_client_config(&[]).map(Some),
        }
    }
}

/// How long one attempt to connect may take where another follows.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for the only attempt of a command: a bad link or a busy controller is no reason to give up so early. Less than
/// [`REQUEST_TIMEOUT`], so that what is told is that nobody was reached.
const ONLY_CONNECT_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a request waits when its caller names no other time.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest pause between two attempts to connect again.
const MAX_RECONNECT_PAUSE: Duration = Duration::from_secs(2);
/// The same for a user that is not let in: somebody must do something first, and a thousand workers that were deleted must
/// not keep the controller busy with refusing them.
const MAX_REFUSED_PAUSE: Duration = Duration::from_secs(15);
/// Messages waiting for a slow subscriber here before the client library drops some: events are replayed by number, so
/// a drop costs a request, not an event.
const SUBSCRIPTION_CAPACITY: usize = 16 * 1024;

/// Logs what happens to a connection, passes refusals of requests on, and notes in `shut_out` how often in a row this user
/// was not let in, and in `disturbances` when messages may have been lost. Of the attempts that fail in a row only the first
/// is told to everybody.
fn tell(
    url: String,
    refused: &'static str,
    refusals: broadcast::Sender<String>,
    shut_out: Arc<watch::Sender<Option<Row>>>,
    (disturbances, connections): (Arc<AtomicU64>, watch::Sender<u64>),
) -> impl Fn(Event) -> std::future::Ready<()> + Send + Sync + 'static {
    let told = AtomicBool::new(false);
    move |event| {
        if matches!(event, Event::Connected | Event::Disconnected | Event::Closed | Event::SlowConsumer(_)) {
            disturbances.fetch_add(1, Ordering::Relaxed);
        }
        match event {
            Event::Connected => {
                told.store(false, Ordering::Relaxed);
                shut_out.send_replace(None);
                connections.send_modify(|count| *count = count.saturating_add(1));
                tracing::debug!("connected to the bus at {url}");
            }
            Event::Closed => tracing::debug!("the connection to the bus at {url} is closed"),
            Event::ClientError(error) => {
                let refused_now = is_refusal(&error);
                if refused_now {
                    shut_out.send_modify(|row| *row = Some(Row::and(*row, Instant::now())));
                }
                if told.swap(true, Ordering::Relaxed) {
                    tracing::debug!("bus: {error}");
                } else if refused_now {
                    tracing::warn!("the bus at {url} lets this user in no more: {refused}; trying again");
                } else {
                    let advice = "is the controller running there, with the certificate that it had?";
                    tracing::info!("the bus at {url} cannot be used: {error}; {advice} trying again until it can");
                }
            }
            Event::ServerError(error) => {
                let error = error.to_string();
                match refusal::refused_publish(&error) {
                    // Nobody may be waiting any more.
                    Some(subject) => drop(refusals.send(subject.to_owned())),
                    None => tracing::info!("bus: {error}"),
                }
            }
            other => tracing::info!("bus: {other}"),
        }
        std::future::ready(())
    }
}

/// A connection to the bus. Cheap to clone; all clones share one socket, which reconnects by itself.
#[derive(Clone, Debug)]
pub struct Bus {
    client: async_nats::Client,
    /// The subjects of requests that the broker refused.
    refusals: broadcast::Sender<String>,
    /// How often in a row this user was not let in.
    shut_out: watch::Receiver<Option<Row>>,
    /// How often messages may have been lost.
    disturbances: Arc<AtomicU64>,
    /// How often it was made.
    connections: watch::Receiver<u64>,
    /// What to tell then.
    refused: Arc<str>,
}

/// Whether an attempt to connect failed because the user was not let in, said after TLS: the text begins with
/// the error's kind, and what a stranger says before TLS makes one of another kind.
fn is_refusal(error: &ClientError) -> bool {
    let kind = ConnectErrorKind::AuthorizationViolation.to_string();
    matches!(error, ClientError::Other(text) if text.starts_with(&kind))
}

/// What to do when a user is not let in.
fn refused(login: &Login) -> &'static str {
    match login {
        Login::Password(_) => "check the name and the token, which may have been changed, deleted or expired",
        Login::Key(_) => {
            "its key is not known there; if the worker was deleted or its name given away, let it join again: \
             `orchard get bootstrap-token` on a machine that may, `orchard worker run --bootstrap-token-stdin` here"
        }
    }
}

/// Why the connection could not be made, as far as the certificate is to blame.
fn certificate_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let found = wrapped.and_then(|inner| inner.downcast_ref()).or_else(|| error.downcast_ref());
        if found.is_some() {
            return found;
        }
        next = error.source();
    }
    None
}

fn refused_text(options: &BusOptions) -> String {
    format!("the bus at {} refuses user {:?}: {}", options.url, options.user, refused(&options.login))
}

/// What to tell of an attempt to connect that failed.
fn unreachable(options: &BusOptions, error: &async_nats::ConnectError) -> ApiError {
    use ConnectErrorKind as Kind;
    let url = &options.url;
    if matches!(error.kind(), Kind::Authentication | Kind::AuthorizationViolation) {
        return ApiError::new(ErrorCode::Unauthenticated, refused_text(options));
    }
    let text = match (certificate_error(error), options.trust) {
        (Some(rustls::Error::InvalidCertificate(_)), Trust::Certificate(expected)) => format!(
            "{url} shows another certificate than the one that is trusted ({expected}): either the controller was set \
             up anew, and must be trusted anew, or somebody else answers in its place; nothing was told to it"
        ),
        (Some(rustls::Error::InvalidCertificate(why)), _) => format!(
            "no public CA vouches for the certificate of {url} ({why}); if it is the controller's own, name its \
             fingerprint; nothing was told to it"
        ),
        (Some(error), _) => {
            format!("no TLS with {url}: {error}; if plain text is spoken there on purpose, say so with nats://")
        }
        (None, _) => format!("cannot reach the bus at {url}: {error}; is the controller running there?"),
    };
    ApiError::new(ErrorCode::Unavailable, text)
}

impl Bus {
    /// Connects.
    ///
    /// # Errors
    /// [`ErrorCode::Unauthenticated`] when the user is refused, [`ErrorCode::Unavailable`] when nothing answers there.
    pub async fn connect(options: BusOptions) -> Result<Self, ApiError> {
        let (refusals, _) = broadcast::channel(refusal::CAPACITY);
        let (shut_out, row) = watch::channel(None);
        let shut_out = Arc::new(shut_out);
        let disturbances = Arc::new(AtomicU64::new(0));
        let (connected, connections) = watch::channel(0);
        let login = match &options.login {
            Login::Password(password) => {
                async_nats::ConnectOptions::with_user_and_password(options.user.clone(), password.expose().to_owned())
            }
            Login::Key(seed) => async_nats::ConnectOptions::with_nkey(seed.expose().to_owned()),
        };
        let mut connect = login
            .name(options.client_name.clone())
            .custom_inbox_prefix(subject::inbox(&options.user))
            .connection_timeout(if options.patient { CONNECT_TIMEOUT } else { ONLY_CONNECT_TIMEOUT })
            .request_timeout(Some(REQUEST_TIMEOUT))
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .reconnect_delay_callback({
                let (shut_out, connections) = (row.clone(), connections.clone());
                // The library pauses before the very first attempt, too, for which nobody should wait.
                move |attempt| match (attempt, *connections.borrow()) {
                    (0 | 1, 0) => Duration::ZERO,
                    _ => reconnect_pause(attempt, shut_out.borrow().is_some()),
                }
            })
            .event_callback(tell(
                options.url.clone(),
                refused(&options.login),
                refusals.clone(),
                shut_out,
                (disturbances.clone(), connected),
            ));
        let config = options.trust.client_config().map_err(|error| {
            ApiError::new(ErrorCode::Internal, format!("cannot set up TLS for {}: {error}", options.url))
        })?;
        if let Some(config) = config {
            // Required: a stranger who answers in plain text in the controller's place gets no token.
            connect = connect.tls_client_config(config).require_tls(true);
        }
        let connect = if options.patient { connect.retry_on_initial_connect() } else { connect };
        // Other servers are named before the handshake, when anybody may speak. A pinned certificate tells them apart; a
        // public CA vouches for strangers, too.
        let connect = match options.trust {
            Trust::PublicCas => connect.ignore_discovered_servers(),
            Trust::Plain | Trust::Certificate(_) => connect,
        };
        let client = connect.connect(&options.url).await.map_err(|error| unreachable(&options, &error))?;
        let refused = refused_text(&options).into();
        Ok(Self { client, refusals, shut_out: row, disturbances, connections, refused })
    }

    /// The client library's own handle, for what needs no typing: the service API, raw subscriptions.
    pub fn raw(&self) -> &async_nats::Client {
        &self.client
    }

    /// Returns, with what to tell, once whoever answers there has said again and again, over no less than `after`, that this
    /// user may not come in. Silence, refused connections and wrong certificates are not that: for all of them it waits. With
    /// an `after` it logs meanwhile until when it will. The connection itself goes on trying. Cancel safe.
    pub async fn shut_out(&self, after: Duration) -> ApiError {
        let tell = |left: Duration| {
            let wall = Clock::start().now().wall.as_millis();
            let until = wall.saturating_add(i64::try_from(left.as_millis()).unwrap_or(i64::MAX));
            let (refused, until) = (&self.refused, Timestamp::from_millis(until));
            tracing::warn!(
                "{refused}; trying again until {until}, should it be a mistake there that is mended by then"
            );
        };
        shut_out::for_good(self.shut_out.clone(), after, tell).await;
        ApiError::new(ErrorCode::Unauthenticated, self.refused.to_string())
    }

    /// Counts what may have cost messages: the connection was lost or made anew, or a subscriber was too slow. Begins
    /// anywhere; what matters is whether it has changed.
    pub fn disturbances(&self) -> u64 {
        self.disturbances.load(Ordering::Relaxed)
    }

    /// Changes whenever the connection was made anew, from now on: what was asked before may get no answer.
    pub fn connections(&self) -> watch::Receiver<u64> {
        let mut connections = self.connections.clone();
        connections.mark_unchanged();
        connections
    }

    /// The largest payload that the broker takes, in bytes.
    pub fn max_payload(&self) -> usize {
        self.client.server_info().max_payload
    }

    /// Calls an API verb as `account` and waits at most `timeout` for its answer.
    ///
    /// # Errors
    /// What the controller answered; [`ErrorCode::Forbidden`] when the broker refuses, [`ErrorCode::Unavailable`] when no
    /// controller listens, [`ErrorCode::Timeout`] when none answered in time. Cancel safe: the request may still be carried
    /// out.
    pub async fn call<C: ApiCall>(
        &self,
        account: &AccountName,
        request: &C,
        timeout: Duration,
    ) -> Result<C::Reply, ApiError> {
        self.request(subject::api(account, C::RESOURCE, C::VERB), request, timeout).await
    }

    /// Sends `request` to `subject` and decodes the [`Answer`]. Errors and cancel safety as for [`Bus::call`].
    ///
    /// # Errors
    /// As for [`Bus::call`].
    pub async fn request<Q: Serialize, A: DeserializeOwned>(
        &self,
        subject: String,
        request: &Q,
        timeout: Duration,
    ) -> Result<A, ApiError> {
        Ok(self.request_with_headers(subject, request, timeout).await?.0)
    }

    /// The same, and the headers of the answer.
    ///
    /// # Errors
    /// As for [`Bus::call`].
    pub async fn request_with_headers<Q: Serialize, A: DeserializeOwned>(
        &self,
        subject: String,
        request: &Q,
        timeout: Duration,
    ) -> Result<(A, Option<HeaderMap>), ApiError> {
        let id = RequestId::of(uuid::Uuid::now_v7());
        tracing::debug!(request = %id, "asks {subject}");
        let payload = message::encode(request)?;
        let answer = match trace::current() {
            None => self.ask(subject, &id, payload, timeout).await,
            here => {
                let span = tracing::info_span!(target: trace::TARGET, "ask", otel.kind = "client", otel.name = subject);
                trace::run(span, here, self.ask(subject, &id, payload, timeout)).await
            }
        };
        // What happened then stands in the log of the other side, under this name.
        answer.map_err(|error| match error.code {
            ErrorCode::Internal | ErrorCode::Timeout => {
                ApiError::new(error.code, format!("{} (request {id})", error.message))
            }
            _ => error,
        })
    }

    async fn ask<A: DeserializeOwned>(
        &self,
        subject: String,
        id: &RequestId,
        payload: Vec<u8>,
        timeout: Duration,
    ) -> Result<(A, Option<HeaderMap>), ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, id.as_str());
        if let Some(here) = trace::current() {
            headers.insert(TRACEPARENT, here.to_string());
        }
        let request = async_nats::Request::new().headers(headers).payload(payload.into()).timeout(Some(timeout));
        let mut refusals = self.refusals.subscribe();
        let refused = async {
            loop {
                match refusals.recv().await {
                    Ok(refused) if refused == subject => return,
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => pending().await,
                }
            }
        };
        let answered = tokio::select! {
            answered = self.client.send_request(subject.clone(), request) => answered,
            () = refused => return Err(refusal::forbidden(&subject)),
        };
        let reply = answered.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => ApiError::new(
                ErrorCode::Unavailable,
                "the bus is up but no controller listens on it: it may be starting; try again in a moment",
            ),
            RequestErrorKind::TimedOut => {
                tracing::debug!("no answer to {subject} within {timeout:?}");
                ApiError::new(ErrorCode::Timeout, format!("no answer from the controller within {timeout:?}"))
            }
            _ => ApiError::new(ErrorCode::Unavailable, format!("cannot send {subject}: {error}")),
        })?;
        let answer: Result<A, ApiError> = message::decode::<Answer<A>>(&reply.payload)?.into();
        Ok((answer?, reply.headers))
    }

    /// Publishes without waiting for anybody.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] when the connection is over for good.
    pub async fn publish(&self, subject: String, headers: Option<HeaderMap>, payload: Bytes) -> Result<(), ApiError> {
        let sent = match headers {
            Some(headers) => self.client.publish_with_headers(subject, headers, payload).await,
            None => self.client.publish(subject, payload).await,
        };
        sent.map_err(|error| ApiError::new(ErrorCode::Unavailable, format!("cannot publish: {error}")))
    }

    /// Listens to `subject`: what is caused by anything sent over this connection afterwards is not missed.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] when the connection is over, [`ErrorCode::Timeout`] when the broker does not confirm.
    pub async fn subscribe(&self, subject: &str) -> Result<Subscriber, ApiError> {
        let unavailable = |error: &dyn std::fmt::Display| {
            ApiError::new(ErrorCode::Unavailable, format!("cannot subscribe to {subject}: {error}"))
        };
        let subscriber = self.client.subscribe(subject.to_owned()).await.map_err(|error| unavailable(&error))?;
        self.flush().await?;
        Ok(subscriber)
    }

    /// Waits until the system has everything that was published before; the broker takes it in this order.
    ///
    /// # Errors
    /// [`ErrorCode::Timeout`] or [`ErrorCode::Unavailable`].
    pub async fn flush(&self) -> Result<(), ApiError> {
        match tokio::time::timeout(REQUEST_TIMEOUT, self.client.flush()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(ApiError::new(ErrorCode::Unavailable, format!("cannot flush: {error}"))),
            Err(_) => Err(ApiError::new(ErrorCode::Timeout, "the bus does not confirm what was sent")),
        }
    }
}

/// Pause before reconnection attempt number `attempt`: doubling from 50 ms, capped, jittered by a third so that a
/// fleet does not come back as one wave.
fn reconnect_pause(attempt: usize, shut_out: bool) -> Duration {
    let base = Duration::from_millis(50).saturating_mul(1 << attempt.clamp(1, 10).saturating_sub(1));
    let most = if shut_out { MAX_REFUSED_PAUSE } else { MAX_RECONNECT_PAUSE };
    let mut byte = [0u8; 1];
    let _ = getrandom::fill(&mut byte);
    let capped = base.min(most);
    capped.mul_f64(2.0 / 3.0 + f64::from(byte[0]) / 255.0 / 3.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_below_the_bound() {
        for attempt in 0..100 {
            assert!(reconnect_pause(attempt, false) <= MAX_RECONNECT_PAUSE);
            assert!(reconnect_pause(attempt, true) <= MAX_REFUSED_PAUSE);
        }
        assert!(reconnect_pause(1, true) < Duration::from_millis(51));
        assert!(reconnect_pause(20, true) > MAX_RECONNECT_PAUSE);
    }
}
