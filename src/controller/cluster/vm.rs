//! The life of a VM: creation, deletion, reports of its worker, failure and starting over.

use super::once::digest_of;
use super::spec::check_spec;
use super::{Changes, Cluster, Leaving, replace, restarts};
use crate::bus::log::LogLines;
use crate::bus::message::{CreateVm, Observation, Report};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::event::{EventObject, EventType};
use crate::model::planted::{Bug, planted};
use crate::model::resources::Resources;
use crate::model::secret::redact_urls;
use crate::model::vm::{Once, RestartPolicy, Vm, VmStatus};
use crate::model::{AccountName, Boot, CopyId, Now, VmName, VmUid, WorkerName};

/// Lines of output of one copy: at a million a second, two weeks.
const MAX_LOG_LINES: u64 = 1 << 40;
/// A status message is a line or a few; more belongs in the log.
const MAX_MESSAGE: usize = 2 * 1024;
/// The longest name of an image with its digest that is kept, in bytes; real ones have some hundred.
const MAX_FQN: usize = 2 * 1024;

impl Cluster {
    /// A new VM, pending; [`Cluster::place`] finds its worker.
    ///
    /// # Errors
    /// [`ErrorCode::Conflict`] when the name is taken, or the request's key was used for another one or for a VM that is
    /// deleted, [`ErrorCode::Invalid`] when the specification cannot work,
    /// [`ErrorCode::LimitExceeded`] when there are too many VMs or they are too large together, or the store is full.
    pub fn create_vm(
        &mut self,
        by: Option<AccountName>,
        request: CreateVm,
        uid: VmUid,
        now: Now,
        changes: &mut Changes,
    ) -> Result<Vm, ApiError> {
        check_spec(&request.spec)?;
        if let Some(made) = self.made_before(by.as_ref(), &request)? {
            changes.say(format!("uid {}; it was made by an earlier try of the same request", made.uid));
            return Ok(made);
        }
        self.check_host_dirs(&request.spec)?;
        if self.vms.contains_key(&request.name) {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!(
                    "there already is a VM named {0} (`orchard get vm {0}` shows it); delete it first (`orchard delete vm {0}`) or \
                     take another name",
                    request.name
                ),
            ));
        }
        self.check_room()?;
        self.usage.check(by.as_ref(), &request.spec)?;
        let once = request.key.as_ref().map(|key| Once { key: key.clone(), digest: digest_of(&request) });
        let mut vm = Vm::requested(request.name, uid, now.wall, request.spec);
        vm.attempts_from = self.restored.first_attempt();
        (vm.created_by, vm.once) = (by, once);
        // A VM may be made to be switched on later.
        if vm.is_to_be_off() {
            "switched off before it was placed; `orchard start vm` has it wait for a worker"
                .clone_into(&mut vm.status_message);
        } else {
            "waiting for a worker".clone_into(&mut vm.status_message);
        }
        changes.vm_event(&mut self.last_event, now, &vm, EventType::Created, format!("image {}", vm.spec.image));
        let view = vm.clone().redacted();
        self.note_end(&vm, now);
        let Vm { spec, .. } = &view;
        let amount = |asked: u64| if asked == 0 { "the worker's default".to_owned() } else { asked.to_string() };
        let (cpu, memory) = (amount(spec.cpu), amount(spec.memory));
        changes.say(format!("uid {uid}, cores: {cpu}, MiB: {memory}, image {}", spec.image));
        self.insert_vm(Box::new(vm));
        Ok(view)
    }

    /// Deletes a VM: its name is free at once; its copy leaves its worker, and only then is the room there free.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`].
    pub fn delete_vm(&mut self, name: &VmName, now: Now, changes: &mut Changes) -> Result<(), ApiError> {
        self.delete_because(name, String::new(), now, changes)
    }

    pub(super) fn delete_because(
        &mut self,
        name: &VmName,
        why: String,
        now: Now,
        changes: &mut Changes,
    ) -> Result<(), ApiError> {
        let Some(vm) = self.vms.remove(name) else {
            let what = format!("there is no VM named {name} to delete; `orchard list vms` shows those there are");
            return Err(ApiError::new(ErrorCode::NotFound, what));
        };
        self.usage.remove(&vm);
        self.spend_key(&vm, now, changes);
        if !planted(Bug::NameNotUid) {
            self.names.remove(&vm.uid);
        }
        self.scheduler.withdraw(vm.uid);
        self.held_back.remove(vm.uid);
        self.ends.remove(vm.uid);
        let copies = CopyId::all_of(vm.uid);
        let waits = vm.worker.is_some() || self.leaving.range(copies.clone()).next().is_some();
        let kind = if waits { EventType::Deleting } else { EventType::Deleted };
        changes.vm_event(&mut self.last_event, now, &vm, kind, why);
        let on = vm.worker.as_ref().map_or_else(|| "no worker".to_owned(), |worker| format!("worker {worker}"));
        changes.say(format!("uid {}, {}, on {on}", vm.uid, vm.status));
        for (_, leaving) in self.leaving.range_mut(copies) {
            leaving.deleted = true;
            changes.leaving.insert(leaving.id);
        }
        let held = if planted(Bug::FreedTooSoon) { Resources::default() } else { vm.assigned.clone() };
        self.dismiss(&vm, held, true, changes);
        Ok(())
    }

    /// Turns the placed copy of `vm` into one to be removed that still holds `held`.
    pub(super) fn dismiss(&mut self, vm: &Vm, held: Resources, deleted: bool, changes: &mut Changes) {
        let Some(worker) = vm.worker.clone() else { return };
        if let Some(entry) = self.workers.get_mut(&worker) {
            entry.vms.remove(&vm.uid);
            self.scheduler.release(&worker, &vm.assigned, 1);
            if planted(Bug::DeleteForgets) && deleted && entry.live.is_none() {
                return;
            }
        }
        let id = vm.copy_id();
        let replaceable = replace::is_replaceable(vm);
        self.insert_leaving(Leaving { name: vm.name.clone(), id, worker: worker.clone(), held, deleted, replaceable });
        changes.leaving.insert(id);
        self.reassign(&worker, changes);
    }

    /// Takes in what `worker` says of a copy.
    ///
    /// # Errors
    /// [`ErrorCode::Unauthenticated`] when the session is over, [`ErrorCode::Conflict`] when the copy is not, or no
    /// longer, this worker's: the report is stale and must not be repeated.
    pub fn report(
        &mut self,
        worker: &WorkerName,
        report: Report,
        now: Now,
        changes: &mut Changes,
    ) -> Result<(), ApiError> {
        self.check_session(worker, report.session)?;
        let id = CopyId { uid: report.uid, attempt: report.attempt };
        match &report.observation {
            Observation::Absent => {
                self.copy_gone(worker, id, now, changes)?;
                self.is_stray_no_more(worker, id);
                return Ok(());
            }
            Observation::Stray { name, running } => return self.stray(worker, id, (name, *running), now, changes),
            _ => {}
        }
        // From here on nothing is refused: it is this worker's copy, and its present process.
        at_boot(placed(&self.names, &mut self.vms, worker, id)?, worker, (id, report.boot))?;
        self.is_stray_no_more(worker, id);
        let uid = id.uid;
        match report.observation {
            Observation::Absent | Observation::Stray { .. } => {}
            Observation::Preparing { message } => self.preparing(uid, bounded(message), now, changes),
            Observation::Running { message, ready, generation, image_fqn } => {
                self.note_image(uid, image_fqn, changes);
                self.running(worker, uid, (bounded(message), ready, generation), now, changes);
            }
            Observation::Failed { message, halted: true, .. } => {
                self.halted(worker, uid, bounded(message), now, changes);
            }
            Observation::Failed { message, disk, halted: false } => {
                self.ended(worker, uid, (bounded(message), disk), now, changes);
            }
            Observation::Fenced { message } => self.fenced(worker, uid, &bounded(message), now, changes),
            Observation::Stopped { message } => self.stopped(worker, uid, bounded(message), now, changes),
        }
        Ok(())
    }

    /// Stores lines of a startup script; those that are already stored are left out. Lines of the boot before the present one
    /// are taken, too: its worker may have been cut off when the present one was asked for, and nothing is to be lost.
    ///
    /// # Errors
    /// As for [`Cluster::report`], and [`ErrorCode::Invalid`] for a line beyond the last that a copy can have.
    pub fn log(&mut self, worker: &WorkerName, log: LogLines, now: Now, changes: &mut Changes) -> Result<(), ApiError> {
        self.check_session(worker, log.session)?;
        let last_event = &mut self.last_event;
        let id = CopyId { uid: log.uid, attempt: log.attempt };
        let vm = placed(&self.names, &mut self.vms, worker, id)?;
        let earlier = vm.earlier_log.as_deref().copied().filter(|earlier| earlier.boot == log.boot);
        let mut stored = match earlier {
            Some(earlier) => earlier.lines,
            None => at_boot(vm, worker, (id, log.boot))?.log_lines,
        };
        if log.first > MAX_LOG_LINES {
            let what = format!("line {} cannot be: a copy has at most {MAX_LOG_LINES} lines", log.first);
            return Err(ApiError::new(ErrorCode::Invalid, what));
        }
        let known = usize::try_from(stored.saturating_sub(log.first)).unwrap_or(usize::MAX);
        // If there is a gap, the store was set back behind the worker; it cannot be filled, what follows can still be kept.
        stored = stored.max(log.first);
        for line in log.lines.into_iter().skip(known) {
            stored = stored.saturating_add(1);
            changes.vms.insert(vm.uid);
            changes.log(last_event, now, vm, line);
        }
        match vm.earlier_log.as_deref_mut().filter(|_| earlier.is_some()) {
            Some(earlier) => earlier.lines = stored,
            None => vm.log_lines = stored,
        }
        Ok(())
    }

    fn preparing(&mut self, uid: VmUid, message: String, now: Now, changes: &mut Changes) {
        let last_event = &mut self.last_event;
        let Some(vm) = known(&self.names, &mut self.vms, uid) else { return };
        if vm.status == VmStatus::Pending && vm.conditions.scheduled() && vm.status_message != message {
            vm.status_message.clone_from(&message);
            changes.vm_event(last_event, now, vm, EventType::Progress, message);
        }
    }

    /// Notes which image a copy was made from; not every report says so.
    fn note_image(&mut self, uid: VmUid, image_fqn: Option<String>, changes: &mut Changes) {
        let Some(fqn) = image_fqn.filter(|fqn| fqn.len() <= MAX_FQN).map(|fqn| redact_urls(&fqn)) else { return };
        if let Some(vm) = known(&self.names, &mut self.vms, uid).filter(|vm| vm.image_fqn.as_ref() != Some(&fqn)) {
            vm.image_fqn = Some(fqn);
            changes.vms.insert(uid);
        }
    }

    fn running(
        &mut self,
        worker: &WorkerName,
        uid: VmUid,
        (message, ready, generation): (String, bool, u64),
        now: Now,
        changes: &mut Changes,
    ) {
        let kept_back = self.vm_record(uid).is_some_and(|vm| self.is_kept_from_worker(vm));
        let last_event = &mut self.last_event;
        let waits = self.held_back.contains(uid);
        let Some(vm) = known(&self.names, &mut self.vms, uid) else { return };
        if vm.status == VmStatus::Failed || !vm.conditions.scheduled() || waits {
            // Its worker is about to stop it, or has since; what was told after this is not taken back.
            return;
        }
        // One that comes late may tell of less than is known already; and after a backup was restored, of more than there is.
        let generation = generation.min(vm.generation).max(vm.observed_generation);
        let (starts, uid) = (vm.status == VmStatus::Pending, vm.uid);
        let becomes_ready = ready && !vm.ready;
        if starts
            || becomes_ready
            || vm.status_message != message
            || vm.observed_generation != generation
            || !vm.conditions.running()
        {
            vm.set_conditions(true, true);
            vm.status = VmStatus::Running;
            vm.started_at.get_or_insert(now.wall);
            vm.ready |= ready;
            vm.status_message = message;
            vm.observed_generation = generation;
            changes.vms.insert(vm.uid);
            if starts {
                self.scheduler.has_image(worker, &vm.spec.image);
                changes.vm_event(last_event, now, vm, EventType::Running, format!("on {worker}"));
            }
            if becomes_ready {
                changes.vm_event(last_event, now, vm, EventType::Ready, vm.status_message.clone());
            }
        }
        self.seen_running(uid);
        if kept_back {
            self.reassign(worker, changes);
        }
    }

    /// A copy that certainly does not run any more: its room is free, and its policy decides what follows.
    pub(super) fn failed(&mut self, worker: &WorkerName, uid: VmUid, message: String, now: Now, changes: &mut Changes) {
        let last_event = &mut self.last_event;
        let Some(vm) = known(&self.names, &mut self.vms, uid).filter(|vm| vm.status != VmStatus::Failed) else {
            return;
        };
        self.scheduler.release(worker, &std::mem::take(&mut vm.assigned), 0);
        // It may wait for room there, to be switched on.
        self.scheduler.withdraw(uid);
        vm.status = VmStatus::Failed;
        vm.set_conditions(false, false);
        vm.ready = false;
        vm.status_message.clone_from(&message);
        vm.failed_at = Some(now.wall);
        changes.vm_event(last_event, now, vm, EventType::Failed, message);
        let policy = vm.spec.restart_policy;
        let uid = vm.uid;
        self.reassign(worker, changes);
        if self.adopt(uid, now, changes) {
            return;
        }
        match policy {
            RestartPolicy::Never => {}
            // Started over once it is known that no other copy runs.
            RestartPolicy::OnFailure | RestartPolicy::Always if self.is_held(uid) => {}
            RestartPolicy::OnFailure | RestartPolicy::Always => self.start_over(uid, now, changes),
        }
    }

    pub(super) fn start_over(&mut self, uid: VmUid, now: Now, changes: &mut Changes) {
        let Some(old) = self.vm_record(uid).cloned() else { return };
        self.dismiss(&old, Resources::default(), false, changes);
        let Some(vm) = self.vms.get_mut(&old.name) else { return };
        let pause = restarts::count_failure(vm, now.wall);
        let cause = std::mem::take(&mut vm.status_message);
        vm.status_message = if vm.is_to_be_off() {
            format!(
                "switched off; its disk is not to be had any more, and it starts over from its image when it is switched on: {cause}"
            )
        } else if pause.is_zero() {
            "starting over".to_owned()
        } else {
            format!("starting over in {} s, after: {cause}", pause.as_secs())
        };
        replace::begin_attempt(vm);
        self.restored.lift(vm);
        if planted(Bug::UpdateLost) {
            vm.spec.priority = 0;
        }
        changes.vm_event(&mut self.last_event, now, vm, EventType::Restarting, format!("in {} s", pause.as_secs()));
        self.go_on_after(uid, pause, now);
    }

    /// Nothing is left of a copy.
    pub(super) fn copy_gone(
        &mut self,
        worker: &WorkerName,
        id: CopyId,
        now: Now,
        changes: &mut Changes,
    ) -> Result<(), ApiError> {
        if self.leaving.get(&id).is_none_or(|leaving| leaving.worker != *worker) {
            return Err(stale(worker, id));
        }
        let Some(leaving) = self.leaving.remove(&id) else { return Ok(()) };
        if let Some(entry) = self.workers.get_mut(worker) {
            entry.leaving.remove(&id);
            self.scheduler.release(worker, &leaving.held, 0);
        }
        changes.leaving.insert(id);
        let last = leaving.deleted && self.leaving.range(CopyId::all_of(id.uid)).next().is_none();
        if last {
            let object = EventObject::Vm { name: leaving.name, uid: id.uid, attempt: id.attempt };
            let worker = Some(worker.clone());
            changes.push(&mut self.last_event, now, EventType::Deleted, object, String::new(), worker, None);
        }
        self.consider(id.uid);
        self.reassign(worker, changes);
        Ok(())
    }
}

/// The VM with that uid.
pub(super) fn known<'a>(
    names: &std::collections::HashMap<VmUid, VmName>,
    vms: &'a mut std::collections::BTreeMap<VmName, Box<Vm>>,
    uid: VmUid,
) -> Option<&'a mut Vm> {
    names.get(&uid).and_then(|name| vms.get_mut(name)).map(|vm| &mut **vm)
}

/// The VM whose current copy is `id` on `worker`.
pub(super) fn placed<'a>(
    names: &std::collections::HashMap<VmUid, VmName>,
    vms: &'a mut std::collections::BTreeMap<VmName, Box<Vm>>,
    worker: &WorkerName,
    id: CopyId,
) -> Result<&'a mut Vm, ApiError> {
    known(names, vms, id.uid)
        .filter(|vm| (vm.copy_id() == id || mistaken(vm, id)) && vm.worker.as_ref() == Some(worker))
        .ok_or_else(|| stale(worker, id))
}

/// `vm`, if `boot` is its present one: what was true of an earlier process on the same disk says nothing of this one.
pub(super) fn at_boot<'a>(
    vm: &'a mut Vm,
    worker: &WorkerName,
    (id, boot): (CopyId, Boot),
) -> Result<&'a mut Vm, ApiError> {
    if vm.boot == boot || planted(Bug::StaleBoot) {
        return Ok(vm);
    }
    let what =
        format!("{worker} tells of boot {boot} of copy {id}, which is at boot {} now: the report is stale", vm.boot);
    Err(ApiError::new(ErrorCode::Conflict, what))
}

/// Whether a planted bug takes `id` for the copy of `vm`.
fn mistaken(vm: &Vm, id: CopyId) -> bool {
    planted(Bug::StaleAttempt) && vm.uid == id.uid || planted(Bug::NameNotUid) && vm.copy_id().attempt == id.attempt
}

fn stale(worker: &WorkerName, id: CopyId) -> ApiError {
    ApiError::new(
        ErrorCode::Conflict,
        format!("copy {id} is not, or no longer, placed on {worker}: the report is stale"),
    )
}

fn bounded(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let cut = (0..=MAX_MESSAGE).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(cut);
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut_at_a_character() {
        assert!(bounded("ä".repeat(MAX_MESSAGE)).len() <= MAX_MESSAGE + '…'.len_utf8());
    }
}
