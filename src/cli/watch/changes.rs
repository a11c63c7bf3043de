//! What has changed between two looks. Pure.

use std::collections::BTreeMap;

use super::Watched;

/// What has become of something.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change<T> {
    /// It is there now.
    Added(T),
    /// It was there, and is otherwise now.
    Modified(T),
    /// It is there no more; this is how it was.
    Deleted(T),
}

impl<T> Change<T> {
    pub(super) fn item(&self) -> &T {
        match self {
            Change::Added(item) | Change::Modified(item) | Change::Deleted(item) => item,
        }
    }

    /// For programs, in the words that they know from elsewhere.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Change::Added(_) => "ADDED",
            Change::Modified(_) => "MODIFIED",
            Change::Deleted(_) => "DELETED",
        }
    }
}

/// What was there at the last look, by its key, with the gist of it.
#[derive(Debug)]
pub(super) struct Known<T>(BTreeMap<String, (T, String)>);

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Watched> Known<T> {
    /// What is different from the last look: first what is gone, then what is new or has another gist, in the order given.
    pub(super) fn changes<E>(
        &mut self,
        now_there: Vec<T>,
        gist: impl Fn(&T) -> Result<String, E>,
    ) -> Result<Vec<Change<T>>, E> {
        let mut before = std::mem::take(&mut self.0);
        let mut news = Vec::new();
        for item in now_there {
            let (key, gist) = (item.key(), gist(&item)?);
            let copy = item.calm();
            match before.remove(&key) {
                None => news.push(Change::Added(item)),
                Some((_, known)) if known != gist => news.push(Change::Modified(item)),
                Some(_) => {}
            }
            self.0.insert(key, (copy, gist));
        }
        let gone = before.into_values().map(|(item, _)| Change::Deleted(item));
        Ok(gone.chain(news).collect())
    }
}
