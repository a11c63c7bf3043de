//! Two thousand workers and ten thousand VMs: what the controller takes for them, how soon a VM runs among them, and how
//! soon all are back when it was killed.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use orchard::bus::client::{Bus, BusOptions};
use orchard::bus::message::{CreateVm, DeleteVm, GetInfo, ListWorkers, decode};
use orchard::bus::subject;
use orchard::model::event::{Event, EventNumber, EventObject, EventType};
use orchard::model::worker::WorkerState;
use orchard::model::{AccountName, VmName, WorkerName};
use tokio::sync::mpsc;

use super::ground::{CALL, Place, Server, at, at_most, load_average, millis, spec};
use super::workers::{Fleet, WORKERS};

const VMS: usize = 10_000;
/// Events in the store before the restart.
const EVENTS: u64 = 100_000;
/// Requests under way when many VMs are made or deleted.
const IN_FLIGHT: usize = 64;
/// Lone creates measured in the full fleet.
const LONE: usize = 500;
/// For so long the quiet fleet is watched.
const WATCHED: Duration = Duration::from_secs(30);
/// Nothing here takes longer unless it is broken.
const LIMIT: Duration = Duration::from_secs(300);
/// Restarts of the controller without its workers; the median counts.
const RESTARTS: usize = 9;

pub async fn run() {
    println!("{WORKERS} workers and {VMS} VMs (load average before: {}):", load_average());
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new(dir.path());
    if place.is_loopback() {
        println!("  this machine is in no network, so workers come over loopback, which takes 24 KB more for each");
    }
    let mut server = place.start();
    let empty = server.ready().await;
    let (account, bus) = server.bus().await;
    let began = Instant::now();
    let mut fleet = Fleet::start(&bus, &account, server.login().1.url.as_str(), &dir.path().join("workers")).await;
    all_online(&bus, &account, WORKERS).await;
    println!(
        "  an empty controller is ready in {empty:.1?}; {WORKERS} workers have joined it in {:.1?}",
        began.elapsed()
    );
    println!("  memory with them and no VM: {:.1} MiB", server.memory().0);

    let mut stories = Stories::follow(&bus).await;
    let began = Instant::now();
    create_all(&bus, &account, "vm", VMS).await;
    let acknowledged = began.elapsed();
    stories.until(VMS).await;
    println!("  {VMS} creates, {IN_FLIGHT} at once, were acknowledged in {acknowledged:.1?}");
    at_most("until they all ran", began.elapsed().as_secs_f64(), 30.0, "s");
    println!("  memory after that: {:.1} MiB", server.memory().0);

    let mut times = Vec::new();
    for n in 0..LONE {
        let name: VmName = format!("lone-{n}").parse().unwrap();
        let began = Instant::now();
        bus.call(&account, &CreateVm { name: name.clone(), spec: spec(), key: None }, CALL).await.unwrap();
        stories.until_running(&name).await;
        times.push(began.elapsed());
        bus.call(&account, &DeleteVm { name }, CALL).await.unwrap();
    }
    println!("  a lone VM runs after p50 {:.1?}, p90 {:.1?}", at(&times, 500), at(&times, 900));
    at_most("create to running among them, p99", millis(at(&times, 990)), 20.0, "ms");

    // The events that a restart is measured with, and time for the fleet to come to rest.
    let mut batch = 0;
    while bus.call(&account, &GetInfo {}, CALL).await.unwrap().last_event < EVENTS {
        let prefix = format!("more-{batch}");
        create_all(&bus, &account, &prefix, 1_000).await;
        stories.until(1_000).await;
        delete_all(&bus, &account, &prefix, 1_000).await;
        batch += 1;
    }
    drop(stories);
    quiet(&bus, &account, &server).await;

    let before = fleet.tally().await;
    restart_with_fleet(&place, server, &account).await;
    assert_eq!(before, fleet.tally().await, "a restart of the controller touched VMs");
    println!("  not one VM was touched: {before:?}");
    drop(fleet);
    restarts_alone(&place).await;
}

/// Only the workers, without VMs: how they come back, second by second. For whoever looks for what keeps them.
pub async fn come_back() {
    println!("{WORKERS} workers come back (load average before: {}):", load_average());
    let dir = tempfile::tempdir().unwrap();
    let place = Place::new(dir.path());
    let mut server = place.start();
    server.ready().await;
    let (account, bus) = server.bus().await;
    let began = Instant::now();
    let mut fleet = Fleet::start(&bus, &account, server.login().1.url.as_str(), &dir.path().join("workers")).await;
    all_online(&bus, &account, WORKERS).await;
    println!("  they have joined in {:.1?}", began.elapsed());
    println!("  memory with them: {:.1} MiB", server.memory().0);
    for _ in 0..3 {
        let (login, before) = (server.login().1, fleet.tally().await);
        server.kill().await;
        let fleet_cpu = fleet.cpu();
        server = place.start();
        let (bus, answered) = first_answer(&login, &account).await;
        println!("  first answer after {:.1?}", answered.duration_since(server.began));
        let mut next = Duration::from_secs(1);
        let mut online = Online::follow(&bus, &account).await;
        loop {
            let (back, elapsed) = (online.names.len(), server.began.elapsed());
            if elapsed >= next || back >= WORKERS {
                let (cpu, fleet_cpu) = (server.cpu(), fleet.cpu() - fleet_cpu);
                println!("  {elapsed:.1?}: {back} are back; CPU so far {cpu:.1?}, the workers' {fleet_cpu:.1?}");
                next = elapsed + Duration::from_secs(1);
            }
            if back >= WORKERS {
                break;
            }
            online.changed().await;
        }
        assert_eq!(before, fleet.tally().await);
    }
}

/// What heartbeats cost, and nothing else.
async fn quiet(bus: &Bus, account: &AccountName, server: &Server) {
    all_online(bus, account, WORKERS).await;
    let _ = tokio::time::timeout(Duration::from_secs(10), std::future::pending::<()>()).await;
    let (cpu, began) = (server.cpu(), Instant::now());
    let _ = tokio::time::timeout(WATCHED, std::future::pending::<()>()).await;
    let share = (server.cpu() - cpu).as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
    println!("  load average while the fleet only beats: {}", load_average());
    at_most("CPU of controller and broker, of one core", share, 15.0, "%");
    let (now, highest) = server.memory();
    at_most("memory of controller and broker", now, 250.0, "MiB");
    println!("  memory at its highest: {highest:.1} MiB");
}

async fn restart_with_fleet(place: &Place, server: Server, account: &AccountName) {
    let (_, login) = server.login();
    server.kill().await;
    let mut server = place.start();
    let (bus, answered) = first_answer(&login, account).await;
    let serving = answered.duration_since(server.began);
    all_online(&bus, account, WORKERS).await;
    let back = server.began.elapsed();
    at_most("killed and started, all workers back", back.as_secs_f64(), 5.0, "s");
    at_most("killed and started, first answer, with all workers at the door", millis(serving), 150.0, "ms");
    server.ready().await;
    server.kill().await;
}

async fn restarts_alone(place: &Place) {
    let mut times = Vec::new();
    let mut said = Vec::new();
    for _ in 0..RESTARTS {
        let mut server = place.start();
        let (account, login) = server.login();
        times.push(first_answer(&login, &account).await.1.duration_since(server.began));
        said.push(server.ready().await);
        server.kill().await;
    }
    let size = std::fs::metadata(place.data.join("db/data.mdb")).map_or(0, |found| found.len());
    println!(
        "  restarts with {VMS} VMs and {EVENTS} events, {} MiB: {times:.0?}, says so after {said:.0?}",
        size >> 20
    );
    at_most("killed and started, first answer, median", millis(at(&times, 500)), 150.0, "ms");
}

/// The first answer that anybody gets: when, and who got it. Where thousands come from one address, whoever comes later
/// waits for its turn.
async fn first_answer(login: &BusOptions, account: &AccountName) -> (Bus, Instant) {
    let began = Instant::now();
    loop {
        if let Ok(bus) = Bus::connect(login.clone()).await
            && bus.call(account, &GetInfo {}, CALL).await.is_ok()
        {
            return (bus, Instant::now());
        }
        assert!(began.elapsed() < LIMIT, "the controller does not come back");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until so many workers are online.
async fn all_online(bus: &Bus, account: &AccountName, wanted: usize) {
    let mut online = Online::follow(bus, account).await;
    while online.names.len() < wanted {
        online.changed().await;
    }
}

/// The workers that are online: those that a list shows once, and what events tell since. A list of all costs some
/// milliseconds on the same processors, so it is not asked for again and again.
struct Online {
    names: HashSet<WorkerName>,
    events: async_nats::Subscriber,
    /// What is told up to this number the list knows: after a crash some of it is published again.
    known: EventNumber,
}

impl Online {
    async fn follow(bus: &Bus, account: &AccountName) -> Self {
        // First, so that nothing is missed between.
        let events = bus.subscribe(&subject::events_of_kind("worker")).await.unwrap();
        let known = bus.call(account, &GetInfo {}, CALL).await.unwrap().last_event;
        let mut names = HashSet::new();
        let mut request = ListWorkers::default();
        loop {
            let page = bus.call(account, &request, CALL).await.unwrap();
            // A session of this controller: after its restart, all are unseen until they have said hello.
            let online = page.workers.iter().filter(|view| view.state == WorkerState::Online);
            names.extend(online.map(|view| view.worker.info.name.clone()));
            request.after = page.workers.last().map(|view| view.worker.info.name.clone());
            if !page.more {
                return Self { names, events, known };
            }
        }
    }

    /// Waits until another one is online, or one is no longer.
    async fn changed(&mut self) {
        loop {
            let message = tokio::time::timeout(LIMIT, self.events.next()).await;
            let message = message.unwrap_or_else(|_| panic!("only {} workers are online", self.names.len()));
            let event = decode::<Event>(&message.expect("the bus is gone").payload).unwrap();
            let EventObject::Worker { name } = event.object else { continue };
            if event.number <= self.known {
                continue;
            }
            let changed = match event.kind {
                EventType::Online => self.names.insert(name),
                EventType::Unseen | EventType::Gone => self.names.remove(&name),
                _ => false,
            };
            if changed {
                return;
            }
        }
    }
}

async fn create_all(bus: &Bus, account: &AccountName, prefix: &str, count: usize) {
    let create = |n: usize| {
        let request = CreateVm { name: format!("{prefix}-{n}").parse().unwrap(), spec: spec(), key: None };
        async move { bus.call(account, &request, CALL).await.unwrap() }
    };
    futures_util::stream::iter(0..count).map(create).buffer_unordered(IN_FLIGHT).for_each(async |_| ()).await;
}

async fn delete_all(bus: &Bus, account: &AccountName, prefix: &str, count: usize) {
    let delete = |n: usize| {
        let request = DeleteVm { name: format!("{prefix}-{n}").parse().unwrap() };
        async move { bus.call(account, &request, CALL).await.unwrap() }
    };
    futures_util::stream::iter(0..count).map(delete).buffer_unordered(IN_FLIGHT).for_each(async |_| ()).await;
}

/// What events tell of VMs, read by a task of its own so that none is dropped.
struct Stories {
    running: mpsc::Receiver<VmName>,
    early: HashMap<VmName, usize>,
    _task: orchard::task::Task,
}

impl Stories {
    async fn follow(bus: &Bus) -> Self {
        let mut events = bus.subscribe(&subject::events_of_kind("vm")).await.unwrap();
        let (sender, running) = mpsc::channel(4 * VMS);
        let task = orchard::task::spawn(async move {
            let mut known = HashSet::new();
            while let Some(message) = events.next().await {
                if !message.subject.ends_with(".running") {
                    continue;
                }
                let event = decode::<Event>(&message.payload).unwrap();
                if let EventObject::Vm { name, uid, .. } = event.object
                    && event.kind == EventType::Running
                    && known.insert(uid)
                    && sender.send(name).await.is_err()
                {
                    return;
                }
            }
        });
        Self { running, early: HashMap::new(), _task: task }
    }

    async fn next(&mut self) -> VmName {
        tokio::time::timeout(LIMIT, self.running.recv()).await.expect("VMs do not run").expect("the bus is gone")
    }

    async fn until(&mut self, count: usize) {
        for _ in 0..count {
            self.next().await;
        }
    }

    async fn until_running(&mut self, name: &VmName) {
        while self.early.remove(name).is_none() {
            let running = self.next().await;
            *self.early.entry(running).or_default() += 1;
        }
    }
}

/// Folders of workers, for whoever starts the process.
pub fn is_role(arguments: &[String]) -> Option<&Path> {
    let at = arguments.iter().position(|argument| argument == super::workers::ROLE)?;
    arguments.get(at + 1).map(Path::new)
}
