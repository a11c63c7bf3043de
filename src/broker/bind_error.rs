//! Why a broker could not start, and what to do about it. From `Builder::bind`.

use std::io;
use std::net::SocketAddr;

/// The broker could not start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// No message could be passed on.
    #[error(
        "max_pending of {max_pending} bytes has no room for a message beside max_control_line of {max_control_line}"
    )]
    NoRoom {
        /// What was asked for.
        max_pending: usize,
        /// What was asked for.
        max_control_line: usize,
    },
    /// The address cannot be listened on.
    #[error("cannot listen for NATS clients on {address}{}", advice(source.kind()))]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: io::Error,
    },
}

/// What to do about an address that cannot be had.
fn advice(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::AddrInUse => ": is another program there?",
        io::ErrorKind::AddrNotAvailable => ": this machine has no such address; 0.0.0.0 or [::] stands for all it has",
        io::ErrorKind::PermissionDenied => ": ports below 1024 are often for the administrator only; take a higher one",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_cannot_be_had_is_told_with_what_fits() {
        for (kind, part) in [
            (io::ErrorKind::AddrInUse, "another program"),
            (io::ErrorKind::AddrNotAvailable, "no such address"),
            (io::ErrorKind::PermissionDenied, "1024"),
        ] {
            let address = SocketAddr::from(([127, 0, 0, 1], 80));
            let error = BindError::Listen { address, source: kind.into() }.to_string();
            assert!(error.contains(part) && error.contains("127.0.0.1:80"), "{error}");
        }
    }
}
