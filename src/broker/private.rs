//! The private door: a second listener, on loopback, that only the embedder is told of, for its own connections. Strangers
//! cannot take the places of those who come through it, as they can at the public one. Used by `accept` and `connection`.
//! It is in plain text: what goes through it goes from this process to this process, and only root may listen in on the
//! loopback interface.
//!
//! Its port is no secret to users of the same machine. So here nobody is turned away: with all places taken, whoever has
//! waited longest makes room for whoever comes next. To keep somebody out it takes as many connections as there are
//! places within the milliseconds of one login, again at every attempt.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::model::network::Place;

/// Connections through the door that have not said who they are. Each takes some 30 KiB at most.
pub const PLACES: usize = 1_024;
/// Connections that may be open through it besides those of [`super::Limits::max_connections`]: strangers may not keep out
/// the embedder, which has a few.
pub const EXTRA_ROOM: usize = PLACES + 64;

/// Who waits behind the door.
#[derive(Clone, Debug, Default)]
pub struct PrivateDoor(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// In the order in which they came.
    turns: BTreeMap<u64, CancellationToken>,
}

/// A place behind the door, until it is dropped or displaced.
#[derive(Debug)]
pub struct Turn {
    door: PrivateDoor,
    number: u64,
    displaced: CancellationToken,
}

/// The place of a connection that has not said who it is.
#[derive(Debug)]
pub enum Standing {
    /// Among the strangers of its network.
    Stranger {
        /// Until when it counts.
        _place: Place,
    },
    /// Behind the private door.
    Private(Turn),
}

impl Standing {
    /// What ends when somebody else needs the place; nothing where nobody is displaced.
    pub fn displaced(&self) -> Option<CancellationToken> {
        match self {
            Standing::Stranger { .. } => None,
            Standing::Private(turn) => Some(turn.displaced.clone()),
        }
    }
}

/// Ends once `token` is cancelled; never without one. Cancel safe.
pub async fn cancelled(token: Option<&CancellationToken>) {
    match token {
        Some(token) => token.cancelled().await,
        None => std::future::pending().await,
    }
}

impl PrivateDoor {
    /// A place for one more, if need be that of whoever has waited longest.
    pub fn enter(&self) -> Turn {
        let mut waiting = self.lock();
        let oldest = if waiting.turns.len() >= PLACES { waiting.turns.pop_first() } else { None };
        let (number, displaced) = (waiting.next, CancellationToken::new());
        waiting.next += 1;
        waiting.turns.insert(number, displaced.clone());
        drop(waiting);
        if let Some((_, displaced)) = oldest {
            displaced.cancel();
        }
        Turn { door: self.clone(), number, displaced }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.door.lock().turns.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_comes_last_finds_a_place_and_only_those_who_wait_make_room() {
        let door = PrivateDoor::default();
        let admitted = door.enter();
        let watched = admitted.displaced.clone();
        drop(admitted); // has said who it is
        let mut turns: Vec<Turn> = (0..PLACES + 2).map(|_| door.enter()).collect();
        assert!(!watched.is_cancelled() && door.lock().turns.len() == PLACES);
        let displaced = |turns: &[Turn]| turns.iter().filter(|turn| turn.displaced.is_cancelled()).count();
        assert!(displaced(&turns) == 2 && displaced(&turns[..2]) == 2);
        turns.pop();
        let next = door.enter();
        assert!(displaced(&turns) == 2 && !next.displaced.is_cancelled());
        drop((turns, next));
        assert!(door.lock().turns.is_empty());
    }
}
