//! Tables without borders: columns as wide as their longest cell, two blanks between them. On a terminal that is too narrow the
//! long cells of lists are shortened, and words that tell of a state have colours; a pipe gets all of it, plain.

use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

use super::screen::Screen;
use super::tone::Tone;
use super::{OutputError, clean, line};

/// Cells in rows, the first of which may be titles.
#[derive(Clone, Debug, Default)]
pub struct Table {
    titled: bool,
    whole: bool,
    rows: Vec<Vec<String>>,
}

/// Between columns.
const GAP: usize = 2;
/// Narrower than this no column is made: it would say nothing.
const NARROWEST: usize = 8;
/// Under these titles, or behind them in a table of keys and values, stand words that tell of a state.
const STATES: [&str; 2] = ["Status", "State"];

impl Table {
    /// A table with a first row of titles.
    pub fn with_titles<const N: usize>(titles: [&str; N]) -> Self {
        Self { titled: true, whole: false, rows: vec![titles.iter().map(|&title| title.to_owned()).collect()] }
    }

    /// A table without titles, such as one of keys and values.
    pub fn untitled() -> Self {
        Self::default()
    }

    /// The same, never shortened.
    #[must_use]
    pub fn whole(self) -> Self {
        Self { whole: true, ..self }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.iter().map(|cell| clean(cell)).collect());
    }

    /// Puts another table with as many rows to the right of this one.
    #[must_use]
    pub fn beside(mut self, other: Table) -> Self {
        for (row, more) in self.rows.iter_mut().zip(other.rows) {
            row.extend(more);
        }
        self
    }

    /// Puts the rows of another table below these.
    #[must_use]
    pub fn below(mut self, other: Table) -> Self {
        self.rows.extend(other.rows);
        self
    }

    /// The rows alone, to be put below those of a table that has the titles.
    #[must_use]
    pub fn without_titles(mut self) -> Self {
        if std::mem::take(&mut self.titled) {
            self.rows.drain(..1);
        }
        self
    }

    /// Puts `word` in the place of every state.
    pub fn mark(&mut self, word: &str) {
        let Some((titles, rows)) = self.rows.split_first_mut().filter(|_| self.titled) else { return };
        for row in rows {
            for (cell, _) in row.iter_mut().zip(titles.iter()).filter(|(_, title)| is_state(title)) {
                word.clone_into(cell);
            }
        }
    }

    /// The rows behind the titles, cell by cell.
    pub fn cells(&self) -> &[Vec<String>] {
        self.rows.get(usize::from(self.titled)..).unwrap_or_default()
    }

    /// The text for `screen`, without blanks at the ends of lines and without the last line's end.
    pub fn text(&self, screen: Screen) -> String {
        let lines: Vec<String> = self.lines(screen, &self.widths(screen)).collect();
        lines.join("\n")
    }

    /// The lines, titles included, with columns of these widths.
    pub fn lines<'a>(&'a self, screen: Screen, widths: &'a [usize]) -> impl Iterator<Item = String> + 'a {
        let titles = self.titles();
        self.rows.iter().enumerate().map(move |(number, row)| {
            let is_title = self.titled && number == 0;
            let tells_state = |column: usize| match self.titled {
                true => titles.get(column).is_some_and(|title| is_state(title)),
                false => column > 0 && row.first().is_some_and(|key| is_state(key)),
            };
            let mut text = String::new();
            for (column, (cell, &width)) in row.iter().zip(widths).enumerate() {
                // What follows the last cell would be blanks at the end of the line.
                let is_last = row.get(column + 1..).unwrap_or_default().iter().all(String::is_empty);
                let shown = if self.shortens(screen) { shortened(cell, width) } else { cell.clone() };
                let pad = if is_last { 0 } else { (width + GAP).saturating_sub(shown.width()).max(1) };
                let tone = if screen.colours && tells_state(column) && !is_title { Tone::of(cell) } else { None };
                match tone {
                    Some(tone) => text.push_str(&tone.paint(&shown)),
                    None => text.push_str(&shown),
                }
                text.extend(std::iter::repeat_n(' ', pad));
                if is_last {
                    break;
                }
            }
            text.truncate(text.trim_end().len());
            text
        })
    }

    /// How wide the columns are on `screen`.
    pub fn widths(&self, screen: Screen) -> Vec<usize> {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            widths.resize(widths.len().max(row.len()), 0);
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.width());
            }
        }
        match screen.width {
            Some(most) if self.shortens(screen) => fitted(widths, most),
            _ => widths,
        }
    }

    /// Prints it.
    ///
    /// # Errors
    /// As for [`line`].
    pub fn print(self) -> Result<(), OutputError> {
        line(&self.text(Screen::of_stdout()))
    }

    fn titles(&self) -> &[String] {
        match self.rows.first() {
            Some(titles) if self.titled => titles,
            _ => &[],
        }
    }

    /// Of keys and values nothing is ever cut off: they are there to be read.
    fn shortens(&self, screen: Screen) -> bool {
        self.titled && !self.whole && screen.width.is_some()
    }
}

/// Widths that come to `most` at the most, gaps included, where that can be: the widest give way first, and the first, which
/// holds the names by which everything is asked for, not at all.
fn fitted(widths: Vec<usize>, most: usize) -> Vec<usize> {
    let gaps = widths.len().saturating_sub(1) * GAP;
    let first = widths.first().copied().unwrap_or_default();
    let capped = |cap: usize| widths.iter().skip(1).map(move |&width| width.min(cap));
    let fits = |cap: &usize| first + gaps + capped(*cap).sum::<usize>() <= most;
    let widest = widths.iter().skip(1).copied().max().unwrap_or_default();
    let cap = (NARROWEST..=widest).rev().find(fits).unwrap_or(NARROWEST);
    std::iter::once(first).take(widths.len()).chain(capped(cap)).collect()
}

/// `text` in `width` columns, with … at its end if some of it is missing.
fn shortened(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut short = String::new();
    let mut left = width.saturating_sub(1);
    for c in text.chars() {
        let Some(rest) = left.checked_sub(c.width().unwrap_or(0)) else { break };
        left = rest;
        short.push(c);
    }
    short.truncate(short.trim_end().len());
    short.push('…');
    short
}

fn is_state(title: &str) -> bool {
    STATES.contains(&title)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(width: usize) -> Screen {
        Screen { width: Some(width), height: Some(24), colours: false, can_move: true }
    }

    fn lines(text: &str) -> Vec<&str> {
        text.lines().collect()
    }

    #[test]
    fn columns_are_as_wide_as_their_longest_cell() {
        let mut table = Table::with_titles(["Name", "Status"]);
        table.row(["a".into(), "running".into()]);
        table.row(["a-long-name".into(), String::new()]);
        let text = table.text(Screen::PLAIN);
        assert_eq!(lines(&text), ["Name         Status", "a            running", "a-long-name"]);
        let mut wide = Table::with_titles(["A", "B", "C"]);
        wide.row(["日本".into(), String::new(), "x".into()]);
        assert_eq!(lines(&wide.text(Screen::PLAIN)), ["A     B  C", "日本     x"]);
    }

    #[test]
    fn a_table_cannot_drive_the_terminal() {
        let mut table = Table::untitled();
        table.row(["Status message".into(), "\u{1b}[2Jgone\r\nnext".into()]);
        assert_eq!(table.text(Screen::PLAIN), "Status message  \\u{1b}[2Jgone\\r next");
    }

    #[test]
    fn long_cells_are_shortened_on_a_narrow_terminal_and_nowhere_else() {
        let mut table = Table::with_titles(["Name", "Image", "Status"]);
        table.row(["build-1-of-many".into(), "ghcr.io/cirruslabs/macos-tahoe-base:latest".into(), "running".into()]);
        let whole = "build-1-of-many  ghcr.io/cirruslabs/macos-tahoe-base:latest  running";
        assert_eq!(lines(&table.text(Screen::PLAIN))[1], whole);
        assert_eq!(lines(&table.text(on(80)))[1], whole);
        for width in [40, 50, 67] {
            let text = table.text(on(width));
            assert_eq!(text.lines().map(|line| line.width()).max(), Some(width), "{text}");
        }
        assert_eq!(lines(&table.text(on(40)))[1], "build-1-of-many  ghcr.io/cirru…  running");
        // The name is whole, and nothing becomes narrower than what says something.
        assert_eq!(lines(&table.text(on(10)))[1], "build-1-of-many  ghcr.io…  running");
        assert_eq!(lines(&table.clone().whole().text(on(10)))[1], whole);
        let mut pairs = Table::untitled();
        pairs.row(["Status message".into(), "a long story that is to be read to its end".into()]);
        assert!(pairs.text(on(20)).ends_with("its end"));
    }

    #[test]
    fn what_is_cut_is_cut_between_characters() {
        assert_eq!(shortened("日本語", 5), "日本…");
        assert_eq!(shortened("日本語", 4), "日…");
        assert_eq!(shortened("日本語", 6), "日本語");
        assert_eq!(shortened("a b", 0), "…");
        assert_eq!(shortened("ab cd", 4), "ab…");
    }

    #[test]
    fn states_have_colours_where_there_are_any() {
        let colourful = Screen { colours: true, ..on(80) };
        let mut table = Table::with_titles(["Name", "State", "VMs"]);
        table.row(["failed".into(), "online".into(), "1".into()]);
        table.row(["b".into(), "online, draining".into(), "0".into()]);
        let text = table.text(colourful);
        assert_eq!(lines(&text)[0], "Name    State             VMs");
        assert_eq!(lines(&text)[1], "failed  \u{1b}[32monline\u{1b}[0m            1");
        assert_eq!(lines(&text)[2], "b       \u{1b}[33monline, draining\u{1b}[0m  0");
        let mut pairs = Table::untitled();
        pairs.row(["Status".into(), "failed".into()]);
        pairs.row(["Status message".into(), "failed".into()]);
        assert_eq!(
            lines(&pairs.text(colourful)),
            ["Status          \u{1b}[31mfailed\u{1b}[0m", "Status message  failed"]
        );
        assert!(!table.text(on(80)).contains('\u{1b}'));
    }

    #[test]
    fn tables_stand_beside_each_other() {
        let mut left = Table::with_titles(["A"]);
        left.row(["a".into()]);
        let mut right = Table::with_titles(["B"]);
        right.row(["b".into()]);
        assert_eq!(lines(&left.beside(right).text(Screen::PLAIN)), ["A  B", "a  b"]);
    }
}
