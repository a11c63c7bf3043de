//! Promise: tunnels work over bad networks. Real processes; worker and client each behind a bad cable of their own, in a
//! namespace of their own.

mod link;

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::time::{Instant, timeout};

use self::link::Link;
use crate::harness::{Access, LIMIT, finish, succeed};
use crate::netns::may_run;
use crate::processes::{self, Server};
use crate::tunnel::world::noise;
use crate::wait;
use crate::way::Shape;

/// A controller, and a worker with a VM that echoes, and a user elsewhere.
struct World {
    access: Access,
    dir: tempfile::TempDir,
    _controller: Server,
    _worker: Server,
    /// Where the controller is.
    address: String,
    worker: Link,
    client: Link,
}

impl World {
    /// The cables are good ones, until they are told otherwise. `net` and the number after it are the cables'.
    async fn start(role: &str, net: u32) -> Self {
        let (worker, client) = (Link::lay(&format!("{role}w"), net), Link::lay(&format!("{role}c"), net + 1));
        let address = worker.near.clone();
        client.route(&address);
        let dir = tempfile::tempdir().unwrap();
        let any = format!("{address}:0");
        let (controller, access) =
            processes::controller(&dir.path().join("home"), &dir.path().join("c"), &any, &any).await;
        let prefix = worker.space.prefix();
        let server = processes::worker(&access, &access.url, &dir.path().join("w"), "synthetic", &prefix).await;
        let world = Self { access, dir, _controller: controller, _worker: server, address, worker, client };
        succeed(world.cli(&["create", "vm", "far-vm", "--image", "any", "--wait"])).await;
        // The worker's data path comes up beside its work.
        wait::until("the VM to be reached", LIMIT, || async { world.open().try_round_trip().await.map(drop) }).await;
        world
    }

    /// Both cables.
    fn shape(&self, shape: Shape) {
        self.worker.set(shape);
        self.client.set(shape);
    }

    fn cli(&self, arguments: &[&str]) -> tokio::process::Command {
        self.access.cli_within(&self.client.space.prefix(), &self.dir.path().join("home"), arguments)
    }

    /// A connection to a port of the VM, which says all that it hears.
    fn open(&self) -> Session {
        let mut command = self.cli(&["proxy", "vm", "far-vm", "7"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        Session { input: child.stdin.take().unwrap(), output: child.stdout.take().unwrap(), child }
    }
}

/// An `orchard proxy` that runs.
struct Session {
    input: ChildStdin,
    output: ChildStdout,
    child: Child,
}

impl Session {
    /// How long a few bytes take there and back.
    async fn round_trip(&mut self) -> Duration {
        self.try_round_trip().await.unwrap_or_else(|told| panic!("{told}"))
    }

    /// The same, or what it said when it ended.
    async fn try_round_trip(&mut self) -> Result<Duration, String> {
        let started = Instant::now();
        let mut back = [0; 8];
        let trip = async {
            self.input.write_all(b"12345678").await?;
            self.output.read_exact(&mut back).await
        };
        if timeout(LIMIT, trip).await.expect("a round trip in time").is_err() {
            return Err(self.told().await);
        }
        assert_eq!(&back, b"12345678");
        Ok(started.elapsed())
    }

    /// What it said when it ended.
    async fn told(&mut self) -> String {
        let mut told = String::new();
        let mut stderr = self.child.stderr.take().unwrap();
        let read = timeout(LIMIT, stderr.read_to_string(&mut told)).await;
        read.unwrap_or_else(|_| panic!("it has not ended, but said {told:?}")).unwrap();
        told
    }

    /// Sends `bytes` while it reads them back, calling `half_way` when half of them are; yields what came.
    async fn echo(mut self, bytes: Vec<u8>, half_way: impl FnOnce()) -> Vec<u8> {
        let mut back = Vec::new();
        let half = (bytes.len() / 2) as u64;
        let send = async {
            self.input.write_all(&bytes).await.unwrap();
            drop(self.input);
        };
        let read = async {
            (&mut self.output).take(half).read_to_end(&mut back).await.unwrap();
            half_way();
            self.output.read_to_end(&mut back).await.unwrap();
        };
        tokio::join!(send, read);
        let output = self.child.wait_with_output().await.unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && told.is_empty(), "{}: {told}", output.status);
        back
    }
}

/// Bulk and typing at the same time, both cables being like that; typing takes `slow` at most, mostly. That is several times what
/// it takes by itself, as three processes share the machine with all other tests; when bulk starves it, it takes tens of seconds,
/// or is not back before the bulk is.
async fn carries(role: &str, net: u32, shape: Shape, length: usize, slow: Duration) {
    if !may_run(role) {
        return;
    }
    let world = World::start(role, net).await;
    world.shape(shape);
    let bytes = noise(length, net.into());
    let mut typing = world.open();
    typing.round_trip().await;
    let bulk = world.open().echo(bytes.clone(), || {});
    let mut bulk = std::pin::pin!(timeout(2 * LIMIT, bulk));
    let mut trips = Vec::new();
    let back = loop {
        tokio::select! {
            back = &mut bulk => break back.expect("the transfer in time"),
            trip = typing.round_trip() => trips.push(trip),
        }
    };
    // The last one was given up when the transfer ended.
    assert!(back == bytes, "what came back is not what was sent");
    trips.sort();
    let (carried, lost) = world.client.counts();
    println!(
        "{role}: {} round trips, median {:?}, {lost} of {carried} packets lost",
        trips.len(),
        trips.get(trips.len() / 2)
    );
    assert!(trips.get(trips.len() / 2).is_some_and(|median| *median < slow), "{trips:?}");
    assert_eq!(shape.lost > 0 || shape.rate.is_some(), lost > 0, "{lost} of {carried}");
}

#[tokio::test(flavor = "multi_thread")]
async fn five_packets_of_a_hundred_are_lost() {
    let shape = Shape { lost: 50, delay: Duration::from_millis(5), ..Shape::default() };
    carries("l", 0, shape, 2 << 20, Duration::from_secs(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_trip_takes_200_ms_on_each_leg() {
    let shape = Shape { delay: Duration::from_millis(100), ..Shape::default() };
    carries("d", 2, shape, 8 << 20, Duration::from_secs(6)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarter_of_the_packets_overtakes_others() {
    let shape = Shape { delay: Duration::from_millis(10), early: 250, ..Shape::default() };
    carries("r", 4, shape, 2 << 20, Duration::from_secs(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_megabit_a_second_is_all_there_is() {
    let shape = Shape { rate: Some(1_000_000), delay: Duration::from_millis(10), ..Shape::default() };
    carries("s", 6, shape, 1 << 20, Duration::from_secs(6)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_address_changes_in_mid_transfer() {
    if !may_run("the_clients_address_changes_in_mid_transfer") {
        return;
    }
    let world = World::start("m", 8).await;
    // So slow that there is a middle of it.
    world.client.set(Shape { rate: Some(20_000_000), delay: Duration::from_millis(5), ..Shape::default() });
    let bytes = noise(6 << 20, 8);
    let mut typing = world.open();
    typing.round_trip().await;
    let moved = || world.client.move_away(&world.address);
    let back = timeout(2 * LIMIT, world.open().echo(bytes.clone(), moved)).await.expect("the transfer in time");
    assert!(back == bytes, "what came back is not what was sent");
    typing.round_trip().await;
    // And whoever comes new.
    world.open().round_trip().await;
}

/// How long links are down.
const OUTAGE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn links_are_down_for_20_s_and_nothing_hangs() {
    if !may_run("links_are_down_for_20_s_and_nothing_hangs") {
        return;
    }
    let world = World::start("o", 10).await;
    let mut session = world.open();
    session.round_trip().await;
    // The client's system knows, the worker's does not.
    let back = Instant::now() + OUTAGE;
    world.client.unplug();
    world.worker.set(Shape { cut: true, ..Shape::default() });
    // Who comes now is told why it does not work.
    let started = Instant::now();
    let output = finish(world.cli(&["proxy", "vm", "far-vm", "7"])).await;
    assert!(!output.status.success() && started.elapsed() < OUTAGE, "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("error: ") && told.contains(&world.address), "{told}");
    wait::until("the end of the outage", LIMIT, || async {
        if Instant::now() >= back { Ok(()) } else { Err("it lasts") }
    })
    .await;
    world.client.plug(&world.address);
    world.worker.set(Shape::default());
    // A guest within the worker has no socket to hold, so that a session to it cannot be resumed; netns.rs has those that can.
    // This one goes on if its connection has lived, or ends with the reason.
    if let Err(told) = session.try_round_trip().await {
        assert!(told.contains("far-vm") && told.contains("lost"), "{told}");
        assert_eq!(session.child.wait().await.unwrap().code(), Some(1));
    }
    // Everything finds together again by itself.
    wait::until("the VM to be reached", LIMIT, || async { world.open().try_round_trip().await }).await;
}
