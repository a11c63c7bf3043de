//! What an end sends: numbered, and kept until the other end has handed it on. Pure; a part of [`super::end`].

use std::collections::VecDeque;

use bytes::BytesMut;

use super::frame::{self, Frame, MAX_DATA};
use super::{FIRST_WINDOW, Violation, WINDOW};

/// The kept bytes are given back to the system once none is kept and so many could be.
const SPARE: usize = 16 << 10;

/// One direction, at its beginning.
#[derive(Debug)]
pub(super) struct Outbound {
    /// The bytes from `acked` to `end`.
    kept: VecDeque<u8>,
    /// Everything below was handed on by the other end; counts the finish as one position.
    acked: u64,
    /// What is sent next on this attachment.
    next: u64,
    /// The position after the last byte taken in, which is that of the finish.
    end: u64,
    finished: bool,
    /// How many positions may be under way.
    window: u64,
}

impl Outbound {
    pub(super) fn new() -> Self {
        Self { kept: VecDeque::new(), acked: 0, next: 0, end: 0, finished: false, window: FIRST_WINDOW.into() }
    }

    /// How many more bytes may be taken in.
    pub(super) fn room(&self) -> usize {
        if self.finished { 0 } else { (WINDOW as usize).saturating_sub(self.kept.len()) }
    }

    /// Takes bytes in; no more than there is [`Outbound::room`] for.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if !self.finished {
            self.kept.extend(bytes);
            self.end += bytes.len() as u64;
        }
    }

    /// Nothing more will be taken in.
    pub(super) fn finish(&mut self) {
        self.finished = true;
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Whether all of it, and its finish, was handed on.
    pub(super) fn is_done(&self) -> bool {
        self.finished && self.acked > self.end
    }

    /// Whether everything taken in so far was sent on this attachment.
    pub(super) fn is_sent(&self) -> bool {
        self.next >= self.position()
    }

    /// Forgets what was not sent: the session is being broken off.
    pub(super) fn cut(&mut self) {
        self.finished = true;
        self.next = self.position();
    }

    /// Appends the next frame, if there is anything to send.
    pub(super) fn fill(&mut self, wire: &mut BytesMut) -> bool {
        let limit = self.acked.saturating_add(self.window);
        let until = self.end.min(limit);
        if self.next < until {
            let length = usize::try_from(until - self.next).unwrap_or(MAX_DATA).min(MAX_DATA);
            let from = usize::try_from(self.next - self.acked).unwrap_or(usize::MAX);
            let (first, second) = self.kept.as_slices();
            let head = first.get(from..).unwrap_or_default();
            let head = head.get(..length.min(head.len())).unwrap_or_default();
            let tail = second.get(from.saturating_sub(first.len())..).unwrap_or_default();
            let tail = tail.get(..(length - head.len()).min(tail.len())).unwrap_or_default();
            frame::put_data(wire, self.next, [head, tail]);
            self.next += (head.len() + tail.len()) as u64;
            return true;
        }
        // Not held back by the window: it takes no room at the other end.
        if self.finished && self.next == self.end {
            Frame::Finish { offset: self.end }.put(wire);
            self.next += 1;
            return true;
        }
        false
    }

    /// The other end has handed on everything below `delivered`.
    pub(super) fn acknowledge(&mut self, delivered: u64) -> Result<(), Violation> {
        if delivered > self.next {
            return Err(Violation::Ack(delivered));
        }
        if delivered > self.acked {
            let bytes = delivered.min(self.end).saturating_sub(self.acked);
            self.kept.drain(..usize::try_from(bytes).unwrap_or(usize::MAX).min(self.kept.len()));
            self.acked = delivered;
            if self.kept.is_empty() && self.kept.capacity() > SPARE {
                self.kept = VecDeque::new();
            }
        }
        Ok(())
    }

    /// A new attachment: the other end has received everything below `received`, and takes so much at a time.
    pub(super) fn resume(&mut self, received: u64, window: u32) -> Result<(), Violation> {
        if received < self.acked || received > self.position() {
            return Err(Violation::Hello { received, from: self.acked, to: self.position() });
        }
        self.next = received;
        self.window = window.min(WINDOW).into();
        Ok(())
    }

    /// The first attachment: the other end has received so much of what was sent already, and takes so much at a time.
    pub(super) fn begin(&mut self, received: u64, window: u32) -> Result<(), Violation> {
        if received > self.next {
            return Err(Violation::Hello { received, from: 0, to: self.next });
        }
        self.window = window.min(WINDOW).into();
        Ok(())
    }

    /// What is held for nothing.
    #[cfg(test)]
    pub(super) fn spare(&self) -> usize {
        self.kept.capacity() - self.kept.len()
    }

    /// The position after everything, the finish included.
    fn position(&self) -> u64 {
        self.end + u64::from(self.finished)
    }
}
