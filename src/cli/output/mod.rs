//! What commands print, in the form that `--output` names: tables for people ([`table`]), JSON, YAML and names for programs, on
//! standard output; how something goes on ([`progress`]), on standard error. Text that came from elsewhere is shown without
//! its control characters, so that no guest or worker can play with the user's terminal.

mod format;
mod log;
mod progress;
mod screen;
mod table;
mod tone;

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use serde::Serialize;

pub use self::format::{DataArgs, Format, OutputArgs};
pub use self::log::{Log, Quiet};
pub use self::progress::Progress;
pub use self::screen::{Screen, colours_on_stderr};
pub use self::table::Table;
pub use self::tone::Tone;
use crate::model::Timestamp;

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
    /// A value has no YAML form; does not happen for the types here.
    #[error("cannot write the output as YAML: {0}")]
    Yaml(String),
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
    raw(&text)
}

/// Prints text as it is.
///
/// # Errors
/// As for [`line`].
pub fn raw(text: &str) -> Result<(), OutputError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

/// Prints text that may have lines: as it is into a pipe, on a terminal without what else would drive it.
///
/// # Errors
/// As for [`line`].
pub fn text(text: &str) -> Result<(), OutputError> {
    if !io::stdout().is_terminal() {
        return line(text);
    }
    lines(text.split('\n').map(clean))
}

/// `value` as JSON over several lines, without the last line's end.
///
/// # Errors
/// [`OutputError::Json`].
pub fn to_json<T: Serialize + ?Sized>(value: &T) -> Result<String, OutputError> {
    Ok(escaped(serde_json::to_string_pretty(value)?))
}

/// The same JSON with the control characters in its texts that JSON allows and terminals obey (DEL and C1) escaped.
pub(super) fn escaped(json: String) -> String {
    let obeyed = |c: char| ('\u{7f}'..='\u{9f}').contains(&c);
    if !json.contains(obeyed) {
        return json;
    }
    json.chars().fold(String::with_capacity(json.len() + 16), |mut text, c| {
        match obeyed(c) {
            true => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => text.push(c),
        }
        text
    })
}

/// `value` as YAML, without the last line's end: the same data as [`to_json`], in the same order.
///
/// # Errors
/// [`OutputError::Yaml`].
pub fn to_yaml<T: Serialize + ?Sized>(value: &T) -> Result<String, OutputError> {
    // Quoted on one line, whatever text holds: in blocks blanks at the ends of lines would be lost on the reader.
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    let text = serde_saphyr::to_string_with_options(&value, options);
    let text = text.map_err(|error| OutputError::Yaml(error.to_string()))?;
    Ok(text.trim_end_matches('\n').to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn yaml_holds_what_json_holds_whatever_stands_in_it() {
        let texts = [
            "",
            "a",
            "no",
            "1",
            "1.0",
            "0x1f",
            "null",
            "~",
            "2026-11-23",
            "12:34:56",
            "- a",
            "a: b",
            "#x",
            "  x ",
            "a\nb\n",
            "a \n\n b",
            "\u{1b}[2J\r",
            "ä\u{9b}\u{feff}",
            "'\"\\",
            "%YAML",
            "---",
            "=",
            "<<",
            "*a",
            "&a",
            "!t",
            "|",
            ">",
        ];
        let long = "word ".repeat(100);
        let value = serde_json::json!({
            "texts": texts, "long": long, "": {}, "empty": [], "null": null, "yes": true, "n": -5, "big": u64::MAX,
            "nested": [[1, [2]], [], {"a": [{"b": {}}]}], "org.cirruslabs.x/y": "z", "1": 1, "a: b": "c\td",
        });
        let text = to_yaml(&value).unwrap();
        assert_eq!(serde_saphyr::from_str::<serde_json::Value>(&text).unwrap(), value, "{text}");
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
        for text in texts {
            assert_eq!(serde_saphyr::from_str::<String>(&to_yaml(text).unwrap()).unwrap(), text);
        }
    }
}
