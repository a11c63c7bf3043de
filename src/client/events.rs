//! Events in order and without gaps: listening first, replaying then; [`EventOrder`] joins both. Whatever the bus does not
//! deliver, because a connection broke or the controller started over, is asked for by number.

use std::collections::VecDeque;
use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use async_nats::{Message, Subscriber};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, SelectAll};
use futures_util::{FutureExt as _, Stream, StreamExt as _};
use tokio::time::Instant;

use super::order::{EventOrder, HistoryLost};
use super::{Client, is_passing};
use crate::bus::message::{self, EventPage, GetInfo, ListEvents};
use crate::bus::subject;
use crate::model::error::ApiError;
use crate::model::event::{Event, EventFilter, EventNumber};

/// What is listened to, of `model::access::EVENTS`: numbers run over both. The audit trail has numbers of its own.
const KINDS: [&str; 2] = ["vm", "worker"];

/// How long silence may last before the controller is asked whether something was missed.
pub const SILENCE: Duration = Duration::from_secs(3);

/// What [`Events::next`] yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// The next events, one or more, in order.
    Events(Vec<Event>),
    /// Events of these numbers are no longer kept.
    Trimmed(RangeInclusive<EventNumber>),
    /// The controller does not answer, which may be over by itself; told once in each outage.
    Waiting(ApiError),
}

/// Why there are no more events.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// The account may not, or is let in no more.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The controller runs on other data now.
    #[error(transparent)]
    History(#[from] HistoryLost),
}

/// Events, from [`Client::events`]. Ends only with an error.
#[derive(Debug)]
pub struct Events {
    client: Client,
    filter: EventFilter,
    live: SelectAll<Subscriber>,
    order: EventOrder,
    /// Told with the next calls.
    ready: VecDeque<Told>,
    position: EventNumber,
    /// Whether there may be some that did not come over the bus.
    behind: bool,
    /// The page that was asked for. It is waited for by whichever call comes next.
    asked: Option<Asked>,
    /// Since when nothing was heard, from the bus or from the controller.
    silent_since: Instant,
    /// Whether the controller did not answer when it was last asked.
    away: bool,
}

/// A page under way.
struct Asked {
    after: EventNumber,
    page: BoxFuture<'static, Result<EventPage, ApiError>>,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Asked after {}", self.after)
    }
}

impl Client {
    /// The events that `filter` wants: those stored with a number above `after`, and from then on those that happen; with no
    /// `after`, only the latter.
    ///
    /// # Errors
    /// As for [`Client::call`].
    pub async fn events(&self, filter: EventFilter, after: Option<EventNumber>) -> Result<Events, ApiError> {
        // Kind by kind: nobody but those who may follow the audit trail, too, is let listen to all at once.
        let mut kinds = Vec::new();
        for kind in KINDS {
            kinds.push(self.bus().subscribe(&subject::events_of_kind(kind)).await?);
        }
        let after = match after {
            Some(number) => number,
            None => self.call(&GetInfo {}).await?.last_event,
        };
        Ok(Events {
            client: self.clone(),
            filter,
            live: stream::select_all(kinds),
            order: EventOrder::after(after),
            ready: VecDeque::new(),
            position: after,
            behind: true,
            asked: None,
            silent_since: Instant::now(),
            away: false,
        })
    }
}

impl Events {
    /// Everything up to this number was yielded, or is not wanted: the `after` with which a later process goes on.
    pub fn position(&self) -> EventNumber {
        self.position
    }

    /// What is next; waits for it. Cancel safe: silence goes on, and so does a question to the controller, when a call is
    /// given up and another one made.
    ///
    /// # Errors
    /// [`EventsError`]; nothing more can be had in order then.
    pub async fn next(&mut self) -> Result<Told, EventsError> {
        loop {
            if let Some(told) = self.ready.pop_front() {
                if let Told::Events(events) = &told {
                    self.position = events.last().map_or(self.position, |event| event.number);
                }
                if self.ready.is_empty() {
                    self.position = self.order.position();
                }
                return Ok(told);
            }
            self.position = self.order.position();
            if self.behind {
                self.ask().await?;
            } else {
                let heard = next(&mut self.live, self.silent_since + SILENCE).await;
                self.silent_since = Instant::now();
                match heard {
                    Some(event) => {
                        let events = self.order.live(event);
                        self.queue(events);
                        self.behind = self.order.has_gap();
                    }
                    // Silence may mean that nothing happens, or that nothing comes through.
                    None => self.behind = true,
                }
            }
        }
    }

    /// Asks for one page, or waits on for the one that was asked for. Cancel safe.
    async fn ask(&mut self) -> Result<(), EventsError> {
        let (client, filter, order) = (&self.client, &self.filter, &self.order);
        let asked = self.asked.get_or_insert_with(|| {
            let (client, after) = (client.clone(), order.position());
            let EventFilter { uid, vm, worker, types } = filter.clone();
            let request = ListEvents { after, limit: 0, vm: uid, name: vm, worker, types };
            Asked { after, page: async move { client.call(&request).await }.boxed() }
        });
        let (answer, after) = ((&mut asked.page).await, asked.after);
        // No await from here on: the answer is taken as a whole.
        self.asked = None;
        self.silent_since = Instant::now();
        let page = match answer {
            Ok(page) => page,
            Err(error) if is_passing(&error) => {
                self.behind = false; // until silence or a gap says so again
                if !std::mem::replace(&mut self.away, true) {
                    self.ready.push_back(Told::Waiting(error));
                }
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        self.away = false;
        self.ready.extend(trimmed(after, &page).map(Told::Trimmed));
        let last = page.last;
        let events = self.order.page(page)?;
        self.queue(events);
        // A page that does not advance would be asked for again for ever.
        self.behind = self.order.position() < last && self.order.position() != after;
        Ok(())
    }

    fn queue(&mut self, mut events: Vec<Event>) {
        events.retain(|event| self.filter.matches(event));
        if !events.is_empty() {
            self.ready.push_back(Told::Events(events));
        }
    }
}

/// The numbers between `after` and the page that are no longer kept.
pub fn trimmed(after: EventNumber, page: &EventPage) -> Option<RangeInclusive<EventNumber>> {
    let first_wanted = after.saturating_add(1);
    (page.first_kept > first_wanted && page.last > after).then(|| first_wanted..=page.first_kept - 1)
}

/// The next event from the bus; none when `silence` has come, or what came was no event. Cancel safe.
async fn next(live: &mut (impl Stream<Item = Message> + Unpin), silence: Instant) -> Option<Event> {
    match tokio::time::timeout_at(silence, live.next()).await {
        Ok(Some(Message { payload, subject, .. })) => message::decode::<Event>(&payload)
            .inspect_err(|error| tracing::warn!("an event on {subject} cannot be read: {error}"))
            .ok(),
        Ok(None) => {
            // The subscription is over: go on by asking alone.
            tokio::time::sleep_until(silence).await;
            None
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_goes_on_over_calls_that_were_given_up() {
        let silence = Instant::now() + SILENCE;
        let mut live = stream::pending();
        let tick = Duration::from_secs(1);
        for _ in 0..2 {
            assert!(tokio::time::timeout(tick, next(&mut live, silence)).await.is_err());
        }
        assert!(tokio::time::timeout(tick * 2, next(&mut live, silence)).await.unwrap().is_none());
        assert_eq!(Instant::now(), silence);
        // Of a subscription that is over nothing comes, and that is no hurry.
        let mut over = stream::empty();
        assert!(next(&mut over, silence + SILENCE).await.is_none());
        assert_eq!(Instant::now(), silence + SILENCE);
    }

    #[test]
    fn a_reader_is_told_what_is_no_longer_kept() {
        let page = |first_kept, last| EventPage { events: Vec::new(), next: last, last, first_kept };
        assert_eq!(trimmed(0, &page(5, 9)), Some(1..=4));
        assert_eq!(trimmed(4, &page(5, 9)), None);
        assert_eq!(trimmed(0, &page(1, 0)), None);
        assert_eq!(trimmed(0, &page(0, 0)), None);
    }
}
