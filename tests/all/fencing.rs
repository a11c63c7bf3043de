//! Promise: a VM that may be started elsewhere does not run on once its worker's lease is over, whatever became of the
//! worker's process; and all other VMs do. With real processes and real guests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use orchard::bus::message::{CreateVm, GetVm};
use orchard::model::vm::{OnUnseen, Vm, VmSpec, VmStatus};
use rustix::process::{Pid, Signal, kill_process};

use crate::guest::guest_image;
use crate::harness::{Access, LIMIT};
use crate::processes::{self, Server, within};
use crate::wait;

/// Within this after the end of its lease a worker's VMs are ended; more here, as these tests run beside all others.
const FENCED: Duration = Duration::from_secs(60);

/// A controller and one worker with real guests, each a process of its own; all guests and the guard end with it.
struct World {
    _controller: Server,
    worker: Option<Server>,
    access: Access,
    dir: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (home, data) = (dir.path().join("home"), dir.path().join("controller"));
        let mut command = within(&[]);
        command.env("ORCHARD_HOME", &home).args(["controller", "run", "--lease", "6s", "--data-dir"]).arg(data);
        command.args(["--bus-listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"]);
        let controller = Server::start(command).await;
        let access = processes::access(&home);
        let mut world = Self { _controller: controller, worker: None, access, dir };
        world.start_worker().await;
        world
    }

    async fn start_worker(&mut self) {
        let folder = self.dir.path().join("worker");
        self.worker = Some(processes::worker(&self.access, &self.access.url, &folder, "qemu", &[]).await);
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("worker/data")
    }

    fn signal_worker(&self, signal: Signal) {
        let pid = self.worker.as_ref().unwrap().child.id().unwrap();
        kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
    }

    /// Makes a VM and waits until it runs; yields it with the pid of its process.
    async fn vm(&self, name: &str, on_unseen: OnUnseen) -> (Vm, i32) {
        let image = guest_image().to_str().unwrap().to_owned();
        let spec = VmSpec { image, on_unseen, ..VmSpec::default() };
        self.access.call(&CreateVm { name: name.parse().unwrap(), spec, key: None }).await.unwrap();
        let vm = self.until(name, |vm| vm.status == VmStatus::Running).await;
        let pid = self.pid_of(&vm).expect("a VM that runs has a process");
        (vm, pid)
    }

    async fn until(&self, name: &str, holds: impl Fn(&Vm) -> bool) -> Vm {
        let (access, holds) = (&self.access, &holds);
        wait::until("the VM's status", LIMIT, || async move {
            let vm = access.call(&GetVm { name: name.parse().unwrap() }).await.map_err(|error| error.to_string())?;
            if holds(&vm) { Ok(vm) } else { Err(format!("{vm:?}")) }
        })
        .await
    }

    /// The process of a copy, from the system rather than from our files.
    fn pid_of(&self, vm: &Vm) -> Option<i32> {
        let folder = format!("{}-{}", vm.uid.0.simple(), vm.restart_count);
        processes_in(&self.data().join("qemu/vms").join(folder)).first().copied()
    }

    /// The guard's process, if there is one.
    fn guard(&self) -> Option<i32> {
        let pid = std::fs::read_to_string(self.data().join("guard/serve.lock")).ok()?.trim().parse().ok()?;
        is_guard(pid, &self.data()).then_some(pid)
    }

    /// Waits until the process is gone, and checks that the other one is not.
    async fn fenced(&self, replaced: &Vm, kept: (&Vm, i32)) {
        wait::until("the end of the VM that may be replaced", FENCED, || async {
            match self.pid_of(replaced) {
                None => Ok(()),
                Some(pid) => Err(format!("process {pid} runs; the guard: {}", self.guard_log())),
            }
        })
        .await;
        assert_eq!(self.pid_of(kept.0), Some(kept.1), "it was to be kept: {}", self.guard_log());
    }

    /// Waits until the controller knows what became of both.
    async fn told(&self, kept: (&Vm, i32)) {
        self.until("replaced", |vm| vm.status == VmStatus::Failed || vm.restart_count > 0).await;
        let now = self.until("kept", |vm| vm.status == VmStatus::Running).await;
        assert_eq!((now.restart_count, self.pid_of(kept.0)), (0, Some(kept.1)));
    }

    fn guard_log(&self) -> String {
        std::fs::read_to_string(self.data().join("guard/guard.log")).unwrap_or_default()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.worker = None;
        for pid in self.guard().into_iter().chain(processes_in(self.dir.path())) {
            let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        }
    }
}

fn processes_in(folder: &Path) -> Vec<i32> {
    let Ok(folder) = folder.canonicalize() else { return Vec::new() };
    let pids = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    pids.filter(|pid| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&folder)))
        .collect()
}

fn is_guard(pid: i32, data: &Path) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    line.contains("worker guard") && line.contains(data.to_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_keeps_the_vms_that_are_its_own_and_no_other_and_adopts_them_later() {
    let mut world = World::start().await;
    let (kept, pid) = world.vm("kept", OnUnseen::Keep).await;
    assert_eq!(world.guard(), None, "nothing needs one yet");
    let (replaced, _) = world.vm("replaced", OnUnseen::Replace).await;
    let guard = world.guard().expect("there is a guard before the VM");
    let session = rustix::process::getsid(Pid::from_raw(guard)).unwrap();
    assert_eq!(session.as_raw_nonzero().get(), guard, "a session of its own");

    // A guard that ended is replaced, too.
    kill_process(Pid::from_raw(guard).unwrap(), Signal::KILL).unwrap();
    let other = |than: i32| {
        let world = &world;
        move || async move { world.guard().filter(|pid| *pid != than).ok_or("none") }
    };
    let guard = wait::until("another guard", LIMIT, other(guard)).await;
    // So is one that is there and does nothing.
    kill_process(Pid::from_raw(guard).unwrap(), Signal::STOP).unwrap();
    wait::until("another guard than the one that stands still", LIMIT, other(guard)).await;

    world.worker.take().unwrap().kill().await;
    world.fenced(&replaced, (&kept, pid)).await;
    wait::until("the guard's word", LIMIT, || async {
        let log = world.guard_log();
        if log.contains("ended, as the worker's lease is over") { Ok(()) } else { Err(log) }
    })
    .await;
    world.start_worker().await;
    world.told((&kept, pid)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_stands_still_is_fenced_and_goes_on_with_what_is_left() {
    let world = World::start().await;
    let (kept, pid) = world.vm("kept", OnUnseen::Keep).await;
    let (replaced, _) = world.vm("replaced", OnUnseen::Replace).await;
    world.signal_worker(Signal::STOP);
    world.fenced(&replaced, (&kept, pid)).await;
    world.signal_worker(Signal::CONT);
    world.told((&kept, pid)).await;
    let now = world.until("replaced", |_| true).await;
    // Not as a VM that crashed.
    assert!(now.restart_count > 0 || now.status_message.contains("controller"), "{now:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_worker_and_guard_were_killed_the_next_worker_ends_what_must_not_run() {
    let mut world = World::start().await;
    let (kept, pid) = world.vm("kept", OnUnseen::Keep).await;
    let (replaced, _) = world.vm("replaced", OnUnseen::Replace).await;
    let guard = world.guard().expect("there is a guard before the VM");
    world.worker.take().unwrap().kill().await;
    kill_process(Pid::from_raw(guard).unwrap(), Signal::KILL).unwrap();
    // What the file says is over, as if time had passed, and it reaches nobody.
    std::fs::remove_file(world.data().join("guard/lease")).unwrap();
    world.start_worker().await;
    world.fenced(&replaced, (&kept, pid)).await;
    world.told((&kept, pid)).await;
}
