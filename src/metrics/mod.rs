//! What the parts count and measure about themselves, and the page that shows it, for Prometheus and for load balancers.
//!
//! Parts count with [`Counter`]s and [`Histogram`]s, which are atomics: nothing waits, and nothing is computed until
//! somebody asks. Whoever asks ([`server`]) has each [`Source`] put its figures on a [`Page`], which is written in the
//! OpenMetrics text format. All names stand in [`names`].

pub mod names;
pub mod page;
pub mod server;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use self::page::Page;

/// A part that can be watched.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// Puts what it has counted on the page. Takes no longer than a scraper waits; what cannot be had is left out.
    async fn scrape(&self, page: &mut Page);

    /// Whether it goes on at all, so that starting it anew would not help. Looks at memory only.
    ///
    /// # Errors
    /// What stands still, for people.
    fn alive(&self) -> Result<(), String>;

    /// Whether it does its work now.
    ///
    /// # Errors
    /// Everything that keeps it from that, for people.
    async fn ready(&self) -> Result<(), Vec<String>>;
}

/// Something that only ever grows, until the process ends.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// `more` more.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// How many there were.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How often something had which size: a counter for each of a few ranges. The same bounds for the life of the process.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One for each bound, and one for what lies above all.
    counts: Box<[AtomicU64]>,
    /// The sum of all values in [`SUM_UNIT`]s.
    sum: AtomicU64,
}

/// What a histogram's sum is counted in: small enough for a commit of microseconds, and 584 years of them fit.
const SUM_UNIT: f64 = 1e-9;

/// Bounds in seconds for what should take no time: from a commit to a request that is given up.
pub const QUICK: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Bounds in seconds for what a host does: from a look at a process to an image of 100 GB.
pub const SLOW: &[f64] = &[0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0];
/// Bounds for numbers of things.
pub const SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

impl Histogram {
    /// An empty one with these upper bounds, which grow.
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = std::iter::repeat_with(AtomicU64::default).take(bounds.len() + 1).collect();
        Self { bounds, counts, sum: AtomicU64::new(0) }
    }

    /// Counts one value.
    pub fn observe(&self, value: f64) {
        let at = self.bounds.iter().position(|bound| value <= *bound).unwrap_or(self.bounds.len());
        if let Some(count) = self.counts.get(at) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        // Saturates; a negative value counts as none.
        self.sum.fetch_add((value / SUM_UNIT) as u64, Ordering::Relaxed);
    }

    /// Counts a length of time, in seconds.
    pub fn took(&self, time: Duration) {
        self.observe(time.as_secs_f64());
    }

    /// What was counted so far.
    pub fn read(&self) -> Reading {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let count = buckets.iter().map(|(_, count)| count).sum();
        Reading { sum: self.sum.load(Ordering::Relaxed) as f64 * SUM_UNIT, count, buckets }
    }
}

/// What a [`Histogram`] has counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// The sum of all values.
    pub sum: f64,
    /// How many there were.
    pub count: u64,
    /// Upper bounds, the last being [`f64::INFINITY`] for none, and how many values lie between each and the one before.
    pub buckets: Vec<(f64, u64)>,
}

impl Reading {
    /// Adds what another histogram of the same bounds has counted.
    pub fn absorb(&mut self, other: &Reading) {
        self.sum += other.sum;
        self.count += other.count;
        match self.buckets.is_empty() {
            true => self.buckets.clone_from(&other.buckets),
            false => self.buckets.iter_mut().zip(&other.buckets).for_each(|(own, more)| own.1 += more.1),
        }
    }

    /// The bound below which `share` (of 1) of the values lie; none without values, or when it lies above all bounds.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let wanted = (self.count as f64 * share).ceil().max(1.0) as u64;
        let mut seen = 0;
        let found = self.buckets.iter().find(|(_, count)| {
            seen += count;
            self.count > 0 && seen >= wanted
        });
        found.map(|(bound, _)| *bound).filter(|bound| *bound < f64::INFINITY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_below_the_bound_that_they_reach() {
        let histogram = Histogram::new(SIZES);
        for value in [0.0, 1.0, 1.5, 512.0, 513.0] {
            histogram.observe(value);
        }
        let read = histogram.read();
        assert_eq!((read.count, read.buckets.len()), (5, SIZES.len() + 1));
        assert!((read.sum - 1027.5).abs() < 1e-6, "{}", read.sum);
        let at = |bound: f64| read.buckets.iter().find(|(upper, _)| *upper == bound).unwrap().1;
        assert_eq!((at(1.0), at(2.0), at(512.0), at(f64::INFINITY)), (2, 1, 1, 1));
    }

    #[test]
    fn a_quantile_is_the_bound_that_so_many_reach() {
        let histogram = Histogram::new(SIZES);
        assert_eq!(histogram.read().quantile(0.5), None);
        (0..99).for_each(|_| histogram.observe(3.0));
        histogram.observe(1_000.0);
        let read = histogram.read();
        assert_eq!((read.quantile(0.5), read.quantile(0.99), read.quantile(1.0)), (Some(4.0), Some(4.0), None));
    }
}
