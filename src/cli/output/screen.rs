//! What the output goes to: whether colours may be used, how wide it is, and whether what was printed can be printed over.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _};

/// What can be done with an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Screen {
    /// Columns; none = not a terminal, and nothing is cut off.
    pub width: Option<usize>,
    /// Lines.
    pub height: Option<usize>,
    /// Colours may be used.
    pub colours: bool,
    /// The cursor can be moved.
    pub can_move: bool,
}

/// The part of the environment that counts.
#[derive(Clone, Debug, Default)]
struct Wishes {
    no_color: Option<OsString>,
    term: Option<OsString>,
}

impl Wishes {
    fn of_this_process() -> Self {
        Self { no_color: std::env::var_os("NO_COLOR"), term: std::env::var_os("TERM") }
    }
}

impl Screen {
    /// No terminal: a pipe or a file.
    pub const PLAIN: Screen = Screen { width: None, height: None, colours: false, can_move: false };

    /// Standard output as it is now; the size of a terminal changes.
    pub fn of_stdout() -> Self {
        Self::of(io::stdout().is_terminal(), &Wishes::of_this_process(), size)
    }

    /// Standard error, likewise.
    pub fn of_stderr() -> Self {
        Self::of(io::stderr().is_terminal(), &Wishes::of_this_process(), size)
    }

    fn of(is_terminal: bool, wishes: &Wishes, size: impl FnOnce() -> Option<(usize, usize)>) -> Self {
        if !is_terminal {
            return Self::PLAIN;
        }
        // https://no-color.org: set and not empty, whatever it says.
        let no_color = wishes.no_color.as_ref().is_some_and(|value| !value.is_empty());
        let can_move = wishes.term.as_ref().is_none_or(|term| term != "dumb");
        let (width, height) = size().unzip();
        Self { width, height, colours: can_move && !no_color, can_move }
    }
}

/// Whether the log, which goes to standard error, may use colours.
pub fn colours_on_stderr() -> bool {
    Screen::of_stderr().colours
}

fn size() -> Option<(usize, usize)> {
    match crossterm::terminal::size() {
        Ok((columns, rows)) if columns > 0 && rows > 0 => Some((columns.into(), rows.into())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_gets_plain_text_and_so_does_whoever_wants_it() {
        let of = |is_terminal, no_color: Option<&str>, term: Option<&str>| {
            let wishes = Wishes { no_color: no_color.map(Into::into), term: term.map(Into::into) };
            let screen = Screen::of(is_terminal, &wishes, || Some((80, 24)));
            (screen.colours, screen.can_move, screen.width)
        };
        assert_eq!(of(true, None, Some("xterm")), (true, true, Some(80)));
        assert_eq!(of(true, Some(""), None), (true, true, Some(80)));
        assert_eq!(of(true, Some("1"), Some("xterm")), (false, true, Some(80)));
        assert_eq!(of(true, None, Some("dumb")), (false, false, Some(80)));
        assert_eq!(of(false, None, Some("xterm")), (false, false, None));
    }
}
