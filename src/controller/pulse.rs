//! Whether the controller could hear its workers all the time: if not, their silence means nothing (`cluster::liveness`).
//!
//! The controller sends itself a small message with every heartbeat period, over the very connection on which it hears
//! workers. When none has come back in time, that connection does not work, whatever else it says of itself; and when it was
//! made anew, or messages were dropped on it, what came meanwhile is lost. Asked by the loop in which time passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;

use crate::bus::client::Bus;
use crate::model::Clock;
use crate::model::error::ApiError;

/// Periods within which the next message must have come back: one until it is sent, and two for its way.
const PATIENCE: u32 = 3;
/// The pause before the bus is asked again for a subscription that it refused.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The state of the connection.
#[derive(Debug)]
pub(super) struct Pulse {
    bus: Bus,
    clock: Clock,
    every: Duration,
    /// When the last message came back, in milliseconds of the clock.
    heard: AtomicU64,
    /// Disturbances of the connection at the last question.
    disturbances: AtomicU64,
}

impl Pulse {
    /// Of `bus`, which is sound as of now.
    pub(super) fn new(bus: Bus, clock: Clock, every: Duration) -> Self {
        let (heard, disturbances) = (AtomicU64::new(0), AtomicU64::new(bus.disturbances()));
        let pulse = Self { bus, clock, every, heard, disturbances };
        pulse.note();
        pulse
    }

    /// Whether everything that was sent to the controller since the last question has arrived, as far as can be known.
    pub(super) fn is_sound(&self) -> bool {
        let disturbances = self.bus.disturbances();
        let undisturbed = self.disturbances.swap(disturbances, Ordering::Relaxed) == disturbances;
        let heard = Duration::from_millis(self.heard.load(Ordering::Relaxed));
        let silent = self.clock.now().mono.saturating_sub(heard);
        undisturbed && silent <= self.every.saturating_mul(PATIENCE)
    }

    /// For how long nothing has come back, if that is longer than it may be. Asks without noting that it did.
    pub(super) fn silence(&self) -> Option<Duration> {
        let heard = Duration::from_millis(self.heard.load(Ordering::Relaxed));
        let silent = self.clock.now().mono.saturating_sub(heard);
        (silent > self.every.saturating_mul(PATIENCE)).then_some(silent)
    }

    fn note(&self) {
        let now = u64::try_from(self.clock.now().mono.as_millis()).unwrap_or(u64::MAX);
        self.heard.store(now, Ordering::Relaxed);
    }

    /// Sends and listens, for the controller's life.
    pub(super) async fn beat(self: Arc<Self>) {
        loop {
            if let Err(error) = self.listen().await {
                tracing::debug!("the controller cannot hear itself on the bus: {error}");
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn listen(&self) -> Result<(), ApiError> {
        // Below the own inbox, where no right beyond those that answers need is asked for.
        let subject = self.bus.raw().new_inbox();
        let mut echoes = self.bus.subscribe(&subject).await?;
        let mut interval = tokio::time::interval(self.every);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // Cancel safe: both only wait.
            tokio::select! {
                echo = echoes.next() => match echo {
                    Some(_) => self.note(),
                    None => return Ok(()),
                },
                _ = interval.tick() => {
                    // Waits while the connection takes nothing, when nothing can come back either.
                    let sent = self.bus.publish(subject.clone(), None, Bytes::new());
                    tokio::time::timeout(self.every, sent).await.unwrap_or(Ok(()))?;
                }
            }
        }
    }
}
