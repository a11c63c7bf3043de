//! Where somebody stands in a list that changes beneath: on a row by what it is, not by its number. Pure.

/// What a cursor does not go past in one go.
const PAGE: usize = 10;

/// A way to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
}

impl Step {
    /// Where it leads from `index`, among `count`; one more or less than there is is no matter.
    pub(super) fn from(self, index: usize, count: usize) -> usize {
        let to = match self {
            Step::Up => index.saturating_sub(1),
            Step::Down => index.saturating_add(1),
            Step::PageUp => index.saturating_sub(PAGE),
            Step::PageDown => index.saturating_add(PAGE),
            Step::First => 0,
            Step::Last => usize::MAX,
        };
        to.min(count.saturating_sub(1))
    }
}

/// A place in a list of things that are known by `K`.
#[derive(Clone, Debug)]
pub(super) struct Cursor<K> {
    /// What it stands on; none before anything was there, and at the end of a list that it follows.
    key: Option<K>,
    /// Where that was: its neighbour is next when it goes.
    index: usize,
    /// Whether it stays at the end while the list grows, once it is there.
    follows: bool,
}

impl<K: PartialEq + Clone> Cursor<K> {
    /// One on the first row.
    pub(super) fn at_first() -> Self {
        Self { key: None, index: 0, follows: false }
    }

    /// One on the last row, whichever that is.
    pub(super) fn at_end() -> Self {
        Self { key: None, index: usize::MAX, follows: true }
    }

    /// The row that it stands on; none of an empty list.
    pub(super) fn row(&self, keys: &[K]) -> Option<usize> {
        let last = keys.len().checked_sub(1)?;
        let known = self.key.as_ref().and_then(|key| keys.iter().position(|other| other == key));
        Some(known.unwrap_or(self.index.min(last)))
    }

    /// Goes on.
    pub(super) fn go(&mut self, keys: &[K], step: Step) {
        let Some(row) = self.row(keys) else { return };
        self.put(keys, step.from(row, keys.len()));
    }

    /// Stays where it is although the list has changed.
    pub(super) fn settle(&mut self, keys: &[K]) {
        if (self.key.is_some() || !self.follows)
            && let Some(row) = self.row(keys)
        {
            self.put(keys, row);
        }
    }

    fn put(&mut self, keys: &[K], row: usize) {
        let at_end = self.follows && row.saturating_add(1) == keys.len();
        (self.key, self.index) = if at_end { (None, usize::MAX) } else { (keys.get(row).cloned(), row) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_on_what_it_stands_on_and_takes_the_neighbour_when_that_goes() {
        let mut cursor = Cursor::at_first();
        assert_eq!(cursor.row(&[]), None);
        cursor.go(&["b", "d"], Step::Down);
        assert_eq!(cursor.row(&["a", "b", "c", "d"]), Some(3));
        cursor.settle(&["a", "b", "c", "d"]);
        cursor.settle(&["a", "b", "c"]);
        assert_eq!(cursor.row(&["a", "b", "c"]), Some(2), "d has gone");
        assert_eq!(cursor.row(&["0", "a", "b", "c"]), Some(3), "and c is what it stands on now");
        cursor.go(&["a"], Step::PageDown);
        assert_eq!(cursor.row(&["a"]), Some(0));
    }

    #[test]
    fn at_the_end_of_a_feed_it_follows_until_it_leaves() {
        let mut cursor = Cursor::at_end();
        cursor.settle(&[1, 2]);
        assert_eq!(cursor.row(&[1, 2, 3]), Some(2));
        cursor.go(&[1, 2, 3], Step::Up);
        assert_eq!(cursor.row(&[1, 2, 3, 4]), Some(1));
        cursor.go(&[1, 2, 3, 4], Step::Last);
        assert_eq!(cursor.row(&[1, 2, 3, 4, 5]), Some(4));
    }
}
