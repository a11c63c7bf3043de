//! People at their command lines: they create, change, switch, delete, pause and drain, and remember what was acknowledged.
//!
//! A client waits for longer than any message can be late, so an answer that has not come by then never will; and it asks
//! nothing more about a name before that. So what it knows is exact: acknowledged, refused, or not known.

use std::collections::{BTreeMap, BTreeSet};

use super::bus::{Answer, ApiCall, Call, LATEST, Message, Reply};
use super::clock::Millis;
use super::world::{Event, World};
use crate::bus::life::{SpecChange, UpdateVm};
use crate::bus::message::CreateVm;
use crate::model::error::ErrorCode;
use crate::model::vm::{OnUnseen, PowerState, RestartPolicy, StartupScript, VmSpec};
use crate::model::{VmName, VmUid};

/// When an answer will never come any more: there and back, and the longest that a controller stands still.
const TIMEOUT: Millis = 2 * LATEST + 100_000;
/// VMs have one of so many names, so that names come again.
const NAMES: u64 = 12;

/// What clients know.
#[derive(Default)]
pub(super) struct Client {
    outstanding: BTreeMap<Call, ApiCall>,
    /// VMs that were acknowledged and that nobody has asked to delete.
    pub(super) expected: BTreeMap<VmUid, (VmName, VmSpec)>,
    /// VMs whose deletion was acknowledged.
    pub(super) gone: BTreeSet<VmUid>,
    /// What was acknowledged last of each worker's pause, unless something else may have come after it.
    pub(super) pauses: BTreeMap<usize, bool>,
    /// The same of whether it is drained.
    pub(super) drains: BTreeMap<usize, bool>,
    /// VMs that an outstanding or unanswered deletion or change may have hit.
    doomed: BTreeMap<Call, BTreeMap<VmUid, (VmName, VmSpec)>>,
}

impl Client {
    fn concerns(call: &ApiCall, name: &VmName) -> bool {
        match call {
            ApiCall::Create(request) => request.name == *name,
            ApiCall::Update(request) => request.name == *name,
            ApiCall::Delete(deleted) => deleted == name,
            ApiCall::Pause(..) | ApiCall::Drain(..) | ApiCall::DeleteWorker(_) | ApiCall::Rejoin(_) => false,
        }
    }

    /// Whether a VM of this name may rightly be deleted now.
    pub(super) fn may_be_deleting(&self, name: &VmName) -> bool {
        self.outstanding.values().any(|call| matches!(call, ApiCall::Delete(deleted) if deleted == name))
    }

    /// Whether what a VM of this name shall be may rightly change now.
    pub(super) fn may_be_updating(&self, name: &VmName) -> bool {
        self.outstanding.values().any(|call| matches!(call, ApiCall::Update(request) if request.name == *name))
    }

    /// Whether somebody is giving up this machine, or lets it join again.
    pub(super) fn is_moving(&self, host: usize) -> bool {
        let moves = |call: &ApiCall| matches!(call, ApiCall::DeleteWorker(of) | ApiCall::Rejoin(of) if *of == host);
        self.outstanding.values().any(moves)
    }

    /// A worker is known anew: nothing that was asked of it before counts.
    pub(super) fn forget_pauses(&mut self, host: usize) {
        self.pauses.remove(&host);
        self.drains.remove(&host);
        self.outstanding.retain(|_, call| !call.is_pause_of(host));
    }

    fn is_busy(&self, name: &VmName) -> bool {
        self.outstanding.values().any(|call| Self::concerns(call, name))
    }
}

impl World {
    /// One thing that somebody wants.
    pub(super) fn client_acts(&mut self) {
        if self.calm {
            return;
        }
        let pause = self.dice.range(100, 2 * self.pace);
        self.agenda.after(pause, Event::ClientActs);
        let name: VmName = format!("vm{}", self.dice.range(1, NAMES)).parse().unwrap();
        let host = self.dice.below(self.hosts.len());
        match self.dice.range(0, 99) {
            0..45 if !self.client.is_busy(&name) => self.create(name),
            45..72 if !self.client.is_busy(&name) => {
                let change = self.any_change();
                let if_generation = self.dice.chance(100).then(|| self.dice.range(0, 2));
                self.ask(ApiCall::Update(Box::new(UpdateVm { name, if_generation, change })));
            }
            72..92 if !self.client.is_busy(&name) => self.ask(ApiCall::Delete(name)),
            92..100 if !self.client.outstanding.values().any(|call| call.is_pause_of(host)) => {
                let paused = self.dice.chance(500);
                let deadline = self.dice.pick(&[None, Some(0), Some(5), Some(30)]).unwrap();
                let drains = paused && self.dice.chance(600);
                self.ask(if drains { ApiCall::Drain(host, deadline) } else { ApiCall::Pause(host, paused) });
            }
            _ => {}
        }
    }

    fn create(&mut self, name: VmName) {
        let spec = self.any_spec();
        self.uids += 1;
        let key = self.dice.chance(700).then(|| format!("k{}", self.uids));
        self.ask(ApiCall::Create(Box::new(CreateVm { name, spec, key })));
    }

    fn any_change(&mut self) -> SpecChange {
        let mut change = SpecChange::default();
        match self.dice.range(0, 99) {
            0..35 => change.power_state = Some(PowerState::Stopped),
            35..60 => change.power_state = Some(PowerState::Running),
            60..75 => change.power_state = Some(PowerState::Suspended),
            75..82 => change.suspendable = Some(true),
            82..90 => change.restart_policy = self.dice.pick(RestartPolicy::ALL),
            90..94 => change.priority = Some(i32::try_from(self.dice.range(0, 2)).unwrap()),
            94..97 => change.on_unseen = self.dice.pick(&[OnUnseen::Keep]),
            _ => change.ttl_s = Some(self.dice.range(0, 200)),
        }
        change
    }

    fn any_spec(&mut self) -> VmSpec {
        let image = self.dice.pick(&["a", "b", "c"]).unwrap().to_owned();
        let mut spec = VmSpec { image, ..VmSpec::default() };
        if self.dice.chance(600) {
            spec.restart_policy = RestartPolicy::OnFailure;
        } else if self.dice.chance(600) {
            spec.restart_policy = RestartPolicy::Always;
        }
        spec.suspendable = self.dice.chance(300);
        spec.cpu = self.dice.pick(&[0, 1, 2, 4, 8]).unwrap();
        spec.memory = self.dice.pick(&[0, 1_024, 2_048]).unwrap();
        if self.dice.chance(100) {
            spec.priority = 1;
        }
        if self.dice.chance(250) {
            let script_content = "count".to_owned();
            spec.startup_script = Some(StartupScript { script_content, ..StartupScript::default() });
        }
        if self.dice.chance(500) {
            spec.on_unseen = OnUnseen::Replace;
        }
        if self.dice.chance(150) {
            spec.ttl_s = self.dice.range(5, 120);
        }
        spec
    }

    /// Gives a machine up: whoever says so knows that it is off for good.
    pub(super) fn give_up(&mut self, host: usize) {
        self.hosts[host].given_up = true;
        self.ask(ApiCall::DeleteWorker(host));
    }

    /// A machine that was given up has been mended.
    pub(super) fn rejoin(&mut self, host: usize) {
        if !self.calm && self.hosts[host].given_up && !self.restored {
            self.ask(ApiCall::Rejoin(host));
        }
    }

    pub(super) fn ask(&mut self, body: ApiCall) {
        self.calls += 1;
        let call = self.calls;
        self.note(|_| format!("client asks ({call}): {body:?}"));
        match &body {
            ApiCall::Delete(_) | ApiCall::Update(_) => {
                let doomed: Vec<VmUid> = self
                    .client
                    .expected
                    .iter()
                    .filter(|(_, (of, _))| Client::concerns(&body, of))
                    .map(|(uid, _)| *uid)
                    .collect();
                let taken = doomed.iter().filter_map(|uid| self.client.expected.remove_entry(uid)).collect();
                self.client.doomed.insert(call, taken);
            }
            ApiCall::Pause(host, true) => drop(self.client.pauses.remove(host)),
            ApiCall::Drain(host, _) => drop(self.client.drains.remove(host)),
            ApiCall::Pause(host, false) | ApiCall::DeleteWorker(host) => {
                self.client.pauses.remove(host);
                self.client.drains.remove(host);
            }
            ApiCall::Create(_) | ApiCall::Rejoin(_) => {}
        }
        self.client.outstanding.insert(call, body.clone());
        self.agenda.after(TIMEOUT, Event::ClientTimeout(call));
        self.send(Message::FromClient { call, body });
    }

    pub(super) fn client_gives_up(&mut self, call: Call) {
        self.client.doomed.remove(&call);
        // Whoever has named his request can ask again.
        if let Some(body @ ApiCall::Create(_)) = self.client.outstanding.remove(&call)
            && matches!(&body, ApiCall::Create(request) if request.key.is_some())
            && !self.calm
        {
            self.ask(body);
        }
    }

    pub(super) fn client_hears(&mut self, call: Call, answer: Answer) {
        let Some(body) = self.client.outstanding.remove(&call) else { return };
        self.note(|_| match &answer {
            Ok(_) => format!("client hears ({call}): done"),
            Err(error) => format!("client hears ({call}): {:?}", error.code),
        });
        let doomed = self.client.doomed.remove(&call).unwrap_or_default();
        match (body, answer) {
            // One with a short time to live may be over before its answer is here.
            (ApiCall::Create(request), Ok(Reply::Created(vm)))
                if vm.spec.ttl_s == 0 || self.disk.vms.contains_key(&vm.uid) =>
            {
                self.client.expected.insert(vm.uid, (request.name, request.spec));
            }
            (ApiCall::Create(request), Err(error)) if error.code == ErrorCode::Conflict => {
                let made = |vm: &&crate::model::vm::Vm| {
                    vm.once.as_ref().is_some_and(|once| Some(&once.key) == request.key.as_ref())
                };
                if let Some(vm) = self.disk.vms.values().find(made) {
                    let what = format!("the request that has made {} was refused when it came again", vm.name);
                    self.violated(what);
                }
            }
            (ApiCall::Update(request), Ok(Reply::Created(vm)))
                if vm.spec.ttl_s == 0 || self.disk.vms.contains_key(&vm.uid) =>
            {
                self.client.expected.insert(vm.uid, (request.name, vm.spec));
            }
            (ApiCall::Delete(name), Ok(_)) => {
                self.client.gone.extend(doomed.into_keys());
                if !self.calm && self.dice.chance(300) {
                    // Who replaces a VM does so at once.
                    self.create(name);
                }
            }
            // Nothing was changed, so all of them are still there; unless their time was over meanwhile.
            (ApiCall::Delete(_), Err(error)) if error.code == ErrorCode::NotFound => {}
            (ApiCall::Delete(_) | ApiCall::Update(_), Err(_)) => {
                let living =
                    doomed.into_iter().filter(|(uid, (_, spec))| spec.ttl_s == 0 || self.disk.vms.contains_key(uid));
                self.client.expected.extend(living);
            }
            (ApiCall::DeleteWorker(host), Ok(_)) if self.dice.chance(500) => {
                let mended = self.dice.range(100, 30_000);
                self.agenda.after(mended, Event::Rejoin(host));
            }
            (ApiCall::Rejoin(host), Ok(_)) => {
                (self.hosts[host].dead, self.hosts[host].given_up) = (false, false);
                self.power_on(host);
            }
            (ApiCall::Pause(host, paused), Ok(_)) => {
                self.client.pauses.insert(host, paused);
                if !paused {
                    self.client.drains.insert(host, false);
                }
            }
            (ApiCall::Drain(host, _), Ok(_)) => drop(self.client.drains.insert(host, true)),
            _ => {}
        }
        self.check_acknowledged();
    }

    /// An older backup was restored: what counts is what it holds.
    pub(super) fn client_forgets(&mut self) {
        let client = &mut self.client;
        client.expected.clear();
        client.doomed.clear();
        client.outstanding.clear();
        client.gone.retain(|uid| !self.disk.vms.contains_key(uid));
        let stored = self.disk.vms.values().map(|vm| (vm.uid, (vm.name.clone(), vm.spec.clone())));
        client.expected.extend(stored);
        client.pauses = (0..self.hosts.len())
            .filter_map(|host| Some((host, self.disk.workers.get(&self.hosts[host].name)?.scheduling_paused)))
            .collect();
        client.drains.clear();
    }
}

impl ApiCall {
    /// Whether it concerns what a worker takes.
    fn is_pause_of(&self, host: usize) -> bool {
        matches!(self, ApiCall::Pause(of, _) | ApiCall::Drain(of, _) if *of == host)
    }
}
