//! Streams into VMs and to workers' machines: a ticket over the bus, then one stream of the tunnel; and another of both when that
//! is lost, so that the session in it goes on ([`crate::tunnel::resume`]).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::Client;
use crate::bus::connect::{OpenHost, OpenTunnel, TunnelEndpoint};
use crate::config::address;
use crate::duplex::BoxedStream;
use crate::identity;
use crate::identity::ca::Fingerprint;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::secret::Secret;
use crate::model::{Attempt, VmName, VmUid, WorkerName};
use crate::tunnel::header::Resume;
use crate::tunnel::resume::client::{Redial, RedialError, Silence};
use crate::tunnel::stream::TunnelStream;
use crate::tunnel::worker::no_such_session;
use crate::tunnel::{self, Address, Transport, resume};

/// How long it may take to open a stream once the ticket is there: a little more than the relay gives the worker, so that
/// the worker's reason arrives.
const OPEN_TIMEOUT: Duration = Duration::from_secs(tunnel::OPEN_DEADLINE.as_secs() + 2);

/// How long the goodbyes of all streams may hold up an exit.
const GOODBYE: Duration = Duration::from_secs(2);

/// A stream into a VM, or to a worker's machine. What is written before a `shutdown` arrives; dropping it without one breaks the
/// session off. When the session did not end properly, reading fails with the reason.
pub type Stream = BoxedStream;

/// What is told of the connection that carries streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice<'a> {
    /// It is lost, and why. It is dialled again for [`resume::GIVE_UP_AFTER`].
    Lost(&'a str),
    /// All that it carried goes on.
    Restored,
}

/// Hears of that; must not block.
pub type Observer = dyn Fn(Notice<'_>) + Send + Sync;

/// Where a stream is to lead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Into a VM.
    Vm(VmName),
    /// To the machine of a worker, at its loopback address.
    Worker(WorkerName),
}

impl Place {
    /// Its name, which does not say what it is.
    pub fn name(&self) -> &str {
        match self {
            Place::Vm(name) => name.as_str(),
            Place::Worker(name) => name.as_str(),
        }
    }

    /// What is said when there is another one of that name than before.
    pub fn replaced(&self) -> String {
        match self {
            Place::Vm(name) => format!("VM {name} was deleted and made anew by somebody"),
            Place::Worker(name) => format!("worker {name} is another machine now"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Vm(name) => write!(f, "VM {name}"),
            Place::Worker(name) => write!(f, "worker {name}"),
        }
    }
}

/// What is at the other end, which its name alone does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A VM.
    Vm {
        /// Which of all that ever had its name.
        uid: VmUid,
        /// Which start of it; an older controller does not say.
        attempt: Option<Attempt>,
    },
    /// A worker's machine.
    Host {
        /// What its system says that it is.
        machine_id: String,
    },
}

impl End {
    /// Whether it is the same VM, whichever start of it, or the same machine.
    pub fn is(&self, other: &End) -> bool {
        match (self, other) {
            (End::Vm { uid, .. }, End::Vm { uid: other, .. }) => uid == other,
            (End::Host { machine_id }, End::Host { machine_id: other }) => machine_id == other,
            (End::Vm { .. }, End::Host { .. }) | (End::Host { .. }, End::Vm { .. }) => false,
        }
    }
}

/// A ticket, and what it leads to.
struct Ticket {
    endpoint: TunnelEndpoint,
    ticket: Secret,
    end: End,
}

/// A stream, and what it leads to.
pub struct Opened {
    /// The stream.
    pub stream: Stream,
    /// Which VM it is, or machine.
    pub end: End,
    /// Of one that goes on when what carries it is lost, and may stand still until then: for how long nothing has come.
    pub silence: Option<Silence>,
}

/// Opens streams; all clones share one connection of the tunnel. A stream goes on when that is lost, as far as the
/// worker can have it so.
#[derive(Clone, Debug)]
pub struct Dialer {
    way: Way,
    /// The work behind the streams.
    sessions: TaskTracker,
    notices: Notices,
}

/// The way to the tunnel, and its connection once there is one.
#[derive(Clone, Debug)]
struct Way {
    client: Client,
    tunnel: Arc<Mutex<Option<Connected>>>,
}

/// The tunnel's connection, and which endpoint it leads to: a controller that was set up anew has another one.
#[derive(Debug)]
struct Connected {
    endpoint: TunnelEndpoint,
    tunnel: Arc<tunnel::client::Client>,
}

/// What became of an attempt to open a stream.
struct Tried {
    stream: TunnelStream,
    resumable: bool,
    end: End,
}

impl Dialer {
    /// A dialer that asks for its tickets through `client`, and tells `observer` what becomes of its connection.
    pub fn new(client: Client, observer: Arc<Observer>) -> Self {
        let way = Way { client, tunnel: Arc::default() };
        let notices = Notices { waiting: Arc::default(), lost: watch::Sender::new(false), observer };
        Self { way, sessions: TaskTracker::new(), notices }
    }

    /// Opens a stream to TCP port `port` of `place`. Cancel safe: a ticket that is not used lapses.
    ///
    /// # Errors
    /// What the controller or the worker refused; [`ErrorCode::Unavailable`] and [`ErrorCode::Timeout`] when the way is
    /// not open.
    pub async fn open(&self, place: &Place, port: u16) -> Result<Opened, ApiError> {
        let begin = Resume { version: resume::VERSION, session: identity::new_token(), again: false };
        let again = Resume { again: true, ..begin.clone() };
        let ticket = self.way.ticket(place, port).await?;
        let Tried { stream, resumable, end } = self.way.open(ticket, begin).await?;
        if !resumable {
            return Ok(Opened { stream: Box::new(stream), end, silence: None });
        }
        let (way, place, notices) = (self.way.clone(), place.clone(), self.notices.clone());
        let comeback = Comeback { way, place, port, end: end.clone(), again, notices };
        let (stream, work) = resume::client::start(stream, comeback);
        // Ends by itself soon after the stream was dropped, whether there is a dialer by then or not.
        self.sessions.spawn(work);
        Ok(Opened { silence: Some(stream.silence()), stream: Box::new(stream), end })
    }

    /// Asks for a ticket that is not used: who may not, or asks for what is not there, learns so.
    ///
    /// # Errors
    /// What the controller refused.
    pub async fn ask(&self, place: &Place, port: u16) -> Result<(), ApiError> {
        self.way.ticket(place, port).await.map(drop)
    }

    /// Whether a stream has lost what carried it and waits to go on.
    pub fn lost(&self) -> watch::Receiver<bool> {
        self.notices.lost.subscribe()
    }

    /// Ends all streams, which must have been dropped, and tells the relay, which would otherwise hold them until it has heard
    /// nothing for a while. What was sent before a `shutdown` is still delivered, but nobody is waited for any longer than
    /// two seconds.
    pub async fn close(&self) {
        self.sessions.close();
        let _ = timeout(GOODBYE, self.sessions.wait()).await;
        self.sessions.reopen();
        if let Some(connected) = self.way.tunnel.lock().await.take() {
            connected.tunnel.close().await;
        }
    }
}

/// Brings one session back.
struct Comeback {
    way: Way,
    place: Place,
    port: u16,
    end: End,
    again: Resume,
    notices: Notices,
}

#[async_trait]
impl Redial for Comeback {
    type Stream = TunnelStream;

    async fn redial(&mut self) -> Result<TunnelStream, RedialError> {
        // The controller looks anew whether the account may, and where the VM is.
        let ticket = self.way.ticket(&self.place, self.port).await.map_err(|error| match error.code {
            ErrorCode::Unavailable | ErrorCode::Timeout | ErrorCode::LimitExceeded => RedialError::Passing(error),
            // A VM that has failed does not go on where it was.
            _ => RedialError::Final(error),
        })?;
        if !ticket.end.is(&self.end) {
            return Err(RedialError::Final(ApiError::new(ErrorCode::NotFound, self.place.replaced())));
        }
        match self.way.open(ticket, self.again.clone()).await {
            Ok(Tried { stream, resumable: true, .. }) => Ok(stream),
            // It leads to the VM, but to another session: one of an earlier release is in the worker's place.
            Ok(_) => Err(RedialError::Final(no_such_session())),
            Err(error) => match error.code {
                ErrorCode::NotFound | ErrorCode::Forbidden | ErrorCode::Invalid => Err(RedialError::Final(error)),
                // A ticket may have been issued by a controller that was then started anew.
                _ => Err(RedialError::Passing(error)),
            },
        }
    }

    fn lost(&mut self, why: &str) {
        self.notices.lost(why);
    }

    fn settled(&mut self, goes_on: bool) {
        self.notices.settled(goes_on);
    }
}

/// Tells when streams have lost what carried them, once for all that have.
#[derive(Clone)]
struct Notices {
    waiting: Arc<AtomicUsize>,
    lost: watch::Sender<bool>,
    observer: Arc<Observer>,
}

impl Notices {
    fn lost(&self, why: &str) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) == 0 {
            self.lost.send_replace(true);
            (self.observer)(Notice::Lost(why));
        }
    }

    fn settled(&self, goes_on: bool) {
        if self.waiting.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.lost.send_replace(false);
            if goes_on {
                (self.observer)(Notice::Restored);
            }
        }
    }
}

impl fmt::Debug for Notices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notices").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl Way {
    async fn ticket(&self, place: &Place, port: u16) -> Result<Ticket, ApiError> {
        match place {
            Place::Vm(vm) => {
                let got = self.client.call(&OpenTunnel { vm: vm.clone(), port }).await?;
                let end = End::Vm { uid: got.uid, attempt: got.attempt };
                Ok(Ticket { endpoint: got.endpoint, ticket: got.ticket, end })
            }
            Place::Worker(worker) => {
                let got = self.client.call(&OpenHost { worker: worker.clone(), port }).await?;
                let end = End::Host { machine_id: got.machine_id };
                Ok(Ticket { endpoint: got.endpoint, ticket: got.ticket, end })
            }
        }
    }

    async fn open(&self, ticket: Ticket, resume: Resume) -> Result<Tried, ApiError> {
        let tunnel = self.connect(&ticket.endpoint).await?;
        let (stream, resumable) = tunnel.open_resumable(&ticket.ticket, resume, OPEN_TIMEOUT).await?;
        Ok(Tried { stream, resumable, end: ticket.end })
    }

    /// The connection to `endpoint`; one that was lost is brought back by the tunnel's own client.
    async fn connect(&self, endpoint: &TunnelEndpoint) -> Result<Arc<tunnel::client::Client>, ApiError> {
        let mut connected = self.tunnel.lock().await;
        if let Some(known) = connected.as_ref().filter(|known| known.endpoint == *endpoint) {
            return Ok(Arc::clone(&known.tunnel));
        }
        let fingerprint: Fingerprint = endpoint.fingerprint.parse().map_err(|error| {
            ApiError::new(ErrorCode::Internal, format!("the controller names no usable tunnel endpoint: {error}"))
        })?;
        let address = locate(endpoint, &self.client.target().url);
        let tunnel = Arc::new(tunnel::client::Client::connect(address, fingerprint, Transport::default()).await?);
        *connected = Some(Connected { endpoint: endpoint.clone(), tunnel: Arc::clone(&tunnel) });
        Ok(tunnel)
    }
}

/// Where the tunnel endpoint is: on the host that it names, else beside the bus.
fn locate(endpoint: &TunnelEndpoint, bus_url: &str) -> Address {
    let host = endpoint.host.as_deref().or_else(|| address::host_of(bus_url)).unwrap_or_default();
    Address { host: host.to_owned(), port: endpoint.port }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_names_no_host_is_beside_the_bus() {
        let mut endpoint = TunnelEndpoint { host: None, port: 6120, fingerprint: String::new() };
        assert_eq!(locate(&endpoint, "nats://[::1]:4222").to_string(), "[::1]:6120");
        endpoint.host = Some("tunnels.example".into());
        assert_eq!(locate(&endpoint, "nats://ctl:4222").to_string(), "tunnels.example:6120");
    }
}
