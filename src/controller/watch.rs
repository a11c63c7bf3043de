//! The controller as those see it who watch it: its figures, whether it goes on, and whether it does its work.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use super::cluster::Summary;
use super::gate::Gate;
use super::pulse::Pulse;
use super::service::requests::Requests;
use super::store::Store;
use super::store::writer::Writer;
use crate::broker::{Meter, Stats};
use crate::metrics::page::Page;
use crate::metrics::{Source, names};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::{Clock, Timestamp};
use crate::tunnel::relay::Control;

/// How long a scrape and a look at the health wait for the writer. Far longer than a commit on a disk that works, and less
/// than Prometheus waits.
const WRITER_LIMIT: Duration = Duration::from_secs(3);
/// Time passes four times a second; each waits for the writer for ten seconds at most.
const MOST_BETWEEN_TICKS: Duration = Duration::from_secs(30);
/// The same for one that does its work.
const MOST_WHEN_READY: Duration = Duration::from_secs(5);
/// What was stored within this time proves that the disk can be written; otherwise it is tried, and no more often than this.
const PROOF: Duration = Duration::from_secs(5);

/// What there is to look at.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) clock: Clock,
    pub(super) started: Timestamp,
    pub(super) data_dir: PathBuf,
    pub(super) writer: Writer,
    pub(super) store: Store,
    pub(super) gate: Arc<Gate>,
    pub(super) relay: Control,
    pub(super) requests: Arc<Requests>,
    pub(super) pulse: Arc<Pulse>,
    /// None when the bus is outside.
    pub(super) broker: Option<Meter>,
    /// When time last passed, in milliseconds of the clock.
    pub(super) ticked: Arc<AtomicU64>,
    /// When it was last tried whether the disk can be written.
    pub(super) tried: AtomicU64,
    /// One permit, for who looks at the disk.
    pub(super) look: Arc<Semaphore>,
}

impl Watch {
    /// The cluster in figures.
    ///
    /// # Errors
    /// [`ErrorCode::Timeout`] when the writer takes too long.
    pub(super) async fn summary(&self) -> Result<Summary, ApiError> {
        let read = self.writer.submit_renewal(|step| Ok(step.cluster.summary()));
        tokio::time::timeout(WRITER_LIMIT, read).await.unwrap_or_else(|_| Err(stuck()))
    }

    /// How long ago time last passed for the cluster.
    pub(super) fn tick_age(&self) -> Duration {
        self.age(&self.ticked)
    }

    fn age(&self, since: &AtomicU64) -> Duration {
        self.clock.now().mono.saturating_sub(Duration::from_millis(since.load(Ordering::Relaxed)))
    }

    /// How the embedded broker is doing; none when the bus is outside.
    pub(super) fn broker(&self) -> Option<Stats> {
        self.broker.as_ref().and_then(Meter::stats)
    }

    /// Bytes free on the disk of the store, for those who are not root, and its size.
    pub(super) async fn disk(&self) -> Option<(u64, u64)> {
        let folder = self.data_dir.clone();
        // A look at a disk that hangs holds a thread until it no longer does: one of them is enough.
        let turn = Arc::clone(&self.look).try_acquire_owned().ok()?;
        let look = tokio::task::spawn_blocking(move || {
            let seen = rustix::fs::statvfs(&folder);
            drop(turn);
            seen
        });
        let disk = tokio::time::timeout(WRITER_LIMIT, look).await.ok()?.ok()?.ok()?;
        Some((disk.f_bavail.saturating_mul(disk.f_frsize), disk.f_blocks.saturating_mul(disk.f_frsize)))
    }

    /// Whether the writer takes steps and stores them. Writes something only when nothing was stored for a while.
    async fn writes(&self) -> Result<(), String> {
        let meters = self.writer.meters();
        let now = self.clock.now().mono;
        let stale = meters.is_failing() || now.saturating_sub(meters.last_stored()) >= PROOF;
        let try_it = stale && self.age(&self.tried) >= PROOF;
        if try_it {
            self.tried.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        let step = self.writer.submit(move |step| {
            // The settings as they are.
            step.changes.settings |= try_it;
            Ok(())
        });
        let answered = tokio::time::timeout(WRITER_LIMIT, step).await.unwrap_or_else(|_| Err(stuck()));
        answered.map_err(|error| error.message)?;
        match meters.is_failing() {
            true => Err("the last changes could not be stored; the log says why".to_owned()),
            false => Ok(()),
        }
    }
}

/// Whether a controller goes on for whose cluster time last passed so long ago.
///
/// # Errors
/// What only starting it again mends.
fn goes_on(writer_has_ended: bool, tick_age: Duration) -> Result<(), String> {
    match (writer_has_ended, tick_age > MOST_BETWEEN_TICKS) {
        (true, _) => Err("the writer of the store has ended".to_owned()),
        (_, true) => Err(format!("no time has passed for the cluster for {} s", tick_age.as_secs())),
        _ => Ok(()),
    }
}

fn stuck() -> ApiError {
    ApiError::new(ErrorCode::Timeout, format!("the writer of the store did not answer within {WRITER_LIMIT:?}"))
}

#[async_trait]
impl Source for Watch {
    async fn scrape(&self, page: &mut Page) {
        page.number(&names::BUILD, &["controller", env!("CARGO_PKG_VERSION")], 1);
        page.gauge(&names::STARTED, &["controller"], self.started.as_millis() as f64 / 1e3);
        // At a time, as each may wait for a disk that hangs, and whoever scrapes does not wait for all of them.
        let (ready, summary, disk) = tokio::join!(self.ready(), self.summary(), self.disk());
        page.number(&names::READY, &["controller"], ready.is_ok().into());
        if let Ok(summary) = summary {
            self.write_cluster(&summary, page);
        }
        self.write_store(page);
        if let Some((free, _)) = disk {
            page.number(&names::STORE_DISK_FREE, &[], free);
        }
        self.requests.write(page);
        if let Some(stats) = self.broker() {
            write_broker(stats, page);
        }
        self.write_tunnel(page);
    }

    fn alive(&self) -> Result<(), String> {
        goes_on(self.writer.has_ended(), self.tick_age())
    }

    async fn ready(&self) -> Result<(), Vec<String>> {
        let mut reasons = Vec::new();
        reasons.extend(self.writes().await.err());
        if let Some(silent) = self.pulse.silence() {
            reasons.push(format!("the controller has not heard itself on the bus for {} s", silent.as_secs()));
        }
        if self.broker.is_some() && self.broker().is_none() {
            reasons.push("the broker has ended".to_owned());
        }
        let age = self.tick_age();
        if age > MOST_WHEN_READY {
            reasons.push(format!("no time has passed for the cluster for {} s", age.as_secs()));
        }
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }
}

impl Watch {
    fn write_cluster(&self, summary: &Summary, page: &mut Page) {
        for (status, count) in &summary.vms {
            page.number(&names::VMS, &[status], *count);
        }
        page.number(&names::VMS_READY, &[], summary.ready);
        for (reason, count) in &summary.pending {
            page.number(&names::VMS_PENDING, &[reason], *count);
        }
        for (state, count) in &summary.states {
            page.number(&names::WORKERS, &[state], *count);
        }
        page.number(&names::WORKERS_PAUSED, &[], summary.paused);
        page.number(&names::STRAYS, &[], summary.strays);
        let mut connectable = 0;
        for worker in &summary.workers {
            let name = worker.name.as_str();
            connectable += u64::from(self.relay.reaches(&worker.name).is_ok());
            page.number(&names::WORKER_VMS, &[name], worker.vms);
            for (resource, total) in &worker.total.0 {
                page.number(&names::WORKER_RESOURCE, &[name, resource, "total"], *total);
                page.number(&names::WORKER_RESOURCE, &[name, resource, "used"], worker.used.get(resource));
            }
        }
        page.number(&names::WORKERS_CONNECTABLE, &[], connectable);
        let sent = self.writer.sent();
        for (feed, last, sent) in
            [("events", summary.last_event, sent.events), ("audit", summary.last_audit, sent.audit)]
        {
            page.number(&names::EVENT_NUMBER, &[feed], last);
            page.number(&names::PUBLISH_LAG, &[feed], last.saturating_sub(sent));
        }
    }

    fn write_store(&self, page: &mut Page) {
        let meters = self.writer.meters();
        let (used, map) = self.store.size();
        page.number(&names::STORE_USED, &[], used);
        page.number(&names::STORE_MAP, &[], map);
        page.put(&names::COMMIT, &[], &meters.commits);
        page.put(&names::COMMIT_BATCH, &[], &meters.batches);
        page.put(&names::COMMIT_FAILURES, &[], &meters.failures);
        page.number(&names::WRITER_QUEUE, &[], u64::try_from(self.writer.waiting()).unwrap_or(u64::MAX));
        page.gauge(&names::TICKED, &[], self.tick_age().as_secs_f64());
        page.put(&names::PLACEMENTS, &[], &meters.placements);
        page.put(&names::SCHEDULING, &[], &meters.scheduling);
        for (kind, count) in meters.events().filter(|(_, count)| *count > 0) {
            page.put(&names::EVENTS, &[kind.as_str()], crate::metrics::page::Value::Counter(count));
        }
    }

    fn write_tunnel(&self, page: &mut Page) {
        let traffic = self.gate.traffic();
        page.number(&names::TUNNEL_OPEN, &[], traffic.opened.get().saturating_sub(traffic.closed.get()));
        page.put(&names::TUNNEL_SESSIONS, &[], &traffic.opened);
        page.put(&names::TUNNEL_BYTES, &["to_vm"], &traffic.to_vm);
        page.put(&names::TUNNEL_BYTES, &["from_vm"], &traffic.from_vm);
        page.put(&names::TUNNEL_RESETS, &[], &traffic.broken);
        page.put(&names::TUNNEL_FAILURES, &[], &traffic.failed);
        page.put(&names::TUNNEL_REFUSALS, &[], &traffic.refused);
    }
}

fn write_broker(stats: Stats, page: &mut Page) {
    use crate::metrics::page::Value::Counter;
    let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    page.number(&names::BROKER_CONNECTIONS, &[], number(stats.connections));
    page.put(&names::BROKER_ACCEPTED, &[], Counter(stats.total_connections));
    page.number(&names::BROKER_SUBSCRIPTIONS, &[], number(stats.subscriptions));
    page.put(&names::BROKER_MESSAGES, &["in"], Counter(stats.messages_in));
    page.put(&names::BROKER_MESSAGES, &["out"], Counter(stats.messages_out));
    page.put(&names::BROKER_BYTES, &["in"], Counter(stats.bytes_in));
    page.put(&names::BROKER_BYTES, &["out"], Counter(stats.bytes_out));
    page.put(&names::BROKER_SLOW, &[], Counter(stats.slow_consumers));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_that_does_not_go_on_says_what_has_stopped() {
        assert_eq!(goes_on(false, MOST_BETWEEN_TICKS), Ok(()), "busy, or on a slow disk");
        let late = goes_on(false, MOST_BETWEEN_TICKS + Duration::from_secs(1));
        assert_eq!(late, Err("no time has passed for the cluster for 31 s".into()));
        assert_eq!(goes_on(true, Duration::ZERO), Err("the writer of the store has ended".into()));
    }
}
