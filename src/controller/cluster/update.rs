//! Changes of what a VM shall be, while it lives.
//!
//! Each accepted change raises its generation, and its record is all there is of it: whoever acts on the VM later, be it the
//! scheduler, a restart or the worker's next assignment, reads it there. So a change that comes while the VM is pending, being
//! prepared or waiting, or while its worker is away, cannot be lost, and the last of several is what counts.
//!
//! What needs another process has the copy boot again from its own disk. It is stopped for that and not suspended, even if it
//! could be: memory that was frozen under one configuration cannot be thawed under another.

use super::power::next_boot;
use super::spec::check_spec;
use super::{Changes, Cluster};
use crate::bus::life::{SpecChange, UpdateVm};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::event::EventType;
use crate::model::features;
use crate::model::vm::{OnUnseen, PowerState, Vm, VmSpec, VmStatus};
use crate::model::{Now, VmUid};

impl Cluster {
    /// Changes what a VM shall be, and yields it as it then is. What changes nothing is no change.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`]; [`ErrorCode::Conflict`] when it has failed, is at another generation than was expected, or is
    /// in another power state than can be left in this way; [`ErrorCode::Invalid`] when that cannot change, or not so.
    pub fn update_vm(&mut self, request: UpdateVm, now: Now, changes: &mut Changes) -> Result<Vm, ApiError> {
        let UpdateVm { name, if_generation, change } = request;
        let vm = self.known_vm(&name)?;
        if let Some(expected) = if_generation.filter(|expected| *expected != vm.generation) {
            let what = format!(
                "VM {name} is at generation {}, and not at {expected}: somebody has changed it since; look at it (`orchard get \
                 vm {name}`) and try again",
                vm.generation
            );
            return Err(ApiError::new(ErrorCode::Conflict, what));
        }
        let spec = changed(vm, change, now)?;
        let kind =
            vm.worker.as_ref().and_then(|worker| self.workers.get(worker)).map(|entry| entry.record.info.runtime);
        if let Some(kind) = kind.filter(|_| boots_for(&vm.spec, &spec).is_some()) {
            features::check(&spec, kind)?;
        }
        if spec != vm.spec {
            self.apply(vm.uid, spec, now, changes);
        }
        self.vm(&name, now)
    }

    fn apply(&mut self, uid: VmUid, spec: VmSpec, now: Now, changes: &mut Changes) {
        let held_back = self.held_back.contains(uid);
        let Some(vm) = self.names.get(&uid).and_then(|name| self.vms.get_mut(name)) else { return };
        self.usage.remove(vm);
        let before = std::mem::replace(&mut vm.spec, spec);
        self.usage.add(vm);
        vm.generation = vm.generation.saturating_add(1);
        if vm.spec.on_unseen == OnUnseen::Replace && before.on_unseen == OnUnseen::Keep && vm.worker.is_some() {
            // Not before its worker has told that it knows: it goes on running it otherwise.
            vm.replace_since = vm.generation;
        }
        let differences = differences(&before, &vm.spec);
        changes.say(format!("uid {uid}, generation {}: {differences}", vm.generation));
        let (was_off, is_off) = (before.power_state != PowerState::Running, vm.is_to_be_off());
        let takes_room = vm.conditions.scheduled();
        let worker = vm.worker.clone();
        match (was_off, is_off) {
            (false, true) if takes_room => {
                let how = if vm.spec.power_state == PowerState::Suspended { "suspending" } else { "stopping" };
                how.clone_into(&mut vm.status_message);
            }
            (false, true) => vm.status_message = off_already(vm),
            (true, true) if !takes_room => vm.status_message = off_already(vm),
            (true, false) => {
                // Whoever switches it on does not want to wait for a pause that some failure has brought about.
                vm.quick_failures = 0;
                self.held_back.remove(uid);
                if let Some(worker) = &worker {
                    let message =
                        if takes_room { "booting again" } else { "switched on; waiting for room on its worker" };
                    next_boot(vm, format!("{message} ({worker})"));
                } else {
                    "switched on; waiting for a worker".clone_into(&mut vm.status_message);
                }
            }
            // One that waits to boot takes it up then.
            (false, false) if takes_room && !held_back => {
                if let Some(why) = boots_for(&before, &vm.spec) {
                    next_boot(vm, format!("booting again, {why}"));
                }
            }
            _ => {}
        }
        if is_off && !takes_room {
            // Nothing has to be put into effect anywhere.
            vm.observed_generation = vm.generation;
        }
        changes.vm_event(&mut self.last_event, now, vm, EventType::Updated, differences);
        if before.ttl_s != vm.spec.ttl_s {
            let vm = vm.clone();
            self.ends.remove(uid);
            self.note_end(&vm, now);
        }
        // With its new priority, or not at all any more.
        self.scheduler.withdraw(uid);
        self.consider(uid);
        if let Some(worker) = worker {
            self.reassign(&worker, changes);
        }
    }
}

/// What to say of a VM that is not to run and does not.
fn off_already(vm: &Vm) -> String {
    let what = if vm.spec.power_state == PowerState::Suspended { "suspended" } else { "stopped" };
    match &vm.worker {
        Some(worker) => format!("{what}; its disk is on {worker}"),
        None => format!("{what} before it was placed; `orchard start vm {}` has it wait for a worker", vm.name),
    }
}

/// Why a VM that runs boots again to become `after`: its process gets other arguments. None when it need not.
fn boots_for(before: &VmSpec, after: &VmSpec) -> Option<&'static str> {
    if before.suspendable != after.suspendable {
        return Some("so that it can be suspended from then on");
    }
    let network = |spec: &VmSpec| (spec.softnet(), spec.net_softnet_allow.clone(), spec.net_softnet_block.clone());
    (network(before) != network(after)).then_some("so that Softnet isolates its network as is wished now")
}

/// What `vm` shall be after `change`.
fn changed(vm: &Vm, change: SpecChange, now: Now) -> Result<VmSpec, ApiError> {
    let refuse = |code, what: String| Err(ApiError::new(code, what));
    let (name, old) = (&vm.name, &vm.spec);
    if vm.status == VmStatus::Failed {
        let what = format!("VM {name} has failed and cannot be changed any more; delete it, and create it anew");
        return refuse(ErrorCode::Conflict, what);
    }
    let moved = [
        ("os", change.os.is_some_and(|os| Some(os) != old.os)),
        ("arch", change.arch.is_some_and(|arch| Some(arch) != old.arch)),
        ("runtime", change.runtime.is_some_and(|runtime| Some(runtime) != old.runtime)),
    ];
    if let Some((what, _)) = moved.into_iter().find(|(_, moved)| *moved) {
        let what = format!("the {what} of VM {name} was chosen when it was made and cannot change; make another VM");
        return refuse(ErrorCode::Invalid, what);
    }
    if old.suspendable && change.suspendable == Some(false) {
        let what = format!("VM {name} can be suspended, and stays so: its memory may be needed in the form it has");
        return refuse(ErrorCode::Invalid, what);
    }
    if change.power_state == Some(PowerState::Suspended) {
        if !old.suspendable {
            let what = format!(
                "VM {name} was not made to be suspended; `orchard update vm {name} --suspendable` boots it again so that it can be"
            );
            return refuse(ErrorCode::Invalid, what);
        }
        if old.power_state == PowerState::Stopped {
            let what = format!(
                "VM {name} is switched off, so there is nothing to suspend; `orchard start vm {name}` comes first"
            );
            return refuse(ErrorCode::Conflict, what);
        }
    }
    let age = vm.created_at.until(now.wall).as_secs();
    if let Some(ttl) = change.ttl_s.filter(|ttl| *ttl > 0 && *ttl <= age && *ttl != old.ttl_s) {
        let what = format!(
            "VM {name} was made {age} s ago, so that a time to live of {ttl} s is over; it counts from there. Give it more, or \
             delete it (`orchard delete vm {name}`)"
        );
        return refuse(ErrorCode::Invalid, what);
    }
    let mut spec = old.clone();
    spec.power_state = change.power_state.unwrap_or(old.power_state);
    spec.suspendable = change.suspendable.unwrap_or(old.suspendable);
    spec.restart_policy = change.restart_policy.unwrap_or(old.restart_policy);
    spec.on_unseen = change.on_unseen.unwrap_or(old.on_unseen);
    spec.priority = change.priority.unwrap_or(old.priority);
    spec.ttl_s = change.ttl_s.unwrap_or(old.ttl_s);
    spec.net_softnet = change.net_softnet.unwrap_or(old.net_softnet);
    spec.net_softnet_allow = change.net_softnet_allow.unwrap_or_else(|| old.net_softnet_allow.clone());
    spec.net_softnet_block = change.net_softnet_block.unwrap_or_else(|| old.net_softnet_block.clone());
    if old.suspendable && old.softnet() != spec.softnet() {
        let what = format!(
            "VM {name} can be suspended, so that Softnet cannot be turned on or off any more (netSoftnet): its memory knows \
             the network as it is. The lists can change, as long as one of them or netSoftnet keeps it on"
        );
        return refuse(ErrorCode::Invalid, what);
    }
    if boots_for(old, &spec).is_some() {
        check_spec(&spec)?;
    }
    Ok(spec)
}

/// What is different, in words.
fn differences(before: &VmSpec, after: &VmSpec) -> String {
    let mut told: Vec<String> = Vec::new();
    let mut tell = |what: &str, before: String, after: String| {
        if before != after {
            told.push(format!("{what} {before} → {after}"));
        }
    };
    tell("power state", before.power_state.to_string(), after.power_state.to_string());
    tell("suspendable", before.suspendable.to_string(), after.suspendable.to_string());
    tell("restart policy", before.restart_policy.to_string(), after.restart_policy.to_string());
    tell("on unseen", before.on_unseen.to_string(), after.on_unseen.to_string());
    tell("priority", before.priority.to_string(), after.priority.to_string());
    tell("time to live", before.ttl_s.to_string(), after.ttl_s.to_string());
    tell("Softnet", before.softnet().to_string(), after.softnet().to_string());
    let list = |networks: &[String]| if networks.is_empty() { "none".to_owned() } else { networks.join(",") };
    tell("Softnet allows", list(&before.net_softnet_allow), list(&after.net_softnet_allow));
    tell("Softnet blocks", list(&before.net_softnet_block), list(&after.net_softnet_block));
    told.join(", ")
}
