//! What stands under names, where most have none or one and a few have a hundred thousand: children under tokens, queue
//! groups under their names. Used by the tree alone.

use std::collections::HashMap;

/// Entries up to which a table does not shrink: what is saved would not be worth the copy.
const MIN_SHRINK: usize = 64;

/// See the module. One entry costs one allocation besides its name, none costs nothing.
#[derive(Debug, Default)]
pub enum Table<V> {
    /// Nothing.
    #[default]
    None,
    /// One entry.
    One(Box<(Box<[u8]>, V)>),
    /// Two or more.
    #[allow(clippy::box_collection)] // as large as the others: the empty and the lone one are by far the most
    Many(Box<HashMap<Box<[u8]>, V>>),
}

impl<V> Table<V> {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::One(_) => 1,
            Self::Many(all) => all.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What stands under `name`.
    pub fn get(&self, name: &[u8]) -> Option<&V> {
        match self {
            Self::One(one) if *one.0 == *name => Some(&one.1),
            Self::Many(all) => all.get(name),
            _ => None,
        }
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, name: &[u8]) -> Option<&mut V> {
        match self {
            Self::One(one) if *one.0 == *name => Some(&mut one.1),
            Self::Many(all) => all.get_mut(name),
            _ => None,
        }
    }

    /// Everything, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &V)> {
        let (one, many) = match self {
            Self::None => (None, None),
            Self::One(one) => (Some((&*one.0, &one.1)), None),
            Self::Many(all) => (None, Some(all.iter().map(|(name, value)| (&**name, value)))),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    /// The same without the names.
    pub fn into_values(self) -> impl Iterator<Item = V> {
        let (one, many) = match self {
            Self::None => (None, None),
            Self::One(one) => (Some(one.1), None),
            Self::Many(all) => (None, Some(all.into_values())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    /// Puts the default under `name`, unless something is there.
    pub fn ensure(&mut self, name: &[u8])
    where
        V: Default,
    {
        if self.get(name).is_some() {
            return; // without an allocation for the name, which an entry of the map would want
        }
        let new = (name.into(), V::default());
        *self = match std::mem::take(self) {
            Self::None => Self::One(Box::new(new)),
            Self::One(one) => Self::Many(Box::new(HashMap::from([*one, new]))),
            Self::Many(mut all) => {
                all.insert(new.0, new.1);
                Self::Many(all)
            }
        };
    }

    /// Takes out what stands under `name`.
    pub fn remove(&mut self, name: &[u8]) -> Option<V> {
        let Self::Many(all) = self else {
            return match std::mem::take(self) {
                Self::One(one) if *one.0 == *name => Some(one.1),
                other => {
                    *self = other;
                    None
                }
            };
        };
        let value = all.remove(name)?;
        let last = if all.len() == 1 { all.drain().next() } else { None };
        if let Some(last) = last {
            *self = Self::One(Box::new(last));
        } else if all.len().max(MIN_SHRINK) < all.capacity() / 4 {
            all.shrink_to(all.len() * 2);
        }
        Some(value)
    }
}
