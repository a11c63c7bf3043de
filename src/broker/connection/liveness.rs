//! Looks whether a client is still there and still may be: the time to say who it is, pings, and credentials that expire.
//! Runs beside reading and writing in the client's own task.

use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, sleep, sleep_until};

use super::super::backlog::Batch;
use super::super::client::Client;
use super::super::limits::after;
use super::super::protocol::{Fault, encode};
use super::super::router::Router;

/// Longest wait for credentials to expire before the clock is looked at again: someone may have set it.
const MAX_EXPIRY_WAIT: Duration = Duration::from_secs(60);

/// Ends when the client has not said who it is by `deadline`, leaves pings unanswered, or its credentials have expired.
/// Cancel safe.
pub(super) async fn watch(client: &Client, router: &Router, deadline: Instant) -> Fault {
    let interval = router.limits.ping_interval.max(Duration::from_millis(1));
    let mut admitted = client.admitted.load(Ordering::Relaxed);
    let mut look_at = if admitted { after(Instant::now(), interval) } else { deadline };
    let mut unanswered = 0;
    loop {
        tokio::select! {
            () = sleep_until(look_at) => {}
            () = expiry(client) => return Fault::Expired,
            () = client.changed.notified() => {
                if !admitted && client.admitted.load(Ordering::Acquire) {
                    admitted = true; // pings begin now, not when its time to say who it is would have ended
                    look_at = after(Instant::now(), interval);
                }
                continue; // perhaps it has an expiry now
            }
        }
        look_at = after(Instant::now(), interval);
        if !admitted {
            admitted = client.admitted.load(Ordering::Acquire);
            if !admitted {
                return Fault::AuthTimeout;
            }
            continue;
        }
        if client.heard.swap(false, Ordering::Relaxed) {
            unanswered = 0;
        } else if unanswered >= router.limits.max_pings_out {
            return Fault::Stale;
        }
        unanswered += 1;
        let mut batch = Batch::default();
        batch.tail().extend_from_slice(encode::PING);
        if client.outbound.enqueue(&mut batch).is_ok() {
            client.outbound.flush_now();
        }
    }
}

/// Ends when the client's credentials have expired; never, when they do not.
async fn expiry(client: &Client) {
    let Some(end) = client.expires() else { return std::future::pending().await };
    while let Ok(left) = end.duration_since(SystemTime::now()) {
        if left.is_zero() {
            return;
        }
        sleep(left.min(MAX_EXPIRY_WAIT)).await;
    }
}
