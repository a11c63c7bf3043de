//! One end of a resumable session, without its sockets: what was sent and not yet handed on, what was received, and what
//! goes over the attachment next. Pure; [`super::drive`] moves the bytes.

use bytes::BytesMut;

use super::frame::{Frame, MAX_FRAME};
use super::inbound::Inbound;
use super::outbound::Outbound;
use super::{Over, Violation, WINDOW};
use crate::tunnel::reason::Reason;

/// So much is put together for one write: more only adds to what an acknowledgement waits behind.
const BATCH: usize = 4 * MAX_FRAME;

/// How a session stands with the connection that carries it at the moment.
#[derive(Debug, Default)]
struct Attachment {
    /// Our hello is still to be sent.
    hello_due: bool,
    /// The other end's hello came.
    greeted: bool,
    /// It is known from where the other end wants to have the stream.
    placed: bool,
    /// Our reset was sent.
    reset_sent: bool,
}

/// One end of a session.
#[derive(Debug)]
pub struct End {
    outbound: Outbound,
    inbound: Inbound,
    attachment: Attachment,
    /// The first attachment: both streams begin at 0, and nobody need be asked.
    first: bool,
    /// Whether a hello ever came.
    met: bool,
    /// The local side is gone, once all that it had sent is handed on.
    leaving: bool,
    /// Why this end has given up.
    broken: Option<Reason>,
    /// Why the other end has.
    reset: Option<Reason>,
    /// What was received before a reset is still handed on.
    hands_on: bool,
}

impl End {
    /// The end at the client: what the guest said before it broke off is still handed on.
    pub fn at_client() -> Self {
        Self::new(true)
    }

    /// The end at the guest: a client that breaks off wants nothing done any more.
    pub fn at_guest() -> Self {
        Self::new(false)
    }

    fn new(hands_on: bool) -> Self {
        Self {
            outbound: Outbound::new(),
            inbound: Inbound::default(),
            attachment: Attachment::default(),
            first: true,
            met: false,
            leaving: false,
            broken: None,
            reset: None,
            hands_on,
        }
    }

    // The local side.

    /// How many bytes may be taken from the local side now; 0 = it must wait.
    pub fn room(&self) -> usize {
        if self.broken.is_some() || self.reset.is_some() { 0 } else { self.outbound.room() }
    }

    /// Takes bytes from the local side, no more than [`End::room`] says.
    pub fn push(&mut self, bytes: &[u8]) {
        self.outbound.push(bytes);
    }

    /// The local side will send nothing more.
    pub fn finish(&mut self) {
        self.outbound.finish();
    }

    /// Whether it was said so.
    pub fn is_finished(&self) -> bool {
        self.outbound.is_finished()
    }

    /// What is to be handed to the local side next.
    pub fn front(&self) -> &[u8] {
        self.inbound.front()
    }

    /// So many bytes of it were handed on.
    pub fn deliver(&mut self, count: usize) {
        self.inbound.deliver(count);
    }

    /// The local side takes nothing any more: what still comes is dropped.
    pub fn decline(&mut self) {
        self.inbound.decline();
    }

    /// Whether the local side is to be told that nothing more comes; [`End::close`] says that it was.
    pub fn is_at_end(&self) -> bool {
        self.inbound.is_at_end()
    }

    /// See [`End::is_at_end`].
    pub fn close(&mut self) {
        self.inbound.close();
    }

    /// The local side is broken: the other end is told after all that was sent before.
    pub fn fail(&mut self, reason: Reason) {
        self.broken.get_or_insert(reason);
        self.outbound.finish();
    }

    /// Breaks the session off at once.
    pub fn abort(&mut self, reason: Reason) {
        self.broken.get_or_insert(reason);
        self.outbound.cut();
        // That much can be said to an end of which nothing is known.
        self.attachment.placed = true;
    }

    /// The local side is gone and had finished: once the other end has everything, the session is over.
    pub fn leave(&mut self) {
        self.leaving = true;
        self.decline();
    }

    // The attachment.

    /// The session is carried by a new connection from now on.
    pub fn attach(&mut self) {
        self.attachment = Attachment { hello_due: true, placed: self.first, ..Attachment::default() };
        self.inbound.tell_again();
    }

    /// It is carried by none.
    pub fn detach(&mut self) {
        self.first = false;
        self.attachment = Attachment::default();
    }

    /// Whether the other end was ever heard.
    pub fn has_met(&self) -> bool {
        self.met
    }

    /// Whether the other end was heard over this connection.
    pub fn is_greeted(&self) -> bool {
        self.attachment.greeted
    }

    /// Appends what is to be sent, as far as it is worth one write.
    pub fn fill(&mut self, wire: &mut BytesMut) {
        if self.attachment.hello_due {
            self.attachment.hello_due = false;
            Frame::Hello { received: self.inbound.received(), window: WINDOW }.put(wire);
        }
        if self.attachment.placed && !self.attachment.reset_sent {
            let before = wire.len();
            while wire.len() < BATCH && !self.outbound.is_sent() && self.outbound.fill(wire) {}
            if self.leaving && self.outbound.is_done() && !self.inbound.is_closed() {
                self.broken.get_or_insert(Reason::Closed);
            }
            if let Some(reason) = self.broken.filter(|_| self.outbound.is_sent()) {
                Frame::Reset(reason).put(wire);
                self.attachment.reset_sent = true;
            }
            // Goes along for nothing.
            if self.inbound.ack_is_due() || (wire.len() > before && self.inbound.owes_ack()) {
                self.acknowledge(wire);
            }
        }
    }

    /// Whether an acknowledgement is owed that may wait for something to go along with.
    pub fn owes_ack(&self) -> bool {
        self.attachment.placed && !self.attachment.hello_due && self.inbound.owes_ack()
    }

    /// Appends it.
    pub fn acknowledge(&mut self, wire: &mut BytesMut) {
        Frame::Ack { delivered: self.inbound.tell() }.put(wire);
    }

    /// Takes in what came over the attachment, as far as it is whole.
    ///
    /// # Errors
    /// [`Violation`]: the session cannot go on, and has been broken off.
    pub fn receive(&mut self, wire: &mut BytesMut) -> Result<(), Violation> {
        while self.reset.is_none()
            && let Some(frame) = Frame::take(wire).inspect_err(|_| self.abort(Reason::Protocol))?
        {
            self.handle(frame).inspect_err(|_| self.abort(Reason::Protocol))?;
        }
        Ok(())
    }

    fn handle(&mut self, frame: Frame) -> Result<(), Violation> {
        match (frame, self.attachment.greeted) {
            (Frame::Hello { received, window }, false) => {
                match self.first {
                    // Nothing was lost, and it may have received something before it said hello.
                    true => self.outbound.begin(received, window)?,
                    false => self.outbound.resume(received, window)?,
                }
                self.attachment.greeted = true;
                self.attachment.placed = true;
                self.met = true;
                Ok(())
            }
            (Frame::Reset(reason), _) => {
                self.reset = Some(reason);
                Ok(())
            }
            (Frame::Hello { .. }, true) | (_, false) => Err(Violation::Order),
            (Frame::Data { offset, bytes }, true) => self.inbound.data(offset, &bytes),
            (Frame::Ack { delivered }, true) => self.outbound.acknowledge(delivered),
            (Frame::Finish { offset }, true) => self.inbound.finish(offset),
        }
    }

    /// How the session has ended, once it has and everything was put on the wire.
    pub fn over(&self) -> Option<Over> {
        if let Some(reason) = self.reset {
            return (!self.hands_on || self.inbound.front().is_empty()).then_some(Over::Reset(reason));
        }
        if let Some(reason) = self.broken {
            return self.attachment.reset_sent.then_some(Over::Broken(reason));
        }
        (self.is_satisfied() && !self.inbound.owes_ack()).then_some(Over::Finished)
    }

    /// Whether both directions have ended properly as seen from here; the other end may still wait to hear so.
    pub fn is_satisfied(&self) -> bool {
        self.outbound.is_done() && self.inbound.is_closed()
    }
}

#[cfg(test)]
mod tests;
