//! The cluster core: every VM and worker, and what each request, report, heartbeat and tick does to them.
//!
//! Pure: `now` and new ids come in as arguments; what must be stored and told goes out through [`Changes`]. The one
//! writer (`controller::store::writer`) owns it. Each method first checks and then changes, so a refusal changes
//! nothing and one bad command fails alone.
//!
//! What is stored are VMs, workers, copies that are still to be removed or were given up, requests to fetch images
//! (`pulls`), who may do what (`access`), and events. Sessions and liveness (`liveness`) are only in memory: after a restart
//! every worker says hello again and has a whole lease to do so.

mod access;
mod adopt;
mod audit;
mod changes;
mod copied;
mod drain;
mod ends;
mod given_up;
mod images;
mod inventory;
mod join;
mod liveness;
mod once;
mod pauses;
mod placing;
#[cfg(test)]
mod planted;
mod power;
mod pulls;
mod quota;
mod reading;
mod removal;
mod replace;
mod restarts;
mod restored;
mod settings;
mod spec;
mod spent;
mod strays;
mod summary;
mod update;
mod vm;
mod watched;
mod worker;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::access::Access;
pub use self::access::check_token;
pub use self::changes::{Changes, Said};
pub use self::given_up::GivenUp;
use self::given_up::GivenUps;
use self::images::{HeldImages, Names};
use self::inventory::Agreement;
pub use self::liveness::Timing;
pub use self::once::{Spent, SpentKey};
use self::pauses::Pauses;
use self::quota::Usage;
pub use self::restored::Restoration;
use self::restored::Restored;
use self::spent::SpentKeys;
use self::strays::Stray;
pub use self::summary::{Summary, WorkerFigures};
use self::watched::Watched;
use super::scheduler::{Scheduler, Standing};
use crate::bus::message::{Assignment, DesiredCopy, Want};
use crate::model::account::{Account, JoinToken, WorkerKey};
use crate::model::audit::AuditNumber;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::event::EventNumber;
use crate::model::image::{Pull, PullId};
use crate::model::planted::{Bug, planted};
use crate::model::resources::Resources;
use crate::model::settings::ClusterSettings;
use crate::model::vm::{Vm, VmStatus};
use crate::model::worker::{HostLoad, Worker, WorkerState, WorkerView};
use crate::model::{CopyId, Now, SessionId, Timestamp, VmName, VmUid, WorkerName};

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
    /// Its worker stops it when its lease is over: nothing of it runs any more once that worker is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replaceable: bool,
}

/// What the store holds, as read at start.
#[derive(Clone, Debug, Default)]
pub struct Records {
    /// All VMs.
    pub vms: Vec<Box<Vm>>,
    /// All workers.
    pub workers: Vec<Worker>,
    /// All copies still to be removed.
    pub leaving: Vec<Leaving>,
    /// All copies that were given up with their worker.
    pub given_up: Vec<GivenUp>,
    /// What is known of the last restoring.
    pub restored: Restoration,
    /// Keys of requests whose VMs were deleted.
    pub spent: Vec<Spent>,
    /// Requests to fetch images.
    pub pulls: Vec<Pull>,
    /// The settings of the cluster.
    pub settings: ClusterSettings,
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
    /// Where its process was last; see `Hello`.
    place: String,
    /// What was told of as unknown here: over all its sessions, or one that registers again and again could fill the store.
    strays: BTreeMap<CopyId, Stray>,
    /// What images it holds, as it told last.
    images: HeldImages,
    /// Whether it has told that since the controller started.
    told_images: bool,
    /// How far it is with images that it shall fetch.
    pulls: pulls::OnWorker,
    state: WorkerState,
    /// Since when nothing was heard, by the monotonic clock.
    heard: Duration,
    /// The same for people, by the clock on the wall; none while nothing was heard since the start.
    last_seen: Option<Timestamp>,
    /// From when on its present lease counts: the last message, or later if the controller may have missed some.
    lease_from: Duration,
    /// When it was found to be gone, if it is, by the monotonic clock.
    gone_since: Option<Duration>,
    /// The session that was open then: what is still under way of it opens no other.
    closed: Option<SessionId>,
    /// When a drain moves away what is left, by the monotonic clock; none = it does not.
    drain_until: Option<Duration>,
    /// How busy its host is, as it last said.
    load: Option<HostLoad>,
}

/// What is known of a worker only while it speaks.
#[derive(Clone, Debug)]
struct Live {
    session: SessionId,
    revision: u64,
    /// Whether both know the same.
    agreement: Agreement,
    /// For how long a copy may be unknown here until it is deleted; none = for ever.
    delete_unknown: Option<Duration>,
}

/// The state of the whole cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    timing: Timing,
    /// Boxed: a map that moves VMs of a kilobyte when it grows takes a third more memory, and time at each start.
    vms: BTreeMap<VmName, Box<Vm>>,
    names: HashMap<VmUid, VmName>,
    leaving: BTreeMap<CopyId, Leaving>,
    given_up: GivenUps,
    keys: once::Keys,
    spent: SpentKeys,
    workers: BTreeMap<WorkerName, WorkerEntry>,
    /// What is held since a backup was restored.
    restored: Restored,
    /// What images workers hold, each name once.
    image_names: Names,
    pulls: BTreeMap<PullId, Pull>,
    settings: ClusterSettings,
    access: Access,
    /// Knows what each worker holds, and which VMs wait for one.
    scheduler: Scheduler,
    /// When VMs delete themselves, by the monotonic clock.
    ends: Pauses,
    usage: Usage,
    /// Why nothing new can be stored; none while it can.
    full: Option<String>,
    /// Not to be placed before this moment of the monotonic clock.
    held_back: Pauses,
    /// The workers that each tick looks at.
    watched: Watched,
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
            given_up: GivenUps::load(records.given_up),
            keys: once::Keys::default(),
            spent: SpentKeys::load(records.spent),
            workers: BTreeMap::new(),
            restored: Restored::load(records.restored),
            scheduler: Scheduler::new(settings::policy_of(&records.settings)),
            image_names: Names::default(),
            pulls: records.pulls.into_iter().map(|pull| (pull.id, pull)).collect(),
            settings: records.settings,
            access: Access::load(records.accounts, records.joins, records.keys),
            ends: Pauses::default(),
            usage: Usage::default(),
            full: None,
            held_back: Pauses::default(),
            watched: Watched::default(),
            last_event: records.last_event,
            last_audit: records.last_audit,
            ticked: None,
        };
        for record in records.workers {
            let name = record.info.name.clone();
            let place = cluster.access.keys.get(&name).map(|key| key.place.clone()).unwrap_or_default();
            cluster.workers.insert(name.clone(), WorkerEntry { place, ..WorkerEntry::new(record, now) });
            cluster.note_standing(&name);
        }
        for leaving in records.leaving {
            cluster.insert_leaving(leaving);
        }
        for mut vm in records.vms {
            if vm.conditions.is_empty() {
                // Stored by an earlier release.
                let placed = vm.worker.is_some() && vm.status != VmStatus::Failed;
                vm.set_conditions(placed, placed && vm.status == VmStatus::Running);
            }
            let left = restarts::pause_left(&vm, now.wall);
            let waits = vm.worker.is_none() || power::may_wait_to_boot(&vm);
            if waits && !left.is_zero() {
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
        // What the failed batch has taken out of these stands as it was loaded: it is still to come.
        let waits = |vm: &&Vm| vm.status == VmStatus::Pending && (vm.worker.is_none() || power::may_wait_to_boot(vm));
        let start = |vm: &Vm| (vm.copy_id(), vm.boot);
        for (uid, until) in other.held_back.iter() {
            let same = self.vm_record(uid).filter(waits).map(start);
            if same.is_some() && same == other.vm_record(uid).map(start) {
                self.held_back.insert(uid, until);
                self.scheduler.withdraw(uid);
            }
        }
        // An end that was changed in what failed is still the stored one.
        let ttl = |of: &Cluster, uid| of.vm_record(uid).map(|vm| vm.spec.ttl_s);
        let same = |uid: &VmUid| ttl(other, *uid).is_none() || ttl(other, *uid) == ttl(self, *uid);
        for (uid, at) in
            other.ends.iter().filter(|(uid, _)| same(uid) && self.names.contains_key(uid)).collect::<Vec<_>>()
        {
            self.ends.insert(uid, at);
        }
        self.ticked = other.ticked;
        self.restored.keep_memory_of(&other.restored);
        self.image_names.clone_from(&other.image_names);
        if planted(Bug::EventSkipped) {
            self.last_event = other.last_event;
        }
        for (name, entry) in &mut self.workers {
            if let Some(known) = other.workers.get(name) {
                entry.live.clone_from(&known.live);
                if let Some(live) = &mut entry.live {
                    live.agreement = Agreement::default();
                }
                entry.place.clone_from(&known.place);
                entry.strays.clone_from(&known.strays);
                entry.images.clone_from(&known.images);
                entry.told_images = known.told_images;
                entry.pulls = known
                    .pulls
                    .iter()
                    .filter(|(id, _)| self.pulls.contains_key(id))
                    .map(|(id, far)| (*id, far.clone()))
                    .collect();
                if entry.told_images {
                    self.scheduler.set_images(name, entry.images.keys().cloned().collect());
                }
                entry.keep_liveness_of(known, other.ticked);
            }
        }
        let names: Vec<WorkerName> = self.workers.keys().cloned().collect();
        names.iter().for_each(|name| self.note_standing(name));
    }

    /// Notes whether the store has room for new things: `full` says why it has not. What ends things or goes on with them
    /// is not concerned.
    pub fn set_full(&mut self, full: Option<String>) {
        self.full = full;
    }

    fn check_room(&self) -> Result<(), ApiError> {
        self.full.as_ref().map_or(Ok(()), |why| Err(ApiError::new(ErrorCode::LimitExceeded, why)))
    }

    /// The last number given to an event.
    pub fn last_event(&self) -> EventNumber {
        self.last_event
    }

    /// The stored form of a VM; `None` once it is deleted.
    pub fn vm_record(&self, uid: VmUid) -> Option<&Vm> {
        self.names.get(&uid).and_then(|name| self.vms.get(name)).map(|vm| &**vm).filter(|vm| vm.uid == uid)
    }

    /// The stored form of a worker.
    pub fn worker_record(&self, name: &WorkerName) -> Option<&Worker> {
        self.workers.get(name).map(|entry| &entry.record)
    }

    /// The stored form of a copy still to be removed; `None` once it is gone.
    pub fn leaving_record(&self, id: CopyId) -> Option<&Leaving> {
        self.leaving.get(&id)
    }

    /// What `worker` shall run now; `None` while it has no session.
    pub fn assignment(&self, worker: &WorkerName) -> Option<Assignment> {
        let entry = self.workers.get(worker)?;
        let live = entry.live.as_ref()?;
        let placed = entry.vms.iter().filter_map(|uid| self.vm_record(*uid)).filter(|vm| !self.is_kept_from_worker(vm));
        let placed = placed.map(|vm| {
            let (boot, want) = self.wish_for(vm);
            DesiredCopy { name: vm.name.clone(), uid: vm.uid, attempt: vm.copy_id().attempt, boot, want }
        });
        let leaving = entry.leaving.iter().filter_map(|id| self.leaving.get(id)).map(|leaving| DesiredCopy {
            name: leaving.name.clone(),
            uid: leaving.id.uid,
            attempt: leaving.id.attempt,
            boot: 0,
            want: Want::Absent,
        });
        let copies = placed.chain(leaving).collect();
        let pulls = self.pulls_for(&entry.record.info);
        Some(Assignment { session: live.session, revision: live.revision, copies, pulls, part: 0, parts: 1 })
    }

    /// Notes that what `worker` shall run has changed.
    fn reassign(&mut self, worker: &WorkerName, changes: &mut Changes) {
        if let Some(live) = self.workers.get_mut(worker).and_then(|entry| entry.live.as_mut()) {
            live.revision += 1;
            changes.assign.insert(worker.clone());
        }
    }

    fn insert_vm(&mut self, vm: Box<Vm>) {
        let uid = vm.uid;
        if let Some((name, entry)) = vm.worker.as_ref().and_then(|name| Some((name, self.workers.get_mut(name)?))) {
            entry.vms.insert(uid);
            self.scheduler.hold(name, &vm.assigned, 1);
            if vm.started_at.is_some() {
                self.scheduler.has_image(name, &vm.spec.image);
            }
        }
        self.usage.add(&vm);
        self.keys.insert(&vm);
        self.names.insert(uid, vm.name.clone());
        self.vms.insert(vm.name.clone(), vm);
        self.consider(uid);
    }

    fn insert_leaving(&mut self, leaving: Leaving) {
        if !leaving.held.is_empty() {
            // Its VM, should it wait for a worker, goes on waiting for the end of this copy first.
            self.scheduler.withdraw(leaving.id.uid);
        }
        if let Some(entry) = self.workers.get_mut(&leaving.worker) {
            entry.leaving.insert(leaving.id);
            self.scheduler.hold(&leaving.worker, &leaving.held, 0);
        }
        self.leaving.insert(leaving.id, leaving);
    }
}

impl WorkerEntry {
    fn new(record: Worker, now: Now) -> Self {
        let drain_until = record.drain.as_ref().and_then(|drain| drain::until(drain, now));
        Self {
            record,
            vms: BTreeSet::new(),
            leaving: BTreeSet::new(),
            live: None,
            place: String::new(),
            strays: BTreeMap::new(),
            images: HeldImages::new(),
            told_images: false,
            pulls: pulls::OnWorker::new(),
            state: WorkerState::Unseen,
            heard: now.mono,
            last_seen: None,
            lease_from: now.mono,
            gone_since: None,
            closed: None,
            drain_until,
            load: None,
        }
    }

    fn standing(&self) -> Standing {
        match self.state {
            WorkerState::Online if self.live.is_some() && self.takes_nothing() => Standing::Paused,
            WorkerState::Online if self.live.is_some() => Standing::Open,
            _ => Standing::Unseen,
        }
    }

    fn view(&self, used: Option<&Resources>) -> WorkerView {
        WorkerView {
            worker: self.record.clone(),
            state: self.state,
            connectable: false,
            not_connectable_because: String::new(),
            path: None,
            last_seen: self.last_seen,
            // Of one that is silent it says nothing.
            load: self.load.filter(|_| self.state == WorkerState::Online),
            used: used.cloned().unwrap_or_default(),
            vms: u64::try_from(self.vms.len()).unwrap_or(u64::MAX),
            strays: u64::try_from(self.strays.len()).unwrap_or(u64::MAX),
        }
    }
}

#[cfg(test)]
mod tests;
