//! Who gets in, who does not and what they are told; restarts, limits and renewals.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use orchard::identity::ca::Identity;
use orchard::identity::new_token;
use orchard::model::error::{ApiError, ErrorCode};
use orchard::model::secret::Secret;
use orchard::model::{CopyId, VmUid};
use orchard::task;
use orchard::tunnel::client::Client;
use orchard::tunnel::header::Frame;
use orchard::tunnel::relay::Limits;
use orchard::tunnel::ticket::{Grant, TICKET_TTL, Target};
use orchard::tunnel::worker::LinkState;
use orchard::tunnel::{ATTACH_DEADLINE, Address, DIAL_DEADLINE, DialError, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use uuid::Uuid;

use super::world::*;
use crate::wait::until;

#[tokio::test(flavor = "multi_thread")]
async fn the_reason_for_a_refused_port_reaches_the_client() {
    let world = World::start().await;
    let closed = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        listener.local_addr().unwrap().port()
    };
    let refusal = world.open(closed).await.unwrap_err();
    assert_eq!(refusal, ApiError::new(ErrorCode::Unavailable, format!("the VM refused port {closed}")));
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_used_and_expired_tickets_open_nothing() {
    let world = World::start().await;
    let (port, _echo) = echo().await;
    let refused = async |ticket: &Secret| world.client.open(ticket, LIMIT).await.unwrap_err().code;
    assert_eq!(refused(&new_token()).await, ErrorCode::Unauthenticated);

    let ticket = world.gate.ticket("w1", port);
    converse(world.client.open(&ticket, LIMIT).await.unwrap(), b"once").await;
    assert_eq!(refused(&ticket).await, ErrorCode::Unauthenticated);

    let ticket = world.gate.ticket("w1", port);
    world.gate.now_secs.fetch_add(TICKET_TTL.as_secs(), Ordering::SeqCst);
    assert_eq!(refused(&ticket).await, ErrorCode::Unauthenticated);
    // Refusals harm nobody else on the same connection.
    converse(world.open(port).await.unwrap(), b"still fine").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_ticket_a_stream_gets_nothing_and_the_connection_ends() {
    // The handshake has to fit in as well, on a busy machine, too.
    let world = World::with(Limits { unproven: Duration::from_secs(3), ..Limits::default() }).await;
    let copy = CopyId { uid: VmUid(Uuid::nil()), attempt: 0 };
    let attach = Frame::Attach { copy, port: 22, resume: None }.encode().unwrap();
    for sent in [vec![], vec![0, 0], vec![0xff; 64], b"GET / HTTP/1.1\r\n\r\n".to_vec(), attach] {
        let connection = raw(&world.relay).await;
        let (mut write, mut read) = connection.open_bi().await.unwrap();
        let _ = write.write_all(&sent).await;
        let got = tokio::time::timeout(LIMIT, read.read_to_end(10_000)).await.unwrap().unwrap_or_default();
        let refused = got.is_empty() || String::from_utf8_lossy(&got).contains("refused");
        assert!(refused, "{sent:?} got {got:?}");
        let closed = tokio::time::timeout(LIMIT, connection.closed()).await.unwrap();
        assert!(matches!(closed, quinn::ConnectionError::ApplicationClosed(_)), "{closed:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_with_another_certificate_is_refused() {
    let world = World::start().await;
    let other = Identity::generate().unwrap().fingerprint();
    let error = Client::connect(world.relay.local_addr(), other, Transport::default()).await.unwrap_err();
    assert!(matches!(error, DialError::WrongCertificate { .. }), "{error:?}");
    assert_eq!(ApiError::from(error).code, ErrorCode::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_with_a_wrong_secret_is_told_so_and_comes_in_with_a_new_one() {
    let gate = Arc::new(Gate::default());
    let relay = bind(any(), &Identity::generate().unwrap(), &gate, Limits::default()).unwrap();
    let mut hello = gate.session("w1");
    hello.secret = new_token();
    let worker = link(&relay, hello);
    let mut states = worker.watch();
    let refused = |state: &LinkState| matches!(state, LinkState::Down(why) if why.contains("session is over"));
    tokio::time::timeout(LIMIT, states.wait_for(refused)).await.unwrap().unwrap();
    assert!(!relay.connected(&"w1".parse().unwrap()));
    worker.renew(gate.session("w1"));
    wait_connected(&relay, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_go_on_when_the_workers_session_is_renewed() {
    let world = World::start().await;
    let (port, _echo) = echo().await;
    let stream = world.open(port).await.unwrap();
    world.worker.renew(world.gate.session("w1"));
    converse(stream, b"from before").await;
    converse(world.open(port).await.unwrap(), b"from after").await;
    assert_eq!(world.relay.link(&"w1".parse().unwrap()).unwrap().connects, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_and_client_come_back_after_the_relay_was_restarted_on_the_same_port() {
    let World { gate, identity, relay, worker, client } = World::start().await;
    let (port, _echo) = echo().await;
    let mut cut = client.open(&gate.ticket("w1", port), LIMIT).await.unwrap();
    let (address, w1) = (relay.local_addr(), "w1".parse().unwrap());
    let before = relay.link(&w1).unwrap().address;
    relay.shutdown().await;
    let error = cut.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert!(error.to_string().contains("shutting down"), "{error}");

    let relay = until("the port", LIMIT, || async { bind(address, &identity, &gate, Limits::default()) }).await;
    wait_connected(&relay, true).await;
    converse(client.open(&gate.ticket("w1", port), LIMIT).await.unwrap(), b"again").await;
    let link = relay.link(&w1).unwrap();
    assert_eq!((link.connects, link.address), (1, before), "with this relay, from the same socket");
    worker.stop().await;
    wait_connected(&relay, false).await;
}

#[test]
fn peers_learn_at_once_that_a_killed_relay_is_back() {
    // The relay has a runtime of its own: ending that ends it like a kill, without a farewell to anybody.
    let relays = || tokio::runtime::Runtime::new().unwrap();
    let (first, second, peers) = (relays(), relays(), relays());
    let gate = Arc::new(Gate::default());
    let identity = Identity::generate().unwrap();
    let relay = first.block_on(async { bind(any(), &identity, &gate, Limits::default()).unwrap() });
    let address = relay.local_addr();
    let (mut stream, _worker, _echo) = peers.block_on(async {
        let worker = link(&relay, gate.session("w1"));
        let (port, echo) = echo().await;
        wait_connected(&relay, true).await;
        let client = connect(&relay).await;
        (client.open(&gate.ticket("w1", port), LIMIT).await.unwrap(), worker, echo)
    });
    first.shutdown_timeout(LIMIT);
    drop(relay);
    let started = Instant::now();
    let _relay =
        second.block_on(until("the port", LIMIT, || async { bind(address, &identity, &gate, Limits::default()) }));
    peers.block_on(async {
        // A keep-alive may have learned it first: then the write is told so already.
        let error = match stream.write_all(b"anybody there?").await {
            Ok(()) => stream.read_to_end(&mut Vec::new()).await.unwrap_err(),
            Err(told) => told,
        };
        assert!(error.to_string().contains("has restarted"), "{error}");
    });
    // Silence would be noticed after `IDLE_TIMEOUT` only, of 20 s.
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_block_nobody_and_are_cut_off() {
    // The handshake, and the first ticket of those who have one, have to fit in as well, on a busy machine, too.
    let limits = Limits { unproven: Duration::from_secs(3), ..Limits::default() };
    let world = World::with(limits).await;
    let (port, _echo) = echo().await;
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(connect(&world.relay).await);
    }
    let last = raw(&world.relay).await;
    converse(connect(&world.relay).await.open(&world.gate.ticket("w1", port), LIMIT).await.unwrap(), b"quick").await;
    // The one that came last is closed by the relay, and those before it are by then.
    let closed = tokio::time::timeout(LIMIT, last.closed()).await.unwrap();
    assert!(matches!(closed, quinn::ConnectionError::ApplicationClosed(_)), "{closed:?}");
    // A client that then has a ticket dials again by itself.
    for client in silent {
        until("the client works", LIMIT, || async {
            let ticket = world.gate.ticket("w1", port);
            client.open(&ticket, LIMIT).await.map(drop)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_above_the_limit_are_refused_at_once() {
    let world = World::with(Limits { connections: 2, ..Limits::default() }).await;
    let started = Instant::now();
    let third = Client::connect(world.relay.local_addr(), world.relay.fingerprint(), Transport::default()).await;
    assert!(matches!(third.unwrap_err(), DialError::Connect { .. }));
    assert!(started.elapsed() < DIAL_DEADLINE);
}

#[tokio::test(flavor = "multi_thread")]
async fn under_many_handshakes_addresses_are_validated_first() {
    let world = World::with(Limits { handshakes: 0, ..Limits::default() }).await;
    let (port, _echo) = echo().await;
    converse(world.open(port).await.unwrap(), b"after a retry").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_worker_an_open_fails_at_once_and_says_why() {
    let World { gate, relay, worker, client, .. } = World::start().await;
    let (port, _echo) = echo().await;
    let mut cut = client.open(&gate.ticket("w1", port), LIMIT).await.unwrap();
    worker.stop().await;
    wait_connected(&relay, false).await;
    let error = cut.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "the connection to the worker was lost");

    let started = Instant::now();
    for (worker, why) in [("w1", "shutting down"), ("w2", "has not been since")] {
        let refusal = client.open(&gate.ticket(worker, port), LIMIT).await.unwrap_err();
        assert_eq!(refusal.code, ErrorCode::Unavailable);
        assert!(refusal.message.contains(&format!("worker {worker} is not connected")), "{refusal}");
        assert!(refusal.message.contains(why), "{refusal}");
    }
    // Waiting for the worker's answer would have taken `ATTACH_DEADLINE` at the least.
    assert!(started.elapsed() < ATTACH_DEADLINE, "{:?}", started.elapsed());
    assert!(relay.probe(&"w1".parse().unwrap(), LIMIT).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newer_connection_of_a_worker_replaces_the_older() {
    let world = World::start().await;
    let (port, _echo) = echo().await;
    let hello = world.gate.session("w1");
    let mut states = world.worker.watch();
    let _newer = link(&world.relay, hello);
    let down = |state: &LinkState| matches!(state, LinkState::Down(why) if why.contains("newer connection"));
    tokio::time::timeout(LIMIT, states.wait_for(down)).await.unwrap().unwrap();
    // Both come back for ever, a quarter of a second after they were replaced at first: what that cuts off is tried again.
    until("a conversation", LIMIT, || async {
        let text = b"through the newer";
        let mut stream = world.open(port).await.map_err(|error| error.to_string())?;
        stream.write_all(text).await.map_err(|error| error.to_string())?;
        stream.shutdown().await.map_err(|error| error.to_string())?;
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await.map_err(|error| error.to_string())?;
        if back == text { Ok(()) } else { Err(format!("{back:?}")) }
    })
    .await;
    let w1 = "w1".parse().unwrap();
    until("the count of its connections", LIMIT, || async {
        let connects = world.relay.link(&w1).map(|link| link.connects);
        if connects.is_some_and(|connects| connects > 1) { Ok(()) } else { Err(connects) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_does_not_answer_is_reported_as_such() {
    let socket = std::net::UdpSocket::bind(any()).unwrap();
    let address = Address::from(socket.local_addr().unwrap());
    let nobody = Identity::generate().unwrap().fingerprint();
    let error = Client::connect(address, nobody, Transport::default()).await.unwrap_err();
    assert!(matches!(error, DialError::Timeout { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_hangs_is_told_of_at_once_and_reached_again_once_it_answers() {
    let gate = Arc::new(Gate::default());
    let relay = bind(any(), &Identity::generate().unwrap(), &gate, Limits::default()).unwrap();
    let (control, w1) = (relay.control(), "w1".parse().unwrap());
    let worker = raw(&relay).await;
    let (admitted, _stream) = ask(&worker, &Frame::WorkerHello(gate.session("w1"))).await;
    assert_eq!(admitted, Frame::Admitted {});
    assert_eq!(control.reaches(&w1), Ok(()), "being admitted is an answer");

    // It keeps the connection alive, and takes no stream in.
    let hangs = || async { if control.reaches(&w1).is_err() { Ok(()) } else { Err("it is said to answer") } };
    until("word that it does not answer", LIMIT, hangs).await;
    let (port, _echo) = echo().await;
    let (client, started) = (connect(&relay).await, Instant::now());
    let refusal = client.open(&gate.ticket("w1", port), LIMIT).await.unwrap_err();
    assert_eq!(refusal.code, ErrorCode::Unavailable);
    assert!(refusal.message.contains("worker w1 does not answer over the tunnel"), "{refusal}");
    assert!(started.elapsed() < ATTACH_DEADLINE, "asking it would have taken longer");
    assert!(relay.connected(&w1) && relay.link(&w1).unwrap().proven.is_none());

    let _answers = task::spawn(async move {
        while let Ok((mut write, mut read)) = worker.accept_bi().await {
            // Those that nobody waits for any more were reset.
            if let Ok(Some(_)) = read.read(&mut [0; 64]).await {
                let _ = write.write_all(&Frame::Pong { holds: false }.encode().unwrap()).await;
            }
        }
    });
    let answers = || async { control.reaches(&w1) };
    until("word that it answers", LIMIT, answers).await;
    assert!(relay.link(&w1).unwrap().proven.is_some());
}

/// Earlier releases know no `attach-host`, and say so in this way.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_of_an_earlier_release_is_told_of_by_its_name() {
    let gate = Arc::new(Gate::default());
    let relay = bind(any(), &Identity::generate().unwrap(), &gate, Limits::default()).unwrap();
    let worker = raw(&relay).await;
    let (admitted, _stream) = ask(&worker, &Frame::WorkerHello(gate.session("w1"))).await;
    assert_eq!(admitted, Frame::Admitted {});
    let _answers = task::spawn(async move {
        while let Ok((mut write, mut read)) = worker.accept_bi().await {
            let mut asked = [0; 64];
            let Ok(Some(count)) = read.read(&mut asked).await else { continue };
            let answer = match String::from_utf8_lossy(&asked[..count]).contains("ping") {
                true => Frame::Pong { holds: false },
                false => Frame::refused(ApiError::new(ErrorCode::Invalid, "a tunnel frame that this release does not")),
            };
            let _ = write.write_all(&answer.encode().unwrap()).await;
        }
    });
    let (account, worker) = ("alice".parse().unwrap(), "w1".parse().unwrap());
    let ticket = gate.issue(Grant { account, target: Target::Host, worker, port: 22, since: None });
    let refused = connect(&relay).await.open(&ticket, LIMIT).await.unwrap_err();
    assert!(refused.message.contains("worker w1 is of an earlier release"), "{refused}");
}
