//! The cluster core: every VM and worker, and what each request, report, heartbeat and tick does to them.
//!
//! Pure: `now` and new ids come in as arguments; what must be stored and told goes out through [`Changes`]. The one
//! writer (`controller::store::writer`) owns it. Each method first checks and then changes, so a refusal changes
//! nothing and one bad command fails alone.
//!
//! What is stored are VMs, workers, copies that are still to be removed, who may do what (`access`), and events. Sessions and liveness are only in
//! memory: after a restart every worker says hello again and has a whole lease to do so.

mod access;
mod audit;
mod changes;
mod ends;
mod join;
mod placing;
mod removal;
mod vm;
mod worker;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::access::Access;
pub use self::access::check_token;
pub use self::changes::Changes;
use super::scheduler::{Policy, Scheduler, Shape, Standing};
use crate::bus::message::{self, Assignment, DesiredCopy, RunSpec, Want};
use crate::model::account::{Account, JoinToken, WorkerKey};
use crate::model::audit::AuditNumber;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::event::EventNumber;
use crate::model::resources::Resources;
use crate::model::vm::{Vm, VmStatus};
use crate::model::worker::{Worker, WorkerState, WorkerView};
use crate::model::{CopyId, Now, SessionId, VmName, VmUid, WorkerName};

/// Durations that rule liveness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often a worker renews its lease.
    pub heartbeat: Duration,
    /// How long a lease lasts without renewal; a worker that is silent for longer is unseen.
    pub lease: Duration,
}

impl Default for Timing {
    /// Five missed heartbeats: an ordinary network hiccup or a reconnect does not show.
    fn default() -> Self {
        Self { heartbeat: Duration::from_secs(3), lease: Duration::from_secs(15) }
    }
}

/// A copy that its worker still has to remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// The VM's name, as it was.
    pub name: VmName,
    /// Which copy.
    pub id: CopyId,
    /// Who has it.
    pub worker: WorkerName,
    /// What it may still take there; empty once it certainly does not run.
    pub held: Resources,
    /// The VM was deleted, so nothing of it remains once this copy is gone.
    pub deleted: bool,
}

/// What the store holds, as read at start.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// All VMs.
    pub vms: Vec<Vm>,
    /// All workers.
    pub workers: Vec<Worker>,
    /// All copies still to be removed.
    pub leaving: Vec<Leaving>,
    /// All service accounts.
    pub accounts: Vec<Account>,
    /// All join tokens.
    pub joins: Vec<JoinToken>,
    /// The keys of all workers.
    pub keys: Vec<WorkerKey>,
    /// The last number given to an event.
    pub last_event: EventNumber,
    /// The last number given to an audit record.
    pub last_audit: AuditNumber,
}

#[derive(Clone, Debug)]
struct WorkerEntry {
    record: Worker,
    vms: BTreeSet<VmUid>,
    leaving: BTreeSet<CopyId>,
    live: Option<Live>,
    state: WorkerState,
    /// Since when nothing was heard, by the monotonic clock.
    heard: Duration,
}

/// What is known of a worker only while it speaks.
#[derive(Clone, Debug)]
struct Live {
    session: SessionId,
    revision: u64,
    seen: Now,
    strays: BTreeSet<CopyId>,
}

/// What stands in the way of VMs, worked out once for all that want the same.
type Reasons = HashMap<Shape, String>;

/// The state of the whole cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    timing: Timing,
    vms: BTreeMap<VmName, Vm>,
    names: HashMap<VmUid, VmName>,
    leaving: BTreeMap<CopyId, Leaving>,
    workers: BTreeMap<WorkerName, WorkerEntry>,
    access: Access,
    /// Knows what each worker holds, and which VMs wait for one.
    scheduler: Scheduler,
    /// When VMs delete themselves, by the monotonic clock; those of VMs that are gone already are passed over.
    ends: BTreeSet<(Duration, VmUid)>,
    /// Not to be placed before this moment of the monotonic clock.
    held_back: HashMap<VmUid, Duration>,
    last_event: EventNumber,
    last_audit: AuditNumber,
    /// When time last passed; none before the first time.
    ticked: Option<Duration>,
}

impl Cluster {
    /// Builds the state from what the store holds. Every worker starts a full lease at `now`.
    pub fn load(records: Records, timing: Timing, now: Now) -> Self {
        let mut cluster = Self {
            timing,
            vms: BTreeMap::new(),
            names: HashMap::new(),
            leaving: BTreeMap::new(),
            workers: BTreeMap::new(),
            access: Access::load(records.accounts, records.joins, records.keys),
            scheduler: Scheduler::new(Policy::default()),
            ends: BTreeSet::new(),
            held_back: HashMap::new(),
            last_event: records.last_event,
            last_audit: records.last_audit,
            ticked: None,
        };
        for record in records.workers {
            let name = record.info.name.clone();
            cluster.workers.insert(name.clone(), WorkerEntry::new(record, now));
            cluster.tell_scheduler(&name);
        }
        for leaving in records.leaving {
            cluster.insert_leaving(leaving);
        }
        for vm in records.vms {
            let left = ends::pause_left(&vm, now.wall);
            if vm.worker.is_none() && !left.is_zero() {
                cluster.held_back.insert(vm.uid, now.mono.saturating_add(left));
            }
            cluster.note_end(&vm, now);
            cluster.insert_vm(vm);
        }
        cluster
    }

    /// Takes over what `other` knows beyond the store: sessions and liveness. For the writer, when it goes back to the
    /// stored state after a commit that failed.
    pub fn keep_liveness_of(&mut self, other: &Cluster) {
        self.held_back.clone_from(&other.held_back);
        self.ends.clone_from(&other.ends);
        self.ticked = other.ticked;
        for (name, entry) in &mut self.workers {
            if let Some(known) = other.workers.get(name) {
                entry.live.clone_from(&known.live);
                entry.state = known.state;
                entry.heard = known.heard;
            }
        }
        let names: Vec<WorkerName> = self.workers.keys().cloned().collect();
        names.iter().for_each(|name| self.tell_scheduler(name));
    }

    /// The last number given to an event.
    pub fn last_event(&self) -> EventNumber {
        self.last_event
    }

    /// The stored form of a VM; `None` once it is deleted.
    pub fn vm_record(&self, uid: VmUid) -> Option<&Vm> {
        self.names.get(&uid).and_then(|name| self.vms.get(name)).filter(|vm| vm.uid == uid)
    }

    /// The stored form of a worker.
    pub fn worker_record(&self, name: &WorkerName) -> Option<&Worker> {
        self.workers.get(name).map(|entry| &entry.record)
    }

    /// The stored form of a copy still to be removed; `None` once it is gone.
    pub fn leaving_record(&self, id: CopyId) -> Option<&Leaving> {
        self.leaving.get(&id)
    }

    /// A VM as readers may see it.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`].
    pub fn vm(&self, name: &VmName, now: Now) -> Result<Vm, ApiError> {
        Ok(self.view(self.known_vm(name)?, &mut Reasons::default(), now))
    }

    fn known_vm(&self, name: &VmName) -> Result<&Vm, ApiError> {
        self.vms.get(name).ok_or_else(|| {
            ApiError::new(
                ErrorCode::NotFound,
                format!("there is no VM named {name}; `orchard list vms` shows those there are"),
            )
        })
    }

    /// At most `limit` VMs after `after`, in name order, and whether there are more; fewer when they are so large that
    /// they would make more than `bytes` of answer.
    pub fn vms(&self, after: Option<&VmName>, limit: usize, bytes: usize, now: Now) -> (Vec<Vm>, bool) {
        use std::ops::Bound::{Excluded, Unbounded};
        let from = after.map_or(Unbounded, |name| Excluded(name.clone()));
        let mut room = bytes;
        let mut page: Vec<Vm> = Vec::new();
        let mut reasons = Reasons::default();
        for (_, vm) in self.vms.range((from, Unbounded)) {
            let seen = self.view(vm, &mut reasons, now);
            let size = message::encode(&seen).map_or(0, |encoded| encoded.len());
            if page.len() >= limit || (size > room && !page.is_empty()) {
                return (page, true);
            }
            room = room.saturating_sub(size);
            page.push(seen);
        }
        (page, false)
    }

    /// A worker as readers see it. `connectable` is not known here and false.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`].
    pub fn worker(&self, name: &WorkerName) -> Result<WorkerView, ApiError> {
        self.workers.get(name).map(|entry| entry.view(self.scheduler.used(name))).ok_or_else(|| {
            let hint = "`orchard list workers` shows those there are";
            ApiError::new(ErrorCode::NotFound, format!("there is no worker named {name}; {hint}"))
        })
    }

    /// All workers, in name order.
    pub fn all_workers(&self) -> Vec<WorkerView> {
        self.workers.iter().map(|(name, entry)| entry.view(self.scheduler.used(name))).collect()
    }

    /// Adds what is no property of the VM to what readers see: what stands in the way of its being placed, or its worker's
    /// silence. Not stored, as it changes with every worker.
    fn view(&self, vm: &Vm, reasons: &mut Reasons, now: Now) -> Vm {
        let mut seen = vm.clone().redacted();
        if self.scheduler.is_waiting(vm.uid) {
            let shape = Shape::of(&vm.spec);
            let reason = reasons.entry(shape).or_insert_with_key(|shape| self.scheduler.explain(shape).to_string());
            seen.status_message.clone_from(reason);
        }
        let entry = vm.worker.as_ref().and_then(|name| self.workers.get(name));
        if let Some(entry) = entry.filter(|entry| entry.state == WorkerState::Unseen && vm.status != VmStatus::Failed) {
            let silence = now.mono.saturating_sub(entry.heard).as_secs();
            let note = format!("worker {} has not been heard of for {silence} s", entry.record.info.name);
            let so_far = &seen.status_message;
            seen.status_message = if so_far.is_empty() { note } else { format!("{note}; before: {so_far}") };
        }
        seen
    }

    /// What `worker` shall run now; `None` while it has no session.
    pub fn assignment(&self, worker: &WorkerName) -> Option<Assignment> {
        let entry = self.workers.get(worker)?;
        let live = entry.live.as_ref()?;
        let placed = entry.vms.iter().filter_map(|uid| self.vm_record(*uid)).map(|vm| DesiredCopy {
            name: vm.name.clone(),
            uid: vm.uid,
            attempt: vm.restart_count,
            want: match vm.status {
                VmStatus::Pending | VmStatus::Running => Want::Run(Box::new(RunSpec {
                    spec: vm.spec.clone(),
                    generation: vm.generation,
                    cpu: vm.assigned_cpu,
                    memory: vm.assigned_memory,
                    ran: vm.started_at.is_some(),
                })),
                VmStatus::Failed => Want::Keep,
            },
        });
        let leaving = entry.leaving.iter().filter_map(|id| self.leaving.get(id)).map(|leaving| DesiredCopy {
            name: leaving.name.clone(),
            uid: leaving.id.uid,
            attempt: leaving.id.attempt,
            want: Want::Absent,
        });
        let copies = placed.chain(leaving).collect();
        Some(Assignment { session: live.session, revision: live.revision, copies, part: 0, parts: 1 })
    }

    /// Notes that what `worker` shall run has changed.
    fn reassign(&mut self, worker: &WorkerName, changes: &mut Changes) {
        if let Some(live) = self.workers.get_mut(worker).and_then(|entry| entry.live.as_mut()) {
            live.revision += 1;
            changes.assign.insert(worker.clone());
        }
    }

    fn insert_vm(&mut self, vm: Vm) {
        let uid = vm.uid;
        if let Some((name, entry)) = vm.worker.as_ref().and_then(|name| Some((name, self.workers.get_mut(name)?))) {
            entry.vms.insert(uid);
            self.scheduler.hold(name, &vm.assigned, 1);
            if vm.started_at.is_some() {
                self.scheduler.has_image(name, &vm.spec.image);
            }
        }
        self.names.insert(uid, vm.name.clone());
        self.vms.insert(vm.name.clone(), vm);
        self.consider(uid);
    }

    fn insert_leaving(&mut self, leaving: Leaving) {
        if let Some(entry) = self.workers.get_mut(&leaving.worker) {
            entry.leaving.insert(leaving.id);
            self.scheduler.hold(&leaving.worker, &leaving.held, 0);
        }
        self.leaving.insert(leaving.id, leaving);
    }
}

impl WorkerEntry {
    fn new(record: Worker, now: Now) -> Self {
        Self {
            record,
            vms: BTreeSet::new(),
            leaving: BTreeSet::new(),
            live: None,
            state: WorkerState::Unseen,
            heard: now.mono,
        }
    }

    fn standing(&self) -> Standing {
        match self.state {
            WorkerState::Online if self.live.is_some() && self.record.scheduling_paused => Standing::Paused,
            WorkerState::Online if self.live.is_some() => Standing::Open,
            _ => Standing::Unseen,
        }
    }

    fn view(&self, used: Option<&Resources>) -> WorkerView {
        WorkerView {
            worker: self.record.clone(),
            state: self.state,
            connectable: false,
            last_seen: self.live.as_ref().map(|live| live.seen.wall),
            used: used.cloned().unwrap_or_default(),
            vms: u64::try_from(self.vms.len()).unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests;
