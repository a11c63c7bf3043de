//! Streams into VMs for `ssh` and `port-forward`: a ticket over the bus, then one stream of the tunnel.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::client::Client;
use crate::bus::message::{OpenTunnel, TunnelTicket};
use crate::config::address;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::{VmName, VmUid};

/// How long it may take to open a stream once the ticket is there: the path to the worker and into the guest.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);

/// What carries a session's bytes.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}
/// A stream into a VM.
pub(super) type Stream = Box<dyn Duplex>;

/// A stream, and which VM it leads to.
pub(super) struct Opened {
    pub(super) stream: Stream,
    pub(super) uid: VmUid,
}

/// Opens streams into VMs.
#[derive(Clone, Debug)]
pub(super) struct Dialer {
    client: Client,
}

impl Dialer {
    /// A dialer that asks for its tickets through `client`.
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    /// Opens a stream to TCP port `port` of `vm`. Cancel safe: a ticket that is not used lapses.
    ///
    /// # Errors
    /// What the controller refused; [`ErrorCode::Unavailable`] and [`ErrorCode::Timeout`] when the way is not open.
    pub(super) async fn open(&self, vm: &VmName, port: u16) -> Result<Opened, ApiError> {
        let ticket = self.client.call(&OpenTunnel { vm: vm.clone(), port }).await?;
        let address = self.resolve(&ticket).await?;
        let opened = tokio::time::timeout(OPEN_TIMEOUT, open_stream(address, &ticket)).await;
        let stream = opened.map_err(|_| {
            ApiError::new(ErrorCode::Timeout, format!("port {port} of VM {vm} did not answer within {OPEN_TIMEOUT:?}"))
        })??;
        Ok(Opened { stream, uid: ticket.uid })
    }

    /// Where the tunnel endpoint is: where the ticket says, else beside the bus.
    async fn resolve(&self, ticket: &TunnelTicket) -> Result<SocketAddr, ApiError> {
        let host = match &ticket.endpoint.host {
            Some(host) => host.as_str(),
            None => address::host_of(&self.client.target().url).unwrap_or_default(),
        };
        let port = ticket.endpoint.port;
        let unknown = |why: String| {
            ApiError::new(ErrorCode::Unavailable, format!("cannot find the tunnel endpoint {host:?}: {why}"))
        };
        let mut addresses = tokio::net::lookup_host((host, port)).await.map_err(|error| unknown(error.to_string()))?;
        addresses.next().ok_or_else(|| unknown("it has no address".to_owned()))
    }
}

/// Opens one stream at the endpoint `address` with `ticket`.
///
/// TO COMPLETE where the tunnel's client is at hand: `tunnel::client::Client::connect(address, fingerprint)`, kept in
/// [`Dialer`] for the next stream, then `open(&ticket.ticket, deadline)`.
async fn open_stream(address: SocketAddr, ticket: &TunnelTicket) -> Result<Stream, ApiError> {
    let _ = ticket;
    Err(ApiError::new(ErrorCode::UnknownVerb, format!("this build cannot open the tunnel at {address}")))
}
