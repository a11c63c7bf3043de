//! What a tool wrote: kept to a bound, and put into a line for a status message. Pure; used by [`super::tool`].

use std::collections::VecDeque;

/// How much of each output stream is kept from its begin: enough for `tart list` of thousands of VMs, and bounded.
pub(super) const MAX_OUTPUT: usize = 4 << 20;
/// How much of its end is kept beyond that: there it says why it failed.
const MAX_END: usize = 8 * 1024;
/// A line that is longer than this is told in parts.
const MAX_LINE: usize = 4 * 1024;
/// How many lines a status message shows: the first, which often says what went wrong, and the last.
const SHOWN_LINES: usize = 5;
/// How many characters of each.
const SHOWN_CHARS: usize = 240;

/// One stream of a tool's output.
#[derive(Debug, Default)]
pub(super) struct Kept {
    begin: Vec<u8>,
    end: VecDeque<u8>,
    line: Vec<u8>,
}

impl Kept {
    /// Adds the first `count` bytes of `from`, and tells the lines that they end; 0 ends the last one.
    pub(super) fn add(&mut self, count: usize, from: &[u8], tell: &mut (dyn FnMut(&str) + Send)) {
        let new = from.get(..count).unwrap_or_default();
        let room = MAX_OUTPUT.saturating_sub(self.begin.len()).min(new.len());
        let (begin, rest) = new.split_at_checked(room).unwrap_or((new, &[]));
        self.begin.extend_from_slice(begin);
        self.end.extend(rest);
        self.end.drain(..self.end.len().saturating_sub(MAX_END));
        for byte in new {
            // Tools that show how far they are write one line over another.
            let ends = matches!(byte, b'\n' | b'\r');
            if !ends {
                self.line.push(*byte);
            }
            if ends || self.line.len() >= MAX_LINE {
                self.tell_line(tell);
            }
        }
        if count == 0 {
            self.tell_line(tell);
        }
    }

    fn tell_line(&mut self, tell: &mut (dyn FnMut(&str) + Send)) {
        let line = clean(&String::from_utf8_lossy(&self.line));
        self.line.clear();
        if !line.is_empty() {
            tell(&line);
        }
    }

    /// The output as far as it is kept from its begin.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.begin).into_owned()
    }

    /// The same with the end of what was too much.
    pub(super) fn text_with_end(&self) -> String {
        let end: Vec<u8> = self.end.iter().copied().collect();
        let tail = self.begin.len().saturating_sub(MAX_END);
        let begin = self.begin.get(tail..).unwrap_or_default();
        String::from_utf8_lossy(&[begin, &end].concat()).into_owned()
    }
}

/// The first and the last lines of a text on one line; `None` when there is nothing in it.
pub(super) fn lines(text: &str) -> Option<String> {
    let all: Vec<String> = text.split(['\n', '\r']).map(clean).filter(|line| !line.is_empty()).collect();
    let (first, rest) = all.split_first()?;
    let last = rest.get(rest.len().saturating_sub(SHOWN_LINES - 1)..).unwrap_or_default();
    let left_out = (last.len() < rest.len()).then(|| "…".to_owned());
    let shown = [first.clone()].into_iter().chain(left_out).chain(last.iter().cloned());
    Some(shown.map(short).collect::<Vec<_>>().join(" | "))
}

fn short(line: String) -> String {
    match line.char_indices().nth(SHOWN_CHARS) {
        Some((at, _)) => format!("{}…", line.get(..at).unwrap_or_default()),
        None => line,
    }
}

/// A line without colours, cursor movements and other control characters.
fn clean(line: &str) -> String {
    let mut kept = String::with_capacity(line.len());
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            '\u{1b}' => {
                if chars.next() == Some('[') {
                    let _ = chars.by_ref().find(|c| matches!(c, '@'..='~'));
                }
            }
            '\t' => kept.push(' '),
            c if c.is_control() => {}
            c => kept.push(c),
        }
    }
    kept.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_shows_the_first_and_the_last_lines() {
        assert_eq!(lines("\n  why\nmore\n").as_deref(), Some("why | more"));
        let many: String = (0..20).map(|n| format!("line {n}\r\n")).collect();
        assert_eq!(lines(&many).as_deref(), Some("line 0 | … | line 16 | line 17 | line 18 | line 19"));
        assert_eq!(lines(" \n\r\n\u{1b}[2K"), None);
        assert_eq!(lines("\u{1b}[31mred\u{1b}[0m\u{7}").as_deref(), Some("red"));
        assert_eq!(lines(&"x".repeat(9_000)).unwrap().chars().count(), SHOWN_CHARS + 1);
    }

    #[test]
    fn of_too_much_output_the_begin_and_the_end_are_kept() {
        let mut kept = Kept::default();
        let chunk = [b'a'; 8192];
        for _ in 0..MAX_OUTPUT / chunk.len() + 3 {
            kept.add(chunk.len(), &chunk, &mut |_| {});
        }
        kept.add(5, b"\nlast", &mut |_| {});
        assert_eq!(kept.text().len(), MAX_OUTPUT);
        assert!(kept.text_with_end().ends_with("\nlast"));
        assert!(kept.text_with_end().len() <= 2 * MAX_END);
    }

    proptest! {
        #[test]
        fn lines_are_told_whole_however_they_come(text in "[a-z\r\n]{0,60}", cut in 1usize..9) {
            let mut told = Vec::new();
            let mut kept = Kept::default();
            for chunk in text.as_bytes().chunks(cut) {
                kept.add(chunk.len(), chunk, &mut |line| told.push(line.to_owned()));
            }
            kept.add(0, &[], &mut |line| told.push(line.to_owned()));
            let expected: Vec<&str> = text.split(['\n', '\r']).filter(|line| !line.is_empty()).collect();
            prop_assert_eq!(told, expected);
        }

        #[test]
        fn no_output_upsets_it(text in ".{0,300}") {
            let _ = lines(&text);
        }
    }
}
