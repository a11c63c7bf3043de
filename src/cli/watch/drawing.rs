//! A text on a terminal that is drawn over itself. Pure: it yields what is to be written.

use std::fmt::Write as _;

use crossterm::Command as _;
use crossterm::cursor::{MoveTo, MoveToColumn, MoveUp};
use crossterm::terminal::{Clear, ClearType, DisableLineWrap, EnableLineWrap};

use crate::cli::output::Screen;

/// What stands on the terminal.
#[derive(Debug, Default)]
pub(super) struct Drawing {
    lines: usize,
    on: Option<(Option<usize>, Option<usize>)>,
}

impl Drawing {
    /// What to write so that `lines`, as many of them as fit, and `note` stand in the place of what was drawn before. The
    /// cursor is on the line below then.
    pub(super) fn over(&mut self, lines: Vec<String>, note: Option<String>, screen: Screen) -> String {
        let lines = frame(lines, note, screen.height);
        let size = Some((screen.width, screen.height));
        let mut text = String::new();
        if self.on.is_some() && self.on != size {
            // Where its lines are now, the terminal alone knows.
            let _ = write!(text, "{}{}", Clear(ClearType::All), MoveTo(0, 0));
        } else if self.lines > 0 {
            let up = u16::try_from(self.lines).unwrap_or(u16::MAX);
            let _ = write!(text, "{}{}", MoveUp(up), MoveToColumn(0));
        }
        // A line that is too long ends at the edge: one that went on below would not be counted.
        let _ = DisableLineWrap.write_ansi(&mut text);
        for line in &lines {
            let _ = writeln!(text, "{line}{}", Clear(ClearType::UntilNewLine));
        }
        let _ = write!(text, "{}", Clear(ClearType::FromCursorDown));
        let _ = EnableLineWrap.write_ansi(&mut text);
        (self.lines, self.on) = (lines.len(), size);
        text
    }
}

/// As many of `lines` as fit above the line of the cursor, with `note` below them.
fn frame(mut lines: Vec<String>, note: Option<String>, height: Option<usize>) -> Vec<String> {
    let most = height.unwrap_or(usize::MAX).saturating_sub(1 + usize::from(note.is_some())).max(1);
    if lines.len() > most {
        let hidden = lines.len() - (most - 1);
        lines.truncate(most - 1);
        lines.push(format!("… and {hidden} more; a higher window shows them"));
    }
    lines.extend(note);
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(width: usize, height: usize) -> Screen {
        Screen { width: Some(width), height: Some(height), colours: false, can_move: true }
    }

    fn lines(count: usize) -> Vec<String> {
        (0..count).map(|number| number.to_string()).collect()
    }

    #[test]
    fn what_was_drawn_is_drawn_over() {
        let mut drawing = Drawing::default();
        let first = drawing.over(lines(2), None, on(80, 24));
        assert_eq!(first, "\u{1b}[?7l0\u{1b}[K\n1\u{1b}[K\n\u{1b}[J\u{1b}[?7h");
        let second = drawing.over(lines(1), None, on(80, 24));
        assert_eq!(second, "\u{1b}[2A\u{1b}[1G\u{1b}[?7l0\u{1b}[K\n\u{1b}[J\u{1b}[?7h");
        let resized = drawing.over(lines(1), None, on(40, 24));
        assert!(resized.starts_with("\u{1b}[2J\u{1b}[1;1H"), "{resized:?}");
    }

    #[test]
    fn what_does_not_fit_is_counted() {
        assert_eq!(frame(lines(3), None, Some(4)), ["0", "1", "2"]);
        assert_eq!(frame(lines(5), None, Some(4)), ["0", "1", "… and 3 more; a higher window shows them"]);
        assert_eq!(frame(lines(3), Some("away".into()), Some(4))[1], "… and 2 more; a higher window shows them");
        assert_eq!(frame(lines(3), Some("away".into()), None), ["0", "1", "2", "away"]);
        assert_eq!(frame(lines(3), None, Some(1)), ["… and 3 more; a higher window shows them"]);
    }
}
