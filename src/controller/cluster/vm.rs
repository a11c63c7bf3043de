//! The life of a VM: creation, deletion, reports of its worker, failure and starting over.

use std::time::Duration;

use super::{Changes, Cluster, Leaving};
use crate::bus::message::{self, CreateVm, LogLines, Observation, Report};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::event::{EventObject, EventType};
use crate::model::resources::Resources;
use crate::model::vm::{RestartPolicy, Vm, VmSpec, VmStatus};
use crate::model::{CopyId, Now, VmName, VmUid, WorkerName};

/// The pause before the second restart in a row; doubled for each further one. The first comes at once.
const RESTART_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause between restarts: a broken image costs little, a mended one is noticed soon.
const MAX_RESTART_PAUSE: Duration = Duration::from_secs(300);
/// A VM that ran this long has proved itself: its next failure counts as the first again.
const PROVEN_AFTER: Duration = Duration::from_secs(600);
/// Bounds of a specification: generous for people, small against the broker's payload limit.
const MAX_TEXT: usize = 4 * 1024;
const MAX_SCRIPT: usize = 256 * 1024;
const MAX_PAIRS: usize = 64;
/// All of it together: one VM must fit into one message to its worker.
const MAX_SPEC: usize = 512 * 1024;
/// Lines of output of one copy: at a million a second, two weeks.
const MAX_LOG_LINES: u64 = 1 << 40;
/// A status message is a line or a few; more belongs in the log.
const MAX_MESSAGE: usize = 2 * 1024;

impl Cluster {
    /// A new VM, pending; [`Cluster::place`] finds its worker.
    ///
    /// # Errors
    /// [`ErrorCode::Conflict`] when the name is taken, [`ErrorCode::Invalid`] when the specification cannot work.
    pub fn create_vm(
        &mut self,
        request: CreateVm,
        uid: VmUid,
        now: Now,
        changes: &mut Changes,
    ) -> Result<Vm, ApiError> {
        check_spec(&request.spec)?;
        if self.vms.contains_key(&request.name) {
            return Err(ApiError::new(
                ErrorCode::Conflict,
                format!(
                    "there already is a VM named {0}; delete it first (`orchard delete vm {0}`) or take another name",
                    request.name
                ),
            ));
        }
        let mut vm = Vm::requested(request.name, uid, now.wall, request.spec);
        "waiting for a worker".clone_into(&mut vm.status_message);
        changes.vm_event(&mut self.last_event, now, &vm, EventType::Created, format!("image {}", vm.spec.image));
        let view = vm.clone().redacted();
        self.note_end(&vm, now);
        self.insert_vm(vm);
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
            return Err(ApiError::new(ErrorCode::NotFound, format!("there is no VM named {name} to delete")));
        };
        self.names.remove(&vm.uid);
        self.scheduler.withdraw(vm.uid);
        self.held_back.remove(&vm.uid);
        let waits = vm.worker.is_some() || self.leaving.values().any(|leaving| leaving.id.uid == vm.uid);
        let kind = if waits { EventType::Deleting } else { EventType::Deleted };
        changes.vm_event(&mut self.last_event, now, &vm, kind, why);
        for leaving in self.leaving.values_mut().filter(|leaving| leaving.id.uid == vm.uid) {
            leaving.deleted = true;
            changes.leaving.insert(leaving.id);
        }
        self.dismiss(&vm, vm.assigned.clone(), true, changes);
        Ok(())
    }

    /// Turns the placed copy of `vm` into one to be removed that still holds `held`.
    fn dismiss(&mut self, vm: &Vm, held: Resources, deleted: bool, changes: &mut Changes) {
        let Some(worker) = vm.worker.clone() else { return };
        if let Some(entry) = self.workers.get_mut(&worker) {
            entry.vms.remove(&vm.uid);
            self.scheduler.release(&worker, &vm.assigned, 1);
        }
        let id = vm.copy_id();
        self.insert_leaving(Leaving { name: vm.name.clone(), id, worker: worker.clone(), held, deleted });
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
        match report.observation {
            Observation::Absent => self.copy_gone(worker, id, now, changes),
            Observation::Stray { name } => self.stray(worker, id, &name, now, changes),
            Observation::Preparing { message } => self.preparing(worker, id, bounded(message), now, changes),
            Observation::Running { message, ready, generation } => {
                self.running(worker, id, (bounded(message), ready, generation), now, changes)
            }
            Observation::Failed { message } => self.failed(worker, id, bounded(message), now, changes),
        }
    }

    /// Stores lines of a startup script; those that are already stored are left out.
    ///
    /// # Errors
    /// As for [`Cluster::report`], and [`ErrorCode::Conflict`] when lines before these are missing.
    pub fn log(&mut self, worker: &WorkerName, log: LogLines, now: Now, changes: &mut Changes) -> Result<(), ApiError> {
        self.check_session(worker, log.session)?;
        let last_event = &mut self.last_event;
        let vm = placed(&self.names, &mut self.vms, worker, CopyId { uid: log.uid, attempt: log.attempt })?;
        if log.first > MAX_LOG_LINES {
            let what = format!("line {} cannot be: a copy has at most {MAX_LOG_LINES} lines", log.first);
            return Err(ApiError::new(ErrorCode::Invalid, what));
        }
        let known = usize::try_from(vm.log_lines.saturating_sub(log.first)).unwrap_or(usize::MAX);
        if log.first > vm.log_lines {
            // The store was set back behind the worker; the gap cannot be filled, what follows can still be kept.
            vm.log_lines = log.first;
        }
        for line in log.lines.into_iter().skip(known) {
            vm.log_lines = vm.log_lines.saturating_add(1);
            changes.vms.insert(vm.uid);
            changes.log(last_event, now, vm, line.stream, line.text);
        }
        Ok(())
    }

    fn preparing(
        &mut self,
        worker: &WorkerName,
        id: CopyId,
        message: String,
        now: Now,
        changes: &mut Changes,
    ) -> Result<(), ApiError> {
        let last_event = &mut self.last_event;
        let vm = placed(&self.names, &mut self.vms, worker, id)?;
        if vm.status == VmStatus::Pending && vm.status_message != message {
            vm.status_message.clone_from(&message);
            changes.vm_event(last_event, now, vm, EventType::Progress, message);
        }
        Ok(())
    }

    fn running(
        &mut self,
        worker: &WorkerName,
        id: CopyId,
        (message, ready, generation): (String, bool, u64),
        now: Now,
        changes: &mut Changes,
    ) -> Result<(), ApiError> {
        let last_event = &mut self.last_event;
        let vm = placed(&self.names, &mut self.vms, worker, id)?;
        if vm.status == VmStatus::Failed {
            // Its worker is about to stop it; a failure is not taken back.
            return Ok(());
        }
        let starts = vm.status == VmStatus::Pending;
        let becomes_ready = ready && !vm.ready;
        if starts || becomes_ready || vm.status_message != message || vm.observed_generation != generation {
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
        Ok(())
    }

    /// A copy that certainly does not run any more: its room is free, and its policy decides what follows.
    pub(super) fn failed(
        &mut self,
        worker: &WorkerName,
        id: CopyId,
        message: String,
        now: Now,
        changes: &mut Changes,
    ) -> Result<(), ApiError> {
        let last_event = &mut self.last_event;
        let vm = placed(&self.names, &mut self.vms, worker, id)?;
        if vm.status == VmStatus::Failed {
            return Ok(());
        }
        self.scheduler.release(worker, &std::mem::take(&mut vm.assigned), 0);
        vm.status = VmStatus::Failed;
        vm.ready = false;
        vm.status_message.clone_from(&message);
        vm.failed_at = Some(now.wall);
        changes.vm_event(last_event, now, vm, EventType::Failed, message);
        let policy = vm.spec.restart_policy;
        let uid = vm.uid;
        self.reassign(worker, changes);
        match policy {
            RestartPolicy::Never => {}
            RestartPolicy::OnFailure => self.start_over(uid, now, changes),
        }
        Ok(())
    }

    fn start_over(&mut self, uid: VmUid, now: Now, changes: &mut Changes) {
        let Some(old) = self.vm_record(uid).cloned() else { return };
        self.dismiss(&old, Resources::default(), false, changes);
        let Some(vm) = self.vms.get_mut(&old.name) else { return };
        let proven = vm.started_at.is_some_and(|started| started.until(now.wall) >= PROVEN_AFTER);
        let quick = if proven { 0 } else { vm.quick_failures };
        let pause = restart_pause(quick);
        let cause = std::mem::take(&mut vm.status_message);
        vm.status_message = if pause.is_zero() {
            "starting over".to_owned()
        } else {
            format!("starting over in {} s, after: {cause}", pause.as_secs())
        };
        vm.quick_failures = quick.saturating_add(1);
        vm.restart_count = vm.restart_count.saturating_add(1);
        vm.restarted_at = Some(now.wall);
        vm.status = VmStatus::Pending;
        vm.worker = None;
        vm.placed_because.clear();
        vm.assigned_cpu = 0;
        vm.assigned_memory = 0;
        vm.scheduled_at = None;
        vm.started_at = None;
        vm.failed_at = None;
        vm.log_lines = 0;
        changes.vm_event(&mut self.last_event, now, vm, EventType::Restarting, format!("in {} s", pause.as_secs()));
        if pause.is_zero() {
            self.consider(uid);
        } else {
            self.held_back.insert(uid, now.mono.saturating_add(pause));
        }
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
        let last = leaving.deleted && !self.leaving.values().any(|other| other.id.uid == id.uid);
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

/// The VM whose current copy is `id` on `worker`.
fn placed<'a>(
    names: &std::collections::HashMap<VmUid, VmName>,
    vms: &'a mut std::collections::BTreeMap<VmName, Vm>,
    worker: &WorkerName,
    id: CopyId,
) -> Result<&'a mut Vm, ApiError> {
    names
        .get(&id.uid)
        .and_then(|name| vms.get_mut(name))
        .filter(|vm| vm.copy_id() == id && vm.worker.as_ref() == Some(worker))
        .ok_or_else(|| stale(worker, id))
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

/// The pause before a restart, after `quick` failures in a row before this one.
pub(super) fn restart_pause(quick: u32) -> Duration {
    match quick.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => RESTART_PAUSE.saturating_mul(1 << doublings.min(16)).min(MAX_RESTART_PAUSE),
    }
}

fn check_spec(spec: &VmSpec) -> Result<(), ApiError> {
    let refuse = |what: String| Err(ApiError::new(ErrorCode::Invalid, what));
    if spec.image.is_empty() {
        return refuse("no image was given; name the file or URL that the disk shall be cloned from".to_owned());
    }
    if spec.image.starts_with('-') || spec.image.chars().any(char::is_control) {
        return refuse(format!("image {:?} begins with a dash or contains control characters", spec.image));
    }
    let texts = [
        ("image", spec.image.len()),
        ("username", spec.guest_user().len()),
        ("password", spec.guest_password().expose().len()),
    ];
    if let Some((what, len)) = texts.into_iter().find(|(_, len)| *len > MAX_TEXT) {
        return refuse(format!("the {what} has {len} bytes; at most {MAX_TEXT} are allowed"));
    }
    if let Some(script) = &spec.startup_script {
        let env: usize = script.env.iter().map(|(name, value)| name.len() + value.expose().len()).sum();
        let len = script.script_content.len().saturating_add(env);
        if len > MAX_SCRIPT {
            return refuse(format!(
                "the startup script has {len} bytes; at most {MAX_SCRIPT} are allowed: fetch more from within it"
            ));
        }
    }
    let pairs = spec.labels.iter().map(|(k, v)| (k, v.len())).chain(spec.resources.0.keys().map(|k| (k, 0)));
    if spec.labels.len() > MAX_PAIRS || spec.resources.0.len() > MAX_PAIRS {
        return refuse(format!("more than {MAX_PAIRS} labels or resources"));
    }
    for (key, len) in pairs {
        if key.is_empty() || key.len() > MAX_TEXT || len > MAX_TEXT {
            return refuse(format!(
                "a label or resource name is empty, or it or its value is longer than {MAX_TEXT} bytes"
            ));
        }
    }
    let size = message::encode(spec)?.len();
    if size > MAX_SPEC {
        return refuse(format!("the specification has {size} bytes; at most {MAX_SPEC} are allowed"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_come_at_once_then_ever_later_up_to_a_bound() {
        let pauses: Vec<_> = (0..9).map(|quick| restart_pause(quick).as_secs()).collect();
        assert_eq!(pauses, [0, 5, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(restart_pause(u32::MAX), MAX_RESTART_PAUSE);
    }

    #[test]
    fn what_would_not_fit_into_one_message_is_refused() {
        let labels = (0..64).map(|n| (format!("{n:04096}"), "x".repeat(MAX_TEXT))).collect();
        let spec = VmSpec { image: "i".into(), labels, ..VmSpec::default() };
        assert_eq!(check_spec(&spec).unwrap_err().code, ErrorCode::Invalid);
        let script =
            crate::model::vm::StartupScript { script_content: "x".repeat(MAX_SCRIPT), env: Default::default() };
        let spec = VmSpec { image: "i".into(), startup_script: Some(script), ..VmSpec::default() };
        check_spec(&spec).unwrap();
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        assert!(bounded("ä".repeat(MAX_MESSAGE)).len() <= MAX_MESSAGE + '…'.len_utf8());
    }
}
