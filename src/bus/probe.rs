//! A look at the certificate of a bus before anything is trusted there. Nothing is said to it but a TLS handshake: no
//! name, no token. Used by `orchard context create`.

use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::identity::tls::{self, Seen};
use crate::model::error::{ApiError, ErrorCode};

/// How long all of it may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest first line of a broker: INFO takes a few hundred bytes, and a list of a cluster's servers some more.
const MAX_INFO: usize = 16 * 1024;

/// Reads the broker's greeting at `host` (without brackets) and `port`, and does the TLS handshake that stock clients do
/// after it.
///
/// # Errors
/// [`ErrorCode::Unavailable`] when nothing answers there, or something that speaks no NATS or no TLS;
/// [`ErrorCode::Timeout`].
pub async fn certificate_at(host: &str, port: u16) -> Result<Seen, ApiError> {
    tokio::time::timeout(TIMEOUT, look(host, port)).await.unwrap_or_else(|_| {
        Err(ApiError::new(ErrorCode::Timeout, format!("{host}:{port} did not show a certificate within {TIMEOUT:?}")))
    })
}

async fn look(host: &str, port: u16) -> Result<Seen, ApiError> {
    let place = format!("{host}:{port}");
    let unavailable = |text: String| ApiError::new(ErrorCode::Unavailable, text);
    let no_bus = |why: &str| unavailable(format!("there is no controller's bus at {place}: {why}"));
    let no_tls = |error: &dyn std::fmt::Display| unavailable(format!("no TLS with {place}: {error}"));
    let mut stream = TcpStream::connect((host, port)).await.map_err(|error| {
        unavailable(format!("cannot reach the bus at {place}: {error}; is the controller running there?"))
    })?;
    let mut greeting = Vec::new();
    while greeting.last() != Some(&b'\n') {
        // One byte at a time: what follows the line belongs to the handshake.
        let byte = stream.read_u8().await.map_err(|_| no_bus("it hangs up without a greeting"))?;
        greeting.push(byte);
        if greeting.len() > MAX_INFO {
            return Err(no_bus("its first line has no end"));
        }
    }
    let info = greeting.strip_prefix(b"INFO ").ok_or_else(|| no_bus("it does not greet as a NATS server does"))?;
    let info: serde_json::Value = serde_json::from_slice(info).map_err(|_| no_bus("its greeting cannot be read"))?;
    let offers = |key: &str| info.get(key).and_then(serde_json::Value::as_bool).unwrap_or(false);
    if !offers("tls_required") && !offers("tls_available") {
        return Err(unavailable(format!(
            "{place} speaks plain text only, so nobody could tell who answers there; if that is meant to be, say so with \
             nats://{place}"
        )));
    }
    let (config, sighting) = tls::sighting_config().map_err(|error| no_tls(&error))?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| no_tls(&error))?;
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.map_err(|error| no_tls(&error))?;
    sighting.seen().cloned().ok_or_else(|| no_tls(&"no certificate was shown"))
}
