//! Where a client may publish because it was asked: the reply subjects of requests that were delivered to it, for users with
//! [`super::permission::Permissions::allow_responses`]. Pure; publishers note, the client's own task asks.
//!
//! Bounded: when full, the oldest are forgotten, so that a flood of requests costs the chance to answer the first of them
//! and no memory.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use super::permission::Responses;

/// Reply subjects remembered for one client.
const MAX_REPLIES: usize = 8_192;
/// Bytes of subjects remembered for one client: 1 MiB.
const MAX_BYTES: usize = 1024 * 1024;

/// See the module.
#[derive(Debug, Default)]
pub struct Replies {
    known: HashMap<Box<[u8]>, Reply>,
    /// In the order they were noted, with the number under which; those noted again or used up are passed over.
    order: VecDeque<(u64, Box<[u8]>)>,
    bytes: usize,
    noted: u64,
}

#[derive(Debug)]
struct Reply {
    number: u64,
    since: Instant,
    used: u32,
}

impl Replies {
    /// A request with this reply subject was delivered at `now`.
    pub fn note(&mut self, subject: &[u8], now: Instant) {
        self.noted += 1;
        let number = self.noted;
        self.known.insert(subject.into(), Reply { number, since: now, used: 0 });
        self.order.push_back((number, subject.into()));
        self.bytes += subject.len();
        while self.order.len() > MAX_REPLIES || self.bytes > MAX_BYTES {
            let Some((number, oldest)) = self.order.pop_front() else { return };
            self.bytes -= oldest.len();
            if self.known.get(&oldest).is_some_and(|reply| reply.number == number) {
                self.known.remove(&oldest);
            }
        }
    }

    /// Whether a message may be published to `subject` at `now` as an answer; counts it.
    pub fn spend(&mut self, subject: &[u8], bounds: &Responses, now: Instant) -> bool {
        let Some(reply) = self.known.get_mut(subject) else { return false };
        reply.used = reply.used.saturating_add(1);
        let late = bounds.expires.is_some_and(|limit| now.saturating_duration_since(reply.since) > limit);
        let allowed = !late && bounds.max.is_none_or(|max| reply.used <= max);
        if !allowed {
            self.known.remove(subject);
        }
        allowed
    }

    /// Forgets everything: the client's rights have changed.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_answer_needs_a_request_and_is_counted() {
        let (mut replies, now) = (Replies::default(), Instant::now());
        let twice = Responses { max: Some(2), expires: None };
        assert!(!replies.spend(b"r", &twice, now));
        replies.note(b"r", now);
        assert!(replies.spend(b"r", &twice, now) && replies.spend(b"r", &twice, now));
        assert!(!replies.spend(b"r", &twice, now) && !replies.spend(b"other", &twice, now));
        replies.note(b"r", now);
        assert!(replies.spend(b"r", &twice, now), "asked again, it may answer again");
    }

    #[test]
    fn answers_come_in_time_or_not_at_all() {
        let (mut replies, now) = (Replies::default(), Instant::now());
        let soon = Responses { max: None, expires: Some(Duration::from_secs(1)) };
        replies.note(b"r", now);
        assert!((0..100).all(|_| replies.spend(b"r", &soon, now + Duration::from_secs(1))));
        assert!(!replies.spend(b"r", &soon, now + Duration::from_millis(1_001)));
    }

    #[test]
    fn a_flood_costs_the_oldest() {
        let (mut replies, now) = (Replies::default(), Instant::now());
        let any = Responses { max: None, expires: None };
        for number in 0..3 * MAX_REPLIES {
            replies.note(format!("r.{number}").as_bytes(), now);
            replies.note(b"same", now);
        }
        assert!(replies.known.len() <= MAX_REPLIES && replies.order.len() <= MAX_REPLIES);
        assert!(!replies.spend(b"r.0", &any, now) && replies.spend(b"same", &any, now));
        assert!(replies.spend(format!("r.{}", 3 * MAX_REPLIES - 1).as_bytes(), &any, now));
        for _ in 0..100 {
            replies.note(&[b'x'; 100_000], now);
        }
        assert!(replies.bytes <= MAX_BYTES && replies.order.len() < 20);
    }
}
