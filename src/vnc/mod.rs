//! A client of VNC servers (RFB, RFC 6143) that takes one picture of the screen. Called by `orchard vnc --screenshot`.
//!
//! [`client`] is the shell around a stream: it alone reads, writes and waits. What it does next is decided by
//! [`conversation`], which is pure: it says how many bytes it needs, is handed them, and says what to send. [`protocol`] has
//! the messages, [`security`] what proves a password, [`picture`] the pixels.
//!
//! Only what every server can do is asked for: pixels as they are, with 32 bits each (encoding Raw), and to be told when the
//! screen's size changes.

pub mod client;
pub mod conversation;
pub mod picture;
pub mod protocol;
pub mod security;

use crate::model::secret::Secret;

/// Who logs in, where a server asks for that. QEMU's own screen asks for nothing.
#[derive(Clone, Debug)]
pub struct Login {
    /// The user; servers with one password for all know none.
    pub user: Option<String>,
    /// The password; none = only a server that asks for nothing lets in.
    pub password: Option<Secret>,
}
