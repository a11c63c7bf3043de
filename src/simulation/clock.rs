//! Virtual time: what happens next, in order. Nothing here waits; time jumps from one event to the next.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// Milliseconds since the run began; never jumps.
pub(super) type Millis = u64;

/// Events by time, and among those of one moment in the order in which they were asked for.
pub(super) struct Agenda<E> {
    now: Millis,
    next: u64,
    order: BinaryHeap<Reverse<(Millis, u64)>>,
    events: HashMap<u64, E>,
}

impl<E> Agenda<E> {
    pub(super) fn new() -> Self {
        Self { now: 0, next: 0, order: BinaryHeap::new(), events: HashMap::new() }
    }

    pub(super) fn now(&self) -> Millis {
        self.now
    }

    pub(super) fn after(&mut self, delay: Millis, event: E) {
        self.next += 1;
        self.order.push(Reverse((self.now + delay, self.next)));
        self.events.insert(self.next, event);
    }

    /// Moves time to the next event and yields it.
    pub(super) fn pop(&mut self) -> Option<E> {
        let Reverse((at, number)) = self.order.pop()?;
        self.now = at;
        self.events.remove(&number)
    }
}
