//! Clients that change things without a pause and remember what they were told: the load of `kills`.

use std::collections::BTreeMap;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use orchard::bus::access::{CreateAccount, DeleteAccount};
use orchard::bus::client::Bus;
use orchard::bus::message::{CreateVm, DeleteVm};
use orchard::bus::placing::{PauseWorker, ResumeWorker};
use orchard::model::access::{Role, Roles};
use orchard::model::error::{ApiError, ErrorCode};
use orchard::model::vm::VmSpec;
use orchard::model::{AccountName, VmName, VmUid, WorkerName};
use tokio::sync::oneshot;

use super::CALL;
use crate::harness::Access;

/// What one client alone changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Thing {
    Vm(VmName),
    Account(AccountName),
    /// The pause of a worker.
    Pause(WorkerName),
}

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Absent,
    Vm(VmUid),
    Present,
}

impl Thing {
    /// What the next change of it is called when it stands so, as in the audit trail.
    pub fn next_verb(&self, state: State) -> &'static str {
        match (self, state == State::Absent) {
            (Self::Vm(_), true) => "vm.create",
            (Self::Vm(_), false) => "vm.delete",
            (Self::Account(_), true) => "service-account.create",
            (Self::Account(_), false) => "service-account.delete",
            (Self::Pause(_), true) => "worker.pause",
            (Self::Pause(_), false) => "worker.resume",
        }
    }

    /// Makes the next change.
    async fn change(&self, state: State, bus: &Bus, by: &AccountName) -> Result<State, ApiError> {
        let absent = state == State::Absent;
        match self {
            Self::Vm(name) if absent => {
                let request = CreateVm { name: name.clone(), spec: spec(name), key: None };
                bus.call(by, &request, CALL).await.map(|vm| State::Vm(vm.uid))
            }
            Self::Vm(name) => bus.call(by, &DeleteVm { name: name.clone() }, CALL).await.map(|_| State::Absent),
            Self::Account(name) if absent => {
                let roles: Roles = [Role::ComputeRead].into_iter().collect();
                let request =
                    CreateAccount { name: name.clone(), roles, expires_at: None, token: None, ssh_keys: Vec::new() };
                bus.call(by, &request, CALL).await.map(|_| State::Present)
            }
            Self::Account(name) => {
                bus.call(by, &DeleteAccount { name: name.clone() }, CALL).await.map(|_| State::Absent)
            }
            Self::Pause(name) if absent => {
                bus.call(by, &PauseWorker { name: name.clone() }, CALL).await.map(|_| State::Present)
            }
            Self::Pause(name) => bus.call(by, &ResumeWorker { name: name.clone() }, CALL).await.map(|_| State::Absent),
        }
    }
}

/// What a VM of this name is asked to be.
pub fn spec(name: &VmName) -> VmSpec {
    VmSpec { image: format!("image of {name}"), cpu: 1, memory: 1, ..VmSpec::default() }
}

/// One client: one change at a time.
#[derive(Debug)]
pub struct Client {
    pub things: BTreeMap<Thing, State>,
    /// What it was about to change when it lost the controller.
    pub doubt: Option<Thing>,
    /// What was acknowledged since somebody looked: what it was, how it stood before, how it stands.
    pub acknowledged: Vec<(Thing, State, State)>,
    dice: Dice,
}

impl Client {
    pub fn new(number: usize, seed: u64, pauses: Option<WorkerName>) -> Self {
        let vms = (0..VMS_OF_ONE).map(|slot| Thing::Vm(format!("vm-{number}-{slot}").parse().unwrap()));
        let account = Thing::Account(format!("account-{number}").parse().unwrap());
        let things = vms.chain([account]).chain(pauses.map(Thing::Pause)).map(|thing| (thing, State::Absent));
        let (doubt, acknowledged) = (None, Vec::new());
        Self { things: things.collect(), doubt, acknowledged, dice: Dice(seed) }
    }

    /// Until the controller is lost. Dropped at any moment, it knows what is in doubt.
    async fn run(&mut self, bus: &Bus, by: &AccountName) {
        loop {
            let at = self.dice.below(self.things.len() as u64) as usize;
            let (thing, before) = self.things.iter().nth(at).map(|(thing, state)| (thing.clone(), *state)).unwrap();
            self.doubt = Some(thing.clone());
            match thing.change(before, bus, by).await {
                Ok(after) => {
                    self.doubt = None;
                    self.things.insert(thing.clone(), after);
                    self.acknowledged.push((thing, before, after));
                }
                Err(error) if matches!(error.code, ErrorCode::Unavailable | ErrorCode::Timeout) => return,
                Err(error) => panic!("{thing:?}, which is {before:?}, cannot be changed: {error}"),
            }
        }
    }
}

/// Has all clients work at once until `stop`, and tells when they `begin`. Everything of it, connections that would come
/// back by themselves included, is gone on return: a request of this round must not arrive in the next.
pub fn load(
    mut clients: Vec<Client>,
    access: Access,
    begin: oneshot::Sender<()>,
    stop: oneshot::Receiver<()>,
) -> Vec<Client> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let working = async {
            let Ok(bus) = access.try_bus().await else { return };
            let by = access.account();
            let _ = begin.send(());
            let mut all: FuturesUnordered<_> = clients.iter_mut().map(|client| client.run(&bus, &by)).collect();
            while all.next().await.is_some() {}
            // All have lost the controller; it is being killed.
        };
        tokio::select! {
            _ = async { working.await; std::future::pending::<()>().await } => {}
            _ = stop => {}
        }
    });
    clients
}

/// Random numbers that a seed repeats (SplitMix64).
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// So few that the store stays small, so many that most changes are of VMs.
const VMS_OF_ONE: usize = 3;
