//! Both ends with what carries them, in memory, by a clock that the tests move.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::client::{Redial, RedialError, ResumableStream, start};
use super::{GIVE_UP_AFTER, KEPT_FOR, guest};
use crate::model::error::{ApiError, ErrorCode};
use crate::task::{self, Task};

/// What carries a session holds so much, each way.
const CARRIER: usize = 8 << 10;

/// What is answered instead of another stream, for as long as it is there.
type Refusals = Arc<Mutex<Option<fn() -> RedialError>>>;

/// The relay, the worker and the network between them: hands out streams, of which each bears a given number of bytes
/// towards the guest.
struct Net {
    streams: mpsc::Sender<DuplexStream>,
    /// How much each further stream bears; when there is none left, as much as there is.
    bears: Vec<usize>,
    told: Arc<Mutex<Vec<String>>>,
    refuses: Refusals,
    cuts: Vec<Task>,
}

impl Net {
    fn stream(&mut self) -> DuplexStream {
        let (near, mut middle) = tokio::io::duplex(CARRIER);
        let (mut behind, far) = tokio::io::duplex(CARRIER);
        let mut bears = self.bears.pop().unwrap_or(usize::MAX);
        self.streams.try_send(far).unwrap();
        self.cuts.push(task::spawn(async move {
            let mut bytes = [0; 1000];
            let mut back = [0; 1000];
            while bears > 0 {
                tokio::select! {
                    read = middle.read(&mut bytes) => {
                        let read = read.unwrap_or(0).min(bears);
                        bears -= read;
                        if read == 0 || behind.write_all(&bytes[..read]).await.is_err() {
                            break;
                        }
                    }
                    read = behind.read(&mut back) => {
                        let read = read.unwrap_or(0);
                        if read == 0 || middle.write_all(&back[..read]).await.is_err() {
                            break;
                        }
                    }
                }
            }
        }));
        near
    }
}

#[async_trait]
impl Redial for Net {
    type Stream = DuplexStream;

    async fn redial(&mut self) -> Result<DuplexStream, RedialError> {
        let refuses = *self.refuses.lock().unwrap();
        match refuses {
            Some(refuses) => Err(refuses()),
            None => Ok(self.stream()),
        }
    }

    fn lost(&mut self, _why: &str) {
        self.told.lock().unwrap().push("lost".to_owned());
    }

    fn settled(&mut self, goes_on: bool) {
        self.told.lock().unwrap().push(format!("settled {goes_on}"));
    }
}

/// A guest's connection that is reset as soon as anything is written to it. Reading shows nothing but an end then: the system
/// tells of a reset once.
#[derive(Default)]
struct Resets {
    reset: bool,
    reader: Option<Waker>,
}

impl AsyncWrite for Resets {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        self.reset = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Resets {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.reset {
            return Poll::Ready(Ok(()));
        }
        self.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

struct World {
    stream: ResumableStream,
    guest: DuplexStream,
    told: Arc<Mutex<Vec<String>>>,
    refuses: Refusals,
    client: Task,
    keeper: Task<String>,
    /// A keeper takes streams for as long as it is there.
    _brings: mpsc::Sender<DuplexStream>,
}

impl World {
    fn new(bears: Vec<usize>) -> Self {
        Self::with(bears, false)
    }

    fn with(bears: Vec<usize>, resets: bool) -> Self {
        let (streams, brought) = mpsc::channel(1000);
        let brings = streams.clone();
        let (told, refuses) = (Arc::default(), Arc::default());
        let mut net = Net { streams, bears, told: Arc::clone(&told), refuses: Arc::clone(&refuses), cuts: Vec::new() };
        let (guest, inside) = tokio::io::duplex(CARRIER);
        // Nobody has it, if the guest is another one.
        let keeper = match resets {
            true => task::spawn(guest::keep(Resets::default(), brought, KEPT_FOR)),
            false => task::spawn(guest::keep(inside, brought, KEPT_FOR)),
        };
        let first = net.stream();
        let (stream, work) = start(first, net);
        Self { stream, guest, told, refuses, client: task::spawn(work), keeper, _brings: brings }
    }
}

fn noise(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn paused<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn an_echo_is_whole_however_often_the_connection_is_lost(
        bears in prop::collection::vec(1usize..60_000, 0..12),
        length in 0usize..400_000,
    ) {
        paused(async move {
            let World { stream, guest, told, client, keeper, _brings, .. } = World::new(bears);
            let echo = task::spawn(async move {
                let (mut read, mut write) = tokio::io::split(guest);
                tokio::io::copy(&mut read, &mut write).await.unwrap();
                write.shutdown().await.unwrap();
            });
            let (sent, mut got) = (noise(length), Vec::new());
            let (mut read, mut write) = tokio::io::split(stream);
            let (wrote, back) = tokio::join!(
                async {
                    write.write_all(&sent).await?;
                    write.shutdown().await
                },
                read.read_to_end(&mut got)
            );
            wrote.unwrap();
            back.unwrap();
            assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
            drop((read, write));
            client.join().await.unwrap();
            let kept = keeper.join().await.unwrap();
            // The connection may have been lost under the very last acknowledgement, when the client had all it needs.
            assert!(kept == "finished" || kept.contains("nobody came back"), "{kept}");
            echo.join().await.unwrap();
            let told = told.lock().unwrap();
            assert!(told.chunks(2).all(|pair| pair == ["lost", "settled true"]), "{told:?}");
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_program_that_lets_go_ends_the_guests_connection_at_once() {
    let World { stream, mut guest, client, keeper, _brings, .. } = World::new(Vec::new());
    let started = Instant::now();
    drop(stream);
    client.join().await.unwrap();
    assert_eq!(keeper.join().await.unwrap(), "the other end broke the session off");
    assert_eq!(guest.read(&mut [0; 8]).await.unwrap(), 0);
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn what_was_written_before_a_shutdown_arrives_though_the_program_is_gone_and_the_way_is_lost_meanwhile() {
    let World { mut stream, mut guest, client, keeper, told, _brings, .. } = World::new(vec![50, 40, 30]);
    stream.write_all(&noise(20_000)).await.unwrap();
    stream.shutdown().await.unwrap();
    drop(stream);
    let mut got = Vec::new();
    guest.read_to_end(&mut got).await.unwrap();
    assert!(got == noise(20_000));
    client.join().await.unwrap();
    assert_eq!(keeper.join().await.unwrap(), "the other end does not read any more");
    assert_eq!(told.lock().unwrap().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_breaks_down_while_nobody_is_there_is_told_of_after_its_last_words() {
    let mut world = World::new(vec![13]);
    let unavailable = || RedialError::Passing(ApiError::new(ErrorCode::Unavailable, "the worker is away"));
    *world.refuses.lock().unwrap() = Some(unavailable);
    // One byte more than the first stream bears, behind the hello.
    world.stream.write_all(b"x").await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(*world.told.lock().unwrap(), ["lost"]);
    world.guest.write_all(b"last words").await.unwrap();
    drop(world.guest);
    tokio::time::sleep(Duration::from_secs(60)).await;
    *world.refuses.lock().unwrap() = None;
    let mut said = Vec::new();
    world.stream.read_to_end(&mut said).await.unwrap();
    assert_eq!((&said[..], world.told.lock().unwrap().len()), (&b"last words"[..], 2));
}

#[tokio::test(start_paused = true)]
async fn a_reset_that_shows_in_writing_is_not_taken_for_a_proper_end() {
    let mut world = World::with(Vec::new(), true);
    world.stream.write_all(b"x").await.unwrap();
    let error = world.stream.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(error.to_string(), "the VM reset the connection");
}

#[tokio::test(start_paused = true)]
async fn nobody_is_waited_for_without_end() {
    let mut world = World::new(vec![13]);
    *world.refuses.lock().unwrap() =
        Some(|| RedialError::Passing(ApiError::new(ErrorCode::Unavailable, "the worker is away")));
    world.stream.write_all(b"x").await.unwrap();
    let started = Instant::now();
    let error = world.stream.read(&mut [0; 8]).await.unwrap_err().to_string();
    let took = started.elapsed();
    assert!(error.contains("within 5 min") && error.contains("the worker is away"), "{error}");
    assert!(took <= GIVE_UP_AFTER && took > GIVE_UP_AFTER - Duration::from_secs(10), "{took:?}");
    assert!(world.stream.write_all(b"y").await.unwrap_err().to_string().contains("within 5 min"));
    let why = world.keeper.join().await.unwrap();
    assert!(why.contains("nobody came back"), "{why}");
    assert!(started.elapsed() > GIVE_UP_AFTER && started.elapsed() < KEPT_FOR + Duration::from_secs(10));
    world.client.join().await.unwrap();
    assert_eq!(*world.told.lock().unwrap(), ["lost", "settled false"]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_no_waiting_mends_ends_the_session_with_its_reason() {
    let mut world = World::new(vec![13]);
    *world.refuses.lock().unwrap() =
        Some(|| RedialError::Final(ApiError::new(ErrorCode::NotFound, "the VM is not there any more")));
    let started = Instant::now();
    world.stream.write_all(b"x").await.unwrap();
    let error = world.stream.read(&mut [0; 8]).await.unwrap_err().to_string();
    assert!(error.contains("the VM is not there any more"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(1));
}
