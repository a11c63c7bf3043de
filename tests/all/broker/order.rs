//! What comes before what: causes before their effects.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use orchard::broker::Broker;

use super::support::PATIENCE;

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

#[test]
fn an_effect_does_not_overtake_its_cause() {
    const ROUNDS: usize = 300;
    let (_runtime, broker) = apart();
    let address = broker.local_addr();
    // Whoever is told first answers at once; whoever is told last must not have the answer first. Which of the two stand
    // at the ends is the broker's business: here, one that answers stands at either.
    let crowd: Vec<TcpStream> = (0..52).map(|_| blocking(address, "SUB cause 1\r\nSUB effect 2\r\n")).collect();
    let mut publisher = blocking(address, "");
    let judges: Vec<_> = crowd
        .into_iter()
        .enumerate()
        .map(|(number, mut stream)| {
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
                    }
                    if answers {
                        stream.write_all("PUB effect 0\r\n\r\n".repeat(said).as_bytes()).unwrap();
                    }
                }
                early
            })
        })
        .collect();
    let mut witness = blocking(address, "SUB effect 1\r\n");
    for _ in 0..ROUNDS {
        publisher.write_all(b"PUB cause 0\r\n\r\n").unwrap();
        let mut heard = 0;
        while heard < 2 {
            let seen = read_until(&mut witness, b"0\r\n\r\n");
            heard += seen.windows(3).filter(|window| *window == b"MSG").count();
        }
    }
    let early: usize = judges.into_iter().map(|judge| judge.join().unwrap()).sum();
    assert_eq!(early, 0, "answers that came before what they answer");
}
