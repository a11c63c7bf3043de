//! How something goes on, told on standard error: by a spinner and the time it takes on a terminal, else a line for each change.

use std::time::Duration;

use super::clean;
use super::screen::Screen;

/// Tells how something goes on.
#[derive(Debug)]
pub struct Progress {
    spinner: Option<indicatif::ProgressBar>,
    last: String,
}

/// The time stands before the text, which may be longer than the line.
const FORM: &str = "{spinner} {elapsed:>3}  {msg}";
/// How often the spinner turns.
const SPIN_PERIOD: Duration = Duration::from_millis(120);

impl Progress {
    /// Starts to tell.
    pub fn start() -> Self {
        let spinner = Screen::of_stderr().can_move.then(|| {
            let bar = indicatif::ProgressBar::new_spinner();
            if let Ok(style) = indicatif::ProgressStyle::with_template(FORM) {
                bar.set_style(style);
            }
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
