//! async-nats: its service API, drain, requests and reconnect. What else it does stands in `broker::clients`.

use std::time::Duration;

use async_nats::service::ServiceExt;
use async_nats::{Client, ConnectOptions, RequestErrorKind, Subscriber};
use futures_util::StreamExt;
use orchard::task;

use super::certificates::Certificates;
use super::scripts::ANN;
use super::standalone::{PATIENCE, Standalone};

async fn broker() -> Standalone {
    Standalone::start(&ANN).await
}

async fn connect(broker: &Standalone) -> Client {
    ConnectOptions::with_user_and_password("ann".into(), "s3cret".into())
        .reconnect_delay_callback(|_| Duration::from_millis(20))
        .connection_timeout(PATIENCE)
        .request_timeout(Some(PATIENCE))
        .connect(broker.url())
        .await
        .unwrap()
}

async fn next(subscriber: &mut Subscriber) -> async_nats::Message {
    tokio::time::timeout(PATIENCE, subscriber.next()).await.expect("no message in time").expect("unsubscribed")
}

/// Flushes, and has the broker answer: what was sent before has arrived there.
async fn settle(client: &Client) {
    let refused = client.request("nobody.here", "".into()).await.unwrap_err();
    assert_eq!(refused.kind(), RequestErrorKind::NoResponders);
}

#[tokio::test]
async fn a_service_answers_tells_of_itself_and_counts() {
    let broker = broker().await;
    let (server, asker) = (connect(&broker).await, connect(&broker).await);
    let service = server.service_builder().description("doubles").start("doubler", "1.2.3").await.unwrap();
    let mut endpoint = service.group("math").endpoint("double").await.unwrap();
    settle(&server).await;
    let answering = task::spawn(async move {
        while let Some(request) = endpoint.next().await {
            let body = [&request.message.payload[..], &request.message.payload[..]].concat();
            request.respond(Ok(body.into())).await.unwrap();
        }
    });
    for _ in 0..3 {
        assert_eq!(&asker.request("math.double", "ab".into()).await.unwrap().payload[..], b"abab");
    }
    for subject in ["$SRV.PING", "$SRV.INFO.doubler", "$SRV.STATS.doubler"] {
        let answer = asker.request(subject, "".into()).await.unwrap();
        let about: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
        assert_eq!((&about["name"], &about["version"]), (&"doubler".into(), &"1.2.3".into()), "{subject}");
        if subject.starts_with("$SRV.STATS") {
            assert_eq!(about["endpoints"][0]["num_requests"], 3);
        }
    }
    service.stop().await.unwrap();
    settle(&server).await;
    let gone = asker.request("$SRV.PING.doubler", "".into()).await.unwrap_err();
    assert_eq!(gone.kind(), RequestErrorKind::NoResponders);
    drop(answering);
}

#[tokio::test]
async fn a_drained_subscription_hands_over_what_it_has_and_ends() {
    let broker = broker().await;
    let (sender, receiver) = (connect(&broker).await, connect(&broker).await);
    let mut messages = receiver.subscribe("rs.drain").await.unwrap();
    settle(&receiver).await;
    for _ in 0..200 {
        sender.publish("rs.drain", "x".into()).await.unwrap();
    }
    settle(&sender).await;
    messages.drain().await.unwrap();
    let all = async {
        let mut count = 0;
        while messages.next().await.is_some() {
            count += 1;
        }
        count
    };
    assert_eq!(tokio::time::timeout(PATIENCE, all).await.expect("the subscription does not end"), 200);
    receiver.drain().await.unwrap();
}

#[tokio::test]
async fn queue_groups_and_subscriptions_outlive_a_restart() {
    let mut broker = broker().await;
    let (one, two, sender) = (connect(&broker).await, connect(&broker).await, connect(&broker).await);
    let mut first = one.queue_subscribe("rs.work", "crew".into()).await.unwrap();
    let mut second = two.queue_subscribe("rs.work", "crew".into()).await.unwrap();
    let mut back = one.subscribe("rs.back").await.unwrap();
    settle(&one).await;
    settle(&two).await;
    broker.restart().await;
    // The same connection's answers come in order, so once this one is here its other subscriptions are back as well.
    for client in [&one, &two, &sender] {
        crate::wait::until("the client to be back", PATIENCE, || async {
            match client.request("nobody.here", "".into()).await {
                Err(error) if error.kind() == RequestErrorKind::NoResponders => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    sender.publish("rs.back", "x".into()).await.unwrap();
    next(&mut back).await;
    for _ in 0..100 {
        sender.publish("rs.work", "x".into()).await.unwrap();
    }
    let mut shares = [0, 0];
    let count = async {
        while shares[0] + shares[1] < 100 {
            tokio::select! {
                Some(_) = first.next() => shares[0] += 1,
                Some(_) = second.next() => shares[1] += 1,
            }
        }
    };
    tokio::time::timeout(PATIENCE, count).await.expect("not all messages in time");
    assert!(shares.iter().all(|share| *share > 10), "{shares:?}");
}

#[tokio::test]
async fn nkeys_and_tokens_open() {
    let (key, stranger) = (nkeys::KeyPair::new_user(), nkeys::KeyPair::new_user());
    let broker = Standalone::start(&["--nkey", &key.public_key()]).await;
    let client = ConnectOptions::with_nkey(key.seed().unwrap()).connect(broker.url()).await.unwrap();
    settle(&client).await;
    ConnectOptions::with_nkey(stranger.seed().unwrap()).connect(broker.url()).await.unwrap_err();
    let broker = Standalone::start(&["--auth-token", "t0ken"]).await;
    settle(&ConnectOptions::with_token("t0ken".into()).connect(broker.url()).await.unwrap()).await;
    ConnectOptions::with_token("other".into()).connect(broker.url()).await.unwrap_err();
}

#[tokio::test]
async fn tls_both_ways() {
    let certificates = Certificates::new();
    let ca = certificates.path("ca.pem");
    for (server, first, with_certificate) in [
        (&[][..], false, false),
        (&["--tls-first", "always"], true, false),
        (&["--tls-first", "auto"], true, false),
        (&["--tls-first", "auto"], false, false),
        (&["--tls-ca", &ca], false, true),
    ] {
        let broker = Standalone::start(&certificates.server(&[server, &ANN[..]].concat())).await;
        let options = || {
            let options = ConnectOptions::with_user_and_password("ann".into(), "s3cret".into()).require_tls(true);
            let options = options.add_root_certificates(ca.clone().into());
            if first { options.tls_first() } else { options }
        };
        let mine = match with_certificate {
            true => options()
                .add_client_certificate(certificates.path("client.pem").into(), certificates.path("client.key").into()),
            false => options(),
        };
        // `auto` waits for 50 ms only, which on a busy machine a client does not always meet.
        let connected = crate::wait::until("the client to get in", PATIENCE, || mine.clone().connect(broker.url()));
        let client = connected.await;
        let mut messages = client.subscribe("rs.tls").await.unwrap();
        client.publish("rs.tls", vec![7; 300_000].into()).await.unwrap();
        assert_eq!(next(&mut messages).await.payload.len(), 300_000, "{server:?}");
        if with_certificate {
            options().connect(broker.url()).await.unwrap_err();
        }
    }
}
