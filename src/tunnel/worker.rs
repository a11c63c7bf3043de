//! The worker's side: one outbound connection to the relay, kept up for as long as the [`WorkerLink`] lives, and a task
//! for each session that the relay opens over it.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use quinn::{Connection, ConnectionError, Endpoint};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{Instrument, debug, info, info_span, warn};

use super::allowance::Allowance;
use super::backoff::Backoff;
use super::dial::{DialError, Dialled, dial_from};
use super::endpoint::Transport;
use super::exec::{Holder, MAX_HOLDERS};
use super::header::{Frame, Resume, WorkerHello};
use super::proof::{self, Exported};
use super::reason::{self, Reason};
use super::stream::TunnelStream;
use super::{ATTACH_DEADLINE, Address, HEADER_DEADLINE, MAX_SESSIONS, splice};
use crate::duplex::BoxedStream;
use crate::identity::ca::Fingerprint;
use crate::model::CopyId;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::secret::Secret;
use crate::task::{self, Task};

/// Connects to guests.
#[async_trait]
pub trait Attach: Send + Sync + 'static {
    /// Connects to a TCP port of a copy. Given up after [`ATTACH_DEADLINE`].
    ///
    /// # Errors
    /// The reason, which the user sees: "the VM refused port 22".
    async fn attach(&self, copy: CopyId, port: u16) -> Result<BoxedStream, ApiError>;

    /// Tells which address the guest of a copy has. Given up after [`ATTACH_DEADLINE`].
    ///
    /// # Errors
    /// The reason, which the user sees.
    async fn locate(&self, copy: CopyId) -> Result<IpAddr, ApiError> {
        Err(ApiError::new(ErrorCode::Unavailable, format!("this worker cannot tell the address of {copy}")))
    }

    /// Serves the exec sessions of a copy to `holder` over the stream. Given up after [`ATTACH_DEADLINE`].
    ///
    /// # Errors
    /// The reason, which the user sees.
    async fn serve(&self, copy: CopyId, holder: Holder) -> Result<BoxedStream, ApiError> {
        let why = format!("this worker holds no exec sessions of {copy} for {}", holder.account);
        Err(ApiError::new(ErrorCode::Unavailable, why))
    }

    /// Who has exec sessions here, in order, those up to `after` left out.
    fn holders(&self, after: Option<&Holder>) -> Vec<Holder> {
        let _ = after;
        Vec::new()
    }

    /// Ends the exec sessions of `holder`, who may hold none any more, and forgets what they said.
    fn end_execs(&self, holder: &Holder) {
        let _ = holder;
    }

    /// The same for a session that shall be resumable, or goes on. Where that cannot be done, one that begins is a plain one.
    ///
    /// # Errors
    /// As for [`Attach::attach`]; [`ErrorCode::NotFound`] when the session that is to go on is not there.
    async fn attach_resumable(&self, copy: CopyId, port: u16, resume: &Resume) -> Result<Attached, ApiError> {
        match resume.again {
            true => Err(no_such_session()),
            false => Ok(Attached { stream: self.attach(copy, port).await?, resumable: false }),
        }
    }

    /// Connects to a TCP port of the worker's own machine, for a session that shall be resumable if `resume` says so. Given up
    /// after [`ATTACH_DEADLINE`].
    ///
    /// # Errors
    /// The reason, which the user sees; [`ErrorCode::Forbidden`] where nobody may.
    async fn attach_host(&self, port: u16, resume: Option<&Resume>) -> Result<Attached, ApiError> {
        let _ = resume;
        Err(ApiError::new(ErrorCode::Forbidden, format!("this worker lets nobody onto its host (port {port})")))
    }

    /// A session may not go on, as who opened it may not connect any more.
    async fn forget(&self, resume: &Resume) {
        let _ = resume;
    }
}

/// A stream to a guest.
pub struct Attached {
    /// The guest's bytes, or the frames of a session.
    pub stream: BoxedStream,
    /// Whether they are frames of a session that can be resumed.
    pub resumable: bool,
}

/// What is said of a session that cannot go on.
pub fn no_such_session() -> ApiError {
    ApiError::new(
        ErrorCode::NotFound,
        "the session cannot go on: the worker holds it no more. Either it was away for too long, or the VM was started anew \
         or moved, or the worker's machine was started anew",
    )
}

/// Where to connect and as whom.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// The relay.
    pub address: Address,
    /// Its certificate.
    pub fingerprint: Fingerprint,
    /// What admits this worker; see [`WorkerLink::renew`]. Its proof is made anew for each connection.
    pub hello: WorkerHello,
    /// The nkey seed (`SU…`) with which the worker logs in to the bus; none = it has no key, and the secret of its
    /// session alone must do.
    pub key: Option<Secret>,
    /// Settings that depend on the network.
    pub transport: Transport,
}

/// How the connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Admitted by the relay.
    Up,
    /// Not connected; why, as far as known.
    Down(String),
}

/// A connection that lasted so long was a good one: the next dial comes at once. Shorter ones may be a fight between two
/// workers of one name, or a relay that fails after admitting.
const GOOD_CONNECTION: Duration = Duration::from_secs(5);

/// Keeps the worker connected. Dropping it ends the connection and every session over it.
pub struct WorkerLink {
    hello: watch::Sender<WorkerHello>,
    state: watch::Receiver<LinkState>,
    stop: watch::Sender<bool>,
    task: Task,
}

impl WorkerLink {
    /// Starts dialling, and goes on for ever. Needs a tokio runtime.
    pub fn start(options: LinkOptions, dialer: Arc<dyn Attach>) -> Self {
        let (hello, hello_seen) = watch::channel(options.hello.clone());
        let (state_said, state) = watch::channel(LinkState::Down("not yet dialled".to_owned()));
        let (stop, stopped) = watch::channel(false);
        let span = info_span!("tunnel", worker = %options.hello.worker);
        let keeper = Keeper {
            options,
            dialer,
            hello: hello_seen,
            state: state_said,
            dialled: None,
            spare: None,
            sessions: JoinSet::new(),
        };
        let task = task::spawn(keeper.run(stopped).instrument(span));
        Self { hello, state, stop, task }
    }

    /// The worker has a new session, or a new secret: it is told to the relay over the living connection, so that its
    /// sessions go on, and used for every later dial. A dial that was refused is tried again at once. Only for the same
    /// relay: if address or certificate changed, drop this and start anew.
    pub fn renew(&self, hello: WorkerHello) {
        self.hello.send_replace(hello);
    }

    /// Whether the relay has admitted this worker, and the connection lives.
    pub fn is_up(&self) -> bool {
        *self.state.borrow() == LinkState::Up
    }

    /// Follows the state.
    pub fn watch(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Ends the connection and tells the relay.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        self.task.stop_within(Duration::from_secs(2)).await;
    }
}

impl fmt::Debug for WorkerLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerLink").field("state", &*self.state.borrow()).finish_non_exhaustive()
    }
}

/// Why there is no connection.
enum Failure {
    /// The relay knows no such session: no dial leads anywhere until there is another one.
    Refused(ApiError),
    /// Anything else, which may be over at the next dial.
    Other(ApiError),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Other(error)
    }
}

struct Keeper {
    options: LinkOptions,
    dialer: Arc<dyn Attach>,
    hello: watch::Receiver<WorkerHello>,
    state: watch::Sender<LinkState>,
    /// The living connection.
    dialled: Option<Dialled>,
    /// The socket of the last connection, if the relay ended that, so that the path is good, and has answered since.
    spare: Option<Endpoint>,
    /// Outlives each connection: what the relay had sent is still delivered to the guest.
    sessions: JoinSet<()>,
}

impl Keeper {
    async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        tokio::select! {
            () = self.keep() => {}
            _ = stopped.wait_for(|stop| *stop) => {}
        }
        if let Some(dialled) = &self.dialled {
            dialled.close(Reason::ShuttingDown).await;
        }
    }

    async fn keep(&mut self) {
        let mut backoff = Backoff::default();
        loop {
            let started = Instant::now();
            let why = match self.connect().await {
                Ok((dialled, control)) => {
                    info!(address = %self.options.address, "connected to the tunnel endpoint");
                    self.state.send_replace(LinkState::Up);
                    let connection = dialled.connection.clone();
                    self.dialled = Some(dialled);
                    let why = self.serve(&connection, control).await;
                    let ended_there = matches!(
                        connection.close_reason(),
                        Some(
                            ConnectionError::Reset
                                | ConnectionError::ConnectionClosed(_)
                                | ConnectionError::ApplicationClosed(_)
                        )
                    );
                    // Sessions hold the connection too; one that is over for the link is over for them.
                    connection.close(Reason::Closed.code(), b"");
                    self.spare = self.dialled.take().filter(|_| ended_there).map(|dialled| dialled.endpoint);
                    if started.elapsed() >= GOOD_CONNECTION {
                        backoff.reset();
                    }
                    why
                }
                Err(Failure::Refused(error)) => {
                    // Each dial is a handshake for the relay, to which a whole fleet may come back now.
                    backoff.exhaust();
                    error.to_string()
                }
                Err(Failure::Other(error)) => error.to_string(),
            };
            let wait = backoff.next(random());
            warn!(%why, again_in_ms = wait.as_millis(), "not connected to the tunnel endpoint");
            self.state.send_replace(LinkState::Down(why));
            // A new hello is worth a dial at once; a closed channel means that the owner is gone and this task with it.
            tokio::select! {
                () = sleep(wait) => {}
                Ok(()) = self.hello.changed() => backoff.reset(),
            }
        }
    }

    /// Dials and is admitted.
    async fn connect(&mut self) -> Result<(Dialled, TunnelStream), Failure> {
        let hello = self.hello.borrow_and_update().clone();
        let (address, spare) = (&self.options.address, self.spare.clone());
        let dialled = dial_from(spare, address, self.options.fingerprint, self.options.transport).await;
        if !matches!(dialled, Err(DialError::Connect { .. })) {
            self.spare = None;
        }
        let dialled = dialled.map_err(ApiError::from)?;
        let connection = &dialled.connection;
        let lost = |error: &quinn::ConnectionError| ApiError::new(ErrorCode::Unavailable, reason::describe(error));
        let halves = connection.open_bi().await.map_err(|error| lost(&error))?;
        let mut control = TunnelStream::new(connection, halves, self.options.transport.turns);
        let proven = prove(self.options.key.as_ref(), connection, hello)?;
        say_hello(&mut control, proven).await.map_err(|error| match connection.close_reason() {
            Some(closed) if error.code == ErrorCode::Unavailable => Failure::Other(lost(&closed)),
            _ if error.code == ErrorCode::Unauthenticated => Failure::Refused(error),
            _ => Failure::Other(error),
        })?;
        Ok((dialled, control))
    }

    /// Serves the connection until it ends; yields why it did.
    async fn serve(&mut self, connection: &Connection, mut control: TunnelStream) -> String {
        let mut hello = self.hello.clone();
        let (key, turns) = (self.options.key.clone(), self.options.transport.turns);
        let mut allowance = Allowance::up_to(MAX_SESSIONS);
        // Neither `accept_bi` nor `renewals` may be dropped half-way, so that renewals run in a future of their own.
        let renewals = async {
            while hello.changed().await.is_ok() {
                let next = hello.borrow_and_update().clone();
                let told = match prove(key.as_ref(), connection, next) {
                    Ok(next) => say_hello(&mut control, next).await,
                    Err(error) => Err(error),
                };
                if let Err(error) = told {
                    return error.to_string();
                }
                debug!("the session was renewed over the tunnel connection");
            }
            std::future::pending().await
        };
        let mut renewals = std::pin::pin!(renewals);
        let why = loop {
            tokio::select! {
                stream = connection.accept_bi() => match stream {
                    Ok(halves) => {
                        let stream = TunnelStream::new(connection, halves, turns);
                        self.sessions.spawn(session(stream, self.dialer.clone()).instrument(tracing::Span::current()));
                        allowance.fit(self.sessions.len(), connection);
                    }
                    Err(error) => break reason::describe(&error),
                },
                why = &mut renewals => break why,
                Some(_) = self.sessions.join_next() => {}
            }
        };
        // What a renewal has already told need not be told again at the next dial, which reads the newest anyway.
        self.hello.borrow_and_update();
        why
    }
}

/// The hello, signed for this connection if there is a key to sign with.
fn prove(key: Option<&Secret>, connection: &Connection, hello: WorkerHello) -> Result<WorkerHello, ApiError> {
    let Some(key) = key else { return Ok(hello) };
    let proof = proof::sign(key, Exported::of(connection)?, &hello)?;
    Ok(WorkerHello { proof: Some(proof), ..hello })
}

async fn say_hello(control: &mut TunnelStream, hello: WorkerHello) -> Result<(), ApiError> {
    let answer = timeout(HEADER_DEADLINE, async {
        control.write_frame(&Frame::WorkerHello(hello)).await?;
        control.read_frame().await
    })
    .await
    .map_err(|_| ApiError::new(ErrorCode::Timeout, "the tunnel endpoint did not answer the worker's hello"))?;
    match answer? {
        Frame::Admitted {} => Ok(()),
        Frame::Refused(refusal) => Err(refusal),
        _ => Err(ApiError::new(ErrorCode::Internal, "the tunnel endpoint answered something else than was asked")),
    }
}

/// One stream that the relay opened.
async fn session(mut stream: TunnelStream, dialer: Arc<dyn Attach>) {
    let wanted = match timeout(HEADER_DEADLINE, stream.read_frame()).await {
        Ok(Ok(Frame::Attach { copy, port, resume })) => Wanted::Port(copy, port, resume),
        Ok(Ok(Frame::AttachHost { port, resume })) => Wanted::Host(port, resume),
        Ok(Ok(Frame::Serve { copy, account, since })) => Wanted::Execs(copy, Holder { account, since }),
        Ok(Ok(Frame::Locate { copy })) => return locate(stream, copy, &*dialer).await,
        Ok(Ok(Frame::Ping {})) => return answer(stream, pong(&*dialer)).await,
        Ok(Ok(Frame::Holders { after })) => {
            let mut holders = dialer.holders(after.as_ref());
            holders.truncate(MAX_HOLDERS);
            return answer(stream, Frame::Held { holders }).await;
        }
        Ok(Ok(Frame::EndExecs(holder))) => {
            dialer.end_execs(&holder);
            return answer(stream, pong(&*dialer)).await;
        }
        Ok(Ok(_)) => {
            return stream
                .refuse(ApiError::new(ErrorCode::Invalid, "a worker serves attach, serve, locate and ping"))
                .await;
        }
        Ok(Err(error)) => return stream.refuse(error.into()).await,
        Err(_) => return stream.abort(Reason::Protocol),
    };
    let attached = async {
        match &wanted {
            Wanted::Port(copy, port, Some(resume)) => dialer.attach_resumable(*copy, *port, resume).await,
            Wanted::Port(copy, port, None) => {
                Ok(Attached { stream: dialer.attach(*copy, *port).await?, resumable: false })
            }
            Wanted::Host(port, resume) => dialer.attach_host(*port, resume.as_ref()).await,
            Wanted::Execs(copy, holder) => {
                Ok(Attached { stream: dialer.serve(*copy, holder.clone()).await?, resumable: false })
            }
        }
    };
    let Attached { stream: guest, resumable } = match timeout(ATTACH_DEADLINE, attached).await {
        Ok(Ok(attached)) => attached,
        Ok(Err(refusal)) => {
            debug!(?wanted, %refusal, "could not connect");
            return stream.refuse(refusal).await;
        }
        Err(_) => {
            let why = format!("{wanted} did not accept a connection within {} s", ATTACH_DEADLINE.as_secs());
            return stream.refuse(ApiError::new(ErrorCode::Timeout, why)).await;
        }
    };
    if stream.write_frame(&Frame::Opened { resumable }).await.is_ok() {
        let traffic = splice::guest(stream, guest).await;
        debug!(?wanted, resumable, ?traffic, "a session's stream has ended");
        // Anything else is the loss of one connection, after which the client comes back.
        if let (Wanted::Port(_, _, Some(resume)) | Wanted::Host(_, Some(resume)), true) = (&wanted, resumable)
            && let Some(Reason::Revoked | Reason::Rotated | Reason::WorkerDeleted) = traffic.broken
        {
            dialer.forget(resume).await;
        }
    }
}

fn pong(dialer: &dyn Attach) -> Frame {
    Frame::Pong { holds: !dialer.holders(None).is_empty() }
}

/// Says one thing and no more.
async fn answer(mut stream: TunnelStream, said: Frame) {
    if stream.write_frame(&said).await.is_ok() {
        stream.outgoing.finish();
    }
}

/// What a stream is to lead to.
#[derive(Debug)]
enum Wanted {
    Port(CopyId, u16, Option<Resume>),
    Host(u16, Option<Resume>),
    Execs(CopyId, Holder),
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wanted::Port(_, port, _) => write!(f, "the VM's port {port}"),
            Wanted::Host(port, _) => write!(f, "port {port} of the worker's host"),
            Wanted::Execs(..) => f.write_str("the worker's holder of exec sessions"),
        }
    }
}

async fn locate(stream: TunnelStream, copy: CopyId, dialer: &dyn Attach) {
    let late = || {
        let why = format!("the VM's address was not known within {} s", ATTACH_DEADLINE.as_secs());
        ApiError::new(ErrorCode::Timeout, why)
    };
    match timeout(ATTACH_DEADLINE, dialer.locate(copy)).await.unwrap_or_else(|_| Err(late())) {
        Ok(ip) => answer(stream, Frame::Located { ip: ip.to_string() }).await,
        Err(refusal) => stream.refuse(refusal).await,
    }
}

fn random() -> u32 {
    // Without randomness the waits are merely not spread.
    getrandom::u32().unwrap_or(u32::MAX / 2)
}
