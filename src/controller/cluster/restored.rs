//! After an older backup was restored: at most one live copy of a VM, although nobody remembers what happened since.
//!
//! What the backup says of a VM may be long past: it may have been placed, or placed elsewhere, after the backup was made.
//! Only the workers know. So until each worker that the backup knows has told what it has, or was taken out of the cluster,
//! a VM that came with the backup is *held*: it is not placed, not begun on the worker it was placed on, and not started
//! over. A VM that is seen running is held no longer, and new VMs never are. A running copy that no record names is adopted
//! as soon as nothing speaks against it; what does not run, once all have told (`adopt`). What fits no VM stays a stray, which
//! is told of and left alone.
//!
//! Attempts that are given out after a restoring are higher than any before it ([`Restoration::floor`]), so that one uid and
//! attempt never name two copies. Who has told is known in memory only: after a restart of the controller everybody tells
//! again, as strays are not stored. Workers that joined after the backup was made are not known and not waited for.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::replace::be_nowhere;
use super::{Changes, Cluster, Records};
use crate::model::event::EventType;
use crate::model::planted::{Bug, planted};
use crate::model::resources::Resources;
use crate::model::vm::{RestartPolicy, Vm, VmStatus};
use crate::model::{Attempt, Now, SessionId, Timestamp, VmUid, WorkerName};

/// Attempts are counted on from the quarters of seconds since the beginning of 2025, which last until 2059: far more than
/// attempts of one VM ever pass in that time, as all but the first restart in a row wait for seconds.
const FLOOR_EPOCH_MS: i64 = 1_735_689_600_000;
const FLOOR_UNIT_MS: i64 = 250;
/// How far attempts are moved on when the clock is of no help, as it stands before attempts that were given out.
const FLOOR_LEAP: Attempt = 1 << 16;
/// Attempts beyond this are not believed: a worker that lies must leave enough for those to come.
const MAX_TOLD: Attempt = Attempt::MAX / 2;
/// Heartbeats of one session after which a worker of an older release, which does not say so, is taken to have told all: a
/// whole lease, where its reports come within milliseconds of its registration.
const SILENT_BEATS: u32 = 5;
/// Workers named in messages; more help nobody.
const NAMED: usize = 3;

/// What is stored of the last restoring.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restoration {
    /// Every attempt that was given out before is below.
    pub floor: Attempt,
    /// Of when the backup was.
    pub backup: Timestamp,
    /// Workers that the backup knows, and that had not all told what they have when this was written.
    pub waiting: BTreeSet<WorkerName>,
    /// VMs that were stopped with a lease while they were held, and so start over whatever their policy is.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub fenced: BTreeSet<VmUid>,
}

impl Restoration {
    /// That of a restoring, at `now`, of a backup that was made at `backup` and holds `records`.
    pub fn of(records: &Records, backup: Timestamp, now: Timestamp) -> Self {
        let quarters = now.as_millis().saturating_sub(FLOOR_EPOCH_MS) / FLOOR_UNIT_MS;
        let clock = Attempt::try_from(quarters).unwrap_or(0);
        let placed = records.vms.iter().map(|vm| vm.copy_id().attempt);
        let left = records.leaving.iter().map(|leaving| leaving.id.attempt);
        let given_up = records.given_up.iter().map(|copy| copy.id.attempt);
        let highest = placed.chain(left).chain(given_up).chain([records.restored.floor]).max().unwrap_or(0);
        let workers = records.workers.iter().map(|worker| worker.info.name.clone());
        let keys = records.keys.iter().map(|key| key.worker.clone());
        let waiting = workers.chain(keys).chain(records.restored.waiting.iter().cloned()).collect();
        let fenced = records.restored.fenced.clone();
        Self { floor: clock.max(highest.saturating_add(FLOOR_LEAP)), backup, waiting, fenced }
    }
}

/// The same with what is only in memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Restored {
    record: Restoration,
    /// Those of them that have told.
    heard: BTreeSet<WorkerName>,
    /// VMs of the backup that were seen running since: no other copy of them can be.
    seen_running: HashSet<VmUid>,
    /// The highest attempts that workers have told of beyond the floor: of a restoring before this one, since when the clock
    /// went back. Nobody is to get one of them again.
    told: HashMap<VmUid, Attempt>,
    /// Heartbeats of sessions whose worker does not say whether it has told all.
    beats: std::collections::BTreeMap<WorkerName, (SessionId, u32)>,
}

impl Restored {
    pub(super) fn load(record: Restoration) -> Self {
        Self { record, ..Self::default() }
    }

    /// Takes over what the stored record does not hold, after a commit that failed. Not which VMs were seen running: that may
    /// just have been told, and could not be stored.
    pub(super) fn keep_memory_of(&mut self, other: &Self) {
        self.heard.clone_from(&other.heard);
        self.told.clone_from(&other.told);
        self.beats.clone_from(&other.beats);
    }

    /// Whether `worker` is still to tell what it has.
    pub(super) fn waits_for(&self, worker: &WorkerName) -> bool {
        self.record.waiting.contains(worker) && !self.heard.contains(worker)
    }

    /// Whether it counts what `worker` has to tell.
    pub(super) fn is_asked(&self, worker: &WorkerName) -> bool {
        self.record.waiting.contains(worker) || self.heard.contains(worker)
    }

    /// Whether this VM is held.
    pub(super) fn holds(&self, vm: &Vm) -> bool {
        !self.record.waiting.is_empty() && self.is_older(vm) && !self.seen_running.contains(&vm.uid)
    }

    /// Whether the VM's attempt may have been given out twice.
    fn is_older(&self, vm: &Vm) -> bool {
        vm.copy_id().attempt < self.record.floor
    }

    /// Has a VM that gets a new copy do so in an attempt that was never given out.
    pub(super) fn lift(&self, vm: &mut Vm) {
        if self.is_older(vm) && !planted(Bug::RestoredAttemptsAgain) {
            let told = self.told.get(&vm.uid).map_or(0, |attempt| attempt.saturating_add(1));
            vm.attempts_from = self.record.floor.max(told).saturating_sub(vm.restart_count);
        }
    }

    /// A worker has told of a copy of `vm`, true or not.
    pub(super) fn is_told(&mut self, vm: &Vm, attempt: Attempt) {
        if self.is_older(vm) && attempt >= self.record.floor && attempt <= MAX_TOLD {
            let told = self.told.entry(vm.uid).or_insert(attempt);
            *told = attempt.max(*told);
        }
    }

    /// The same for a new VM.
    pub(super) fn first_attempt(&self) -> Attempt {
        self.record.floor
    }
}

impl Cluster {
    /// What is stored of the last restoring.
    pub fn restored_record(&self) -> &Restoration {
        &self.restored.record
    }

    /// Whether a VM is held because a backup was restored, and its restart or start must wait.
    pub(super) fn is_held(&self, uid: VmUid) -> bool {
        !planted(Bug::RestoredPlacesAtOnce) && self.vm_record(uid).is_some_and(|vm| self.restored.holds(vm))
    }

    /// Whether the worker is not to hear of `vm` yet: it would make it.
    pub(super) fn is_kept_from_worker(&self, vm: &Vm) -> bool {
        vm.status == VmStatus::Pending && self.is_held(vm.uid)
    }

    /// For what a held VM waits, in words; `None` when it is not held, or would wait for nothing in any case.
    pub(super) fn why_held(&self, vm: &Vm) -> Option<String> {
        let starts = match vm.status {
            VmStatus::Pending => true,
            VmStatus::Failed => starts_over(vm.spec.restart_policy) || self.restored.record.fenced.contains(&vm.uid),
            VmStatus::Running | VmStatus::Unknown => false,
        };
        if !starts || !self.is_held(vm.uid) {
            return None;
        }
        Some(format!(
            "a backup of {} was restored, and a copy of this VM may run somewhere since: it is held until every worker has \
             told what it has; {}",
            self.restored.record.backup,
            self.who_is_awaited()
        ))
    }

    /// What may still become of a VM that has failed and does not start over, in words; `None` if nothing.
    pub(super) fn why_may_be_adopted(&self, vm: &Vm) -> Option<String> {
        let may = vm.status == VmStatus::Failed && self.is_held(vm.uid);
        may.then(|| {
            format!(
                "it has failed, and its policy is to stay so; but a backup of {} was restored, and should a worker tell that \
                 a later copy of it runs there, it goes on as that one; {}",
                self.restored.record.backup,
                self.who_is_awaited()
            )
        })
    }

    /// Which workers have not told what they have since a backup was restored, and what can be done about it.
    fn who_is_awaited(&self) -> String {
        let awaited: Vec<&str> = self
            .restored
            .record
            .waiting
            .iter()
            .filter(|name| self.restored.waits_for(name))
            .map(|n| n.as_str())
            .collect();
        let named = awaited.get(..NAMED).unwrap_or(&awaited).join(", ");
        let more = if awaited.len() > NAMED { format!(" and {} more", awaited.len() - NAMED) } else { String::new() };
        format!(
            "still to tell: {named}{more}. Start it; or, if its machine is off for good, `orchard delete worker NAME --force`"
        )
    }

    /// A copy that is placed was seen running.
    pub(super) fn seen_running(&mut self, uid: VmUid) {
        if !self.restored.record.waiting.is_empty() {
            self.restored.seen_running.insert(uid);
        }
    }

    /// A copy of a VM that is held was stopped with its worker's lease.
    pub(super) fn was_fenced(&mut self, uid: VmUid, changes: &mut Changes) {
        self.restored.record.fenced.insert(uid);
        changes.restored = true;
    }

    /// A worker has renewed its lease, and says whether all that was found on its host has been told in this session; none
    /// from a release that does not say.
    pub(super) fn has_told(
        &mut self,
        worker: &WorkerName,
        session: SessionId,
        told: Option<bool>,
        now: Now,
        changes: &mut Changes,
    ) {
        if !self.restored.waits_for(worker) {
            return;
        }
        let all = told.unwrap_or_else(|| {
            let (of, beats) = self.restored.beats.entry(worker.clone()).or_insert((session, 0));
            if *of != session {
                (*of, *beats) = (session, 0);
            }
            *beats = beats.saturating_add(1);
            *beats >= SILENT_BEATS
        });
        if all {
            self.restored.beats.remove(worker);
            self.restored.heard.insert(worker.clone());
            // What it was to begin may be known now not to be there, which lets another copy be adopted.
            let placed: Vec<VmUid> =
                self.workers.get(worker).map(|entry| entry.vms.iter().copied().collect()).unwrap_or_default();
            for uid in placed {
                self.adopt(uid, now, changes);
            }
            self.end_hold(now, changes);
        }
    }

    /// A worker was taken out of the cluster: nobody waits for it any more.
    pub(super) fn no_longer_awaited(&mut self, worker: &WorkerName, now: Now, changes: &mut Changes) {
        if self.restored.record.waiting.remove(worker) {
            changes.restored = true;
            self.end_hold_after(worker, now, changes);
        }
    }

    fn end_hold_after(&mut self, last: &WorkerName, now: Now, changes: &mut Changes) {
        self.restored.heard.remove(last);
        if self.restored.record.waiting.is_empty() {
            self.settle_restored(now, changes);
        } else {
            self.end_hold(now, changes);
        }
    }

    /// Ends the hold if everybody has told.
    pub(super) fn end_hold(&mut self, now: Now, changes: &mut Changes) {
        let restored = &mut self.restored;
        if restored.record.waiting.is_empty() || !restored.record.waiting.is_subset(&restored.heard) {
            return;
        }
        restored.record.waiting.clear();
        changes.restored = true;
        self.settle_restored(now, changes);
    }

    /// Nothing is held any more: what was found is adopted, and the others go on as their records say.
    fn settle_restored(&mut self, now: Now, changes: &mut Changes) {
        let older: Vec<VmUid> = self.vms.values().filter(|vm| self.restored.is_older(vm)).map(|vm| vm.uid).collect();
        for uid in older {
            if self.restored.seen_running.contains(&uid) || self.adopt(uid, now, changes) {
                // It may wait for room on its worker.
                self.consider(uid);
                continue;
            }
            let Some(vm) = self.vm_record(uid) else { continue };
            match (vm.status, vm.worker.is_some()) {
                (VmStatus::Pending, true) => self.take_back(uid, now, changes),
                (VmStatus::Failed, _) if self.restored.record.fenced.contains(&uid) => {
                    let why = "its worker stopped it as its lease was over";
                    self.start_elsewhere(uid, Resources::default(), why, now, changes);
                }
                (VmStatus::Failed, _) if starts_over(vm.spec.restart_policy) => self.start_over(uid, now, changes),
                _ => {}
            }
            self.consider(uid);
        }
        self.restored.heard.clear();
        self.restored.seen_running.clear();
        self.restored.record.fenced.clear();
    }

    /// A VM that the backup has placed, but whose worker has nothing of it, waits for a worker again.
    fn take_back(&mut self, uid: VmUid, now: Now, changes: &mut Changes) {
        let Some(vm) = self.names.get(&uid).and_then(|name| self.vms.get_mut(name)) else { return };
        let Some(worker) = vm.worker.clone() else { return };
        let assigned = std::mem::take(&mut vm.assigned);
        be_nowhere(vm);
        "waiting for a worker".clone_into(&mut vm.status_message);
        let message = format!("{worker} has nothing of it");
        changes.vm_event(&mut self.last_event, now, vm, EventType::Progress, message);
        if let Some(entry) = self.workers.get_mut(&worker) {
            entry.vms.remove(&uid);
        }
        self.scheduler.release(&worker, &assigned, 1);
    }
}

/// Whether a VM that has failed starts over.
fn starts_over(policy: RestartPolicy) -> bool {
    match policy {
        RestartPolicy::Never => false,
        RestartPolicy::OnFailure | RestartPolicy::Always => true,
    }
}
