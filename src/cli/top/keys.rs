//! What keys mean: read from the terminal's, so that nothing else knows how those are told apart. Pure.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::cursor::Step;

/// A key as it is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// An arrow and its like.
    Go(Step),
    /// Tab.
    Next,
    /// Tab with Shift.
    Previous,
    Enter,
    Escape,
    Backspace,
    /// Ctrl-U.
    Clear,
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-Z.
    Suspend,
    /// A character, which may be a way to go: see [`step`].
    Char(char),
}

/// What a key that was pressed means, if anything.
pub(super) fn read(key: &KeyEvent) -> Option<Key> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return match key.code {
            KeyCode::Char('c' | 'C') => Some(Key::Interrupt),
            KeyCode::Char('z' | 'Z') => Some(Key::Suspend),
            KeyCode::Char('u' | 'U') => Some(Key::Clear),
            _ => None,
        };
    }
    match key.code {
        KeyCode::Up => Some(Key::Go(Step::Up)),
        KeyCode::Down => Some(Key::Go(Step::Down)),
        KeyCode::PageUp => Some(Key::Go(Step::PageUp)),
        KeyCode::PageDown => Some(Key::Go(Step::PageDown)),
        KeyCode::Home => Some(Key::Go(Step::First)),
        KeyCode::End => Some(Key::Go(Step::Last)),
        KeyCode::Tab => Some(Key::Next),
        KeyCode::BackTab => Some(Key::Previous),
        KeyCode::Enter => Some(Key::Enter),
        KeyCode::Esc => Some(Key::Escape),
        KeyCode::Backspace => Some(Key::Backspace),
        KeyCode::Char(c) => Some(Key::Char(c)),
        _ => None,
    }
}

/// The way that a letter stands for where nothing is typed.
pub(super) fn step(key: Key) -> Option<Step> {
    match key {
        Key::Go(step) => Some(step),
        Key::Char('k') => Some(Step::Up),
        Key::Char('j') => Some(Step::Down),
        Key::Char('g') => Some(Step::First),
        Key::Char('G') => Some(Step::Last),
        Key::Char(' ') => Some(Step::PageDown),
        _ => None,
    }
}

/// Whether a line is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Typing {
    GoesOn,
    Done,
    Cancelled,
}

/// The longest line that can be typed.
const MAX_TYPED: usize = 64;

/// Types `key` into `line`.
pub(super) fn typed(line: &mut String, key: Key) -> Typing {
    match key {
        Key::Char(c) if line.chars().count() < MAX_TYPED => line.push(c),
        Key::Backspace => drop(line.pop()),
        Key::Clear => line.clear(),
        Key::Enter => return Typing::Done,
        Key::Escape => return Typing::Cancelled,
        _ => {}
    }
    Typing::GoesOn
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(code: KeyCode, modifiers: KeyModifiers) -> Option<Key> {
        read(&KeyEvent::new(code, modifiers))
    }

    #[test]
    fn control_keys_are_not_what_their_letters_are() {
        assert_eq!(press(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Key::Interrupt));
        assert_eq!(press(KeyCode::Char('x'), KeyModifiers::CONTROL), None);
        assert_eq!(press(KeyCode::Char('x'), KeyModifiers::NONE), Some(Key::Char('x')));
        assert_eq!(press(KeyCode::Char('G'), KeyModifiers::SHIFT).and_then(step), Some(Step::Last));
        let released = KeyEvent { kind: KeyEventKind::Release, ..KeyEvent::new(KeyCode::Enter, KeyModifiers::NONE) };
        assert_eq!(read(&released), None);
    }

    #[test]
    fn letters_that_move_are_letters_in_a_line() {
        let mut line = String::new();
        for key in [Key::Char('j'), Key::Char('G'), Key::Char('ä'), Key::Backspace, Key::Next] {
            assert_eq!(typed(&mut line, key), Typing::GoesOn);
        }
        assert_eq!(line, "jG");
        assert_eq!(typed(&mut line, Key::Enter), Typing::Done);
        assert_eq!(typed(&mut line, Key::Clear), Typing::GoesOn);
        assert_eq!((typed(&mut line, Key::Escape), line.as_str()), (Typing::Cancelled, ""));
    }
}
