//! The NATS client protocol as data: operations, options, errors. `parse` reads operations, `connect` the
//! options in CONNECT, `encode` writes frames.
//!
//! Pure. Called by the connection task, which feeds [`parse::Parser`] and hands each [`Op`] to the session.

pub mod connect;
pub mod encode;
pub mod parse;
mod quote;

use serde::Serialize;

use quote::Quoted;

/// One operation from a client, borrowing from the read buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op<'a> {
    /// `CONNECT <json>`: the JSON, not yet parsed.
    Connect(&'a [u8]),
    /// `PING`
    Ping,
    /// `PONG`
    Pong,
    /// `PUB` or `HPUB` with its payload.
    Publish(Publish<'a>),
    /// `SUB <subject> [queue] <sid>`
    Subscribe {
        /// The subject, not yet checked.
        subject: &'a [u8],
        /// The queue group.
        queue: Option<&'a [u8]>,
        /// The client's id of the subscription.
        sid: &'a [u8],
    },
    /// `UNSUB <sid> [max]`
    Unsubscribe {
        /// The client's id of the subscription.
        sid: &'a [u8],
        /// Messages after which it ends, counted from its start; 0 means now.
        max: u64,
    },
    /// `+OK` or `INFO`, which only servers have reason to send: without effect.
    Noise,
    /// `-ERR` from the client: it gives up, and so does nats-server.
    ClientError,
}

/// A message on its way in. Sizes are kept as the client wrote them, because they are repeated to subscribers as they
/// are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Where it goes.
    pub subject: &'a [u8],
    /// Where answers go.
    pub reply: Option<&'a [u8]>,
    /// The header size as text, when there are headers.
    pub header_size: Option<&'a [u8]>,
    /// The total size as text.
    pub total_size: &'a [u8],
    /// Headers (if any) and payload, without the closing CRLF.
    pub body: &'a [u8],
    /// Everything behind the subject as it came, to the closing CRLF, when it is spaced just as subscribers get it: then
    /// it can be passed on in one piece.
    pub rest: Option<&'a [u8]>,
}

/// What the server says of itself in INFO.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct ServerInfo {
    /// Unique id of this server instance.
    pub server_id: String,
    /// Its name.
    pub server_name: String,
    /// The nats-server version whose features are all here.
    pub version: String,
    /// Server protocol: always 1, INFO may come at any time.
    pub proto: u8,
    /// Clients print it as the server's build; ours names the language.
    pub go: String,
    /// Listening address.
    pub host: String,
    /// Listening port.
    pub port: u16,
    /// Whether headers are understood: always.
    pub headers: bool,
    /// Whether CONNECT must carry credentials.
    #[serde(skip_serializing_if = "is_false")]
    pub auth_required: bool,
    /// Whether the connection must become TLS, or is.
    #[serde(skip_serializing_if = "is_false")]
    pub tls_required: bool,
    /// Whether clients must show a certificate.
    #[serde(skip_serializing_if = "is_false")]
    pub tls_verify: bool,
    /// Largest body of a message in bytes, headers included.
    pub max_payload: usize,
    /// This connection's id.
    pub client_id: u64,
    /// The peer's address as the server sees it.
    pub client_ip: String,
    /// What a client with an nkey signs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
    /// Lame duck mode: this server is about to go, connect to another.
    #[serde(skip_serializing_if = "is_false")]
    pub ldm: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_false(value: &bool) -> bool {
    !*value
}

/// What goes wrong between client and server. `Display` is the text after `-ERR`, to the letter that nats-server writes,
/// since clients match on it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not an operation, or a body that does not end where it should.
    #[error("Unknown Protocol Operation")]
    UnknownOperation,
    /// An operation with wrong arguments. nats-server closes without a word, so the text stays here.
    #[error("Malformed Operation")]
    Malformed,
    /// A line above the limit.
    #[error("maximum control line exceeded")]
    ControlLine,
    /// A body above the limit.
    #[error("Maximum Payload Violation")]
    Payload,
    /// More connections than allowed.
    #[error("maximum connections exceeded")]
    Connections,
    /// More subscriptions than allowed.
    #[error("maximum subscriptions exceeded")]
    Subscriptions,
    /// Credentials are missing or wrong.
    #[error("Authorization Violation")]
    Authorization,
    /// No credentials in time.
    #[error("Authentication Timeout")]
    AuthTimeout,
    /// The credentials have expired.
    #[error("User Authentication Expired")]
    Expired,
    /// The user may no longer be here.
    #[error("User Authentication Revoked")]
    Revoked,
    /// No answer to pings.
    #[error("Stale Connection")]
    Stale,
    /// The client does not read what it subscribed to.
    #[error("Slow Consumer")]
    SlowConsumer,
    /// SUB with something that is not a subject.
    #[error("Invalid Subject")]
    Subject,
    /// PUB (pedantic) with something that is not a subject, or with wildcards.
    #[error("Invalid Publish Subject")]
    PublishSubject,
    /// `no_responders` without `headers`.
    #[error("no responders requires headers support")]
    NoRespondersNeedHeaders,
    /// A client protocol that does not exist.
    #[error("invalid client protocol")]
    Protocol,
    /// The user may not publish there.
    #[error("Permissions Violation for Publish to {}", Quoted(.0))]
    PublishDenied(Vec<u8>),
    /// The user may not subscribe to that.
    #[error("Permissions Violation for Subscription to {}", Quoted(.0))]
    SubscribeDenied(Vec<u8>),
    /// The user may not subscribe to that in this queue group.
    #[error("Permissions Violation for Subscription to {} using queue {}", Quoted(.0), Quoted(.1))]
    QueueDenied(Vec<u8>, Vec<u8>),
    /// The user's rights have changed, and this subscription is no longer one of them.
    #[error("Permissions Violation for Subscription to {}{} (sid {})", Quoted(.subject), in_queue(.queue), Quoted(.sid))]
    SubscriptionEnded {
        /// What was listened to.
        subject: Vec<u8>,
        /// Its queue group.
        queue: Option<Vec<u8>>,
        /// The client's id for it.
        sid: Vec<u8>,
    },
}

fn in_queue(queue: &Option<Vec<u8>>) -> String {
    queue.as_ref().map(|queue| format!(" using queue {}", Quoted(queue))).unwrap_or_default()
}

impl Fault {
    /// Whether the client is told; malformed operations are closed in silence, as nats-server does.
    pub fn is_told(&self) -> bool {
        !matches!(self, Self::Malformed)
    }

    /// Whether the connection ends with it.
    pub fn closes(&self) -> bool {
        !matches!(
            self,
            Self::Subscriptions
                | Self::Subject
                | Self::PublishSubject
                | Self::PublishDenied(_)
                | Self::SubscribeDenied(_)
                | Self::QueueDenied(..)
                | Self::SubscriptionEnded { .. }
        )
    }
}
