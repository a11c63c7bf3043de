//! What the themes of this bench share: who is let in, what plays the guest, a runtime for each part, targets.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use orchard::duplex::Duplex;
use orchard::identity::ca::{Fingerprint, Identity};
use orchard::identity::new_token;
use orchard::model::error::{ApiError, ErrorCode};
use orchard::model::secret::Secret;
use orchard::model::{AccountName, CopyId, SessionId, VmUid};
use orchard::tunnel::header::WorkerHello;
use orchard::tunnel::proof::Exported;
use orchard::tunnel::relay::{Gatekeeper, Limits, Note, Relay};
use orchard::tunnel::ticket::{Grant, TICKET_TTL, Target, TargetKind, Tickets};
use orchard::tunnel::worker::{Attach, LinkOptions, LinkState, WorkerLink};
use orchard::tunnel::{MAX_SESSIONS, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use uuid::Uuid;

/// Bytes of a transfer, and of a piece of it.
pub const BULK: usize = 512 << 20;
pub const PIECE: usize = 64 << 10;

/// What takes longer is broken.
pub const LIMIT: Duration = Duration::from_secs(30);

/// The guest's port that echoes within the worker's process, as the synthetic runtime's do.
pub const WITHIN: u16 = 7;

/// Admits everybody, and takes tickets of its own and those that name their port.
#[derive(Default)]
pub struct Gate(Mutex<Tickets>);

impl Gate {
    /// A ticket as the controller gives them.
    pub fn ticket(&self, port: u16) -> Secret {
        let secret = new_token();
        self.0.lock().unwrap().issue(&secret, grant(port), Duration::ZERO, TICKET_TTL).unwrap();
        secret
    }

    /// One that a gate in another process knows, too.
    pub fn named(port: u16) -> Secret {
        Secret::new(format!("port {port}"))
    }
}

fn grant(port: u16) -> Grant {
    let copy = CopyId { uid: VmUid(Uuid::nil()), attempt: 0 };
    let (account, vm, worker) = ("a".parse().unwrap(), "vm".parse().unwrap(), "w".parse().unwrap());
    Grant { account, target: Target::Vm { name: vm, copy }, worker, port, since: None }
}

impl Gatekeeper for Gate {
    fn admit(&self, _hello: &WorkerHello, _exported: Exported) -> Result<(), ApiError> {
        Ok(())
    }
    fn permits(&self, _account: &AccountName, _: TargetKind) -> Result<(), ApiError> {
        Ok(())
    }
    fn note(&self, _note: Note<'_>) {}
    fn redeem(&self, ticket: &str) -> Result<Grant, ApiError> {
        match ticket.strip_prefix("port ") {
            Some(port) => Ok(grant(port.parse().unwrap())),
            None => Ok(self.0.lock().unwrap().redeem(ticket, Duration::ZERO)?),
        }
    }
}

struct Guests;

#[async_trait]
impl Attach for Guests {
    async fn attach(&self, _copy: CopyId, port: u16) -> Result<Box<dyn Duplex>, ApiError> {
        if port == WITHIN {
            let (read, write) = tokio::io::simplex(PIECE);
            return Ok(Box::new(tokio::io::join(read, write)));
        }
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
        let stream = stream.map_err(|error| ApiError::new(ErrorCode::Unavailable, error.to_string()))?;
        stream.set_nodelay(true).unwrap();
        Ok(Box::new(stream))
    }
}

/// A runtime with one thread, for one part: what would be a process.
pub fn part() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Any free port of the loopback interface.
pub fn any() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}

/// A relay on `runtime` that lets everybody in.
pub fn relay(runtime: &Runtime, gate: Arc<Gate>, transport: Transport) -> Relay {
    let identity = Identity::generate().unwrap();
    // All streams are one account's here.
    let most = usize::try_from(MAX_SESSIONS).unwrap();
    let limits = Limits { sessions_per_account: most, sessions_per_target: most, ..Limits::default() };
    runtime.block_on(async { Relay::bind(any(), &identity, gate, limits, transport) }).unwrap()
}

/// A worker on `runtime`, connected to that relay.
pub fn worker(runtime: &Runtime, address: SocketAddr, fingerprint: Fingerprint, transport: Transport) -> WorkerLink {
    let (session, secret) = (SessionId(Uuid::nil()), Secret::new("bench"));
    let hello = WorkerHello { worker: "w".parse().unwrap(), session, secret, proof: None };
    let options = LinkOptions { address: address.into(), fingerprint, hello, key: None, transport };
    runtime.block_on(async {
        let worker = WorkerLink::start(options, Arc::new(Guests));
        worker.watch().wait_for(|state| *state == LinkState::Up).await.unwrap();
        worker
    })
}

/// Accepts connections and runs `work` for each, on `runtime`.
pub fn serve<F: Future<Output = ()> + Send + 'static>(
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
pub async fn guest(mut stream: TcpStream) {
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

/// Prints what was measured beside what it should be at most.
pub fn at_most(what: &str, measured: f64, most: f64, unit: &str) {
    let verdict = if measured <= most { "met".into() } else { format!("missed by {:.2} {unit}", measured - most) };
    println!("  {what:<76} {measured:>8.2} {unit:<3} target <= {most:.2}: {verdict}");
}

/// The same for what it should be at least.
pub fn at_least(what: &str, measured: f64, least: f64, unit: &str) {
    let verdict = if measured >= least { "met".into() } else { format!("missed by {:.2} {unit}", least - measured) };
    println!("  {what:<76} {measured:>8.2} {unit:<3} target >= {least:.2}: {verdict}");
}

/// Resident memory of a process, in KiB.
pub fn resident_kib(process: &str) -> f64 {
    let statm = std::fs::read_to_string(format!("/proc/{process}/statm")).unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<f64>().ok()).unwrap_or(0.0) * 4.0
}

/// Processor time that this process has used, in seconds.
pub fn cpu_seconds() -> f64 {
    let clock = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    clock.tv_sec as f64 + clock.tv_nsec as f64 / 1e9
}
