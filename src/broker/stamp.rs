//! Tells the receiver of a message from where its sender is connected, if the authenticator wants it so. Called by a
//! connection for each such message. Pure.
//!
//! What the sender put into headers itself is dropped then: it could say another address, and a receiver whose client
//! takes bad headers for a broken connection could be disconnected at will. The same could be done with a subject or a
//! reply that is no plain text: such a message is refused.

use std::net::SocketAddr;

use super::protocol::Publish;

/// The header with the sender's address and port.
pub const CLIENT_ADDRESS: &str = "Client-Address";

/// What is sent in place of a message's body.
#[derive(Debug)]
pub(super) struct Stamped {
    body: Vec<u8>,
    header_size: String,
    total_size: String,
}

impl Stamped {
    /// The body of `message`, coming from `peer`.
    pub(super) fn new(message: &Publish<'_>, peer: SocketAddr) -> Self {
        let ip = peer.ip().to_canonical();
        let header = format!("NATS/1.0\r\n{CLIENT_ADDRESS}: {}\r\n\r\n", SocketAddr::new(ip, peer.port()));
        let payload = payload(message);
        let body = [header.as_bytes(), payload].concat();
        Self { header_size: header.len().to_string(), total_size: body.len().to_string(), body }
    }

    /// `message` with it.
    pub(super) fn on<'a>(&'a self, message: &Publish<'a>) -> Publish<'a> {
        let (header_size, total_size) = (Some(self.header_size.as_bytes()), self.total_size.as_bytes());
        Publish { header_size, total_size, body: &self.body, rest: None, ..*message }
    }
}

/// Whether any client can read subject and reply of `message`: the protocol takes nearly every byte for part of a subject,
/// but clients split at whatever Unicode calls a space, and some give the connection up over what is not UTF-8.
pub(super) fn is_plain(message: &Publish<'_>) -> bool {
    let plain = |text: &[u8]| {
        std::str::from_utf8(text).is_ok_and(|text| !text.chars().any(|c| c.is_whitespace() || c.is_control()))
    };
    plain(message.subject) && message.reply.is_none_or(plain)
}

/// The body of `message` without headers.
pub(super) fn payload<'a>(message: &Publish<'a>) -> &'a [u8] {
    let size = message.header_size.and_then(|text| std::str::from_utf8(text).ok()).map_or(Ok(0), str::parse::<usize>);
    size.ok().and_then(|size| message.body.get(size..)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: &str = "[::ffff:192.0.2.7]:4711";

    fn stamped(message: &Publish<'_>) -> (Vec<u8>, String, String) {
        let stamped = Stamped::new(message, PEER.parse().unwrap());
        let on = stamped.on(message);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        assert_eq!((on.subject, on.reply, on.rest), (message.subject, message.reply, None));
        (on.body.to_vec(), text(on.header_size.unwrap()), text(on.total_size))
    }

    #[test]
    fn what_clients_would_stumble_over_is_not_plain() {
        let message = |reply| Publish {
            subject: b"a",
            reply: Some(reply),
            header_size: None,
            total_size: b"0",
            body: b"",
            rest: None,
        };
        assert!(is_plain(&message("_INBOX.ä.b".as_bytes())) && is_plain(&Publish { reply: None, ..message(b"") }));
        for reply in [&b"_INBOX.\xff"[..], b"a\x0bb", b"a\x0cb", "a\u{85}b".as_bytes(), "a\u{2003}b".as_bytes(), b"a\0"]
        {
            assert!(!is_plain(&message(reply)), "{reply:?}");
            assert!(!is_plain(&Publish { subject: reply, ..message(b"r") }), "{reply:?}");
        }
    }

    #[test]
    fn the_payload_comes_behind_the_address_and_no_header_of_the_sender_does() {
        let plain = Publish {
            subject: b"a",
            reply: Some(b"r"),
            header_size: None,
            total_size: b"3",
            body: b"xyz",
            rest: Some(b"r 3\r\nxyz\r\n"),
        };
        let expected = b"NATS/1.0\r\nClient-Address: 192.0.2.7:4711\r\n\r\nxyz";
        assert_eq!(stamped(&plain), (expected.to_vec(), "44".to_owned(), "47".to_owned()));
        for forged in ["NATS/1.0\r\nClient-Address: 203.0.113.1:1\r\n\r\n", "\u{1}\r\n bad", ""] {
            let body = [forged.as_bytes(), b"xyz"].concat();
            let size = forged.len().to_string();
            let with = Publish { header_size: Some(size.as_bytes()), body: &body, ..plain };
            assert_eq!(stamped(&with).0, expected);
        }
    }
}
