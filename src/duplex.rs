//! A two-way stream of bytes whose kind does not matter: into a guest, through a tunnel, to a terminal.

use std::fmt;

use tokio::io::{AsyncRead, AsyncWrite};

/// Something that can be read and written.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

impl fmt::Debug for dyn Duplex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Duplex")
    }
}

/// Any of them.
pub type BoxedStream = Box<dyn Duplex>;
