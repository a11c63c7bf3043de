//! TLS under a connection after its handshake: plain text in and out, records from and to the socket, without waiting.
//!
//! Publishers write from their own tasks while the owner reads, so the state stands behind a lock; it is held for one
//! attempt, some ten thousand bytes at most. Plain connections never come here.

use std::io::{self, BufRead, IoSlice, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use rustls::ServerConnection;
use tokio::net::TcpStream;

/// Bytes read from the socket at a time: a whole record.
const READ: usize = 16 * 1024;
/// Bytes of records that may wait for the socket; what does not fit stays with the caller, who counts it.
const MAX_WAITING: usize = 64 * 1024;

/// See the module.
#[derive(Debug)]
pub struct Records {
    connection: Mutex<ServerConnection>,
    has_rest: AtomicBool,
}

impl Records {
    /// For a connection whose handshake is done.
    pub fn new(mut connection: ServerConnection) -> Self {
        connection.set_buffer_limit(Some(MAX_WAITING));
        Self { connection: Mutex::new(connection), has_rest: AtomicBool::new(false) }
    }

    fn lock(&self) -> MutexGuard<'_, ServerConnection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends the plain text that is there; 0 when the peer has said or shown that no more will come.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when nothing is there; anything else ends the connection.
    pub fn try_read(&self, stream: &TcpStream, buffer: &mut BytesMut) -> io::Result<usize> {
        let mut tls = self.lock();
        let before = buffer.len();
        let mut scratch = [0; READ];
        let mut ended = drain(&mut tls, buffer)?;
        while buffer.len() == before && !ended {
            let count = stream.try_read(&mut scratch)?;
            let mut rest = scratch.get(..count).unwrap_or_default();
            ended = count == 0;
            while !rest.is_empty() && !ended {
                tls.read_tls(&mut rest)?;
                if let Err(error) = tls.process_new_packets() {
                    let _ = self.flush(&mut tls, stream); // the alert that says why
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
                ended = drain(&mut tls, buffer)?;
            }
        }
        if tls.wants_write() {
            // An answer to a key update; when the socket is full, it goes out with what is written next.
            let _ = self.flush(&mut tls, stream);
        }
        Ok(buffer.len() - before)
    }

    /// Takes as much of `slices` as may wait for the socket, once nothing else does.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when something else does; anything else ends the connection.
    pub fn try_write(&self, stream: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut tls = self.lock();
        self.flush(&mut tls, stream)?;
        let taken = tls.writer().write_vectored(slices)?;
        match self.flush(&mut tls, stream) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(taken),
        }
    }

    /// Whether something waits for the socket.
    pub fn has_rest(&self) -> bool {
        self.has_rest.load(Ordering::Acquire)
    }

    /// Writes it.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when the socket does not take all of it; anything else ends the connection.
    pub fn try_flush(&self, stream: &TcpStream) -> io::Result<()> {
        self.flush(&mut self.lock(), stream)
    }

    /// Tells the peer that nothing more will come, if the socket has room for it.
    pub fn say_goodbye(&self, stream: &TcpStream) {
        let mut tls = self.lock();
        tls.send_close_notify();
        let _ = self.flush(&mut tls, stream);
    }

    fn flush(&self, tls: &mut ServerConnection, stream: &TcpStream) -> io::Result<()> {
        let mut flushed = Ok(());
        while tls.wants_write() && flushed.is_ok() {
            flushed = match tls.write_tls(&mut Socket(stream)) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
                Err(error) => Err(error),
            };
        }
        self.has_rest.store(tls.wants_write(), Ordering::Release);
        flushed
    }
}

/// Moves the plain text over; whether the peer has said that no more will come.
fn drain(tls: &mut ServerConnection, buffer: &mut BytesMut) -> io::Result<bool> {
    loop {
        let mut reader = tls.reader();
        let count = match reader.fill_buf() {
            Ok([]) => return Ok(true),
            Ok(text) => {
                buffer.extend_from_slice(text);
                text.len()
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        reader.consume(count);
    }
}

/// The socket as rustls wants to write to it.
struct Socket<'a>(&'a TcpStream);

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
