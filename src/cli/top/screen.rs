//! The terminal that `orchard top` takes: keys come in, frames go out, and whoever had it gets it back as it was, after a panic,
//! too.

use std::io;
use std::time::Duration;

use crossterm::cursor::MoveTo;
use crossterm::event::{self, Event};
use crossterm::execute;
use crossterm::terminal::{Clear, ClearType, EnterAlternateScreen, enable_raw_mode};
use ratatui::backend::CrosstermBackend;
use ratatui::{DefaultTerminal, Terminal};
use tokio::task::JoinHandle;

/// For how long the thread that waits for keys does so in one go: for so long at most it stands in the way of somebody else who
/// reads them. No key is later for it.
const SLICE: Duration = Duration::from_millis(100);

/// A whole screen of our own, until it is dropped.
pub(super) struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    /// Takes it.
    ///
    /// # Errors
    /// When there is no terminal.
    pub(super) fn take() -> io::Result<Self> {
        // A panic gives it back before it is told of.
        ratatui::try_init().map(|terminal| Self { terminal }).inspect_err(|_| drop(ratatui::try_restore()))
    }

    /// How many columns and rows it has.
    pub(super) fn size(&self) -> io::Result<(u16, u16)> {
        self.terminal.size().map(|size| (size.width, size.height))
    }

    /// Shows a frame.
    pub(super) fn draw(&mut self, render: impl FnOnce(&mut ratatui::Frame<'_>)) -> io::Result<()> {
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
        enable_raw_mode()?;
        execute!(io::stdout(), EnterAlternateScreen, Clear(ClearType::All))?;
        // A new one knows nothing of what was there. To clear the old one would ask the terminal where its cursor is, whose
        // answer comes as if it were typed.
        self.terminal = Terminal::new(CrosstermBackend::new(io::stdout()))?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Nothing to be done without a terminal. After a panic that is told of already, and stands on the screen.
        let _ = if std::thread::panicking() { ratatui::try_restore() } else { self.give_back() };
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
