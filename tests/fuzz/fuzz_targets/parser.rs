//! Any bytes, cut anywhere, under any bounds: the parser gives what it gives for the whole, asks for nothing it may not
//! have, and never panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orchard_fuzz::Choices;
use orchard_fuzz::protocol::parse::{Bounds, Parser};
use orchard_fuzz::protocol::{Fault, Op};

/// What a client of the parser sees: the operations, how many bytes they took, and the end.
type Seen = (Vec<(String, usize)>, Option<Fault>);

fn feed<'a>(pieces: impl Iterator<Item = &'a [u8]>, bounds: &Bounds) -> Seen {
    let (mut parser, mut buffer, mut seen) = (Parser::default(), Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match parser.next(&buffer, bounds) {
                Ok(Some((op, used))) => {
                    assert!(used > 0 && used <= buffer.len());
                    check(&op, bounds);
                    seen.push((format!("{op:?}"), used));
                    buffer.drain(..used);
                }
                Ok(None) => {
                    // Whoever sends slowly cannot make the broker hold more than one operation of the largest size.
                    let most = bounds.control_line + bounds.payload + 32;
                    assert!(parser.need() <= most && buffer.len() <= most, "{} {}", parser.need(), buffer.len());
                    break;
                }
                Err(fault) => return (seen, Some(fault)),
            }
        }
    }
    (seen, None)
}

fn check(op: &Op<'_>, bounds: &Bounds) {
    let blank = |word: &[u8]| word.is_empty() || word.iter().any(|b| matches!(b, b' ' | b'\t' | b'\r' | b'\n'));
    match op {
        Op::Publish(message) => {
            assert!(message.body.len() <= bounds.payload && !blank(message.subject));
            assert!(message.reply.is_none_or(|reply| !blank(reply)));
            let total: usize = std::str::from_utf8(message.total_size).unwrap().parse().unwrap();
            assert_eq!(total, message.body.len());
            if let Some(header) = message.header_size {
                assert!(std::str::from_utf8(header).unwrap().parse::<usize>().unwrap() <= total);
            }
            if let Some(rest) = message.rest {
                let mut line = Vec::new();
                orchard_fuzz::protocol::encode::message_line(&mut line, message, b"s");
                let start = if message.header_size.is_some() { 5 } else { 4 } + message.subject.len() + 3;
                line.extend_from_slice(message.body);
                line.extend_from_slice(b"\r\n");
                assert_eq!(&line[start..], rest, "what is passed on is what would have been written");
            }
        }
        Op::Subscribe { subject, queue, sid } => {
            assert!(!blank(subject) && !blank(sid) && queue.is_none_or(|queue| !blank(queue)));
        }
        Op::Unsubscribe { sid, .. } => assert!(!blank(sid)),
        _ => {}
    }
}

fuzz_target!(|data: &[u8]| {
    let mut choices = Choices(data);
    let bounds = Bounds { control_line: [8, 64, 4096][choices.below(3)], payload: [0, 16, 100][choices.below(3)] };
    let size = [1, 2, 3, 7, 64][choices.below(5)];
    let input = choices.0;
    let whole = feed(std::iter::once(input), &bounds);
    assert_eq!(whole, feed(input.chunks(size), &bounds), "cut into pieces of {size}");
});
