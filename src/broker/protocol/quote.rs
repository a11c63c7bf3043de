//! Subjects as nats-server quotes them in what it tells clients: Go's `%q`. Pure; used by the texts of faults.

use std::fmt::{self, Display, Formatter, Write};

/// Bytes that are shown between double quotes: what cannot be printed is escaped, as are bytes that are no UTF-8.
#[derive(Debug, Clone, Copy)]
pub struct Quoted<'a>(pub &'a [u8]);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for chunk in self.0.utf8_chunks() {
            chunk.valid().chars().try_for_each(|c| character(f, c))?;
            chunk.invalid().iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
        }
        f.write_char('"')
    }
}

fn character(f: &mut Formatter<'_>, c: char) -> fmt::Result {
    match c {
        '"' | '\\' => write!(f, "\\{c}"),
        '\x07' => f.write_str("\\a"),
        '\x08' => f.write_str("\\b"),
        '\x0c' => f.write_str("\\f"),
        '\n' => f.write_str("\\n"),
        '\r' => f.write_str("\\r"),
        '\t' => f.write_str("\\t"),
        '\x0b' => f.write_str("\\v"),
        _ if c.is_ascii_control() => write!(f, "\\x{:02x}", u32::from(c)),
        _ if is_printable(c) => f.write_char(c),
        _ if u32::from(c) < 0x1_0000 => write!(f, "\\u{:04x}", u32::from(c)),
        _ => write!(f, "\\U{:08x}", u32::from(c)),
    }
}

/// Whether Rust would print it too: a letter, mark, number, punctuation, symbol or the blank. Behind another character,
/// since a mark at the beginning is escaped for another reason.
fn is_printable(c: char) -> bool {
    let text: String = ['x', c].iter().collect();
    c == '\'' || text.escape_debug().skip(1).eq([c])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_as_nats_server_does() {
        for (bytes, expected) in [
            (&b"foo.*.>"[..], r#""foo.*.>""#),
            (b"a\"b\\c'd", r#""a\"b\\c'd""#),
            (b"\x01\x07\x08\x0c\x0b\x7f\x00", r#""\x01\a\b\f\v\x7f\x00""#),
            (b"\t\r\n", r#""\t\r\n""#),
            (b"a\xffb\xc3", r#""a\xffb\xc3""#),
            (b"\xed\xa0\x80", r#""\xed\xa0\x80""#),
            ("\u{fc}\u{1f600}\u{fffd}e\u{301}".as_bytes(), "\"\u{fc}\u{1f600}\u{fffd}e\u{301}\""),
            ("\u{200b}\u{a0}\u{ad}\u{feff}\u{3000}\u{378}".as_bytes(), r#""\u200b\u00a0\u00ad\ufeff\u3000\u0378""#),
            ("\u{e0001}\u{e000}".as_bytes(), r#""\U000e0001\ue000""#),
        ] {
            assert_eq!(Quoted(bytes).to_string(), expected);
        }
    }
}
