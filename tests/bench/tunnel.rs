//! Bulk throughput, one-byte round trips and session set-up, client → relay → worker → echo server, through the QUIC
//! tunnel and through a plain TCP relay and a relay with TLS on both legs, in one run: `cargo bench --bench tunnel`.
//!
//! Only ratios of one run mean anything. Every part has a runtime of its own, as it would have a process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)] // a failed bench panics

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use orchard::duplex::Duplex;
use orchard::identity::ca::{Identity, SERVER_NAME};
use orchard::identity::{new_token, tls};
use orchard::model::error::{ApiError, ErrorCode};
use orchard::model::secret::Secret;
use orchard::model::{AccountName, CopyId, SessionId, VmUid};
use orchard::tunnel::client::Client;
use orchard::tunnel::header::WorkerHello;
use orchard::tunnel::proof::Exported;
use orchard::tunnel::relay::{Gatekeeper, Limits, Note, Relay};
use orchard::tunnel::ticket::{Grant, TICKET_TTL, Tickets};
use orchard::tunnel::worker::{Attach, LinkOptions, LinkState, WorkerLink};
use orchard::tunnel::{MAX_SESSIONS, Packets, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use uuid::Uuid;

const BULK: usize = 512 << 20;
const PIECE: usize = 64 << 10;
const ROUND_TRIPS: usize = 3_000;
const SESSIONS: usize = 1_000;
const IDLE: usize = 2_000;
const RUNS: usize = 3;
const LIMIT: Duration = Duration::from_secs(30);

/// Admits everybody and keeps tickets.
#[derive(Default)]
struct Gate(Mutex<Tickets>);

impl Gate {
    fn ticket(&self, port: u16) -> Secret {
        let copy = CopyId { uid: VmUid(Uuid::nil()), attempt: 0 };
        let (account, vm, worker) = ("a".parse().unwrap(), "vm".parse().unwrap(), "w".parse().unwrap());
        let secret = new_token();
        let grant = Grant { account, vm, copy, worker, port };
        self.0.lock().unwrap().issue(&secret, grant, Duration::ZERO, TICKET_TTL).unwrap();
        secret
    }
}

impl Gatekeeper for Gate {
    fn admit(&self, _hello: &WorkerHello, _exported: Exported) -> Result<(), ApiError> {
        Ok(())
    }
    fn permits(&self, _account: &AccountName) -> Result<(), ApiError> {
        Ok(())
    }
    fn note(&self, _note: Note<'_>) {}
    fn redeem(&self, ticket: &str) -> Result<Grant, ApiError> {
        Ok(self.0.lock().unwrap().redeem(ticket, Duration::ZERO)?)
    }
}

struct Guests;

#[async_trait]
impl Attach for Guests {
    async fn attach(&self, _copy: CopyId, port: u16) -> Result<Box<dyn Duplex>, ApiError> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
        let stream = stream.map_err(|error| ApiError::new(ErrorCode::Unavailable, error.to_string()))?;
        stream.set_nodelay(true).unwrap();
        Ok(Box::new(stream))
    }
}

fn part() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn any() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// Accepts connections and runs `work` for each, on `runtime`.
fn serve<F: Future<Output = ()> + Send + 'static>(
    runtime: &Runtime,
    work: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let listener = runtime.block_on(TcpListener::bind(any())).unwrap();
    let address = listener.local_addr().unwrap();
    runtime.spawn(async move {
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (stream, _) = accepted.unwrap();
                    stream.set_nodelay(true).unwrap();
                    tasks.spawn(work(stream));
                }
                Some(_) = tasks.join_next() => {}
            }
        }
    });
    address
}

/// The guest: the first byte says what it does: `u`pload, `d`ownload or echo.
async fn guest(mut stream: TcpStream) {
    let mut buffer = vec![0; PIECE];
    let Ok(mode) = stream.read_u8().await else { return };
    match mode {
        b'u' => {
            let mut left = BULK;
            while left > 0 {
                match stream.read(&mut buffer).await {
                    Ok(read) if read > 0 => left -= read,
                    _ => return,
                }
            }
            let _ = stream.write_all(b".").await;
        }
        b'd' => {
            for _ in 0..BULK / PIECE {
                if stream.write_all(&buffer).await.is_err() {
                    return;
                }
            }
        }
        _ => loop {
            match stream.read(&mut buffer).await {
                Ok(read) if read > 0 => {
                    if stream.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                }
                _ => return,
            }
        },
    }
}

/// One of the paths to compare.
#[async_trait]
trait Path: Send + Sync {
    /// A connection to the guest.
    async fn open(&self) -> Box<dyn Duplex>;
}

struct Quic {
    client: Client,
    gate: Arc<Gate>,
    guest: SocketAddr,
    _parts: (Relay, WorkerLink),
}

#[async_trait]
impl Path for Quic {
    async fn open(&self) -> Box<dyn Duplex> {
        Box::new(self.client.open(&self.gate.ticket(self.guest.port()), LIMIT).await.unwrap())
    }
}

/// The tunnel; every part runs on its own runtime.
fn quic(relays: &Runtime, workers: &Runtime, clients: &Runtime, guest: SocketAddr, packets: Packets) -> Quic {
    let transport = Transport { packets };
    let gate = Arc::new(Gate::default());
    let identity = Identity::generate().unwrap();
    // All streams are one account's here.
    let sessions_per_account = usize::try_from(MAX_SESSIONS).unwrap();
    let limits = Limits { sessions_per_account, ..Limits::default() };
    let relay = relays.block_on(async { Relay::bind(any(), &identity, gate.clone(), limits, transport) }).unwrap();
    let (session, secret) = (SessionId(Uuid::nil()), Secret::new("bench"));
    let hello = WorkerHello { worker: "w".parse().unwrap(), session, secret, proof: None };
    let (address, fingerprint) = (relay.local_addr(), relay.fingerprint());
    let options = LinkOptions { address: address.into(), fingerprint, hello, key: None, transport };
    let worker = workers.block_on(async { WorkerLink::start(options, Arc::new(Guests)) });
    workers.block_on(async { worker.watch().wait_for(|state| *state == LinkState::Up).await.map(drop) }).unwrap();
    let client = clients.block_on(Client::connect(address, fingerprint, transport)).unwrap();
    Quic { client, gate, guest, _parts: (relay, worker) }
}

/// A connection through TCP relays, with TLS on each leg or without.
struct Tcp {
    relay: SocketAddr,
    tls: Option<TlsConnector>,
}

#[async_trait]
impl Path for Tcp {
    async fn open(&self) -> Box<dyn Duplex> {
        dial(self.relay, self.tls.as_ref()).await
    }
}

async fn dial(address: SocketAddr, tls: Option<&TlsConnector>) -> Box<dyn Duplex> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    match tls {
        Some(tls) => Box::new(tls.connect(SERVER_NAME.try_into().unwrap(), stream).await.unwrap()),
        None => Box::new(stream),
    }
}

async fn accept(stream: TcpStream, tls: Option<&TlsAcceptor>) -> Box<dyn Duplex> {
    match tls {
        Some(tls) => Box::new(tls.accept(stream).await.unwrap()),
        None => Box::new(stream),
    }
}

fn tcp(relays: &Runtime, workers: &Runtime, guest: SocketAddr, encrypted: bool) -> Tcp {
    let identity = Identity::generate().unwrap();
    let connector = TlsConnector::from(Arc::new(tls::client_config(identity.fingerprint(), &[]).unwrap()));
    let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(&identity, &[]).unwrap()));
    let (connector, acceptor) = (encrypted.then_some(connector), encrypted.then_some(acceptor));
    let taken = acceptor.clone();
    let worker = serve(workers, move |stream| {
        let acceptor = taken.clone();
        async move {
            let mut from = accept(stream, acceptor.as_ref()).await;
            let mut to = dial(guest, None).await;
            let _ = copy_bidirectional_with_sizes(&mut from, &mut to, PIECE, PIECE).await;
        }
    });
    let onward = connector.clone();
    let relay = serve(relays, move |stream| {
        let (connector, acceptor) = (onward.clone(), acceptor.clone());
        async move {
            let mut from = accept(stream, acceptor.as_ref()).await;
            let mut to = dial(worker, connector.as_ref()).await;
            let _ = copy_bidirectional_with_sizes(&mut from, &mut to, PIECE, PIECE).await;
        }
    });
    Tcp { relay, tls: connector }
}

/// What one path is worth.
#[derive(Clone, Copy, Debug, Default)]
struct Figures {
    /// MB/s, client to guest.
    up: f64,
    /// MB/s, guest to client.
    down: f64,
    /// Microseconds for one byte there and back, median and 99th percentile.
    round_trip: (f64, f64),
    /// Microseconds until a new session's first byte is back, median and 99th percentile.
    session: (f64, f64),
}

async fn measure(path: &dyn Path) -> Figures {
    let rate = |started: Instant| BULK as f64 / 1e6 / started.elapsed().as_secs_f64();
    let mut piece = vec![7; PIECE];

    let mut stream = path.open().await;
    let started = Instant::now();
    stream.write_all(b"u").await.unwrap();
    for _ in 0..BULK / PIECE {
        stream.write_all(&piece).await.unwrap();
    }
    stream.flush().await.unwrap();
    stream.read_u8().await.unwrap();
    let up = rate(started);

    let mut stream = path.open().await;
    let started = Instant::now();
    stream.write_all(b"d").await.unwrap();
    stream.flush().await.unwrap();
    let mut left = BULK;
    while left > 0 {
        let read = stream.read(&mut piece).await.unwrap();
        assert!(read > 0);
        left -= read;
    }
    let down = rate(started);

    let mut stream = path.open().await;
    stream.write_all(b"e").await.unwrap();
    let mut times = Vec::new();
    for _ in 0..ROUND_TRIPS {
        times.push(echo_once(&mut stream, b"x").await);
    }
    let round_trip = quantiles(times);

    let mut times = Vec::new();
    for _ in 0..SESSIONS {
        let started = Instant::now();
        let mut stream = path.open().await;
        echo_once(&mut stream, b"ex").await;
        times.push(started.elapsed());
    }
    Figures { up, down, round_trip, session: quantiles(times) }
}

/// Sends `bytes` and waits for the last of them to come back.
async fn echo_once(stream: &mut Box<dyn Duplex>, bytes: &[u8]) -> Duration {
    let started = Instant::now();
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
    stream.read_u8().await.unwrap();
    started.elapsed()
}

fn quantiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort();
    let at = |share: usize| times[times.len() * share / 100].as_secs_f64() * 1e6;
    (at(50), at(99))
}

/// The best of the runs in each figure: the others were disturbed.
fn best(a: Figures, b: Figures) -> Figures {
    let least = |a: (f64, f64), b: (f64, f64)| (a.0.min(b.0), a.1.min(b.1));
    Figures {
        up: a.up.max(b.up),
        down: a.down.max(b.down),
        round_trip: least(a.round_trip, b.round_trip),
        session: least(a.session, b.session),
    }
}

fn resident_kib() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<f64>().ok()).unwrap_or(0.0) * 4.0
}

fn main() {
    tls::install_provider();
    let [guests, workers, relays, clients] = std::array::from_fn(|_| part());
    let guest = serve(&guests, guest);
    let paths: Vec<(&str, Box<dyn Path>)> = vec![
        ("TCP relay, plain", Box::new(tcp(&relays, &workers, guest, false))),
        ("TCP relay, TLS on both legs", Box::new(tcp(&relays, &workers, guest, true))),
        ("QUIC tunnel, large packets", Box::new(quic(&relays, &workers, &clients, guest, Packets::Automatic))),
        ("QUIC tunnel, Ethernet packets", Box::new(quic(&relays, &workers, &clients, guest, Packets::Ethernet))),
    ];
    let mut figures = vec![None; paths.len()];
    for _ in 0..RUNS {
        for (place, (_, path)) in figures.iter_mut().zip(&paths) {
            let now = clients.block_on(measure(path.as_ref()));
            *place = Some(place.map_or(now, |before| best(before, now)));
        }
    }
    let figures: Vec<Figures> = figures.into_iter().flatten().collect();
    let tls = figures[1];
    println!(
        "{:32} {:>16} {:>16} {:>22} {:>22}",
        "best of 3; ratio to TLS relay", "up MB/s", "down MB/s", "1 byte µs p50/p99", "session µs p50/p99"
    );
    for ((name, _), f) in paths.iter().zip(&figures) {
        println!(
            "{name:32} {:>8.0} ({:.2}×) {:>8.0} ({:.2}×) {:>7.0}/{:<6.0}({:.2}×) {:>7.0}/{:<6.0}({:.2}×)",
            f.up,
            f.up / tls.up,
            f.down,
            f.down / tls.down,
            f.round_trip.0,
            f.round_trip.1,
            f.round_trip.0 / tls.round_trip.0,
            f.session.0,
            f.session.1,
            f.session.0 / tls.session.0,
        );
    }
    let before = resident_kib();
    let open: Vec<_> = clients.block_on(async {
        let mut open = Vec::new();
        for _ in 0..IDLE {
            open.push(paths[2].1.open().await);
        }
        open
    });
    println!(
        "{} idle sessions: {:.1} KiB each, all three ends and the guest",
        open.len(),
        (resident_kib() - before) / IDLE as f64
    );
}
