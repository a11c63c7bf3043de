//! What a worker's agent takes from its host: for a look at five hundred VMs, for a heartbeat, and for doing nothing.
//!
//! `cargo bench --bench worker`. The agent is the whole `Worker` in a process of its own, on a synthetic host without delays; the
//! controller is in the bench's. What single things cost is what the agent's CPU time grows by when they are done often: its
//! heartbeats a hundred times a second, or a look at everything for each of many changes. Beside them stands, in the same run,
//! what a bare request to the controller costs such a process. Each number is printed beside its limit.
//!
//! | what | includes |
//! |---|---|
//! | a heartbeat | the digest of all copies, the lease written down, encoding, TLS, the answer |
//! | a change among the VMs | the new assignment of all VMs read (100 KB), a reconcile pass over all, the report that it is in effect |
//! | a quiet look | the reconcile pass alone, once in five seconds: what is left of idle CPU without heartbeats, so the most it can be |
//!
//! # Results
//!
//! Two cores (virtual themselves), 24 GB, nothing else running.
//!
//! | what | measured | target |
//! |---|---|---|
//! | memory with 50 VMs; with 500; with none | 21 MiB; 36 MiB; 17 MiB | 64 MiB for 50 |
//! | idle CPU with 50 VMs; with 500, of one core | 0.06 %; 0.09 % | 1 %; 2 % |
//! | a change among 500 VMs | 2.3 ms | 10 ms |
//! | a quiet look at 500 VMs, at most | 3.5 ms | 20 ms |
//! | a heartbeat with 500 VMs | 0.50 ms | 1 ms |
//! | the same, in bare requests of 0.11 ms | 4.6x: the digest of all copies, and the lease written down | 4x |
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)] // a bench that cannot run panics

mod agent;
#[path = "../controller/ground.rs"]
#[allow(dead_code)] // of another bench, which uses all of it
mod ground;
#[path = "../../all/wait.rs"]
#[allow(dead_code)] // the tests use more of it
mod wait;

use std::time::{Duration, Instant};

use agent::Agent;
use ground::{at_most, load_average};
use orchard::bus::client::{Bus, BusOptions, Login, Trust};
use orchard::bus::life::{SpecChange, UpdateVm};
use orchard::bus::message::{CreateVm, ListVms};
use orchard::controller::auth::BOOTSTRAP_ADMIN;
use orchard::controller::cluster::Timing;
use orchard::controller::store::Retention;
use orchard::controller::{BusSource, Controller, ControllerOptions};
use orchard::identity;
use orchard::model::{AccountName, VmName};

/// VMs of the large host.
const MANY: usize = 500;
/// VMs of an ordinary one.
const SOME: usize = 50;
/// How long the agent gets to come to rest.
const SETTLED: Duration = Duration::from_secs(5);
/// For so long an agent is watched that does nothing but what it does anyhow.
const WATCHED: Duration = Duration::from_secs(30);
/// Changes among many VMs, one after another.
const CHANGES: usize = 200;
/// Bare requests for comparison.
const REQUESTS: usize = 5_000;
/// The fastest heartbeat that a worker takes from its controller.
const FAST: Duration = Duration::from_millis(10);
/// A reconcile pass over [`MANY`].
const PERIOD: f64 = 5.0;

/// The program's own, so that the agent is as in that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if agent::is_role(&arguments) {
        return agent::be();
    }
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(run());
}

async fn run() {
    println!("the agent of a worker (load average before: {}):", load_average());
    let usual = Timing::default().heartbeat;
    let mut place = Place::start(usual, SOME).await;
    let empty = place.agent.memory();
    place.fill(SOME).await;
    let idle = place.idle().await;
    let memory = place.agent.memory();
    at_most(&format!("memory with {SOME} VMs"), memory, 64.0, "MiB");
    println!("  {:<64} {empty:>9.3} MiB", "memory without");
    at_most(&format!("idle CPU with {SOME} VMs, of one core"), idle * 100.0, 1.0, "%");
    place.end().await;

    let mut place = Place::start(usual, MANY).await;
    place.fill(MANY).await;
    let idle = place.idle().await;
    println!("  {:<64} {:>9.3} MiB", format!("memory with {MANY} VMs"), place.agent.memory());
    at_most(&format!("idle CPU with {MANY} VMs, of one core"), idle * 100.0, 2.0, "%");
    let bare = place.bare().await;
    println!("  {:<64} {:>9.3} us", "a bare request, CPU of who asks", bare * 1e6);
    let change = place.changes(idle).await;
    at_most(&format!("a change among {MANY} VMs"), change * 1e3, 10.0, "ms");
    place.end().await;

    let mut place = Place::start(FAST, MANY).await;
    place.fill(MANY).await;
    let rate = 1.0 / FAST.as_secs_f64();
    let busy = place.idle().await;
    // The usual heartbeats are in what was idle before, which hardly counts beside these.
    let beat = (busy - idle).max(0.0) / rate;
    at_most(&format!("a heartbeat with {MANY} VMs, digest included"), beat * 1e3, 1.0, "ms");
    at_most("the same, in bare requests", beat / bare, 4.0, "x");
    let beats = beat / usual.as_secs_f64();
    let look = (idle - beats).max(0.0) * PERIOD;
    at_most(&format!("a quiet look at {MANY} VMs, at most"), look * 1e3, 20.0, "ms");
    place.end().await;
}

/// A controller and an agent.
struct Place {
    controller: Controller,
    agent: Agent,
    bus: Bus,
    _dir: tempfile::TempDir,
}

fn account() -> AccountName {
    BOOTSTRAP_ADMIN.parse().unwrap()
}

fn vm(number: usize) -> VmName {
    format!("vm-{number:03}").parse().unwrap()
}

impl Place {
    /// With heartbeats so often, and room for so many VMs.
    async fn start(heartbeat: Duration, vms: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let local = "127.0.0.1:0".parse().unwrap();
        let token = identity::new_token();
        let controller = Controller::start(ControllerOptions {
            data_dir: dir.path().join("controller"),
            bus: BusSource::Embedded { listen: local, tls: true, host: None },
            listen: local,
            tunnel_host: None,
            timing: Timing { heartbeat, ..Timing::default() },
            certificate: None,
            jump: None,
            events_kept: Retention::default(),
            bootstrap_token: Some(token.clone()),
        });
        let controller = controller.await.unwrap();
        let made = controller.create_join_token(ground::CALL, 1, None).await.unwrap();
        let agent = Agent::start(&controller, made, &token, &dir.path().join("worker"), vms).await;
        let bus =
            Bus::connect(login(controller.bus_url(), &controller.fingerprint().unwrap().to_string(), token.expose()));
        let bus = bus.await.unwrap();
        Self { controller, agent, bus, _dir: dir }
    }

    /// Has so many VMs made, and waits until all are ready.
    async fn fill(&mut self, vms: usize) {
        for number in 0..vms {
            let request = CreateVm { name: vm(number), spec: ground::spec(), key: None };
            self.bus.call(&account(), &request, ground::CALL).await.unwrap();
        }
        self.until_all(vms, |vm| vm.ready).await;
    }

    async fn until_all(&self, vms: usize, is: impl Fn(&orchard::model::vm::Vm) -> bool) {
        wait::until("all VMs to get there", Duration::from_secs(120), async || {
            let page = self.bus.call(&account(), &ListVms::default(), ground::CALL).await.unwrap();
            let there = page.vms.iter().filter(|vm| is(vm)).count();
            if there == vms { Ok(()) } else { Err(there) }
        })
        .await;
    }

    /// The share of one core that the agent takes when nothing is asked of it.
    async fn idle(&self) -> f64 {
        // Nothing is waited for here: these are the times in which nothing shall happen, first until it does, then measured.
        let _ = tokio::time::timeout(SETTLED, std::future::pending::<()>()).await;
        let (cpu, began) = (self.agent.cpu(), Instant::now());
        let _ = tokio::time::timeout(WATCHED, std::future::pending::<()>()).await;
        (self.agent.cpu() - cpu).as_secs_f64() / began.elapsed().as_secs_f64()
    }

    /// Seconds of CPU that a bare request costs the process that asks.
    async fn bare(&mut self) -> f64 {
        let cpu = self.agent.cpu();
        self.agent.ask(REQUESTS).await;
        (self.agent.cpu() - cpu).as_secs_f64() / REQUESTS as f64
    }

    /// Seconds of CPU that the agent takes for one change among all VMs, beyond what it takes `idle`.
    async fn changes(&self, idle: f64) -> f64 {
        let (cpu, began) = (self.agent.cpu(), Instant::now());
        for number in 0..CHANGES {
            let priority = i32::try_from(number + 1).unwrap();
            let change = SpecChange { priority: Some(priority), ..SpecChange::default() };
            let name = vm(number % MANY);
            let request = UpdateVm { name, if_generation: None, change };
            self.bus.call(&account(), &request, ground::CALL).await.unwrap();
            // One after another, or several would share a look.
            self.until_all(MANY, |vm| vm.generation == vm.observed_generation).await;
        }
        let spent = (self.agent.cpu() - cpu).as_secs_f64() - idle * began.elapsed().as_secs_f64();
        spent.max(0.0) / CHANGES as f64
    }

    async fn end(self) {
        self.agent.end().await;
        self.controller.shutdown().await;
    }
}

/// How the first account logs in.
fn login(url: &str, fingerprint: &str, token: &str) -> BusOptions {
    BusOptions {
        url: url.to_owned(),
        user: BOOTSTRAP_ADMIN.into(),
        trust: Trust::Certificate(fingerprint.parse().unwrap()),
        login: Login::Password(orchard::model::secret::Secret::new(token)),
        client_name: "bench".into(),
        patient: false,
    }
}
