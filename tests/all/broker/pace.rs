//! Users who send too fast, receivers that must not be overrun, and strangers who come in numbers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use orchard::broker::auth::{Authenticator, Credentials, Denied, User};
use orchard::broker::pace::{Pace, Rates};
use orchard::broker::{Broker, Limits};

use super::support::{PATIENCE, Raw, start};
use crate::wait::until;

/// Lets in `slow` and `eager`, who have a pace, `free`, who has none, and `vital`; everybody else waits for the answer.
struct Paced {
    slow: Arc<Pace>,
    eager: Arc<Pace>,
}

const PENALTY: Duration = Duration::from_millis(600);

impl Paced {
    fn new() -> Arc<Self> {
        let pace = |operations, burst, bytes| {
            Arc::new(Pace::new(
                Rates { operations, burst, bytes, burst_bytes: bytes, connections: 3, subscriptions: 5 },
                Instant::now(),
            ))
        };
        Arc::new(Self { slow: pace(200, 50, 1 << 20), eager: pace(u32::MAX, u32::MAX, u32::MAX) })
    }
}

impl Authenticator for Paced {
    fn authenticate(&self, credentials: &Credentials<'_>) -> Result<User, Denied> {
        let user = User::new(credentials.user.unwrap_or_default(), Default::default());
        match user.name.as_str() {
            "slow" => Ok(User { pace: Some(self.slow.clone()), ..user }),
            "eager" => Ok(User { pace: Some(self.eager.clone()), ..user }),
            "free" => Ok(user),
            "vital" => Ok(User { vital: true, ..user }),
            _ => Err(Denied { delay: PENALTY, quiet: true, ..Denied::because("a stranger") }),
        }
    }

    fn current(&self, _: &User) -> Option<User> {
        None
    }
}

async fn broker(limits: Limits) -> Broker {
    start(Broker::builder().authenticator(Paced::new()).limits(limits)).await
}

async fn login(broker: &Broker, user: &str) -> Raw {
    Raw::with(broker, &format!(r#"{{"verbose":false,"user":"{user}"}}"#)).await
}

/// Publishes more than its burst at once: a second's worth of debt is left.
async fn overdraw(raw: &mut Raw) {
    raw.send("PUB a 1\r\nx\r\n".repeat(250).as_bytes()).await;
}

async fn published(broker: &Broker, count: u64) {
    until("the messages", PATIENCE, || async {
        let stats = broker.stats();
        if stats.messages_in >= count { Ok(()) } else { Err(stats) }
    })
    .await;
}

/// What a second's worth of debt costs at least, from the moment at which it is made: a busy machine only adds to it.
const DEBT: Duration = Duration::from_millis(900);

async fn answered_after(started: Instant, raw: &mut Raw) -> Duration {
    raw.until_pong().await;
    started.elapsed()
}

#[tokio::test]
async fn who_is_too_fast_waits_on_all_its_connections_and_nobody_else_does() {
    let broker = broker(Limits::default()).await;
    let (mut one, mut two) = (login(&broker, "slow").await, login(&broker, "slow").await);
    two.until_pong().await;
    let mut free = login(&broker, "free").await;
    let started = Instant::now();
    overdraw(&mut one).await;
    published(&broker, 250).await;
    overdraw(&mut free).await;
    free.until_pong().await;
    // It comes back to its debt.
    drop(one);
    let mut again = login(&broker, "slow").await;
    let (known, new) = tokio::join!(answered_after(started, &mut two), answered_after(started, &mut again));
    assert!(known > DEBT && new > DEBT, "{known:?} {new:?}");
    assert!(free.until_pong().await.is_empty());
    broker.shutdown().await;
}

#[tokio::test]
async fn a_user_has_so_many_connections_and_one_too_many_is_told_so() {
    let broker = broker(Limits::default()).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut raw = login(&broker, "slow").await;
        raw.until_pong().await;
        held.push(raw);
    }
    assert_eq!(login(&broker, "slow").await.until_closed().await, "-ERR 'maximum connections exceeded'\r\n");
    login(&broker, "free").await.until_pong().await;
    // As for subscriptions.
    let [one, two, ..] = held.as_mut_slice() else { panic!() };
    one.send(b"SUB a 1\r\nSUB a 2\r\nSUB a 3\r\n").await;
    assert_eq!(one.until_pong().await, "");
    two.send(b"SUB a 1\r\nSUB a 2\r\nSUB a 3\r\n").await;
    assert_eq!(two.until_pong().await, "-ERR 'maximum subscriptions exceeded'\r\n");
    one.send(b"UNSUB 2\r\n").await;
    assert_eq!(one.until_pong().await, "");
    two.send(b"SUB a 3\r\n").await;
    assert_eq!(two.until_pong().await, "");
    held.pop();
    until("a place", PATIENCE, || async {
        let mut next = Raw::connect(&broker).await;
        next.send(b"CONNECT {\"verbose\":true,\"user\":\"slow\"}\r\n").await;
        let said = next.line().await;
        if said == "+OK" { Ok(()) } else { Err(said) }
    })
    .await;
    broker.shutdown().await;
}

#[tokio::test]
async fn who_is_made_to_wait_is_not_taken_for_gone() {
    let limits = Limits { ping_interval: Duration::from_millis(100), max_pings_out: 2, ..Limits::default() };
    let broker = broker(limits).await;
    let mut raw = login(&broker, "slow").await;
    let started = Instant::now();
    overdraw(&mut raw).await;
    published(&broker, 250).await;
    assert!(answered_after(started, &mut raw).await > DEBT, "longer than an idle client has");
    broker.shutdown().await;
}

#[tokio::test]
async fn rights_taken_away_reach_who_is_made_to_wait() {
    let broker = broker(Limits::default()).await;
    let mut raw = login(&broker, "slow").await;
    for _ in 0..16 {
        overdraw(&mut raw).await;
    }
    published(&broker, 250).await;
    let told = Instant::now();
    assert_eq!(broker.recheck_user("slow"), 1);
    raw.until_end().await;
    assert!(told.elapsed() < Duration::from_secs(8), "before its debt is paid: {:?}", told.elapsed());
    broker.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vital_receiver_is_waited_for_and_another_is_not() {
    const MESSAGES: usize = 48 * 1024;
    let limits = Limits { max_pending: 4 * 1024 * 1024, write_deadline: Duration::from_secs(600), ..Limits::default() };
    let broker = broker(limits).await;
    let mut vital = login(&broker, "vital").await;
    vital.send(b"SUB v 1\r\n").await;
    vital.until_pong().await;
    let (mut eager, mut other) = (login(&broker, "eager").await, login(&broker, "eager").await);
    let frame = format!("PUB v 1024\r\n{}\r\n", "x".repeat(1024)).repeat(64);
    let flood = async {
        for _ in 0..MESSAGES / 64 {
            eager.send(frame.as_bytes()).await;
        }
        eager.until_pong().await;
    };
    tokio::pin!(flood);
    assert!(tokio::time::timeout(Duration::from_secs(2), &mut flood).await.is_err(), "nobody reads it");
    assert_eq!(broker.stats().slow_consumers, 0);
    // Whoever writes elsewhere is not held up.
    let mut free = login(&broker, "free").await;
    free.send(b"SUB elsewhere 1\r\n").await;
    free.until_pong().await;
    other.send(b"PUB elsewhere 2\r\nhi\r\n").await;
    other.until_pong().await;
    assert_eq!(free.until_pong().await, "MSG elsewhere 1 2\r\nhi\r\n");
    // And once it reads again, it has missed nothing.
    let read = async {
        for _ in 0..MESSAGES {
            vital.exactly("MSG v 1 1024\r\n".len() + 1024 + 2).await;
        }
    };
    tokio::join!(flood, read);
    assert_eq!(broker.stats().slow_consumers, 0);

    // One who is not vital is cut off, as ever.
    let mut deaf = login(&broker, "free").await;
    deaf.send(b"SUB w 1\r\n").await;
    deaf.until_pong().await;
    let frame = frame.replace("PUB v", "PUB w");
    while broker.stats().slow_consumers == 0 {
        other.send(frame.as_bytes()).await;
    }
    broker.shutdown().await;
}

#[tokio::test]
async fn strangers_of_one_network_take_only_so_many_places() {
    let limits = Limits { max_unproven_per_network: 3, ..Limits::default() };
    let broker = broker(limits).await;
    let mut members = Vec::new();
    for _ in 0..5 {
        let mut member = login(&broker, "free").await;
        member.until_pong().await;
        members.push(member);
    }
    let mut strangers = Vec::new();
    for _ in 0..3 {
        strangers.push(Raw::connect(&broker).await);
    }
    let mut refused = Raw::connect(&broker).await;
    assert_eq!(refused.until_closed().await, "-ERR 'maximum connections exceeded'\r\n");
    assert_eq!(members.pop().unwrap().until_pong().await, "");
    // In the crowd, nobody is silent for the usual ten seconds.
    let asked = Instant::now();
    let last = strangers.last_mut().unwrap().until_closed().await;
    assert!(last == "-ERR 'Authentication Timeout'\r\n" && asked.elapsed() < Duration::from_secs(8), "{last}");
    until("a place", PATIENCE, || async {
        let mut next = Raw::connect(&broker).await;
        next.send(b"CONNECT {\"verbose\":true,\"user\":\"free\"}\r\n").await;
        let said = next.line().await;
        if said == "+OK" { Ok(()) } else { Err(said) }
    })
    .await;
    broker.shutdown().await;
}

#[tokio::test]
async fn strangers_at_either_door_keep_nobody_out_of_the_private_one() {
    let limits = Limits { max_unproven_per_network: 3, max_connections: 3, ..Limits::default() };
    let broker = start(Broker::builder().authenticator(Paced::new()).limits(limits).private_door()).await;
    let private = broker.private_addr().unwrap();
    let mut strangers = Vec::new();
    for _ in 0..3 {
        strangers.push(Raw::connect(&broker).await);
    }
    let mut refused = Raw::connect(&broker).await;
    assert_eq!(refused.until_closed().await, "-ERR 'maximum connections exceeded'\r\n");
    let own = || async {
        let mut own = Raw::at(private).await;
        own.send(b"CONNECT {\"verbose\":false,\"user\":\"free\"}\r\n").await;
        assert_eq!(own.until_pong().await, "");
        own
    };
    let mut first = own().await;
    // More than there are places: those who came first make room, but not whoever has said who it is.
    // On a busy machine they may take so long that the oldest one's time is over before.
    let mut said = Vec::new();
    while said.last().is_none_or(|said: &String| !said.is_empty()) && said.len() < 5 {
        let mut oldest = Raw::at(private).await;
        for _ in 0..11 {
            strangers.extend(futures_util::future::join_all((0..100).map(|_| Raw::at(private))).await);
        }
        said.push(oldest.until_closed().await);
    }
    assert_eq!(said.last().unwrap(), "", "{said:?}");
    let mut second = own().await;
    assert_eq!((first.until_pong().await, second.until_pong().await), (String::new(), String::new()));
    broker.shutdown().await;
}

#[tokio::test]
async fn wrong_credentials_wait_for_their_answer_but_only_so_many_do() {
    let broker = broker(Limits::default()).await;
    // All are late on a machine that stands still at the wrong moment, but not each time.
    let mut late: Vec<usize> = Vec::new();
    while late.last().is_none_or(|late| *late == 40) && late.len() < 5 {
        let mut guesses = Vec::new();
        for _ in 0..40 {
            guesses.push(Raw::connect(&broker).await);
        }
        let asked = Instant::now();
        let answers = futures_util::future::join_all(guesses.iter_mut().map(|guess| async move {
            guess.send(b"CONNECT {\"verbose\":false,\"user\":\"who\"}\r\n").await;
            assert_eq!(guess.until_closed().await, "-ERR 'Authorization Violation'\r\n");
            asked.elapsed() >= PENALTY
        }));
        late.push(answers.await.into_iter().filter(|late| *late).count());
    }
    assert!(late.last().is_some_and(|late| (1..40).contains(late)), "{late:?} of 40 were answered late");
    broker.shutdown().await;
}
