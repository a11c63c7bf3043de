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
        let line = trim(input.get(args_start..end).unwrap_or_default());
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

/// What stands between arguments; other control characters, a form feed too, are part of them.
#[inline]
fn is_blank(byte: &u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\r')
}

/// `line` without the blanks around it.
#[inline]
fn trim(mut line: &[u8]) -> &[u8] {
    while let [first, rest @ ..] = line
        && is_blank(first)
    {
        line = rest;
    }
    while let [rest @ .., last] = line
        && is_blank(last)
    {
        line = rest;
    }
    line
}

/// Splits at blanks into at most `N` parts; `None` when there are more.
#[inline]
fn split<const N: usize>(line: &[u8]) -> Option<([&[u8]; N], usize)> {
    let mut parts: [&[u8]; N] = [&[]; N];
    let mut count = 0;
    let mut start = None;
    for (at, byte) in line.iter().enumerate() {
        let blank = is_blank(byte);
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
mod tests;
