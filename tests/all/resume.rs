//! Promise: a session into a VM goes on when what carries it is lost: the worker's process, the controller's, both. With real
//! processes, a real guest and the real command line.

use std::path::PathBuf;
use std::process::Stdio;

use orchard::bus::connect::OpenHost;
use orchard::config::join::BootstrapToken;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};

use crate::guest::guest_image;
use crate::harness::{Access, LIMIT, succeed};
use crate::processes::{self, Server};
use crate::qemu::{kill, processes_in};
use crate::wait;

/// A controller and one worker with a real guest, each a process of its own; the guest and the keeper end with it.
struct World {
    controller: Option<Server>,
    worker: Option<Server>,
    access: Access,
    /// Bus and tunnels.
    addresses: [String; 2],
    dir: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let world = Self::without_vm().await;
        let image = guest_image();
        world.run(&["create", "vm", "box", "--image", image.to_str().unwrap(), "--wait"]).await;
        world
    }

    async fn without_vm() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (home, data) = (dir.path().join("home"), dir.path().join("controller"));
        let (controller, access) = processes::controller(&home, &data, "127.0.0.1:0", "127.0.0.1:0").await;
        let addresses = [controller.value("bus").replace("tls://", ""), controller.value("tunnels")];
        let token = access.bootstrap_token().await;
        let mut world = Self { controller: Some(controller), worker: None, access, addresses, dir };
        world.start_worker(Some(token)).await;
        world
    }

    async fn start_worker(&mut self, token: Option<BootstrapToken>) {
        let mut command = processes::worker_command("far", &self.dir.path().join("worker"), "qemu", &[]);
        if let Some(token) = token {
            command.args(["--bootstrap-token", token.to_text().expose()]);
        }
        self.worker = Some(Server::start(command).await);
    }

    /// Another process in the place of the worker's, which is killed.
    async fn replace_worker(&mut self) {
        self.worker.take().unwrap().kill().await;
        self.start_worker(None).await;
    }

    async fn replace_controller(&mut self) {
        self.controller.take().unwrap().kill().await;
        let (home, data) = (self.dir.path().join("home"), self.dir.path().join("controller"));
        let [bus, tunnels] = &self.addresses;
        self.controller = Some(processes::controller(&home, &data, bus, tunnels).await.0);
    }

    async fn run(&self, arguments: &[&str]) -> String {
        succeed(self.access.cli(&self.dir.path().join("home"), arguments)).await
    }

    fn open(&self, arguments: &[&str]) -> Session {
        let mut command = self.access.cli(&self.dir.path().join("home"), arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Session {
            input: child.stdin.take(),
            output: BufReader::new(child.stdout.take().unwrap()).lines(),
            told: BufReader::new(child.stderr.take().unwrap()).lines(),
            child,
        }
    }

    fn keeper_folder(&self) -> PathBuf {
        self.dir.path().join("worker/data/sessions/v1")
    }

    fn keeper_log(&self) -> String {
        std::fs::read_to_string(self.keeper_folder().join("keeper.log")).unwrap_or_default()
    }

    /// The keeper's process, if there is one.
    fn keeper(&self) -> Option<Pid> {
        let pid = std::fs::read_to_string(self.keeper_folder().join("serve.lock")).ok()?.trim().parse().ok()?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let is_keeper = line.contains("session-keeper") && line.contains(self.dir.path().to_str().unwrap());
        Pid::from_raw(pid).filter(|_| is_keeper)
    }

    async fn keeper_ends(&self) {
        wait::until("the end of the keeper", LIMIT, || async {
            self.keeper().map_or(Ok(()), |pid| Err(format!("{pid:?} is there: {}", self.keeper_log())))
        })
        .await;
        assert!(!self.keeper_folder().join("keeper.sock").exists());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.worker = None;
        for pid in self.keeper().into_iter().chain(processes_in(self.dir.path()).into_iter().filter_map(Pid::from_raw))
        {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// A command of the command line that runs.
struct Session {
    child: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
    told: Lines<BufReader<ChildStderr>>,
}

impl Session {
    async fn say(&mut self, line: &str) {
        self.input.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    async fn hears(&mut self) -> String {
        line(&mut self.output).await
    }

    async fn is_told(&mut self, what: &str) {
        let told = line(&mut self.told).await;
        assert!(told.contains(what), "told {told:?} instead of {what:?}");
    }
}

async fn line(lines: &mut Lines<impl tokio::io::AsyncBufRead + Unpin>) -> String {
    tokio::time::timeout(LIMIT, lines.next_line()).await.expect("a line in time").unwrap().expect("a line")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_in_a_vm_goes_on_when_the_worker_and_the_controller_are_killed_and_replaced() {
    let mut world = World::start().await;
    // The shell tells its own process id with each line, so another one would show.
    let mut session = world.open(&["ssh", "vm", "box", "while read line; do echo $$ $line; done; echo the end"]);
    session.say("first").await;
    let first = session.hears().await;
    let shell = first.strip_suffix(" first").unwrap_or_else(|| panic!("{first:?}")).to_owned();
    let keeper = world.keeper().expect("something keeps the session");
    assert_eq!(rustix::process::getsid(Some(keeper)).unwrap(), keeper, "a session of its own");

    world.replace_worker().await;
    session.say("while nobody may be there").await;
    session.is_told("connection lost").await;
    assert_eq!(session.hears().await, format!("{shell} while nobody may be there"));
    session.is_told("connected again").await;

    // What is said while it is certainly away arrives, too; and what the guest says meanwhile.
    world.worker.take().unwrap().kill().await;
    world.replace_controller().await;
    session.is_told("connection lost").await;
    for n in 0..500 {
        session.say(&n.to_string()).await;
    }
    world.start_worker(None).await;
    for n in 0..500 {
        assert_eq!(session.hears().await, format!("{shell} {n}"));
    }
    session.is_told("connected again").await;

    // While there is a session: soon after the last it ends by itself.
    assert_eq!(world.keeper(), Some(keeper), "it was the same all the time");
    drop(session.input.take());
    assert_eq!(session.hears().await, "the end");
    let status = tokio::time::timeout(LIMIT, session.child.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
    assert_eq!(session.told.next_line().await.unwrap(), None, "nothing else is told");
    world.keeper_ends().await;
    // Another one is there when it is needed.
    assert_eq!(world.run(&["ssh", "vm", "box", "echo again"]).await, "again\n");
    world.keeper_ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarded_connection_goes_on_and_one_that_is_let_go_is_not_kept() {
    let mut world = World::start().await;
    let mut forward = world.open(&["port-forward", "vm", "box", "22"]);
    let said = forward.hears().await;
    let address = said.split_whitespace().find(|word| word.starts_with("127.0.0.1:")).unwrap();
    let mut connection = TcpStream::connect(address).await.unwrap();
    let mut banner = [0; 8];
    connection.read_exact(&mut banner).await.unwrap();
    assert_eq!(&banner, b"SSH-2.0-");
    world.replace_worker().await;
    forward.is_told("connection lost").await;
    forward.is_told("connected again").await;
    // The server says this only to who has said so much, on the same connection.
    connection.write_all(b"SSH-2.0-test\r\n").await.unwrap();
    let mut rest = Vec::new();
    let kex = async {
        while !rest.windows(20).any(|part| part.starts_with(b"curve25519-sha256")) {
            let read = connection.read_buf(&mut rest).await.unwrap();
            assert!(read > 0, "it ended: {}", String::from_utf8_lossy(&rest));
        }
    };
    tokio::time::timeout(LIMIT, kex).await.expect("the server's offer");

    // Ctrl-C: the guest's side is closed at once, and not kept for whoever might come back.
    kill_process(Pid::from_raw(forward.child.id().unwrap().cast_signed()).unwrap(), Signal::INT).unwrap();
    tokio::time::timeout(LIMIT, forward.child.wait()).await.unwrap().unwrap();
    world.keeper_ends().await;
    assert!(world.keeper_log().contains("broke the session off"), "{}", world.keeper_log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_to_the_workers_own_machine_goes_on_as_well() {
    let mut world = World::without_vm().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    wait::until("the way to the worker's machine", LIMIT, || async {
        world.access.call(&OpenHost { worker: "far".parse().unwrap(), port }).await.map(drop)
    })
    .await;
    let mut forward = world.open(&["port-forward", "worker", "far", &port.to_string()]);
    let said = forward.hears().await;
    let address = said.split_whitespace().find(|word| word.starts_with("127.0.0.1:")).unwrap();
    let mut near = TcpStream::connect(address).await.unwrap();
    let (mut far, _) = tokio::time::timeout(LIMIT, listener.accept()).await.unwrap().unwrap();
    for (n, byte) in [1u8, 2, 3].into_iter().enumerate() {
        if n > 0 {
            world.replace_worker().await;
            forward.is_told("connection lost").await;
            forward.is_told("connected again").await;
        }
        near.write_all(&[byte]).await.unwrap();
        assert_eq!(tokio::time::timeout(LIMIT, far.read_u8()).await.unwrap().unwrap(), byte);
        far.write_all(&[byte + 10]).await.unwrap();
        assert_eq!(tokio::time::timeout(LIMIT, near.read_u8()).await.unwrap().unwrap(), byte + 10);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_whose_vm_is_gone_ends_with_the_reason() {
    let mut world = World::start().await;
    let mut session = world.open(&["ssh", "vm", "box", "echo here; cat"]);
    assert_eq!(session.hears().await, "here");
    world.worker.take().unwrap().kill().await;
    session.is_told("connection lost").await;
    for pid in processes_in(&world.dir.path().join("worker/data/qemu")) {
        kill(pid);
    }
    world.start_worker(None).await;
    // Whether the session comes back first, or the controller hears first that the VM has failed.
    let told = async {
        loop {
            let told = line(&mut session.told).await;
            if told.starts_with("error: ") {
                return;
            }
        }
    };
    tokio::time::timeout(LIMIT, told).await.expect("the reason");
    let status = tokio::time::timeout(LIMIT, session.child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(1));
}
