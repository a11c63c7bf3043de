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
    clicolor: Option<OsString>,
    clicolor_force: Option<OsString>,
    columns: Option<OsString>,
    term: Option<OsString>,
}

impl Wishes {
    fn of_this_process() -> Self {
        let variable = |name| std::env::var_os(name);
        Self {
            no_color: variable("NO_COLOR"),
            clicolor: variable("CLICOLOR"),
            clicolor_force: variable("CLICOLOR_FORCE"),
            columns: variable("COLUMNS"),
            term: variable("TERM"),
        }
    }

    /// Whether colours are wanted, as clap has it for what it prints itself. None = where they can be shown.
    fn colours(&self) -> Option<bool> {
        // https://no-color.org: set and not empty, whatever it says.
        let no_color = self.no_color.as_ref().is_some_and(|value| !value.is_empty());
        // https://bixense.com/clicolors
        let forced = self.clicolor_force.as_ref().is_some_and(|value| value != "0");
        let off = self.clicolor.as_ref().is_some_and(|value| value == "0");
        match (no_color, forced, off) {
            (true, ..) => Some(false),
            (false, true, _) => Some(true),
            (false, false, true) => Some(false),
            (false, false, false) => None,
        }
    }

    fn columns(&self) -> Option<usize> {
        self.columns.as_ref()?.to_str()?.parse().ok().filter(|columns| *columns > 0)
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
            return Self { colours: wishes.colours().unwrap_or(false), ..Self::PLAIN };
        }
        let can_move = wishes.term.as_ref().is_none_or(|term| term != "dumb");
        let (width, height) = size().unzip();
        // Less than there is may be asked for; more would break the lines of what is drawn anew.
        let width = [width, wishes.columns()].into_iter().flatten().min();
        Self { width, height, colours: wishes.colours().unwrap_or(can_move), can_move }
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
            let wishes = Wishes { no_color: no_color.map(Into::into), term: term.map(Into::into), ..Wishes::default() };
            let screen = Screen::of(is_terminal, &wishes, || Some((80, 24)));
            (screen.colours, screen.can_move, screen.width)
        };
        assert_eq!(of(true, None, Some("xterm")), (true, true, Some(80)));
        assert_eq!(of(true, Some(""), None), (true, true, Some(80)));
        assert_eq!(of(true, Some("1"), Some("xterm")), (false, true, Some(80)));
        assert_eq!(of(true, None, Some("dumb")), (false, false, Some(80)));
        assert_eq!(of(false, None, Some("xterm")), (false, false, None));
    }

    #[test]
    fn colours_and_less_width_can_be_asked_for() {
        let of = |is_terminal, wishes: Wishes| {
            let screen = Screen::of(is_terminal, &wishes, || Some((80, 24)));
            (screen.colours, screen.width)
        };
        let set = |value: &str| Some(OsString::from(value));
        let forced = Wishes { clicolor_force: set("1"), ..Wishes::default() };
        assert_eq!(of(false, forced.clone()), (true, None));
        assert_eq!(of(true, Wishes { term: set("dumb"), ..forced.clone() }), (true, Some(80)));
        assert_eq!(of(false, Wishes { no_color: set("1"), ..forced }), (false, None));
        assert_eq!(of(false, Wishes { clicolor_force: set("0"), ..Wishes::default() }), (false, None));
        assert_eq!(of(true, Wishes { clicolor: set("0"), ..Wishes::default() }), (false, Some(80)));
        for (columns, width) in [("40", 40), ("400", 80), ("0", 80), ("wide", 80)] {
            assert_eq!(of(true, Wishes { columns: set(columns), ..Wishes::default() }).1, Some(width), "{columns}");
        }
        assert_eq!(of(false, Wishes { columns: set("40"), ..Wishes::default() }).1, None);
    }
}
