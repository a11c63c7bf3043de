//! Tells the receiver of a message from where its sender is connected, if the authenticator wants it so. Called by a
//! connection for each such message. Pure.
//!
//! What the sender put into headers itself is dropped then: it could say another address, and a receiver whose client
//! takes bad headers for a broken connection could be disconnected at will. All that is let through, written anew, are the
//! names by which requests are followed ([`FOLLOWED`]), where they are plain words. The same could be done with a subject or
//! a reply that is no plain text: such a message is refused.

use std::net::SocketAddr;

use super::protocol::Publish;

/// The header with the sender's address and port.
pub const CLIENT_ADDRESS: &str = "Client-Address";

/// Headers that are let through: the name that who asks gives a request, and the trace that it belongs to.
pub const FOLLOWED: [&str; 2] = ["Orchard-Request-Id", "traceparent"];
/// The longest value of one, in bytes.
const MAX_FOLLOWED: usize = 64;

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
        let followed = followed(message);
        let header = format!("NATS/1.0\r\n{CLIENT_ADDRESS}: {}\r\n{followed}\r\n", SocketAddr::new(ip, peer.port()));
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

/// Those of the sender's headers that are let through, each once, as lines.
fn followed(message: &Publish<'_>) -> String {
    let header = message.body.get(..header_size(message)).and_then(|header| std::str::from_utf8(header).ok());
    let mut lines = String::new();
    for name in FOLLOWED {
        let said = |line: &str| {
            let (said, value) = line.split_once(':')?;
            let value = value.trim_matches(' ');
            let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            let word = !value.is_empty() && value.len() <= MAX_FOLLOWED && value.chars().all(fine);
            (word && said.eq_ignore_ascii_case(name)).then(|| format!("{name}: {value}\r\n"))
        };
        lines.extend(header.unwrap_or_default().split("\r\n").skip(1).find_map(said));
    }
    lines
}

/// How much of the body is headers; more than there can be when that makes no sense.
fn header_size(message: &Publish<'_>) -> usize {
    let read = |text| std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
    message.header_size.map_or(0, read)
}

/// The body of `message` without headers.
pub(super) fn payload<'a>(message: &Publish<'a>) -> &'a [u8] {
    message.body.get(header_size(message)..).unwrap_or_default()
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

    #[test]
    fn names_by_which_requests_are_followed_are_let_through_where_they_are_plain_words() {
        let let_through = |headers: &str| {
            let (head, size) = (format!("NATS/1.0\r\n{headers}\r\n"), headers.len() + 12);
            let size = size.to_string();
            let body = [head.as_bytes(), b"xyz"].concat();
            let (header_size, total_size) = (Some(size.as_bytes()), b"0".as_slice());
            let message =
                Publish { subject: b"a", reply: Some(b"r"), header_size, total_size, body: &body, rest: None };
            let (body, size, _) = stamped(&message);
            assert_eq!(&body[size.parse::<usize>().unwrap()..], b"xyz");
            String::from_utf8(body).unwrap().split_once("4711\r\n").unwrap().1.replace("\r\nxyz", "")
        };
        let trace = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";
        let both = format!("{trace}X: y\r\norchard-request-id:r-1\r\nOrchard-Request-Id: r-2\r\n");
        assert_eq!(let_through(&both), format!("Orchard-Request-Id: r-1\r\n{trace}"));
        for bad in ["", "a b", "a\u{85}b", "a\rb", &"x".repeat(65), "a:b"] {
            assert_eq!(let_through(&format!("Orchard-Request-Id: {bad}\r\n")), "", "{bad:?}");
        }
    }
}
