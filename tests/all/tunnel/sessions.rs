//! Bytes and their ends: what one side sends, the other gets, whole and once.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::world::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_sends_reaches_the_guest_and_comes_back() {
    let world = World::start().await;
    let (port, _echo) = echo().await;
    converse(world.open(port).await.unwrap(), b"hello").await;
    assert!(world.worker.is_up());
    assert!(world.relay.probe(&"w1".parse().unwrap(), LIMIT).await.unwrap() < LIMIT);
    let info = world.relay.link(&"w1".parse().unwrap()).unwrap();
    assert!(info.sent > 0 && info.address.ip().is_loopback(), "{info:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_in_both_directions_at_once_arrives_whole() {
    const LENGTH: usize = 64 << 20;
    let world = World::start().await;
    let down = Arc::new(noise(LENGTH, 1));
    let expected = down.clone();
    let (heard_said, mut heard) = tokio::sync::mpsc::channel(1);
    let (port, _guest) = guest(move |mut stream| {
        let (down, heard_said) = (down.clone(), heard_said.clone());
        async move {
            let (mut read, mut write) = stream.split();
            let send = async {
                write.write_all(&down).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let (read, ()) = tokio::join!(read.read_to_end(&mut got), send);
            read.unwrap();
            heard_said.send(got).await.unwrap();
        }
    })
    .await;
    let up = noise(LENGTH, 2);
    let (mut read, mut write) = tokio::io::split(world.open(port).await.unwrap());
    let mut got = Vec::new();
    let send = async {
        write.write_all(&up).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let (read, ()) = tokio::join!(read.read_to_end(&mut got), send);
    read.unwrap();
    assert!(got == *expected, "what came down is not what was sent");
    assert!(heard.recv().await.unwrap() == up, "what went up is not what was sent");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_can_end_its_side_and_still_hear_the_guest() {
    let world = World::start().await;
    let (port, _guest) = guest(|mut stream| async move {
        let mut got = String::new();
        stream.read_to_string(&mut got).await.unwrap();
        stream.write_all(format!("you said {got}").as_bytes()).await.unwrap();
    })
    .await;
    let mut stream = world.open(port).await.unwrap();
    stream.write_all(b"all").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "you said all");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_can_end_its_side_and_still_hear_the_client() {
    let world = World::start().await;
    let (said, mut heard) = tokio::sync::mpsc::channel(1);
    let (port, _guest) = guest(move |mut stream| {
        let said = said.clone();
        async move {
            stream.write_all(b"bye").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut got = String::new();
            stream.read_to_string(&mut got).await.unwrap();
            said.send(got).await.unwrap();
        }
    })
    .await;
    let mut stream = world.open(port).await.unwrap();
    let mut greeting = String::new();
    stream.read_to_string(&mut greeting).await.unwrap();
    assert_eq!(greeting, "bye");
    stream.write_all(b"one more thing").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(heard.recv().await.unwrap(), "one more thing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_shut_down_is_delivered_although_the_client_leaves_at_once() {
    const LENGTH: usize = 8 << 20;
    let world = World::start().await;
    let (said, mut heard) = tokio::sync::mpsc::channel(1);
    let (port, _guest) = guest(move |mut stream| {
        let said = said.clone();
        async move {
            let mut got = Vec::new();
            stream.read_to_end(&mut got).await.unwrap();
            said.send(got.len()).await.unwrap();
        }
    })
    .await;
    let mut stream = world.open(port).await.unwrap();
    stream.write_all(&noise(LENGTH, 3)).await.unwrap();
    stream.shutdown().await.unwrap();
    drop(stream);
    world.client.close().await;
    assert_eq!(heard.recv().await.unwrap(), LENGTH);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_session_ends_at_the_guest_too() {
    let world = World::start().await;
    let (said, mut heard) = tokio::sync::mpsc::channel(1);
    let (port, _guest) = guest(move |mut stream| {
        let said = said.clone();
        async move {
            // The guest talks on, as a shell does; only a closed connection ends it.
            let mut failed = false;
            while !failed {
                failed = stream.write_all(b"tick").await.is_err();
                tokio::task::yield_now().await;
            }
            said.send(()).await.unwrap();
        }
    })
    .await;
    let mut stream = world.open(port).await.unwrap();
    let mut tick = [0; 4];
    stream.read_exact(&mut tick).await.unwrap();
    drop(stream);
    tokio::time::timeout(LIMIT, heard.recv()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_reads_nothing_slows_its_client_only_and_does_not_outlive_it() {
    let world = World::start().await;
    let (said, mut heard) = tokio::sync::mpsc::channel(1);
    let (port, _guest) = guest(move |mut stream| {
        let said = said.clone();
        async move {
            while stream.write_all(b"tick").await.is_ok() {
                tokio::task::yield_now().await;
            }
            said.send(()).await.unwrap();
        }
    })
    .await;
    let (echo_port, _echo) = echo().await;
    let mut stream = world.open(port).await.unwrap();
    let stuck = tokio::time::timeout(Duration::from_millis(500), stream.write_all(&noise(64 << 20, 4))).await;
    assert!(stuck.is_err(), "64 MiB went to a guest that reads nothing");
    converse(world.open(echo_port).await.unwrap(), &noise(100_000, 5)).await;
    drop(stream);
    tokio::time::timeout(LIMIT, heard.recv()).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn random_sessions_lose_and_cross_no_byte() {
    let world = Arc::new(World::start().await);
    // The guest echoes, slowly and in odd pieces.
    let (port, _guest) = guest(|mut stream| async move {
        let mut buffer = vec![0; 3_001];
        loop {
            match stream.read(&mut buffer).await {
                Ok(read) if read > 0 => {
                    if stream.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
                _ => return,
            }
        }
    })
    .await;
    let mut sessions = tokio::task::JoinSet::new();
    for number in 0..120u64 {
        let world = world.clone();
        sessions.spawn(async move {
            let bytes = noise(usize::try_from(number * 7_919 % 300_000).unwrap(), number);
            let (mut read, mut write) = tokio::io::split(world.open(port).await.unwrap());
            let send = async {
                for piece in bytes.chunks(4_099) {
                    write.write_all(piece).await.unwrap();
                }
                write.shutdown().await.unwrap();
            };
            match number % 4 {
                // Broken off half-way: harms nobody else.
                0 => {
                    let _ = tokio::time::timeout(Duration::from_millis(number), send).await;
                }
                _ => {
                    let mut back = Vec::new();
                    let (read, ()) = tokio::join!(read.read_to_end(&mut back), send);
                    read.unwrap();
                    assert!(back == bytes, "session {number}");
                }
            }
        });
    }
    sessions.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_learns_that_the_guest_reset_the_connection() {
    let world = World::start().await;
    let (port, _guest) = guest(|mut stream| async move {
        let mut one = [0];
        stream.read_exact(&mut one).await.unwrap();
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    })
    .await;
    let mut stream = world.open(port).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    let error = stream.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "the VM reset the connection");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_sessions_at_once_do_not_mix() {
    let world = Arc::new(World::start().await);
    let (port, _echo) = echo().await;
    let mut sessions = tokio::task::JoinSet::new();
    for number in 0..200u64 {
        let world = world.clone();
        sessions.spawn(async move {
            let mut stream = world.open(port).await.unwrap();
            // Every session is open before the first one ends.
            stream.write_all(&number.to_le_bytes()).await.unwrap();
            let mut back = [0; 8];
            stream.read_exact(&mut back).await.unwrap();
            assert_eq!(u64::from_le_bytes(back), number);
            (stream, number)
        });
    }
    for (stream, number) in sessions.join_all().await {
        converse(stream, &noise(20_000, number)).await;
    }
}
