//! Whether the guard's process goes on, and not only is there: it writes a number into `DATA/guard/beat` that grows, and the
//! worker takes one whose number stands still for a hung process (stopped, or stuck on a dead disk), ends it and starts another.
//!
//! Time is counted by the worker's own clock, which stands still while the machine sleeps: after a wake-up the guard has its
//! whole time again. A guard of an earlier release writes none, and is never taken for hung.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

/// How often the guard writes.
pub(super) const BEAT: Duration = Duration::from_secs(1);
/// After how long without a new number it counts as hung: a busy host may delay a write for seconds. Less than half of the
/// time between the end of a lease and the start of replacements would be better, and would end guards that are only slow.
pub(super) const HUNG: Duration = Duration::from_secs(10);

const NAME: &str = "beat";
/// Digits of each number, so that a shorter text never stands over a longer one.
const DIGITS: usize = 20;

/// What a guard wrote last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beat {
    /// Its process.
    pub(super) pid: u32,
    /// How often it has written.
    pub(super) number: u64,
}

impl Beat {
    /// Writes it in place, so that a full disk does not matter.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub(super) fn write(self, folder: &Path) -> io::Result<()> {
        let mut options = File::options();
        options.write(true).create(true).truncate(false).mode(0o600);
        let text = format!("{:0DIGITS$} {:0DIGITS$}\n", self.pid, self.number);
        options.open(folder.join(NAME))?.write_all_at(text.as_bytes(), 0)
    }

    /// The last that was written; `None` when there is none.
    pub(super) fn read(folder: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(folder.join(NAME)).ok()?;
        let (pid, number) = text.trim_end().split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, number: number.parse().ok()? })
    }
}

/// Follows the beats of the guard that has the folder. Pure.
#[derive(Debug, Default)]
pub(super) struct Listener {
    /// The last new one and when it came.
    heard: Option<(Beat, Instant)>,
}

impl Listener {
    /// Whether the process `holder` is hung, given what stands in its folder now.
    pub(super) fn is_hung(&mut self, holder: u32, beat: Option<Beat>, now: Instant) -> bool {
        // One of another process tells nothing of this one.
        let Some(beat) = beat.filter(|beat| beat.pid == holder) else {
            self.heard = None;
            return false;
        };
        match self.heard {
            Some((last, since)) if last == beat => now.duration_since(since) >= HUNG,
            _ => {
                self.heard = Some((beat, now));
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_as_it_was_written_whatever_stood_there_before() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Beat::read(dir.path()), None);
        for beat in [Beat { pid: u32::MAX, number: u64::MAX }, Beat { pid: 7, number: 3 }] {
            beat.write(dir.path()).unwrap();
            assert_eq!(Beat::read(dir.path()), Some(beat));
        }
        std::fs::write(dir.path().join(NAME), "nonsense").unwrap();
        assert_eq!(Beat::read(dir.path()), None);
    }

    #[test]
    fn only_a_guard_whose_own_number_stands_still_is_hung() {
        let beat = |pid, number| Some(Beat { pid, number });
        let start = Instant::now();
        let mut listener = Listener::default();
        assert!(!listener.is_hung(7, beat(7, 1), start));
        assert!(!listener.is_hung(7, beat(7, 1), start + HUNG / 2));
        assert!(!listener.is_hung(7, beat(7, 2), start + HUNG), "it goes on");
        assert!(!listener.is_hung(7, beat(7, 2), start + HUNG * 2 - Duration::from_millis(1)));
        assert!(listener.is_hung(7, beat(7, 2), start + HUNG * 2));
        // The next one has not written yet; then one of an earlier release, which never will.
        assert!(!listener.is_hung(8, beat(7, 2), start + HUNG * 4));
        assert!(!listener.is_hung(9, None, start + HUNG * 8));
        assert!(!listener.is_hung(7, beat(7, 2), start + HUNG * 9), "counted anew");
    }
}
