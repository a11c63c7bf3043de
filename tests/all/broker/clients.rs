//! `async-nats`, unmodified, against the broker.

use std::sync::Arc;
use std::time::Duration;

use async_nats::{ConnectErrorKind, ConnectOptions, HeaderMap, RequestErrorKind};
use futures_util::StreamExt;
use orchard::broker::Broker;
use orchard::broker::auth::StaticUsers;
use orchard::broker::permission::Permissions;

use super::support::{PATIENCE, plain, start};
use crate::wait::until;

async fn client(broker: &Broker) -> async_nats::Client {
    async_nats::connect(broker.local_addr().to_string()).await.unwrap()
}

/// Waits for the broker to have seen that many subscriptions: a client's flush only says that they were sent.
async fn subscribed(broker: &Broker, count: usize) {
    until("the subscriptions to arrive", PATIENCE, || async {
        let stats = broker.stats();
        if stats.subscriptions == count { Ok(()) } else { Err(stats) }
    })
    .await;
}

async fn next(subscriber: &mut async_nats::Subscriber) -> async_nats::Message {
    tokio::time::timeout(PATIENCE, subscriber.next()).await.expect("no message in time").expect("unsubscribed")
}

#[tokio::test]
async fn messages_and_headers_reach_subscribers() {
    let broker = plain().await;
    let (alice, bob) = (client(&broker).await, client(&broker).await);
    let mut wild = alice.subscribe("greet.*").await.unwrap();
    let mut rest = alice.subscribe("greet.>").await.unwrap();
    subscribed(&broker, 2).await;
    let mut headers = HeaderMap::new();
    headers.insert("Colour", "red");
    bob.publish_with_headers("greet.joe", headers, "hi".into()).await.unwrap();
    bob.publish("greet.joe.twice", "ho".into()).await.unwrap();
    bob.flush().await.unwrap();
    let message = next(&mut wild).await;
    assert_eq!((message.subject.as_str(), &message.payload[..]), ("greet.joe", &b"hi"[..]));
    assert_eq!(message.headers.unwrap().get("Colour").unwrap().as_str(), "red");
    assert_eq!(&next(&mut rest).await.payload[..], b"hi");
    assert_eq!(next(&mut rest).await.subject.as_str(), "greet.joe.twice");
    let stats = broker.stats();
    assert_eq!((stats.connections, stats.subscriptions), (2, 2));
    assert_eq!((stats.messages_in, stats.messages_out), (2, 3));
    broker.shutdown().await;
}

#[tokio::test]
async fn large_bodies_arrive_whole_at_every_subscriber() {
    let broker = plain().await;
    let sender = client(&broker).await;
    let receiver = client(&broker).await;
    let mut subscribers = Vec::new();
    for _ in 0..3 {
        subscribers.push(receiver.subscribe("big").await.unwrap());
    }
    subscribed(&broker, 3).await;
    for size in [0, 1, 15_000, 16_384, 70_000, 1024 * 1024] {
        let body: Vec<u8> = (0..size).map(|at: usize| (at % 251) as u8).collect();
        sender.publish("big", body.clone().into()).await.unwrap();
        sender.flush().await.unwrap();
        for subscriber in &mut subscribers {
            assert!(next(subscriber).await.payload == body, "{size} bytes");
        }
    }
    broker.shutdown().await;
}

#[tokio::test]
async fn a_queue_group_shares_the_work_fairly() {
    const MEMBERS: usize = 4;
    const MESSAGES: usize = 2_000;
    let broker = plain().await;
    let sender = client(&broker).await;
    let mut members = Vec::new();
    let mut arriving = futures_util::stream::SelectAll::new();
    for at in 0..MEMBERS {
        let member = client(&broker).await;
        arriving.push(member.queue_subscribe("work", "crew".into()).await.unwrap().map(move |_| at));
        members.push(member);
    }
    subscribed(&broker, MEMBERS).await;
    for _ in 0..MESSAGES {
        sender.publish("work", "x".into()).await.unwrap();
    }
    let mut shares = [0; MEMBERS];
    for _ in 0..MESSAGES {
        let at = tokio::time::timeout(PATIENCE, arriving.next()).await.expect("no message in time").unwrap();
        shares[at] += 1;
    }
    let fair = MESSAGES / MEMBERS;
    assert!(shares.iter().all(|share| (fair * 3 / 4..fair * 5 / 4).contains(share)), "{shares:?}");
    assert_eq!(broker.stats().messages_out, MESSAGES as u64, "each message went to exactly one");
    broker.shutdown().await;
}

#[tokio::test]
async fn requests_are_answered_or_refused_at_once() {
    let broker = plain().await;
    let (server, asker) = (client(&broker).await, client(&broker).await);
    let mut requests = server.subscribe("double").await.unwrap();
    subscribed(&broker, 1).await;
    let answering = async {
        for _ in 0..20 {
            let request = next(&mut requests).await;
            let body = [&request.payload[..], &request.payload[..]].concat();
            server.publish(request.reply.unwrap(), body.into()).await.unwrap();
        }
    };
    let asking = async {
        for _ in 0..20 {
            assert_eq!(&asker.request("double", "ab".into()).await.unwrap().payload[..], b"abab");
        }
    };
    tokio::join!(answering, asking);
    let refused = asker.request("nobody.there", "x".into()).await.unwrap_err();
    assert_eq!(refused.kind(), RequestErrorKind::NoResponders);
    broker.shutdown().await;
}

#[tokio::test]
async fn wrong_credentials_are_refused_and_right_ones_are_not() {
    let users = StaticUsers::default().with("ann", "x", Permissions::default());
    let broker = start(Broker::builder().authenticator(Arc::new(users))).await;
    let address = broker.local_addr().to_string();
    let refused = ConnectOptions::with_user_and_password("ann".into(), "y".into()).connect(&address).await;
    assert_eq!(refused.unwrap_err().kind(), ConnectErrorKind::AuthorizationViolation);
    let ann = ConnectOptions::with_user_and_password("ann".into(), "x".into()).connect(&address).await.unwrap();
    ann.flush().await.unwrap();
    assert_eq!(broker.disconnect_user("bob"), 0);
    assert_eq!(broker.disconnect_user("ann"), 1);
    until("ann to come back", PATIENCE, || async {
        let stats = broker.stats();
        if stats.total_connections >= 3 && stats.connections == 1 { Ok(()) } else { Err(stats) }
    })
    .await;
    broker.shutdown().await;
}

#[tokio::test]
async fn clients_come_back_after_a_restart_on_the_same_port() {
    let broker = plain().await;
    let address = broker.local_addr();
    let listener = ConnectOptions::new()
        .reconnect_delay_callback(|_| Duration::from_millis(20))
        .connect(address.to_string())
        .await
        .unwrap();
    let mut subscriber = listener.subscribe("after").await.unwrap();
    subscribed(&broker, 1).await;
    broker.shutdown().await;
    let broker = until("the port to be free", PATIENCE, || Broker::builder().bind(address)).await;
    subscribed(&broker, 1).await;
    let sender = client(&broker).await;
    sender.publish("after", "x".into()).await.unwrap();
    sender.flush().await.unwrap();
    assert_eq!(&next(&mut subscriber).await.payload[..], b"x");
    broker.shutdown().await;
}

#[tokio::test]
async fn brokers_in_one_process_are_independent() {
    let (one, two) = (plain().await, plain().await);
    let (in_one, in_two) = (client(&one).await, client(&two).await);
    let _subscriber = in_one.subscribe("x").await.unwrap();
    subscribed(&one, 1).await;
    assert_eq!(two.stats().subscriptions, 0);
    let gone = one.local_addr();
    drop(one);
    in_two.flush().await.unwrap();
    until("the dropped broker's port to be closed", PATIENCE, || async {
        match tokio::net::TcpStream::connect(gone).await {
            Ok(_) => Err("still there"),
            Err(_) => Ok(()),
        }
    })
    .await;
    two.shutdown().await;
}
