//! Streams into VMs for `ssh` and `port-forward`: a ticket over the bus, then one stream of the tunnel.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::client::Client;
use crate::bus::message::{OpenTunnel, TunnelEndpoint};
use crate::config::address;
use crate::duplex::BoxedStream;
use crate::identity::ca::Fingerprint;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::{Attempt, VmName, VmUid};
use crate::tunnel::{self, Address, Transport};

/// How long it may take to open a stream once the ticket is there: a little more than the relay gives the worker, so that
/// the worker's reason arrives.
const OPEN_TIMEOUT: Duration = Duration::from_secs(tunnel::OPEN_DEADLINE.as_secs() + 2);

/// A stream into a VM.
pub(super) type Stream = BoxedStream;

/// A stream, and which VM it leads to.
pub(super) struct Opened {
    pub(super) stream: Stream,
    pub(super) uid: VmUid,
    /// Which start of it; an older controller does not say.
    pub(super) attempt: Option<Attempt>,
}

/// Opens streams into VMs; all clones share one connection of the tunnel.
#[derive(Clone, Debug)]
pub(super) struct Dialer {
    client: Client,
    tunnel: Arc<Mutex<Option<Connected>>>,
}

/// The tunnel's connection, and which endpoint it leads to: a controller that was set up anew has another one.
#[derive(Debug)]
struct Connected {
    endpoint: TunnelEndpoint,
    tunnel: Arc<tunnel::client::Client>,
}

impl Dialer {
    /// A dialer that asks for its tickets through `client`.
    pub(super) fn new(client: Client) -> Self {
        Self { client, tunnel: Arc::default() }
    }

    /// Opens a stream to TCP port `port` of `vm`. Cancel safe: a ticket that is not used lapses.
    ///
    /// # Errors
    /// What the controller or the worker refused; [`ErrorCode::Unavailable`] and [`ErrorCode::Timeout`] when the way is
    /// not open.
    pub(super) async fn open(&self, vm: &VmName, port: u16) -> Result<Opened, ApiError> {
        let ticket = self.client.call(&OpenTunnel { vm: vm.clone(), port }).await?;
        let tunnel = self.connect(&ticket.endpoint).await?;
        let stream = tunnel.open(&ticket.ticket, OPEN_TIMEOUT).await?;
        Ok(Opened { stream: Box::new(stream), uid: ticket.uid, attempt: ticket.attempt })
    }

    /// Ends all streams and tells the relay, which would otherwise hold them until it has heard nothing for a while.
    pub(super) async fn close(&self) {
        if let Some(connected) = self.tunnel.lock().await.take() {
            connected.tunnel.close().await;
        }
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
