//! TLS for clients: the certificate shown, whose certificates are asked for, and when the handshake comes. The connection
//! task makes the handshake (`opening`), `record` is what a connection is made of afterwards.

pub mod record;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};

use super::file;

/// How long [`TlsFirst::Auto`] waits for the client to begin, as in nats-server.
pub const AUTO_WAIT: Duration = Duration::from_millis(50);

/// When the handshake comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsFirst {
    /// After INFO: what every client can do.
    #[default]
    Never,
    /// Before INFO: nothing is said in plain text, but to a client for whom there is no room.
    Always,
    /// Before INFO with clients that begin within [`AUTO_WAIT`], after it with the others.
    Auto,
    /// The same with another time.
    Within(Duration),
}

/// How connections become TLS. Cheap to clone.
///
/// ```no_run
/// use orchard::broker::Broker;
/// use orchard::broker::tls::{Tls, TlsFirst};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let tls = || Tls::read("cert.pem".as_ref(), "key.pem".as_ref(), None);
/// let broker = Broker::builder().tls(tls()?.first(TlsFirst::Auto)).bind("127.0.0.1:4222".parse()?).await?;
/// // Later, when there is a new certificate:
/// broker.reload_tls(tls()?.first(TlsFirst::Auto));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Tls {
    config: Arc<ServerConfig>,
    first: TlsFirst,
    verify: bool,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("first", &self.first).field("verify", &self.verify).finish_non_exhaustive()
    }
}

/// Certificates or keys cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read as PEM.
    #[error("cannot read PEM from {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// PEM that was given as bytes is none.
    #[error("cannot read the PEM given as {what}")]
    Pem {
        /// Certificate, key or CA.
        what: &'static str,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// There is no certificate.
    #[error("there is no certificate in the PEM given as {what}")]
    Empty {
        /// Certificate or CA.
        what: &'static str,
    },
    /// Certificate and key do not fit together, or are of a kind that is not understood.
    #[error("certificate and key cannot be used")]
    Unusable(#[source] rustls::Error),
    /// The CA cannot be used to check clients.
    #[error("the CA for client certificates cannot be used")]
    Ca(#[source] VerifierBuilderError),
}

impl Tls {
    /// With a ready configuration. `verify` says whether it requires client certificates: it is announced in INFO.
    pub fn new(config: Arc<ServerConfig>, verify: bool) -> Self {
        Self { config, first: TlsFirst::default(), verify }
    }

    /// From PEM: the server's certificates (its own first), its key, and, when clients must show a certificate, who signs
    /// theirs. TLS 1.2 and 1.3.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn from_pem(certificates: &[u8], key: &[u8], client_ca: Option<&[u8]>) -> Result<Self, TlsError> {
        let read = |what, pem: &[u8]| {
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            let found = found.map_err(|source| TlsError::Pem { what, source })?;
            if found.is_empty() { Err(TlsError::Empty { what }) } else { Ok(found) }
        };
        let chain = read("certificate", certificates)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|source| TlsError::Pem { what: "key", source })?;
        let ca = client_ca.map(|pem| read("CA", pem)).transpose()?;
        Self::build(chain, key, ca)
    }

    /// The same from regular files; blocks for as long as the disk takes.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn read(certificates: &Path, key: &Path, client_ca: Option<&Path>) -> Result<Self, TlsError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| TlsError::Read { path, source }
        };
        let bytes = |path: &Path| file::read(path).map_err(pem::Error::Io).map_err(failed(path));
        let read = |what, path: &Path| {
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes(path)?).collect();
            let found = found.map_err(failed(path))?;
            if found.is_empty() { Err(TlsError::Empty { what }) } else { Ok(found) }
        };
        let chain = read("certificate", certificates)?;
        let key = PrivateKeyDer::from_pem_slice(&bytes(key)?).map_err(failed(key))?;
        let ca = client_ca.map(|path| read("CA", path)).transpose()?;
        Self::build(chain, key, ca)
    }

    fn build(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        ca: Option<Vec<CertificateDer<'static>>>,
    ) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().map_err(TlsError::Unusable)?;
        let verify = ca.is_some();
        let builder = match ca {
            None => builder.with_no_client_auth(),
            Some(ca) => builder.with_client_cert_verifier(verifier(ca, provider)?),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(TlsError::Unusable)?;
        config.send_tls13_tickets = 0; // connections live long: resuming saves nothing worth the memory
        Ok(Self::new(Arc::new(config), verify))
    }

    /// When the handshake comes.
    #[must_use]
    pub fn first(self, first: TlsFirst) -> Self {
        Self { first, ..self }
    }

    /// Whether clients must show a certificate.
    pub fn requires_client_certificates(&self) -> bool {
        self.verify
    }

    /// What was set with [`Tls::first`].
    pub(super) fn when(&self) -> TlsFirst {
        self.first
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        self.config.clone()
    }
}

fn verifier(
    ca: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in ca {
        roots.add(certificate).map_err(TlsError::Unusable)?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().map_err(TlsError::Ca)
}
