//! One client's standing with the broker: its options, its user, its subscriptions, and what each operation it sends
//! means. Pure: the connection task feeds it operations and performs the [`Step`] that comes out.

use std::collections::HashMap;
use std::sync::Arc;

use super::auth::User;
use super::permission::Subscribe;
use super::protocol::connect::ConnectOptions;
use super::protocol::{Fault, Op, Publish};
use super::subject;

/// Tokens of a subject for which a subscription counts as one more: the tree keeps a node for each.
const TOKENS_PER_SHARE: usize = 16;
/// Bytes of subject, queue group and sid for which it does, if that is more: they are kept several times over.
const BYTES_PER_SHARE: usize = 256;

/// What to do about an operation.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Nothing to do, nothing to say.
    Nothing,
    /// Accepted without effect; a verbose client hears `+OK`.
    Accepted,
    /// Answer with PONG.
    Pong,
    /// Check the credentials, then call [`Session::connected`].
    Authenticate(Box<ConnectOptions>),
    /// Route the message, if [`Session::judge`] does not object.
    Publish(Publish<'a>),
    /// Make the subscription, then call [`Session::subscribed`].
    Subscribe(Wanted<'a>),
    /// Call [`Session::unsubscribe`] or limit the subscription to `max` messages.
    Unsubscribe {
        /// The client's id of the subscription.
        sid: &'a [u8],
        /// 0 means now.
        max: u64,
    },
    /// Tell the client; the connection ends if [`Fault::closes`].
    Refuse(Fault),
}

/// A subscription that the client may have.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// Valid subject, perhaps with wildcards.
    pub subject: &'a [u8],
    /// Queue group.
    pub queue: Option<&'a [u8]>,
    /// The client's id for it.
    pub sid: &'a [u8],
    /// Patterns whose messages are held back.
    pub filter: Vec<Box<[u8]>>,
}

/// Whether a user may publish to a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// At any time.
    Granted,
    /// As an answer to a request only.
    AsAnswer,
    /// Never.
    Denied,
}

/// What stands against publishing to a subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the user may.
    pub access: Access,
    /// Whether it is a valid subject without wildcards; matters to pedantic clients only.
    pub literal: bool,
}

/// What the session must know of a subscription that someone else keeps.
pub trait Held {
    /// Its subject.
    fn subject(&self) -> &[u8];
    /// Its queue group.
    fn queue(&self) -> Option<&[u8]>;
}

/// What becomes of a subscription when the user's rights change.
#[derive(Debug, PartialEq, Eq)]
pub enum Revised<S> {
    /// It goes on, but messages on these patterns must be held back from now on.
    Kept(S, Vec<Box<[u8]>>),
    /// The session has forgotten it; it must end, and the client is told so.
    Ended(S, Fault),
}

/// See the module. `S` is the shell's handle of a subscription.
#[derive(Debug)]
pub struct Session<S> {
    max_subscriptions: usize,
    options: ConnectOptions,
    user: Option<Arc<User>>,
    subscriptions: HashMap<Box<[u8]>, S>,
    /// What they count as together.
    shares: usize,
}

impl<S: Held + Clone> Session<S> {
    /// A client that has just connected. Without `auth_required` it is anonymous and may do everything at once.
    pub fn new(auth_required: bool, max_subscriptions: usize) -> Self {
        let user = (!auth_required).then(|| Arc::new(User::anonymous()));
        let options = ConnectOptions::default();
        Self { max_subscriptions, options, user, subscriptions: HashMap::new(), shares: 0 }
    }

    /// The options of the last accepted CONNECT.
    pub fn options(&self) -> &ConnectOptions {
        &self.options
    }

    /// Who the client is; `None` before it has said so.
    pub fn user(&self) -> Option<&Arc<User>> {
        self.user.as_ref()
    }

    /// Whether the only thing that this client may send now is CONNECT.
    pub fn awaits_connect(&self) -> bool {
        self.user.is_none()
    }

    /// What `op` means.
    pub fn handle<'a>(&mut self, op: Op<'a>) -> Step<'a> {
        let Some(user) = &self.user else {
            return match op {
                Op::Connect(json) => self.connect(json),
                _ => Step::Refuse(Fault::Authorization),
            };
        };
        match op {
            Op::Publish(message) if message.header_size.is_some() && !self.options.headers => {
                Step::Refuse(Fault::Malformed)
            }
            Op::Publish(message) => Step::Publish(message),
            Op::Ping => Step::Pong,
            Op::Pong | Op::Noise => Step::Nothing,
            Op::Connect(json) => self.connect(json),
            Op::Unsubscribe { sid, max } => Step::Unsubscribe { sid, max },
            Op::ClientError => Step::Refuse(Fault::Malformed),
            Op::Subscribe { subject, queue, sid } => {
                let filter = match user.permissions.may_subscribe(subject, queue) {
                    Subscribe::Denied => return Step::Refuse(subscribe_denied(subject, queue)),
                    Subscribe::Granted => Vec::new(),
                    Subscribe::Filtered(filter) => filter,
                };
                if self.shares.saturating_add(shares(sid, subject, queue)) > self.max_subscriptions {
                    return Step::Refuse(Fault::Subscriptions);
                }
                if self.subscriptions.contains_key(sid) {
                    return Step::Accepted;
                }
                if !subject::is_valid(subject) {
                    return Step::Refuse(Fault::Subject);
                }
                Step::Subscribe(Wanted { subject, queue, sid, filter })
            }
        }
    }

    fn connect<'a>(&self, json: &[u8]) -> Step<'a> {
        match self.options.updated(json) {
            Ok(options) => Step::Authenticate(Box::new(options)),
            Err(fault) => Step::Refuse(fault),
        }
    }

    /// The credentials were accepted. Returns what becomes of the client's subscriptions: a second CONNECT can change who
    /// it is.
    pub fn connected(&mut self, options: ConnectOptions, user: User) -> Vec<Revised<S>> {
        self.options = options;
        self.become_user(user)
    }

    /// The client is `user` from now on. Returns what becomes of its subscriptions.
    pub fn become_user(&mut self, user: User) -> Vec<Revised<S>> {
        let user = Arc::new(user);
        let known = self.user.replace(user.clone());
        if known.is_none_or(|known| known.permissions == user.permissions) {
            return Vec::new();
        }
        let mut revised = Vec::new();
        let shares_held = &mut self.shares;
        self.subscriptions.retain(|sid, held| {
            let filter = match user.permissions.may_subscribe(held.subject(), held.queue()) {
                Subscribe::Denied => {
                    let (subject, queue) = (held.subject().to_vec(), held.queue().map(<[u8]>::to_vec));
                    let fault = Fault::SubscriptionEnded { subject, queue, sid: sid.to_vec() };
                    revised.push(Revised::Ended(held.clone(), fault));
                    *shares_held = shares_held.saturating_sub(shares(sid, held.subject(), held.queue()));
                    return false;
                }
                Subscribe::Granted => Vec::new(),
                Subscribe::Filtered(filter) => filter,
            };
            revised.push(Revised::Kept(held.clone(), filter));
            true
        });
        revised
    }

    /// What stands against publishing to `subject`; the answer holds until the user changes.
    pub fn judge(&self, subject: &[u8]) -> Verdict {
        let access = match &self.user {
            Some(user) if user.permissions.may_publish(subject) => Access::Granted,
            Some(user) if user.permissions.allow_responses.is_some() => Access::AsAnswer,
            _ => Access::Denied,
        };
        Verdict { access, literal: subject::is_literal(subject) }
    }

    /// Keeps the handle of a subscription made.
    pub fn subscribed(&mut self, sid: &[u8], handle: S) {
        self.unsubscribe(sid); // never two: the sid was free
        self.shares = self.shares.saturating_add(shares(sid, handle.subject(), handle.queue()));
        self.subscriptions.insert(sid.into(), handle);
    }

    /// The handle of a subscription.
    pub fn subscription(&self, sid: &[u8]) -> Option<&S> {
        self.subscriptions.get(sid)
    }

    /// Forgets a subscription and hands back its handle.
    pub fn unsubscribe(&mut self, sid: &[u8]) -> Option<S> {
        let held = self.subscriptions.remove(sid)?;
        self.shares = self.shares.saturating_sub(shares(sid, held.subject(), held.queue()));
        Some(held)
    }

    /// What the subscriptions count as together.
    pub fn shares(&self) -> usize {
        self.shares
    }

    /// Forgets all of them.
    pub fn take_subscriptions(&mut self) -> Vec<S> {
        self.shares = 0;
        std::mem::take(&mut self.subscriptions).into_values().collect()
    }
}

/// What a subscription counts as against the client's maximum: one, and more if it takes the memory of several.
fn shares(sid: &[u8], subject: &[u8], queue: Option<&[u8]>) -> usize {
    let bytes = sid.len() + subject.len() + queue.map_or(0, <[u8]>::len);
    1 + (subject::tokens(subject).count() / TOKENS_PER_SHARE).max(bytes / BYTES_PER_SHARE)
}

fn subscribe_denied(subject: &[u8], queue: Option<&[u8]>) -> Fault {
    match queue {
        None => Fault::SubscribeDenied(subject.to_vec()),
        Some(queue) => Fault::QueueDenied(subject.to_vec(), queue.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::permission::{Permissions, Rules};

    #[derive(Debug, Clone, PartialEq)]
    struct Fake(Vec<u8>);

    impl Held for Fake {
        fn subject(&self) -> &[u8] {
            &self.0
        }

        fn queue(&self) -> Option<&[u8]> {
            None
        }
    }

    fn sub<'a>(subject: &'a [u8], sid: &'a [u8]) -> Op<'a> {
        Op::Subscribe { subject, queue: None, sid }
    }

    fn user(subscribe: Rules) -> User {
        User::new("u", Permissions { subscribe, ..Permissions::default() })
    }

    fn open(max: usize) -> Session<Fake> {
        Session::new(false, max)
    }

    fn message(header_size: Option<&[u8]>) -> Publish<'_> {
        Publish { subject: b"a", reply: None, header_size, total_size: b"0", body: b"", rest: None }
    }

    #[test]
    fn with_authentication_nothing_goes_before_connect() {
        let mut session: Session<Fake> = Session::new(true, 9);
        assert!(session.awaits_connect());
        assert_eq!(session.handle(Op::Ping), Step::Refuse(Fault::Authorization));
        assert_eq!(session.handle(sub(b"a", b"1")), Step::Refuse(Fault::Authorization));
        assert!(matches!(session.handle(Op::Connect(b"{}")), Step::Authenticate(_)));
        assert!(session.awaits_connect(), "asking is not being let in");
        session.connected(ConnectOptions::default(), user(Rules::default()));
        assert_eq!(session.handle(Op::Ping), Step::Pong);
    }

    #[test]
    fn subscriptions_are_counted_checked_and_known_by_sid() {
        let mut session = open(2);
        assert_eq!(session.handle(sub(b"a..b", b"1")), Step::Refuse(Fault::Subject));
        for sid in [b"1", b"2"] {
            assert!(matches!(session.handle(sub(b"a", sid)), Step::Subscribe(_)));
            session.subscribed(sid, Fake(b"a".to_vec()));
        }
        assert_eq!(session.handle(sub(b"a", b"3")), Step::Refuse(Fault::Subscriptions));
        assert!(session.unsubscribe(b"1").is_some() && session.unsubscribe(b"1").is_none());
        assert_eq!(session.handle(sub(b"b", b"2")), Step::Accepted, "a sid in use stays what it was");
    }

    #[test]
    fn deep_and_long_subjects_count_as_several() {
        let (usual, deep, long) = (vec!["x"; 15].join("."), vec!["x"; 33].join("."), "x".repeat(600));
        let mut session = open(6);
        for (sid, subject) in [(b"1", &usual), (b"2", &deep)] {
            assert!(matches!(session.handle(sub(subject.as_bytes(), sid)), Step::Subscribe(_)));
            session.subscribed(sid, Fake(subject.clone().into_bytes()));
        }
        assert_eq!(session.handle(sub(long.as_bytes(), b"3")), Step::Refuse(Fault::Subscriptions));
        let group = Op::Subscribe { subject: b"a", queue: Some(long.as_bytes()), sid: b"3" };
        assert_eq!(session.handle(group), Step::Refuse(Fault::Subscriptions));
        assert_eq!(session.handle(sub(b"a", long.as_bytes())), Step::Refuse(Fault::Subscriptions));
        assert!(matches!(session.handle(sub(usual.as_bytes(), b"3")), Step::Subscribe(_)), "there is room for two");
        session.unsubscribe(b"2");
        assert!(matches!(session.handle(sub(long.as_bytes(), b"3")), Step::Subscribe(_)));
        session.subscribed(b"3", Fake(long.clone().into_bytes()));
        assert_eq!(session.shares, 4);
        session.connected(ConnectOptions::default(), user(Rules::allow(["x.>"])));
        assert_eq!(session.shares, 1, "those that ended count no more");
        session.take_subscriptions();
        assert_eq!(session.shares, 0);
    }

    #[test]
    fn headers_need_to_be_agreed_on() {
        let mut session = open(9);
        assert_eq!(session.handle(Op::Publish(message(Some(b"0")))), Step::Refuse(Fault::Malformed));
        assert_eq!(session.handle(Op::Publish(message(None))), Step::Publish(message(None)));
        session.connected(ConnectOptions { headers: true, ..ConnectOptions::default() }, User::anonymous());
        assert!(matches!(session.handle(Op::Publish(message(Some(b"0")))), Step::Publish(_)));
    }

    #[test]
    fn becoming_someone_else_costs_what_they_may_not_hear() {
        let mut session = open(9);
        session.subscribed(b"1", Fake(b"a".to_vec()));
        session.subscribed(b"2", Fake(b"b".to_vec()));
        assert!(session.connected(ConnectOptions::default(), User::anonymous()).is_empty());
        let gone = session.connected(ConnectOptions::default(), user(Rules::allow(["a"])));
        let told = Fault::SubscriptionEnded { subject: "b".into(), queue: None, sid: "2".into() };
        let kept = Revised::Kept(Fake(b"a".to_vec()), Vec::new());
        assert!(gone.len() == 2 && gone.contains(&kept) && gone.contains(&Revised::Ended(Fake(b"b".to_vec()), told)));
        assert_eq!(
            session.handle(Op::Subscribe { subject: b"b", queue: Some(b"q"), sid: b"3" }),
            Step::Refuse(Fault::QueueDenied("b".into(), "q".into()))
        );
    }
}
