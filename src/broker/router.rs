//! Who is connected and who listens to what: the state that all connections of one broker share.
//!
//! The subject tree stands behind a lock that publishing takes only for subjects not yet in the publisher's own cache.
//! Generations tell a cache when its entries are stale: one counter for each of 64 classes of first tokens, so that a
//! client that makes a new inbox does not spoil what others know of their subjects.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::Limits;
use super::auth::Authenticator;
use super::outbound::Outbound;
use super::protocol::{Fault, ServerInfo};
use super::session::Held;
use super::subject::tokens;
use super::trie::{Matches, Trie};

/// Classes of first tokens; more would make a subscription with a leading wildcard no dearer, but rarely help.
const CLASSES: usize = 64;

/// One connected client as others see it.
#[derive(Debug)]
pub struct Client {
    /// Its id, unique within the broker.
    pub id: u64,
    /// What waits to be written to it.
    pub outbound: Outbound,
    /// Name of its user, empty before it has one.
    pub user: Mutex<String>,
    /// Whether it understands headers.
    pub headers: AtomicBool,
    /// Whether INFO may come at any time.
    pub late_info: AtomicBool,
    /// Whether it has sent anything since the last look.
    pub heard: AtomicBool,
    /// Whether it has said who it is, or need not.
    pub admitted: AtomicBool,
    /// Subscriptions that reached their maximum, which its own task has yet to forget.
    expired: Mutex<Vec<(u64, Box<[u8]>)>>,
    has_expired: AtomicBool,
}

impl Client {
    /// A client that has just connected.
    pub fn new(id: u64, outbound: Outbound, admitted: bool) -> Self {
        Self {
            id,
            outbound,
            user: Mutex::new(String::new()),
            headers: AtomicBool::new(false),
            late_info: AtomicBool::new(false),
            heard: AtomicBool::new(false),
            admitted: AtomicBool::new(admitted),
            expired: Mutex::new(Vec::new()),
            has_expired: AtomicBool::new(false),
        }
    }

    /// Subscriptions (our id, the client's id) that have ended by themselves since the last call.
    #[inline]
    pub fn take_expired(&self) -> Vec<(u64, Box<[u8]>)> {
        if !self.has_expired.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let mut expired = self.expired.lock().unwrap_or_else(PoisonError::into_inner);
        self.has_expired.store(false, Ordering::Relaxed);
        std::mem::take(&mut expired)
    }

    fn expire(&self, id: u64, sid: Box<[u8]>) {
        let mut expired = self.expired.lock().unwrap_or_else(PoisonError::into_inner);
        expired.push((id, sid));
        self.has_expired.store(true, Ordering::Relaxed);
    }
}

/// One subscription.
#[derive(Debug)]
pub struct Subscription {
    /// Unique within the broker.
    pub id: u64,
    /// Who made it.
    pub client: Arc<Client>,
    /// The client's id for it.
    pub sid: Box<[u8]>,
    /// What it listens to.
    pub subject: Box<[u8]>,
    /// Its queue group.
    pub queue: Option<Box<[u8]>>,
    /// Patterns whose messages are held back.
    pub filter: Vec<Box<[u8]>>,
    delivered: AtomicU64,
    max: AtomicU64,
    closed: AtomicBool,
}

impl Held for Subscription {
    fn subject(&self) -> &[u8] {
        &self.subject
    }

    fn queue(&self) -> Option<&[u8]> {
        self.queue.as_deref()
    }
}

impl Held for Arc<Subscription> {
    fn subject(&self) -> &[u8] {
        &self.subject
    }

    fn queue(&self) -> Option<&[u8]> {
        self.queue.as_deref()
    }
}

/// Whether a subscription may have one more message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It ended.
    Over,
    /// It may.
    Open,
    /// It may, and that was the last.
    Last,
}

impl Subscription {
    /// Whether it ended.
    #[inline]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed) || self.client.outbound.is_closed()
    }

    /// Counts one message.
    #[inline]
    pub fn take_turn(&self) -> Turn {
        let count = self.delivered.fetch_add(1, Ordering::Relaxed) + 1;
        match self.max.load(Ordering::Relaxed) {
            0 => Turn::Open,
            max if count < max => Turn::Open,
            max if count == max => Turn::Last,
            _ => Turn::Over,
        }
    }

    /// Sets the number of messages after which it ends; `false` when it has had them already.
    pub fn limit(&self, max: u64) -> bool {
        self.max.store(max, Ordering::Relaxed);
        self.delivered.load(Ordering::Relaxed) < max
    }
}

/// Counters, all since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Messages published.
    pub messages_in: AtomicU64,
    /// Their bodies' bytes.
    pub bytes_in: AtomicU64,
    /// Messages delivered.
    pub messages_out: AtomicU64,
    /// Their bodies' bytes.
    pub bytes_out: AtomicU64,
    /// Clients cut off.
    pub slow_consumers: AtomicU64,
    /// Connections accepted.
    pub connections: AtomicU64,
}

/// See the module.
pub struct Router {
    /// What each INFO begins with.
    pub info: ServerInfo,
    /// The broker's limits.
    pub limits: Limits,
    /// Who decides who may connect; `None` lets everybody.
    pub authenticator: Option<Arc<dyn Authenticator>>,
    /// Counters.
    pub counters: Counters,
    tree: RwLock<Trie<Arc<Subscription>>>,
    clients: Mutex<HashMap<u64, Arc<Client>>>,
    next_id: AtomicU64,
    /// How often rights were taken away: a client that was let in meanwhile is asked again.
    revocations: AtomicU64,
    classes: [AtomicU64; CLASSES],
    all_classes: AtomicU64,
}

impl Router {
    /// An empty one.
    pub fn new(info: ServerInfo, limits: Limits, authenticator: Option<Arc<dyn Authenticator>>) -> Self {
        Self {
            info,
            limits,
            authenticator,
            counters: Counters::default(),
            tree: RwLock::default(),
            clients: Mutex::default(),
            next_id: AtomicU64::new(1),
            revocations: AtomicU64::new(0),
            classes: std::array::from_fn(|_| AtomicU64::new(0)),
            all_classes: AtomicU64::new(0),
        }
    }

    /// A number never given out before by this broker.
    pub fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// Ends every connection of the user `name`; says how many there were.
    pub fn disconnect(&self, name: &str) -> usize {
        // First the number, then the search: who is let in between the two sees that the number has changed.
        self.revocations.fetch_add(1, Ordering::SeqCst);
        let clients = self.clients();
        let of_user =
            clients.iter().filter(|client| *client.user.lock().unwrap_or_else(PoisonError::into_inner) == name);
        of_user.map(|client| client.outbound.finish(Some(&Fault::Revoked))).count()
    }

    /// Changes with every [`Router::disconnect`].
    pub fn revocations(&self) -> u64 {
        self.revocations.load(Ordering::SeqCst)
    }

    /// Adds `client`; `false` when there are as many as there may be.
    pub fn register(&self, client: &Arc<Client>) -> bool {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let room = clients.len() < self.limits.max_connections;
        if room {
            clients.insert(client.id, client.clone());
            self.counters.connections.fetch_add(1, Ordering::Relaxed);
        }
        room
    }

    /// Removes the client.
    pub fn unregister(&self, id: u64) {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    /// Everyone connected now.
    pub fn clients(&self) -> Vec<Arc<Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// How many are connected now.
    pub fn client_count(&self) -> usize {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// How many subscriptions there are.
    pub fn subscription_count(&self) -> usize {
        self.tree.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Makes a subscription. `subject` has been checked.
    pub fn subscribe(
        &self,
        client: &Arc<Client>,
        sid: &[u8],
        subject: &[u8],
        queue: Option<&[u8]>,
        filter: Vec<Box<[u8]>>,
    ) -> Arc<Subscription> {
        let subscription = Arc::new(Subscription {
            id: self.next_id(),
            client: client.clone(),
            sid: sid.into(),
            subject: subject.into(),
            queue: queue.map(Into::into),
            filter,
            delivered: AtomicU64::new(0),
            max: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        });
        let mut tree = self.tree.write().unwrap_or_else(PoisonError::into_inner);
        tree.insert(subject, queue, subscription.id, subscription.clone());
        self.outdate(subject);
        subscription
    }

    /// Ends a subscription; once ended, ending it again does nothing.
    pub fn unsubscribe(&self, subscription: &Subscription) {
        if subscription.closed.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut tree = self.tree.write().unwrap_or_else(PoisonError::into_inner);
        tree.remove(&subscription.subject, subscription.queue.as_deref(), subscription.id);
        self.outdate(&subscription.subject);
    }

    /// Ends a subscription that had its last message, and leaves word for its owner.
    pub fn expire(&self, subscription: &Subscription) {
        self.unsubscribe(subscription);
        subscription.client.expire(subscription.id, subscription.sid.clone());
    }

    /// Who listens to the literal `subject`.
    pub fn matches(&self, subject: &[u8]) -> Matches<Arc<Subscription>> {
        self.tree.read().unwrap_or_else(PoisonError::into_inner).matches(subject)
    }

    /// Changes whenever the answer of [`Router::matches`] for a subject of this class may have changed. Read it before
    /// asking.
    #[inline]
    pub fn generation(&self, class: Class) -> u64 {
        // Both only grow, so their sum changes when either does.
        let own = self.classes.get(class.0).map_or(0, |count| count.load(Ordering::Acquire));
        own.wrapping_add(self.all_classes.load(Ordering::Acquire))
    }

    /// Called with the tree locked for writing.
    fn outdate(&self, pattern: &[u8]) {
        let first = first_token(pattern);
        let counter = match first {
            b"*" | b">" => Some(&self.all_classes),
            _ => self.classes.get(Class::of(pattern).0),
        };
        if let Some(counter) = counter {
            counter.fetch_add(1, Ordering::Release);
        }
    }
}

fn first_token(subject: &[u8]) -> &[u8] {
    tokens(subject).next().unwrap_or_default()
}

/// Subjects whose listeners are outdated together: those whose first tokens fall into the same class.
#[derive(Debug, Clone, Copy)]
pub struct Class(usize);

impl Class {
    /// The class of `subject`.
    #[inline]
    pub fn of(subject: &[u8]) -> Self {
        let step = |hash: u32, byte: &u8| hash.wrapping_mul(31).wrapping_add(u32::from(*byte));
        Self(first_token(subject).iter().fold(0, step) as usize % CLASSES)
    }
}
