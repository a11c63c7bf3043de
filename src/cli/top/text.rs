//! A text that is read over the panes: a description, or a log that grows. Pure.

use std::collections::VecDeque;

use unicode_width::UnicodeWidthChar as _;

use super::cursor::Step;
use crate::cli::output;

/// Lines that are kept of one text; of longer ones, the end.
const MAX_LINES: usize = 5_000;

/// Which text is meant by what comes for it: one that was closed gets nothing any more.
pub(super) type Ticket = u64;

/// The text, and how far it is scrolled.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) ticket: Ticket,
    pub(super) title: String,
    window: Window,
    lines: VecDeque<Line>,
    /// Rows of all lines.
    rows: usize,
    /// The first row shown; none = the last rows, whichever these are.
    top: Option<usize>,
    /// What is shown while there is no line.
    pub(super) empty: &'static str,
}

/// How much of a text can be seen at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) columns: usize,
    pub(super) rows: usize,
}

/// A line, wrapped once for as long as the window is so wide: a log is drawn with every frame.
#[derive(Debug)]
struct Line {
    text: String,
    /// Where its rows after the first begin, in bytes.
    breaks: Vec<usize>,
}

impl Text {
    /// One that is read from its beginning.
    pub(super) fn description(ticket: Ticket, title: String, window: Window) -> Self {
        Self { ticket, title, window, lines: VecDeque::new(), rows: 0, top: Some(0), empty: "asking for it" }
    }

    /// One whose end is read, as it comes.
    pub(super) fn log(ticket: Ticket, title: String, window: Window) -> Self {
        Self { top: None, empty: "nothing yet", ..Self::description(ticket, title, window) }
    }

    /// Appends lines, without what could play with the terminal.
    pub(super) fn add(&mut self, lines: Vec<String>) {
        for line in lines {
            let line = Line::new(plain(&line), self.window.columns);
            self.rows += line.rows();
            self.lines.push_back(line);
        }
        let excess = self.lines.len().saturating_sub(MAX_LINES);
        let gone: usize = self.lines.drain(..excess).map(|line| line.rows()).sum();
        self.rows -= gone;
    }

    /// The window is this one from now on.
    pub(super) fn resize(&mut self, window: Window) {
        if window.columns != self.window.columns {
            self.lines.iter_mut().for_each(|line| line.wrap(window.columns));
            self.rows = self.lines.iter().map(Line::rows).sum();
        }
        self.window = window;
    }

    /// What stands in the window.
    pub(super) fn seen(&self) -> Vec<&str> {
        let mut above = self.first();
        let mut seen = Vec::new();
        for line in &self.lines {
            if seen.len() >= self.window.rows {
                break;
            }
            match above.checked_sub(line.rows()) {
                Some(left) => above = left,
                None => seen.extend(line.split().skip(std::mem::take(&mut above)).take(self.window.rows - seen.len())),
            }
        }
        seen
    }

    /// Scrolls.
    pub(super) fn scroll(&mut self, step: Step) {
        let last = self.rows.saturating_sub(self.window.rows);
        let was = self.first();
        let page = self.window.rows.saturating_sub(1);
        let to = match step {
            Step::PageUp => was.saturating_sub(page),
            Step::PageDown => was.saturating_add(page),
            step => step.from(was, self.rows),
        };
        // A log that is read at its end is followed.
        self.top = (to < last).then_some(to).or((self.top.is_some() && last == 0).then_some(0));
    }

    fn first(&self) -> usize {
        let last = self.rows.saturating_sub(self.window.rows);
        self.top.unwrap_or(last).min(last)
    }
}

impl Line {
    fn new(text: String, columns: usize) -> Self {
        let mut line = Self { text, breaks: Vec::new() };
        line.wrap(columns);
        line
    }

    /// Breaks it into rows that are no wider than this.
    fn wrap(&mut self, columns: usize) {
        self.breaks.clear();
        let mut width = 0;
        for (at, c) in self.text.char_indices() {
            let wide = c.width().unwrap_or(0);
            if width + wide > columns && width > 0 {
                self.breaks.push(at);
                width = 0;
            }
            width += wide;
        }
    }

    fn rows(&self) -> usize {
        self.breaks.len() + 1
    }

    fn split(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.breaks.iter().copied());
        let ends = self.breaks.iter().copied().chain([self.text.len()]);
        starts.zip(ends).map(|(start, end)| self.text.get(start..end).unwrap_or_default())
    }
}

/// The text without the sequences that colour it, and without control characters.
pub(super) fn plain(text: &str) -> String {
    let mut bare = String::with_capacity(text.len());
    let mut chars = text.trim_end().chars().peekable();
    while let Some(c) = chars.next() {
        if c == '\u{1b}' && chars.next_if_eq(&'[').is_some() {
            // Up to the letter that ends it.
            chars.by_ref().find(|c| ('@'..='~').contains(c));
        } else {
            bare.push(c);
        }
    }
    output::clean(&bare)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(range: std::ops::Range<u32>) -> Vec<String> {
        range.map(|n| n.to_string()).collect()
    }

    const WINDOW: Window = Window { columns: 4, rows: 3 };

    #[test]
    fn a_log_is_followed_unless_somebody_reads_further_up() {
        let mut log = Text::log(1, String::new(), WINDOW);
        log.add(lines(0..5));
        assert_eq!(log.seen(), ["2", "3", "4"]);
        log.scroll(Step::Up);
        log.add(lines(5..7));
        assert_eq!(log.seen(), ["1", "2", "3"]);
        log.scroll(Step::Last);
        log.add(lines(7..8));
        assert_eq!(log.seen(), ["5", "6", "7"]);
        log.scroll(Step::First);
        assert_eq!(log.seen(), ["0", "1", "2"]);
    }

    #[test]
    fn a_description_is_read_from_its_beginning() {
        let mut text = Text::description(1, String::new(), WINDOW);
        text.add(lines(0..2));
        text.scroll(Step::Down);
        assert_eq!(text.seen(), ["0", "1"]);
        text.add(lines(2..9));
        assert_eq!(text.seen(), ["0", "1", "2"]);
        text.scroll(Step::PageDown);
        assert_eq!(text.seen(), ["2", "3", "4"]);
    }

    #[test]
    fn long_lines_go_on_in_the_next_row() {
        let mut text = Text::description(1, String::new(), WINDOW);
        text.resize(Window { rows: 9, ..WINDOW });
        text.add(vec!["abcdefg".into(), String::new(), "日本語".into()]);
        assert_eq!(text.seen(), ["abcd", "efg", "", "日本", "語"]);
        text.resize(Window { columns: 6, rows: 2 });
        assert_eq!(text.seen(), ["abcdef", "g"]);
        text.scroll(Step::Down);
        assert_eq!(text.seen(), ["g", ""]);
        // One that is too wide for any row has one of its own.
        text.resize(Window { columns: 1, rows: 3 });
        text.scroll(Step::Last);
        assert_eq!(text.seen(), ["日", "本", "語"]);
    }

    #[test]
    fn however_long_a_log_is_what_is_seen_of_it_is_what_all_of_it_wrapped_would_show() {
        let said = |n: usize| format!("{n} ").repeat(1 + n * 7 % 500);
        let window = Window { columns: 78, rows: 20 };
        let mut log = Text::log(1, String::new(), Window { columns: 30, ..window });
        log.add((0..MAX_LINES).map(said).collect());
        log.resize(window);
        log.add((MAX_LINES..MAX_LINES + 1_000).map(said).collect());
        let rows: Vec<String> = (1_000..MAX_LINES + 1_000)
            .flat_map(|n| {
                let chars: Vec<char> = said(n).trim_end().chars().collect();
                chars.chunks(window.columns).map(|row| row.iter().collect()).collect::<Vec<String>>()
            })
            .collect();
        assert_eq!(log.seen(), rows[rows.len() - window.rows..]);
        log.scroll(Step::PageUp);
        let top = rows.len() - window.rows - (window.rows - 1);
        assert_eq!(log.seen(), rows[top..top + window.rows]);
        // A second of frames, which would take minutes if each wrapped all of it.
        for _ in 0..100 {
            assert_eq!(log.seen().len(), window.rows);
        }
        log.scroll(Step::First);
        assert_eq!(log.seen(), rows[..window.rows]);
    }

    #[test]
    fn colours_go_and_the_rest_cannot_drive_the_terminal() {
        assert_eq!(plain("\u{1b}[1;32mgreen\u{1b}[0m \u{1b}]0;x\u{7}"), "green \\u{1b}]0;x\\u{7}");
    }
}
