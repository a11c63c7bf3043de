//! Controller and workers as processes of their own, as an operator runs them.

use std::path::Path;
use std::process::Stdio;

use orchard::bus::client::Trust;
use orchard::config::Home;
use orchard::config::file::ContextFile;
use orchard::config::join::BootstrapToken;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::harness::{Access, LIMIT};
use crate::wait;

/// Where a controller listens that is to be started again at the same ports: an address of this machine that no other test's
/// sockets have, as one of them might take the port while the controller is away. Not every system has more than one.
pub const APART: &str = if cfg!(target_os = "linux") { "127.0.0.3:0" } else { "127.0.0.1:0" };

/// A serving `orchard` process; killed when dropped.
pub struct Server {
    pub child: Child,
    _lines: Lines<BufReader<ChildStdout>>,
    /// What it said until it was ready.
    pub said: Vec<String>,
}

impl Server {
    /// Starts `command` and waits until it says that it is ready.
    pub async fn start(command: Command) -> Self {
        Self::start_with(command, Stdio::null()).await
    }

    /// The same with something to read.
    pub async fn start_with(mut command: Command, input: Stdio) -> Self {
        command.stdin(input).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = Vec::new();
        let ready = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                let is_ready = line.contains(" is ready") || line.contains(" runs and keeps itself joined");
                said.push(line);
                if is_ready {
                    return true;
                }
            }
            false
        };
        let is_ready = tokio::time::timeout(LIMIT, ready).await.unwrap_or_else(|_| panic!("{command:?} is not ready"));
        if is_ready {
            // The lines that follow the first of a controller belong to it.
            while said.last().is_some_and(|line| !line.contains(" runs and "))
                && said.last().is_none_or(|line| !line.trim_start().starts_with("data"))
            {
                let Ok(Ok(Some(line))) = tokio::time::timeout(LIMIT, lines.next_line()).await else { break };
                said.push(line);
            }
        }
        assert!(is_ready, "{command:?} ended before it was ready: {said:?}, {:?}", child.wait().await);
        Self { child, _lines: lines, said }
    }

    /// The value that stands behind `key` in what it said.
    pub fn value(&self, key: &str) -> String {
        let mut words = self.said.iter().filter_map(|line| line.trim().strip_prefix(key)).map(str::trim);
        words.next().unwrap_or_else(|| panic!("no {key:?} in {:?}", self.said)).split(' ').next().unwrap().to_owned()
    }

    /// SIGKILL, and gone.
    pub async fn kill(mut self) {
        self.child.start_kill().unwrap();
        self.child.wait().await.unwrap();
    }
}

/// `orchard worker run` for the controller of `access`, reached at `url`, within `prefix` (such as `ip netns exec NAME`).
pub async fn worker(access: &Access, url: &str, folder: &Path, runtime: &str, prefix: &[&str]) -> Server {
    let token = BootstrapToken { url: url.to_owned(), ..access.bootstrap_token().await };
    let mut command = worker_command("far", folder, runtime, prefix);
    command.args(["--bootstrap-token", token.to_text().expose()]);
    Server::start(command).await
}

/// The same by name, without a token: as it is started once it is a member.
pub fn worker_command(name: &str, folder: &Path, runtime: &str, prefix: &[&str]) -> Command {
    std::fs::create_dir_all(folder).unwrap();
    let mut command = within(prefix);
    command.env("ORCHARD_HOME", folder).args(["worker", "run", "--name", name]);
    command.args(["--default-cpu", "1", "--default-memory", "128", "--runtime", runtime]);
    // What keeps sessions into its VMs outlives it, but no test for long.
    command.args(["--session-linger", "1s"]);
    command.arg("--data-dir").arg(folder.join("data"));
    command
}

/// The real binary, run by `prefix` if there is one.
pub fn within(prefix: &[&str]) -> Command {
    let words: Vec<&str> = prefix.iter().copied().chain([env!("CARGO_BIN_EXE_orchard")]).collect();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

/// `orchard controller run` on `data`, with these addresses.
pub async fn controller(home: &Path, data: &Path, bus: &str, tunnels: &str) -> (Server, Access) {
    // One that is started again has its ports from before, and for a moment another test's socket may have them.
    wait::until("the ports to be free", LIMIT, || async {
        let listener = std::net::TcpListener::bind(bus);
        listener.and(std::net::UdpSocket::bind(tunnels)).map(drop)
    })
    .await;
    let server = Server::start(controller_command(home, data, bus, tunnels)).await;
    (server, access(home))
}

/// The same, not yet started.
pub fn controller_command(home: &Path, data: &Path, bus: &str, tunnels: &str) -> Command {
    let mut command = within(&[]);
    command.env("ORCHARD_HOME", home).args([
        "controller",
        "run",
        "--bus-listen",
        bus,
        "--listen",
        tunnels,
        "--data-dir",
    ]);
    command.arg(data);
    command
}

/// What `orchard controller run` has saved for the user with this home folder.
pub fn access(home: &Path) -> Access {
    let contexts = ContextFile::new(Home::at(home)).load().unwrap();
    let context = contexts.get("bootstrap-context").unwrap().clone();
    Access {
        trust: Trust::of(&context.url, context.fingerprint),
        url: context.url,
        account: context.account.unwrap(),
        token: context.token.unwrap(),
    }
}
