//! Two thousand workers in a process of their own: the whole `Worker` each, with its folder, its key, its connection to the
//! bus and its data path, on a synthetic host without delays. The bench starts itself anew for this, so that nothing of it
//! counts as the controller's.

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use orchard::bus::access::CreateJoinToken;
use orchard::bus::client::{Bus, BusOptions};
use orchard::config::join::BootstrapToken;
use orchard::model::resources::{LOGICAL_CORES, MEMORY_MIB};
use orchard::model::vm::{Arch, Os, RuntimeKind};
use orchard::model::worker::WorkerInfo;
use orchard::model::{AccountName, WorkerName};
use orchard::worker::join::Candidate;
use orchard::worker::runtime::synthetic::Synthetic;
use orchard::worker::runtime::synthetic::behaviour::Behaviour;
use orchard::worker::runtime::synthetic::host::SyntheticHost;
use orchard::worker::runtime::synthetic::ledger::Ledger;
use orchard::worker::{GIVE_UP_AFTER, Worker, WorkerOptions};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::ground::{CALL, cpu_of};

pub const WORKERS: usize = 2_000;
/// The argument that makes the bench this process.
pub const ROLE: &str = "be-the-workers";
/// Machines that join at once, and how many share a token: one token lets in forty a second.
const JOINING: usize = 24;
const PER_TOKEN: usize = 100;

/// The process, as the bench holds it.
pub struct Fleet {
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

/// What its hosts have counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally {
    pub starts: u64,
    pub running: u64,
    pub most_copies: u64,
}

impl Fleet {
    /// Starts it and waits until every machine has joined.
    pub async fn start(bus: &Bus, account: &AccountName, url: &str, dir: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        // Each connection would look at all CAs of this machine before it takes the one certificate that it trusts.
        let no_cas = dir.with_extension("no-cas");
        std::fs::create_dir_all(&no_cas).unwrap();
        command.env("SSL_CERT_FILE", "/dev/null").env("SSL_CERT_DIR", no_cas).arg(ROLE).arg(dir);
        // The buffer that each data path receives into has 13 MB, of which hardly anything is ever touched. When glibc makes
        // it of memory that was used before, as it does from the second on, it writes zeros to all of it.
        command.env("MALLOC_MMAP_THRESHOLD_", "131072");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        for _ in 0..WORKERS / PER_TOKEN {
            let request = CreateJoinToken { ttl_s: 3_600, uses: u32::try_from(PER_TOKEN).unwrap(), worker: None };
            let made = bus.call(account, &request, CALL).await.unwrap();
            let token = BootstrapToken {
                url: url.to_owned(),
                fingerprint: made.fingerprint.map(|print| print.parse().unwrap()),
                id: made.id.parse().unwrap(),
                secret: made.secret,
            };
            input.write_all(format!("{}\n", token.to_text().expose()).as_bytes()).await.unwrap();
        }
        let mut fleet = Self { child, input, lines: BufReader::new(output).lines() };
        assert_eq!(fleet.lines.next_line().await.unwrap().as_deref(), Some("all are workers"));
        fleet
    }

    /// CPU time used so far.
    pub fn cpu(&self) -> Duration {
        cpu_of(self.child.id().unwrap())
    }

    /// What has happened on its hosts.
    pub async fn tally(&mut self) -> Tally {
        self.input.write_all(b"tally\n").await.unwrap();
        let line = self.lines.next_line().await.unwrap().unwrap();
        let mut numbers = line.split(' ').map(|word| word.parse().unwrap());
        let mut next = || numbers.next().unwrap();
        Tally { starts: next(), running: next(), most_copies: next() }
    }
}

/// The process itself: reads tokens, makes workers, and tells when it is asked.
pub fn be(dir: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut lines = std::io::stdin().lock().lines();
    let tokens: Vec<BootstrapToken> =
        lines.by_ref().take(WORKERS / PER_TOKEN).map(|line| line.unwrap().parse().unwrap()).collect();
    let ledger = Arc::<Ledger>::default();
    let members = futures_util::stream::iter(0..WORKERS)
        .map(|n| member(n, dir.join(format!("worker-{n:04}")), tokens[n % tokens.len()].clone(), ledger.clone()))
        .buffer_unordered(JOINING)
        .collect::<Vec<Worker>>();
    let workers = runtime.block_on(members);
    println!("all are workers");
    for _ in lines {
        let counts = ledger.counts();
        println!("{} {} {}", counts.starts, counts.running.len(), counts.most_copies);
    }
    drop(workers);
}

async fn member(number: usize, data_dir: PathBuf, token: BootstrapToken, ledger: Arc<Ledger>) -> Worker {
    orchard::identity::tls::install_provider();
    orchard::identity::make_private_dir(&data_dir).unwrap();
    let name: WorkerName = format!("worker-{number:04}").parse().unwrap();
    let machine_id = format!("machine-{number}");
    let candidate = Candidate {
        data_dir: &data_dir,
        name: Some(name.clone()),
        default_name: None,
        machine_id: &machine_id,
        token: Some(token),
    };
    let bus: BusOptions = candidate.become_member().await.unwrap().bus();
    let info = WorkerInfo {
        name,
        machine_id,
        os: Os::Linux,
        arch: Arch::HOST,
        runtime: RuntimeKind::Synthetic,
        resources: [(LOGICAL_CORES, 6), (MEMORY_MIB, 65_536)].into(),
        labels: [("zone".to_owned(), (number % 8).to_string())].into(),
        default_cpu: 1,
        default_memory: 1_024,
        version: "bench".into(),
    };
    let host = Arc::new(SyntheticHost::new(Behaviour::default(), number as u64, ledger));
    let runtime = Arc::new(Synthetic::on(host));
    let options = WorkerOptions {
        bus,
        data_dir,
        info,
        runtime,
        guard: None,
        sessions: None,
        give_up_after: GIVE_UP_AFTER,
        keep_free: 0,
        delete_unknown_after: None,
        host_access: true,
    };
    Worker::start(options).await.unwrap()
}
