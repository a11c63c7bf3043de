//! The language of the scripts: who sends what and what they must read, one step a line.
//!
//! ```text
//! A > SUB foo 1             A sends the line and CRLF; lines in a row go out in one piece
//! A > PU\                   without the CRLF
//! A < MSG foo 1 <n>         A reads exactly this line: <n> is a number, <word> has no blank, <any> is anything
//! A ~ MSG foo 1 1\r\nx      frames in a row may come in any order
//! AB * 60 MSG q 1 1\r\nx    so many frames come to A and B together, and some of them to each
//! A info {"proto":1}        fields of the INFO last read; null is absent or false, "<any>" is anything but that
//! A sync                    A sends PING and reads PONG: what it sent before has been done
//! A tls                     A goes on over TLS; behind it "known" or "stranger" for a certificate to show
//! A first                   A begins with TLS and then reads INFO; certificates as above
//! A mute                    A connects and reads nothing, not even INFO
//! A refused                 A is not let in: it cannot connect, or the end comes at once
//! A alert UnknownCA         A reads the end, which TLS gives this reason for
//! A ends                    A closes its sending side
//! A leaves                  A closes, and is forgotten
//! A closed                  A reads the end, and nothing before it
//! ! lame                    the server becomes a lame duck
//! ! reload                  the server reads its changed configuration
//! A <nats +OK               only nats-server answers so; <orchard, ~nats, ~orchard, "closed nats" and others alike
//! ```
//!
//! `A quiet` and `A modern` send the usual options: neither verbose nor pedantic; modern has headers and no_responders too.
//!
//! A peer is a capital letter. It connects, and reads INFO, when it is first named; at the end everyone who is still there
//! must answer a PING with nothing before PONG. `@` is a token of four letters that is new each time, so that scripts do not
//! hear each other. Escapes: `\r \n \t \0 \s \\ \xNN`; `{x*50}` is fifty times x, `{sig}` the nonce signed by the right key and
//! `{badsig}` by another, `{jwt}` a user's claims (`claims` knows them all).

use super::certificate::Identity;
use super::setup::Setup;

/// One script of the table.
#[derive(Debug, Clone)]
pub struct Case {
    pub name: String,
    pub setup: Setup,
    pub script: String,
    /// Why the two servers differ here on purpose.
    pub because: Option<String>,
    /// Not cut at random, because that is where they differ.
    pub uncut: bool,
    /// The nats-server release (major, minor) before which the real one answers otherwise, and is not asked.
    pub since: Option<(u32, u32)>,
}

/// Reads a file of cases: `== name` begins one, `setup S` holds from there on, `because …` gives the reason for a difference,
/// `uncut` spares the case the random cuts, `since 2.14` spares it older nats-servers,
/// `#` is a comment, everything else a step.
pub fn cases(text: &str) -> Vec<Case> {
    let mut setup = Setup::Open;
    let mut cases: Vec<Case> = Vec::new();
    for line in text.lines().map(str::trim_start).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        match (line.split_once(' ').unwrap_or((line, "")), cases.last_mut()) {
            (("==", name), _) => {
                let (name, script) = (name.to_owned(), String::new());
                cases.push(Case { name, setup, script, because: None, uncut: false, since: None });
            }
            (("setup", name), _) => {
                setup = Setup::named(name).unwrap_or_else(|| panic!("no setup is called {name:?}"));
            }
            (("because", reason), Some(case)) => case.because = Some(reason.to_owned()),
            (("uncut", _), Some(case)) => case.uncut = true,
            (("since", release), Some(case)) => {
                case.since = Some(self::release(release).unwrap_or_else(|| panic!("no release: {release:?}")));
            }
            (_, Some(case)) => case.script.extend([line, "\n"]),
            (_, None) => panic!("a step before the first case: {line:?}"),
        }
    }
    cases
}

/// Major and minor number of a release such as 2.14 or 2.14.6.
pub fn release(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// The two servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Nats,
    Orchard,
}

/// What a script can do to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    Lame,
    Reload,
}

/// One step, and whether only one of the servers takes it.
#[derive(Debug, Clone)]
pub struct Step {
    pub who: Vec<char>,
    pub only: Option<Side>,
    pub action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Send(String),
    Read(String),
    ReadInAnyOrder(String),
    Share(usize, String),
    Info(String),
    Sync,
    Tls(Identity),
    First(Identity),
    Mute,
    Refused,
    Alert(String),
    Change(Change),
    Ends,
    Leaves,
    Closed,
}

const QUIET: &str = r#"CONNECT {"verbose":false,"pedantic":false}\r\n"#;
const MODERN: &str = r#"CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true}\r\n"#;

/// Reads a script.
pub fn parse(script: &str) -> Result<Vec<Step>, String> {
    let mut steps: Vec<Step> = Vec::new();
    for line in script.lines().map(str::trim_start).filter(|line| !line.is_empty()) {
        let wrong = || format!("no step: {line:?}");
        let (who, rest) = line.split_once(' ').ok_or_else(wrong)?;
        if who == "!" {
            let change = match rest {
                "lame" => Change::Lame,
                "reload" => Change::Reload,
                _ => return Err(wrong()),
            };
            steps.push(Step { who: Vec::new(), only: None, action: Action::Change(change) });
            continue;
        }
        if who.is_empty() || !who.chars().all(|c| c.is_ascii_uppercase()) {
            return Err(wrong());
        }
        let (verb, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let (verb, mut only) = match verb {
            _ if verb.ends_with("nats") => (verb.trim_end_matches("nats"), Some(Side::Nats)),
            _ if verb.ends_with("orchard") => (verb.trim_end_matches("orchard"), Some(Side::Orchard)),
            _ => (verb, None),
        };
        if matches!(verb, "closed" | "sync") {
            only = match rest {
                "nats" => Some(Side::Nats),
                "orchard" => Some(Side::Orchard),
                _ => only,
            };
        }
        let terminated = |text: &str| match text.strip_suffix('\\').filter(|text| !text.ends_with('\\')) {
            Some(unended) => unended.to_owned(),
            None => format!("{text}\\r\\n"),
        };
        let identity = || match rest {
            "" => Ok(Identity::Nobody),
            "known" => Ok(Identity::Known),
            "stranger" => Ok(Identity::Stranger),
            _ => Err(wrong()),
        };
        let action = match verb {
            ">" => Action::Send(terminated(rest)),
            "<" => Action::Read(terminated(rest)),
            "~" => Action::ReadInAnyOrder(terminated(rest)),
            "*" => {
                let (count, frame) = rest.split_once(' ').ok_or_else(wrong)?;
                Action::Share(count.parse().map_err(|_| wrong())?, terminated(frame))
            }
            "info" => Action::Info(rest.to_owned()),
            "quiet" => Action::Send(QUIET.into()),
            "modern" => Action::Send(MODERN.into()),
            "sync" => Action::Sync,
            "tls" => Action::Tls(identity()?),
            "first" => Action::First(identity()?),
            "mute" => Action::Mute,
            "refused" => Action::Refused,
            "alert" => Action::Alert(rest.to_owned()),
            "ends" => Action::Ends,
            "leaves" => Action::Leaves,
            "closed" => Action::Closed,
            _ => return Err(wrong()),
        };
        let who: Vec<char> = who.chars().collect();
        match (steps.last_mut(), action) {
            (Some(Step { who: last, only: same, action: Action::Send(before) }), Action::Send(more))
                if *last == who && *same == only =>
            {
                before.push_str(&more);
            }
            (_, action) => steps.push(Step { who, only, action }),
        }
    }
    Ok(steps)
}

/// The bytes that `text` stands for; `fill` knows what stands in braces, but for repetitions.
pub fn bytes(text: &str, token: &str, fill: impl Fn(&str) -> String) -> Vec<u8> {
    let text = text.replace('@', token);
    let mut out = Vec::new();
    let mut rest = text.as_str();
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '\\' => {
                let escape = rest.chars().next().expect("something behind a backslash");
                rest = &rest[escape.len_utf8()..];
                match escape {
                    'r' => out.push(b'\r'),
                    'n' => out.push(b'\n'),
                    't' => out.push(b'\t'),
                    '0' => out.push(0),
                    's' => out.push(b' '),
                    'x' => {
                        out.push(u8::from_str_radix(&rest[..2], 16).unwrap());
                        rest = &rest[2..];
                    }
                    other => out.extend_from_slice(other.to_string().as_bytes()),
                }
            }
            // JSON has braces of its own: only what looks like one of ours is one.
            '{' => match rest.split_once('}').filter(|(inner, _)| is_ours(inner)) {
                Some((inner, after)) => {
                    match inner.rsplit_once('*') {
                        Some((what, times)) => out.extend(what.repeat(times.parse().unwrap()).bytes()),
                        None => out.extend(fill(inner).bytes()),
                    }
                    rest = after;
                }
                None => out.push(b'{'),
            },
            other => out.extend(other.to_string().bytes()),
        }
    }
    out
}

fn is_ours(inner: &str) -> bool {
    matches!(inner, "sig" | "badsig" | "key" | "otherkey")
        || inner.ends_with("jwt") && inner.bytes().all(|b| b.is_ascii_lowercase())
        || inner.rsplit_once('*').is_some_and(|(what, times)| !what.contains('"') && times.parse::<usize>().is_ok())
}

/// Whether `line` is what `pattern` says.
pub fn fits(pattern: &[u8], line: &[u8]) -> bool {
    let is_digit = |b: &u8| b.is_ascii_digit();
    let is_word = |b: &u8| !b.is_ascii_whitespace();
    let is_text = |b: &u8| !matches!(b, b'\r' | b'\n');
    type Class<'a> = (&'a [u8], &'a dyn Fn(&u8) -> bool);
    let wild: [Class<'_>; 3] = [(b"<n>", &is_digit), (b"<word>", &is_word), (b"<any>", &is_text)];
    for (name, may) in wild {
        if let Some(after) = pattern.strip_prefix(name) {
            let most = line.iter().take_while(|b| may(b)).count();
            return (1..=most).rev().any(|count| fits(after, &line[count..]));
        }
    }
    let same = pattern.iter().zip(line).take_while(|(p, l)| p == l && **p != b'<').count();
    match (&pattern[same..], &line[same..]) {
        ([], []) => true,
        (pattern, line) if pattern.starts_with(b"<") && same > 0 => fits(pattern, line),
        ([b'<', pattern @ ..], [b'<', line @ ..]) => fits(pattern, line),
        _ => false,
    }
}

#[test]
fn scripts_say_what_they_seem_to() {
    let steps = parse("A tls known\n! reload\nA alert UnknownCA").unwrap();
    assert_eq!(steps[0].action, Action::Tls(Identity::Known));
    assert_eq!((&steps[1].action, steps[1].who.len()), (&Action::Change(Change::Reload), 0));
    assert_eq!(steps[2].action, Action::Alert("UnknownCA".into()));
    let steps = parse("A > SUB @ 1\nA > X\\\nA <nats {a*3}\nAB * 4 m\nA closed orchard").unwrap();
    assert_eq!(steps.len(), 4);
    let Action::Send(text) = &steps[0].action else { panic!("{steps:?}") };
    assert_eq!(bytes(text, "wxyz", |_| String::new()), b"SUB wxyz 1\r\nX");
    let Action::Read(text) = &steps[1].action else { panic!("{steps:?}") };
    assert_eq!((bytes(text, "", |_| String::new()).as_slice(), steps[1].only), (&b"aaa\r\n"[..], Some(Side::Nats)));
    assert_eq!(steps[3].only, Some(Side::Orchard));
    assert_eq!(bytes(r#"{"a":1}\x41\s{sig}"#, "", str::to_uppercase), br#"{"a":1}A SIG"#);
    for wrong in ["a > x", "A ? x", "! x", "A tls x"] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
    assert!(fits(b"MSG <word> 1 <n>\r\n", b"MSG a.b 1 22\r\n") && !fits(b"<n>", b"x") && fits(b"a<any>z", b"a b zz"));
}
