//! The paths that are compared, all of one shape: client, relay, worker, guest. The tunnel, and relays of TCP, of TLS and of
//! WebSockets over TLS, whose two hops are encrypted like the tunnel's.

use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use orchard::duplex::Duplex;
use orchard::identity::ca::{Identity, SERVER_NAME};
use orchard::identity::tls;
use orchard::tunnel::client::Client;
use orchard::tunnel::relay::Relay;
use orchard::tunnel::worker::WorkerLink;
use orchard::tunnel::{Packets, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, accept_async, client_async};

use crate::ground::{Gate, LIMIT, PIECE, guest, part, relay, serve, worker};

/// The runtimes of the parts.
pub struct Parts {
    pub guests: Runtime,
    pub workers: Runtime,
    pub relays: Runtime,
    pub clients: Runtime,
}

impl Parts {
    pub fn start() -> Self {
        Self { guests: part(), workers: part(), relays: part(), clients: part() }
    }
}

/// One of the paths to compare.
#[async_trait]
pub trait Path: Send + Sync {
    /// A connection to the guest.
    async fn open(&self) -> Box<dyn Duplex>;
}

/// The tunnel.
pub struct Quic {
    client: Client,
    gate: Arc<Gate>,
    port: u16,
    _parts: (Relay, WorkerLink),
}

impl Quic {
    pub fn start(parts: &Parts, guest: SocketAddr, packets: Packets) -> Self {
        let (transport, gate) = (Transport { packets, ..Transport::default() }, Arc::new(Gate::default()));
        let relay = relay(&parts.relays, gate.clone(), transport);
        let (address, fingerprint) = (relay.local_addr(), relay.fingerprint());
        let worker = worker(&parts.workers, address, fingerprint, transport);
        let client = parts.clients.block_on(Client::connect(address, fingerprint, transport)).unwrap();
        Self { client, gate, port: guest.port(), _parts: (relay, worker) }
    }

    /// The same to another port of the guest.
    pub async fn open_port(&self, port: u16) -> Box<dyn Duplex> {
        Box::new(self.client.open(&self.gate.ticket(port), LIMIT).await.unwrap())
    }
}

#[async_trait]
impl Path for Quic {
    async fn open(&self) -> Box<dyn Duplex> {
        self.open_port(self.port).await
    }
}

/// How both hops are secured.
#[derive(Clone)]
struct Hops {
    connector: TlsConnector,
    acceptor: TlsAcceptor,
}

impl Hops {
    fn new() -> Self {
        let identity = Identity::generate().unwrap();
        let connector = TlsConnector::from(Arc::new(tls::client_config(identity.fingerprint(), &[]).unwrap()));
        let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(&identity, &[]).unwrap()));
        Self { connector, acceptor }
    }

    async fn accept(&self, stream: TcpStream) -> tokio_rustls::server::TlsStream<TcpStream> {
        self.acceptor.accept(stream).await.unwrap()
    }

    async fn dial(&self, address: SocketAddr) -> tokio_rustls::client::TlsStream<TcpStream> {
        self.connector.connect(SERVER_NAME.try_into().unwrap(), connect(address).await).await.unwrap()
    }
}

async fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// A connection through TCP relays, with TLS on each hop or without.
pub struct Tcp {
    relay: SocketAddr,
    hops: Option<Hops>,
}

impl Tcp {
    pub fn start(parts: &Parts, guest: SocketAddr, encrypted: bool) -> Self {
        let hops = encrypted.then(Hops::new);
        let end = hops.clone();
        let worker = serve(&parts.workers, move |stream| {
            let hops = end.clone();
            async move { join(accept(stream, hops.as_ref()).await, Box::new(connect(guest).await)).await }
        });
        let middle = hops.clone();
        let relay = serve(&parts.relays, move |stream| {
            let hops = middle.clone();
            async move { join(accept(stream, hops.as_ref()).await, dial(worker, hops.as_ref()).await).await }
        });
        Self { relay, hops }
    }
}

#[async_trait]
impl Path for Tcp {
    async fn open(&self) -> Box<dyn Duplex> {
        dial(self.relay, self.hops.as_ref()).await
    }
}

async fn dial(address: SocketAddr, hops: Option<&Hops>) -> Box<dyn Duplex> {
    match hops {
        Some(hops) => Box::new(hops.dial(address).await),
        None => Box::new(connect(address).await),
    }
}

async fn accept(stream: TcpStream, hops: Option<&Hops>) -> Box<dyn Duplex> {
    match hops {
        Some(hops) => Box::new(hops.accept(stream).await),
        None => Box::new(stream),
    }
}

async fn join(mut one: Box<dyn Duplex>, mut other: Box<dyn Duplex>) {
    let _ = copy_bidirectional_with_sizes(&mut one, &mut other, PIECE, PIECE).await;
}

/// A connection through WebSockets over TLS: the relay hands on messages.
pub struct WebSocket {
    relay: SocketAddr,
    hops: Hops,
    /// Where the client's end turns bytes into messages.
    clients: tokio::runtime::Handle,
}

impl WebSocket {
    pub fn start(parts: &Parts, guest: SocketAddr) -> Self {
        let hops = Hops::new();
        let end = hops.clone();
        let worker = serve(&parts.workers, move |stream| {
            let hops = end.clone();
            async move {
                let socket = accept_async(hops.accept(stream).await).await.unwrap();
                bytes_and_messages(Box::new(connect(guest).await), socket).await;
            }
        });
        let middle = hops.clone();
        let relay = serve(&parts.relays, move |stream| {
            let hops = middle.clone();
            async move {
                let near = accept_async(hops.accept(stream).await).await.unwrap();
                let far = client_async("ws://localhost/", hops.dial(worker).await).await.unwrap().0;
                let ((near_out, near_in), (far_out, far_in)) = (near.split(), far.split());
                tokio::join!(hand_on(near_in, far_out), hand_on(far_in, near_out));
            }
        });
        Self { relay, hops, clients: parts.clients.handle().clone() }
    }
}

#[async_trait]
impl Path for WebSocket {
    async fn open(&self) -> Box<dyn Duplex> {
        let socket = client_async("ws://localhost/", self.hops.dial(self.relay).await).await.unwrap().0;
        let (near, far) = tokio::io::duplex(4 * PIECE);
        self.clients.spawn(bytes_and_messages(Box::new(far), socket));
        Box::new(near)
    }
}

async fn hand_on(
    mut from: impl Stream<Item = Result<Message, Error>> + Unpin,
    mut to: impl Sink<Message, Error = Error> + Unpin,
) {
    while let Some(Ok(message)) = from.next().await {
        if to.send(message).await.is_err() {
            return;
        }
    }
    let _ = to.close().await;
}

async fn bytes_and_messages<S: Duplex>(stream: Box<dyn Duplex>, socket: WebSocketStream<S>) {
    let (mut read, mut write) = tokio::io::split(stream);
    let (mut outgoing, mut incoming) = socket.split();
    let up = async {
        let mut buffer = vec![0; PIECE];
        while let Ok(length @ 1..) = read.read(&mut buffer).await {
            if outgoing.send(Message::binary(buffer[..length].to_vec())).await.is_err() {
                return;
            }
        }
        let _ = outgoing.close().await;
    };
    let down = async {
        while let Some(Ok(message)) = incoming.next().await {
            if write.write_all(&message.into_data()).await.is_err() {
                return;
            }
        }
        let _ = write.shutdown().await;
    };
    tokio::join!(up, down);
}

/// All of them, to one guest.
pub struct Paths {
    pub plain: Arc<dyn Path>,
    pub tls: Arc<dyn Path>,
    pub websocket: Arc<dyn Path>,
    pub large: Arc<Quic>,
    pub ethernet: Arc<Quic>,
}

impl Paths {
    pub fn start(parts: &Parts) -> Self {
        let guest = serve(&parts.guests, guest);
        Self {
            plain: Arc::new(Tcp::start(parts, guest, false)),
            tls: Arc::new(Tcp::start(parts, guest, true)),
            websocket: Arc::new(WebSocket::start(parts, guest)),
            large: Arc::new(Quic::start(parts, guest, Packets::Automatic)),
            ethernet: Arc::new(Quic::start(parts, guest, Packets::Ethernet)),
        }
    }
}
