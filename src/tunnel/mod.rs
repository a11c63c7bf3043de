//! The data path: SSH, VNC, port-forwards and exec into VMs that nobody can reach from outside.
//!
//! Workers and clients dial the controller over QUIC; the [`relay`] there splices one client stream to one stream on the
//! worker's connection, and the [`worker`] splices that to a TCP connection into the guest. The bus never carries
//! session bytes.
//!
//! ```text
//! client::Client ──open(ticket)──► relay::Relay ──attach(copy, port)──► worker::WorkerLink ──► worker::Attach (guest)
//! ```
//!
//! [`header`] has the messages, [`ticket`] what a client may open (both pure). Users see only [`client::Client`],
//! [`stream::TunnelStream`], [`relay::Relay`] with its [`relay::Gatekeeper`], and [`worker::WorkerLink`] with its
//! [`worker::Attach`]: nothing of QUIC shows in them, so that another transport can stand behind.

mod allowance;
pub mod backoff;
pub mod client;
mod dial;
mod endpoint;
pub mod exec;
pub mod header;
pub mod proof;
mod reason;
pub mod relay;
pub mod resume;
mod splice;
pub mod stream;
pub mod ticket;
mod udp;
mod urgency;
pub mod worker;

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

pub use self::dial::DialError;
pub use self::endpoint::{Packets, Transport, Turns};
pub use self::reason::Reason;

/// The protocol's name in the TLS handshake.
pub const ALPN: &[u8] = b"orchard/1";

/// How often an idle connection is pinged by the side that dialled: well below the 30 s after which the least patient
/// NATs forget a UDP flow.
pub const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A connection is dead when nothing came for so long: three pings may be lost.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long one address may take to answer a dial.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(6);

/// How long a peer may take for its next header, once it began a stream.
pub const HEADER_DEADLINE: Duration = Duration::from_secs(10);

/// How long a worker may take to connect to a guest.
pub const ATTACH_DEADLINE: Duration = Duration::from_secs(10);

/// How long the relay waits for a worker's answer: the worker's own deadline and the way there and back, so that the
/// worker's reason arrives before the relay gives up.
pub const OPEN_DEADLINE: Duration = Duration::from_secs(13);

/// How long what was received may take to be delivered after the connection it came over has ended.
pub const DRAIN: Duration = Duration::from_secs(30);

/// The most sessions open at once on one connection: above the 5,000 that are tested, and a bound on what a peer costs.
pub const MAX_SESSIONS: u32 = 8_192;

/// Where a tunnel endpoint is; a host name is resolved anew at each dial.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Host name or IP address (IPv6 without brackets).
    pub host: String,
    /// UDP port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self { host: address.ip().to_string(), port: address.port() }
    }
}
