//! The certificates of the scripts: one self-signed for both servers, those that clients may show, and a client that trusts
//! the first and shows what a script says.

use std::sync::{Arc, LazyLock};

use rcgen::{BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ClientConfig, RootCertStore};

struct Pair {
    certificate: Certificate,
    key: KeyPair,
}

static SERVER: LazyLock<Pair> = LazyLock::new(|| {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    Pair { certificate, key }
});

/// Signs the certificates of the clients that are let in.
static AUTHORITY: LazyLock<CertifiedIssuer<'static, KeyPair>> = LazyLock::new(|| authority("ours"));
static KNOWN: LazyLock<Pair> = LazyLock::new(|| issue(&AUTHORITY));
static STRANGER: LazyLock<Pair> = LazyLock::new(|| issue(&authority("theirs")));

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn issue(by: &CertifiedIssuer<'static, KeyPair>) -> Pair {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["client".to_owned()]).unwrap().signed_by(&key, by).unwrap();
    Pair { certificate, key }
}

/// Certificate and key of the servers, and who signs those of clients, all as PEM.
pub fn pem() -> (String, String, String) {
    (SERVER.certificate.pem(), SERVER.key.serialize_pem(), AUTHORITY.pem())
}

/// What a client shows of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// No certificate.
    Nobody,
    /// One that is signed by whom the server trusts.
    Known,
    /// One that is signed by somebody else.
    Stranger,
}

/// What a client needs.
pub fn client(identity: Identity) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(SERVER.certificate.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.with_root_certificates(roots);
    let pair = match identity {
        Identity::Nobody => return Arc::new(builder.with_no_client_auth()),
        Identity::Known => &KNOWN,
        Identity::Stranger => &STRANGER,
    };
    let key = PrivateKeyDer::try_from(pair.key.serialize_der()).unwrap();
    Arc::new(builder.with_client_auth_cert(vec![pair.certificate.der().clone()], key).unwrap())
}
