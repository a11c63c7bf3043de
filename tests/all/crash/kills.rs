//! A controller that is killed two hundred times in a row on one data folder, at moments that nobody chose, while clients
//! change things and two workers run VMs. After each time everything that was ever acknowledged is held against what there
//! is. `ORCHARD_TEST_SEED` repeats the moments of one run as well as threads and disk let them be repeated.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orchard::bus::client::BusOptions;
use orchard::model::WorkerName;
use orchard::worker::Worker;
use orchard::worker::runtime::synthetic::Synthetic;
use orchard::worker::runtime::synthetic::behaviour::Behaviour;
use orchard::worker::runtime::synthetic::host::SyntheticHost;
use orchard::worker::runtime::synthetic::ledger::Ledger;
use tokio::process::Command;
use tokio::sync::oneshot;

use super::checker::Checker;
use super::load::{Client, Dice, load};
use crate::harness::{self, Access, LIMIT};
use crate::processes::{self, Server};
use crate::wait;

const KILLS: usize = 200;
const CLIENTS: usize = 24;
/// One kill in so many comes while the controller starts.
const EARLY: u64 = 5;
/// The clients are at work for so long at most before a kill, or for as long as the controller took to start.
const LONGEST_LOAD: Duration = Duration::from_millis(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_two_hundred_times_under_load_the_controller_keeps_every_acknowledgement() {
    let seed = std::env::var("ORCHARD_TEST_SEED").map_or_else(|_| random(), |text| text.parse().unwrap());
    println!("ORCHARD_TEST_SEED={seed}");
    let mut dice = Dice(seed);
    let dir = tempfile::tempdir().unwrap();
    let mut ground = Ground::prepare(dir.path()).await;
    let (mut checker, mut reached, mut busy, mut started) = (Checker::default(), 0, 0, Vec::new());
    let mut clients: Vec<Client> =
        (0..CLIENTS).map(|n| Client::new(n, dice.next(), (n == 0).then(|| ground.workers[1].name.clone()))).collect();

    for _ in 0..KILLS {
        if dice.below(EARLY) == 0 {
            let usual = started.iter().max().copied().unwrap_or(Duration::from_millis(100));
            let early = usual.mul_f64(dice.below(1_000) as f64 / 1_000.0);
            ground.start_and_kill(early).await;
            continue;
        }
        let began = Instant::now();
        let server = Server::start(ground.command()).await;
        started.push(began.elapsed());
        // The store as the controller itself recovered it.
        checker.check(&checker.ask(&ground.access).await, &mut clients);
        if dice.below(3) == 0 {
            let which = dice.below(2) as usize;
            ground.workers[which].restart().await;
        }
        let ((stop, stopped), (begin, begun)) = (oneshot::channel(), oneshot::channel());
        let access = ground.access.clone();
        let working = tokio::task::spawn_blocking(move || load(clients, access, begin, stopped));
        let _ = begun.await;
        // Longer where the machine is slow: what takes the controller so long takes its clients as long.
        let longest = LONGEST_LOAD.max(started[started.len() / 2]);
        let moment = longest.mul_f64(dice.below(1_000) as f64 / 1_000.0);
        let _ = tokio::time::timeout(moment, std::future::pending::<()>()).await;
        server.kill().await;
        let _ = stop.send(());
        clients = working.await.unwrap();
        reached += usize::from(clients.iter().any(|client| !client.acknowledged.is_empty()));
        busy += usize::from(clients.iter().any(|client| client.doubt.is_some()));
        if dice.below(2) == 0 {
            // The store as the dead one left it.
            checker.check(&checker.read_store(&ground.data), &mut clients);
        }
    }

    let _server = Server::start(ground.command()).await;
    checker.check(&checker.ask(&ground.access).await, &mut clients);
    ground.settle(&checker).await;
    checker.check(&checker.ask(&ground.access).await, &mut clients);
    started.sort();
    println!(
        "{KILLS} kills, {reached} with acknowledgements before them, {busy} with requests under way; {} acknowledged, and of \
         those that nobody answered {} were done and {} not; the controller starts in {:?}, at most {:?}",
        checker.acknowledged,
        checker.unanswered.0,
        checker.unanswered.1,
        started[started.len() / 2],
        started[started.len() - 1],
    );
    // What proves nothing is no proof: there must have been load, and kills that met it.
    assert!(busy > KILLS / 2 && reached > KILLS / 3, "no load: {busy} busy, {reached} reached");
    assert!(checker.acknowledged > 5 * KILLS as u64, "little load: {} acknowledged", checker.acknowledged);
    for worker in ground.workers {
        worker.stop().await;
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).unwrap();
    u64::from_ne_bytes(bytes)
}

/// Where it all happens: one data folder, two workers.
struct Ground {
    home: PathBuf,
    data: PathBuf,
    addresses: [String; 2],
    access: Access,
    ledger: Arc<Ledger>,
    workers: Vec<Machine>,
}

/// A machine with a worker that can be started anew.
struct Machine {
    name: WorkerName,
    folder: PathBuf,
    bus: BusOptions,
    host: Arc<SyntheticHost>,
    worker: Option<Worker>,
}

impl Ground {
    async fn prepare(dir: &Path) -> Self {
        let (home, data) = (dir.join("home"), dir.join("controller"));
        let (server, access) = processes::controller(&home, &data, processes::APART, processes::APART).await;
        let addresses = [server.value("bus").replace("tls://", ""), server.value("tunnels")];
        let ledger = Arc::<Ledger>::default();
        let mut workers = Vec::new();
        for (n, name) in ["steady", "paused"].into_iter().enumerate() {
            let (name, folder): (WorkerName, _) = (name.parse().unwrap(), dir.join(name));
            let bus = BusOptions { patient: true, ..access.join(&name, &folder).await };
            let host = Arc::new(SyntheticHost::new(Behaviour::default(), n as u64, ledger.clone()));
            let mut machine = Machine { name, folder, bus, host, worker: None };
            machine.restart().await;
            workers.push(machine);
        }
        wait::until("both workers to register", LIMIT, || async {
            let seen = access.call(&orchard::bus::message::ListWorkers::default()).await;
            let count = seen.as_ref().map_or(0, |page| page.workers.len());
            if count == workers.len() { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await;
        server.kill().await;
        Self { home, data, addresses, access, ledger, workers }
    }

    fn command(&self) -> Command {
        let mut command = processes::controller_command(&self.home, &self.data, &self.addresses[0], &self.addresses[1]);
        command.stderr(Stdio::null());
        command
    }

    /// Kills a controller that has had so much time.
    async fn start_and_kill(&self, after: Duration) {
        let mut child = self.command().stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn().unwrap();
        let ended = tokio::time::timeout(after, child.wait()).await;
        assert!(ended.is_err(), "the controller does not start: {ended:?}");
        child.start_kill().unwrap();
        child.wait().await.unwrap();
    }

    /// Waits until all VMs run and nothing else does, and sees that each was started once.
    async fn settle(&mut self, checker: &Checker) {
        for worker in &mut self.workers {
            worker.restart().await;
        }
        let alive = checker.alive();
        wait::until("what was asked for to run, and nothing else", LIMIT, || async {
            let vms = super::list(&self.access).await.map_err(|error| error.to_string())?;
            let running: BTreeSet<_> = self.ledger.counts().running.into_keys().collect();
            // More than both workers may hold wait while one of them takes none.
            let waiting: Vec<_> = vms.iter().filter(|vm| vm.worker.is_none()).map(|vm| vm.uid).collect();
            let unready = vms.iter().filter(|vm| !vm.ready && vm.worker.is_some()).count();
            let wanted: BTreeSet<_> = alive.iter().filter(|uid| !waiting.contains(uid)).copied().collect();
            let found: usize = self.workers.iter().map(|machine| machine.host.found().len()).sum();
            if unready == 0 && running == wanted && found == wanted.len() {
                Ok(())
            } else {
                Err(format!("{unready} not ready, {} run of {}, {found} on hosts", running.len(), wanted.len()))
            }
        })
        .await;
        let counts = self.ledger.counts();
        let again: Vec<_> = counts.starts_of.iter().filter(|(_, starts)| **starts != 1).collect();
        assert!(again.is_empty(), "started more than once: {again:?}");
        assert_eq!((counts.most_copies, counts.doubled), (1, Vec::new()));
        println!("{} VMs were started, each once; {} run", counts.starts, counts.running.len());
    }
}

impl Machine {
    async fn restart(&mut self) {
        if let Some(worker) = self.worker.take() {
            worker.shutdown().await;
        }
        let runtime = Arc::new(Synthetic::on(self.host.clone()));
        let options = harness::worker_options(self.bus.clone(), self.folder.clone(), &self.name, runtime);
        // The tasks of its VMs let go of the folder one by one.
        let start = || async { Worker::start(options.clone()).await };
        self.worker = Some(wait::until("the folder of the worker before", LIMIT, start).await);
    }

    async fn stop(self) {
        if let Some(worker) = self.worker {
            worker.shutdown().await;
        }
    }
}
