//! The cluster that is disturbed: who is where, and what is done to it.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use orchard::bus::life::{SpecChange, UpdateVm};
use orchard::bus::message::{ApiCall, CreateVm, DeleteVm, ListVms};
use orchard::model::error::ApiError;
use orchard::model::vm::{OnUnseen, PowerState, RestartPolicy, StartupScript, Vm, VmSpec, VmStatus};
use orchard::model::{CopyId, VmName, VmUid};
use rustix::process::Signal;
use tempfile::TempDir;

use super::link::Mode;
use super::node::Node;
use super::schedule::{Deed, WORKERS};
use crate::harness::{Access, LIMIT, succeed};
use crate::processes::{self, Server};
use crate::wait::until;

/// How long one request may take, of those during the chaos.
const CALL: Duration = Duration::from_secs(3);
/// VMs that there are from the beginning.
const FIRST_VMS: u64 = 5;
/// VMs that there are at most.
const MOST_VMS: usize = 8;
/// Lines that each startup script says.
pub const LINES: usize = 40;

pub struct World {
    pub access: Access,
    pub nodes: Vec<Node>,
    controller: Option<Server>,
    bus: String,
    tunnels: String,
    made: u64,
    pub dir: TempDir,
}

impl World {
    /// With VMs of every kind, all of which run.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = controller(dir.path(), processes::APART, TUNNELS).await;
        // At the same addresses from then on.
        let (bus, tunnels) = (server.value("bus").replace("tls://", ""), server.value("tunnels"));
        let access = processes::access(&dir.path().join("home"));
        let mut world = Self { access, nodes: Vec::new(), controller: Some(server), bus, tunnels, made: 0, dir };
        let spread = ["set", "cluster-settings", "--scheduler-profile", "distribute-load"];
        succeed(world.access.cli(&world.home(), &spread)).await;
        for n in 0..WORKERS {
            let name = format!("w{n}");
            let folder = world.dir.path().join(&name);
            world.nodes.push(Node::join(&world.access, world.bus.clone(), &name, folder).await);
        }
        for _ in 0..FIRST_VMS {
            world.create().await;
        }
        world
            .until_vms("the first VMs to run", |vms| {
                vms.len() as u64 == FIRST_VMS && vms.iter().all(|vm| vm.status == VmStatus::Running)
            })
            .await;
        world
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("home")
    }

    async fn start_controller(&mut self) {
        if self.controller.is_none() {
            self.controller = Some(controller(self.dir.path(), &self.bus, &self.tunnels).await);
        }
    }

    /// Does one thing.
    pub async fn act(&mut self, deed: Deed) {
        match deed {
            Deed::KillWorker(n) => self.nodes[n].kill().await,
            Deed::StartWorker(n) => self.nodes[n].start().await,
            Deed::Freeze(n) => self.nodes[n].signal(Signal::STOP),
            Deed::Thaw(n) => self.nodes[n].signal(Signal::CONT),
            Deed::Cut(n) => self.nodes[n].link.set(Mode::Cut),
            Deed::Silence(n) => self.nodes[n].link.set(Mode::Silent),
            Deed::MendLink(n) => self.nodes[n].link.set(Mode::Open),
            Deed::KillController => {
                if let Some(server) = self.controller.take() {
                    server.kill().await;
                }
            }
            Deed::StartController => self.start_controller().await,
            Deed::KillVm(part, number) => {
                let running: Vec<(CopyId, i32)> = self.nodes.iter().flat_map(Node::running).collect();
                if let Some((id, pid)) = pick(&running, number) {
                    println!("         kills {id}, process {pid}");
                    Node::kill_vm(*pid, part);
                }
            }
            Deed::Stop(number) => self.switch(number, PowerState::Stopped).await,
            Deed::Start(number) => self.switch(number, PowerState::Running).await,
            Deed::Delete(number) => {
                if let Some(name) = self.any_vm(number).await {
                    let done = self.try_call(&DeleteVm { name: name.clone() }).await;
                    println!("         deletes {name}: {done:?}");
                }
            }
            Deed::Create(_) => self.create().await,
        }
    }

    /// Ends all outages.
    pub async fn mend(&mut self) {
        self.start_controller().await;
        for node in &mut self.nodes {
            node.link.set(Mode::Open);
            node.signal(Signal::CONT);
            node.start().await;
        }
        // What was switched off for a while.
        for vm in self.call(&ListVms::default()).await.vms {
            if vm.spec.power_state != PowerState::Running && vm.status != VmStatus::Failed {
                self.call(&power(vm.name.clone(), PowerState::Running)).await;
            }
        }
    }

    /// A VM of the next kind.
    async fn create(&mut self) {
        if self.vms().await.map_or(MOST_VMS, |vms| vms.len()) >= MOST_VMS {
            return;
        }
        let n = self.made;
        self.made += 1;
        let policies =
            [RestartPolicy::OnFailure, RestartPolicy::Always, RestartPolicy::OnFailure, RestartPolicy::Never];
        let lines: String = (0..LINES).map(|n| format!("echo line {n}; sleep 0.05\n")).collect();
        let spec = VmSpec {
            image: "any".into(),
            cpu: 1,
            memory: 128,
            restart_policy: policies[usize::try_from(n).unwrap() % policies.len()],
            on_unseen: if n % 3 == 2 { OnUnseen::Replace } else { OnUnseen::Keep },
            startup_script: Some(StartupScript { script_content: lines, env: BTreeMap::new() }),
            ..VmSpec::default()
        };
        let name: VmName = format!("vm{n}").parse().unwrap();
        let made = self.try_call(&CreateVm { name, spec, key: None }).await.map(|vm| vm.uid);
        println!("         makes vm{n}: {made:?}");
    }

    async fn switch(&self, number: u64, to: PowerState) {
        if let Some(name) = self.any_vm(number).await {
            let done = self.try_call(&power(name.clone(), to)).await.map(|vm| vm.generation);
            println!("         {name} is to be {to}: {done:?}");
        }
    }

    async fn any_vm(&self, number: u64) -> Option<VmName> {
        pick(&self.vms().await.ok()?, number).map(|vm| vm.name.clone())
    }

    async fn try_call<C: ApiCall>(&self, request: &C) -> Result<C::Reply, ApiError> {
        let bus = self.access.try_bus().await?;
        bus.call(&self.access.account, request, CALL).await
    }

    /// All VMs, as the controller has them.
    pub async fn vms(&self) -> Result<Vec<Vm>, ApiError> {
        self.try_call(&ListVms::default()).await.map(|page| page.vms)
    }

    /// Calls a verb of a controller that runs.
    pub async fn call<C: ApiCall>(&self, request: &C) -> C::Reply {
        until("the controller's answer", LIMIT, || self.try_call(request)).await
    }

    pub async fn until_vms(&self, what: &str, holds: impl Fn(&[Vm]) -> bool) -> Vec<Vm> {
        until(what, LIMIT, || async {
            let vms = self.vms().await.map_err(|error| error.to_string())?;
            if holds(&vms) { Ok(vms) } else { Err(vms.iter().map(shown).collect::<Vec<_>>().join("\n")) }
        })
        .await
    }

    /// No VM has a process on two machines, nor two of its copies one.
    pub fn no_vm_runs_twice(&self) {
        let mut seen: BTreeMap<VmUid, (&Node, CopyId, i32)> = BTreeMap::new();
        for node in &self.nodes {
            for (id, pid) in node.running() {
                let Some((other, before, other_pid)) = seen.insert(id.uid, (node, id, pid)) else { continue };
                // The first may have ended before the second was begun.
                let both = other.running().contains(&(before, other_pid)) && node.running().contains(&(id, pid));
                assert!(!both, "{before} runs on {} and {id} on {}", other.name, node.name);
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir.path().join("controller.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            println!("--- the controller's last words:\n{}", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
}

/// Workers look for them where they reach the bus, which is at a link of theirs.
const TUNNELS: &str = "127.0.0.1:0";

async fn controller(dir: &Path, bus: &str, tunnels: &str) -> Server {
    let mut command = processes::controller_command(&dir.join("home"), &dir.join("controller"), bus, tunnels);
    command.args(["--lease", "5s"]);
    command.stderr(File::options().create(true).append(true).open(dir.join("controller.log")).unwrap());
    Server::start(command).await
}

/// A VM on one line.
pub fn shown(vm: &Vm) -> String {
    let on = vm.worker.as_ref().map_or("nowhere", |worker| worker.as_str());
    format!("{} {} attempt {} boot {} on {on}: {}", vm.name, vm.status, vm.restart_count, vm.boot, vm.status_message)
}

fn power(name: VmName, to: PowerState) -> UpdateVm {
    UpdateVm { name, if_generation: None, change: SpecChange { power_state: Some(to), ..SpecChange::default() } }
}

fn pick<T>(from: &[T], number: u64) -> Option<&T> {
    let count = u64::try_from(from.len()).unwrap();
    number.checked_rem(count).and_then(|at| from.get(usize::try_from(at).unwrap()))
}
