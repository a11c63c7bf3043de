//! One client and its subscriptions as other connections see them: what publishers need to deliver, and what the broker
//! needs to find and tell a client. The client's own task keeps everything else to itself.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use tokio::sync::Notify;

use super::auth::User;
use super::outbound::Outbound;
use super::permission::Responses;
use super::replies::Replies;
use super::session::Held;
use super::subject::matches;

/// One connected client as others see it.
#[derive(Debug)]
pub struct Client {
    /// Its id, unique within the broker.
    pub id: u64,
    /// Where it connects from.
    pub ip: IpAddr,
    /// What waits to be written to it.
    pub outbound: Outbound,
    /// Whether it understands headers.
    pub headers: AtomicBool,
    /// Whether INFO may come at any time.
    pub late_info: AtomicBool,
    /// Whether it has sent anything since the last look.
    pub heard: AtomicBool,
    /// Whether it has said who it is, or need not.
    pub admitted: AtomicBool,
    /// Whether publishers with a pace wait for it.
    pub vital: AtomicBool,
    /// Wakes the client's own task after something here has changed.
    pub changed: Notify,
    /// Who it is, as far as others must know.
    standing: Mutex<Standing>,
    recheck: AtomicBool,
    /// Whether it may answer where it was asked, so that requests must be noted.
    may_answer: AtomicBool,
    replies: Mutex<Replies>,
    /// How often something was taken from the client that publishers may still have messages for.
    takings: AtomicU64,
    /// Subscriptions that reached their maximum, which its own task has yet to forget.
    expired: Mutex<Vec<(u64, Box<[u8]>)>>,
    has_expired: AtomicBool,
}

#[derive(Debug, Default)]
struct Standing {
    name: String,
    expires: Option<SystemTime>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// A client that has just connected.
    pub fn new(id: u64, ip: IpAddr, outbound: Outbound, admitted: bool) -> Self {
        Self {
            id,
            ip,
            outbound,
            headers: AtomicBool::new(false),
            late_info: AtomicBool::new(false),
            heard: AtomicBool::new(false),
            admitted: AtomicBool::new(admitted),
            vital: AtomicBool::new(false),
            changed: Notify::new(),
            standing: Mutex::default(),
            recheck: AtomicBool::new(false),
            may_answer: AtomicBool::new(false),
            replies: Mutex::default(),
            takings: AtomicU64::new(0),
            expired: Mutex::default(),
            has_expired: AtomicBool::new(false),
        }
    }

    /// Makes known to others that the client is `user`.
    pub fn belongs_to(&self, user: &User) {
        let other = {
            let mut standing = locked(&self.standing);
            let before = std::mem::replace(&mut *standing, Standing { name: user.name.clone(), expires: user.expires });
            before.name != user.name
        };
        self.vital.store(user.vital, Ordering::Relaxed);
        let answers = user.permissions.allow_responses.is_some();
        // Another user was not asked what the first one was.
        if self.may_answer.swap(answers, Ordering::Relaxed) && (other || !answers) {
            locked(&self.replies).clear();
        }
        self.changed.notify_one();
    }

    /// Whether the client has said that it is the user `name`.
    pub fn is_user(&self, name: &str) -> bool {
        locked(&self.standing).name == name
    }

    /// When its credentials end.
    pub fn expires(&self) -> Option<SystemTime> {
        locked(&self.standing).expires
    }

    /// Has the client's own task ask the authenticator again.
    pub fn ask_to_recheck(&self) {
        self.recheck.store(true, Ordering::Release);
        self.changed.notify_one();
    }

    /// Whether [`Client::ask_to_recheck`] was called.
    #[inline]
    pub fn wants_recheck(&self) -> bool {
        self.recheck.load(Ordering::Acquire)
    }

    /// The same, once.
    pub fn take_recheck(&self) -> bool {
        self.recheck.swap(false, Ordering::AcqRel)
    }

    /// A request with this reply subject is delivered to the client.
    #[inline]
    pub fn note_request(&self, reply: &[u8]) {
        if self.may_answer.load(Ordering::Relaxed) {
            locked(&self.replies).note(reply, Instant::now());
        }
    }

    /// Whether the client may publish to `subject` because it was asked there; counts it.
    pub fn spend_reply(&self, subject: &[u8], bounds: &Responses) -> bool {
        locked(&self.replies).spend(subject, bounds, Instant::now())
    }

    /// Changes whenever messages that publishers still hold may have become unwanted: a subscription was ended, or less
    /// may pass it. Who holds messages looks before it collects them, and again under the lock of the client's queue when
    /// it hands them over: what the client is told of the end goes through that queue later than the change.
    #[inline]
    pub fn takings(&self) -> u64 {
        self.takings.load(Ordering::Acquire)
    }

    /// Makes [`Client::takings`] change: after publishers can see what was taken, before the client is told.
    pub fn note_taking(&self) {
        self.takings.fetch_add(1, Ordering::Release);
    }

    /// Subscriptions (our id, the client's id) that have ended by themselves since the last call.
    #[inline]
    pub fn take_expired(&self) -> Vec<(u64, Box<[u8]>)> {
        if !self.has_expired.load(Ordering::Relaxed) {
            return Vec::new();
        }
        let mut expired = locked(&self.expired);
        self.has_expired.store(false, Ordering::Relaxed);
        std::mem::take(&mut expired)
    }

    /// A subscription of the client (our id, the client's id) has had its last message.
    pub fn expire(&self, id: u64, sid: Box<[u8]>) {
        let mut expired = locked(&self.expired);
        expired.push((id, sid));
        self.has_expired.store(true, Ordering::Relaxed);
    }
}

/// One subscription.
#[derive(Debug)]
pub struct Subscription {
    /// Unique within the broker.
    pub id: u64,
    /// Who made it.
    pub client: Arc<Client>,
    /// The client's id for it.
    pub sid: Box<[u8]>,
    /// What it listens to.
    pub subject: Box<[u8]>,
    /// Its queue group.
    pub queue: Option<Box<[u8]>>,
    /// Patterns whose messages are held back.
    filter: Mutex<Arc<[Box<[u8]>]>>,
    delivered: AtomicU64,
    max: AtomicU64,
    closed: AtomicBool,
    /// Whether messages that were delivered to it and not handed over shall not be: it did not end by itself.
    revoked: AtomicBool,
}

impl Held for Arc<Subscription> {
    fn subject(&self) -> &[u8] {
        &self.subject
    }

    fn queue(&self) -> Option<&[u8]> {
        self.queue.as_deref()
    }
}

/// Whether a subscription may have one more message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It has had its last, and must end if it has not.
    Over,
    /// It may.
    Open,
    /// It may, and that was the last.
    Last,
}

impl Subscription {
    /// One that has had no message yet.
    pub fn new(id: u64, client: Arc<Client>, sid: &[u8], subject: &[u8], queue: Option<&[u8]>) -> Self {
        Self {
            id,
            client,
            sid: sid.into(),
            subject: subject.into(),
            queue: queue.map(Into::into),
            filter: Mutex::new(Arc::new([])),
            delivered: AtomicU64::new(0),
            max: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            revoked: AtomicBool::new(false),
        }
    }

    /// Patterns whose messages are held back.
    pub fn filter(&self) -> Arc<[Box<[u8]>]> {
        locked(&self.filter).clone()
    }

    /// Sets them; whether they were others. Who remembers where messages go must be told.
    pub fn set_filter(&self, filter: Vec<Box<[u8]>>) -> bool {
        let mut known = locked(&self.filter);
        let differs = **known != *filter;
        if differs {
            *known = filter.into();
        }
        differs
    }

    /// Whether it ended.
    #[inline]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed) || self.client.outbound.is_closed()
    }

    /// Ends it; `false` when it had ended before.
    pub fn close(&self) -> bool {
        !self.closed.swap(true, Ordering::Relaxed)
    }

    /// After it was closed: what was delivered to it and is still with its publishers is not to be handed over.
    pub fn revoke(&self) {
        self.revoked.store(true, Ordering::Relaxed);
        self.client.note_taking();
    }

    /// Whether a message on `subject` that was delivered to it is not to be handed over any more.
    pub fn withholds(&self, subject: &[u8]) -> bool {
        self.revoked.load(Ordering::Relaxed) || self.filter().iter().any(|pattern| matches(pattern, subject))
    }

    /// Counts one message.
    ///
    /// Counting acquires what [`Subscription::limit`] releases in the same counter: of the two, the later one sees what
    /// the earlier did, so that either a turn is the last or the limit is known to be reached.
    #[inline]
    pub fn take_turn(&self) -> Turn {
        let count = self.delivered.fetch_add(1, Ordering::Acquire) + 1;
        match self.max.load(Ordering::Relaxed) {
            0 => Turn::Open,
            max if count < max => Turn::Open,
            max if count == max => Turn::Last,
            _ => Turn::Over,
        }
    }

    /// Sets the number of messages after which it ends; `false` when it has had them already.
    pub fn limit(&self, max: u64) -> bool {
        self.max.store(max, Ordering::Relaxed);
        self.delivered.fetch_add(0, Ordering::Release) < max // writes the count, as it is: see `take_turn`
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Barrier;

    use tokio::net::{TcpListener, TcpStream};

    use super::super::delivery::{Body, Delivery};
    use super::super::protocol::{Publish, ServerInfo};
    use super::super::router::Router;
    use super::super::session::{Access, Verdict};
    use super::super::transport::Transport;
    use super::*;
    use crate::broker::Limits;

    /// A client, and the other end of its socket.
    async fn client() -> (Arc<Client>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (peer, accepted) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let outbound = Outbound::new(Arc::new(Transport::plain(accepted.unwrap().0)), 1024 * 1024);
        (Arc::new(Client::new(1, Ipv4Addr::LOCALHOST.into(), outbound, true)), peer.unwrap())
    }

    fn router() -> Arc<Router> {
        let info = ServerInfo {
            server_id: String::new(),
            server_name: String::new(),
            version: String::new(),
            proto: 1,
            go: String::new(),
            host: String::new(),
            port: 0,
            headers: true,
            auth_required: false,
            tls_required: false,
            tls_verify: false,
            max_payload: 1024,
            client_id: 0,
            client_ip: String::new(),
            nonce: None,
            ldm: false,
        };
        Arc::new(Router::new(info, Limits::default(), None, None))
    }

    #[tokio::test]
    async fn a_subscription_beyond_its_limit_ends_however_it_got_there() {
        let (client, _peer) = client().await;
        let router = router();
        let subscription = router.subscribe(&client, b"9", b"a", None, Vec::new());
        let mut delivery = Delivery::new(router.clone(), client.clone());
        let message =
            Publish { subject: b"a", reply: None, header_size: None, total_size: b"0", body: b"", rest: None };
        let mut publish = || {
            delivery.verdict(b"a", |_| Verdict { access: Access::Granted, literal: true });
            delivery.publish(&message, Body::Copied)
        };
        assert!(publish() && publish());
        assert!(!subscription.limit(1), "its owner is told, and here does nothing about it");
        assert!(!publish());
        assert_eq!(router.subscription_count(), 0);
        assert_eq!(client.take_expired(), [(subscription.id, b"9".as_slice().into())]);
        assert!(!publish());
        router.expire(&subscription);
        assert!(client.take_expired().is_empty(), "word is left once");
    }

    #[tokio::test]
    async fn either_a_turn_is_the_last_or_the_limit_is_known_to_be_reached() {
        const ROUNDS: usize = 5_000;
        let (client, _peer) = client().await;
        let all: Vec<_> = (0..ROUNDS).map(|_| Subscription::new(1, client.clone(), b"1", b"a", None)).collect();
        let start = Barrier::new(2);
        let both = |what: &dyn Fn(&Subscription) -> bool| -> Vec<bool> {
            let each = all.iter().map(|subscription| {
                start.wait();
                what(subscription)
            });
            each.collect()
        };
        let (last, reached) = std::thread::scope(|threads| {
            let turns = threads.spawn(|| both(&|subscription| subscription.take_turn() == Turn::Last));
            let limits = both(&|subscription| !subscription.limit(1));
            (turns.join().unwrap(), limits)
        });
        for (round, (last, reached)) in last.into_iter().zip(reached).enumerate() {
            assert!(last || reached, "round {round}: nobody ended the subscription");
        }
    }

    #[tokio::test]
    async fn another_user_may_not_answer_where_the_first_was_asked() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let outbound = Outbound::new(Arc::new(Transport::plain(stream)), 1_000);
        let client = Client::new(1, Ipv4Addr::LOCALHOST.into(), outbound, true);
        let bounds = Responses { max: None, expires: None };
        let user = |name: &str| {
            let mut user = User::anonymous();
            user.name = name.to_owned();
            user.permissions.allow_responses = Some(bounds);
            user
        };
        client.belongs_to(&user("first"));
        client.note_request(b"r");
        client.belongs_to(&user("first"));
        assert!(client.spend_reply(b"r", &bounds), "the same user, rechecked");
        client.belongs_to(&user("second"));
        assert!(!client.spend_reply(b"r", &bounds));
    }
}
