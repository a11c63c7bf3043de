//! What a client sends, performed: bytes to operations, operations to answers, messages and subscriptions.

use bytes::{Bytes, BytesMut};

use super::super::auth::Violation;
use super::super::delivery::Body;
use super::super::pace::Seat;
use super::super::protocol::parse::Parser;
use super::super::protocol::{Fault, Op, Publish, encode};
use super::super::session::{Access, Step};
use super::super::stamp::{self, Stamped};
use super::{COSTLY_PER_TURN, Connection};

/// Bodies from here on are shared between receivers instead of copied: below, counting references and writing in more
/// pieces costs more than the copy.
const SHARE_FROM: usize = 16 * 1024;

impl Connection {
    /// Performs every whole operation in `buffer` and leaves the rest in it; stops early when [`COSTLY_PER_TURN`] is used up.
    pub(super) fn perform(&mut self, buffer: &mut BytesMut) -> Option<Fault> {
        let mut done = 0;
        loop {
            let input = buffer.get(done..).unwrap_or_default();
            if input.is_empty() || self.costly >= COSTLY_PER_TURN {
                break;
            }
            if self.session.awaits_connect() && !matches!(input.first(), Some(b'C' | b'c')) {
                return Some(Fault::Authorization);
            }
            match self.parser.next(input, &self.bounds) {
                Err(fault) => return Some(fault),
                Ok(None) => break,
                // As a part of the read buffer if it is most of it: a body keeps the whole buffer alive.
                Ok(Some((Op::Publish(message), used)))
                    if message.body.len() >= SHARE_FROM && message.body.len() >= self.allocated / 2 =>
                {
                    let frame = buffer.split_to(done + used).freeze();
                    let fault = self.perform_shared(&frame.slice(done..));
                    done = 0;
                    if fault.is_some() {
                        return fault;
                    }
                }
                Ok(Some((op, used))) => {
                    done += used;
                    if let Some(fault) = self.operation(op, None) {
                        return Some(fault);
                    }
                }
            }
        }
        let _ = buffer.split_to(done);
        None
    }

    /// Performs the one operation in `frame`, a message whose body is to be shared.
    fn perform_shared(&mut self, frame: &Bytes) -> Option<Fault> {
        match Parser::default().next(frame, &self.bounds) {
            Ok(Some((Op::Publish(message), _))) => {
                let body = frame.slice_ref(message.body);
                self.operation(Op::Publish(message), Some(&body))
            }
            Ok(_) => None,
            Err(fault) => Some(fault),
        }
    }

    #[inline]
    fn operation(&mut self, op: Op<'_>, shared: Option<&Bytes>) -> Option<Fault> {
        if !matches!(op, Op::Publish(_)) {
            self.costly += 1;
            self.forget_expired();
        }
        match self.session.handle(op) {
            Step::Publish(message) => self.publish(&message, shared),
            Step::Nothing => {}
            Step::Accepted => self.accept(),
            Step::Pong => self.delivery.answer(|out| out.extend_from_slice(encode::PONG)),
            Step::Subscribe(_) if self.seat.as_ref().is_some_and(Seat::is_full) => {
                self.refuse(&Fault::Subscriptions, &[])
            }
            Step::Subscribe(wanted) => {
                let made = self.router.subscribe(&self.client, wanted.sid, wanted.subject, wanted.queue, wanted.filter);
                self.session.subscribed(wanted.sid, made);
                self.count_subscriptions();
                self.accept();
            }
            Step::Unsubscribe { sid, max } => {
                let more = max > 0 && self.session.subscription(sid).is_some_and(|held| held.limit(max));
                if !more && let Some(held) = self.session.unsubscribe(sid) {
                    match max {
                        0 => self.router.unsubscribe(&held),
                        _ => self.router.complete(&held), // it has had its messages, the last perhaps on their way
                    };
                    self.count_subscriptions();
                }
                self.accept();
            }
            Step::Authenticate(options) => return self.authenticate(*options),
            Step::Refuse(fault) if fault.closes() => return Some(fault),
            Step::Refuse(fault) => self.refuse(&fault, &[]),
        }
        None
    }

    /// Forgets subscriptions that had their last message.
    fn forget_expired(&mut self) {
        for (id, sid) in self.client.take_expired() {
            if self.session.subscription(&sid).is_some_and(|held| held.id == id) {
                self.session.unsubscribe(&sid);
                self.count_subscriptions();
            }
        }
    }

    /// Answers with `fault`, and tells the authenticator of what permissions forbade; `payload` is what was to be published.
    fn refuse(&mut self, fault: &Fault, payload: &[u8]) {
        self.delivery.answer(|out| encode::error(out, fault));
        let (subject, is_publish) = match fault {
            Fault::PublishDenied(subject) => (subject, true),
            Fault::SubscribeDenied(subject) | Fault::QueueDenied(subject, _) => (subject, false),
            _ => return,
        };
        if let (Some(authenticator), Some(user)) = (&self.router.authenticator, self.session.user()) {
            let subject = String::from_utf8_lossy(subject);
            let to = &*subject;
            let violation = if is_publish { Violation::Publish { to, payload } } else { Violation::Subscribe(to) };
            authenticator.violated(user, self.peer, violation);
        }
    }

    /// Says `+OK` to a verbose client.
    pub(super) fn accept(&mut self) {
        if self.session.options().verbose {
            self.delivery.answer(|out| out.extend_from_slice(encode::OK));
        }
    }

    #[inline]
    fn publish(&mut self, message: &Publish<'_>, shared: Option<&Bytes>) {
        self.delivery.count_in(message.body.len());
        let costly = &mut self.costly;
        let verdict = self.delivery.verdict(message.subject, |subject| {
            *costly += 1;
            self.session.judge(subject)
        });
        if self.session.options().pedantic && !verdict.literal {
            self.delivery.answer(|out| encode::error(out, &Fault::PublishSubject));
        }
        if verdict.access != Access::Granted && !self.is_answer(message.subject, verdict.access) {
            let fault = Fault::PublishDenied(message.subject.to_vec());
            return self.refuse(&fault, stamp::payload(message));
        }
        let stamped = self.stamped(message);
        if stamped.is_some() && !stamp::is_plain(message) {
            // Nobody who means well is hit: every client of ours writes plain text.
            let fault = Fault::PublishDenied(message.subject.to_vec());
            return self.refuse(&fault, stamp::payload(message));
        }
        self.accept();
        let stamped = stamped.as_ref().map(|stamped| stamped.on(message));
        let (message, shared) = stamped.as_ref().map_or((message, shared), |stamped| (stamped, None));
        let body = match shared {
            Some(body) => Body::Shared(body),
            None if message.body.len() >= SHARE_FROM => Body::CopiedOnce,
            None => Body::Copied,
        };
        // Before anybody hears of the request, so that no listener's answer is there first.
        let answered = message.reply.is_some_and(|reply| self.serve(message.subject, reply));
        let heard = self.delivery.publish(message, body);
        if !heard
            && !answered
            && let Some(reply) = message.reply
        {
            self.unheard(message.subject, reply);
        }
    }

    /// What is to be sent in place of `message`, if the authenticator wants it to say from where it comes.
    #[inline]
    fn stamped(&self, message: &Publish<'_>) -> Option<Stamped> {
        let (authenticator, user) = (self.router.authenticator.as_ref()?, self.session.user()?);
        authenticator.stamps(user, message.subject).then(|| Stamped::new(message, self.peer))
    }

    /// Whether the client may publish to `subject` because it was asked there; counts it.
    fn is_answer(&self, subject: &[u8], access: Access) -> bool {
        let bounds = self.session.user().and_then(|user| user.permissions.allow_responses);
        access == Access::AsAnswer && bounds.is_some_and(|bounds| self.client.spend_reply(subject, &bounds))
    }
}
