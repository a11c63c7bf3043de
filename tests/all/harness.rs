//! A whole cluster in one process, with the real command line as its client; everything ends when it is dropped.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use orchard::bus::client::{Bus, BusOptions, Login, Trust};
use orchard::controller::auth::BOOTSTRAP_ADMIN;
use orchard::controller::cluster::Timing;
use orchard::controller::{BusSource, Controller, ControllerOptions};
use orchard::identity;
use orchard::model::resources::{LOGICAL_CORES, MEMORY_MIB};
use orchard::model::secret::Secret;
use orchard::model::vm::{Arch, Os};
use orchard::model::worker::WorkerInfo;
use orchard::model::{AccountName, WorkerName};
use orchard::worker::runtime::Runtime;
use orchard::worker::{Worker, WorkerOptions};

/// No command of these tests takes longer, a cold boot on a busy machine included.
pub const LIMIT: Duration = Duration::from_secs(180);

/// Any free port of the loopback interface.
pub fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Who logs in to the bus.
#[derive(Clone, Debug)]
pub struct Access {
    pub url: String,
    pub token: Secret,
}

impl Access {
    pub fn account(&self) -> AccountName {
        BOOTSTRAP_ADMIN.parse().unwrap()
    }

    pub async fn bus(&self) -> Bus {
        Bus::connect(BusOptions {
            url: self.url.clone(),
            user: BOOTSTRAP_ADMIN.into(),
            trust: Trust::Plain,
            login: Login::Password(self.token.clone()),
            client_name: "test".into(),
            patient: false,
        })
        .await
        .unwrap()
    }

    /// Starts a worker of this cluster in this process.
    pub async fn worker(&self, name: &str, data_dir: &Path, runtime: Arc<dyn Runtime>) -> Worker {
        let name: WorkerName = name.parse().unwrap();
        let info = WorkerInfo {
            name: name.clone(),
            machine_id: format!("test-{name}"),
            os: Os::Linux,
            arch: Arch::HOST,
            runtime: runtime.kind(),
            resources: [(LOGICAL_CORES, 64), (MEMORY_MIB, 64 * 1024)].into(),
            labels: [("zone".to_owned(), "test".to_owned())].into(),
            default_cpu: 1,
            default_memory: 128,
            version: "test".into(),
        };
        let bus = BusOptions {
            url: self.url.clone(),
            user: orchard::bus::subject::worker_user(&name),
            trust: Trust::Plain,
            login: Login::Password(self.token.clone()),
            client_name: format!("worker {name}"),
            patient: true,
        };
        Worker::start(WorkerOptions { bus, data_dir: data_dir.to_owned(), info, runtime }).await.unwrap()
    }

    /// The command line, as a user of this cluster would call it.
    pub fn cli(&self, home: &Path, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_orchard"));
        command
            .args(arguments)
            .env("ORCHARD_HOME", home)
            .env("ORCHARD_URL", &self.url)
            .env("ORCHARD_SERVICE_ACCOUNT_NAME", BOOTSTRAP_ADMIN)
            .env("ORCHARD_SERVICE_ACCOUNT_TOKEN", self.token.expose())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }
}

/// Runs a command to its end within [`LIMIT`].
pub async fn finish(mut command: tokio::process::Command) -> Output {
    tokio::time::timeout(LIMIT, command.output()).await.unwrap_or_else(|_| panic!("{command:?} hangs")).unwrap()
}

/// Standard output of a command that must succeed.
pub async fn succeed(command: tokio::process::Command) -> String {
    let shown = format!("{:?}", command.as_std().get_args().collect::<Vec<_>>());
    let output = finish(command).await;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{shown}: {}\nstdout: {out}\nstderr: {err}", output.status);
    out.into_owned()
}

/// A controller with workers.
pub struct Cluster {
    pub access: Access,
    _controller: Controller,
    pub workers: Vec<Worker>,
    pub dir: tempfile::TempDir,
}

/// Short, so that tests of silence are short too.
pub const TIMING: Timing = Timing { heartbeat: Duration::from_millis(200), lease: Duration::from_millis(1_000) };

impl Cluster {
    /// A controller with its embedded broker, and no worker yet.
    pub async fn start() -> Self {
        let token = identity::new_token();
        Self::start_on(BusSource::Embedded { listen: any_port(), token: token.clone() }, token).await
    }

    /// A controller on a given bus.
    pub async fn start_on(bus: BusSource, token: Secret) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let controller = Controller::start(ControllerOptions {
            data_dir: dir.path().join("controller"),
            bus,
            listen: any_port(),
            tunnel_host: Some("127.0.0.1".into()),
            timing: TIMING,
        })
        .await
        .unwrap();
        let access = Access { url: controller.bus_url().to_owned(), token };
        Self { access, _controller: controller, workers: Vec::new(), dir }
    }

    /// Adds a worker.
    pub async fn add_worker(&mut self, name: &str, runtime: Arc<dyn Runtime>) {
        let worker = self.access.worker(name, &self.worker_dir(name), runtime).await;
        self.workers.push(worker);
    }

    pub fn worker_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join("workers").join(name)
    }

    pub fn cli(&self, arguments: &[&str]) -> tokio::process::Command {
        self.access.cli(&self.dir.path().join("home"), arguments)
    }

    /// Runs a command that must succeed and yields its standard output.
    pub async fn run(&self, arguments: &[&str]) -> String {
        succeed(self.cli(arguments)).await
    }

    /// The same, parsed as JSON.
    pub async fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let text = self.run(&[arguments, &["--output", "json"]].concat()).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
    }
}
