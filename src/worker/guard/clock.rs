//! The clock of leases: time since the machine's start, its sleep included. Nobody can set it, and worker and guard read
//! the same.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::worker::lease::Moment;
use crate::worker::place;

/// Reads the time; another source in tests.
#[derive(Clone)]
pub(in crate::worker) struct Clock(Arc<dyn Fn() -> Moment + Send + Sync>);

impl Clock {
    /// The system's.
    pub(in crate::worker) fn system() -> Self {
        Self(Arc::new(since_boot))
    }

    /// Tokio's, which tests may stop and advance.
    #[cfg(test)]
    pub(super) fn of_test() -> Self {
        let start = tokio::time::Instant::now();
        Self(Arc::new(move || Moment::since_boot(Duration::from_secs(1_000) + start.elapsed())))
    }

    pub(super) fn now(&self) -> Moment {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now()).finish()
    }
}

/// What tells this start of the machine, and so of the clock, from any other. Where the system does not say, all are one: then a
/// lease of before a reboot may count as valid after it, when no VM of that time runs any more.
pub(super) async fn boot_name() -> String {
    let boot = place::boot_id().await.map(|boot| boot.trim().to_owned());
    boot.filter(|boot| !boot.is_empty()).unwrap_or_else(|| "unknown".to_owned())
}

fn since_boot() -> Moment {
    // Linux stops its monotonic clock while the machine sleeps and has another that goes on; macOS has but this one of
    // POSIX, and lets it go on.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    const CLOCK: ClockId = ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    const CLOCK: ClockId = ClockId::Monotonic;
    let time = clock_gettime(CLOCK);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Moment::since_boot(Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default()))
}
