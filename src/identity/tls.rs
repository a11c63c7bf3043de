//! rustls configurations: TLS 1.3 only, the aws-lc-rs provider only, and trust in exactly one certificate.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
};

use super::ca::{Fingerprint, Identity};

/// Makes aws-lc-rs the process's provider for libraries that ask for a default one. Call it early in `main`; calling
/// it again does nothing.
pub fn install_provider() {
    // The only failure is that one is installed already.
    let _ = aws_lc_rs::default_provider().install_default();
}

/// The server's side: presents `identity`, speaks the protocols `alpn`, asks for no client certificate. Session tickets
/// are off: connections live long, and a resumed handshake saves nothing worth the memory.
///
/// # Errors
/// When rustls cannot use the key.
pub fn server_config(identity: &Identity, alpn: &[&[u8]]) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(identity.chain(), identity.key())?;
    config.send_tls13_tickets = 0;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// The client's side: trusts the one certificate with this fingerprint, whatever name or date stands in it.
///
/// # Errors
/// When the provider lacks TLS 1.3; does not happen with aws-lc-rs.
pub fn client_config(fingerprint: Fingerprint, alpn: &[&[u8]]) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Signed::new(OneCertificate(fingerprint))))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// The client's side towards a server whose certificate a public CA vouches for: trusts the CAs of this machine, and wants
/// the certificate to be for the name that is dialled.
///
/// # Errors
/// As [`client_config`]; a machine without any CA trusts nobody, which shows at the handshake.
pub fn public_client_config(alpn: &[&[u8]]) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(public_roots())
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(config)
}

/// The client's side of a look at a stranger: any certificate passes, and what it was stands in the returned [`Sighting`]
/// afterwards. Say nothing over such a connection; end it and connect again with the certificate that was agreed on.
///
/// # Errors
/// As [`client_config`].
pub fn sighting_config() -> Result<(ClientConfig, Arc<Sighting>), rustls::Error> {
    let sighting = Arc::new(Sighting { public: public_verifier(), seen: OnceLock::new() });
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Signed::new(sighting.clone())))
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok((config, sighting))
}

/// What a server showed of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its certificate's.
    pub fingerprint: Fingerprint,
    /// Why no public CA vouches for it under the name that was dialled; none = one does.
    pub doubt: Option<String>,
}

/// Accepts any certificate and remembers it.
#[derive(Debug)]
pub struct Sighting {
    public: Option<Arc<WebPkiServerVerifier>>,
    seen: OnceLock<Seen>,
}

impl Sighting {
    /// What was shown in the handshake; none before it.
    pub fn seen(&self) -> Option<&Seen> {
        self.seen.get()
    }
}

impl Judge for Arc<Sighting> {
    fn judge(&self, shown: &Shown<'_>) -> Result<(), rustls::Error> {
        let doubt = match &self.public {
            None => Some("this machine knows no CA".to_owned()),
            Some(public) => shown.verified_by(public).err().map(|error| error.to_string()),
        };
        let _ = self.seen.set(Seen { fingerprint: Fingerprint::of(shown.certificate), doubt });
        Ok(())
    }
}

/// Whether machines that trust the same CAs as this one take `identity` for `host` as it is: then a fingerprint would only
/// tie them to a certificate that is renewed every few weeks.
pub fn is_vouched_for(identity: &Identity, host: &str) -> bool {
    let Ok(name) = ServerName::try_from(host) else { return false };
    let Some(public) = public_verifier() else { return false };
    let chain = identity.chain();
    let Some((certificate, intermediates)) = chain.split_first() else { return false };
    Shown { certificate, intermediates, name: &name, ocsp: &[], now: UnixTime::now() }.verified_by(&public).is_ok()
}

/// The usual one, with AES-128 before AES-256, as ours at the other end then chooses it: its handshake hashes with SHA-256,
/// for which processors have instructions. SHA-384 alone took 3 % of the CPU of a fleet that came back.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

/// The CAs that this machine trusts.
fn public_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    // Certificates that cannot be read are left out: the rest may well do.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

/// Asks those CAs; none on a machine that has none, which trusts nobody.
fn public_verifier() -> Option<Arc<WebPkiServerVerifier>> {
    WebPkiServerVerifier::builder_with_provider(Arc::new(public_roots()), provider()).build().ok()
}

/// What a server shows of itself in a handshake.
struct Shown<'a> {
    certificate: &'a CertificateDer<'a>,
    intermediates: &'a [CertificateDer<'a>],
    /// Under which it was dialled.
    name: &'a ServerName<'a>,
    ocsp: &'a [u8],
    now: UnixTime,
}

impl Shown<'_> {
    fn verified_by(&self, public: &WebPkiServerVerifier) -> Result<(), rustls::Error> {
        public.verify_server_cert(self.certificate, self.intermediates, self.name, self.ocsp, self.now).map(drop)
    }
}

/// Which certificates are accepted.
trait Judge: fmt::Debug + Send + Sync {
    fn judge(&self, shown: &Shown<'_>) -> Result<(), rustls::Error>;
}

/// Accepts one certificate.
#[derive(Debug)]
struct OneCertificate(Fingerprint);

impl Judge for OneCertificate {
    fn judge(&self, shown: &Shown<'_>) -> Result<(), rustls::Error> {
        if Fingerprint::of(shown.certificate) == self.0 {
            return Ok(());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }
}

/// Leaves the certificate to its judge. That the peer holds the private key of it is always proven by the handshake's
/// signature.
#[derive(Debug)]
struct Signed<J> {
    judge: J,
    provider: Arc<CryptoProvider>,
}

impl<J> Signed<J> {
    fn new(judge: J) -> Self {
        Self { judge, provider: provider() }
    }
}

impl<J: Judge> ServerCertVerifier for Signed<J> {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge.judge(&Shown { certificate, intermediates, name, ocsp, now })?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::{ClientConnection, ServerConnection};

    use super::*;
    use crate::identity::ca::SERVER_NAME;

    /// Carries what `from` has to say to `to`, in memory.
    fn carry<F, T>(
        from: &mut rustls::ConnectionCommon<F>,
        to: &mut rustls::ConnectionCommon<T>,
    ) -> Result<(), rustls::Error> {
        let mut wire = Vec::new();
        while from.wants_write() {
            from.write_tls(&mut wire).unwrap();
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            to.read_tls(&mut rest).unwrap();
            to.process_new_packets()?;
        }
        Ok(())
    }

    /// Runs a handshake in memory.
    fn shake(server: ServerConfig, trusted: Fingerprint) -> Result<(), rustls::Error> {
        let client = client_config(trusted, &[b"test"]).unwrap();
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        while client.is_handshaking() || server.is_handshaking() {
            carry(&mut client, &mut server)?;
            carry(&mut server, &mut client)?;
        }
        Ok(())
    }

    fn handshake(server: &Identity, trusted: Fingerprint) -> Result<(), rustls::Error> {
        shake(server_config(server, &[b"test"]).unwrap(), trusted)
    }

    #[test]
    fn exactly_the_named_certificate_is_trusted() {
        let (ours, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        handshake(&ours, ours.fingerprint()).unwrap();
        assert_eq!(
            handshake(&other, ours.fingerprint()).unwrap_err(),
            CertificateError::ApplicationVerificationFailure.into()
        );
    }

    #[test]
    fn a_certificate_shown_without_its_key_is_refused() {
        // A signature by another key over the same handshake must not pass, although the certificate is the right one.
        let (ours, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let provider = aws_lc_rs::default_provider();
        let stolen = rustls::sign::CertifiedKey::new(
            vec![ours.certificate().clone()],
            provider.key_provider.load_private_key(other.key()).unwrap(),
        );
        let mut server = server_config(&ours, &[b"test"]).unwrap();
        server.cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(stolen));
        let result = shake(server, ours.fingerprint());
        assert_eq!(result.unwrap_err(), CertificateError::BadSignature.into());
    }
}
