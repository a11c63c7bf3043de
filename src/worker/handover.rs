//! Hands an open connection to another process, over a Unix socket and with the message that it belongs to. Used between the
//! worker and its helpers.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Sends a message and, with it, a connection. The message must be far shorter than what such a socket takes at once, and
/// nothing else may be on its way there.
///
/// # Errors
/// Whatever the system says.
pub(super) async fn send(stream: &UnixStream, message: &[u8], connection: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let send = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let handed = connection.map(|connection| [connection]);
        if let Some(handed) = &handed {
            ancillary.push(SendAncillaryMessage::ScmRights(handed));
        }
        Ok(sendmsg(stream, &[IoSlice::new(message)], &mut ancillary, SendFlags::empty())?)
    };
    match stream.async_io(Interest::WRITABLE, send).await? {
        count if count == message.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Reads what is there into `place`, and takes a connection that comes with it; 0 = the other side has closed. Cancel safe.
///
/// # Errors
/// Whatever the system says.
pub(super) async fn receive(stream: &UnixStream, place: &mut [u8], handed: &mut Option<OwnedFd>) -> io::Result<usize> {
    stream.async_io(Interest::READABLE, || receive_now(stream, place, handed)).await
}

fn receive_now(stream: &UnixStream, place: &mut [u8], handed: &mut Option<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(stream, &mut [IoSliceMut::new(place)], &mut ancillary, RecvFlags::empty())?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(connections) = message {
            *handed = connections.last().or(handed.take());
        }
    }
    if let Some(connection) = handed {
        // No program that this one starts inherits it.
        rustix::io::fcntl_setfd(&*connection, rustix::io::FdFlags::CLOEXEC)?;
    }
    Ok(received.bytes)
}
