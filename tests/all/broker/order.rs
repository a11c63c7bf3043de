//! What comes before what: causes before their effects, and nothing of a subscription behind the answer to its end.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use orchard::broker::Broker;

use super::support::{PATIENCE, Raw};

const QUIET: &str = "{\"verbose\":false,\"pedantic\":false}";

/// A client on a thread of its own: it must be faster than a runtime that it shares with the broker.
fn blocking(address: SocketAddr, hello: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(format!("CONNECT {QUIET}\r\n{hello}PING\r\n").as_bytes()).unwrap();
    read_until(&mut stream, b"PONG\r\n");
    stream
}

fn read_until(stream: &mut TcpStream, end: &[u8]) -> Vec<u8> {
    let mut seen = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    while !seen.windows(end.len()).any(|window| window == end) {
        let count = stream.read(&mut buffer).expect("not in time");
        assert!(count > 0, "closed");
        seen.extend_from_slice(&buffer[..count]);
    }
    seen
}

/// The broker, on two threads of its own.
fn apart() -> (tokio::runtime::Runtime, Broker) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let broker = runtime.block_on(super::support::plain());
    (runtime, broker)
}

/// What is promised is the order in which the broker hands over. A receiver whose socket is still being written to (the kernel
/// took the bytes, and the writing thread was put aside before it could say so) may take the next cause along, before the
/// others have it: rare, and only on a busy machine. So one run of several without any is enough; without the promise each
/// has some in most rounds.
#[test]
fn an_effect_does_not_overtake_its_cause() {
    let mut early = Vec::new();
    while early.len() < 4 {
        match answers_before_their_causes() {
            0 => return,
            some => early.push(some),
        }
    }
    panic!("answers that came before what they answer, in {} runs: {early:?}", early.len());
}

fn answers_before_their_causes() -> usize {
    const ROUNDS: usize = 300;
    let (_runtime, broker) = apart();
    let address = broker.local_addr();
    // Whoever is told first answers at once; whoever is told last must not have the answer first. Which of the two stand
    // at the ends is the broker's business: here, one that answers stands at either.
    let crowd: Vec<TcpStream> = (0..52).map(|_| blocking(address, "SUB cause 1\r\nSUB effect 2\r\n")).collect();
    let mut publisher = blocking(address, "");
    let (told, rounds_over) = std::sync::mpsc::sync_channel(crowd.len());
    let judges: Vec<_> = crowd
        .into_iter()
        .enumerate()
        .map(|(number, mut stream)| {
            let told = told.clone();
            std::thread::spawn(move || {
                let answers = number == 0 || number == 51;
                let (mut seen, mut early) = (Vec::new(), 0);
                let mut buffer = vec![0; 64 * 1024];
                let (mut causes, mut effects) = (0, 0);
                while causes < ROUNDS || effects < 2 * ROUNDS {
                    let count = stream.read(&mut buffer).expect("not in time");
                    assert!(count > 0, "closed");
                    seen.extend_from_slice(&buffer[..count]);
                    let mut said = 0;
                    while let Some(end) = seen.windows(4).position(|window| window == b"\r\n\r\n") {
                        let frame: Vec<u8> = seen.drain(..end + 4).collect();
                        if frame.starts_with(b"MSG cause") {
                            causes += 1;
                            said += 1;
                        } else {
                            effects += 1;
                            early += usize::from(effects > 2 * causes);
                        }
                        if effects == 2 * causes {
                            told.send(()).unwrap();
                        }
                    }
                    if answers {
                        stream.write_all("PUB effect 0\r\n\r\n".repeat(said).as_bytes()).unwrap();
                    }
                }
                early
            })
        })
        .collect();
    // One round at a time, for the same reason.
    for _ in 0..ROUNDS {
        publisher.write_all(b"PUB cause 0\r\n\r\n").unwrap();
        for _ in 0..judges.len() {
            rounds_over.recv_timeout(PATIENCE).expect("the round is over in time");
        }
    }
    judges.into_iter().map(|judge| judge.join().unwrap()).sum()
}

#[test]
fn nothing_of_a_subscription_comes_behind_the_answer_to_its_end() {
    const ROUNDS: usize = 150;
    let (_runtime, broker) = apart();
    let address = broker.local_addr();
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let busy: Vec<_> = (0..2)
        .map(|_| {
            let over = over.clone();
            std::thread::spawn(move || {
                let mut stream = blocking(address, "");
                let frames = format!("PUB u 200\r\n{}\r\n", "x".repeat(200)).repeat(500);
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    stream.write_all(format!("{frames}PING\r\n").as_bytes()).unwrap();
                    read_until(&mut stream, b"PONG\r\n");
                }
            })
        })
        .collect();
    let mut late = 0;
    let mut stream = blocking(address, "");
    for _ in 0..ROUNDS {
        stream.write_all(b"SUB u 1\r\n").unwrap();
        read_until(&mut stream, b"MSG u 1 200\r\n");
        stream.write_all(b"UNSUB 1\r\nPING\r\n").unwrap();
        let seen = read_until(&mut stream, b"PONG\r\n");
        // A second answer, by when what was on its way has come.
        let at = seen.windows(6).position(|window| window == b"PONG\r\n").unwrap();
        let mut behind = seen[at + 6..].to_vec();
        for _ in 0..3 {
            stream.write_all(b"PING\r\n").unwrap();
            behind.extend(read_until(&mut stream, b"PONG\r\n"));
        }
        late += usize::from(behind.windows(4).any(|window| window == b"MSG "));
    }
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    for thread in busy {
        thread.join().unwrap();
    }
    assert_eq!(late, 0, "of {ROUNDS} rounds with messages behind the answer");
}

#[tokio::test]
async fn the_last_message_of_a_limited_subscription_is_not_lost() {
    let broker = super::support::plain().await;
    let mut listener = Raw::with(&broker, QUIET).await;
    let mut publisher = Raw::with(&broker, QUIET).await;
    for round in 0..50 {
        listener
            .send(format!("SUB other {round}\r\nSUB l x{round}\r\nUNSUB x{round} 2\r\nUNSUB {round}\r\n").as_bytes())
            .await;
        listener.until_pong().await;
        publisher.send(b"PUB l 1\r\na\r\nPUB l 1\r\nb\r\nPUB l 1\r\nc\r\n").await;
        publisher.until_pong().await;
        let expected = format!("MSG l x{round} 1\r\na\r\nMSG l x{round} 1\r\nb\r\n");
        assert_eq!(listener.until_pong().await, expected);
    }
}
