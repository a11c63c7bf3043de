//! Connections to guests on a Mac for a worker without rights of its own there.
//!
//! macOS lets a program connect to the local network, which its guests are on, only once a person at the screen has allowed
//! that, and again after each update; programs of root need no permission. So `orchard worker run --user NAME`, started as
//! root, stays as a small helper that does nothing but connect to guests ([`helper`]), and runs the worker below it as that
//! user, in none of root's groups. The worker asks for each connection through a socket in a folder that is its user's
//! alone, and is handed the connected socket.
//!
//! The helper connects to private addresses and nothing else: what has taken over the worker gains no way to the rest.

pub mod account;
pub mod helper;
mod protocol;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UnixStream};

pub use self::protocol::is_local;
use self::protocol::{MAX_LINE, Reply, Request};
use super::handover;

/// The worker's way to its helper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNetwork(PathBuf);

impl LocalNetwork {
    /// By the helper's socket.
    pub fn at(socket: PathBuf) -> Self {
        Self(socket)
    }

    /// Connects to a guest. Cancel safe. Without a deadline of its own: the caller has one.
    ///
    /// # Errors
    /// What the helper met, or that it is not there.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let gone = |error: io::Error| io::Error::new(error.kind(), format!("the local network helper: {error}"));
        let mut stream = UnixStream::connect(&self.0).await.map_err(gone)?;
        stream.write_all(&protocol::encode(&Request { address })).await.map_err(gone)?;
        let (mut read, mut handed) = (Vec::new(), None);
        let reply: Reply = loop {
            let mut chunk = [0; MAX_LINE];
            let count = handover::receive(&stream, &mut chunk, &mut handed).await.map_err(gone)?;
            read.extend_from_slice(chunk.get(..count).unwrap_or_default());
            if let Some(reply) = protocol::decode(&read).map_err(io::Error::other)? {
                break reply;
            }
            if count == 0 {
                return Err(gone(io::ErrorKind::UnexpectedEof.into()));
            }
        };
        match (reply.error, handed) {
            (None, Some(connection)) => {
                let connection = std::net::TcpStream::from(connection);
                connection.set_nonblocking(true)?;
                TcpStream::from_std(connection)
            }
            (None, None) => Err(gone(io::Error::other("no connection came with its answer"))),
            (Some(error), _) if reply.refused => Err(io::Error::new(io::ErrorKind::ConnectionRefused, error)),
            (Some(error), _) => Err(io::Error::other(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use tokio::net::{TcpListener, UnixListener};

    use super::*;
    use crate::task;

    fn helper(dir: &tempfile::TempDir, allowed: fn(std::net::IpAddr) -> bool) -> (LocalNetwork, task::Task) {
        let path = dir.path().join("helper");
        let listener = UnixListener::bind(&path).unwrap();
        (LocalNetwork::at(path), task::spawn(helper::serve(listener, allowed)))
    }

    #[tokio::test]
    async fn a_connection_that_the_helper_made_is_handed_over() {
        let dir = tempfile::tempdir().unwrap();
        let (network, _helper) = helper(&dir, |_| true);
        let guest = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = guest.local_addr().unwrap();
        for _ in 0..3 {
            let (connected, accepted) = tokio::join!(network.connect(address), guest.accept());
            let (mut connected, (mut accepted, _)) = (connected.unwrap(), accepted.unwrap());
            connected.write_all(b"ping").await.unwrap();
            let mut heard = [0; 4];
            accepted.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"ping");
            drop(accepted);
            assert_eq!(connected.read(&mut heard).await.unwrap(), 0, "nobody else holds it");
        }
    }

    #[tokio::test]
    async fn what_the_helper_meets_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let (network, _helper) = helper(&dir, |_| true);
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert_eq!(network.connect(closed).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn nothing_but_guests_can_be_reached_through_it() {
        let dir = tempfile::tempdir().unwrap();
        let (network, _helper) = helper(&dir, is_local);
        let error = network.connect("127.0.0.1:22".parse().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("not an address that guests"), "{error}");
    }

    #[tokio::test]
    async fn nonsense_ends_one_request_and_a_helper_that_is_gone_is_told_of() {
        let dir = tempfile::tempdir().unwrap();
        let (network, helper) = helper(&dir, |_| true);
        let mut odd = UnixStream::connect(&network.0).await.unwrap();
        odd.write_all(b"{}\n").await.unwrap();
        let mut said = String::new();
        odd.read_to_string(&mut said).await.unwrap();
        assert!(said.contains("error"), "{said}");
        helper.abort().await;
        let error = network.connect("127.0.0.1:1".parse().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("local network helper"), "{error}");
    }
}
