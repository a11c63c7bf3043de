//! One way of a network path that loses, delays, reorders and narrows what goes over it, as Linux's `netem` does. Pure: it is
//! given packets and the time. [`crate::netem`] puts two of them between network namespaces, [`crate::tunnel`] between a client
//! and its relay.
//!
//! Why not `tc netem` itself: many kernels lack it (those of small virtual machines, where these tests run), it cannot be told
//! what to lose, so that no failure can be had again, and it needs root.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use tokio::time::Instant;

/// What happens to packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Nothing comes through.
    pub cut: bool,
    /// Of a thousand packets so many are lost.
    pub lost: u32,
    /// How long a packet takes.
    pub delay: Duration,
    /// Of a thousand packets so many take no time, and so overtake others.
    pub early: u32,
    /// Bits per second; none = as many as come. A router's queue of [`QUEUE`] stands before it, and what finds that full is lost.
    pub rate: Option<u64>,
}

/// How long a packet waits at most for the narrow part.
pub const QUEUE: Duration = Duration::from_millis(40);

/// Packets in the queue, at least, however slow it is: a burst of ten must fit.
const LEAST_QUEUE: u64 = 10 * 1_500;

/// One way.
pub struct Way {
    shape: Shape,
    random: u64,
    /// When the narrow part has let through all that waits for it.
    free: Instant,
    under_way: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    count: u64,
    pub carried: u64,
    pub lost: u64,
}

impl Way {
    /// What it loses and lets overtake follows from `seed`.
    pub fn new(shape: Shape, seed: u64, now: Instant) -> Self {
        Self { shape, random: seed, free: now, under_way: BinaryHeap::new(), count: 0, carried: 0, lost: 0 }
    }

    /// From now on packets fare so; those under way as before.
    pub fn set(&mut self, shape: Shape) {
        self.shape = shape;
    }

    /// A packet enters.
    pub fn enter(&mut self, packet: &[u8], now: Instant) {
        // Each packet draws twice, whatever becomes of it: a path that is changed does not change what happens to others.
        let (lost, early) = (self.draw() < self.shape.lost, self.draw() < self.shape.early);
        let passes = self.pass(packet.len(), now);
        let Some(passed) = passes.filter(|_| !lost && !self.shape.cut) else {
            self.lost += 1;
            return;
        };
        let due = if early { passed } else { passed + self.shape.delay };
        self.count += 1;
        self.under_way.push(Reverse((due, self.count, packet.to_vec())));
    }

    /// The next packet that is out by now.
    pub fn leave(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.next()? > now {
            return None;
        }
        self.carried += 1;
        self.under_way.pop().map(|Reverse((_, _, packet))| packet)
    }

    /// When the next packet is out.
    pub fn next(&self) -> Option<Instant> {
        self.under_way.peek().map(|Reverse((due, _, _))| *due)
    }

    /// When a packet of this length is through the narrow part; none if it finds the queue full.
    fn pass(&mut self, length: usize, now: Instant) -> Option<Instant> {
        let Some(rate) = self.shape.rate else { return Some(now) };
        let takes = |bytes: u64| Duration::from_nanos(bytes * 8 * 1_000_000_000 / rate);
        let start = self.free.max(now);
        if start - now > QUEUE.max(takes(LEAST_QUEUE)) {
            return None;
        }
        self.free = start + takes(length as u64);
        Some(self.free)
    }

    /// A number below a thousand.
    fn draw(&mut self) -> u32 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.random;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u32::try_from((x ^ (x >> 31)) % 1_000).unwrap()
    }
}

fn through(shape: Shape, packets: u64) -> (Way, Vec<(u64, Duration)>) {
    let start = Instant::now();
    let mut way = Way::new(shape, 7, start);
    let mut out = Vec::new();
    for n in 0..packets {
        way.enter(&n.to_le_bytes().repeat(125), start + Duration::from_millis(n));
    }
    while let Some(due) = way.next() {
        assert_eq!(way.leave(due - Duration::from_nanos(1)), None);
        let packet = way.leave(due).unwrap();
        let n = u64::from_le_bytes(packet[..8].try_into().unwrap());
        out.push((n, due - start - Duration::from_millis(n)));
    }
    (way, out)
}

#[test]
fn a_way_loses_and_delays_as_it_is_told_and_the_same_again() {
    let shape = Shape { lost: 50, delay: Duration::from_millis(100), ..Shape::default() };
    let (way, out) = through(shape, 10_000);
    assert!((400..600).contains(&way.lost), "{}", way.lost);
    assert_eq!(out.len() as u64, way.carried);
    assert!(out.iter().all(|(_, took)| *took == shape.delay) && out.is_sorted());
    assert_eq!(through(shape, 10_000).1, out);
    assert_eq!(through(Shape { cut: true, ..shape }, 10).1, []);
}

#[test]
fn a_way_lets_some_overtake() {
    let (_, out) = through(Shape { early: 250, delay: Duration::from_millis(10), ..Shape::default() }, 1_000);
    let overtaken = out.windows(2).filter(|pair| pair[1].0 < pair[0].0).count();
    assert!(out.len() == 1_000 && overtaken > 100, "{overtaken}");
}

#[test]
fn a_narrow_way_takes_its_time_and_drops_what_is_too_much() {
    // 1,000 bytes a millisecond are 8 Mbit/s.
    let shape = Shape { rate: Some(8_000_000), ..Shape::default() };
    let (way, out) = through(shape, 1_000);
    assert!(way.lost == 0 && out.iter().all(|(_, took)| *took == Duration::from_millis(1)));
    let (way, out) = through(Shape { rate: Some(4_000_000), ..shape }, 1_000);
    assert!((450..500).contains(&way.lost), "{}", way.lost);
    assert!(out.iter().all(|(_, took)| *took <= QUEUE + Duration::from_millis(2)));
}
