//! The agent in a process of its own: the bench starts itself anew for it, so that nothing of the bench counts as the agent's.

use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use orchard::bus::access::NewJoinToken;
use orchard::bus::client::Bus;
use orchard::bus::message::GetInfo;
use orchard::config::join::BootstrapToken;
use orchard::controller::Controller;
use orchard::identity;
use orchard::model::WorkerName;
use orchard::model::resources::{LOGICAL_CORES, MEMORY_MIB};
use orchard::model::secret::Secret;
use orchard::model::vm::{Arch, Os, RuntimeKind};
use orchard::model::worker::WorkerInfo;
use orchard::worker::join::Candidate;
use orchard::worker::runtime::synthetic::Synthetic;
use orchard::worker::{GIVE_UP_AFTER, Worker, WorkerOptions};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::ground::CALL;
use super::{account, login};

/// The argument that makes the bench this process.
const ROLE: &str = "be-the-agent";

/// The process, as the bench holds it.
pub struct Agent {
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Agent {
    /// Starts it and waits until it has joined.
    pub async fn start(controller: &Controller, made: NewJoinToken, token: &Secret, dir: &Path, vms: usize) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg(ROLE).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let url = controller.bus_url().to_owned();
        let fingerprint = controller.fingerprint();
        let join = BootstrapToken { url: url.clone(), fingerprint, id: made.id.parse().unwrap(), secret: made.secret };
        let lines = [
            join.to_text().expose().to_owned(),
            dir.to_str().unwrap().to_owned(),
            vms.to_string(),
            url,
            fingerprint.unwrap().to_string(),
            token.expose().to_owned(),
        ];
        input.write_all(format!("{}\n", lines.join("\n")).as_bytes()).await.unwrap();
        let mut agent = Self { child, input, lines: BufReader::new(output).lines() };
        assert_eq!(agent.lines.next_line().await.unwrap().as_deref(), Some("joined"));
        agent
    }

    fn pid(&self) -> u32 {
        self.child.id().unwrap()
    }

    /// CPU time used so far by its threads, to the nanosecond.
    pub fn cpu(&self) -> Duration {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let of = |thread: PathBuf| -> Option<u64> {
            std::fs::read_to_string(thread.join("schedstat")).ok()?.split_whitespace().next()?.parse().ok()
        };
        Duration::from_nanos(threads.filter_map(|thread| of(thread.ok()?.path())).sum())
    }

    /// Memory in MiB.
    pub fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1_024.0
    }

    /// Has it ask the controller so many times for the least there is to ask.
    pub async fn ask(&mut self, times: usize) {
        self.input.write_all(format!("ask {times}\n").as_bytes()).await.unwrap();
        assert_eq!(self.lines.next_line().await.unwrap().as_deref(), Some("asked"));
    }

    pub async fn end(mut self) {
        self.child.start_kill().unwrap();
        self.child.wait().await.unwrap();
    }
}

pub fn is_role(arguments: &[String]) -> bool {
    arguments.iter().any(|argument| argument == ROLE)
}

/// The process itself.
pub fn be() {
    let mut lines = std::io::stdin().lock().lines().map(Result::unwrap);
    let mut next = || lines.next().unwrap();
    let token: BootstrapToken = next().parse().unwrap();
    let (dir, vms) = (PathBuf::from(next()), next().parse().unwrap());
    let (url, fingerprint, password) = (next(), next(), next());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let worker = runtime.block_on(join(token, dir, vms));
    println!("joined");
    for line in lines {
        let Some(times) = line.strip_prefix("ask ") else { continue };
        runtime.block_on(async {
            let bus = Bus::connect(login(&url, &fingerprint, &password)).await.unwrap();
            for _ in 0..times.parse::<usize>().unwrap() {
                bus.call(&account(), &GetInfo {}, CALL).await.unwrap();
            }
        });
        println!("asked");
    }
    drop(worker);
}

async fn join(token: BootstrapToken, data_dir: PathBuf, vms: u64) -> Worker {
    orchard::identity::tls::install_provider();
    identity::make_private_dir(&data_dir).unwrap();
    let name: WorkerName = "w".parse().unwrap();
    let candidate = Candidate {
        data_dir: &data_dir,
        name: Some(name.clone()),
        default_name: None,
        machine_id: "bench",
        token: Some(token),
    };
    let bus = candidate.become_member().await.unwrap().bus();
    let info = WorkerInfo {
        name,
        machine_id: "bench".into(),
        os: Os::Linux,
        arch: Arch::HOST,
        runtime: RuntimeKind::Synthetic,
        resources: [(LOGICAL_CORES, vms), (MEMORY_MIB, vms * 1_024)].into(),
        labels: Default::default(),
        default_cpu: 1,
        default_memory: 1_024,
        version: "bench".into(),
    };
    let options = WorkerOptions {
        keep_free: 0,
        bus,
        data_dir,
        info,
        runtime: Arc::new(Synthetic::new()),
        guard: None,
        sessions: None,
        give_up_after: GIVE_UP_AFTER,
        delete_unknown_after: None,
        host_access: true,
    };
    Worker::start(options).await.unwrap()
}
