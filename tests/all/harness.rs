//! A whole cluster in one process, with the real command line as its client; everything ends when it is dropped.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use orchard::bus::access::CreateJoinToken;
use orchard::bus::client::{Bus, BusOptions, Login, Trust};
use orchard::bus::message::ApiCall;
use orchard::bus::subject;
use orchard::config::join::BootstrapToken;
use orchard::config::target::Target;
use orchard::controller::auth::BOOTSTRAP_ADMIN;
use orchard::controller::cluster::Timing;
use orchard::controller::store::Retention;
use orchard::controller::{BusSource, Controller, ControllerOptions, JumpOptions};
use orchard::identity;
use orchard::model::error::{ApiError, ErrorCode};
use orchard::model::resources::{LOGICAL_CORES, MEMORY_MIB};
use orchard::model::secret::Secret;
use orchard::model::vm::{Arch, Os};
use orchard::model::worker::WorkerInfo;
use orchard::model::{AccountName, WorkerName};
use orchard::worker::join::Candidate;
use orchard::worker::runtime::Runtime;
use orchard::worker::{Worker, WorkerOptions};

use crate::processes;
use crate::wait::until;

/// No command of these tests takes longer, a cold boot on a busy machine included.
pub const LIMIT: Duration = Duration::from_secs(180);

/// Any free port of the loopback interface.
pub fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// An address of the loopback interface that refuses connections: whoever holds the socket, which does not listen, keeps others
/// from getting its port.
pub fn refusing() -> (tokio::net::TcpSocket, SocketAddr) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(any_port()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// Who logs in to the bus.
#[derive(Clone, Debug)]
pub struct Access {
    pub url: String,
    pub trust: Trust,
    pub account: AccountName,
    pub token: Secret,
}

impl Access {
    pub fn account(&self) -> AccountName {
        self.account.clone()
    }

    /// The same cluster as somebody else.
    pub fn of(&self, account: &str, token: &Secret) -> Self {
        Self { account: account.parse().unwrap(), token: token.clone(), ..self.clone() }
    }

    /// How `user` logs in with `login`.
    pub fn options(&self, user: &str, login: Login) -> BusOptions {
        BusOptions {
            url: self.url.clone(),
            user: user.into(),
            trust: self.trust,
            login,
            client_name: "test".into(),
            patient: false,
        }
    }

    /// The same for the client library.
    pub fn target(&self) -> Target {
        let fingerprint = match self.trust {
            Trust::Certificate(fingerprint) => Some(fingerprint),
            _ => None,
        };
        Target { url: self.url.clone(), fingerprint, account: self.account.clone(), token: self.token.clone() }
    }

    pub async fn try_bus(&self) -> Result<Bus, ApiError> {
        Bus::connect(self.options(self.account.as_str(), Login::Password(self.token.clone()))).await
    }

    pub async fn bus(&self) -> Bus {
        // A client gives up after seconds, which a login may take on a machine that is busy with all other tests.
        let logged_in = until("the login", LIMIT, || async {
            match self.try_bus().await {
                Err(error) if error.code == ErrorCode::Unavailable => Err(error),
                ended => Ok(ended),
            }
        });
        logged_in.await.unwrap()
    }

    /// Calls a verb as this account.
    pub async fn call<C: ApiCall>(&self, request: &C) -> Result<C::Reply, ApiError> {
        self.bus().await.call(&self.account, request, LIMIT).await
    }

    /// Starts a worker of this cluster in this process: it joins first, unless it has.
    pub async fn worker(&self, name: &str, data_dir: &Path, runtime: Arc<dyn Runtime>) -> Worker {
        let name: WorkerName = name.parse().unwrap();
        let bus = BusOptions { patient: true, ..self.join(&name, data_dir).await };
        Worker::start(worker_options(bus, data_dir.to_owned(), &name, runtime)).await.unwrap()
    }

    /// A token with which one machine may join.
    pub async fn bootstrap_token(&self) -> BootstrapToken {
        let request = CreateJoinToken { ttl_s: 600, uses: 1, worker: None };
        let made = self.call(&request).await.unwrap();
        BootstrapToken {
            url: self.url.clone(),
            fingerprint: made.fingerprint.map(|print| print.parse().unwrap()),
            id: made.id.parse().unwrap(),
            secret: made.secret,
        }
    }

    /// How the worker `name` logs in, once it has joined.
    pub async fn join(&self, name: &WorkerName, data_dir: &Path) -> BusOptions {
        identity::make_private_dir(data_dir).unwrap();
        let token = self.bootstrap_token().await;
        let candidate = Candidate {
            data_dir,
            name: Some(name.clone()),
            default_name: None,
            machine_id: &machine_id(name),
            token: Some(token),
        };
        BusOptions { patient: false, ..candidate.become_member().await.unwrap().bus() }
    }

    /// The command line, as a user of this cluster would call it.
    pub fn cli(&self, home: &Path, arguments: &[&str]) -> tokio::process::Command {
        self.cli_within(&[], home, arguments)
    }

    /// The same, run by `prefix`, such as `ip netns exec NAME`.
    pub fn cli_within(&self, prefix: &[&str], home: &Path, arguments: &[&str]) -> tokio::process::Command {
        let mut command = processes::within(prefix);
        command
            .args(arguments)
            .env("ORCHARD_HOME", home)
            .env("ORCHARD_URL", &self.url)
            .env("ORCHARD_SERVICE_ACCOUNT_NAME", self.account.as_str())
            .env("ORCHARD_SERVICE_ACCOUNT_TOKEN", self.token.expose())
            // Whoever runs the tests may have one with many keys.
            .env("SSH_AUTH_SOCK", "")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if let Trust::Certificate(fingerprint) = self.trust {
            command.env("ORCHARD_FINGERPRINT", fingerprint.to_string());
        }
        command
    }
}

fn machine_id(worker: &WorkerName) -> String {
    format!("test-{worker}")
}

/// What a worker of these tests says of itself.
pub fn info(name: &WorkerName, runtime: &dyn Runtime) -> WorkerInfo {
    WorkerInfo {
        name: name.clone(),
        machine_id: machine_id(name),
        os: Os::Linux,
        arch: Arch::HOST,
        runtime: runtime.kind(),
        resources: [(LOGICAL_CORES, 64), (MEMORY_MIB, 64 * 1024)].into(),
        labels: [("zone".to_owned(), "test".to_owned())].into(),
        default_cpu: 1,
        default_memory: 128,
        version: "test".into(),
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

/// A worker that gives up soon once its key is refused.
pub fn worker_options(
    bus: BusOptions,
    data_dir: PathBuf,
    name: &WorkerName,
    runtime: Arc<dyn Runtime>,
) -> WorkerOptions {
    let give_up_after = Duration::from_millis(200);
    WorkerOptions {
        bus,
        data_dir,
        info: info(name, &*runtime),
        runtime,
        guard: None,
        sessions: None,
        give_up_after,
        keep_free: 0,
        delete_unknown_after: None,
        host_access: true,
    }
}

/// A controller on `data_dir` with its embedded broker, over TLS as always, on any free ports.
pub fn controller_options(data_dir: &Path) -> ControllerOptions {
    ControllerOptions {
        data_dir: data_dir.to_owned(),
        bus: BusSource::Embedded { listen: any_port(), tls: true, host: None },
        listen: any_port(),
        tunnel_host: None,
        timing: TIMING,
        certificate: None,
        jump: None,
        events_kept: Retention::default(),
        bootstrap_token: None,
    }
}

/// A controller with workers.
pub struct Cluster {
    pub access: Access,
    pub controller: Controller,
    outside: bool,
    pub workers: Vec<Worker>,
    pub dir: tempfile::TempDir,
}

/// Short, so that tests of silence are short too; long enough for a busy machine, where a beat may be seconds late.
pub const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(200),
    unseen: Duration::from_secs(5),
    lease: Duration::from_secs(60),
    fence: Duration::from_secs(10),
};

impl Cluster {
    /// A controller with its embedded broker, over TLS as always, and no worker yet.
    pub async fn start() -> Self {
        Self::start_on(controller_options(Path::new("")).bus, identity::new_token()).await
    }

    /// A controller on a given bus, where the first account and, if that is an outside one, workers log in with `token`.
    pub async fn start_on(bus: BusSource, token: Secret) -> Self {
        Self::start_with(bus, token, TIMING).await
    }

    /// The same with a heartbeat and lease of the test's own.
    pub async fn start_with(bus: BusSource, token: Secret, timing: Timing) -> Self {
        Self::start_as(ControllerOptions { bus, timing, ..controller_options(Path::new("")) }, token).await
    }

    /// With an SSH jump host.
    pub async fn start_jumping(jump: JumpOptions) -> Self {
        let options = ControllerOptions { jump: Some(jump), ..controller_options(Path::new("")) };
        Self::start_as(options, identity::new_token()).await
    }

    /// With these options, but for folder, host and token.
    async fn start_as(options: ControllerOptions, token: Secret) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let outside = matches!(options.bus, BusSource::Outside { .. });
        let controller = Controller::start(ControllerOptions {
            data_dir: dir.path().join("controller"),
            tunnel_host: Some("127.0.0.1".into()),
            bootstrap_token: (!outside).then(|| token.clone()),
            ..options
        })
        .await
        .unwrap();
        let access = Access {
            url: controller.bus_url().to_owned(),
            trust: controller.fingerprint().map_or(Trust::Plain, Trust::Certificate),
            account: BOOTSTRAP_ADMIN.parse().unwrap(),
            token,
        };
        Self { access, controller, outside, workers: Vec::new(), dir }
    }

    /// Adds a worker.
    pub async fn add_worker(&mut self, name: &str, runtime: Arc<dyn Runtime>) {
        let data_dir = self.worker_dir(name);
        let worker = if self.outside {
            // Its operator lets workers in, here with one password for all.
            let name: WorkerName = name.parse().unwrap();
            let login = Login::Password(self.access.token.clone());
            let bus = BusOptions { patient: true, ..self.access.options(&subject::worker_user(&name), login) };
            Worker::start(worker_options(bus, data_dir, &name, runtime)).await.unwrap()
        } else {
            self.access.worker(name, &data_dir, runtime).await
        };
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
