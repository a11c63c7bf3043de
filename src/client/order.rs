//! Brings events into one gapless sequence, although the bus may deliver them late, twice or not at all. Pure.
//!
//! Every event has a number, one more than the one before. [`EventOrder`] holds back what came too early, and says when
//! something is missing, so that its caller asks the controller for the pages in between.

use std::collections::BTreeMap;

use crate::bus::message::EventPage;
use crate::model::event::{Event, EventNumber};

/// Early events that are kept while a gap before them is filled. More are dropped: the pages that fill the gap bring
/// them again.
const MAX_EARLY: usize = 4096;

/// The controller knows fewer events than were seen before: its data folder is another one, or was put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "event #{seen} was already seen here, but the controller's newest is #{last}: it runs on other data now; start \
     again without --after"
)]
pub struct HistoryLost {
    /// The newest number seen here.
    pub seen: EventNumber,
    /// The newest number of the controller.
    pub last: EventNumber,
}

/// A sequence in the making.
#[derive(Debug)]
pub struct EventOrder {
    /// Everything up to this number was given out, or is known not to exist any more.
    position: EventNumber,
    early: BTreeMap<EventNumber, Event>,
    dropped: bool,
}

impl EventOrder {
    /// A sequence that begins after `position`.
    pub fn after(position: EventNumber) -> Self {
        Self { position, early: BTreeMap::new(), dropped: false }
    }

    /// The number up to which everything was given out.
    pub fn position(&self) -> EventNumber {
        self.position
    }

    /// Whether something is missing before an event that is already here: ask for the page after
    /// [`EventOrder::position`].
    pub fn has_gap(&self) -> bool {
        self.dropped || !self.early.is_empty()
    }

    /// Takes an event from the bus; yields what is now in order.
    pub fn live(&mut self, event: Event) -> Vec<Event> {
        if event.number <= self.position {
            return Vec::new();
        }
        if event.number != self.position.saturating_add(1) && self.early.len() >= MAX_EARLY {
            self.dropped = true;
            return Vec::new();
        }
        self.early.insert(event.number, event);
        let mut ready = Vec::new();
        self.advance(&mut ready);
        ready
    }

    /// Takes a page that was asked for with `after` = [`EventOrder::position`]; yields what is now in order. Numbers
    /// that the page passes over do not exist any more.
    ///
    /// # Errors
    /// [`HistoryLost`]; nothing more can be given out in order then.
    pub fn page(&mut self, page: EventPage) -> Result<Vec<Event>, HistoryLost> {
        if page.last < self.position {
            return Err(HistoryLost { seen: self.position, last: page.last });
        }
        for event in page.events {
            if event.number > self.position {
                self.early.insert(event.number, event);
            }
        }
        let mut ready = Vec::new();
        while let Some(entry) = self.early.first_entry() {
            if *entry.key() > page.next {
                break;
            }
            ready.push(entry.remove());
        }
        self.position = self.position.max(page.next);
        self.advance(&mut ready);
        if self.position >= page.last {
            self.dropped = false;
        }
        Ok(ready)
    }

    fn advance(&mut self, ready: &mut Vec<Event>) {
        while let Some(entry) = self.early.first_entry() {
            if *entry.key() != self.position.saturating_add(1) {
                break;
            }
            self.position = *entry.key();
            ready.push(entry.remove());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::Timestamp;
    use crate::model::event::{EventObject, EventType};

    fn event(number: EventNumber) -> Event {
        Event {
            number,
            time: Timestamp::from_millis(0),
            kind: EventType::Online,
            object: EventObject::Worker { name: "w".parse().unwrap() },
            message: String::new(),
            worker: None,
            stream: None,
            said_at: None,
        }
    }

    fn page(numbers: impl IntoIterator<Item = EventNumber>, next: EventNumber, last: EventNumber) -> EventPage {
        EventPage { events: numbers.into_iter().map(event).collect(), next, last, first_kept: 1 }
    }

    fn numbers(events: Vec<Event>) -> Vec<EventNumber> {
        events.into_iter().map(|event| event.number).collect()
    }

    #[test]
    fn a_gap_holds_back_what_came_early_until_it_is_filled() {
        let mut order = EventOrder::after(4);
        assert_eq!(numbers(order.live(event(5))), [5]);
        assert!(order.live(event(8)).is_empty());
        assert!(order.has_gap());
        assert!(order.live(event(5)).is_empty(), "a repeated one is not given out again");
        assert_eq!(numbers(order.page(page([6, 7], 7, 8)).unwrap()), [6, 7, 8]);
        assert!(!order.has_gap());
        assert_eq!(order.position(), 8);
    }

    #[test]
    fn numbers_that_are_no_longer_kept_are_passed_over() {
        let mut order = EventOrder::after(0);
        assert_eq!(numbers(order.page(page([7, 8], 8, 9)).unwrap()), [7, 8]);
        assert_eq!(numbers(order.live(event(9))), [9]);
    }

    #[test]
    fn an_event_that_came_live_is_not_lost_when_the_page_has_dropped_it() {
        let mut order = EventOrder::after(0);
        order.live(event(3));
        assert_eq!(numbers(order.page(page([5], 5, 5)).unwrap()), [3, 5]);
    }

    #[test]
    fn a_controller_that_knows_less_than_was_seen_is_recognised() {
        let mut order = EventOrder::after(9);
        assert_eq!(order.page(page([], 2, 2)), Err(HistoryLost { seen: 9, last: 2 }));
        assert!(order.page(page([], 9, 9)).unwrap().is_empty());
    }

    #[test]
    fn too_many_early_events_are_dropped_and_asked_for_again() {
        let mut order = EventOrder::after(0);
        let last = MAX_EARLY as u64 + 10;
        for number in 2..=last {
            order.live(event(number));
        }
        let mut seen = numbers(order.page(page([1], 1, last)).unwrap());
        assert!(order.has_gap(), "the dropped ones are still missing");
        while order.has_gap() {
            let from = order.position() + 1;
            seen.extend(numbers(order.page(page(from..=last, last, last)).unwrap()));
        }
        assert_eq!(seen, (1..=last).collect::<Vec<_>>());
    }

    proptest! {
        /// Whatever the bus loses, repeats and reorders: each event is given out once, in order, none is missing.
        #[test]
        fn the_sequence_is_gapless_and_without_repeats(
            deliveries in prop::collection::vec((1u64..=60, any::<bool>()), 0..200),
            start in 0u64..20,
            page_size in 1u64..9,
        ) {
            let total = 60;
            let mut order = EventOrder::after(start);
            let mut seen = Vec::new();
            let ask = |order: &mut EventOrder, seen: &mut Vec<u64>| {
                let next = (order.position() + page_size).min(total);
                let from = order.position() + 1;
                seen.extend(numbers(order.page(page(from..=next, next, total)).unwrap()));
            };
            for (number, fill) in deliveries {
                seen.extend(numbers(order.live(event(number))));
                if fill && order.has_gap() {
                    ask(&mut order, &mut seen);
                }
            }
            while order.position() < total {
                ask(&mut order, &mut seen);
            }
            prop_assert_eq!(seen, (start + 1..=total).collect::<Vec<_>>());
            prop_assert!(!order.has_gap());
        }
    }
}
