//! `orchard broker run` as a process of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::wait::until;

/// Generous: machines that build at the same time are slow.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A broker that clients can connect to; killed when dropped.
pub struct Standalone {
    child: Child,
    pub address: SocketAddr,
    arguments: Vec<String>,
    folder: TempDir,
}

impl Standalone {
    /// Starts one on a free port.
    pub async fn start<S: AsRef<str>>(arguments: &[S]) -> Self {
        let arguments = arguments.iter().map(|argument| argument.as_ref().to_owned()).collect();
        let folder = tempfile::tempdir().unwrap();
        let (child, address) = start(command(folder.path()), "127.0.0.1:0", &arguments, folder.path()).await.unwrap();
        Self { child, address, arguments, folder }
    }

    /// The same under a soft limit of open files.
    pub async fn start_with_files(files: u32, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let folder = tempfile::tempdir().unwrap();
        let command = command_with_files(files, folder.path());
        let (child, address) = start(command, "127.0.0.1:0", &arguments, folder.path()).await.unwrap();
        Self { child, address, arguments, folder }
    }

    /// Stops it and starts it again on the same port.
    pub async fn restart(&mut self) {
        self.stop(Signal::TERM).await;
        self.start_again().await;
    }

    /// Starts it on the same port, after it has ended.
    pub async fn start_again(&mut self) {
        let address = self.address.to_string();
        let again = || start(command(self.folder.path()), &address, &self.arguments, self.folder.path());
        // For a moment another test's socket may have the port.
        self.child = until("the broker to be back", PATIENCE, again).await.0;
    }

    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    pub fn ports_file(&self) -> PathBuf {
        self.folder.path().join("ports.json")
    }

    /// What it has said on standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), signal).unwrap();
    }

    /// Sends `signal` and waits for the end.
    pub async fn stop(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.ended().await
    }

    pub async fn ended(&mut self) -> ExitStatus {
        let ended = tokio::time::timeout(PATIENCE, self.child.wait()).await;
        ended.unwrap_or_else(|_| panic!("the broker does not end: {}", self.log())).unwrap()
    }
}

/// The command, with its standard error in a file.
pub fn command(folder: &Path) -> Command {
    with_log(Command::new(env!("CARGO_BIN_EXE_orchard")), folder)
}

/// The same under a soft limit of open files.
fn command_with_files(files: u32, folder: &Path) -> Command {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &format!("ulimit -Sn {files} && exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_orchard")]);
    with_log(shell, folder)
}

fn with_log(mut command: Command, folder: &Path) -> Command {
    let log = std::fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
    command.env_clear().env("ORCHARD_HOME", folder).args(["broker", "run"]).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command
}

async fn start(
    mut command: Command,
    listen: &str,
    arguments: &Vec<String>,
    folder: &Path,
) -> Result<(Child, SocketAddr), String> {
    let ports = folder.join("ports.json");
    // One that was killed has left it: what is read must be of this one.
    let _ = std::fs::remove_file(&ports);
    let mut child = command.args(["--listen", listen, "--ports-file"]).arg(&ports).args(arguments).spawn().unwrap();
    let said = || std::fs::read_to_string(folder.join("log")).unwrap();
    let mut ended = None;
    let read = until("the ports file", PATIENCE, || {
        ended = child.try_wait().unwrap();
        let text = std::fs::read_to_string(&ports).map_err(|_| said());
        std::future::ready(match (ended, text) {
            (Some(_), _) => Ok(String::new()),
            (None, text) => text,
        })
    })
    .await;
    match ended {
        Some(status) => Err(format!("ended with {status}: {}", said())),
        None => {
            let ports: serde_json::Value = serde_json::from_str(&read).unwrap(); // never half of it
            Ok((child, ports["client"].as_str().unwrap().parse().unwrap()))
        }
    }
}
