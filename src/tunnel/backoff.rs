//! How long to wait before the next dial. Pure: the caller brings the randomness.

use std::time::Duration;

/// The first wait: a relay that restarts is back about this soon.
const FIRST: Duration = Duration::from_millis(250);

/// The longest wait: a worker is connectable again at most so long after its network is.
const LONGEST: Duration = Duration::from_secs(15);

/// Waits that double, each drawn from its upper half so that many workers do not dial at the same moment.
#[derive(Clone, Debug)]
pub struct Backoff {
    ceiling: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { ceiling: FIRST }
    }
}

impl Backoff {
    /// The next wait; `random` is any number.
    pub fn next(&mut self, random: u32) -> Duration {
        let half = self.ceiling / 2;
        let wait = half + half.mul_f64(f64::from(random) / f64::from(u32::MAX));
        self.ceiling = (self.ceiling * 2).min(LONGEST);
        wait
    }

    /// From here on only the longest waits: something else than time must come first.
    pub fn exhaust(&mut self) {
        self.ceiling = LONGEST;
    }

    /// Starts over: the last dial led to a connection that held.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_start_over() {
        for random in [0, 1 << 31, u32::MAX] {
            let mut backoff = Backoff::default();
            let waits: Vec<_> = (0..20).map(|_| backoff.next(random)).collect();
            assert!(waits.iter().all(|wait| *wait >= FIRST / 2 && *wait <= LONGEST));
            assert!(waits.windows(2).all(|pair| pair[0] <= pair[1]));
            assert!(waits[19] >= LONGEST / 2);
            backoff.exhaust();
            assert!(backoff.next(random) >= LONGEST / 2);
            backoff.reset();
            assert!(backoff.next(random) <= FIRST);
        }
    }
}
