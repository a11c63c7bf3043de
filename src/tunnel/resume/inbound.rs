//! What an end receives: put in order, and kept until it was handed on. Pure; a part of [`super::end`].

use std::collections::VecDeque;

use super::{ACK_EVERY, Violation, WINDOW};

/// As in [`super::outbound`].
const SPARE: usize = 16 << 10;

/// One direction, at its end.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    /// The bytes from `delivered` to `received`.
    waiting: VecDeque<u8>,
    /// Everything below was received.
    received: u64,
    /// Everything below was handed on; counts the finish as one position.
    delivered: u64,
    /// Where the stream ends.
    finish: Option<u64>,
    /// What the other end was told last to be handed on.
    told: u64,
    /// Nobody wants it: it counts as handed on.
    declined: bool,
}

impl Inbound {
    /// Takes in a piece; what was received before is left out.
    pub(super) fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Violation> {
        let end = offset.saturating_add(bytes.len() as u64);
        if offset > self.received {
            return Err(Violation::Gap { offset, expected: self.received });
        }
        if self.finish.is_some_and(|finish| end > finish) {
            return Err(Violation::Finish(end));
        }
        let known = usize::try_from(self.received - offset).unwrap_or(usize::MAX);
        let new = bytes.get(known..).unwrap_or_default();
        if self.waiting.len() + new.len() > WINDOW as usize {
            return Err(Violation::Window);
        }
        self.received += new.len() as u64;
        match self.declined {
            true => self.delivered = self.received,
            false => self.waiting.extend(new),
        }
        Ok(())
    }

    /// The stream ends at `offset`.
    pub(super) fn finish(&mut self, offset: u64) -> Result<(), Violation> {
        if offset != self.received || self.finish.is_some_and(|finish| finish != offset) {
            return Err(Violation::Finish(offset));
        }
        self.finish = Some(offset);
        Ok(())
    }

    /// What is to be handed on next; empty when there is nothing.
    pub(super) fn front(&self) -> &[u8] {
        self.waiting.as_slices().0
    }

    /// The first `count` bytes of it were handed on.
    pub(super) fn deliver(&mut self, count: usize) {
        let count = count.min(self.waiting.len());
        self.waiting.drain(..count);
        self.delivered += count as u64;
        if self.waiting.is_empty() && self.waiting.capacity() > SPARE {
            self.waiting = VecDeque::new();
        }
    }

    /// Nobody wants what is left, nor what comes.
    pub(super) fn decline(&mut self) {
        self.declined = true;
        self.deliver(self.waiting.len());
    }

    /// Whether all bytes were handed on and only the end of the stream is left to be.
    pub(super) fn is_at_end(&self) -> bool {
        self.finish == Some(self.delivered)
    }

    /// The end of the stream was handed on, too.
    pub(super) fn close(&mut self) {
        if self.is_at_end() {
            self.delivered += 1;
        }
    }

    /// Whether everything was handed on, the end of the stream included.
    pub(super) fn is_closed(&self) -> bool {
        self.finish.is_some_and(|finish| self.delivered > finish)
    }

    /// The position from which the other end must send after a new attachment.
    pub(super) fn received(&self) -> u64 {
        self.received + u64::from(self.finish.is_some())
    }

    /// Whether the other end keeps something that it need not keep.
    pub(super) fn owes_ack(&self) -> bool {
        self.delivered > self.told
    }

    /// Whether it is time to say so without being asked: much was handed on, or all.
    pub(super) fn ack_is_due(&self) -> bool {
        self.owes_ack() && (self.delivered - self.told >= ACK_EVERY || self.is_closed())
    }

    /// The position to acknowledge; it counts as told.
    pub(super) fn tell(&mut self) -> u64 {
        self.told = self.delivered;
        self.told
    }

    /// A new attachment: what was told may not have arrived.
    pub(super) fn tell_again(&mut self) {
        self.told = 0;
    }

    /// What is held for nothing.
    #[cfg(test)]
    pub(super) fn spare(&self) -> usize {
        self.waiting.capacity() - self.waiting.len()
    }
}
