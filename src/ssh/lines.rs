//! Cuts a stream of bytes into lines of bounded length, however the bytes arrive. Pure.

/// Collects bytes and gives back whole lines: without their end (`\n` or `\r\n`), at most `max` bytes each (longer
/// ones are split between characters), what is not UTF-8 replaced by U+FFFD.
#[derive(Debug)]
pub struct LineSplitter {
    max: usize,
    line: String,
    /// The beginning of a character whose rest has not arrived.
    partial: Vec<u8>,
    /// A `\r` that is dropped if `\n` follows.
    carriage_return: bool,
}

impl LineSplitter {
    /// A splitter for lines of at most `max` bytes; at least 4, the longest character, is taken.
    pub fn new(max: usize) -> Self {
        Self { max: max.max(4), line: String::new(), partial: Vec::new(), carriage_return: false }
    }

    /// Takes the next bytes and hands every line that they complete to `emit`.
    pub fn push(&mut self, bytes: &[u8], mut emit: impl FnMut(String)) {
        let joined;
        let mut rest = bytes;
        if !self.partial.is_empty() {
            let mut all = std::mem::take(&mut self.partial);
            all.extend_from_slice(bytes);
            joined = all;
            rest = &joined;
        }
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => return self.text(text, &mut emit),
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    self.text(&String::from_utf8_lossy(valid), &mut emit);
                    let Some(invalid) = error.error_len() else {
                        self.partial = after.to_vec();
                        return;
                    };
                    self.char('\u{fffd}', &mut emit);
                    rest = after.get(invalid..).unwrap_or_default();
                }
            }
        }
    }

    /// The last line, when it had no end.
    pub fn finish(mut self, mut emit: impl FnMut(String)) {
        if !self.partial.is_empty() {
            self.char('\u{fffd}', &mut emit);
        }
        if self.carriage_return {
            self.carriage_return = false;
            self.put('\r', &mut emit);
        }
        if !self.line.is_empty() {
            emit(self.line);
        }
    }

    fn text(&mut self, text: &str, emit: &mut impl FnMut(String)) {
        text.chars().for_each(|c| self.char(c, emit));
    }

    fn char(&mut self, c: char, emit: &mut impl FnMut(String)) {
        let returned = std::mem::take(&mut self.carriage_return);
        match c {
            '\n' => return emit(std::mem::take(&mut self.line)),
            _ if returned => self.put('\r', emit),
            _ => {}
        }
        if c == '\r' {
            self.carriage_return = true;
        } else {
            self.put(c, emit);
        }
    }

    fn put(&mut self, c: char, emit: &mut impl FnMut(String)) {
        if self.line.len() + c.len_utf8() > self.max {
            emit(std::mem::take(&mut self.line));
        }
        self.line.push(c);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(max: usize, chunks: &[&[u8]]) -> Vec<String> {
        let (mut lines, mut splitter) = (Vec::new(), LineSplitter::new(max));
        chunks.iter().for_each(|chunk| splitter.push(chunk, |line| lines.push(line)));
        splitter.finish(|line| lines.push(line));
        lines
    }

    #[test]
    fn lines_come_as_soon_as_they_end() {
        let (mut lines, mut splitter) = (Vec::new(), LineSplitter::new(100));
        splitter.push(b"one\ntw", |line| lines.push(line));
        assert_eq!(lines, ["one"]);
        splitter.push(b"o\r\n\n", |line| lines.push(line));
        assert_eq!(lines, ["one", "two", ""]);
    }

    #[test]
    fn odd_bytes_are_replaced_and_a_character_in_two_pieces_is_not() {
        assert_eq!(
            split(100, &[b"a\xffb\n", "ä".as_bytes().split_at(1).0, "ä".as_bytes().split_at(1).1]),
            ["a\u{fffd}b", "ä"]
        );
        assert_eq!(split(100, &[b"end\xe2\x82"]), ["end\u{fffd}"]);
        assert_eq!(split(100, &[b"a\rb\r\r\n\r"]), ["a\rb\r", "\r"]);
    }

    #[test]
    fn a_line_of_just_the_limit_is_followed_by_no_empty_one() {
        assert_eq!(split(4, &[b"abcd\nefghi\n\nj"]), ["abcd", "efgh", "i", "", "j"]);
        assert_eq!(split(4, &["abc\u{e4}".as_bytes()]), ["abc", "\u{e4}"]);
    }

    proptest! {
        #[test]
        fn chunking_changes_nothing(bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(0xc3u8), Just(0xa4u8), any::<u8>()], 0..200), cut in 0usize..200, max in 4usize..40) {
            let cut = cut.min(bytes.len());
            let whole = split(max, &[&bytes]);
            let (a, b) = bytes.split_at(cut);
            prop_assert_eq!(&split(max, &[a, b]), &whole);
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(&split(max, &single), &whole);
            prop_assert!(whole.iter().all(|line| line.len() <= max && !line.contains('\n')));
        }

        #[test]
        fn no_character_is_lost(text in "(?s).{0,200}", max in 4usize..40) {
            let kept: String = split(max, &[text.as_bytes()]).concat();
            prop_assert_eq!(kept, text.replace("\r\n", "\n").replace('\n', ""));
        }
    }
}
