//! What is asked of the helper and what it answers: one line of JSON each way, on a connection of its own. Pure.

use core::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The longest line: an address, or an error for people.
pub(super) const MAX_LINE: usize = 1024;

/// Connect to this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    /// The guest's address and port.
    pub(super) address: SocketAddr,
}

/// What came of it; with no error, the connection comes with the line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reply {
    /// Why there is no connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// Whether somebody is there and nobody listens.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) refused: bool,
}

/// One line.
pub(super) fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Reads one line; none while it is not all there.
///
/// # Errors
/// When it is too long, or not what it should be.
pub(super) fn decode<T: for<'a> Deserialize<'a>>(read: &[u8]) -> Result<Option<T>, String> {
    let Some(end) = read.iter().position(|byte| *byte == b'\n') else {
        return if read.len() < MAX_LINE { Ok(None) } else { Err("a line that is too long".to_owned()) };
    };
    let line = read.get(..end).unwrap_or_default();
    serde_json::from_slice(line).map(Some).map_err(|error| error.to_string())
}

/// Whether a guest of this host can have that address: the helper has more rights than who asks it, so it connects to nothing
/// else.
pub fn is_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_private() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_addresses_of_local_networks_are_local() {
        for local in ["192.168.64.2", "10.0.0.1", "172.16.3.4", "169.254.1.1", "fe80::1", "fd00::2", "::ffff:10.1.1.1"]
        {
            assert!(is_local(local.parse().unwrap()), "{local}");
        }
        for other in
            ["127.0.0.1", "::1", "8.8.8.8", "172.32.0.1", "0.0.0.0", "2001:db8::1", "255.255.255.255", "224.0.0.1"]
        {
            assert!(!is_local(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn half_a_line_is_waited_for_and_one_without_end_is_not() {
        let request = Request { address: "192.168.64.2:22".parse().unwrap() };
        let line = encode(&request);
        assert_eq!(line, b"{\"address\":\"192.168.64.2:22\"}\n");
        for cut in 0..line.len() {
            assert_eq!(decode::<Request>(&line[..cut]), Ok(None));
        }
        assert_eq!(decode(&line), Ok(Some(request)));
        assert!(decode::<Request>(&[b'x'; MAX_LINE]).is_err());
        assert!(decode::<Request>(b"{\"address\":\"guest:22\"}\n").is_err());
        assert_eq!(decode(&encode(&Reply::default())), Ok(Some(Reply::default())));
    }

    proptest! {
        #[test]
        fn no_bytes_upset_it(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (decode::<Request>(&bytes), decode::<Reply>(&bytes));
        }
    }
}
