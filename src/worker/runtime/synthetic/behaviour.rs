//! How a synthetic host behaves: how long each step takes, what hangs, what is refused. Pure; set by tests and by the
//! scale runs at any time.

use std::collections::BTreeSet;
use std::time::Duration;

/// A step of a VM's life on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// Looking at what is there; at once, unless it hangs.
    List,
    /// Fetching an image that is not there.
    Pull,
    /// Making the disk.
    Create,
    /// Starting the process.
    Start,
    /// From the running process to a guest that answers.
    Boot,
    /// From the request to switch off to the end of the process.
    Stop,
    /// From the request to suspend to the end of the process.
    Suspend,
    /// Removing everything.
    Delete,
}

/// How long a step takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delay {
    /// Always as long.
    Fixed(Duration),
    /// Evenly distributed from the first to the second.
    Between(Duration, Duration),
}

impl Default for Delay {
    fn default() -> Self {
        Delay::Fixed(Duration::ZERO)
    }
}

impl Delay {
    /// The length this time.
    pub fn draw(self, dice: &mut Dice) -> Duration {
        match self {
            Delay::Fixed(length) => length,
            Delay::Between(least, most) => least + most.saturating_sub(least).mul_f64(dice.roll()),
        }
    }
}

/// The longest that a step may take before it fails with a time-out, unless set otherwise: as the real runtimes, a
/// synthetic one lets nobody wait for ever.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(600);

/// The settings of one host. The default does everything at once and without fail.
#[derive(Clone, Debug)]
pub struct Behaviour {
    /// How long [`Step::Pull`] takes.
    pub pull: Delay,
    /// What each image takes on the disk, in bytes.
    pub image_bytes: u64,
    /// The size of the disk, in bytes.
    pub disk_bytes: u64,
    /// How long [`Step::Create`] takes.
    pub create: Delay,
    /// How long [`Step::Start`] takes.
    pub start: Delay,
    /// How long [`Step::Boot`] takes.
    pub boot: Delay,
    /// How long [`Step::Stop`] and [`Step::Suspend`] take; the grace given ends it in any case.
    pub stop: Delay,
    /// How long [`Step::Delete`] takes.
    pub delete: Delay,
    /// Steps that come to no end: they time out after [`Behaviour::deadline`], and the guest never answers.
    pub hang: BTreeSet<Step>,
    /// How long a step may take.
    pub deadline: Duration,
    /// Starting one more fails once so many copies run.
    pub max_running: Option<usize>,
    /// How many guests may boot at once.
    pub boot_permits: usize,
    /// Ports on which the guests refuse connections.
    pub refused_ports: BTreeSet<u16>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            pull: Delay::default(),
            image_bytes: 1 << 30,
            disk_bytes: 1 << 50, // room for more images than any test has
            create: Delay::default(),
            start: Delay::default(),
            boot: Delay::default(),
            stop: Delay::default(),
            delete: Delay::default(),
            hang: BTreeSet::new(),
            deadline: DEFAULT_DEADLINE,
            max_running: None,
            boot_permits: 64, // nothing is slowed down by another
            refused_ports: BTreeSet::new(),
        }
    }
}

impl Behaviour {
    /// How long `step` takes, as set; none when it hangs.
    pub fn length(&self, step: Step, dice: &mut Dice) -> Option<Duration> {
        let delay = match step {
            Step::List => Delay::default(),
            Step::Pull => self.pull,
            Step::Create => self.create,
            Step::Start => self.start,
            Step::Boot => self.boot,
            Step::Stop | Step::Suspend => self.stop,
            Step::Delete => self.delete,
        };
        (!self.hang.contains(&step)).then(|| delay.draw(dice))
    }
}

/// A small random generator (SplitMix64): the same seed gives the same run.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// A generator that starts at `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number from 0 to below 1.
    pub fn roll(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1u64 << 53) as f64 // 53 bits, the precision of f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_stay_in_their_range_and_repeat_with_their_seed() {
        let (least, most) = (Duration::from_secs(1), Duration::from_secs(3));
        let draws = |seed| {
            let mut dice = Dice::new(seed);
            (0..100).map(|_| Delay::Between(least, most).draw(&mut dice)).collect::<Vec<_>>()
        };
        assert!(draws(1).iter().all(|length| (least..most).contains(length)));
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
        assert_eq!(Delay::Between(most, least).draw(&mut Dice::new(1)), most);
    }
}
