//! Certificates for a server called `localhost` and for its clients, from a CA of their own.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::{Value, json};
use tempfile::TempDir;

/// `ca.pem`, and `.pem` and `.key` of `server` and `client`, in a folder.
pub struct Certificates {
    folder: TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Certificates {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign]; // newer Pythons insist on it
        let key = KeyPair::generate().unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        let made = Self { folder, issuer: Issuer::new(params, key) };
        made.make("server", "localhost");
        made.make("client", "client");
        made
    }

    /// Makes a certificate for `name`, in place of the one there.
    pub fn make(&self, file: &str, name: &str) {
        let key = KeyPair::generate().unwrap();
        let names = vec![name.to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.use_authority_key_identifier_extension = true;
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.path(&format!("{file}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.path(&format!("{file}.key")), key.serialize_pem()).unwrap();
    }

    pub fn path(&self, file: &str) -> String {
        self.folder.path().join(file).to_str().unwrap().to_owned()
    }

    /// What the broker is told: its certificate and `more`.
    pub fn server(&self, more: &[&str]) -> Vec<String> {
        let own = ["--tls-cert".to_owned(), self.path("server.pem"), "--tls-key".to_owned(), self.path("server.key")];
        own.into_iter().chain(more.iter().map(|argument| (*argument).to_owned())).collect()
    }

    /// What the clients' scripts are told: whom to trust, whether the handshake comes first, and perhaps their own
    /// certificate.
    pub fn client(&self, first: bool, with_certificate: bool) -> Value {
        let mut options = json!({ "ca": self.path("ca.pem"), "first": first });
        if with_certificate {
            options["cert"] = self.path("client.pem").into();
            options["key"] = self.path("client.key").into();
        }
        options
    }
}
