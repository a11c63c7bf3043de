//! The tunnel end to end in one process over loopback: client → relay → worker → a TCP server that plays the guest.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use orchard::identity::ca::{Identity, SERVER_NAME};
use orchard::identity::{new_token, tls};
use orchard::model::error::{ApiError, ErrorCode};
use orchard::model::secret::Secret;
use orchard::model::{CopyId, SessionId, VmUid, WorkerName};
use orchard::task::{self, Task};
use orchard::tunnel::client::Client;
use orchard::tunnel::header::{Frame, WorkerHello};
use orchard::tunnel::relay::{Gatekeeper, Limits, Relay};
use orchard::tunnel::stream::TunnelStream;
use orchard::tunnel::ticket::{Grant, TICKET_TTL, Tickets};
use orchard::tunnel::worker::{Attach, Duplex, LinkOptions, LinkState, WorkerLink};
use orchard::tunnel::{ALPN, Address, DialError, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use crate::wait::until;

const LIMIT: Duration = Duration::from_secs(20);

/// Admits the workers whose secret it knows, and keeps the tickets; time stands still unless moved.
#[derive(Default)]
struct Gate {
    tickets: Mutex<Tickets>,
    secrets: Mutex<HashMap<WorkerName, (SessionId, String)>>,
    links: Mutex<Vec<bool>>,
    now_secs: AtomicU64,
}

impl Gate {
    fn now(&self) -> Duration {
        Duration::from_secs(self.now_secs.load(Ordering::SeqCst))
    }

    /// A ticket for `port` of the VM on `worker`.
    fn ticket(&self, worker: &str, port: u16) -> Secret {
        let grant = Grant {
            account: "alice".parse().unwrap(),
            vm: "vm-1".parse().unwrap(),
            copy: CopyId { uid: VmUid(Uuid::nil()), attempt: 0 },
            worker: worker.parse().unwrap(),
            port,
        };
        let secret = new_token();
        self.tickets.lock().unwrap().issue(&secret, grant, self.now(), TICKET_TTL).unwrap();
        secret
    }

    /// A new session of `worker`; the one before is over.
    fn session(&self, worker: &str) -> WorkerHello {
        let hello =
            WorkerHello { worker: worker.parse().unwrap(), session: SessionId(Uuid::new_v4()), secret: new_token() };
        let entry = (hello.session, hello.secret.expose().to_owned());
        self.secrets.lock().unwrap().insert(hello.worker.clone(), entry);
        hello
    }
}

impl Gatekeeper for Gate {
    fn admit(&self, worker: &WorkerName, session: SessionId, secret: &str) -> Result<(), ApiError> {
        match self.secrets.lock().unwrap().get(worker) {
            Some((known, expected)) if *known == session && expected == secret => Ok(()),
            _ => Err(ApiError::new(ErrorCode::Unauthenticated, "this session is over; register again")),
        }
    }

    fn redeem(&self, ticket: &str) -> Result<Grant, ApiError> {
        Ok(self.tickets.lock().unwrap().redeem(ticket, self.now())?)
    }

    fn link_changed(&self, _worker: &WorkerName, up: bool) {
        self.links.lock().unwrap().push(up);
    }
}

/// Guests are TCP servers on loopback; the guest's port is the server's.
struct Guests;

#[async_trait]
impl Attach for Guests {
    async fn attach(&self, _copy: CopyId, port: u16) -> Result<Box<dyn Duplex>, ApiError> {
        match TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(_) => Err(ApiError::new(ErrorCode::Unavailable, format!("the VM refused port {port}"))),
        }
    }
}

/// A guest's server: runs `serve` for each connection.
async fn guest<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> (u16, Task) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let accepting = task::spawn(async move {
        let mut tasks = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            tasks.spawn(serve(stream));
        }
    });
    (port, accepting)
}

async fn echo() -> (u16, Task) {
    guest(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

fn any() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

fn bind(address: SocketAddr, identity: &Identity, gate: &Arc<Gate>, limits: Limits) -> Result<Relay, String> {
    Relay::bind(address, identity, gate.clone(), limits, Transport::default()).map_err(|error| error.to_string())
}

fn link(relay: &Relay, hello: WorkerHello) -> WorkerLink {
    let options = LinkOptions {
        address: relay.local_addr().into(),
        fingerprint: relay.fingerprint(),
        hello,
        transport: Transport::default(),
    };
    WorkerLink::start(options, Arc::new(Guests))
}

/// A relay with one connected worker `w1` and a client.
struct World {
    gate: Arc<Gate>,
    identity: Identity,
    relay: Relay,
    worker: WorkerLink,
    client: Client,
}

impl World {
    async fn start() -> Self {
        Self::with(Limits::default()).await
    }

    async fn with(limits: Limits) -> Self {
        let gate = Arc::new(Gate::default());
        let identity = Identity::generate().unwrap();
        let relay = bind(any(), &identity, &gate, limits).unwrap();
        let worker = link(&relay, gate.session("w1"));
        let client = connect(&relay).await;
        let world = Self { gate, identity, relay, worker, client };
        world.connected(true).await;
        world
    }

    async fn connected(&self, wanted: bool) {
        wait_connected(&self.relay, wanted).await;
    }

    async fn open(&self, port: u16) -> Result<TunnelStream, ApiError> {
        self.client.open(&self.gate.ticket("w1", port), LIMIT).await
    }
}

async fn wait_connected(relay: &Relay, wanted: bool) {
    let w1 = "w1".parse().unwrap();
    until("the worker's link", LIMIT, || async {
        if relay.connected(&w1) == wanted { Ok(()) } else { Err(format!("connected: {}", !wanted)) }
    })
    .await;
}

async fn connect(relay: &Relay) -> Client {
    Client::connect(relay.local_addr(), relay.fingerprint(), Transport::default()).await.unwrap()
}

/// Echoes `text` through the stream and ends it both ways.
async fn converse(mut stream: TunnelStream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await.unwrap();
    assert_eq!(back, text);
}

fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(seed ^ (seed >> 29)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_sends_reaches_the_guest_and_comes_back() {
    let world = World::start().await;
    let (port, _echo) = echo().await;
    converse(world.open(port).await.unwrap(), b"hello").await;
    assert!(world.worker.is_up());
    assert!(world.relay.probe(&"w1".parse().unwrap(), LIMIT).await.unwrap() < LIMIT);
    let info = world.relay.link(&"w1".parse().unwrap()).unwrap();
    assert!(info.sent > 0 && info.address.ip().is_loopback(), "{info:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_in_both_directions_at_once_arrives_whole() {
    const LENGTH: usize = 64 << 20;
    let world = World::start().await;
    let down = Arc::new(noise(LENGTH, 1));
    let expected = down.clone();
    let (heard_said, mut heard) = tokio::sync::mpsc::channel(1);
    let (port, _guest) = guest(move |mut stream| {
        let (down, heard_said) = (down.clone(), heard_said.clone());
        async move {
            let (mut read, mut write) = stream.split();
            let send = async {
                write.write_all(&down).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let (read, ()) = tokio::join!(read.read_to_end(&mut got), send);
            read.unwrap();
            heard_said.send(got).await.unwrap();
        }
    })
    .await;
    let up = noise(LENGTH, 2);
    let (mut read, mut write) = tokio::io::split(world.open(port).await.unwrap());
    let mut got = Vec::new();
    let send = async {
        write.write_all(&up).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let (read, ()) = tokio::join!(read.read_to_end(&mut got), send);
    read.unwrap();
    assert!(got == *expected, "what came down is not what was sent");
    assert!(heard.recv().await.unwrap() == up, "what went up is not what was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_can_end_its_side_and_still_hear_the_guest() {
    let world = World::start().await;
    let (port, _guest) = guest(|mut stream| async move {
        let mut got = String::new();
        stream.read_to_string(&mut got).await.unwrap();
        stream.write_all(format!("you said {got}").as_bytes()).await.unwrap();
    })
    .await;
    let mut stream = world.open(port).await.unwrap();
    stream.write_all(b"all").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "you said all");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_can_end_its_side_and_still_hear_the_client() {
    let world = World::start().await;
    let (said, mut heard) = tokio::sync::mpsc::channel(1);
    let (port, _guest) = guest(move |mut stream| {
        let said = said.clone();
        async move {
            stream.write_all(b"bye").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut got = String::new();
            stream.read_to_string(&mut got).await.unwrap();
            said.send(got).await.unwrap();
        }
    })
    .await;
    let mut stream = world.open(port).await.unwrap();
    let mut greeting = String::new();
    stream.read_to_string(&mut greeting).await.unwrap();
    assert_eq!(greeting, "bye");
    stream.write_all(b"one more thing").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(heard.recv().await.unwrap(), "one more thing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_shut_down_is_delivered_although_the_client_leaves_at_once() {
    const LENGTH: usize = 8 << 20;
    let world = World::start().await;
    let (said, mut heard) = tokio::sync::mpsc::channel(1);
    let (port, _guest) = guest(move |mut stream| {
        let said = said.clone();
        async move {
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await.unwrap();
            said.send(got.len()).await.unwrap();
        }
    })
    .await;
    let mut stream = world.open(port).await.unwrap();
    stream.write_all(&noise(LENGTH, 3)).await.unwrap();
    stream.shutdown().await.unwrap();
    drop(stream);
    world.client.close().await;
    assert_eq!(heard.recv().await.unwrap(), LENGTH);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_session_ends_at_the_guest_too() {
    let world = World::start().await;
    let (said, mut heard) = tokio::sync::mpsc::channel(1);
    let (port, _guest) = guest(move |mut stream| {
        let said = said.clone();
        async move {
            // The guest talks on, as a shell does; only a closed connection ends it.
            let mut failed = false;
            while !failed {
                failed = stream.write_all(b"tick").await.is_err();
                tokio::task::yield_now().await;
            }
            said.send(()).await.unwrap();
        }
    })
    .await;
    let mut stream = world.open(port).await.unwrap();
    let mut tick = [0; 4];
    stream.read_exact(&mut tick).await.unwrap();
    drop(stream);
    tokio::time::timeout(LIMIT, heard.recv()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_reads_nothing_slows_its_client_only_and_does_not_outlive_it() {
    let world = World::start().await;
    let (said, mut heard) = tokio::sync::mpsc::channel(1);
    let (port, _guest) = guest(move |mut stream| {
        let said = said.clone();
        async move {
            while stream.write_all(b"tick").await.is_ok() {
                tokio::task::yield_now().await;
            }
            said.send(()).await.unwrap();
        }
    })
    .await;
    let (echo_port, _echo) = echo().await;
    let mut stream = world.open(port).await.unwrap();
    let stuck = tokio::time::timeout(Duration::from_millis(500), stream.write_all(&noise(64 << 20, 4))).await;
    assert!(stuck.is_err(), "64 MiB went to a guest that reads nothing");
    converse(world.open(echo_port).await.unwrap(), &noise(100_000, 5)).await;
    drop(stream);
    tokio::time::timeout(LIMIT, heard.recv()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn random_sessions_lose_and_cross_no_byte() {
    let world = Arc::new(World::start().await);
    // The guest echoes, slowly and in odd pieces.
    let (port, _guest) = guest(|mut stream| async move {
        let mut buffer = vec![0; 3_001];
        loop {
            match stream.read(&mut buffer).await {
                Ok(read) if read > 0 => {
                    if stream.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
                _ => return,
            }
        }
    })
    .await;
    let mut sessions = tokio::task::JoinSet::new();
    for number in 0..120u64 {
        let world = world.clone();
        sessions.spawn(async move {
            let bytes = noise(usize::try_from(number * 7_919 % 300_000).unwrap(), number);
            let (mut read, mut write) = tokio::io::split(world.open(port).await.unwrap());
            let send = async {
                for piece in bytes.chunks(4_099) {
                    write.write_all(piece).await.unwrap();
                }
                write.shutdown().await.unwrap();
            };
            match number % 4 {
                // Broken off half-way: harms nobody else.
                0 => {
                    let _ = tokio::time::timeout(Duration::from_millis(number), send).await;
                }
                _ => {
                    let mut back = Vec::new();
                    let (read, ()) = tokio::join!(read.read_to_end(&mut back), send);
                    read.unwrap();
                    assert!(back == bytes, "session {number}");
                }
            }
        });
    }
    sessions.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_learns_that_the_guest_reset_the_connection() {
    let world = World::start().await;
    let (port, _guest) = guest(|mut stream| async move {
        let mut one = [0];
        stream.read_exact(&mut one).await.unwrap();
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    })
    .await;
    let mut stream = world.open(port).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "the VM reset the connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reason_for_a_refused_port_reaches_the_client() {
    let world = World::start().await;
    let closed = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        listener.local_addr().unwrap().port()
    };
    let refusal = world.open(closed).await.unwrap_err();
    assert_eq!(refusal, ApiError::new(ErrorCode::Unavailable, format!("the VM refused port {closed}")));
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_used_and_expired_tickets_open_nothing() {
    let world = World::start().await;
    let (port, _echo) = echo().await;
    let refused = async |ticket: &Secret| world.client.open(ticket, LIMIT).await.unwrap_err().code;
    assert_eq!(refused(&new_token()).await, ErrorCode::Unauthenticated);

    let ticket = world.gate.ticket("w1", port);
    converse(world.client.open(&ticket, LIMIT).await.unwrap(), b"once").await;
    assert_eq!(refused(&ticket).await, ErrorCode::Unauthenticated);

    let ticket = world.gate.ticket("w1", port);
    world.gate.now_secs.fetch_add(TICKET_TTL.as_secs(), Ordering::SeqCst);
    assert_eq!(refused(&ticket).await, ErrorCode::Unauthenticated);
    // Refusals harm nobody else on the same connection.
    converse(world.open(port).await.unwrap(), b"still fine").await;
}

/// A connection to the relay that can send what a client would not.
async fn raw(relay: &Relay) -> quinn::Connection {
    let tls = tls::client_config(relay.fingerprint(), &[ALPN]).unwrap();
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let endpoint = quinn::Endpoint::client(any()).unwrap();
    let config = quinn::ClientConfig::new(Arc::new(config));
    endpoint.connect_with(config, relay.local_addr(), SERVER_NAME).unwrap().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_ticket_a_stream_gets_nothing_and_the_connection_ends() {
    let world = World::with(Limits { unproven: Duration::from_millis(500), ..Limits::default() }).await;
    let copy = CopyId { uid: VmUid(Uuid::nil()), attempt: 0 };
    let attach = Frame::Attach { copy, port: 22 }.encode().unwrap();
    for sent in [vec![], vec![0, 0], vec![0xff; 64], b"GET / HTTP/1.1\r\n\r\n".to_vec(), attach] {
        let connection = raw(&world.relay).await;
        let (mut write, mut read) = connection.open_bi().await.unwrap();
        let _ = write.write_all(&sent).await;
        let got = tokio::time::timeout(LIMIT, read.read_to_end(10_000)).await.unwrap().unwrap_or_default();
        let refused = got.is_empty() || String::from_utf8_lossy(&got).contains("refused");
        assert!(refused, "{sent:?} got {got:?}");
        let closed = tokio::time::timeout(LIMIT, connection.closed()).await.unwrap();
        assert!(matches!(closed, quinn::ConnectionError::ApplicationClosed(_)), "{closed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_with_another_certificate_is_refused() {
    let world = World::start().await;
    let other = Identity::generate().unwrap().fingerprint();
    let error = Client::connect(world.relay.local_addr(), other, Transport::default()).await.unwrap_err();
    assert!(matches!(error, DialError::WrongCertificate { .. }), "{error:?}");
    assert_eq!(ApiError::from(error).code, ErrorCode::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_a_wrong_secret_is_told_so_and_comes_in_with_a_new_one() {
    let gate = Arc::new(Gate::default());
    let relay = bind(any(), &Identity::generate().unwrap(), &gate, Limits::default()).unwrap();
    let mut hello = gate.session("w1");
    hello.secret = new_token();
    let worker = link(&relay, hello);
    let mut states = worker.watch();
    let refused = |state: &LinkState| matches!(state, LinkState::Down(why) if why.contains("session is over"));
    tokio::time::timeout(LIMIT, states.wait_for(refused)).await.unwrap().unwrap();
    assert!(!relay.connected(&"w1".parse().unwrap()));
    worker.renew(gate.session("w1"));
    wait_connected(&relay, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_go_on_when_the_workers_session_is_renewed() {
    let world = World::start().await;
    let (port, _echo) = echo().await;
    let stream = world.open(port).await.unwrap();
    world.worker.renew(world.gate.session("w1"));
    converse(stream, b"from before").await;
    converse(world.open(port).await.unwrap(), b"from after").await;
    assert_eq!(*world.gate.links.lock().unwrap(), [true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_and_client_come_back_after_the_relay_was_restarted_on_the_same_port() {
    let World { gate, identity, relay, worker, client } = World::start().await;
    let (port, _echo) = echo().await;
    let mut cut = client.open(&gate.ticket("w1", port), LIMIT).await.unwrap();
    let address = relay.local_addr();
    relay.shutdown().await;
    let error = cut.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert!(error.to_string().contains("shutting down"), "{error}");

    let relay = until("the port", LIMIT, || async { bind(address, &identity, &gate, Limits::default()) }).await;
    wait_connected(&relay, true).await;
    converse(client.open(&gate.ticket("w1", port), LIMIT).await.unwrap(), b"again").await;
    assert_eq!(*gate.links.lock().unwrap(), [true, false, true]);
    worker.stop().await;
    wait_connected(&relay, false).await;
}

#[test]
fn peers_learn_at_once_that_a_killed_relay_is_back() {
    // The relay has a runtime of its own: ending that ends it like a kill, without a farewell to anybody.
    let relays = || tokio::runtime::Runtime::new().unwrap();
    let (first, second, peers) = (relays(), relays(), relays());
    let gate = Arc::new(Gate::default());
    let identity = Identity::generate().unwrap();
    let relay = first.block_on(async { bind(any(), &identity, &gate, Limits::default()).unwrap() });
    let address = relay.local_addr();
    let (mut stream, _worker, _echo) = peers.block_on(async {
        let worker = link(&relay, gate.session("w1"));
        let (port, echo) = echo().await;
        wait_connected(&relay, true).await;
        let client = connect(&relay).await;
        (client.open(&gate.ticket("w1", port), LIMIT).await.unwrap(), worker, echo)
    });
    first.shutdown_timeout(LIMIT);
    drop(relay);
    let started = Instant::now();
    let _relay =
        second.block_on(until("the port", LIMIT, || async { bind(address, &identity, &gate, Limits::default()) }));
    peers.block_on(async {
        stream.write_all(b"anybody there?").await.unwrap();
        let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert!(error.to_string().contains("has restarted"), "{error}");
    });
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_sessions_at_once_do_not_mix() {
    let world = Arc::new(World::start().await);
    let (port, _echo) = echo().await;
    let mut sessions = tokio::task::JoinSet::new();
    for number in 0..200u64 {
        let world = world.clone();
        sessions.spawn(async move {
            let mut stream = world.open(port).await.unwrap();
            // Every session is open before the first one ends.
            stream.write_all(&number.to_le_bytes()).await.unwrap();
            let mut back = [0; 8];
            stream.read_exact(&mut back).await.unwrap();
            assert_eq!(u64::from_le_bytes(back), number);
            (stream, number)
        });
    }
    for (stream, number) in sessions.join_all().await {
        converse(stream, &noise(20_000, number)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_block_nobody_and_are_cut_off() {
    let limits = Limits { unproven: Duration::from_millis(500), ..Limits::default() };
    let world = World::with(limits).await;
    let (port, _echo) = echo().await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(connect(&world.relay).await);
    }
    converse(connect(&world.relay).await.open(&world.gate.ticket("w1", port), LIMIT).await.unwrap(), b"quick").await;
    // They are closed by the relay; a client that then has a ticket dials again by itself.
    for client in silent {
        until("the client works", LIMIT, || async {
            let ticket = world.gate.ticket("w1", port);
            client.open(&ticket, LIMIT).await.map(drop)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_above_the_limit_are_refused_at_once() {
    let world = World::with(Limits { connections: 2, ..Limits::default() }).await;
    let started = Instant::now();
    let third = Client::connect(world.relay.local_addr(), world.relay.fingerprint(), Transport::default()).await;
    assert!(matches!(third.unwrap_err(), DialError::Connect { .. }));
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn under_many_handshakes_addresses_are_validated_first() {
    let world = World::with(Limits { handshakes: 0, ..Limits::default() }).await;
    let (port, _echo) = echo().await;
    converse(world.open(port).await.unwrap(), b"after a retry").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_worker_an_open_fails_at_once_and_says_why() {
    let World { gate, relay, worker, client, .. } = World::start().await;
    let (port, _echo) = echo().await;
    let mut cut = client.open(&gate.ticket("w1", port), LIMIT).await.unwrap();
    worker.stop().await;
    wait_connected(&relay, false).await;
    let error = cut.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "the connection to the worker was lost");

    let started = Instant::now();
    for (worker, why) in [("w1", "shutting down"), ("w2", "has not been since")] {
        let refusal = client.open(&gate.ticket(worker, port), LIMIT).await.unwrap_err();
        assert_eq!(refusal.code, ErrorCode::Unavailable);
        assert!(refusal.message.contains(&format!("worker {worker} is not connected")), "{refusal}");
        assert!(refusal.message.contains(why), "{refusal}");
    }
    assert!(started.elapsed() < Duration::from_secs(2));
    assert!(relay.probe(&"w1".parse().unwrap(), LIMIT).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newer_connection_of_a_worker_replaces_the_older() {
    let world = World::start().await;
    let (port, _echo) = echo().await;
    let hello = world.gate.session("w1");
    let mut states = world.worker.watch();
    let _newer = link(&world.relay, hello);
    let down = |state: &LinkState| matches!(state, LinkState::Down(why) if why.contains("newer connection"));
    tokio::time::timeout(LIMIT, states.wait_for(down)).await.unwrap().unwrap();
    converse(world.open(port).await.unwrap(), b"through the newer").await;
    assert!(world.gate.links.lock().unwrap().iter().all(|up| *up));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_does_not_answer_is_reported_as_such() {
    let socket = std::net::UdpSocket::bind(any()).unwrap();
    let address = Address::from(socket.local_addr().unwrap());
    let nobody = Identity::generate().unwrap().fingerprint();
    let error = Client::connect(address, nobody, Transport::default()).await.unwrap_err();
    assert!(matches!(error, DialError::Timeout { .. }), "{error:?}");
}
