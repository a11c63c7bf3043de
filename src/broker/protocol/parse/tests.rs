//! Tests of the parser: each operation and fault, and that neither cuts nor nonsense confuse it.

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
