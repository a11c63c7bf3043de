//! One self-signed certificate for both servers, and a client that trusts it.

use std::sync::{Arc, LazyLock};

use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, RootCertStore};

struct Pair {
    certificate: rcgen::Certificate,
    key: KeyPair,
}

static PAIR: LazyLock<Pair> = LazyLock::new(|| {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    Pair { certificate, key }
});

/// Certificate and key as PEM.
pub fn pem() -> (String, String) {
    (PAIR.certificate.pem(), PAIR.key.serialize_pem())
}

/// What a client needs.
pub fn client() -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(PAIR.certificate.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
}
