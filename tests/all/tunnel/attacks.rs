//! What somebody tries who has stolen something, or has nothing at all: each attack by its name.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nkeys::KeyPair;
use orchard::identity::ca::Identity;
use orchard::model::error::ErrorCode;
use orchard::model::secret::Secret;
use orchard::tunnel::client::Client;
use orchard::tunnel::header::{Frame, WorkerHello};
use orchard::tunnel::proof::{self, Exported};
use orchard::tunnel::relay::{Limits, Relay};
use orchard::tunnel::ticket::TICKET_TTL;
use orchard::tunnel::worker::LinkState;
use orchard::tunnel::{DialError, Reason, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;

use super::world::*;
use crate::wait::{PROMPT, until};

/// A gate that knows the key of worker `w1`, and the seed of that key.
fn keyed_gate() -> (Arc<Gate>, Secret) {
    let (gate, pair) = (Arc::new(Gate::default()), KeyPair::new_user());
    gate.keys.lock().unwrap().insert("w1".parse().unwrap(), pair.public_key());
    (gate, Secret::new(pair.seed().unwrap()))
}

fn relay(gate: &Arc<Gate>, limits: Limits) -> Relay {
    bind(any(), &Identity::generate().unwrap(), gate, limits).unwrap()
}

fn signed(connection: &quinn::Connection, seed: &Secret, hello: WorkerHello) -> Frame {
    let mut bytes = [0; 32];
    connection.export_keying_material(&mut bytes, proof::LABEL, b"").unwrap();
    let proof = proof::sign(seed, Exported::new(bytes), &hello).unwrap();
    Frame::WorkerHello(WorkerHello { proof: Some(proof), ..hello })
}

fn is_refused(frame: &Frame) -> bool {
    matches!(frame, Frame::Refused(error) if error.code == ErrorCode::Unauthenticated)
}

#[tokio::test(flavor = "multi_thread")]
async fn stolen_session_secret_without_the_workers_key() {
    let (gate, seed) = keyed_gate();
    let relay = relay(&gate, Limits::default());
    let hello = gate.session("w1");
    // Without a signature, and with one by another key.
    let (refused, _stream) = ask(&raw(&relay).await, &Frame::WorkerHello(hello.clone())).await;
    assert!(is_refused(&refused), "{refused:?}");
    let other = Secret::new(KeyPair::new_user().seed().unwrap());
    let connection = raw(&relay).await;
    let (refused, _stream) = ask(&connection, &signed(&connection, &other, hello.clone())).await;
    assert!(is_refused(&refused), "{refused:?}");
    assert!(!relay.connected(&"w1".parse().unwrap()));
    let noted = gate.notes.lock().unwrap().iter().filter(|note| note.ends_with("refused w1 Unauthenticated")).count();
    assert_eq!(noted, 2);
    // The worker itself comes in, and a renewed session, too.
    let worker = keyed_link(&relay, hello, Some(seed));
    wait_connected(&relay, true).await;
    worker.renew(gate.session("w1"));
    let (port, _echo) = echo().await;
    let client = connect(&relay).await;
    converse(client.open(&gate.ticket("w1", port), LIMIT).await.unwrap(), b"signed").await;
    assert_eq!(relay.link(&"w1".parse().unwrap()).unwrap().connects, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn replayed_worker_hello_on_another_connection() {
    let (gate, seed) = keyed_gate();
    let relay = relay(&gate, Limits::default());
    let first = raw(&relay).await;
    let hello = signed(&first, &seed, gate.session("w1"));
    let (admitted, _control) = ask(&first, &hello).await;
    assert_eq!(admitted, Frame::Admitted {});
    let second = raw(&relay).await;
    let (refused, _stream) = ask(&second, &hello).await;
    assert!(is_refused(&refused), "{refused:?}");
    assert!(first.close_reason().is_none(), "the worker's own connection lives on");
}

#[tokio::test(flavor = "multi_thread")]
async fn replayed_ticket() {
    let world = World::start().await;
    let (port, _echo) = echo().await;
    let ticket = world.gate.ticket("w1", port);
    let stream = world.client.open(&ticket, LIMIT).await.unwrap();
    // Neither while the stream is open, nor from elsewhere, nor afterwards.
    let elsewhere = connect(&world.relay).await;
    for client in [&world.client, &elsewhere] {
        assert_eq!(client.open(&ticket, LIMIT).await.unwrap_err().code, ErrorCode::Unauthenticated);
    }
    converse(stream, b"once").await;
    assert_eq!(world.client.open(&ticket, LIMIT).await.unwrap_err().code, ErrorCode::Unauthenticated);
}

#[tokio::test(flavor = "multi_thread")]
async fn altered_ticket() {
    let world = World::start().await;
    let (port, _echo) = echo().await;
    let ticket = world.gate.ticket("w1", port);
    let text = ticket.expose();
    let flipped: String = text.chars().rev().collect();
    for altered in [format!("{text}A"), text[1..].to_owned(), flipped, text.to_lowercase(), String::new()] {
        let error = world.client.open(&Secret::new(altered), LIMIT).await.unwrap_err();
        assert_eq!(error.code, ErrorCode::Unauthenticated);
    }
    converse(world.client.open(&ticket, LIMIT).await.unwrap(), b"the real one is still good").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expired_ticket() {
    let world = World::start().await;
    let ticket = world.gate.ticket("w1", 22);
    world.gate.now_secs.fetch_add(TICKET_TTL.as_secs(), Ordering::SeqCst);
    let error = world.client.open(&ticket, LIMIT).await.unwrap_err();
    assert!(error.code == ErrorCode::Unauthenticated && error.message.contains("expired"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn ticket_of_a_deleted_account() {
    let world = World::start().await;
    let (port, _echo) = echo().await;
    let (gone, here) = (world.gate.ticket_of("mallory", "w1", port), world.gate.ticket("w1", port));
    world.gate.barred.lock().unwrap().insert("mallory".parse().unwrap());
    assert_eq!(world.client.open(&gone, LIMIT).await.unwrap_err().code, ErrorCode::Forbidden);
    converse(world.client.open(&here, LIMIT).await.unwrap(), b"another account").await;
    assert!(world.gate.notes.lock().unwrap().contains(&"mallory refused Forbidden".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_an_account_that_lost_its_role_are_cut_at_once_with_the_reason() {
    let world = World::start().await;
    let (port, _echo) = echo().await;
    let mut open = Vec::new();
    for _ in 0..20 {
        let mut stream = world.client.open(&world.gate.ticket_of("mallory", "w1", port), LIMIT).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        open.push(stream);
    }
    let others = world.open(port).await.unwrap();
    let mallory = "mallory".parse().unwrap();
    assert_eq!(world.relay.control().sessions_of(&mallory), 20);
    world.gate.barred.lock().unwrap().insert(mallory.clone());
    let started = Instant::now();
    assert_eq!(world.relay.control().cut_account(&mallory, Reason::Revoked), 20);
    for mut stream in open {
        let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
        assert!(error.to_string().contains("may not connect any more"), "{error}");
    }
    assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
    assert_eq!(world.relay.control().sessions_of(&mallory), 0);
    converse(others, b"another account's go on").await;
    until("the notes", LIMIT, || async {
        let notes = world.gate.notes.lock().unwrap().clone();
        let cut = notes.iter().filter(|note| *note == "mallory closed 1 1 Some(Revoked)").count();
        if cut == 20 && notes.iter().any(|note| note.starts_with("alice closed")) { Ok(()) } else { Err(notes) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_of_a_deleted_worker_is_closed_and_it_learns_why() {
    let (gate, seed) = keyed_gate();
    let relay = relay(&gate, Limits::default());
    let worker = keyed_link(&relay, gate.session("w1"), Some(seed));
    wait_connected(&relay, true).await;
    let w1 = "w1".parse().unwrap();
    gate.secrets.lock().unwrap().remove(&w1);
    let mut states = worker.watch();
    relay.control().disconnect(&w1, Reason::WorkerDeleted);
    let told = |state: &LinkState| matches!(state, LinkState::Down(why) if why.contains("was deleted"));
    tokio::time::timeout(LIMIT, states.wait_for(told)).await.unwrap().unwrap();
    let refused = |state: &LinkState| matches!(state, LinkState::Down(why) if why.contains("session is over"));
    tokio::time::timeout(LIMIT, states.wait_for(refused)).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn worker_that_is_deleted_in_the_instant_in_which_it_comes_in() {
    let (gate, seed) = keyed_gate();
    let relay = relay(&gate, Limits::default());
    let (deleting, control) = (gate.clone(), relay.control());
    // Found good already, and not yet known as connected: whoever deletes it now finds no connection to close.
    *gate.meanwhile.lock().unwrap() = Some(Box::new(move || {
        let w1 = "w1".parse().unwrap();
        deleting.secrets.lock().unwrap().remove(&w1);
        control.disconnect(&w1, Reason::WorkerDeleted);
    }));
    let connection = raw(&relay).await;
    let hello = signed(&connection, &seed, gate.session("w1"));
    let (refused, _stream) = ask(&connection, &hello).await;
    assert!(is_refused(&refused), "{refused:?}");
    assert!(!relay.connected(&"w1".parse().unwrap()));
    tokio::time::timeout(LIMIT, connection.closed()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn more_tunnels_than_an_account_may_have() {
    let world = World::with(Limits { sessions_per_account: 2, ..Limits::default() }).await;
    let (port, _echo) = echo().await;
    let (one, _two) = (world.open(port).await.unwrap(), world.open(port).await.unwrap());
    let error = world.open(port).await.unwrap_err();
    assert!(error.code == ErrorCode::LimitExceeded && error.message.contains("2 connections"), "{error}");
    let ticket = world.gate.ticket_of("bob", "w1", port);
    converse(world.client.open(&ticket, LIMIT).await.unwrap(), b"another account").await;
    converse(one, b"ends").await;
    until("a place", LIMIT, || async { world.open(port).await.map(drop) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_tunnels_than_one_vm_may_have() {
    let world = World::with(Limits { sessions_per_target: 2, ..Limits::default() }).await;
    let (port, _echo) = echo().await;
    let (one, _two) = (world.open(port).await.unwrap(), world.open(port).await.unwrap());
    // Whoever asks.
    let ticket = world.gate.ticket_of("bob", "w1", port);
    let error = world.client.open(&ticket, LIMIT).await.unwrap_err();
    assert!(error.code == ErrorCode::LimitExceeded && error.message.contains("VM vm-1"), "{error}");
    converse(one, b"ends").await;
    until("a place", LIMIT, || async { world.open(port).await.map(drop) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_reaches_a_worker_before_a_ticket_is_verified() {
    let gate = Arc::new(Gate::default());
    let relay = relay(&gate, Limits::default());
    let worker = raw(&relay).await;
    let (admitted, _control) = ask(&worker, &Frame::WorkerHello(gate.session("w1"))).await;
    assert_eq!(admitted, Frame::Admitted {});
    let client = connect(&relay).await;
    for n in 0..50 {
        assert!(client.open(&Secret::new(format!("guess-{n}")), LIMIT).await.is_err());
    }
    // The first stream that the worker ever sees is that of the one good ticket, but for the relay's own question.
    let ticket = gate.ticket("w1", 4711);
    let first = async {
        loop {
            let (mut write, mut read) = tokio::time::timeout(LIMIT, worker.accept_bi()).await.unwrap().unwrap();
            match answer(&mut read).await {
                Frame::Ping {} => write.write_all(&Frame::Pong { holds: false }.encode().unwrap()).await.unwrap(),
                frame => return frame,
            }
        }
    };
    let attached = tokio::select! {
        opened = client.open(&ticket, LIMIT) => panic!("the worker has seen nothing of it: {:?}", opened.err()),
        attached = first => attached,
    };
    assert!(matches!(attached, Frame::Attach { port: 4711, .. }), "{attached:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_get_little_memory() {
    let gate = Arc::new(Gate::default());
    let relay = relay(&gate, Limits::default());
    let connection = raw(&relay).await;
    let mut streams = Vec::new();
    let mut taken = 0;
    // As many streams as are granted, and as many bytes as are taken, without ever finishing a header.
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(300), connection.open_bi()).await {
        let (mut write, read) = stream.unwrap();
        let bytes = if streams.is_empty() { vec![0x0f] } else { vec![0; 1 << 20] };
        let mut rest = bytes.as_slice();
        while let Ok(wrote) = tokio::time::timeout(Duration::from_millis(100), write.write(rest)).await {
            let wrote = wrote.unwrap();
            taken += wrote;
            rest = &rest[wrote..];
            if rest.is_empty() {
                break;
            }
        }
        streams.push((write, read));
        assert!(streams.len() <= 64 && taken <= 256 << 10, "{} streams, {taken} bytes", streams.len());
    }
    assert!(streams.len() <= 16 && taken <= 64 << 10, "{} streams, {taken} bytes", streams.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_of_one_network_take_only_so_many_places() {
    let limits = Limits { unproven_per_network: 3, ..Limits::default() };
    let world = World::with(limits).await;
    let (port, _echo) = echo().await;
    // Who has proven who it is, takes none of them.
    converse(world.open(port).await.unwrap(), b"proven").await;
    let connect = || Client::connect(world.relay.local_addr(), world.relay.fingerprint(), Transport::default());
    let mut rounds = 0;
    let mut strangers = loop {
        let (one, two, three) = tokio::join!(connect(), connect(), connect());
        let dialled = [one, two, three, connect().await];
        if matches!(&dialled, [Ok(_), Ok(_), Ok(_), Err(DialError::Connect { .. })]) {
            break dialled.into_iter().flatten().collect::<Vec<_>>();
        }
        // In a crowd, the silent make room after three seconds. A busy machine may need as long for the dials: then all over.
        rounds += 1;
        assert!(rounds < 5, "its network may have three: {dialled:?}");
        for client in dialled.into_iter().flatten() {
            client.close().await;
        }
    };
    converse(world.open(port).await.unwrap(), b"nobody else is kept out").await;
    strangers.pop().unwrap().close().await;
    until("a place", LIMIT, || async { connect().await.map(drop).map_err(|error| error.to_string()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_never_ends_frees_its_place() {
    let gate = Arc::new(Gate::default());
    // Still taken at the next dial, on a busy machine, too.
    let limits = Limits { connections: 1, unproven: Duration::from_secs(8), ..Limits::default() };
    let relay = relay(&gate, limits);
    // Passes on the first packet of a handshake and nothing more.
    let (front, back) = (UdpSocket::bind(any()).await.unwrap(), UdpSocket::bind(any()).await.unwrap());
    let front_addr: SocketAddr = front.local_addr().unwrap();
    let dial = Client::connect(front_addr, relay.fingerprint(), Transport::default());
    let begin = async {
        let mut packet = [0; 2048];
        let (length, _) = front.recv_from(&mut packet).await.unwrap();
        back.send_to(&packet[..length], relay.local_addr()).await.unwrap();
        back.recv_from(&mut packet).await.unwrap();
    };
    tokio::select! {
        _ = dial => panic!("nothing answers there"),
        () = begin => {}
    }
    let connect = || Client::connect(relay.local_addr(), relay.fingerprint(), Transport::default());
    assert!(matches!(connect().await.unwrap_err(), DialError::Connect { .. }), "the only place is taken");
    until("a place", LIMIT, || async { connect().await.map(drop).map_err(|error| error.to_string()) }).await;
}
