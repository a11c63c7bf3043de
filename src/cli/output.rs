//! What commands print: tables and JSON on standard output, told apart by `--output`. Text that came from elsewhere is
//! shown without its control characters, so that no guest or worker can play with the user's terminal.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::model::Timestamp;

/// How data are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// The option of every command that prints data.
#[derive(Clone, Copy, Debug, Args)]
pub struct OutputArgs {
    /// How to print: a table for people, JSON for programs
    #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: Format,
}

/// Why something cannot be printed.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// Whoever read the output has enough, as `head` has. No failure of the command.
    #[error("nobody reads the output any more")]
    ReaderGone,
    /// The system refuses.
    #[error("cannot write the output")]
    Io(#[source] io::Error),
    /// A value has no JSON form; does not happen for the types here.
    #[error("cannot write the output as JSON")]
    Json(#[from] serde_json::Error),
}

impl From<io::Error> for OutputError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => OutputError::ReaderGone,
            _ => OutputError::Io(error),
        }
    }
}

/// Prints one line. Unlike `println!` it does not panic when the reader has gone.
///
/// # Errors
/// See [`OutputError`].
pub fn line(text: &str) -> Result<(), OutputError> {
    lines([text.to_owned()])
}

/// Prints lines, all at once: a page of events costs one write.
///
/// # Errors
/// As for [`line`].
pub fn lines(lines: impl IntoIterator<Item = String>) -> Result<(), OutputError> {
    let mut text = String::new();
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Prints `value` as JSON over several lines.
///
/// # Errors
/// As for [`line`].
pub fn json<T: Serialize>(value: &T) -> Result<(), OutputError> {
    line(&serde_json::to_string_pretty(value)?)
}

/// `value` as JSON on one line, for streams of values.
///
/// # Errors
/// [`OutputError::Json`].
pub fn json_line<T: Serialize>(value: &T) -> Result<String, OutputError> {
    Ok(serde_json::to_string(value)?)
}

/// A table without borders: the columns wide enough for their longest cell, nothing cut off.
#[derive(Debug)]
pub struct Table(comfy_table::Table);

impl Table {
    /// A table with a first row of titles.
    pub fn with_titles<const N: usize>(titles: [&str; N]) -> Self {
        let mut table = Self::untitled();
        table.0.set_header(titles);
        table
    }

    /// A table without titles, such as one of keys and values.
    pub fn untitled() -> Self {
        let mut table = comfy_table::Table::new();
        table
            .load_style(comfy_table::presets::NOTHING)
            .set_content_arrangement(comfy_table::ContentArrangement::Disabled);
        Self(table)
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.add_row(cells.map(|cell| clean(&cell)));
    }

    /// The text, without blanks at the ends of lines.
    pub fn text(mut self) -> String {
        for column in self.0.column_iter_mut() {
            column.set_padding((0, 2));
        }
        self.0.trim_fmt()
    }

    /// Prints it.
    ///
    /// # Errors
    /// As for [`line`].
    pub fn print(self) -> Result<(), OutputError> {
        line(&self.text())
    }
}

/// The text without control characters: each is written as its escape, a line break and a tab as a blank.
pub fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => clean.push(' '),
            c if c.is_control() => {
                let _ = write!(clean, "{}", c.escape_default());
            }
            c => clean.push(c),
        }
    }
    clean
}

/// How long ago `then` was, as people say it.
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    const UNITS: [(u64, &str); 6] =
        [(30 * 86_400, "month"), (7 * 86_400, "week"), (86_400, "day"), (3_600, "hour"), (60, "minute"), (1, "second")];
    let seconds = then.until(now).as_secs();
    match UNITS.into_iter().find(|(length, _)| seconds >= *length) {
        None => "now".to_owned(),
        Some((length, unit)) => {
            let count = seconds / length;
            format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
        }
    }
}

/// Tells on standard error how something goes on: as a spinner on a terminal, else a line for each change.
#[derive(Debug)]
pub struct Progress {
    spinner: Option<indicatif::ProgressBar>,
    last: String,
}

/// How often the spinner turns.
const SPIN_PERIOD: Duration = Duration::from_millis(120);

impl Progress {
    /// Starts to tell.
    pub fn start() -> Self {
        let spinner = io::IsTerminal::is_terminal(&io::stderr()).then(|| {
            let bar = indicatif::ProgressBar::new_spinner();
            bar.enable_steady_tick(SPIN_PERIOD);
            bar
        });
        Self { spinner, last: String::new() }
    }

    /// Tells `text`, if it is new.
    pub fn say(&mut self, text: &str) {
        let text = clean(text);
        if text == self.last {
            return;
        }
        match &self.spinner {
            Some(bar) => bar.set_message(text.clone()),
            None => eprintln!("{text}"),
        }
        self.last = text;
    }

    /// What was told last.
    pub fn last(&self) -> &str {
        &self.last
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.spinner {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell() {
        let mut table = Table::with_titles(["Name", "Status"]);
        table.row(["a".into(), "running".into()]);
        table.row(["a-long-name".into(), String::new()]);
        let text = table.text();
        assert_eq!(text.lines().collect::<Vec<_>>(), ["Name         Status", "a            running", "a-long-name"]);
    }

    #[test]
    fn a_table_cannot_drive_the_terminal() {
        let mut table = Table::untitled();
        table.row(["Status message".into(), "\u{1b}[2Jgone\r\nnext".into()]);
        assert_eq!(table.text(), "Status message  \\u{1b}[2Jgone\\r next");
    }

    #[test]
    fn times_are_told_as_people_say_them() {
        let now = Timestamp::from_millis(1_700_000_000_000);
        let before = |seconds: i64| ago(Timestamp::from_millis(now.as_millis() - seconds * 1000), now);
        assert_eq!(before(-5), "now");
        assert_eq!(before(0), "now");
        assert_eq!(before(1), "1 second ago");
        assert_eq!(before(119), "1 minute ago");
        assert_eq!(before(7_200), "2 hours ago");
        assert_eq!(before(3 * 86_400), "3 days ago");
        assert_eq!(before(15 * 86_400), "2 weeks ago");
        assert_eq!(before(70 * 86_400), "2 months ago");
    }
}
