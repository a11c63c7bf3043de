//! Places between two steps with files where a process may be killed: tests end it there, as it were, and look at what the
//! next one makes of what is left. Nothing happens at them in a real process.

use std::io;

/// A place where the process may be killed. In a test that asked for it, this and every later step on this thread fails.
///
/// # Errors
/// In tests only.
#[cfg(not(test))]
pub fn point() -> io::Result<()> {
    Ok(())
}

/// As above.
#[cfg(test)]
pub fn point() -> io::Result<()> {
    tests::count()
}

/// The test side.
#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;
    use std::io;

    thread_local! {
        /// Places that are still passed; none = all are.
        static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// Runs as if the process were killed at the place number `after`, counting from 0; says whether it got there.
    pub(crate) async fn killed_at<T>(after: u32, work: impl Future<Output = T>) -> (T, bool) {
        LEFT.set(Some(after + 1));
        let outcome = work.await;
        (outcome, LEFT.replace(None) == Some(0))
    }

    pub(super) fn count() -> io::Result<()> {
        match LEFT.get() {
            None => Ok(()),
            Some(0 | 1) => {
                LEFT.set(Some(0));
                Err(io::Error::other("killed"))
            }
            Some(left) => {
                LEFT.set(Some(left - 1));
                Ok(())
            }
        }
    }
}
