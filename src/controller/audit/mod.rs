//! The way of the audit trail from where things happen (service, relay, logins) into the store.
//!
//! What a request changed is recorded in the transaction of the change itself, by the writer. All else comes here from
//! places that must not wait: it is limited ([`limit`]), queued, and written in batches by one task. What does not fit
//! the queue is counted and told, never waited for.

mod limit;
mod logins;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::mpsc;

use self::limit::{By, Limiter};
pub(super) use self::logins::Logins;
use super::store::writer::Writer;
use crate::bus::encoding::Encoding;
use crate::model::Clock;
use crate::model::audit::{AuditType, CONTROLLER, Deed, Outcome};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::network::network_of;
use crate::task::{self, Task};

/// Deeds that may wait for the writer: what passes the limiter at once, and tunnels that many people open together.
const QUEUE: usize = 4_096;
/// Deeds written in one step.
const BATCH: usize = 256;
/// How often it is looked whether something that was held back may be told.
const FLUSH: Duration = Duration::from_secs(1);
/// How long the end of the controller may wait for what is still to be written.
const SETTLE: Duration = Duration::from_secs(1);

/// Takes deeds. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Auditor {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    clock: Clock,
    limiter: Mutex<Limiter>,
    queue: mpsc::Sender<Deed>,
    lost: AtomicU64,
    /// Queued and not yet stored.
    waiting: AtomicU64,
}

/// What is still to be written. Run by [`Auditor::run`].
#[derive(Debug)]
pub(super) struct Pending(mpsc::Receiver<Deed>);

impl Auditor {
    /// A trail whose deeds wait in [`Pending`] until it is run.
    pub(super) fn new(clock: Clock) -> (Self, Pending) {
        let (queue, pending) = mpsc::channel(QUEUE);
        let limiter = Mutex::new(Limiter::new(clock.now().mono));
        let shared = Shared { clock, limiter, queue, lost: AtomicU64::new(0), waiting: AtomicU64::new(0) };
        (Self { shared: Arc::new(shared) }, Pending(pending))
    }

    /// Writes what is recorded until dropped.
    pub(super) fn run(&self, pending: Pending, writer: Writer) -> Task {
        task::spawn(write(self.clone(), pending.0, writer))
    }

    /// Records `deed`. What was done is recorded for itself; of what was refused or failed, one source (its account for
    /// requests, its address for the rest) gets only so many.
    pub(super) fn record(&self, deed: Deed) {
        if deed.outcome == Outcome::Done {
            return self.queue(deed);
        }
        let source = || format!("{} {}", deed.kind.as_str(), network(&deed.address));
        let by = match deed.kind {
            AuditType::Request => By::Proven(format!("account {}", deed.account)),
            // Streams with a grant, and machines that were let in with a join token.
            AuditType::Join | AuditType::TunnelOpened | AuditType::TunnelClosed if !deed.account.is_empty() => {
                By::Proven(source())
            }
            // Whatever name stands there is a claim.
            _ => By::Stranger(source()),
        };
        self.limited(&by, deed);
    }

    /// Records that somebody was not let in; `known` says whether there is anybody of the name that was claimed.
    pub(super) fn record_login(&self, deed: Deed, known: bool) {
        let source = network(&deed.address);
        let by = if known { By::Claimed(format!("login {} {source}", deed.account)) } else { By::Stranger(source) };
        self.limited(&by, deed);
    }

    fn limited(&self, by: &By, deed: Deed) {
        let now = self.shared.clock.now().mono;
        let passed = self.shared.limiter.lock().unwrap_or_else(PoisonError::into_inner).pass(by, deed, now);
        if let Some(deed) = passed {
            self.queue(deed);
        }
    }

    /// Records that a limit was met: once for each account and minute, with the number of times.
    pub(super) fn met_limit(&self, deed: Deed) {
        let source = format!("limit {}", deed.account);
        let now = self.shared.clock.now().mono;
        let mut limiter = self.shared.limiter.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = limiter.pass_summed(&source, deed, now);
        drop(limiter);
        if let Some(deed) = passed {
            self.queue(deed);
        }
    }

    fn queue(&self, deed: Deed) {
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        if self.shared.queue.try_send(deed).is_err() {
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns once everything recorded so far is stored, or after [`SETTLE`]. For the end of the controller.
    pub(super) async fn settled(&self) {
        let stored = async {
            while self.shared.waiting.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(SETTLE, stored).await;
    }

    fn flush(&self) {
        let now = self.shared.clock.now().mono;
        let told = self.shared.limiter.lock().unwrap_or_else(PoisonError::into_inner).flush(now);
        told.into_iter().for_each(|deed| self.queue(deed));
        let lost = self.shared.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let deed = Deed {
                kind: AuditType::Request,
                account: CONTROLLER.to_owned(),
                address: String::new(),
                verb: "audit".to_owned(),
                target: String::new(),
                outcome: Outcome::Failed,
                message: format!("{lost} records were lost: more happened than could be written"),
                request: String::new(),
            };
            self.shared.waiting.fetch_add(1, Ordering::Relaxed);
            if self.shared.queue.try_send(deed).is_err() {
                self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
                self.shared.lost.fetch_add(lost, Ordering::Relaxed);
            }
        }
    }
}

/// What kind of end `error` is.
pub(super) fn outcome_of(error: &ApiError) -> Outcome {
    match error.code {
        ErrorCode::Forbidden | ErrorCode::Unauthenticated => Outcome::Refused,
        _ => Outcome::Failed,
    }
}

/// What the controller does by itself.
pub(super) fn own_deed(verb: &str, target: String, message: String) -> Deed {
    Deed {
        kind: AuditType::Request,
        account: CONTROLLER.to_owned(),
        address: String::new(),
        verb: verb.to_owned(),
        target,
        outcome: Outcome::Done,
        message,
        request: String::new(),
    }
}

/// What a request is about, as far as it says so in one of the usual fields.
#[derive(Debug, Default, Deserialize)]
struct Target {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    vm: Option<String>,
    #[serde(default)]
    worker: Option<String>,
    #[serde(default)]
    id: Option<String>,
}

/// What the request `payload` to `subject` is about; the subject when it does not say.
pub(super) fn target_of(payload: &[u8], subject: &str) -> String {
    let target: Target = Encoding::of(payload).decode(payload).unwrap_or_default();
    target.name.or(target.vm).or(target.worker).or(target.id).unwrap_or_else(|| subject.to_owned())
}

/// The network of an address, whose port differs with each attempt; several addresses are left as they are.
fn network(address: &str) -> String {
    let ip = address.parse::<SocketAddr>().map(|peer| peer.ip()).or_else(|_| address.parse::<IpAddr>());
    ip.map_or_else(|_| address.to_owned(), |ip| network_of(ip).to_string())
}

async fn write(auditor: Auditor, mut pending: mpsc::Receiver<Deed>, writer: Writer) {
    let mut flush = tokio::time::interval(FLUSH);
    flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut batch = Vec::new();
    loop {
        // Both are cancel safe.
        tokio::select! {
            _ = flush.tick() => auditor.flush(),
            _ = pending.recv_many(&mut batch, BATCH) => {}
        }
        let deeds = std::mem::take(&mut batch);
        if deeds.is_empty() {
            continue;
        }
        let count = deeds.len() as u64;
        let written = writer.submit(move |step| {
            for deed in deeds {
                step.cluster.audit(deed, step.now, step.changes);
            }
            Ok(())
        });
        if let Err(error) = written.await {
            tracing::error!("{count} audit records could not be stored: {error}");
            auditor.shared.lost.fetch_add(count, Ordering::Relaxed);
        }
        auditor.shared.waiting.fetch_sub(count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::connect::{OpenHost, OpenTunnel};
    use crate::bus::message::{self, DeleteVm, GetInfo};

    #[tokio::test]
    async fn failed_logins_use_up_nothing_of_what_is_recorded_of_those_who_are_in() {
        let (auditor, mut pending) = Auditor::new(Clock::start());
        let deed = |kind, account: &str, address: String| Deed {
            kind,
            account: account.to_owned(),
            address,
            verb: String::new(),
            target: String::new(),
            outcome: Outcome::Refused,
            message: String::new(),
            request: String::new(),
        };
        for n in 0..2_000u32 {
            let address = || std::net::Ipv4Addr::from(n << 8).to_string();
            auditor.record_login(deed(AuditType::LoginFailed, "ann", address()), true);
            auditor.record_login(deed(AuditType::LoginFailed, "made-up", address()), false);
            auditor.record(deed(AuditType::LoginFailed, "worker/w", address()));
        }
        let mut stored = Vec::new();
        while let Ok(deed) = pending.0.try_recv() {
            stored.push(deed.account);
        }
        let of = |name: &str| stored.iter().filter(|account| *account == name).count();
        assert!(of("ann") == 500 && of("made-up") + of("worker/w") == 500, "each kind has its own: {}", stored.len());
        for kind in [AuditType::Request, AuditType::Join, AuditType::TunnelOpened] {
            auditor.record(deed(kind, "bob", "192.0.2.1".to_owned()));
            assert_eq!(pending.0.try_recv().unwrap().kind, kind);
        }
    }

    #[test]
    fn the_target_is_what_the_request_names_or_else_its_subject() {
        let of = |payload: &[u8]| target_of(payload, "orchard.v1.api.ann.vm.delete");
        assert_eq!(of(&message::encode(&DeleteVm { name: "one".parse().unwrap() }).unwrap()), "one");
        assert_eq!(of(&message::encode(&OpenTunnel { vm: "two".parse().unwrap(), port: 22 }).unwrap()), "two");
        assert_eq!(of(&message::encode(&OpenHost { worker: "w".parse().unwrap(), port: 22 }).unwrap()), "w");
        for unclear in [message::encode(&GetInfo {}).unwrap(), b"not MessagePack".to_vec(), Vec::new()] {
            assert_eq!(of(&unclear), "orchard.v1.api.ann.vm.delete");
        }
    }
}
