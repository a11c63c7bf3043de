//! The limit of a fleet's return where fleet and controller share the processors: the bare handshakes of as many workers, one
//! of TLS over TCP and one of QUIC each, with both ends on this machine and nothing behind them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use orchard::identity::ca::Identity;
use orchard::identity::tls;
use orchard::task::{self, Task};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// As many as the broker lets begin at a time from one address.
const AT_ONCE: usize = 256;
/// UDP sockets of all together: quinn reserves 13 MiB for each, and workers, which have one each, reserve less.
const SOCKETS: usize = 16;
const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// How long `workers` take for both, all connections left open until the last is there.
pub async fn of(workers: usize) -> Duration {
    let identity = Identity::generate().unwrap();
    let ((tcp, _tcp), (quic, _quic)) = (over_tcp(&identity).await, over_quic(&identity));
    let connector = TlsConnector::from(Arc::new(tls::client_config(identity.fingerprint(), &[]).unwrap()));
    let crypto = tls::client_config(identity.fingerprint(), &[b"bare"]).unwrap();
    let client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(crypto).unwrap()));
    let name = ServerName::try_from("orchard").unwrap();
    let sockets: Vec<_> = (0..SOCKETS).map(|_| quinn::Endpoint::client(LOCAL).unwrap()).collect();
    let connect = |n: usize| {
        let (connector, client, name) = (connector.clone(), client.clone(), name.clone());
        let endpoint = sockets[n % SOCKETS].clone();
        async move {
            let stream = TcpStream::connect(tcp).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut stream = connector.connect(name, stream).await.unwrap();
            stream.write_all(b"hello").await.unwrap();
            stream.read_exact(&mut [0; 5]).await.unwrap();
            let connection = endpoint.connect_with(client, quic, "orchard").unwrap().await.unwrap();
            let (mut outgoing, mut incoming) = connection.open_bi().await.unwrap();
            outgoing.write_all(b"hello").await.unwrap();
            incoming.read_exact(&mut [0; 5]).await.unwrap();
            (stream, connection)
        }
    };
    let began = Instant::now();
    let open: Vec<_> = futures_util::stream::iter(0..workers).map(connect).buffer_unordered(AT_ONCE).collect().await;
    let elapsed = began.elapsed();
    drop(open);
    elapsed
}

/// Sends back what it is sent.
async fn over_tcp(identity: &Identity) -> (SocketAddr, Task) {
    let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(identity, &[]).unwrap()));
    let listener = TcpListener::bind(LOCAL).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = task::spawn(async move {
        let mut sessions = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            sessions.spawn(async move {
                let mut stream = acceptor.accept(stream).await.unwrap();
                let mut hello = [0; 5];
                stream.read_exact(&mut hello).await.unwrap();
                stream.write_all(&hello).await.unwrap();
                let _ = stream.read(&mut hello).await;
            });
        }
    });
    (address, serving)
}

/// The same on the first stream of each connection.
fn over_quic(identity: &Identity) -> (SocketAddr, Task) {
    let crypto = QuicServerConfig::try_from(tls::server_config(identity, &[b"bare"]).unwrap()).unwrap();
    let endpoint = quinn::Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(crypto)), LOCAL).unwrap();
    let address = endpoint.local_addr().unwrap();
    let serving = task::spawn(async move {
        let mut sessions = JoinSet::new();
        while let Some(incoming) = endpoint.accept().await {
            sessions.spawn(async move {
                let connection = incoming.await.unwrap();
                let (mut outgoing, mut incoming) = connection.accept_bi().await.unwrap();
                let mut hello = [0; 5];
                incoming.read_exact(&mut hello).await.unwrap();
                outgoing.write_all(&hello).await.unwrap();
                connection.closed().await;
            });
        }
    });
    (address, serving)
}
