//! Sockets and transport settings of both sides, and the dial. Every number was measured or has its reason beside it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    Connection, ConnectionError, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TokioRuntime,
    TransportConfig, VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::debug;

use super::reason::Reason;
use super::{ALPN, Address, DIAL_DEADLINE, IDLE_TIMEOUT, KEEP_ALIVE, MAX_SESSIONS, reason};
use crate::identity::ca::{Fingerprint, Identity, SERVER_NAME};
use crate::identity::tls;
use crate::model::error::{ApiError, ErrorCode};

/// What one stream may have under way, in bytes: a session runs at 80 Mbit/s over a path of 200 ms.
const STREAM_WINDOW: u32 = 2 << 20;

/// What all streams of one proven connection may have under way. So far above one stream's that a hundred sessions
/// whose readers have stalled do not stall the next one.
pub const CONNECTION_WINDOW: u32 = 128 * STREAM_WINDOW;

/// The same before the peer has proven who it is: enough for headers.
const UNPROVEN_WINDOW: u32 = 64 << 10;

/// How many streams a peer may open before it has proven who it is.
const UNPROVEN_STREAMS: u32 = 16;

/// What may be sent and not yet acknowledged, over all streams: 1 Gbit/s at 60 ms, and all that one slow peer can make
/// us hold for resending.
const SEND_WINDOW: u64 = 8 << 20;

/// Socket buffers in bytes: quinn sends bursts of 64 KiB to each of many peers; the usual 208 KiB loses packets. The
/// system may grant less.
const SOCKET_BUFFER: usize = 4 << 20;

/// The largest packet on ordinary networks: Ethernet less IPv6 and UDP headers.
const ETHERNET_PAYLOAD: u16 = 1_452;

/// The largest packet worth having: ten of them fill one segmented send of 64 KiB. Gave 2.3 times the throughput.
const JUMBO_PAYLOAD: u16 = 6_500;

/// Connection attempts that wait for the accept loop; more are refused. The loop only spawns, so few ever wait.
const MAX_INCOMING: usize = 1_024;

/// Bytes held for one attempt and for all of them, before they are accepted: a handshake's first flight and no more.
const INCOMING_BUFFER: u64 = 16 << 10;
const INCOMING_BUFFER_TOTAL: u64 = 4 << 20;

/// What the round-trip time is taken for before it was measured: a lost first packet is sent again after three of these.
/// Shorter than the standard's 333 ms so that a dial during a relay's restart is answered within a blink after it.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// Settings that depend on the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transport {
    /// Look for packets larger than Ethernet's on every path, not on loopback only.
    pub jumbo: bool,
}

impl Transport {
    fn payload_towards(self, remote: IpAddr) -> u16 {
        if self.jumbo || remote.to_canonical().is_loopback() { JUMBO_PAYLOAD } else { ETHERNET_PAYLOAD }
    }
}

/// The relay's settings for connections over loopback and for all others.
pub struct ServerConfigs {
    transport: Transport,
    loopback: Arc<quinn::ServerConfig>,
    network: Arc<quinn::ServerConfig>,
}

impl ServerConfigs {
    /// Settings that present `identity`.
    pub fn new(identity: &Identity, transport: Transport) -> Result<Self, DialError> {
        let tls = tls::server_config(identity, &[ALPN]).map_err(DialError::tls)?;
        let crypto = Arc::new(QuicServerConfig::try_from(tls).map_err(DialError::tls)?);
        let config = |payload| {
            let mut settings = common(payload);
            settings
                .max_concurrent_bidi_streams(VarInt::from_u32(UNPROVEN_STREAMS))
                .receive_window(VarInt::from_u32(UNPROVEN_WINDOW));
            let mut config = quinn::ServerConfig::with_crypto(crypto.clone());
            config
                .transport_config(Arc::new(settings))
                .max_incoming(MAX_INCOMING)
                .incoming_buffer_size(INCOMING_BUFFER)
                .incoming_buffer_size_total(INCOMING_BUFFER_TOTAL);
            Arc::new(config)
        };
        let network = if transport.jumbo { JUMBO_PAYLOAD } else { ETHERNET_PAYLOAD };
        Ok(Self { transport, loopback: config(JUMBO_PAYLOAD), network: config(network) })
    }

    /// Those for a peer at `remote`.
    pub fn towards(&self, remote: IpAddr) -> Arc<quinn::ServerConfig> {
        match self.transport.payload_towards(remote) {
            JUMBO_PAYLOAD => self.loopback.clone(),
            _ => self.network.clone(),
        }
    }

    /// Binds the relay's socket.
    pub fn bind(&self, address: SocketAddr) -> io::Result<Endpoint> {
        bind(address, Some((*self.network).clone()))
    }
}

/// Lets a peer that has proven who it is open `streams` and fill the windows.
pub fn widen(connection: &Connection, streams: u32) {
    connection.set_receive_window(VarInt::from_u32(CONNECTION_WINDOW));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(streams));
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The host name leads nowhere.
    #[error("cannot resolve the tunnel endpoint {address}")]
    Resolve {
        /// What was to be dialled.
        address: Address,
        /// What the resolver said.
        source: io::Error,
    },
    /// No UDP socket could be had.
    #[error("cannot open a UDP socket")]
    Socket(#[source] io::Error),
    /// The TLS library refused the settings.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// Nothing answered.
    #[error(
        "the tunnel endpoint {address} ({ip}) did not answer within {} s; is UDP to it allowed?", DIAL_DEADLINE.as_secs()
    )]
    Timeout {
        /// What was dialled.
        address: Address,
        /// The address tried last.
        ip: IpAddr,
    },
    /// Somebody else answers there.
    #[error(
        "the tunnel endpoint {address} shows another certificate than the one with SHA-256 {expected}; either it was \
         set up anew, or it is not the controller"
    )]
    WrongCertificate {
        /// What was dialled.
        address: Address,
        /// The certificate that is trusted.
        expected: Fingerprint,
    },
    /// The connection failed otherwise.
    #[error("cannot connect to the tunnel endpoint {address}: {why}")]
    Connect {
        /// What was dialled.
        address: Address,
        /// What happened.
        why: String,
    },
}

impl DialError {
    fn tls(error: impl std::fmt::Display) -> Self {
        Self::Tls(error.to_string())
    }
}

impl From<DialError> for ApiError {
    fn from(error: DialError) -> Self {
        let code = match error {
            DialError::Timeout { .. } => ErrorCode::Timeout,
            DialError::WrongCertificate { .. } => ErrorCode::Unauthenticated,
            DialError::Socket(_) | DialError::Tls(_) => ErrorCode::Internal,
            DialError::Resolve { .. } | DialError::Connect { .. } => ErrorCode::Unavailable,
        };
        let text = match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        ApiError::new(code, text)
    }
}

/// A connection with the socket it uses.
#[derive(Debug)]
pub struct Dialled {
    /// The socket, for this connection alone.
    pub endpoint: Endpoint,
    /// The connection.
    pub connection: Connection,
}

/// How long a farewell may hold up an exit: the packet only has to leave this host.
const FAREWELL: Duration = Duration::from_millis(50);

impl Dialled {
    /// Closes the connection and lets the news leave the host, so that the relay need not find out by silence.
    pub async fn close(&self, reason: Reason) {
        self.connection.close(reason.code(), b"");
        let _ = tokio::time::timeout(FAREWELL, self.endpoint.wait_idle()).await;
    }
}

/// Dials the relay, one address of the host after the other, each for at most [`DIAL_DEADLINE`]. Cancel safe.
pub async fn dial(address: &Address, trusted: Fingerprint, transport: Transport) -> Result<Dialled, DialError> {
    let addresses = tokio::time::timeout(DIAL_DEADLINE, tokio::net::lookup_host((address.host.as_str(), address.port)))
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the resolver did not answer")))
        .map_err(|source| DialError::Resolve { address: address.clone(), source })?;
    let mut failure = DialError::Resolve {
        address: address.clone(),
        source: io::Error::new(io::ErrorKind::NotFound, "the name has no address"),
    };
    for remote in addresses {
        match dial_one(address, remote, trusted, transport).await {
            Ok(dialled) => return Ok(dialled),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

async fn dial_one(
    address: &Address,
    remote: SocketAddr,
    trusted: Fingerprint,
    transport: Transport,
) -> Result<Dialled, DialError> {
    let tls = tls::client_config(trusted, &[ALPN]).map_err(DialError::tls)?;
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).map_err(DialError::tls)?));
    let mut settings = common(transport.payload_towards(remote.ip()));
    settings
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(VarInt::from_u32(MAX_SESSIONS))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW));
    config.transport_config(Arc::new(settings));
    let any: IpAddr = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let endpoint = bind(SocketAddr::new(any, 0), None).map_err(DialError::Socket)?;
    let failed = |why: String| DialError::Connect { address: address.clone(), why };
    let connecting = endpoint.connect_with(config, remote, SERVER_NAME).map_err(|error| failed(error.to_string()))?;
    let timeout = DialError::Timeout { address: address.clone(), ip: remote.ip() };
    match tokio::time::timeout(DIAL_DEADLINE, connecting).await {
        Ok(Ok(connection)) => Ok(Dialled { endpoint, connection }),
        Ok(Err(ConnectionError::TransportError(error))) if u64::from(error.code) == WRONG_CERTIFICATE => {
            Err(DialError::WrongCertificate { address: address.clone(), expected: trusted })
        }
        Err(_) | Ok(Err(ConnectionError::TimedOut)) => Err(timeout),
        Ok(Err(error)) => Err(failed(reason::describe(&error))),
    }
}

/// The QUIC code that our own certificate check ends a handshake with: "crypto error" (0x100) with the TLS alert
/// `access_denied` (49), which rustls sends when an application's verifier says no.
const WRONG_CERTIFICATE: u64 = 0x100 + 49;

/// Settings that both sides share.
fn common(largest_payload: u16) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(largest_payload);
    let idle = u32::try_from(IDLE_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    let mut settings = TransportConfig::default();
    settings
        .initial_rtt(INITIAL_RTT)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle))))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .send_window(SEND_WINDOW)
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(discovery));
    settings
}

fn bind(address: SocketAddr, server: Option<quinn::ServerConfig>) -> io::Result<Endpoint> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    for result in [socket.set_recv_buffer_size(SOCKET_BUFFER), socket.set_send_buffer_size(SOCKET_BUFFER)] {
        if let Err(error) = result {
            debug!(%error, "the system did not grant a larger socket buffer");
        }
    }
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(JUMBO_PAYLOAD).map_err(io::Error::other)?;
    Endpoint::new(config, server, socket.into(), Arc::new(TokioRuntime))
}
