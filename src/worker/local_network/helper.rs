//! The side that keeps its rights: connects to guests for a worker that has none, and hands it the connections.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::protocol::{self, MAX_LINE, Reply, Request};
use crate::worker::handover;

/// What one request may take, the connect included.
const LIMIT: Duration = Duration::from_secs(15);
/// Requests at a time; more wait to be accepted.
const AT_A_TIME: usize = 256;
/// Pause after an accept that failed, as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers on `listener`, to which only the worker has access, for as long as it is polled. Connects only to addresses that
/// are `allowed`.
pub async fn serve(listener: UnixListener, allowed: fn(IpAddr) -> bool) {
    let places = Arc::new(Semaphore::new(AT_A_TIME));
    let mut requests = JoinSet::new();
    while let Ok(place) = places.clone().acquire_owned().await {
        while requests.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!("cannot take a request for a connection to a guest: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        requests.spawn(async move {
            let _place = place;
            match tokio::time::timeout(LIMIT, answer(stream, allowed)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!("a request for a connection to a guest: {error}"),
                Err(_) => tracing::debug!("a request for a connection to a guest takes too long"),
            }
        });
    }
}

async fn answer(mut stream: UnixStream, allowed: fn(IpAddr) -> bool) -> io::Result<()> {
    let request = match read(&mut stream).await {
        Ok(request) => request,
        Err(error) => return reply(&stream, &failed(&error), None).await,
    };
    let address = request.address;
    if !allowed(address.ip()) {
        let error = io::Error::other(format!("{} is not an address that guests of this host have", address.ip()));
        return reply(&stream, &failed(&error), None).await;
    }
    match TcpStream::connect(address).await {
        Ok(connection) => reply(&stream, &Reply::default(), Some(connection.as_fd())).await,
        Err(error) => reply(&stream, &failed(&error), None).await,
    }
}

fn failed(error: &io::Error) -> Reply {
    Reply { error: Some(error.to_string()), refused: error.kind() == io::ErrorKind::ConnectionRefused }
}

async fn read(stream: &mut UnixStream) -> io::Result<Request> {
    let mut kept = Vec::new();
    let mut chunk = [0; MAX_LINE];
    loop {
        match stream.read(&mut chunk).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => kept.extend_from_slice(chunk.get(..count).unwrap_or_default()),
        }
        if let Some(request) = protocol::decode(&kept).map_err(io::Error::other)? {
            return Ok(request);
        }
    }
}

async fn reply(stream: &UnixStream, reply: &Reply, connection: Option<BorrowedFd<'_>>) -> io::Result<()> {
    handover::send(stream, &protocol::encode(reply), connection).await
}
