//! The values under one pattern (and queue group), each found by its id. Used by the tree alone.
//!
//! A client may subscribe to one subject a hundred thousand times and then leave: taking out one of them must not cost a
//! look at all the others. So there is an index from ids to positions, made once a search would be long.

use std::collections::HashMap;

/// Values up to which a search is as cheap as an index, and takes no memory besides.
const LINEAR: usize = 16;

/// See the module.
#[derive(Debug)]
pub struct Members<T> {
    values: Vec<(u64, T)>,
    /// Where each id stands, once there are more than [`LINEAR`].
    #[allow(clippy::box_collection)] // most have none: a third of the size without it
    index: Option<Box<HashMap<u64, usize>>>,
}

impl<T> Default for Members<T> {
    fn default() -> Self {
        Self { values: Vec::new(), index: None }
    }
}

impl<T> Members<T> {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// All of them, in no particular order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &T> {
        self.values.iter().map(|(_, value)| value)
    }

    /// Adds `value`; the caller gives no id twice.
    pub fn insert(&mut self, id: u64, value: T) {
        match &mut self.index {
            Some(index) => {
                index.insert(id, self.values.len());
            }
            None if self.values.len() == LINEAR => {
                let known = self.values.iter().map(|(id, _)| *id).chain([id]);
                self.index = Some(Box::new(known.enumerate().map(|(at, id)| (id, at)).collect()));
            }
            None => {}
        }
        self.values.push((id, value));
    }

    /// Takes out the value with this id.
    pub fn remove(&mut self, id: u64) -> Option<T> {
        let at = match &mut self.index {
            Some(index) => {
                steps::count(1);
                index.remove(&id)?
            }
            None => {
                steps::count(self.values.len());
                self.values.iter().position(|(known, _)| *known == id)?
            }
        };
        let (_, value) = self.values.swap_remove(at);
        if let (Some(index), Some((moved, _))) = (&mut self.index, self.values.get(at)) {
            index.insert(*moved, at);
        }
        self.give_back();
        Some(value)
    }

    /// Frees what is needed no more: each time for a number of values that at least as many removals have paid for.
    fn give_back(&mut self) {
        let len = self.values.len();
        if len <= LINEAR / 2 {
            self.index = None;
        }
        if len.max(LINEAR) < self.values.capacity() / 4 {
            steps::count(len);
            self.values.shrink_to(len * 2);
            if let Some(index) = &mut self.index {
                index.shrink_to(len * 2);
            }
        }
    }
}

#[cfg(not(test))]
mod steps {
    #[inline]
    pub fn count(_: usize) {}
}

#[cfg(test)]
pub mod steps {
    //! How many values were looked at or moved, so that tests can tell linear from quadratic without a clock.
    use std::cell::Cell;

    thread_local! {
        static STEPS: Cell<usize> = const { Cell::new(0) };
    }

    /// Counts some more.
    pub fn count(more: usize) {
        STEPS.set(STEPS.get() + more);
    }

    /// Counted in this thread since the last call.
    pub fn take() -> usize {
        STEPS.take()
    }
}
