//! TLS in each order, with and without client certificates, and certificates exchanged under open connections.

use std::sync::Arc;
use std::time::Duration;

use orchard::broker::tls::{Tls, TlsError, TlsFirst};
use orchard::broker::{Broker, Limits};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::support::{PATIENCE, Raw, start};
use crate::wait::until;

const QUIET: &str = "CONNECT {\"verbose\":false,\"protocol\":1}\r\n";

/// Someone who signs certificates.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Certificate and key for `localhost`, as PEM.
    fn issue(&self) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }

    fn tls(&self, client_ca: Option<&Authority>) -> Tls {
        let (certificate, key) = self.issue();
        let ca = client_ca.map(|ca| ca.0.pem());
        Tls::from_pem(certificate.as_bytes(), key.as_bytes(), ca.as_ref().map(String::as_bytes)).unwrap()
    }

    /// A client that trusts this authority and shows `identity`.
    fn connector(&self, identity: Option<(String, String)>) -> TlsConnector {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.0.pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.unwrap().with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
            }
        };
        TlsConnector::from(Arc::new(config))
    }
}

async fn secure(stream: TcpStream, connector: &TlsConnector) -> std::io::Result<Raw> {
    let name = ServerName::try_from("localhost").unwrap();
    let secured =
        tokio::time::timeout(PATIENCE, connector.connect(name, stream)).await.expect("no handshake in time")?;
    Ok(Raw::over(secured))
}

async fn dial(broker: &Broker) -> TcpStream {
    TcpStream::connect(broker.local_addr()).await.unwrap()
}

#[tokio::test]
async fn only_the_private_door_is_in_plain_text() {
    let authority = Authority::new();
    let broker = start(Broker::builder().tls(authority.tls(None)).private_door()).await;
    let mut own = Raw::at(broker.private_addr().unwrap()).await;
    own.send(QUIET.as_bytes()).await;
    assert_eq!(own.until_pong().await, "");
    let mut stranger = dial(&broker).await;
    assert!(plain_info(&mut stranger).await.contains("\"tls_required\":true"));
    secure(stranger, &authority.connector(None)).await.unwrap();
    broker.shutdown().await;
}

/// Reads the line in front of the handshake and nothing behind it.
async fn plain_info(stream: &mut TcpStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        let read = tokio::io::AsyncReadExt::read_exact(stream, &mut byte);
        tokio::time::timeout(PATIENCE, read).await.expect("no INFO in time").unwrap();
        line.extend_from_slice(&byte);
    }
    String::from_utf8(line).unwrap()
}

async fn after_info(broker: &Broker, connector: &TlsConnector) -> std::io::Result<Raw> {
    let mut stream = dial(broker).await;
    let info = plain_info(&mut stream).await;
    assert!(info.starts_with("INFO {") && info.contains("\"tls_required\":true"), "{info}");
    secure(stream, connector).await
}

async fn tls_first(broker: &Broker, connector: &TlsConnector) -> std::io::Result<Raw> {
    let mut raw = secure(dial(broker).await, connector).await?;
    let info = raw.line().await;
    assert!(info.starts_with("INFO {") && info.contains("\"tls_required\":true"), "{info}");
    Ok(raw)
}

async fn works(raw: &mut Raw) {
    raw.send(format!("{QUIET}SUB a 1\r\nPUB a 2\r\nhi\r\n").as_bytes()).await;
    assert_eq!(raw.until_pong().await, "MSG a 1 2\r\nhi\r\n");
}

#[tokio::test]
async fn the_handshake_comes_when_it_should() {
    let authority = Authority::new();
    let connector = authority.connector(None);
    for first in [TlsFirst::Never, TlsFirst::Always, TlsFirst::Auto] {
        let broker = start(Broker::builder().tls(authority.tls(None).first(first))).await;
        if first != TlsFirst::Always {
            works(&mut after_info(&broker, &connector).await.unwrap()).await;
        }
        if first != TlsFirst::Never {
            // Automatic means within 50 ms, which on a busy machine nobody always meets.
            let opened = until("a handshake in time", PATIENCE, || tls_first(&broker, &connector));
            works(&mut opened.await).await;
        }
        broker.shutdown().await;
    }
}

#[tokio::test]
async fn who_speaks_no_tls_hears_no_more() {
    let authority = Authority::new();
    let limits = Limits { auth_timeout: Duration::from_millis(300), ..Limits::default() };
    let broker = start(Broker::builder().tls(authority.tls(None)).limits(limits)).await;
    let mut plain = Raw::connect(&broker).await;
    plain.send(format!("{QUIET}PING\r\n").as_bytes()).await;
    assert_eq!(plain.until_closed().await, "");
    let mut silent = Raw::connect(&broker).await;
    assert_eq!(silent.until_closed().await, "", "a handshake has its time, and no more");
    assert_eq!(broker.stats().total_connections, 0);
    broker.shutdown().await;
}

#[tokio::test]
async fn who_begins_at_once_may_have_longer_to_begin() {
    let authority = Authority::new();
    let connector = authority.connector(None);
    let broker = start(Broker::builder().tls(authority.tls(None).first(TlsFirst::Within(PATIENCE)))).await;
    works(&mut tls_first(&broker, &connector).await.unwrap()).await;
    broker.shutdown().await;
    let brief = TlsFirst::Within(Duration::from_millis(1));
    let broker = start(Broker::builder().tls(authority.tls(None).first(brief))).await;
    works(&mut after_info(&broker, &connector).await.unwrap()).await;
    broker.shutdown().await;
}

#[tokio::test]
async fn who_is_one_too_many_is_told_so_without_a_handshake() {
    const FULL: &str = "-ERR 'maximum connections exceeded'\r\n";
    let authority = Authority::new();
    let connector = authority.connector(None);
    for first in [TlsFirst::Never, TlsFirst::Always, TlsFirst::Auto] {
        let limits = Limits { max_connections: 1, ..Limits::default() };
        let broker = start(Broker::builder().tls(authority.tls(None).first(first)).limits(limits)).await;
        let in_handshake = dial(&broker).await; // counts, although it says nothing
        let said = Raw::silent(&broker).await.until_closed().await;
        let before = said.strip_suffix(FULL).unwrap_or_else(|| panic!("{first:?}: {said}"));
        assert_eq!(before.starts_with("INFO {"), first == TlsFirst::Never, "{said}");
        drop(in_handshake);
        let mut next = until("its room to be free", PATIENCE, || async {
            match first {
                TlsFirst::Never => after_info(&broker, &connector).await,
                _ => tls_first(&broker, &connector).await,
            }
        })
        .await;
        works(&mut next).await;
        assert!(Raw::silent(&broker).await.until_closed().await.ends_with(FULL));
        broker.shutdown().await;
    }
}

#[tokio::test]
async fn clients_must_show_a_certificate_when_it_is_asked_for() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let broker = start(Broker::builder().tls(authority.tls(Some(&authority)))).await;
    let mut stream = dial(&broker).await;
    assert!(plain_info(&mut stream).await.contains("\"tls_verify\":true"));
    works(&mut after_info(&broker, &authority.connector(Some(authority.issue()))).await.unwrap()).await;
    for identity in [None, Some(stranger.issue())] {
        // With TLS 1.3 the client learns of it when it reads.
        if let Ok(mut raw) = after_info(&broker, &authority.connector(identity)).await {
            raw.try_send(format!("{QUIET}PING\r\n").as_bytes()).await;
            assert!(!raw.until_end().await.contains("PONG"));
        }
    }
    assert_eq!(broker.stats().total_connections, 1);
    broker.shutdown().await;
}

#[tokio::test]
async fn a_new_certificate_disturbs_nobody() {
    let (old, new) = (Authority::new(), Authority::new());
    let broker = start(Broker::builder().tls(old.tls(None))).await;
    let mut before = after_info(&broker, &old.connector(None)).await.unwrap();
    works(&mut before).await;
    broker.reload_tls(new.tls(None));
    assert!(after_info(&broker, &old.connector(None)).await.is_err());
    works(&mut after_info(&broker, &new.connector(None)).await.unwrap()).await;
    assert_eq!(before.until_pong().await, "MSG a 1 2\r\nhi\r\n");
    broker.shutdown().await;
}

#[tokio::test]
async fn large_messages_go_through_and_slow_readers_are_cut_off() {
    let authority = Authority::new();
    let limits = Limits { max_pending: 4 * 1024 * 1024, ..Limits::default() };
    let broker = start(Broker::builder().tls(authority.tls(None)).limits(limits)).await;
    let connector = authority.connector(None);
    let mut quick = after_info(&broker, &connector).await.unwrap();
    quick.send(format!("{QUIET}SUB a 1\r\n").as_bytes()).await;
    quick.until_pong().await;
    let mut sender = after_info(&broker, &connector).await.unwrap();
    sender.send(QUIET.as_bytes()).await;
    let body = "x".repeat(1024 * 1024);
    let frame = format!("PUB a {}\r\n{body}\r\n", body.len());
    let line = format!("MSG a 1 {}\r\n{body}\r\n", body.len());
    for _ in 0..3 {
        sender.send(frame.as_bytes()).await;
        assert!(quick.exactly(line.len()).await == line);
    }
    let sending = async {
        while broker.stats().slow_consumers == 0 {
            sender.send(frame.as_bytes()).await; // and nobody reads
        }
    };
    tokio::time::timeout(PATIENCE, sending).await.expect("still not cut off");
    until("the slow one to be gone", PATIENCE, || async {
        if broker.stats().connections == 1 { Ok(()) } else { Err(broker.stats()) }
    })
    .await;
    sender.until_pong().await;
    broker.shutdown().await;
}

#[test]
fn what_cannot_be_used_is_said() {
    let (certificate, key) = Authority::new().issue();
    let other = Authority::new().issue().1;
    let make = |certificate: &str, key: &str| Tls::from_pem(certificate.as_bytes(), key.as_bytes(), None).unwrap_err();
    assert!(matches!(make("", &key), TlsError::Empty { what: "certificate" }));
    assert!(matches!(make(&certificate, ""), TlsError::Pem { what: "key", .. }));
    assert!(matches!(make(&certificate, &other), TlsError::Unusable(_)));
    let missing = Tls::read("none.pem".as_ref(), "none.key".as_ref(), None).unwrap_err();
    assert!(missing.to_string().contains("none.pem"), "{missing}");
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_handshakes() {
    let broker = start(Broker::builder().tls(Authority::new().tls(None))).await;
    let mut idle = Raw::connect(&broker).await; // has read INFO, so the broker waits for its handshake
    let mut begun = Raw::connect(&broker).await;
    begun.send(&[22, 3, 1]).await;
    tokio::time::pause();
    let now = tokio::time::Instant::now();
    broker.shutdown().await;
    let took = now.elapsed();
    tokio::time::resume();
    assert!(took < Duration::from_secs(1), "{took:?}");
    idle.skip_until_closed().await;
    begun.skip_until_closed().await;
}
