//! Sockets and transport settings of both sides. Every number was measured or has its reason beside it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig,
    TokioRuntime, TransportConfig, VarInt,
};
use sha2::{Digest, Sha256};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::debug;

use super::allowance::FIRST_STREAMS;
use super::udp::Bounded;
use super::{ALPN, IDLE_TIMEOUT, KEEP_ALIVE, MAX_SESSIONS};
use crate::identity::ca::Identity;
use crate::identity::tls;

/// What one stream may have under way, in bytes: a session runs at 80 Mbit/s over a path of 200 ms.
const STREAM_WINDOW: u32 = 2 << 20;

/// The same over loopback, where half of it costs a tenth of the throughput and nobody is far enough away to be unknown.
const LOOPBACK_WINDOW: u32 = 2 * STREAM_WINDOW;

/// The same before the peer has proven who it is: enough for headers.
const UNPROVEN_WINDOW: u32 = 64 << 10;

/// How many streams a peer may open before it has proven who it is.
const UNPROVEN_STREAMS: u32 = 16;

/// What may be sent and not yet acknowledged, over all streams: 1 Gbit/s at 60 ms, and all that one slow peer can make
/// us hold for resending.
pub(super) const SEND_WINDOW: u64 = 8 << 20;

/// The same for streams that send little, which must not wait until those that send much have room.
pub(super) const URGENT_SEND_WINDOW: u64 = SEND_WINDOW + (1 << 20);

/// Socket buffers in bytes: quinn sends bursts of 64 KiB to each of many peers; the usual 208 KiB loses packets. The
/// system may grant less.
const SOCKET_BUFFER: usize = 4 << 20;

/// The largest packet on ordinary networks: Ethernet less IPv6 and UDP headers.
const ETHERNET_PAYLOAD: u16 = 1_452;

/// The largest packet worth having where there are jumbo frames: ten of them fill one segmented send of 64 KiB. Gave 2.3 times
/// the throughput.
const JUMBO_PAYLOAD: u16 = 6_500;

/// The same over loopback: three of them do. Needs 0.88 of the CPU that a TLS relay needs, where packets of 6,500 bytes need 1.06
/// and of 65,000 bytes 0.82. Those would cost each side 1.4 ms for each connection, see [`probing`].
///
/// macOS sends no datagram above 9,216 bytes unless it is told to.
const LOOPBACK_PAYLOAD: u16 = if cfg!(target_os = "linux") { 21_000 } else { 9_000 };

/// What a probe must promise to be made, over loopback: that of the largest is the first there, and one that an earlier release
/// takes the second.
const WORTH_PROBING: u16 = 4_500;

/// Connection attempts that wait for the accept loop; more are refused. The loop only spawns, so few ever wait.
const MAX_INCOMING: usize = 1_024;

/// Bytes held for one attempt and for all of them, before they are accepted: a handshake's first flight and no more.
const INCOMING_BUFFER: u64 = 16 << 10;
const INCOMING_BUFFER_TOTAL: u64 = 4 << 20;

/// What the round-trip time is taken for before it was measured: a lost first packet is sent again after three of these.
/// Shorter than the standard's 333 ms so that a dial during a relay's restart is answered within a blink after it.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// How often a stateless reset may be sent: all workers of a large cluster learn of a restart within a second. It is
/// never larger than the packet it answers, so it amplifies nothing.
const RESET_INTERVAL: Duration = Duration::from_millis(1);

/// Settings that depend on the network and on what it is used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transport {
    /// How large packets may get.
    pub packets: Packets,
    /// Which stream goes first.
    pub turns: Turns,
}

/// Which of the streams of a connection goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Turns {
    /// One that sends little goes before those that send much.
    #[default]
    Urgent,
    /// All have their turns alike: to see what the other way is worth.
    Equal,
}

/// How large packets may get; what the path really takes is found out by probing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packets {
    /// Large ones over loopback, Ethernet's elsewhere.
    #[default]
    Automatic,
    /// Never more than Ethernet's.
    Ethernet,
    /// Large ones on every path: worth it where the network has jumbo frames.
    Jumbo,
}

impl Transport {
    fn payload_towards(self, remote: IpAddr) -> u16 {
        match self.packets {
            Packets::Jumbo => JUMBO_PAYLOAD,
            Packets::Automatic if remote.to_canonical().is_loopback() => LOOPBACK_PAYLOAD,
            Packets::Automatic | Packets::Ethernet => ETHERNET_PAYLOAD,
        }
    }
}

/// The relay's settings for connections over loopback, with large packets and with usual ones.
#[derive(Debug)]
pub struct ServerConfigs {
    transport: Transport,
    endpoint: EndpointConfig,
    loopback: Arc<quinn::ServerConfig>,
    large: Arc<quinn::ServerConfig>,
    usual: Arc<quinn::ServerConfig>,
}

impl ServerConfigs {
    /// Settings that present `identity`.
    ///
    /// # Errors
    /// When rustls cannot use the identity.
    pub fn new(identity: &Identity, transport: Transport) -> Result<Self, rustls::Error> {
        let tls = tls::server_config(identity, &[ALPN])?;
        let crypto = QuicServerConfig::try_from(tls).map_err(|error| rustls::Error::General(error.to_string()))?;
        let crypto = Arc::new(crypto);
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
        let endpoint = recognisable(identity);
        let (loopback, large, usual) = (config(LOOPBACK_PAYLOAD), config(JUMBO_PAYLOAD), config(ETHERNET_PAYLOAD));
        Ok(Self { transport, endpoint, loopback, large, usual })
    }

    /// Those for a peer at `remote`.
    pub fn towards(&self, remote: IpAddr) -> Arc<quinn::ServerConfig> {
        match self.transport.payload_towards(remote) {
            LOOPBACK_PAYLOAD => self.loopback.clone(),
            JUMBO_PAYLOAD => self.large.clone(),
            _ => self.usual.clone(),
        }
    }

    /// Which stream goes first.
    pub fn turns(&self) -> Turns {
        self.transport.turns
    }

    /// Binds the relay's socket.
    pub fn bind(&self, address: SocketAddr) -> io::Result<Endpoint> {
        bind(address, self.endpoint.clone(), Some((*self.usual).clone()))
    }
}

/// Lets a peer that has proven who it is open `streams` for now, and fill the windows of as many as `full`.
pub fn widen(connection: &Connection, streams: u32, full: u32) {
    make_room(connection, full);
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(streams));
}

/// Lets the peer fill the windows of so many streams, whoever opened them.
pub fn make_room(connection: &Connection, full: u32) {
    connection.set_receive_window(room_for(full));
}

/// What so many streams may have under way together. A connection has room for all streams that may be open on it, so that only
/// the window of each ever binds: in a smaller one, sessions whose readers have stopped would leave none to the others. What is
/// held is bounded by the number of sessions, at the window of one stream each.
fn room_for(streams: u32) -> VarInt {
    VarInt::from_u64(u64::from(streams) * u64::from(LOOPBACK_WINDOW)).unwrap_or(VarInt::MAX)
}

/// How the largest packet is searched for. Over loopback the first probe is of the largest, and mostly the last: few other sizes
/// differ by more than [`WORTH_PROBING`]. There the search in steps would cost each side a millisecond of CPU, as
/// quinn-proto reads 45 KB of padding byte by byte, and a fleet on one machine makes thousands of connections at a time.
fn probing(largest_payload: u16) -> MtuDiscoveryConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(largest_payload);
    if largest_payload == LOOPBACK_PAYLOAD {
        discovery.minimum_change(WORTH_PROBING);
    }
    discovery
}

/// Settings that both sides share. The initial congestion window follows the packet size (ten packets, as RFC 9002 has
/// it): probes of large packets would fill a smaller one, and quinn-proto 0.11.19 sends no close while it is full (its
/// issue 2785).
fn common(largest_payload: u16) -> TransportConfig {
    let mut congestion = CubicConfig::default();
    if largest_payload > ETHERNET_PAYLOAD {
        congestion.initial_window(10 * u64::from(largest_payload));
    }
    let window = if largest_payload == LOOPBACK_PAYLOAD { LOOPBACK_WINDOW } else { STREAM_WINDOW };
    let idle = u32::try_from(IDLE_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    let mut settings = TransportConfig::default();
    settings
        .congestion_controller_factory(Arc::new(congestion))
        .initial_rtt(INITIAL_RTT)
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle))))
        .stream_receive_window(VarInt::from_u32(window))
        .send_window(SEND_WINDOW)
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(probing(largest_payload)));
    settings
}

/// Endpoint settings that depend on the identity alone: a relay that was killed and started again recognises packets of
/// the connections it had, and tells their peers at once (by stateless reset) that these are over. Otherwise they would
/// find out by silence, after [`IDLE_TIMEOUT`].
fn recognisable(identity: &Identity) -> EndpointConfig {
    let mut secret = Sha256::new();
    secret.update(b"orchard/1 stateless reset");
    secret.update(identity.key().secret_der());
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &secret.finalize())));
    config.cid_generator(|| Box::new(RandomIds)).min_reset_interval(RESET_INTERVAL);
    config
}

/// Connection ids without a key of this process in them: quinn's own generator would take those of an earlier process
/// for noise and answer nothing.
struct RandomIds;

/// Bytes in a connection id, as many as quinn's own.
const ID_BYTES: usize = 8;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        // quinn draws again when an id is taken.
        ConnectionId::new(&getrandom::u64().unwrap_or_default().to_be_bytes())
    }

    fn cid_len(&self) -> usize {
        ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Binds a client's socket.
pub fn bind_client(address: SocketAddr) -> io::Result<Endpoint> {
    bind(address, EndpointConfig::default(), None)
}

/// A client's settings towards `remote`.
pub fn client_settings(transport: Transport, remote: IpAddr) -> TransportConfig {
    let mut settings = common(transport.payload_towards(remote));
    settings
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(VarInt::from_u32(FIRST_STREAMS))
        .receive_window(room_for(MAX_SESSIONS));
    settings
}

fn bind(address: SocketAddr, mut config: EndpointConfig, server: Option<quinn::ServerConfig>) -> io::Result<Endpoint> {
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
    config.max_udp_payload_size(LOOPBACK_PAYLOAD).map_err(io::Error::other)?;
    let socket = Bounded::new(socket.into(), LOOPBACK_PAYLOAD)?;
    Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(TokioRuntime))
}
