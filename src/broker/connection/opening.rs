//! What comes before the protocol: INFO and, where wanted, the TLS handshake, in the order that is wanted.

use std::io;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

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
    let first = match tls.when() {
        TlsFirst::Never => false,
        TlsFirst::Always => true,
        // Not `readable`, which may say so without reason.
        TlsFirst::Auto => tokio::select! {
            _ = stream.peek(&mut begin) => true,
            () = tokio::time::sleep(AUTO_WAIT) => false,
        },
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
