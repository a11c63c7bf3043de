//! A text that is read over the panes: a description, or a log that grows. Pure.

use std::collections::VecDeque;

use ratatui::text::Span;

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
    lines: VecDeque<String>,
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

impl Text {
    /// One that is read from its beginning.
    pub(super) fn description(ticket: Ticket, title: String) -> Self {
        Self { ticket, title, lines: VecDeque::new(), top: Some(0), empty: "asking for it" }
    }

    /// One whose end is read, as it comes.
    pub(super) fn log(ticket: Ticket, title: String) -> Self {
        Self { ticket, title, lines: VecDeque::new(), top: None, empty: "nothing yet" }
    }

    /// Appends lines, without what could play with the terminal.
    pub(super) fn add(&mut self, lines: Vec<String>) {
        self.lines.extend(lines.iter().map(|line| plain(line)));
        let excess = self.lines.len().saturating_sub(MAX_LINES);
        self.lines.drain(..excess);
    }

    /// What stands in the window.
    pub(super) fn seen(&self, window: Window) -> Vec<String> {
        let rows = self.wrapped(window.columns);
        let top = self.first(rows.len(), window);
        rows.into_iter().skip(top).take(window.rows).collect()
    }

    /// Scrolls.
    pub(super) fn scroll(&mut self, step: Step, window: Window) {
        let count = self.wrapped(window.columns).len();
        let last = count.saturating_sub(window.rows);
        let was = self.first(count, window);
        let page = window.rows.saturating_sub(1);
        let to = match step {
            Step::PageUp => was.saturating_sub(page),
            Step::PageDown => was.saturating_add(page),
            step => step.from(was, count),
        };
        // A log that is read at its end is followed.
        self.top = (to < last).then_some(to).or((self.top.is_some() && last == 0).then_some(0));
    }

    fn first(&self, count: usize, window: Window) -> usize {
        let last = count.saturating_sub(window.rows);
        self.top.unwrap_or(last).min(last)
    }

    /// The lines as rows that are no wider than the window.
    fn wrapped(&self, columns: usize) -> Vec<String> {
        let mut rows = Vec::new();
        for line in &self.lines {
            let (mut row, mut width) = (String::new(), 0);
            for c in line.chars() {
                let wide = Span::raw(c.to_string()).width();
                if width + wide > columns && width > 0 {
                    rows.push(std::mem::take(&mut row));
                    width = 0;
                }
                row.push(c);
                width += wide;
            }
            rows.push(row);
        }
        rows
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
        let mut log = Text::log(1, String::new());
        log.add(lines(0..5));
        assert_eq!(log.seen(WINDOW), ["2", "3", "4"]);
        log.scroll(Step::Up, WINDOW);
        log.add(lines(5..7));
        assert_eq!(log.seen(WINDOW), ["1", "2", "3"]);
        log.scroll(Step::Last, WINDOW);
        log.add(lines(7..8));
        assert_eq!(log.seen(WINDOW), ["5", "6", "7"]);
        log.scroll(Step::First, WINDOW);
        assert_eq!(log.seen(WINDOW), ["0", "1", "2"]);
    }

    #[test]
    fn a_description_is_read_from_its_beginning() {
        let mut text = Text::description(1, String::new());
        text.add(lines(0..2));
        text.scroll(Step::Down, WINDOW);
        assert_eq!(text.seen(WINDOW), ["0", "1"]);
        text.add(lines(2..9));
        assert_eq!(text.seen(WINDOW), ["0", "1", "2"]);
        text.scroll(Step::PageDown, WINDOW);
        assert_eq!(text.seen(WINDOW), ["2", "3", "4"]);
    }

    #[test]
    fn long_lines_go_on_in_the_next_row() {
        let mut text = Text::description(1, String::new());
        text.add(vec!["abcdefg".into(), String::new(), "日本語".into()]);
        assert_eq!(text.seen(Window { rows: 9, ..WINDOW }), ["abcd", "efg", "", "日本", "語"]);
    }

    #[test]
    fn colours_go_and_the_rest_cannot_drive_the_terminal() {
        assert_eq!(plain("\u{1b}[1;32mgreen\u{1b}[0m \u{1b}]0;x\u{7}"), "green \\u{1b}]0;x\\u{7}");
    }
}
