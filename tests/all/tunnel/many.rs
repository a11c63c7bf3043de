//! A thousand sessions at once that end in every way there is: no byte is lost or gets into another session, and nothing is left
//! of them. In a process of its own, since memory is a process's.

use std::io::ErrorKind;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use orchard::task::Task;
use orchard::tunnel::client::Client;
use orchard::tunnel::relay::Limits;
use orchard::tunnel::stream::TunnelStream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Barrier, Semaphore};
use tokio::task::JoinSet;

use super::world::*;
use crate::wait::until;

const SESSIONS: usize = 1_000;

/// They come over so many connections.
const CLIENTS: usize = 5;

/// The most that a session carries each way, in bytes.
const MOST: u64 = 120_000;

/// Rounds until memory is as large as it will be, and rounds that are compared with these.
const WARM: usize = 2;
const ROUNDS: usize = 2;
/// More of these, while memory still grows.
const FURTHER: usize = 4;

/// What may be left in memory of each session of a further round: as much as the allocator may be off. A task that is left, or a
/// stream, has more.
const LEFT_KIB: usize = 4;

/// How a session goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    /// Both send, both end.
    Both,
    /// The user ends first, and the guest sends all that it has only then.
    UserFirst,
    /// The guest does.
    GuestFirst,
    /// Both send, and the user reads nothing until half of the others are through.
    Slow,
    /// The user's program dies half-way.
    UserBreaks,
    /// The guest resets the connection half-way.
    GuestBreaks,
}

/// What both ends know of a session; the guest reads it first.
#[derive(Clone, Copy, Debug)]
struct Plan {
    course: Course,
    seed: u64,
    up: usize,
    down: usize,
}

impl Plan {
    fn of(round: usize, number: usize) -> Self {
        use Course::*;
        let seed = (round * SESSIONS + number) as u64;
        let drawn = noise(24, seed ^ 0xdead_beef);
        let draw = |at: usize| u64::from_le_bytes(drawn[at..at + 8].try_into().unwrap());
        let course = [Both, UserFirst, GuestFirst, Slow, UserBreaks, GuestBreaks][(draw(0) % 6) as usize];
        let length = |drawn: u64| usize::try_from(drawn % MOST).unwrap();
        Self { course, seed, up: length(draw(8)), down: length(draw(16)) }
    }

    fn up(&self) -> &'static [u8] {
        self.noise(0, self.up)
    }

    fn down(&self) -> &'static [u8] {
        self.noise(1, self.down)
    }

    /// Nobody else's, and no memory of its own, which would hide what the tunnel takes: a part of one piece of noise.
    fn noise(&self, way: u64, length: usize) -> &'static [u8] {
        static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| noise(4 << 20, 1));
        let begin = (2 * self.seed + way) * 509 % (NOISE.len() as u64 - MOST);
        &NOISE[begin as usize..][..length]
    }

    /// The round and the number of it, by which the guest finds the same plan.
    fn name(round: usize, number: usize) -> [u8; 4] {
        [u16::try_from(round).unwrap(), u16::try_from(number).unwrap()]
            .map(u16::to_le_bytes)
            .concat()
            .try_into()
            .unwrap()
    }
}

/// Sends in odd pieces.
async fn send(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    for piece in bytes.chunks(4_099) {
        to.write_all(piece).await?;
    }
    to.flush().await
}

/// Sends all that one end has to say and then the end, or the half of it that this one gets to if it `breaks`.
async fn say(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8], breaks: bool) -> std::io::Result<()> {
    if breaks {
        return send(to, &bytes[..bytes.len() / 2]).await;
    }
    send(to, bytes).await?;
    to.shutdown().await
}

/// Reads to the end, or to an error; what comes must be what `sent` begins with. Yields how much came.
async fn receive(from: &mut (impl AsyncRead + Unpin), sent: &[u8]) -> (usize, std::io::Result<()>) {
    let (mut got, mut buffer) = (0, vec![0; 4_096]);
    loop {
        match from.read(&mut buffer).await {
            Ok(0) => return (got, Ok(())),
            Ok(read) if sent[got..].starts_with(&buffer[..read]) => got += read,
            Ok(_) => return (got, Err(std::io::Error::other("other bytes than were sent"))),
            Err(error) => return (got, Err(error)),
        }
    }
}

/// Reads all of `sent`, and the end.
async fn receive_all(from: &mut (impl AsyncRead + Unpin), sent: &[u8]) -> Result<(), String> {
    match receive(from, sent).await {
        (got, Ok(())) if got == sent.len() => Ok(()),
        (got, ended) => Err(format!("{got} bytes of {} came: {ended:?}", sent.len())),
    }
}

/// The guest's end.
async fn guest_end(mut stream: TcpStream) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("guest: {error}");
    let mut name = [0; 4];
    stream.read_exact(&mut name).await.map_err(failed)?;
    let [round, number] = [0, 2].map(|at| usize::from(u16::from_le_bytes([name[at], name[at + 1]])));
    let plan = Plan::of(round, number);
    stream.write_all(b"!").await.map_err(failed)?;
    let (up, down) = (plan.up(), plan.down());
    let (mut read, mut write) = stream.split();
    let sending = say(&mut write, down, plan.course == Course::GuestBreaks);
    let came = match plan.course {
        Course::Both | Course::Slow => {
            let (got, sent) = tokio::join!(receive_all(&mut read, up), sending);
            sent.map_err(failed)?;
            got
        }
        Course::UserFirst => {
            receive_all(&mut read, up).await?;
            return sending.await.map_err(failed);
        }
        Course::GuestFirst => {
            sending.await.map_err(failed)?;
            receive_all(&mut read, up).await
        }
        Course::UserBreaks => {
            // It hears the end of what came, or that the connection was broken off.
            let (_, ended) = receive(&mut read, &up[..plan.up / 2]).await;
            match ended {
                Err(error) if error.kind() == ErrorKind::Other => Err(error.to_string()),
                _ => Ok(()),
            }
        }
        Course::GuestBreaks => {
            sending.await.map_err(failed)?;
            let mut part = (&mut read).take(plan.up as u64 / 2);
            receive_all(&mut part, &up[..plan.up / 2]).await?;
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).map_err(failed)?;
            Ok(())
        }
    };
    came.map_err(|what| format!("up, {plan:?}: {what}"))
}

/// What all sessions of a round share.
struct Round {
    /// All are open before the first one goes on.
    open: Barrier,
    /// Those that are open.
    arrived: AtomicUsize,
    /// Given by who is through; the slow ones wait for half of all.
    through: Semaphore,
}

/// The user's end.
async fn user_end(mut stream: TunnelStream, round: &Round, (count, number): (usize, usize)) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("user {number}: {error}");
    let plan = Plan::of(count, number);
    stream.write_all(&Plan::name(count, number)).await.map_err(failed)?;
    assert_eq!(stream.read_u8().await.map_err(failed)?, b'!');
    round.arrived.fetch_add(1, Ordering::SeqCst);
    round.open.wait().await;
    let (up, down) = (plan.up(), plan.down());
    let (mut read, mut write) = tokio::io::split(stream);
    let sending = say(&mut write, up, plan.course == Course::UserBreaks);
    let came = match plan.course {
        Course::Both | Course::GuestFirst => {
            let (got, sent) = tokio::join!(receive_all(&mut read, down), sending);
            sent.map_err(failed)?;
            got
        }
        Course::UserFirst => {
            sending.await.map_err(failed)?;
            receive_all(&mut read, down).await
        }
        Course::Slow => {
            let reading = async {
                drop(round.through.acquire_many(SESSIONS as u32 / 3).await);
                receive_all(&mut read, down).await
            };
            let (got, sent) = tokio::join!(reading, sending);
            sent.map_err(failed)?;
            got
        }
        Course::UserBreaks => sending.await.map_err(failed),
        Course::GuestBreaks => {
            // A reset may overtake what was sent before, in TCP too; and what is written then fails.
            let ((_, ended), _) = tokio::join!(receive(&mut read, &down[..plan.down / 2]), sending);
            match ended.map_err(|error| error.to_string()) {
                Err(told) if told == "the VM reset the connection" => Ok(()),
                other => Err(format!("the user was told {other:?}")),
            }
        }
    };
    round.through.add_permits(1);
    came.map_err(|what| format!("down, {plan:?}: {what}"))
}

/// A guest and what was wrong with it.
struct Guest {
    port: u16,
    open: Arc<AtomicUsize>,
    wrong: Arc<Mutex<Vec<String>>>,
    _task: Task,
}

impl Guest {
    async fn start() -> Self {
        let (open, wrong) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let (counted, noted) = (open.clone(), wrong.clone());
        let (port, _task) = guest(move |stream| {
            let (counted, noted) = (counted.clone(), noted.clone());
            counted.fetch_add(1, Ordering::SeqCst);
            async move {
                if let Err(what) = guest_end(stream).await {
                    noted.lock().unwrap().push(what);
                }
                counted.fetch_sub(1, Ordering::SeqCst);
            }
        })
        .await;
        Self { port, open, wrong, _task }
    }
}

/// Each client is another's, as no account may have so many tickets.
fn account(number: usize) -> String {
    format!("alice-{}", number % CLIENTS)
}

async fn sessions(world: &Arc<World>, clients: &[Arc<Client>], guest: &Guest, count: usize) {
    // So many at once that a busy machine is done with each before its deadline.
    let opening = Arc::new(Semaphore::new(100));
    let round =
        Arc::new(Round { open: Barrier::new(SESSIONS + 1), arrived: AtomicUsize::new(0), through: Semaphore::new(0) });
    let mut users = JoinSet::new();
    for number in 0..SESSIONS {
        let (client, round, opening) = (clients[number % CLIENTS].clone(), round.clone(), opening.clone());
        let ticket = world.gate.ticket_of(&account(number), "w1", guest.port);
        users.spawn(async move {
            let place = opening.acquire().await;
            let stream = client.open(&ticket, LIMIT).await.map_err(|refusal| refusal.to_string())?;
            drop(place);
            user_end(stream, &round, (count, number)).await
        });
    }
    // All are open at once: none goes on before this says so.
    until("all sessions to be open", 4 * LIMIT, || {
        let (ended, arrived) = (users.try_join_next(), round.arrived.load(Ordering::SeqCst));
        async move {
            assert!(ended.is_none(), "one has ended before all were open: {ended:?}");
            if arrived == SESSIONS { Ok(()) } else { Err(arrived) }
        }
    })
    .await;
    let sessions_of = |client| world.relay.control().sessions_of(&account(client).parse().unwrap());
    let count_open = || (0..CLIENTS).map(sessions_of).sum::<usize>();
    assert_eq!(count_open(), SESSIONS);
    round.open.wait().await;
    let ended = tokio::time::timeout(4 * LIMIT, users.join_all()).await.expect("all sessions to end");
    let wrong: Vec<_> = ended.into_iter().filter_map(Result::err).collect();
    assert!(wrong.is_empty(), "{} of {SESSIONS}, such as {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    until("all ends to be closed", LIMIT, || async {
        let left = (count_open(), guest.open.load(Ordering::SeqCst));
        if left == (0, 0) { Ok(()) } else { Err(left) }
    })
    .await;
    let wrong = std::mem::take(&mut *guest.wrong.lock().unwrap());
    assert!(wrong.is_empty(), "{} of {SESSIONS}, such as {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
}

fn resident_kib() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4
}

/// Set in the process that this test has for itself.
const ALONE: &str = "ORCHARD_TEST_ALONE";

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_sessions_lose_and_cross_no_byte_and_leave_nothing() {
    if std::env::var_os(ALONE).is_none() {
        let mut test = Command::new(std::env::current_exe().unwrap());
        // Not by the name of this thread, which is another one where tests run one by one.
        let name = "tunnel::many::a_thousand_sessions_lose_and_cross_no_byte_and_leave_nothing";
        test.args([name, "--exact", "--nocapture"]).env(ALONE, "1").env("MALLOC_ARENA_MAX", "1");
        let output = tokio::process::Command::from(test).output().await.unwrap();
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        println!("{said}");
        return;
    }
    let limits = Limits { sessions_per_target: 2_000, ..Limits::default() };
    let world = Arc::new(World::with(limits).await);
    let guest = Guest::start().await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Arc::new(connect(&world.relay).await));
    }
    let metrics = tokio::runtime::Handle::current().metrics();
    let (mut tasks, mut memory, mut grown) = (0, 0, 0);
    // What leaks does so in each round; the allocator takes more once in a while, too.
    for count in 0..WARM + ROUNDS + FURTHER {
        if count >= WARM + ROUNDS && grown <= SESSIONS * LEFT_KIB {
            break;
        }
        sessions(&world, &clients, &guest, count).await;
        println!("round {count}: {} tasks, {} KiB", metrics.num_alive_tasks(), resident_kib());
        if count < WARM {
            (tasks, memory) = (metrics.num_alive_tasks(), resident_kib());
            continue;
        }
        until("all tasks to end", LIMIT, || async {
            let now = metrics.num_alive_tasks();
            if now <= tasks { Ok(()) } else { Err(format!("{now}, and {tasks} before")) }
        })
        .await;
        grown = usize::try_from(resident_kib().saturating_sub(memory)).unwrap();
        memory = resident_kib();
    }
    let most = SESSIONS * LEFT_KIB;
    assert!(grown <= most, "{grown} KiB were left by {SESSIONS} sessions and {most} are allowed");
}
