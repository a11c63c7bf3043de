//! What comes before the protocol: INFO and, where wanted, the TLS handshake, in the order that is wanted; or the word that
//! there is no room.

use std::io;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::super::outbound::LINGER;
use super::super::protocol::{Fault, encode};
use super::super::tls::{AUTO_WAIT, Tls, TlsFirst};
use super::super::transport::Transport;

/// The first byte of a TLS record with a handshake message.
const HANDSHAKE: u8 = 22;

/// How it went.
pub(super) enum Opening {
    /// The protocol can begin.
    Open {
        /// What it runs over.
        transport: Transport,
        /// Whether INFO was sent.
        greeted: bool,
    },
    /// The client does not speak TLS. It is told nothing more, as by nats-server.
    Plain(Transport),
    /// The connection or the handshake failed.
    Failed(io::Error),
}

/// Makes `stream` what `tls` says; `info` is the whole INFO line. The caller bounds the time. Dropping the future closes
/// the connection.
pub(super) async fn open(mut stream: TcpStream, tls: Option<&Tls>, info: &[u8]) -> Opening {
    let Some(tls) = tls else { return Opening::Open { transport: Transport::plain(stream), greeted: false } };
    let mut begin = [0];
    let wait = match tls.when() {
        TlsFirst::Never => Some(Duration::ZERO),
        TlsFirst::Always => None,
        TlsFirst::Auto => Some(AUTO_WAIT),
        TlsFirst::Within(time) => Some(time),
    };
    let first = match wait {
        None => true,
        Some(Duration::ZERO) => false,
        // Not `readable`, which may say so without reason.
        Some(wait) => tokio::time::timeout(wait, stream.peek(&mut begin)).await.is_ok(),
    };
    if !first && let Err(error) = stream.write_all(info).await {
        return Opening::Failed(error);
    }
    match stream.peek(&mut begin).await {
        Err(error) => return Opening::Failed(error),
        Ok(0) => return Opening::Failed(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) if begin != [HANDSHAKE] => return Opening::Plain(Transport::plain(stream)),
        Ok(_) => {}
    }
    match TlsAcceptor::from(tls.config()).accept(stream).await {
        Ok(secured) => {
            let (stream, connection) = secured.into_inner();
            Opening::Open { transport: Transport::tls(stream, connection), greeted: !first }
        }
        Err(error) => Opening::Failed(error),
    }
}

/// Tells a client that there is no room for it. In the clear even where everything else is TLS, as nats-server does: a
/// handshake is what the broker has no room for. INFO comes first where it comes before the handshake.
pub(super) async fn turn_away(mut stream: TcpStream, tls: Option<&Tls>, info: &[u8]) -> Transport {
    let mut words = Vec::new();
    if tls.is_none_or(|tls| tls.when() == TlsFirst::Never) {
        words.extend_from_slice(info);
    }
    encode::error(&mut words, &Fault::Connections);
    // So few bytes fit into the socket at once; a peer for whom they do not has made it so.
    let _ = tokio::time::timeout(LINGER, stream.write_all(&words)).await;
    let transport = Transport::plain(stream);
    transport.shutdown_write();
    transport
}
