//! The publishing side of one connection: from a message to the frames for everyone who listens.
//!
//! Owned by the connection's task, so nothing here is shared: a cache of who listens to which subject, and one batch of
//! frames per receiver, handed over under the receiver's lock once per read of the socket ([`Delivery::commit`]).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::backlog::Batch;
use super::client::{Client, Subscription, Turn};
use super::outbound::Fill;
use super::protocol::{Fault, Publish, encode, parse};
use super::route::{Receiver, Route, Routes};
use super::router::{Class, Router};
use super::session::{Access, Verdict};
use super::subject::matches;

/// Receivers that may have a batch; when full, everything is forgotten.
const CACHED_RECEIVERS: usize = 8_192;
/// When a batch has this size, all are handed over early, behind the message that filled it.
pub(super) const MAX_BATCH: usize = 64 * 1024;
/// A batch is handed over alone, in the middle of a message, at this size: only a client that listens to the same subject
/// very often gets there, and its batch must not grow beyond what may be pending.
const MAX_LONE_BATCH: usize = 1024 * 1024;
/// With more receivers than this no batch keeps its room from one read to the next: that would be some KiB for each of
/// them and each publisher, for as long as the publisher stays.
const KEPT_BATCHES: usize = 64;
/// A publisher waits this long at most, per read of its socket, for receivers that keep reading but are behind.
const MAX_STALL: Duration = Duration::from_millis(5);
/// Reads of the socket back to which a receiver counts as one that this publisher writes to.
const RECENT_READS: u64 = 64;
/// Bytes a receiver must have taken since the last wait for it: below this rate (some 50 MB/s) nobody waits for it, its
/// queue fills to the bound and it is cut off.
const STALL_PROGRESS: u64 = 256 * 1024;

/// A message's body: copied into each batch when small, shared when large. What is shared may wait for long, and counts
/// as its own length only: it must not keep much more memory alive.
#[derive(Debug, Clone, Copy)]
pub enum Body<'a> {
    /// What the message carries is copied.
    Copied,
    /// Copied once, and the copy shared.
    CopiedOnce,
    /// The same bytes, shared.
    Shared(&'a Bytes),
}

#[derive(Debug)]
struct Slot {
    client: Arc<Client>,
    batch: Batch,
    /// What [`Client::takings`] was when the batch was empty last.
    takings: u64,
    touched: bool,
    /// Bytes it had taken when we last waited for it.
    waited_at: u64,
    /// The read of the socket that last had something for it.
    used_in: u64,
    /// The read of the socket in which it was last behind; 0 for never.
    behind_in: u64,
}

#[derive(Debug, Default)]
struct Counts {
    messages_in: u64,
    bytes_in: u64,
    messages_out: u64,
    bytes_out: u64,
}

/// See the module.
pub struct Delivery {
    router: Arc<Router>,
    /// The first is the connection's own.
    slots: Vec<Slot>,
    touched: Vec<usize>,
    /// Whether a batch has reached [`MAX_BATCH`].
    full: bool,
    behind: Vec<usize>,
    /// Receivers that the last commit had something for.
    width: usize,
    /// Reads of the socket so far.
    reads: u64,
    by_client: HashMap<u64, usize>,
    /// Receivers that must not be overrun.
    vital: Vec<Arc<Client>>,
    routes: Routes,
    last: Option<Arc<Route>>,
    random: u64,
    counts: Counts,
    /// Whether the client gets its own messages.
    pub echo: bool,
}

impl Delivery {
    /// For the connection of `own`.
    pub fn new(router: Arc<Router>, own: Arc<Client>) -> Self {
        // Any odd start does; it only spreads messages over queue groups.
        let random = own.id.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut delivery = Self {
            router,
            slots: Vec::new(),
            touched: Vec::new(),
            full: false,
            behind: Vec::new(),
            width: 0,
            reads: 1,
            by_client: HashMap::new(),
            vital: Vec::new(),
            routes: Routes::default(),
            last: None,
            random,
            counts: Counts::default(),
            echo: true,
        };
        delivery.slot_of(&own);
        delivery
    }

    /// Appends frames for the connection's own client.
    pub fn answer(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(slot) = self.slots.get_mut(OWN) else { return };
        if !slot.touched {
            slot.touched = true;
            self.touched.push(OWN);
        }
        write(slot.batch.tail());
        if slot.batch.len() >= MAX_BATCH {
            self.hand_all_over();
        }
    }

    /// Forgets what was remembered: the client's rights have changed.
    pub fn forget(&mut self) {
        self.hand_all_over(); // whether the messages are still wanted is found out by what is remembered
        self.routes.forget();
        self.last = None;
    }

    /// Messages that came in since the last [`Delivery::commit`].
    pub fn messages_in(&self) -> u64 {
        self.counts.messages_in
    }

    /// Whether a vital receiver of this client's messages has more than half of what may wait for it waiting.
    pub fn pressed(&mut self) -> Option<Arc<Client>> {
        let high = self.router.limits.max_pending / 2;
        self.vital.retain(|client| !client.outbound.is_closed());
        self.vital.iter().find(|client| client.outbound.pending() > high).cloned()
    }

    /// Counts a message that came in.
    #[inline]
    pub fn count_in(&mut self, bytes: usize) {
        self.counts.messages_in += 1;
        self.counts.bytes_in += bytes as u64;
    }

    /// What stands against publishing to `subject`, remembered with who listens; `judge` is asked when nothing is known.
    pub fn verdict(&mut self, subject: &[u8], judge: impl FnOnce(&[u8]) -> Verdict) -> Verdict {
        if let Some(route) = &self.last
            && *route.subject == *subject
            && route.generation == self.router.generation(route.class)
        {
            return route.verdict;
        }
        let class = Class::of(subject);
        let generation = self.router.generation(class);
        let route = match self.routes.get(subject) {
            Some(route) if route.generation == generation => route.clone(),
            _ => {
                let route = Arc::new(self.build(subject, (class, generation), judge(subject)));
                if self.routes.would_drop(&route) {
                    self.hand_all_over(); // as in `forget`
                }
                self.routes.remember(route.clone());
                route
            }
        };
        let verdict = route.verdict;
        self.last = Some(route);
        verdict
    }

    /// Puts the message, whose subject [`Delivery::verdict`] was just asked about, into the batches of those who listen;
    /// says whether anyone does.
    pub fn publish(&mut self, message: &Publish<'_>, body: Body<'_>) -> bool {
        let Some(route) = self.last.take() else { return false };
        let copy = match body {
            Body::CopiedOnce if route.is_heard() => Bytes::copy_from_slice(message.body),
            _ => Bytes::new(),
        };
        let body = if matches!(body, Body::CopiedOnce) { Body::Shared(&copy) } else { body };
        let mut heard = false;
        for receiver in &route.plain {
            heard |= self.deliver(receiver, message, body);
        }
        for group in &route.queues {
            heard |= self.deliver_to_one(group, message, body);
        }
        self.last = Some(route);
        if self.full {
            self.hand_all_over();
        }
        heard
    }

    /// Tells the client that nobody listens to its request: only if it listens to the reply subject itself, and not in a
    /// queue group.
    pub fn no_responders(&mut self, subject: &[u8], reply: &[u8]) {
        if let Some(listener) = self.own_listener(reply, false) {
            self.answer(|out| encode::no_responders(out, reply, &listener.sid, subject));
        }
    }

    /// The client's own subscription that `subject` reaches, if any; `grouped` takes those in queue groups too.
    pub fn own_listener(&self, subject: &[u8], grouped: bool) -> Option<Arc<Subscription>> {
        let own = self.slots.first()?.client.id;
        let found = self.router.matches(subject);
        let groups = found.queues.into_iter().filter(|_| grouped).flat_map(|(_, members)| members);
        found.plain.into_iter().chain(groups).find(|subscription| subscription.client.id == own)
    }

    /// Hands every batch over, then tries to write them. Receivers over their bound are cut off here. Nothing is written
    /// before everything is handed over: what somebody does because of a message comes to nobody before the message, but
    /// for a receiver that someone else writes to in that instant (NATS promises order by publisher only). The client's
    /// own goes last: once it reads PONG, what it published before is with its receivers.
    pub fn commit(&mut self) {
        let counters = &self.router.counters;
        let counts = std::mem::take(&mut self.counts);
        if counts.messages_in > 0 {
            counters.messages_in.fetch_add(counts.messages_in, Ordering::Relaxed);
            counters.bytes_in.fetch_add(counts.bytes_in, Ordering::Relaxed);
        }
        if counts.messages_out > 0 {
            counters.messages_out.fetch_add(counts.messages_out, Ordering::Relaxed);
            counters.bytes_out.fetch_add(counts.bytes_out, Ordering::Relaxed);
        }
        self.hand_all_over();
        let mut touched = std::mem::take(&mut self.touched);
        self.width = touched.len();
        let many = self.slots.len() > KEPT_BATCHES;
        for at in others_first(&touched) {
            if let Some(slot) = self.slots.get_mut(at) {
                slot.touched = false;
                slot.used_in = self.reads;
                if many && slot.batch.is_empty() {
                    slot.batch = Batch::default();
                }
                slot.client.outbound.flush_now();
            }
        }
        touched.clear();
        self.touched = touched;
        if self.slots.len() > CACHED_RECEIVERS {
            self.forget();
            self.slots.truncate(1);
            self.behind.clear();
            self.by_client.retain(|_, at| *at == OWN);
        }
    }

    /// How many receivers the last [`Delivery::commit`] had something for.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Waits for receivers that are behind although they keep reading, if most receivers are. Bounded by [`MAX_STALL`];
    /// cancel safe.
    pub async fn stall(&mut self) {
        self.reads += 1;
        if self.behind.is_empty() {
            return;
        }
        if !self.most_are_behind() {
            return self.behind.clear(); // the others shall not wait: these catch up or are cut off
        }
        let low = self.router.limits.max_pending / 16;
        let behind = std::mem::take(&mut self.behind);
        let deadline = tokio::time::Instant::now() + MAX_STALL;
        for at in behind {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            if let Some(slot) = self.slots.get(at)
                && !left.is_zero()
            {
                slot.client.outbound.relief(left, low).await;
            }
        }
    }

    /// Whether more than half of those written to of late are behind: then it is this publisher that is too fast.
    fn most_are_behind(&self) -> bool {
        let since = self.reads.saturating_sub(RECENT_READS);
        let recent = self.slots.iter().skip(OWN + 1).filter(|slot| slot.used_in >= since.max(1));
        let (all, behind) =
            recent.fold((0, 0), |(all, behind), slot| (all + 1, behind + usize::from(slot.behind_in >= since.max(1))));
        behind * 2 > all || all == 0
    }

    fn slot_of(&mut self, client: &Arc<Client>) -> usize {
        if let Some(at) = self.by_client.get(&client.id) {
            return *at;
        }
        let at = self.slots.len();
        if client.vital.load(Ordering::Relaxed) && !self.vital.iter().any(|known| known.id == client.id) {
            self.vital.push(client.clone());
        }
        self.slots.push(Slot {
            client: client.clone(),
            batch: Batch::default(),
            takings: 0, // at worst one batch is looked through in vain
            touched: false,
            waited_at: 0,
            used_in: 0,
            behind_in: 0,
        });
        self.by_client.insert(client.id, at);
        at
    }

    fn build(&mut self, subject: &[u8], (class, generation): (Class, u64), verdict: Verdict) -> Route {
        let found = if verdict.access != Access::Denied { self.router.matches(subject) } else { Default::default() };
        let mut receivers = |members: Vec<Arc<Subscription>>| -> Vec<Receiver> {
            members
                .into_iter()
                .filter(|s| !s.filter().iter().any(|pattern| matches(pattern, subject)))
                .map(|subscription| Receiver {
                    batch: self.slot_of(&subscription.client),
                    prefix: encode::prefix(subject, &subscription.sid),
                    subscription,
                })
                .collect()
        };
        let plain: Vec<Receiver> = receivers(found.plain);
        let queues: Vec<Vec<Receiver>> = found.queues.into_iter().map(|(_, members)| receivers(members)).collect();
        Route { subject: subject.into(), class, generation, verdict, plain, queues }
    }

    /// The message goes to one of the group, by chance; who cannot have it is passed over.
    fn deliver_to_one(&mut self, group: &[Receiver], message: &Publish<'_>, body: Body<'_>) -> bool {
        if group.is_empty() {
            return false;
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        // The high bits are the better ones.
        let start = (self.random >> 33) as usize % group.len();
        let (tail, head) = group.split_at(start);
        head.iter().chain(tail).any(|receiver| self.deliver(receiver, message, body))
    }

    #[inline]
    fn deliver(&mut self, receiver: &Receiver, message: &Publish<'_>, body: Body<'_>) -> bool {
        let subscription = &*receiver.subscription;
        if subscription.is_closed() || (receiver.batch == OWN && !self.echo) {
            return false;
        }
        let turn = subscription.take_turn();
        if turn != Turn::Over {
            self.append(receiver, message, body);
        }
        if turn != Turn::Open {
            // Over too: whoever had the last turn may have been before the limit was set.
            self.router.expire(subscription);
        }
        turn != Turn::Over
    }

    #[inline]
    fn append(&mut self, receiver: &Receiver, message: &Publish<'_>, body: Body<'_>) {
        self.counts.messages_out += 1;
        self.counts.bytes_out += message.body.len() as u64;
        let Some(slot) = self.slots.get_mut(receiver.batch) else { return };
        if !slot.touched {
            slot.touched = true;
            self.touched.push(receiver.batch);
        }
        if let Some(reply) = message.reply {
            slot.client.note_request(reply);
        }
        let sid = &receiver.subscription.sid;
        let has_headers = message.header_size.is_some();
        if has_headers && !slot.client.headers.load(Ordering::Relaxed) {
            append_plain(slot.batch.tail(), message, sid);
        } else if let Body::Shared(body) = body {
            encode::message_line(slot.batch.tail(), message, sid);
            slot.batch.push_shared(body.clone());
            slot.batch.tail().extend_from_slice(encode::CRLF);
        } else if let Some(rest) = message.rest {
            encode::passed_on(slot.batch.tail(), &receiver.prefix, has_headers, rest);
        } else {
            let tail = slot.batch.tail();
            encode::message_line(tail, message, sid);
            tail.extend_from_slice(message.body);
            tail.extend_from_slice(encode::CRLF);
        }
        let len = slot.batch.len();
        self.full |= len >= MAX_BATCH;
        if len >= MAX_LONE_BATCH {
            self.hand_over(receiver.batch);
        }
    }

    /// Hands every batch over and writes none.
    fn hand_all_over(&mut self) {
        self.full = false;
        let touched = std::mem::take(&mut self.touched);
        for at in others_first(&touched) {
            self.hand_over(at);
        }
        self.touched = touched;
    }

    fn hand_over(&mut self, at: usize) {
        let Some(slot) = self.slots.get_mut(at) else { return };
        if slot.batch.is_empty() {
            return;
        }
        let (routes, client, known) = (&self.routes, &*slot.client, &mut slot.takings);
        let enqueued = client.outbound.enqueue_after(&mut slot.batch, |batch| {
            let takings = client.takings();
            if takings != *known {
                *known = takings;
                if at != OWN {
                    drop_unwanted(batch, routes, at);
                }
            }
        });
        match enqueued {
            Ok(Fill { pending, written }) => {
                let high = self.router.limits.max_pending / 8;
                if pending > high {
                    slot.behind_in = self.reads;
                }
                if pending > high && written >= slot.waited_at + STALL_PROGRESS && !self.behind.contains(&at) {
                    slot.waited_at = written;
                    self.behind.push(at);
                }
            }
            Err(Fault::SlowConsumer) => {
                self.router.counters.slow_consumers.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(client = slot.client.id, "slow consumer cut off: too much pending");
            }
            Err(_) => {}
        }
    }
}

/// Where the connection's own batch stands.
const OWN: usize = 0;

/// Drops messages whose subscriptions have ended or may not have them any more since they were put into the batch at `at`.
/// Not for the connection's own batch: that is in order, and there are not only messages in it.
fn drop_unwanted(batch: &mut Batch, routes: &Routes, at: usize) {
    // Mostly the same subject and subscription again.
    let mut last: Option<(Vec<u8>, Vec<u8>, bool)> = None;
    batch.retain(|subject, sid| match &last {
        Some((known_subject, known_sid, keeps)) if known_subject == subject && known_sid == sid => *keeps,
        _ => {
            let found = routes.get(subject).and_then(|route| route.find(at, sid));
            let keeps = found.is_none_or(|subscription| !subscription.withholds(subject));
            last = Some((subject.to_vec(), sid.to_vec(), keeps));
            keeps
        }
    });
}

/// The connection's own at the end.
fn others_first(touched: &[usize]) -> impl Iterator<Item = usize> {
    let own = touched.iter().filter(|at| **at == OWN);
    touched.iter().filter(|at| **at != OWN).chain(own).copied()
}

/// For a receiver that did not ask for headers: the message without them.
fn append_plain(tail: &mut Vec<u8>, message: &Publish<'_>, sid: &[u8]) {
    let header = message.header_size.and_then(parse::size).unwrap_or(0);
    let body = message.body.get(header..).unwrap_or_default();
    let size = body.len().to_string();
    let plain = Publish { header_size: None, total_size: size.as_bytes(), body, rest: None, ..*message };
    encode::message_line(tail, &plain, sid);
    tail.extend_from_slice(body);
    tail.extend_from_slice(encode::CRLF);
}
