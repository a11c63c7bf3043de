//! The dial: how workers and clients reach the relay, and what can be wrong.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint};

use super::endpoint::{Transport, bind_client, client_settings};
use super::reason::{self, Reason};
use super::{ALPN, Address, DIAL_DEADLINE};
use crate::identity::ca::{Fingerprint, SERVER_NAME};
use crate::identity::tls;
use crate::model::error::{ApiError, ErrorCode};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The host name leads nowhere.
    #[error("cannot resolve the tunnel endpoint {address}")]
    Resolve {
        /// What was to be dialled.
        address: Address,
        /// What the resolver said.
        source: io::Error,
    },
    /// No UDP socket could be had.
    #[error("cannot open a UDP socket")]
    Socket(#[source] io::Error),
    /// The TLS library refused the settings.
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// Nothing answered.
    #[error(
        "the tunnel endpoint {address} ({ip}) did not answer within {} s; is UDP to it allowed?", DIAL_DEADLINE.as_secs()
    )]
    Timeout {
        /// What was dialled.
        address: Address,
        /// The address tried last.
        ip: IpAddr,
    },
    /// Somebody else answers there.
    #[error(
        "the tunnel endpoint {address} shows another certificate than the one with SHA-256 {expected}; either it was \
         set up anew, or it is not the controller"
    )]
    WrongCertificate {
        /// What was dialled.
        address: Address,
        /// The certificate that is trusted.
        expected: Fingerprint,
    },
    /// The connection failed otherwise.
    #[error("cannot connect to the tunnel endpoint {address}: {why}")]
    Connect {
        /// What was dialled.
        address: Address,
        /// What happened.
        why: String,
    },
}

impl DialError {
    fn tls(error: impl std::fmt::Display) -> Self {
        Self::Tls(error.to_string())
    }
}

impl From<DialError> for ApiError {
    fn from(error: DialError) -> Self {
        let code = match error {
            DialError::Timeout { .. } => ErrorCode::Timeout,
            DialError::WrongCertificate { .. } => ErrorCode::Unauthenticated,
            DialError::Socket(_) | DialError::Tls(_) => ErrorCode::Internal,
            DialError::Resolve { .. } | DialError::Connect { .. } => ErrorCode::Unavailable,
        };
        let text = match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        ApiError::new(code, text)
    }
}

/// A connection with the socket it uses.
#[derive(Debug)]
pub struct Dialled {
    /// The socket, for one connection at a time.
    pub endpoint: Endpoint,
    /// The connection.
    pub connection: Connection,
}

/// How long a farewell may hold up an exit: the packet only has to leave this host.
const FAREWELL: Duration = Duration::from_millis(50);

impl Dialled {
    /// Closes the connection and lets the news leave the host, so that the relay need not find out by silence.
    pub async fn close(&self, reason: Reason) {
        self.connection.close(reason.code(), b"");
        let _ = tokio::time::timeout(FAREWELL, self.endpoint.wait_idle()).await;
    }
}

/// Dials the relay, one address of the host after the other, each for at most [`DIAL_DEADLINE`]. Cancel safe.
pub async fn dial(address: &Address, trusted: Fingerprint, transport: Transport) -> Result<Dialled, DialError> {
    dial_from(None, address, trusted, transport).await
}

/// The same with the socket of an earlier connection, if it can reach the first address: a fleet that comes back at once need
/// not clear 3 MiB for each worker. Others are made anew, as what is wrong may be with the socket or what a NAT knows of it.
pub async fn dial_from(
    mut spare: Option<Endpoint>,
    address: &Address,
    trusted: Fingerprint,
    transport: Transport,
) -> Result<Dialled, DialError> {
    let addresses = tokio::time::timeout(DIAL_DEADLINE, tokio::net::lookup_host((address.host.as_str(), address.port)))
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "the resolver did not answer")))
        .map_err(|source| DialError::Resolve { address: address.clone(), source })?;
    let mut failure = DialError::Resolve {
        address: address.clone(),
        source: io::Error::new(io::ErrorKind::NotFound, "the name has no address"),
    };
    for remote in addresses {
        match dial_one(spare.take(), address, remote, trusted, transport).await {
            Ok(dialled) => return Ok(dialled),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

async fn dial_one(
    spare: Option<Endpoint>,
    address: &Address,
    remote: SocketAddr,
    trusted: Fingerprint,
    transport: Transport,
) -> Result<Dialled, DialError> {
    let tls = tls::client_config(trusted, &[ALPN]).map_err(DialError::tls)?;
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).map_err(DialError::tls)?));
    config.transport_config(Arc::new(client_settings(transport, remote.ip())));
    let any: IpAddr = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let fits = |endpoint: &Endpoint| endpoint.local_addr().is_ok_and(|local| local.is_ipv4() == remote.is_ipv4());
    let endpoint = match spare.filter(fits) {
        Some(endpoint) => endpoint,
        None => bind_client(SocketAddr::new(any, 0)).map_err(DialError::Socket)?,
    };
    let failed = |why: String| DialError::Connect { address: address.clone(), why };
    let connecting = endpoint.connect_with(config, remote, SERVER_NAME).map_err(|error| failed(error.to_string()))?;
    let timeout = DialError::Timeout { address: address.clone(), ip: remote.ip() };
    match tokio::time::timeout(DIAL_DEADLINE, connecting).await {
        Ok(Ok(connection)) => Ok(Dialled { endpoint, connection }),
        Ok(Err(ConnectionError::TransportError(error))) if u64::from(error.code) == WRONG_CERTIFICATE => {
            Err(DialError::WrongCertificate { address: address.clone(), expected: trusted })
        }
        Err(_) | Ok(Err(ConnectionError::TimedOut)) => Err(timeout),
        Ok(Err(error)) => Err(failed(reason::describe(&error))),
    }
}

/// The QUIC code that our own certificate check ends a handshake with: "crypto error" (0x100) with the TLS alert
/// `access_denied` (49), which rustls sends when an application's verifier says no.
const WRONG_CERTIFICATE: u64 = 0x100 + 49;
