//! Whether streams to a connected worker would be served: what was heard from it, and how it answered when asked. Pure; kept
//! in `links`, fed by `prober`.
//!
//! A QUIC connection outlives a dead path by its idle timeout, and a worker that hangs by as much. So two things are looked at:
//! packets, which come at least as often as the worker's keep-alive, and now and then the answer to a `ping`, which only a
//! worker gives that takes streams in. Asking alone, often enough to notice soon, would be work for thousands of idle workers.

use std::time::{Duration, Instant};

use super::super::KEEP_ALIVE;

/// How often it is looked whether packets came.
pub(super) const LOOK: Duration = KEEP_ALIVE;
/// After how long without any packet the path counts as dead: two keep-alives may be lost.
const SILENT: Duration = Duration::from_secs(13);
/// How often a worker that is heard is asked all the same.
const ASK: Duration = Duration::from_secs(60);
/// How long it may take to answer: on a line that is full of other sessions' bytes some seconds are usual.
pub(super) const ANSWER: Duration = Duration::from_secs(8);

/// What is known of one connection.
#[derive(Debug)]
pub(super) struct Reach {
    /// UDP datagrams received so far, and when that last changed.
    datagrams: u64,
    heard: Instant,
    asked: Option<Instant>,
    /// The answer is still to come.
    waiting: bool,
    proven: Option<Instant>,
    /// Since when it does not answer, and why.
    failing: Option<(Instant, String)>,
}

/// What is to be done after a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing.
    Wait,
    /// Send a `ping`.
    Ask,
}

impl Reach {
    /// Of a connection over which its worker was just admitted: that has proven the path once.
    pub(super) fn new(now: Instant) -> Self {
        Self { datagrams: 0, heard: now, asked: None, waiting: false, proven: None, failing: None }
    }

    /// So many datagrams have come by now.
    pub(super) fn look(&mut self, datagrams: u64, now: Instant) -> Next {
        if datagrams != self.datagrams {
            (self.datagrams, self.heard) = (datagrams, now);
        }
        let silent = now.duration_since(self.heard);
        if silent >= SILENT {
            self.fail(now, || "no packet comes from it".to_owned());
        }
        let due = self.asked.is_none_or(|asked| now.duration_since(asked) >= ASK);
        if !self.waiting && (due || self.failing.is_some()) { Next::Ask } else { Next::Wait }
    }

    /// It is being asked.
    pub(super) fn ask(&mut self, now: Instant) {
        (self.asked, self.waiting) = (Some(now), true);
    }

    /// It is to be asked at the next look, however short ago it was.
    pub(super) fn ask_again(&mut self) {
        self.asked = None;
    }

    /// It was asked, and this came of it.
    pub(super) fn answered(&mut self, answer: Result<(), String>, now: Instant) {
        self.waiting = false;
        match answer {
            Ok(()) => (self.proven, self.failing) = (Some(now), None),
            Err(why) => self.fail(now, || why),
        }
    }

    fn fail(&mut self, now: Instant, why: impl FnOnce() -> String) {
        self.failing.get_or_insert_with(|| (now, why()));
    }

    /// When it last answered.
    pub(super) fn proven(&self) -> Option<Instant> {
        self.proven
    }

    /// Since when it does not answer, and why; none = it does.
    pub(super) fn failing(&self) -> Option<(Instant, &str)> {
        self.failing.as_ref().map(|(since, why)| (*since, why.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_is_heard_is_asked_seldom() {
        let start = Instant::now();
        let mut reach = Reach::new(start);
        assert_eq!(reach.look(1, start), Next::Ask, "the first time at once");
        reach.ask(start);
        assert_eq!(reach.look(2, start + LOOK), Next::Wait, "it is being asked");
        reach.answered(Ok(()), start);
        let looks = (1..=60u32).filter(|n| {
            let (datagrams, now) = (1 + u64::from(*n), start + LOOK * *n);
            let asks = reach.look(datagrams, now) == Next::Ask;
            if asks {
                reach.ask(now);
                reach.answered(Ok(()), start);
            }
            asks
        });
        assert_eq!(looks.count(), 5, "in five minutes");
        assert_eq!(reach.look(62, start + LOOK * 61), Next::Wait);
        reach.ask_again();
        assert_eq!(reach.look(63, start + LOOK * 61), Next::Ask);
        assert_eq!((reach.failing(), reach.proven()), (None, Some(start)));
    }

    #[test]
    fn silence_is_noticed_before_the_connection_ends_and_forgotten_with_an_answer() {
        let start = Instant::now();
        let mut reach = Reach::new(start);
        assert_eq!(reach.look(7, start), Next::Ask);
        reach.ask(start);
        reach.answered(Ok(()), start);
        assert_eq!(reach.look(7, start + LOOK), Next::Wait);
        assert_eq!(reach.look(7, start + LOOK * 2), Next::Wait);
        assert_eq!(reach.look(7, start + LOOK * 3), Next::Ask);
        assert_eq!(reach.failing(), Some((start + LOOK * 3, "no packet comes from it")));
        assert!(LOOK * 3 < super::super::super::IDLE_TIMEOUT);
        assert_eq!(reach.look(9, start + LOOK * 4), Next::Ask, "heard again, it still has to answer");
        assert!(reach.failing().is_some());
        reach.answered(Ok(()), start + LOOK * 4);
        assert_eq!(reach.look(9, start + LOOK * 5), Next::Wait);
        assert_eq!(reach.failing(), None);
    }

    #[test]
    fn a_worker_that_is_heard_and_does_not_answer_fails_from_then_on() {
        let start = Instant::now();
        let mut reach = Reach::new(start);
        assert_eq!(reach.look(1, start), Next::Ask);
        reach.answered(Err("it hangs".into()), start + ANSWER);
        reach.answered(Err("it still hangs".into()), start + ANSWER * 2);
        assert_eq!(reach.failing(), Some((start + ANSWER, "it hangs")));
        assert_eq!(reach.proven(), None);
    }
}
