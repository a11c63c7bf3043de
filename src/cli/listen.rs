//! Local TCP ports whose connections go elsewhere: for `orchard port-forward`, and for `orchard ssh -L`.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::select_all;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::connect::{Stream, tell};
use super::output::clean;

/// Connections of one port at once; a further one waits until one of them ends.
const MAX_CONNECTIONS: usize = 256;
/// Pause after a failed accept, which is mostly a lack of file descriptors: gives others time to free some.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A local port that leads to a port of a host, as it is seen from the other end of an SSH connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LocalForward {
    /// On this machine.
    pub(super) local: SocketAddr,
    /// A name or address, for the other end to make sense of.
    pub(super) host: String,
    pub(super) port: u16,
}

/// Reads `[ADDR:]PORT:HOST:HOSTPORT`; addresses of IPv6 stand in brackets.
pub(super) fn parse_forward(text: &str) -> Result<LocalForward, String> {
    let wrong = || format!("{text:?} is not [ADDR:]PORT:HOST:HOSTPORT, such as 8080:localhost:80");
    let (rest, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = parse_port(port).ok_or_else(wrong)?;
    let (local, host) = match rest.strip_suffix(']') {
        Some(rest) => rest.rsplit_once(":["),
        None => rest.rsplit_once(':'),
    }
    .filter(|(_, host)| !host.is_empty())
    .ok_or_else(wrong)?;
    let local = parse_local(local).ok_or_else(wrong)?;
    Ok(LocalForward { local, host: host.to_owned(), port })
}

/// Reads `[ADDR:]PORT`; a port alone is one of this machine for itself, and 0 any that is free.
pub(super) fn parse_local(text: &str) -> Option<SocketAddr> {
    match text.rsplit_once(':') {
        Some(_) => text.parse().ok(),
        None => Some(SocketAddr::from((Ipv4Addr::LOCALHOST, text.parse().ok()?))),
    }
}

/// Reads the port of something that listens.
pub(super) fn parse_port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port > 0)
}

/// Listens on a local port.
pub(super) async fn bind(local: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(local).await;
    listener.with_context(|| format!("cannot listen on {local}; another local port may be free"))
}

/// Serves several ports.
pub(super) async fn all(ports: Vec<impl Future<Output = Infallible>>) -> Infallible {
    match ports.is_empty() {
        true => std::future::pending().await,
        false => select_all(ports.into_iter().map(Box::pin)).await.0,
    }
}

/// Accepts connections for ever; each gets a stream of its own from `open`, which is told who connects. One that fails is told of on
/// standard error and closed. Dropping the future closes all.
pub(super) async fn serve<F>(listener: TcpListener, target: String, open: impl Fn(SocketAddr) -> F) -> Infallible
where
    F: Future<Output = Result<Stream, String>> + Send + 'static,
{
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let permit = Arc::clone(&permits).acquire_owned().await;
        let (socket, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tell(&format!("cannot accept a connection: {error}"));
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (opening, target) = (open(peer), target.clone());
        connections.spawn(async move {
            let _permit = permit;
            match opening.await {
                Ok(stream) => splice(socket, stream, &target, peer).await,
                Err(error) => {
                    tell(&clean(&format!("{target}: {error}")));
                    reset(&socket);
                }
            }
        });
    }
}

/// Carries bytes both ways until both sides have said that they are done. What breaks on the one side is broken off on the other, so
/// that half of something does not look like all of it.
async fn splice(mut socket: TcpStream, stream: Stream, target: &str, peer: SocketAddr) {
    let _ = socket.set_nodelay(true);
    match carry(&mut socket, stream).await {
        // QEMU's network accepts a connection before it knows whether the guest will.
        Ok(0) => tell(&format!("{target}: {peer} got nothing; does something listen on that port there?")),
        Ok(down) => tracing::debug!("{target}: {peer} is done, {down} bytes down"),
        Err(error) => {
            tell(&clean(&format!("{target}: the connection of {peer} broke: {error}")));
            reset(&socket);
        }
    }
}

/// Yields how many bytes came.
async fn carry(socket: &mut TcpStream, stream: Stream) -> io::Result<u64> {
    let ((mut from_here, mut to_here), (mut from_there, mut to_there)) = (socket.split(), tokio::io::split(stream));
    let declined = AtomicBool::new(false);
    let up = async {
        match tokio::io::copy(&mut from_here, &mut to_there).await {
            Ok(_) => to_there.shutdown().await,
            // It reads no more, but what it has to say may be worth hearing. Bytes that are left unread here would destroy that.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                declined.store(true, Ordering::Relaxed);
                tokio::io::copy(&mut from_here, &mut tokio::io::sink()).await.map(drop)
            }
            Err(error) => Err(error),
        }
    };
    let down = async {
        let count = tokio::io::copy(&mut from_there, &mut to_here).await?;
        to_here.shutdown().await?;
        io::Result::Ok(count)
    };
    let (mut up, mut down) = (pin!(up), pin!(down));
    // Neither is dropped half-way, except when there is no reason left to go on.
    tokio::select! {
        sent = &mut up => {
            sent?;
            down.await
        }
        came = &mut down => {
            let count = came?;
            if !declined.load(Ordering::Relaxed) {
                up.await?;
            }
            Ok(count)
        }
    }
}

/// Has the connection end with a reset, which no program takes for a proper end.
fn reset(socket: &TcpStream) {
    // One that is gone already needs none.
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn forwards_are_read() {
        let forward =
            |local: &str, host: &str, port| Ok(LocalForward { local: local.parse().unwrap(), host: host.into(), port });
        assert_eq!(parse_forward("8080:localhost:80"), forward("127.0.0.1:8080", "localhost", 80));
        assert_eq!(parse_forward("0.0.0.0:8080:db.internal:5432"), forward("0.0.0.0:8080", "db.internal", 5432));
        assert_eq!(parse_forward("[::1]:0:[fe80::1]:22"), forward("[::1]:0", "fe80::1", 22));
        assert_eq!(parse_forward("1:[::1]:2"), forward("127.0.0.1:1", "::1", 2));
        for bad in ["", "80", "1:2", "1::2", "1:h:0", "x:h:1", "1:h:", "1:[]:2", "1:2:3:4:5", "70000:h:1"] {
            assert!(parse_forward(bad).is_err(), "{bad:?}");
        }
    }

    /// The guest's side of a stream: sends back in reverse what came, once the other side has said that it is done.
    async fn guest(mut side: tokio::io::DuplexStream) {
        let mut bytes = Vec::new();
        side.read_to_end(&mut bytes).await.unwrap();
        bytes.reverse();
        side.write_all(&bytes).await.unwrap();
        side.shutdown().await.unwrap();
    }

    #[tokio::test]
    async fn each_connection_has_a_stream_and_a_failed_one_harms_no_other() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let guests = Arc::new(tokio::sync::Mutex::new(JoinSet::new()));
        let open = move |_| {
            let turn = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let guests = Arc::clone(&guests);
            async move {
                if turn == 0 {
                    return Err("the guest refuses".to_owned());
                }
                let (near, far) = tokio::io::duplex(1024);
                guests.lock().await.spawn(guest(far));
                Ok(Box::new(near) as Stream)
            }
        };
        let _serving = crate::task::spawn(serve(listener, "vm:1".into(), open));
        let talk = |payload: Vec<u8>| async move {
            let mut socket = TcpStream::connect(address).await.unwrap();
            let (mut read, mut write) = socket.split();
            let mut answer = Vec::new();
            let (sent, got) = tokio::join!(
                async {
                    write.write_all(&payload).await?;
                    write.shutdown().await
                },
                read.read_to_end(&mut answer)
            );
            sent.and(got.map(drop)).map(|()| answer)
        };
        assert!(talk(Vec::new()).await.unwrap_or_default().is_empty(), "the first stream cannot be opened");
        let (a, b) = tokio::join!(talk(vec![1, 2, 3]), talk(vec![7; 100_000]));
        assert_eq!(a.unwrap(), [3, 2, 1]);
        assert_eq!(b.unwrap().len(), 100_000);
    }

    /// What a program gets of a connection to which this is led.
    async fn got(stream: impl crate::duplex::Duplex + 'static, sent: &[u8]) -> (Vec<u8>, io::Result<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let led = async {
            let (socket, peer) = listener.accept().await.unwrap();
            splice(socket, Box::new(stream), "vm:1", peer).await;
        };
        let program = async {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(sent).await.unwrap();
            let mut got = Vec::new();
            let ended = socket.read_to_end(&mut got).await.map(drop);
            (got, ended)
        };
        tokio::join!(led, program).1
    }

    #[tokio::test]
    async fn half_of_something_does_not_look_like_all_of_it() {
        let broken = || Err(io::Error::new(io::ErrorKind::ConnectionReset, "the VM reset the connection"));
        let half = futures_util::stream::iter([Ok(&b"half"[..]), broken()]);
        let stream = tokio::io::join(tokio_util::io::StreamReader::new(half), tokio::io::sink());
        let (_, ended) = got(stream, b"ask").await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn what_reads_no_more_is_heard_to_its_end() {
        // The one that nobody reads, and an answer that comes later than that is known.
        let ((deaf, gone), (answer, mut far)) = (tokio::io::duplex(16), tokio::io::duplex(16));
        drop(gone);
        let says = async {
            tokio::task::yield_now().await;
            far.write_all(&[7; 100_000]).await.unwrap();
            drop(far);
        };
        let ((got, ended), ()) = tokio::join!(got(tokio::io::join(answer, deaf), &[1; 300_000]), says);
        ended.unwrap();
        assert_eq!(got.len(), 100_000);
    }
}
