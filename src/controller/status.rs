//! `controller.status`: what the controller counts and knows, put together for its operator, with what deserves a look.

use std::collections::BTreeMap;
use std::time::Duration;

use super::cluster::Summary;
use super::store::{FULL, Room, SCHEMA};
use super::watch::Watch;
use crate::bus::status::{
    BrokerStatus, ControllerStatus, FeedStatus, QueueStatus, RequestStatus, SchedulerStatus, StoreStatus, TunnelStatus,
    WorkersStatus,
};
use crate::metrics::Reading;
use crate::model::error::ApiError;
use crate::model::event::EventFilter;
use crate::model::worker::WorkerState;
use crate::model::{Now, Timestamp, WorkerName};

/// Less than this share of the disk, in hundredths, is nearly nothing.
const DISK_LOW: u64 = 5;
/// And so is less than this, in bytes: a busy day's events.
const DISK_LOW_BYTES: u64 = 1 << 30;
/// Before the map counts as full, in hundredths of it.
const MAP_LOW: u64 = FULL - 10;
/// The publisher is behind when so many wait; with a bus that works none does for longer than a moment.
const BEHIND: u64 = 1_000;
/// Clocks that differ by less are nobody's concern.
const CLOCK: Duration = Duration::from_secs(5);
/// Names that a warning lists.
const NAMED: usize = 5;

/// What is known besides what the status itself says.
struct Known<'a> {
    summary: &'a Summary,
    /// The last commit failed.
    failing: bool,
    /// The controller does not hear itself on the bus.
    silence: Option<Duration>,
    now: Now,
    /// By how much the clock on the wall was set since the start, and whether forward.
    set: (Duration, bool),
}

impl Watch {
    /// How the controller is doing.
    ///
    /// # Errors
    /// As for [`Watch::summary`].
    pub(super) async fn status(&self) -> Result<ControllerStatus, ApiError> {
        let summary = self.summary().await?;
        let now = self.clock.now();
        let uptime = now.mono;
        let meters = self.writer.meters();
        let (used_bytes, map_bytes) = self.store.size();
        let disk = self.disk().await;
        let commits = meters.commits.read();
        let (requests, failed) = self.requests.all();
        let sent = self.writer.sent();
        let (first_event, first_audit) = self.first_kept().await;
        let names = summary.workers.iter().map(|worker| &worker.name);
        let traffic = self.gate.traffic();
        let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let mut status = ControllerStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: self.started,
            uptime_s: uptime.as_secs(),
            warnings: Vec::new(),
            store: StoreStatus {
                schema: SCHEMA,
                used_bytes,
                map_bytes,
                disk_free_bytes: disk.map(|(free, _)| free),
                disk_bytes: disk.map(|(_, size)| size),
                commits: commits.count,
                commit_failures: meters.failures.get(),
                commit_p99_us: p99(&commits),
            },
            events: feed(first_event, summary.last_event, sent.events),
            audit: feed(first_audit, summary.last_audit, sent.audit),
            queues: QueueStatus {
                writer: number(self.writer.waiting()),
                writer_capacity: number(self.writer.capacity()),
                requests: self.requests.running(),
            },
            scheduler: SchedulerStatus {
                last_pass_ms: u64::try_from(self.tick_age().as_millis()).unwrap_or(u64::MAX),
                placements: meters.placements.get(),
                last_placement: meters.last_placement(),
                pending: owned(&summary.pending),
            },
            vms: owned(&summary.vms),
            workers: WorkersStatus {
                states: owned(&summary.states),
                connectable: number(names.filter(|name| self.relay.reaches(name).is_ok()).count()),
                paused: summary.paused,
                strays: summary.strays,
            },
            broker: self.broker().map(|stats| BrokerStatus {
                connections: number(stats.connections),
                subscriptions: number(stats.subscriptions),
                messages_in: stats.messages_in,
                messages_out: stats.messages_out,
                slow_consumers: stats.slow_consumers,
            }),
            tunnel: TunnelStatus {
                open: traffic.opened.get().saturating_sub(traffic.closed.get()),
                opened: traffic.opened.get(),
                broken: traffic.broken.get(),
                failed: traffic.failed.get(),
            },
            requests: RequestStatus { answered: requests.count, failed, p99_us: p99(&requests) },
        };
        let expected = self.started.as_millis().saturating_add(i64::try_from(uptime.as_millis()).unwrap_or(i64::MAX));
        let expected = Timestamp::from_millis(expected);
        let set = (now.wall.until(expected).max(expected.until(now.wall)), now.wall.as_millis() > expected.as_millis());
        let known = Known { summary: &summary, failing: meters.is_failing(), silence: self.pulse.silence(), now, set };
        status.warnings = warnings(&status, &known);
        Ok(status)
    }

    /// The lowest numbers of events and audit records still kept; 0 when that cannot be read.
    async fn first_kept(&self) -> (u64, u64) {
        let store = self.store.clone();
        let one = Room { items: 1, bytes: 1 };
        let read = tokio::task::spawn_blocking(move || {
            let events = store.events(0, one, &EventFilter::default()).map_or(0, |page| page.first_kept);
            (events, store.audit(0, one).map_or(0, |page| page.first_kept))
        });
        read.await.unwrap_or_default()
    }
}

fn feed(first: u64, last: u64, sent: u64) -> FeedStatus {
    FeedStatus { first, last, unpublished: last.saturating_sub(sent) }
}

fn owned(counts: &BTreeMap<&'static str, u64>) -> BTreeMap<String, u64> {
    counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

/// In microseconds.
fn p99(reading: &Reading) -> Option<u64> {
    reading.quantile(0.99).map(|seconds| (seconds * 1e6) as u64)
}

/// What an operator should look at.
fn warnings(status: &ControllerStatus, known: &Known<'_>) -> Vec<String> {
    let mut warnings = Vec::new();
    let StoreStatus { used_bytes, map_bytes, disk_free_bytes, disk_bytes, .. } = status.store;
    if known.failing {
        warnings.push("the last changes could not be stored; the controller's log says why".to_owned());
    }
    let mib = |bytes: u64| bytes >> 20;
    match &known.summary.full {
        Some(full) => warnings.push(full.clone()),
        None if used_bytes.saturating_mul(100) >= map_bytes.saturating_mul(MAP_LOW) => warnings.push(format!(
            "the database has {} of {} MiB in use; from {FULL} % on nothing new is taken in",
            mib(used_bytes),
            mib(map_bytes)
        )),
        None => {}
    }
    if let (Some(free), Some(size)) = (disk_free_bytes, disk_bytes)
        && (free < DISK_LOW_BYTES || free.saturating_mul(100) < size.saturating_mul(DISK_LOW))
    {
        warnings.push(format!("the disk of the database is nearly full: {} of {} MiB are free", mib(free), mib(size)));
    }
    let silent = |state| known.summary.workers.iter().filter(move |worker| worker.state == state);
    for (state, what) in [(WorkerState::Unseen, "not seen"), (WorkerState::Gone, "gone")] {
        let names: Vec<&WorkerName> = silent(state).map(|worker| &worker.name).collect();
        if !names.is_empty() {
            let some: Vec<&str> = names.iter().take(NAMED).map(|name| name.as_str()).collect();
            let more = if names.len() > NAMED { ", …" } else { "" };
            warnings.push(format!("workers {what}: {} ({}{more})", names.len(), some.join(", ")));
        }
    }
    if known.summary.strays > 0 {
        let strays = known.summary.strays;
        warnings.push(format!("copies of VMs that nobody asked for: {strays} (`orchard list strays`)"));
    }
    for (what, feed) in [("events", status.events), ("audit records", status.audit)] {
        if feed.unpublished >= BEHIND {
            warnings.push(format!("the publisher is behind: {} {what} are not published yet", feed.unpublished));
        }
    }
    if let Some(silence) = known.silence {
        let seconds = silence.as_secs();
        warnings.push(format!(
            "the controller has not heard itself on the bus for {seconds} s; silence of workers means nothing"
        ));
    }
    if status.queues.writer.saturating_mul(2) >= status.queues.writer_capacity.max(1) {
        warnings.push(format!("{} steps wait for the disk", status.queues.writer));
    }
    if known.set.0 >= CLOCK {
        let way = if known.set.1 { "forward" } else { "back" };
        warnings.push(format!("the clock was set {way} by {} s since the start", known.set.0.as_secs()));
    }
    if known.now.wall.as_millis() < YEAR_2024 {
        warnings.push(format!("the clock says {}, which cannot be", known.now.wall));
    }
    warnings
}

/// Before this release was written, in milliseconds since 1970.
const YEAR_2024: i64 = 1_704_067_200_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::cluster::WorkerFigures;
    use crate::model::resources::Resources;

    fn healthy() -> ControllerStatus {
        ControllerStatus {
            store: StoreStatus {
                used_bytes: 1 << 20,
                map_bytes: 64 << 30,
                disk_free_bytes: Some(50 << 30),
                disk_bytes: Some(100 << 30),
                ..StoreStatus::default()
            },
            queues: QueueStatus { writer: 3, writer_capacity: 4_096, requests: 1 },
            ..ControllerStatus::default()
        }
    }

    fn known(summary: &Summary) -> Known<'_> {
        let now = Now { wall: Timestamp::from_millis(YEAR_2024), mono: Duration::ZERO };
        Known { summary, failing: false, silence: None, now, set: (Duration::from_secs(1), true) }
    }

    #[test]
    fn a_healthy_controller_warns_of_nothing() {
        assert_eq!(warnings(&healthy(), &known(&Summary::default())), Vec::<String>::new());
    }

    #[test]
    fn each_thing_that_is_wrong_is_told_once() {
        let worker = |n: usize, state| WorkerFigures {
            name: format!("w{n}").parse().unwrap(),
            state,
            last_seen: None,
            vms: 0,
            used: Resources::default(),
            total: Resources::default(),
        };
        let mut workers: Vec<_> = (0..7).map(|n| worker(n, WorkerState::Unseen)).collect();
        workers.push(worker(7, WorkerState::Gone));
        let summary = Summary { workers, strays: 2, full: None, ..Summary::default() };
        let mut status = healthy();
        status.store.used_bytes = 60 << 30;
        status.store.disk_free_bytes = Some(4 << 30);
        status.events.unpublished = BEHIND;
        status.queues.writer = 4_000;
        let now = Now { wall: Timestamp::from_millis(0), mono: Duration::ZERO };
        let ill = Known {
            failing: true,
            silence: Some(Duration::from_secs(9)),
            set: (Duration::from_secs(60), false),
            now,
            ..known(&summary)
        };
        let told = warnings(&status, &ill);
        for part in [
            "could not be stored",
            "the database has 61440 of 65536 MiB",
            "the disk of the database is nearly full",
            "workers not seen: 7 (w0, w1, w2, w3, w4, …)",
            "workers gone: 1 (w7)",
            "nobody asked for: 2",
            "1000 events are not published",
            "on the bus for 9 s",
            "4000 steps wait",
            "set back by 60 s",
            "the clock says 1970",
        ] {
            assert_eq!(told.iter().filter(|warning| warning.contains(part)).count(), 1, "{part}: {told:#?}");
        }
        assert_eq!(told.len(), 11, "{told:#?}");
    }
}
