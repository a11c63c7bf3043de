//! What the writer counts of itself; atomics, read by whoever watches.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::controller::cluster::{Changes, Cluster};
use crate::metrics::{Counter, Histogram, QUICK, SIZES};
use crate::model::Timestamp;
use crate::model::event::{EventObject, EventType};

/// Figures since the start.
#[derive(Debug)]
pub struct Meters {
    /// How long each commit took, in seconds.
    pub commits: Histogram,
    /// Steps in each.
    pub batches: Histogram,
    /// Commits that failed.
    pub failures: Counter,
    /// VMs placed on a worker.
    pub placements: Counter,
    /// From the request for a VM to its first placement, in seconds.
    pub scheduling: Histogram,
    /// When the last was, in milliseconds since 1970; 0 = none was.
    placed: AtomicU64,
    /// One for each of [`EventType::ALL`].
    events: Box<[Counter]>,
    /// Whether the last commit failed.
    failing: AtomicBool,
    /// When something was stored last, in milliseconds of the clock.
    stored: AtomicU64,
}

impl Default for Meters {
    fn default() -> Self {
        Self {
            commits: Histogram::new(QUICK),
            batches: Histogram::new(SIZES),
            failures: Counter::default(),
            placements: Counter::default(),
            scheduling: Histogram::new(SLOW_PLACEMENTS),
            placed: AtomicU64::new(0),
            events: EventType::ALL.iter().map(|_| Counter::default()).collect(),
            failing: AtomicBool::new(false),
            stored: AtomicU64::new(0),
        }
    }
}

/// Bounds in seconds: a VM is placed at once, or waits until there is room, for hours perhaps.
const SLOW_PLACEMENTS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0];

impl Meters {
    /// A batch of `steps` is durable, after `took`, at `now` of the monotonic clock.
    pub(super) fn stored(&self, steps: usize, took: Duration, now: Duration) {
        self.commits.took(took);
        self.batches.observe(steps as f64);
        self.failing.store(false, Ordering::Relaxed);
        self.stored.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// One could not be stored.
    pub(super) fn failed(&self) {
        self.failures.inc();
        self.failing.store(true, Ordering::Relaxed);
    }

    /// Counts what a durable batch says.
    pub(super) fn count(&self, cluster: &Cluster, changes: &Changes) {
        for event in &changes.events {
            if let Some(counter) =
                EventType::ALL.iter().position(|kind| *kind == event.kind).and_then(|at| self.events.get(at))
            {
                counter.inc();
            }
            if event.kind != EventType::Scheduled {
                continue;
            }
            self.placements.inc();
            self.placed.store(u64::try_from(event.time.as_millis()).unwrap_or(0), Ordering::Relaxed);
            // One that starts over was asked for long ago.
            let EventObject::Vm { uid, .. } = &event.object else { continue };
            if let Some(vm) = cluster.vm_record(*uid).filter(|vm| vm.restart_count == 0 && vm.boot == 0) {
                self.scheduling.took(vm.created_at.until(event.time));
            }
        }
    }

    /// When a VM was placed last, since the start.
    pub fn last_placement(&self) -> Option<Timestamp> {
        let at = self.placed.load(Ordering::Relaxed);
        (at > 0).then(|| Timestamp::from_millis(i64::try_from(at).unwrap_or(i64::MAX)))
    }

    /// Events so far by type.
    pub fn events(&self) -> impl Iterator<Item = (EventType, u64)> + '_ {
        EventType::ALL.iter().copied().zip(self.events.iter().map(Counter::get))
    }

    /// Whether the last commit failed.
    pub fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// When something was stored last, by the monotonic clock.
    pub fn last_stored(&self) -> Duration {
        Duration::from_millis(self.stored.load(Ordering::Relaxed))
    }
}
