//! Incremental parser: bytes in, operations out, without copying. Pure; it never panics, whatever the bytes.
//!
//! The connection task calls [`Parser::next`] with everything it has and not yet consumed; the parser remembers how much
//! of an unfinished operation it has looked at, so that slow peers cannot make it look again and again.

use std::collections::HashMap;

use serde::de::IgnoredAny;

use super::{Fault, Op, Publish};

/// Limits that the parser itself enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Longest line after the operation's name, in bytes.
    pub control_line: usize,
    /// Largest body, in bytes, headers included.
    pub payload: usize,
}

/// Progress on one connection's stream of bytes.
#[derive(Debug, Default)]
pub struct Parser {
    /// Bytes of the unfinished operation that hold no line end.
    scanned: usize,
    /// Bytes of the unfinished operation without which there is no progress.
    need: usize,
}

impl Parser {
    /// The next whole operation at the start of `input` and how many bytes it takes; `None` when it is not complete yet.
    /// The caller passes the same bytes again, and more, after `None`.
    ///
    /// # Errors
    /// The connection cannot go on; see [`Fault`].
    pub fn next<'a>(&mut self, input: &'a [u8], bounds: &Bounds) -> Result<Option<(Op<'a>, usize)>, Fault> {
        if input.len() < self.need {
            return Ok(None);
        }
        let Some(verb) = Verb::recognise(input)? else { return Ok(None) };
        let Some(args_start) = verb.args_start(input)? else { return Ok(None) };
        let from = self.scanned.max(args_start);
        let Some(end) = input.get(from..).and_then(|rest| memchr::memchr(b'\n', rest)) else {
            self.scanned = input.len();
            // One more for a CR that does not count.
            return if input.len() - args_start > bounds.control_line + 1 { Err(Fault::ControlLine) } else { Ok(None) };
        };
        let end = from + end;
        if end - args_start > bounds.control_line + 1 {
            return Err(Fault::ControlLine);
        }
        let line = input.get(args_start..end).unwrap_or_default().trim_ascii();
        let after = end + 1;
        let whole = match verb {
            Verb::Pub | Verb::Hpub => match publish(verb, line, input.get(after..).unwrap_or_default(), bounds)? {
                Body::Whole(mut message, length) => {
                    message.rest = rest(&message, input.get(args_start..after + length).unwrap_or_default());
                    (Op::Publish(message), after + length)
                }
                Body::Needs(length) => {
                    self.scanned = end;
                    self.need = after + length;
                    return Ok(None);
                }
            },
            Verb::Sub => (subscribe(line)?, after),
            Verb::Unsub => (unsubscribe(line)?, after),
            Verb::Connect => (Op::Connect(line), after),
            Verb::Ping => (Op::Ping, after),
            Verb::Pong => (Op::Pong, after),
            Verb::Info if !is_object(line) => return Err(Fault::Malformed),
            Verb::Ok | Verb::Info => (Op::Noise, after),
            Verb::Err => (Op::ClientError, after),
        };
        self.scanned = 0;
        self.need = 0;
        Ok(Some(whole))
    }

    /// Bytes that the unfinished operation takes in all, as far as known: room the caller does well to have.
    pub fn need(&self) -> usize {
        self.need
    }
}

/// Operation names, longest first where one begins like another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Pub,
    Hpub,
    Sub,
    Unsub,
    Ping,
    Pong,
    Connect,
    Ok,
    Err,
    Info,
}

const VERBS: [(&[u8], Verb); 10] = [
    (b"PUB", Verb::Pub),
    (b"HPUB", Verb::Hpub),
    (b"SUB", Verb::Sub),
    (b"UNSUB", Verb::Unsub),
    (b"PING", Verb::Ping),
    (b"PONG", Verb::Pong),
    (b"CONNECT", Verb::Connect),
    (b"+OK", Verb::Ok),
    (b"-ERR", Verb::Err),
    (b"INFO", Verb::Info),
];

impl Verb {
    /// The operation that `input` begins with; `None` while it could still become one.
    #[inline]
    fn recognise(input: &[u8]) -> Result<Option<Self>, Fault> {
        if input.starts_with(b"PUB") {
            return Ok(Some(Self::Pub)); // most of all traffic
        }
        for (name, verb) in VERBS {
            let have = input.len().min(name.len());
            let same =
                input.get(..have).is_some_and(|head| head.eq_ignore_ascii_case(name.get(..have).unwrap_or(name)));
            if same {
                return Ok((have == name.len()).then_some(verb));
            }
        }
        Err(Fault::UnknownOperation)
    }

    fn name_len(self) -> usize {
        VERBS.iter().find(|(_, verb)| *verb == self).map_or(0, |(name, _)| name.len())
    }

    /// Where the arguments begin. Operations with arguments need a blank in front of them.
    #[inline]
    fn args_start(self, input: &[u8]) -> Result<Option<usize>, Fault> {
        let start = if self == Self::Pub { 3 } else { self.name_len() };
        if matches!(self, Self::Pub | Self::Hpub | Self::Sub | Self::Unsub | Self::Err) {
            match input.get(start) {
                None => return Ok(None),
                Some(b' ' | b'\t') => return Ok(Some(start + 1)),
                Some(_) => return Err(Fault::UnknownOperation),
            }
        }
        Ok(Some(start))
    }
}

/// Whether `line` is a JSON object, or null; whatever is in it.
fn is_object(line: &[u8]) -> bool {
    serde_json::from_slice::<Option<HashMap<String, IgnoredAny>>>(line).is_ok()
}

/// Reads a size: one to nine digits, as nats-server takes them.
pub fn size(text: &[u8]) -> Option<usize> {
    if text.is_empty() || text.len() > 9 {
        return None;
    }
    text.iter().try_fold(0usize, |sum, c| c.is_ascii_digit().then(|| sum * 10 + usize::from(c - b'0')))
}

/// Splits at blanks into at most `N` parts; `None` when there are more.
#[inline]
fn split<const N: usize>(line: &[u8]) -> Option<([&[u8]; N], usize)> {
    let mut parts: [&[u8]; N] = [&[]; N];
    let mut count = 0;
    let mut start = None;
    for (at, byte) in line.iter().enumerate() {
        let blank = matches!(byte, b' ' | b'\t' | b'\r');
        match (blank, start) {
            (false, None) => start = Some(at),
            (true, Some(from)) => {
                *parts.get_mut(count)? = line.get(from..at)?;
                count += 1;
                start = None;
            }
            _ => {}
        }
    }
    if let Some(from) = start {
        *parts.get_mut(count)? = line.get(from..)?;
        count += 1;
    }
    Some((parts, count))
}

enum Body<'a> {
    Whole(Publish<'a>, usize),
    Needs(usize),
}

#[inline]
fn publish<'a>(verb: Verb, line: &'a [u8], rest: &'a [u8], bounds: &Bounds) -> Result<Body<'a>, Fault> {
    let (parts, count) = split::<4>(line).ok_or(Fault::Malformed)?;
    let (subject, reply, mut header_size, total_size) = match (verb, parts, count) {
        (Verb::Pub, [subject, total, ..], 2) => (subject, None, None, total),
        (Verb::Pub, [subject, reply, total, _], 3) => (subject, Some(reply), None, total),
        (Verb::Hpub, [subject, header, total, _], 3) => (subject, None, Some(header), total),
        (Verb::Hpub, [subject, reply, header, total], 4) => (subject, Some(reply), Some(header), total),
        _ => return Err(Fault::Malformed),
    };
    let total = size(total_size).ok_or(Fault::Malformed)?;
    if let Some(header) = header_size {
        match size(header) {
            Some(0) => header_size = None, // no headers: to subscribers it is as if published by PUB
            Some(header) if header <= total => {}
            _ => return Err(Fault::Malformed),
        }
    }
    if total > bounds.payload {
        return Err(Fault::Payload);
    }
    match (rest.get(..total), rest.get(total..total + 2)) {
        (Some(body), Some(b"\r\n")) => {
            Ok(Body::Whole(Publish { subject, reply, header_size, total_size, body, rest: None }, total + 2))
        }
        (_, Some(_)) => Err(Fault::UnknownOperation),
        _ => Ok(Body::Needs(total + 2)),
    }
}

/// What of `frame`, which begins with the arguments, can be passed on as it is: see [`Publish::rest`].
#[inline]
fn rest<'a>(message: &Publish<'_>, frame: &'a [u8]) -> Option<&'a [u8]> {
    let mut at = 0;
    for part in [Some(message.subject), message.reply, message.header_size].into_iter().flatten() {
        at += part.len();
        if frame.get(at) != Some(&b' ') {
            return None;
        }
        at += 1;
    }
    let after_subject = message.subject.len() + 1;
    let line_end = at + message.total_size.len();
    let whole = line_end + 2 + message.body.len() + 2;
    // Only if nothing stands between the parts does everything add up.
    (frame.len() == whole && frame.get(line_end) == Some(&b'\r')).then(|| frame.get(after_subject..)).flatten()
}

fn subscribe(line: &[u8]) -> Result<Op<'_>, Fault> {
    match split::<3>(line) {
        Some(([subject, sid, _], 2)) => Ok(Op::Subscribe { subject, queue: None, sid }),
        Some(([subject, queue, sid], 3)) => Ok(Op::Subscribe { subject, queue: Some(queue), sid }),
        _ => Err(Fault::Malformed),
    }
}

fn unsubscribe(line: &[u8]) -> Result<Op<'_>, Fault> {
    match split::<2>(line) {
        Some(([sid, _], 1)) => Ok(Op::Unsubscribe { sid, max: 0 }),
        // A count that is no number ends the subscription now, as in nats-server.
        Some(([sid, max], 2)) => Ok(Op::Unsubscribe { sid, max: size(max).unwrap_or(0) as u64 }),
        _ => Err(Fault::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { control_line: 64, payload: 100 };

    /// Feeds `pieces` one after the other as a connection would; yields the operations' debug texts and the end.
    fn feed(pieces: &[&[u8]]) -> (Vec<String>, Option<Fault>) {
        let (mut parser, mut buffer, mut seen) = (Parser::default(), Vec::new(), Vec::new());
        for piece in pieces {
            buffer.extend_from_slice(piece);
            loop {
                match parser.next(&buffer, &BOUNDS) {
                    Ok(Some((op, used))) => {
                        seen.push(format!("{op:?}"));
                        buffer.drain(..used);
                    }
                    Ok(None) => break,
                    Err(fault) => return (seen, Some(fault)),
                }
            }
        }
        (seen, None)
    }

    fn one(input: &[u8]) -> Result<Option<Op<'_>>, Fault> {
        Parser::default().next(input, &BOUNDS).map(|found| {
            found.map(|(op, used)| {
                assert_eq!(used, input.len(), "takes the whole operation");
                op
            })
        })
    }

    #[test]
    fn operations_in_any_case_and_spacing() {
        for (input, expected) in [
            (&b"PING\r\n"[..], Op::Ping),
            (b"ping\n", Op::Ping),
            (b"PiNg and more\r\n", Op::Ping),
            (b"pong\r\n", Op::Pong),
            (b"+ok\r\n", Op::Noise),
            (b"INFO {}\r\n", Op::Noise),
            (b"-ERR 'x'\r\n", Op::ClientError),
            (b"CONNECT {}\r\n", Op::Connect(b"{}")),
            (b"SUB a.* 1\r\n", Op::Subscribe { subject: b"a.*", queue: None, sid: b"1" }),
            (b"sub\ta  q\t 1 \r\n", Op::Subscribe { subject: b"a", queue: Some(b"q"), sid: b"1" }),
            (b"UNSUB 1\r\n", Op::Unsubscribe { sid: b"1", max: 0 }),
            (b"UNSUB 1 5\r\n", Op::Unsubscribe { sid: b"1", max: 5 }),
            (b"UNSUB 1 x\r\n", Op::Unsubscribe { sid: b"1", max: 0 }),
        ] {
            assert_eq!(one(input), Ok(Some(expected)), "{}", input.escape_ascii());
        }
    }

    #[test]
    fn messages() {
        let plain = Publish {
            subject: b"a",
            reply: None,
            header_size: None,
            total_size: b"2",
            body: b"\r\n",
            rest: Some(b"2\r\n\r\n\r\n"),
        };
        assert_eq!(one(b"PUB a 2\r\n\r\n\r\n"), Ok(Some(Op::Publish(plain))));
        let reply = Publish { reply: Some(b"r"), total_size: b"02", rest: None, ..plain };
        assert_eq!(one(b"pub  a\tr 02 \r\n\r\n\r\n"), Ok(Some(Op::Publish(reply))));
        let headers = Publish { header_size: Some(b"1"), body: b"xy", rest: Some(b"1 2\r\nxy\r\n"), ..plain };
        assert_eq!(one(b"HPUB a 1 2\r\nxy\r\n"), Ok(Some(Op::Publish(headers))));
        let empty = Publish { rest: None, ..plain };
        assert_eq!(one(b"HPUB a 0 2\r\n\r\n\r\n"), Ok(Some(Op::Publish(empty))));
        let both = Publish { reply: Some(b"r"), rest: Some(b"r 1 2\r\nxy\r\n"), ..headers };
        assert_eq!(one(b"HPUB a r 1 2\r\nxy\r\n"), Ok(Some(Op::Publish(both))));
    }

    #[test]
    fn faults() {
        let long = [b"SUB ", &[b'a'; 70][..], b" 1\r\n"].concat();
        let endless = [b"SUB ", &[b'a'; 70][..]].concat();
        for (input, fault) in [
            (&b"FOO\r\n"[..], Fault::UnknownOperation),
            (b"F", Fault::UnknownOperation),
            (b"\r\n", Fault::UnknownOperation),
            (b" PING\r\n", Fault::UnknownOperation),
            (b"PUB\r\n", Fault::UnknownOperation),
            (b"SUBS a 1\r\n", Fault::UnknownOperation),
            (b"MSG a 1 2\r\n", Fault::UnknownOperation),
            (b"PUB a\r\n", Fault::Malformed),
            (b"PUB a x\r\n", Fault::Malformed),
            (b"PUB a -1\r\n", Fault::Malformed),
            (b"PUB a 99999999999999999999\r\n", Fault::Malformed),
            (b"PUB a b c 1\r\n", Fault::Malformed),
            (b"PUB a b c d 1\r\n", Fault::Malformed),
            (b"PUB a 101\r\n", Fault::Payload),
            (b"PUB a 2\r\nabc\r\n", Fault::UnknownOperation),
            (b"PUB a 2\r\nab\nPING\r\n", Fault::UnknownOperation),
            (b"HPUB a 3 2\r\n", Fault::Malformed),
            (b"HPUB a 3\r\n", Fault::Malformed),
            (b"SUB a\r\n", Fault::Malformed),
            (b"SUB a b c d\r\n", Fault::Malformed),
            (b"UNSUB \r\n", Fault::Malformed),
            (b"INFO\r\n", Fault::Malformed),
            (b"INFO {x\r\n", Fault::Malformed),
            (b"-ERR\r\n", Fault::UnknownOperation),
            (b"UNSUB 1 2 3\r\n", Fault::Malformed),
            (&long, Fault::ControlLine),
            (&endless, Fault::ControlLine),
        ] {
            assert_eq!(one(input), Err(fault), "{}", input.escape_ascii());
        }
    }

    #[test]
    fn only_what_is_spaced_like_a_message_is_passed_on_as_it_is() {
        for (input, expected) in [
            (&b"PUB a 1\r\nx\r\n"[..], Some(&b"1\r\nx\r\n"[..])),
            (b"PUB a r 1\r\nx\r\n", Some(b"r 1\r\nx\r\n")),
            (b"PUB  a 1\r\nx\r\n", None),
            (b"PUB a  1\r\nx\r\n", None),
            (b"PUB a 1 \r\nx\r\n", None),
            (b"PUB a 1\nx\r\n", None),
            (b"PUB a\t1\r\nx\r\n", None),
            (b"PUB a r  1\r\nx\r\n", None),
            (b"HPUB a 0 1\r\nx\r\n", None),
        ] {
            let Ok(Some(Op::Publish(message))) = one(input) else { panic!("{}", input.escape_ascii()) };
            assert_eq!(message.rest, expected, "{}", input.escape_ascii());
        }
    }

    /// Streams of mostly sound operations, now and then broken.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let body = prop::collection::vec(any::<u8>(), 0..20);
        let op = prop_oneof![
            Just(b"PING\r\n".to_vec()),
            Just(b"pOnG\n".to_vec()),
            Just(b"CONNECT {\"a\":1}\r\n".to_vec()),
            Just(b"SUB a.> q 1\r\n".to_vec()),
            Just(b"UNSUB 1 2\r\n".to_vec()),
            body.clone().prop_map(|b| [format!("PUB a r {}\r\n", b.len()).as_bytes(), &b, b"\r\n"].concat()),
            body.clone().prop_map(|b| [format!("HPUB a 0 {}\r\n", b.len()).as_bytes(), &b, b"\r\n"].concat()),
            prop::collection::vec(any::<u8>(), 0..4),
        ];
        prop::collection::vec(op, 0..12).prop_map(|ops| ops.concat())
    }

    proptest! {
        #[test]
        fn any_split_gives_what_the_whole_gives(
            input in stream(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(input.len() + 1)).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts {
                pieces.push(&input[from..cut]);
                from = cut;
            }
            pieces.push(&input[from..]);
            prop_assert_eq!(feed(&pieces), feed(&[&input]));
            let bytes: Vec<&[u8]> = input.chunks(1).collect();
            prop_assert_eq!(feed(&bytes), feed(&[&input]));
        }

        #[test]
        fn no_bytes_make_it_panic(input in prop::collection::vec(any::<u8>(), 0..200), verb in 0..10usize) {
            let _ = feed(&[&input]);
            let _ = feed(&[VERBS[verb].0, b" ", &input]);
        }
    }
}
