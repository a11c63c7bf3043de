//! A relay, a worker and guests over loopback, for the tests of the tunnel.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use orchard::duplex::Duplex;
use orchard::identity::ca::{Identity, SERVER_NAME};
use orchard::identity::{new_token, tls};
use orchard::model::error::{ApiError, ErrorCode};
use orchard::model::secret::Secret;
use orchard::model::{AccountName, CopyId, SessionId, VmUid, WorkerName};
use orchard::task::{self, Task};
use orchard::tunnel::client::Client;
use orchard::tunnel::header::{Decoder, Frame, WorkerHello};
use orchard::tunnel::proof::{self, Exported};
use orchard::tunnel::relay::{Gatekeeper, Limits, Note, NoteEvent, Relay};
use orchard::tunnel::stream::TunnelStream;
use orchard::tunnel::ticket::{Grant, TICKET_TTL, Target, TargetKind, Tickets};
use orchard::tunnel::worker::{Attach, LinkOptions, WorkerLink};
use orchard::tunnel::{ALPN, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

use crate::wait::until;
pub const LIMIT: Duration = Duration::from_secs(20);

/// Admits the workers whose secret it knows, and keeps the tickets; time stands still unless moved.
#[derive(Default)]
pub struct Gate {
    pub tickets: Mutex<Tickets>,
    pub secrets: Mutex<HashMap<WorkerName, (SessionId, String)>>,
    /// The keys with which workers must sign.
    pub keys: Mutex<HashMap<WorkerName, String>>,
    /// Accounts that may not connect.
    pub barred: Mutex<HashSet<AccountName>>,
    /// What the relay noted.
    pub notes: Mutex<Vec<String>>,
    /// Done once, when the next worker has been found good and before that is said.
    pub meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    pub now_secs: AtomicU64,
}

impl Gate {
    pub fn now(&self) -> Duration {
        Duration::from_secs(self.now_secs.load(Ordering::SeqCst))
    }

    /// A ticket for `port` of the VM on `worker`.
    pub fn ticket(&self, worker: &str, port: u16) -> Secret {
        self.ticket_of("alice", worker, port)
    }

    pub fn ticket_of(&self, account: &str, worker: &str, port: u16) -> Secret {
        let grant = Grant {
            account: account.parse().unwrap(),
            target: Target::Vm { name: "vm-1".parse().unwrap(), copy: CopyId { uid: VmUid(Uuid::nil()), attempt: 0 } },
            worker: worker.parse().unwrap(),
            port,
            since: None,
        };
        self.issue(grant)
    }

    /// A ticket for what is granted.
    pub fn issue(&self, grant: Grant) -> Secret {
        let secret = new_token();
        self.tickets.lock().unwrap().issue(&secret, grant, self.now(), TICKET_TTL).unwrap();
        secret
    }

    /// A new session of `worker`; the one before is over.
    pub fn session(&self, worker: &str) -> WorkerHello {
        let (session, secret) = (SessionId(Uuid::new_v4()), new_token());
        let hello = WorkerHello { worker: worker.parse().unwrap(), session, secret, proof: None };
        let entry = (hello.session, hello.secret.expose().to_owned());
        self.secrets.lock().unwrap().insert(hello.worker.clone(), entry);
        hello
    }
}

impl Gatekeeper for Gate {
    fn admit(&self, hello: &WorkerHello, exported: Exported) -> Result<(), ApiError> {
        match self.secrets.lock().unwrap().get(&hello.worker) {
            Some((known, expected)) if *known == hello.session && expected == hello.secret.expose() => {}
            _ => return Err(ApiError::new(ErrorCode::Unauthenticated, "this session is over; register again")),
        }
        if let Some(key) = self.keys.lock().unwrap().get(&hello.worker) {
            proof::verify(key, exported, hello)?;
        }
        let meanwhile = self.meanwhile.lock().unwrap().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        Ok(())
    }

    fn permits(&self, account: &AccountName, _: TargetKind) -> Result<(), ApiError> {
        match self.barred.lock().unwrap().contains(account) {
            true => Err(ApiError::new(ErrorCode::Forbidden, format!("account {account} was deleted"))),
            false => Ok(()),
        }
    }

    fn note(&self, note: Note<'_>) {
        assert!(note.peer.ip().is_loopback());
        let account = note.grant.map_or("?", |grant| grant.account.as_str());
        let what = match note.event {
            NoteEvent::Refused(why) => format!("refused {:?}", why.code),
            NoteEvent::WorkerRefused(worker, why) => format!("refused {worker} {:?}", why.code),
            NoteEvent::Failed(why) => format!("failed {:?}", why.code),
            NoteEvent::Opened => "opened".to_owned(),
            NoteEvent::Closed { to_vm, from_vm, broken, .. } => format!("closed {to_vm} {from_vm} {broken:?}"),
        };
        self.notes.lock().unwrap().push(format!("{account} {what}"));
    }

    fn redeem(&self, ticket: &str) -> Result<Grant, ApiError> {
        Ok(self.tickets.lock().unwrap().redeem(ticket, self.now())?)
    }
}

/// Guests are TCP servers on loopback; the guest's port is the server's.
pub struct Guests;

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
pub async fn guest<F: Future<Output = ()> + Send + 'static>(
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

pub async fn echo() -> (u16, Task) {
    guest(|mut stream| async move {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
        let _ = write.shutdown().await;
    })
    .await
}

pub fn any() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

pub fn bind(address: SocketAddr, identity: &Identity, gate: &Arc<Gate>, limits: Limits) -> Result<Relay, String> {
    Relay::bind(address, identity, gate.clone(), limits, Transport::default()).map_err(|error| error.to_string())
}

pub fn link(relay: &Relay, hello: WorkerHello) -> WorkerLink {
    keyed_link(relay, hello, None)
}

/// The same for a worker that signs with the key of this seed.
pub fn keyed_link(relay: &Relay, hello: WorkerHello, key: Option<Secret>) -> WorkerLink {
    link_to(relay, hello, key, Arc::new(Guests), Transport::default())
}

/// The same for a worker with other guests and settings.
pub fn link_to(
    relay: &Relay,
    hello: WorkerHello,
    key: Option<Secret>,
    guests: Arc<dyn Attach>,
    transport: Transport,
) -> WorkerLink {
    let options =
        LinkOptions { address: relay.local_addr().into(), fingerprint: relay.fingerprint(), hello, key, transport };
    WorkerLink::start(options, guests)
}

/// A relay with one connected worker `w1` and a client.
pub struct World {
    pub gate: Arc<Gate>,
    pub identity: Identity,
    pub relay: Relay,
    pub worker: WorkerLink,
    pub client: Client,
}

impl World {
    pub async fn start() -> Self {
        Self::with(Limits::default()).await
    }

    pub async fn with(limits: Limits) -> Self {
        let gate = Arc::new(Gate::default());
        let identity = Identity::generate().unwrap();
        let relay = bind(any(), &identity, &gate, limits).unwrap();
        let worker = link(&relay, gate.session("w1"));
        let client = connect(&relay).await;
        let world = Self { gate, identity, relay, worker, client };
        world.connected(true).await;
        world
    }

    pub async fn connected(&self, wanted: bool) {
        wait_connected(&self.relay, wanted).await;
    }

    pub async fn open(&self, port: u16) -> Result<TunnelStream, ApiError> {
        self.client.open(&self.gate.ticket("w1", port), LIMIT).await
    }
}

pub async fn wait_connected(relay: &Relay, wanted: bool) {
    let w1 = "w1".parse().unwrap();
    until("the worker's link", LIMIT, || async {
        if relay.connected(&w1) == wanted { Ok(()) } else { Err(format!("connected: {}", !wanted)) }
    })
    .await;
}

pub async fn connect(relay: &Relay) -> Client {
    Client::connect(relay.local_addr(), relay.fingerprint(), Transport::default()).await.unwrap()
}

/// A connection to the relay that can send what a client would not.
pub async fn raw(relay: &Relay) -> quinn::Connection {
    raw_with(relay, |_| {}).await
}

/// The same with other settings than quinn's own.
pub async fn raw_with(relay: &Relay, set: impl FnOnce(&mut quinn::TransportConfig)) -> quinn::Connection {
    let tls = tls::client_config(relay.fingerprint(), &[ALPN]).unwrap();
    let config = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let endpoint = quinn::Endpoint::client(any()).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(config));
    let mut transport = quinn::TransportConfig::default();
    set(&mut transport);
    config.transport_config(Arc::new(transport));
    endpoint.connect_with(config, relay.local_addr(), SERVER_NAME).unwrap().await.unwrap()
}

/// Echoes `text` through the stream and ends it both ways.
pub async fn converse(mut stream: TunnelStream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await.unwrap();
    assert_eq!(back, text);
}

pub fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(seed ^ (seed >> 29)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Sends one frame over a new stream and yields the answer; the stream stays open.
pub async fn ask(connection: &quinn::Connection, frame: &Frame) -> (Frame, (quinn::SendStream, quinn::RecvStream)) {
    let (mut write, mut read) = connection.open_bi().await.unwrap();
    write.write_all(&frame.encode().unwrap()).await.unwrap();
    (answer(&mut read).await, (write, read))
}

pub async fn answer(read: &mut quinn::RecvStream) -> Frame {
    let mut decoder = Decoder::default();
    loop {
        let mut buffer = vec![0; decoder.wants()];
        let got = tokio::time::timeout(LIMIT, read.read(&mut buffer)).await.unwrap().unwrap().unwrap();
        if let (_, Some(frame)) = decoder.push(&buffer[..got]).unwrap() {
            return frame;
        }
    }
}
