//! Frames from server to client. Pure; called while routing (messages) and by the connection task (everything else).

use super::{Fault, Publish, ServerInfo};

/// Answer to PING.
pub const PONG: &[u8] = b"PONG\r\n";
/// Asks the client whether it is there.
pub const PING: &[u8] = b"PING\r\n";
/// Answer to each accepted operation of a verbose client.
pub const OK: &[u8] = b"+OK\r\n";
/// End of a line and of a body.
pub const CRLF: &[u8] = b"\r\n";

/// Appends `INFO <json>`.
pub fn info(out: &mut Vec<u8>, info: &ServerInfo) {
    out.extend_from_slice(b"INFO ");
    // Strings, numbers and booleans only: writing it to memory cannot fail.
    let json = serde_json::to_vec(info).unwrap_or_default();
    out.extend_from_slice(&json);
    out.extend_from_slice(CRLF);
}

/// Appends `-ERR '<text>'`, unless it is one that clients are not told.
pub fn error(out: &mut Vec<u8>, fault: &Fault) {
    if fault.is_told() {
        out.extend_from_slice(format!("-ERR '{fault}'\r\n").as_bytes());
    }
}

/// Appends the line in front of a message's body: `MSG`, or `HMSG` when it has headers. For a receiver that does not
/// understand them, the caller takes them off first.
pub fn message_line(out: &mut Vec<u8>, message: &Publish<'_>, sid: &[u8]) {
    // 5 for HMSG, one space after each part, CRLF; all in one growth of the buffer.
    let reply = message.reply.map_or(0, <[u8]>::len);
    let header = message.header_size.map_or(0, <[u8]>::len);
    out.reserve(12 + message.subject.len() + sid.len() + reply + header + message.total_size.len());
    out.extend_from_slice(if message.header_size.is_some() { b"HMSG " } else { b"MSG " });
    out.extend_from_slice(message.subject);
    out.push(b' ');
    out.extend_from_slice(sid);
    out.push(b' ');
    if let Some(reply) = message.reply {
        out.extend_from_slice(reply);
        out.push(b' ');
    }
    if let Some(size) = message.header_size {
        out.extend_from_slice(size);
        out.push(b' ');
    }
    out.extend_from_slice(message.total_size);
    out.extend_from_slice(CRLF);
}

/// `HMSG <subject> <sid> `: what every message on `subject` begins with for that subscription. Without its first byte it is
/// for messages without headers.
pub fn prefix(subject: &[u8], sid: &[u8]) -> Box<[u8]> {
    [b"HMSG ", subject, b" ", sid, b" "].concat().into()
}

/// Appends a message that can be passed on as it came, behind the receiver's [`prefix`].
#[inline]
pub fn passed_on(out: &mut Vec<u8>, prefix: &[u8], has_headers: bool, rest: &[u8]) {
    let prefix = prefix.get(usize::from(!has_headers)..).unwrap_or_default();
    out.reserve(prefix.len() + rest.len());
    out.extend_from_slice(prefix);
    out.extend_from_slice(rest);
}

/// Appends the status that tells a requester at once that nobody listens on `subject`: 503, and which subject it was.
pub fn no_responders(out: &mut Vec<u8>, reply: &[u8], sid: &[u8], subject: &[u8]) {
    const STATUS: &[u8] = b"NATS/1.0 503\r\nNats-Subject: ";
    let size = STATUS.len() + subject.len() + 2 * CRLF.len();
    out.extend_from_slice(b"HMSG ");
    out.extend_from_slice(reply);
    out.push(b' ');
    out.extend_from_slice(sid);
    out.extend_from_slice(format!(" {size} {size}\r\n").as_bytes());
    out.extend_from_slice(STATUS);
    out.extend_from_slice(subject);
    out.extend_from_slice(b"\r\n\r\n\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &Publish<'_>) -> String {
        let mut out = Vec::new();
        message_line(&mut out, message, b"7");
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn message_lines_carry_what_was_published() {
        let mut message =
            Publish { subject: b"a.b", reply: None, header_size: None, total_size: b"03", body: b"xyz", rest: None };
        assert_eq!(line(&message), "MSG a.b 7 03\r\n");
        message.reply = Some(b"r");
        assert_eq!(line(&message), "MSG a.b 7 r 03\r\n");
        message.header_size = Some(b"2");
        assert_eq!(line(&message), "HMSG a.b 7 r 2 03\r\n");
    }

    #[test]
    fn passing_on_gives_the_same_frame() {
        let mut out = Vec::new();
        passed_on(&mut out, &prefix(b"a.b", b"7"), false, b"r 3\r\nxyz\r\n");
        passed_on(&mut out, &prefix(b"a.b", b"7"), true, b"1 3\r\nxyz\r\n");
        assert_eq!(out, b"MSG a.b 7 r 3\r\nxyz\r\nHMSG a.b 7 1 3\r\nxyz\r\n");
    }

    #[test]
    fn no_responders_counts_its_own_bytes() {
        let mut out = Vec::new();
        no_responders(&mut out, b"r.1", b"7", b"nobody");
        assert_eq!(out, b"HMSG r.1 7 38 38\r\nNATS/1.0 503\r\nNats-Subject: nobody\r\n\r\n\r\n");
    }

    #[test]
    fn malformed_is_not_told() {
        let mut out = Vec::new();
        error(&mut out, &Fault::Malformed);
        assert!(out.is_empty());
        error(&mut out, &Fault::Authorization);
        assert_eq!(out, b"-ERR 'Authorization Violation'\r\n");
    }
}
