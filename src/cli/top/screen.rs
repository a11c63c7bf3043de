//! The terminal that `orchard top` takes: keys come in, frames go out, and whoever had it gets it back as it was, after a panic,
//! too.

use std::io;
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossterm::cursor::MoveTo;
use crossterm::event::{self, Event, KeyEventKind};
use crossterm::execute;
use crossterm::terminal::{Clear, ClearType, EnterAlternateScreen, enable_raw_mode};
use ratatui::backend::CrosstermBackend;
use ratatui::{DefaultTerminal, Terminal};
use tokio::task::JoinHandle;

use crate::cli::output::Quiet;

/// For how long the thread that waits for keys does so in one go: for so long at most it stands in the way of somebody else who
/// reads them. No key is later for it.
const SLICE: Duration = Duration::from_millis(100);

/// Whether anything here has panicked since a screen was taken: the terminal was given back then, and what is told of it stands there.
static PANICKED: AtomicBool = AtomicBool::new(false);

/// A whole screen of our own, until it is dropped. Lines of the log do not reach it.
pub(super) struct Screen {
    terminal: DefaultTerminal,
    _quiet: Quiet,
}

impl Screen {
    /// Takes it.
    ///
    /// # Errors
    /// When there is no terminal.
    pub(super) fn take() -> io::Result<Self> {
        let quiet = Quiet::begin();
        // From here on a panic, of any thread, gives it back before it is told of.
        let terminal = ratatui::try_init().inspect_err(|_| drop(ratatui::try_restore()))?;
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |told| {
            PANICKED.store(true, Ordering::Relaxed);
            hook(told);
        }));
        // For terminals that have one screen only.
        execute!(io::stdout(), Clear(ClearType::All)).inspect_err(|_| drop(ratatui::try_restore()))?;
        Ok(Self { terminal, _quiet: quiet })
    }

    /// How many columns and rows it has.
    pub(super) fn size(&self) -> io::Result<(u16, u16)> {
        self.terminal.size().map(|size| (size.width, size.height))
    }

    /// Shows a frame.
    ///
    /// # Errors
    /// When the terminal is gone, and when a task has panicked: nothing is drawn over what was told of that.
    pub(super) fn draw(&mut self, render: impl FnOnce(&mut ratatui::Frame<'_>)) -> io::Result<()> {
        whole()?;
        self.terminal.draw(render).map(drop)
    }

    /// Gives it back for a while; see [`Keys::pause`] for those.
    pub(super) fn give_back(&mut self) -> io::Result<()> {
        // For terminals that have one screen only.
        let cleared = execute!(io::stdout(), Clear(ClearType::All), MoveTo(0, 0));
        ratatui::try_restore()?;
        cleared?;
        self.terminal.show_cursor()
    }

    /// Takes it again.
    pub(super) fn take_again(&mut self) -> io::Result<()> {
        whole()?;
        enable_raw_mode()?;
        execute!(io::stdout(), EnterAlternateScreen, Clear(ClearType::All))?;
        // A new one knows nothing of what was there. To clear the old one would ask the terminal where its cursor is, whose
        // answer comes as if it were typed.
        self.terminal = Terminal::new(CrosstermBackend::new(io::stdout()))?;
        Ok(())
    }
}

/// An error once a part of the program has panicked, which gave the terminal back for good.
fn whole() -> io::Result<()> {
    match PANICKED.load(Ordering::Relaxed) {
        true => Err(io::Error::other("a part of this program panicked, as told above")),
        false => Ok(()),
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // To leave the screen twice would put the cursor back to where it was before, over what was told of a panic.
        if !PANICKED.load(Ordering::Relaxed) {
            // Nothing to be done without a terminal.
            let _ = self.give_back();
        }
    }
}

/// What is typed, and how the terminal's size changes.
#[derive(Debug, Default)]
pub(super) struct Keys {
    /// A thread that waits for it.
    waiting: Option<JoinHandle<io::Result<Option<Event>>>>,
}

impl Keys {
    /// The next one. Cancel safe.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub(super) async fn next(&mut self) -> io::Result<Event> {
        loop {
            let waiting = self.waiting.get_or_insert_with(|| tokio::task::spawn_blocking(wait));
            let got = waiting.await;
            self.waiting = None;
            if let Some(event) = got.map_err(io::Error::other)?? {
                return Ok(event);
            }
        }
    }

    /// Waits until a key is pressed. That the window has another size, also since long ago, is none. Cancel safe.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub(super) async fn pressed(&mut self) -> io::Result<()> {
        while !matches!(self.next().await?, Event::Key(key) if key.kind != KeyEventKind::Release) {}
        Ok(())
    }

    /// Waits until nothing here reads what is typed, which holds until [`Keys::next`]. What was typed just before goes to nobody.
    pub(super) async fn pause(&mut self) {
        if let Some(waiting) = self.waiting.take() {
            let _ = waiting.await;
        }
    }
}

fn wait() -> io::Result<Option<Event>> {
    if event::poll(SLICE)? { event::read().map(Some) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Says to the process that this test starts that it is that one.
    const CHILD: &str = "ORCHARD_TEST_PANIC_IN";

    /// Where somebody may panic, in a process of its own with a terminal.
    fn panic_in(place: &str) {
        let mut screen = Screen::take().unwrap();
        screen.draw(|frame| frame.render_widget("a frame", frame.area())).unwrap();
        let panicked = match place {
            "a task" => std::thread::spawn(|| panic!("it went wrong")).join().is_err(),
            _ => panic::catch_unwind(panic::AssertUnwindSafe(|| screen.draw(|_| panic!("it went wrong")))).is_err(),
        };
        let again = screen.draw(|frame| frame.render_widget("another frame", frame.area()));
        drop(screen);
        let raw = crossterm::terminal::is_raw_mode_enabled().unwrap();
        println!("panicked: {panicked}, drawn again: {}, raw: {raw}", again.is_ok());
    }

    #[test]
    fn a_panic_of_any_thread_gives_the_terminal_back_and_is_seen() {
        if let Ok(place) = std::env::var(CHILD) {
            return panic_in(&place);
        }
        for place in ["the frame", "a task"] {
            let mut child = Command::new("python3");
            child.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/dialogue.py")).arg("[]");
            child.arg(std::env::current_exe().unwrap()).arg("--nocapture");
            child.arg("a_panic_of_any_thread_gives_the_terminal_back_and_is_seen");
            let output = child.env(CHILD, place).env("TERM", "xterm").output().unwrap();
            let shown = String::from_utf8_lossy(&output.stdout);
            let (screen, rest) = shown.split_once("\u{1b}[?1049l").unwrap_or_else(|| panic!("{place}: {shown:?}"));
            assert!(screen.contains("\u{1b}[?1049h"), "{place}: {shown:?}");
            assert!(rest.contains("it went wrong") && !rest.contains("\u{1b}[?1049"), "{place}: {shown:?}");
            assert!(rest.contains("panicked: true, drawn again: false, raw: false"), "{place}: {shown:?}");
        }
    }
}
