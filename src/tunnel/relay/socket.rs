//! The relay's socket, bound before there is anything to say to those who call. The controller does so before it loads what
//! it knows: a port that is taken is reported at once, and quinn's 13 MiB of receive buffers are memory that the system gives
//! out as zeroes and only when used, not what loading has just freed, all of which would have to be cleared.

use std::net::SocketAddr;

use quinn::Endpoint;

use super::RelayError;
use crate::identity::ca::{Fingerprint, Identity};
use crate::tunnel::endpoint::{ServerConfigs, Transport};

/// A bound socket and what it presents. Until a relay takes it over, handshakes wait in it.
#[derive(Debug)]
pub struct Socket {
    pub(super) endpoint: Endpoint,
    pub(super) configs: ServerConfigs,
    pub(super) local: SocketAddr,
    pub(super) fingerprint: Fingerprint,
}

impl Socket {
    /// Binds `address` (UDP; port 0 takes a free one) to present `identity` there. Needs a tokio runtime.
    ///
    /// # Errors
    /// When the address is taken, or rustls cannot use the identity.
    pub fn bind(address: SocketAddr, identity: &Identity, transport: Transport) -> Result<Self, RelayError> {
        let configs = ServerConfigs::new(identity, transport).map_err(RelayError::Setup)?;
        let bound = |source| RelayError::Bind { address, source };
        let endpoint = configs.bind(address).map_err(bound)?;
        let local = endpoint.local_addr().map_err(bound)?;
        Ok(Self { endpoint, configs, local, fingerprint: identity.fingerprint() })
    }
}
