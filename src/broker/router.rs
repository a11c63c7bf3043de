//! Who is connected and who listens to what: the state that all connections of one broker share.
//!
//! The subject tree stands behind a lock that publishing takes only for subjects not yet in the publisher's own cache.
//! Generations tell a cache when its entries are stale: one counter for each of 64 classes of first tokens, so that a
//! client that makes a new inbox does not spoil what others know of their subjects.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::auth::Authenticator;
use super::client::{Client, Subscription};
use super::private::{self, PrivateDoor};
use super::protocol::{Fault, ServerInfo};
use super::subject::tokens;
use super::tls::Tls;
use super::trie::{Matches, Trie};
use super::{Limits, Stats};
use crate::model::network::{PerNetwork, share_of_strangers};

/// Classes of first tokens; more would make a subscription with a leading wildcard no dearer, but rarely help.
const CLASSES: usize = 64;
/// Subscriptions of a client that leaves which end under one lock: about a tenth of a millisecond, for which nobody else
/// subscribes or looks up a new subject.
const ENDED_AT_ONCE: usize = 256;

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
    tls: RwLock<Option<Arc<Tls>>>,
    /// Connections that are not yet open: their handshakes are under way.
    opening: AtomicUsize,
    /// Connections that are being told that there is no room.
    refusing: AtomicUsize,
    /// Connections that have not said who they are.
    pub unproven: PerNetwork,
    /// The same, of those who came through the private door.
    pub private: PrivateDoor,
    /// Connections that wait for the answer to wrong credentials.
    pub penalised: PerNetwork,
    /// Whether the broker is about to go.
    lame: AtomicBool,
    answers: AtomicU64,
    classes: [AtomicU64; CLASSES],
    all_classes: AtomicU64,
}

/// Connections that are told at a time that there is no room. Each takes a socket and a task for as long as it takes to
/// hear it, a second at most; those above are closed without a word.
const MAX_REFUSALS: usize = 256;
/// Connections of one network that wait for the answer to wrong credentials. They hold a socket and a task each meanwhile.
const MAX_PENALISED: usize = 32;
/// The same of all networks together.
const MAX_PENALISED_IN_ALL: usize = 1_024;

/// What INFO says of one connection.
#[derive(Debug)]
pub struct Greeting {
    /// The client's id.
    pub client: u64,
    /// Where it connects from.
    pub ip: IpAddr,
    /// What it may sign.
    pub nonce: Option<String>,
    /// Whether the connection is TLS, or must become it.
    pub tls: bool,
}

/// One of a counted number, for as long as it lives.
#[derive(Debug)]
pub struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    /// One more in `count`, if there are fewer than `most`.
    fn take(count: &'a AtomicUsize, most: usize) -> Option<Self> {
        let guard = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < most).then_some(guard)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Router {
    /// An empty one.
    pub fn new(
        info: ServerInfo,
        limits: Limits,
        authenticator: Option<Arc<dyn Authenticator>>,
        tls: Option<Tls>,
    ) -> Self {
        Self {
            tls: RwLock::new(tls.map(Arc::new)),
            opening: AtomicUsize::new(0),
            refusing: AtomicUsize::new(0),
            unproven: PerNetwork::new(limits.max_unproven_per_network, share_of_strangers(limits.max_connections)),
            private: PrivateDoor::default(),
            penalised: PerNetwork::new(MAX_PENALISED, MAX_PENALISED_IN_ALL),
            lame: AtomicBool::new(false),
            answers: AtomicU64::new(0),
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

    /// INFO for one client.
    pub fn info_for(&self, greeting: &Greeting) -> ServerInfo {
        ServerInfo {
            client_id: greeting.client,
            client_ip: greeting.ip.to_string(),
            nonce: greeting.nonce.clone(),
            tls_required: greeting.tls,
            tls_verify: greeting.tls && self.tls().is_some_and(|tls| tls.requires_client_certificates()),
            ldm: self.is_lame(),
            ..self.info.clone()
        }
    }

    /// How connections become TLS, if they must.
    pub fn tls(&self) -> Option<Arc<Tls>> {
        self.tls.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same for connections to come.
    pub fn set_tls(&self, tls: Tls) {
        *self.tls.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(tls));
    }

    /// Whether the broker is about to go.
    pub fn is_lame(&self) -> bool {
        self.lame.load(Ordering::SeqCst)
    }

    /// From now on it is.
    pub fn set_lame(&self) {
        self.lame.store(true, Ordering::SeqCst);
    }

    /// Counts the broker's own answers.
    pub fn next_answer(&self) -> u64 {
        self.answers.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Room for one more handshake, for as long as the guard lives: those count as connections too.
    pub fn room_to_open(&self) -> Option<Counted<'_>> {
        Counted::take(&self.opening, self.limits.max_connections.saturating_sub(self.client_count()))
    }

    /// Room to tell one more connection that there is none, for as long as the guard lives.
    pub fn room_to_refuse(&self) -> Option<Counted<'_>> {
        Counted::take(&self.refusing, MAX_REFUSALS)
    }

    /// Ends every connection of the user `name`; says how many there were.
    pub fn disconnect(&self, name: &str) -> usize {
        // First the number, then the search: who is let in between the two sees that the number has changed.
        self.revocations.fetch_add(1, Ordering::SeqCst);
        let clients = self.clients();
        let of_user = clients.iter().filter(|client| client.is_user(name));
        of_user.map(|client| client.outbound.finish(Some(&Fault::Revoked))).count()
    }

    /// Has every connection, or those of the user `name`, ask again what it may do; says how many there are.
    pub fn recheck(&self, name: Option<&str>) -> usize {
        self.revocations.fetch_add(1, Ordering::SeqCst); // see above
        let clients = self.clients();
        let meant = clients.iter().filter(|client| name.is_none_or(|name| client.is_user(name)));
        meant.map(|client| client.ask_to_recheck()).count()
    }

    /// From where the user `name` is connected: each address once, at most `most` of them.
    pub fn addresses_of(&self, name: &str, most: usize) -> Vec<IpAddr> {
        let found: BTreeSet<IpAddr> =
            self.clients().iter().filter(|client| client.is_user(name)).map(|client| client.ip).collect();
        found.into_iter().take(most).collect()
    }

    /// Changes with every [`Router::disconnect`] and [`Router::recheck`].
    pub fn revocations(&self) -> u64 {
        self.revocations.load(Ordering::SeqCst)
    }

    /// Adds `client`; `false` when there are as many as there may be. Through the private door there may be some more.
    pub fn register(&self, client: &Arc<Client>, is_private: bool) -> bool {
        let more = if is_private { private::EXTRA_ROOM } else { 0 };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let room = clients.len() < self.limits.max_connections.saturating_add(more);
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

    /// How the broker is doing.
    pub fn stats(&self) -> Stats {
        let counters = &self.counters;
        Stats {
            connections: self.client_count(),
            total_connections: counters.connections.load(Ordering::Relaxed),
            subscriptions: self.subscription_count(),
            messages_in: counters.messages_in.load(Ordering::Relaxed),
            bytes_in: counters.bytes_in.load(Ordering::Relaxed),
            messages_out: counters.messages_out.load(Ordering::Relaxed),
            bytes_out: counters.bytes_out.load(Ordering::Relaxed),
            slow_consumers: counters.slow_consumers.load(Ordering::Relaxed),
        }
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
        let subscription = Arc::new(Subscription::new(self.next_id(), client.clone(), sid, subject, queue));
        subscription.set_filter(filter);
        let mut tree = self.tree.write().unwrap_or_else(PoisonError::into_inner);
        tree.insert(subject, queue, subscription.id, subscription.clone());
        self.outdate(subject);
        subscription
    }

    /// Ends a subscription: messages for it that are not yet in its client's queue do not get there. Once ended, ending it
    /// again does nothing and is `false`.
    pub fn unsubscribe(&self, subscription: &Subscription) -> bool {
        let open = self.complete(subscription);
        subscription.revoke();
        open
    }

    /// Ends a subscription that has had, or is about to have, all messages it was to have; once ended, ending it again does
    /// nothing and is `false`.
    pub fn complete(&self, subscription: &Subscription) -> bool {
        let open = subscription.close();
        if open {
            let mut tree = self.tree.write().unwrap_or_else(PoisonError::into_inner);
            self.take_out(&mut tree, subscription);
        }
        open
    }

    /// Ends [`ENDED_AT_ONCE`] of `subscriptions`, the last ones, and takes them off the list. Who has more lets others run
    /// before the next call.
    pub fn unsubscribe_some(&self, subscriptions: &mut Vec<Arc<Subscription>>) {
        let ended = subscriptions.split_off(subscriptions.len().saturating_sub(ENDED_AT_ONCE));
        {
            let mut tree = self.tree.write().unwrap_or_else(PoisonError::into_inner);
            for subscription in ended.iter().filter(|subscription| subscription.close()) {
                self.take_out(&mut tree, subscription);
            }
        }
        drop(ended); // without the lock
    }

    fn take_out(&self, tree: &mut Trie<Arc<Subscription>>, subscription: &Subscription) {
        tree.remove(&subscription.subject, subscription.queue.as_deref(), subscription.id);
        self.outdate(&subscription.subject);
    }

    /// From now on, messages on the patterns `filter` are held back from the subscription.
    pub fn refilter(&self, subscription: &Subscription, filter: Vec<Box<[u8]>>) {
        let _tree = self.tree.write().unwrap_or_else(PoisonError::into_inner);
        if subscription.set_filter(filter) {
            self.outdate(&subscription.subject);
            subscription.client.note_taking();
        }
    }

    /// Ends a subscription that had its last message, and leaves word for its owner; once.
    pub fn expire(&self, subscription: &Subscription) {
        if self.complete(subscription) {
            subscription.client.expire(subscription.id, subscription.sid.clone());
        }
    }

    /// Who listens to the literal `subject`.
    pub fn matches(&self, subject: &[u8]) -> Matches<Arc<Subscription>> {
        self.tree.read().unwrap_or_else(PoisonError::into_inner).matches(subject)
    }

    /// Whether anybody listens to the literal `subject`.
    pub fn has_listener(&self, subject: &[u8]) -> bool {
        self.tree.read().unwrap_or_else(PoisonError::into_inner).has_match(subject)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_are_counted_at_a_time() {
        let count = AtomicUsize::new(0);
        let first = Counted::take(&count, 2).unwrap();
        let _second = Counted::take(&count, 2).unwrap();
        assert!(Counted::take(&count, 2).is_none());
        assert!(Counted::take(&count, 2).is_none(), "who was refused takes no room");
        drop(first);
        assert!(Counted::take(&count, 2).is_some());
    }
}
