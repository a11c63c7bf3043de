//! Whether a user may have one more connection, and when more is read from it: once its user is not in debt to its pace, and
//! no vital receiver of its messages is about to be overrun. And the pause before the answer to wrong credentials. Called by
//! the read loop.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::super::pace::{Pace, Seat};
use super::super::protocol::Fault;
use super::Connection;

/// Longest pause after which it is looked again: a user who is not to be here any more is to notice within a second.
const MAX_NAP: Duration = Duration::from_millis(100);

impl Connection {
    /// Takes a place among those who have `pace`; `false` when there is none.
    pub(super) fn take_seat(&mut self, pace: Option<&Arc<Pace>>) -> bool {
        if self.seat.as_ref().map(Seat::pace) != pace {
            self.seat = pace.and_then(Pace::enter);
            self.count_subscriptions();
        }
        self.seat.is_some() == pace.is_some()
    }

    /// Tells the user's pace how many subscriptions the client has.
    pub(super) fn count_subscriptions(&mut self) {
        if let Some(seat) = &mut self.seat {
            seat.holds(self.session.shares());
        }
    }

    /// Takes what was just performed from the user's pace; before [`super::Delivery::commit`], which begins to count anew.
    pub(super) fn charge(&self, costly: u32, bytes: usize) {
        if let Some(seat) = &self.seat {
            let operations = self.delivery.messages_in().saturating_add(costly.into());
            seat.pace().charge(operations, u64::try_from(bytes).unwrap_or(u64::MAX), Instant::now().into_std());
        }
    }

    /// Waits until more may be read; sees to changed rights meanwhile. Cancel safe.
    pub(super) async fn keep_pace(&mut self) -> Option<Fault> {
        while let Some(seat) = &self.seat {
            if let Some(debt) = seat.pace().debt(Instant::now().into_std()) {
                sleep(debt.min(MAX_NAP)).await;
            } else if let Some(receiver) = self.delivery.pressed() {
                receiver.outbound.relief(MAX_NAP, self.router.limits.max_pending / 4).await;
            } else {
                return None;
            }
            // What it says meanwhile waits in its socket: it is not gone.
            self.client.heard.store(true, Ordering::Relaxed);
            if let Some(fault) = self.recheck_if_wanted() {
                return Some(fault);
            }
        }
        None
    }

    /// Has the answer to wrong credentials wait, if it is to and the client's network has not too many that do.
    pub(super) async fn do_penance(&mut self) {
        if self.penalty.is_zero() {
            return;
        }
        if let Some(_place) = self.router.penalised.enter(self.client.ip) {
            sleep(self.penalty).await;
        }
    }
}
