//! One worker's machine: its process, its tool, its guests and its link.

use std::fs::File;
use std::path::{Path, PathBuf};

use orchard::config::join::BootstrapToken;
use orchard::model::CopyId;
use orchard::worker::runtime::tart::names::parse_disk_name;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;

use super::link::Link;
use super::schedule::Part;
use crate::harness::Access;
use crate::processes::{self, Server};
use crate::tart::guest::Guest;
use crate::tart::host::Host;

pub struct Node {
    pub name: String,
    pub host: Host,
    pub link: Link,
    folder: PathBuf,
    server: Option<Server>,
    _guest: Guest,
}

impl Node {
    /// A machine whose worker joins the cluster.
    pub async fn join(access: &Access, bus: String, name: &str, folder: PathBuf) -> Self {
        let host = Host::tart();
        let guest = Guest::of(&host).await;
        let link = Link::to(bus).await;
        let mut node = Self { name: name.to_owned(), host, link, folder, server: None, _guest: guest };
        let url = format!("tls://{}", node.link.addr);
        let token = BootstrapToken { url, ..access.bootstrap_token().await };
        let mut command = node.command();
        command.args(["--bootstrap-token", token.to_text().expose()]);
        node.server = Some(Server::start(command).await);
        node
    }

    fn command(&self) -> Command {
        let path = format!("PATH={}:{}", self.host.folder().display(), std::env::var("PATH").unwrap());
        let mut command = processes::worker_command(&self.name, &self.folder, "tart", &["env", &path]);
        command.args(["--resources", "org.cirruslabs.logical-cores=16,org.cirruslabs.memory-mib=16384"]);
        command.stderr(File::options().create(true).append(true).open(self.log()).unwrap());
        command
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub async fn start(&mut self) {
        if self.server.is_none() {
            self.server = Some(Server::start(self.command()).await);
        }
    }

    pub async fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill().await;
        }
    }

    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.server.as_ref().and_then(|server| server.child.id()) {
            send(i32::try_from(pid).unwrap(), signal);
        }
    }

    /// The VMs that run here, with the pid of each, as the system has it.
    pub fn running(&self) -> Vec<(CopyId, i32)> {
        let entries = std::fs::read_dir(self.host.file("running")).into_iter().flatten().flatten();
        let running = entries.filter_map(|entry| {
            let (_, id) = parse_disk_name(entry.file_name().to_str()?)?;
            let pid = std::fs::read_to_string(entry.path()).ok()?.trim().parse().ok()?;
            lives(pid).then_some((id, pid))
        });
        let mut running: Vec<_> = running.collect();
        running.sort_unstable();
        running
    }

    /// Kills a VM's processes, some of them.
    pub fn kill_vm(pid: i32, part: Part) {
        let wrapper = parent(pid).filter(|wrapper| *wrapper > 1);
        if let Some(wrapper) = wrapper.filter(|_| part != Part::Guest) {
            send(wrapper, Signal::KILL);
        }
        if part != Part::Wrapper {
            send(pid, Signal::KILL);
        }
    }

    /// What is left in a folder of the worker's own data, of copies.
    pub fn left_in(&self, folder: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.data().join(folder)).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.filter(|name| !matches!(name.as_str(), "lease" | "serve.lock" | "guard.log" | "beat")).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.server = None;
        // The guard outlives its worker by design.
        let guard = std::fs::read_to_string(self.data().join("guard/serve.lock")).ok();
        let guard = guard.and_then(|text| text.trim().parse().ok()).filter(|pid| is_guard(*pid, &self.data()));
        guard.into_iter().for_each(|pid| send(pid, Signal::KILL));
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            println!("--- {}, its last words:\n{}", self.name, lines[lines.len().saturating_sub(80)..].join("\n"));
            println!("--- its tool was told:\n{}", self.host.typed().join("\n"));
        }
    }
}

fn send(pid: i32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

fn stat(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.to_owned())
}

fn lives(pid: i32) -> bool {
    stat(pid).is_some_and(|stat| !stat.starts_with('Z') && !stat.starts_with('X'))
}

fn parent(pid: i32) -> Option<i32> {
    stat(pid)?.split(' ').nth(1)?.parse().ok()
}

fn is_guard(pid: i32, data: &Path) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    line.contains("worker guard") && line.contains(data.to_str().unwrap())
}
