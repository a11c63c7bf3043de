//! Where lines of the log go: to standard error, but never onto a terminal that a command has for its whole screen. `main` writes
//! them here; `orchard top` keeps them off.

use std::io::{self, IsTerminal as _, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many have a whole screen: one at a time, but for tests.
static SCREENS: AtomicUsize = AtomicUsize::new(0);

/// What takes lines of the log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Log;

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if is_heard() { io::stderr().write(line) } else { Ok(line.len()) }
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        if is_heard() { io::stderr().write_all(line) } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

fn is_heard() -> bool {
    SCREENS.load(Ordering::Relaxed) == 0 || !io::stderr().is_terminal()
}

/// For as long as it is there no line of the log reaches a terminal; one that goes to a file goes there still.
#[derive(Debug)]
pub struct Quiet(());

impl Quiet {
    /// From now on.
    pub fn begin() -> Self {
        SCREENS.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        SCREENS.fetch_sub(1, Ordering::Relaxed);
    }
}
