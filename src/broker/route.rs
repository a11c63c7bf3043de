//! What one connection remembers of the subjects it publishes to: who listens, and whether it may. Owned by its `delivery`;
//! bounded in bytes, because the peer chooses the subjects.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use super::client::Subscription;
use super::router::Class;
use super::session::Verdict;

/// Bytes that one connection may spend on remembering; when full, everything is forgotten. Enough for more than 16,000
/// subjects of a common length with a listener each: with fewer, a publisher that goes through many would forget each of
/// them before it comes round.
const MAX_BYTES: usize = 6 * 1024 * 1024;
/// What the allocator and a table spend on an entry, roughly.
const ALLOCATION: usize = 16;

/// One who listens, and which batch is theirs.
#[derive(Debug)]
pub struct Receiver {
    /// What they listen with.
    pub subscription: Arc<Subscription>,
    /// Where `delivery` keeps the batch of their client.
    pub batch: usize,
    /// How every message on this subject begins for this subscription.
    pub prefix: Box<[u8]>,
}

/// What is known of one subject, as of a generation of its class.
#[derive(Debug)]
pub struct Route {
    /// The literal subject.
    pub subject: Box<[u8]>,
    /// Its class.
    pub class: Class,
    /// The class's generation when this was found out.
    pub generation: u64,
    /// What stands against publishing to it.
    pub verdict: Verdict,
    /// Who listens alone.
    pub plain: Vec<Receiver>,
    /// Who listens in queue groups.
    pub queues: Vec<Vec<Receiver>>,
}

impl Route {
    /// Whether anyone listens.
    pub fn is_heard(&self) -> bool {
        !self.plain.is_empty() || !self.queues.is_empty()
    }

    /// The subscription with the client's id `sid` among those whose frames go into `batch`.
    pub fn find(&self, batch: usize, sid: &[u8]) -> Option<&Subscription> {
        let mut all = self.plain.iter().chain(self.queues.iter().flatten());
        all.find(|receiver| receiver.batch == batch && *receiver.subscription.sid == *sid)
            .map(|found| &*found.subscription)
    }

    /// About the bytes that it takes, with its place in the table.
    fn size(&self) -> usize {
        let all = self.plain.iter().chain(self.queues.iter().flatten());
        let receivers: usize = all.map(|receiver| size_of::<Receiver>() + receiver.prefix.len() + ALLOCATION).sum();
        size_of::<Self>() + self.subject.len() + receivers + 4 * ALLOCATION
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Routes {
    known: HashSet<Known>,
    /// Of the routes remembered since everything was forgotten last.
    bytes: usize,
}

impl Routes {
    /// What is known of `subject`, however old.
    pub fn get(&self, subject: &[u8]) -> Option<&Arc<Route>> {
        self.known.get(subject).map(|Known(route)| route)
    }

    /// Whether [`Routes::remember`] would drop a route: another one of the subject, or all for want of room.
    pub fn would_drop(&self, route: &Route) -> bool {
        self.bytes + route.size() > MAX_BYTES || self.known.contains(&*route.subject)
    }

    /// Remembers `route` in place of what was known of its subject.
    pub fn remember(&mut self, route: Arc<Route>) {
        self.bytes += route.size();
        if self.bytes > MAX_BYTES {
            self.forget();
            self.bytes = route.size();
        }
        self.known.replace(Known(route));
    }

    /// Forgets everything.
    pub fn forget(&mut self) {
        *self = Self::default();
    }
}

/// A route, found by its subject, which is stored once.
#[derive(Debug)]
struct Known(Arc<Route>);

impl Borrow<[u8]> for Known {
    fn borrow(&self) -> &[u8] {
        &self.0.subject
    }
}

impl PartialEq for Known {
    fn eq(&self, other: &Self) -> bool {
        self.0.subject == other.0.subject
    }
}

impl Eq for Known {}

impl Hash for Known {
    /// As the subject itself: what `Borrow` demands.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.subject.hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::session::Access;

    fn route(subject: &str, generation: u64) -> Arc<Route> {
        Arc::new(Route {
            subject: subject.as_bytes().into(),
            class: Class::of(subject.as_bytes()),
            generation,
            verdict: Verdict { access: Access::Denied, literal: true },
            plain: Vec::new(),
            queues: Vec::new(),
        })
    }

    #[test]
    fn the_newest_route_of_a_subject_is_found() {
        let mut routes = Routes::default();
        routes.remember(route("a.b", 1));
        routes.remember(route("a.c", 5));
        routes.remember(route("a.b", 2));
        assert_eq!(routes.get(b"a.b").map(|route| route.generation), Some(2));
        assert!(routes.get(b"a").is_none());
    }

    #[test]
    fn long_subjects_do_not_take_more_than_short_ones() {
        let mut routes = Routes::default();
        for at in 0..10_000 {
            routes.remember(route(&format!("{at}{}", "x".repeat(4_000)), 1));
            assert!(routes.known.len() * 4_000 <= MAX_BYTES);
        }
        assert!(routes.get(format!("9999{}", "x".repeat(4_000)).as_bytes()).is_some());
    }
}
