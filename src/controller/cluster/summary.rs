//! The cluster in figures, for those who watch it. Looks at every VM and worker: for a scrape now and then.

use std::collections::BTreeMap;

use super::Cluster;
use crate::model::audit::AuditNumber;
use crate::model::event::EventNumber;
use crate::model::resources::Resources;
use crate::model::vm::{Vm, VmStatus};
use crate::model::worker::WorkerState;
use crate::model::{Timestamp, WorkerName};

/// What pending VMs wait for; see [`Summary::pending`].
const REASONS: [&str; 7] = ["worker", "room", "preparing", "pause", "earlier-copy", "restored", "off"];

/// The whole cluster in figures.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// VMs by status; each status is there.
    pub vms: BTreeMap<&'static str, u64>,
    /// Running VMs that are ready.
    pub ready: u64,
    /// Pending VMs by what they wait for; each reason is there.
    pub pending: BTreeMap<&'static str, u64>,
    /// Workers by state; each state is there.
    pub states: BTreeMap<&'static str, u64>,
    /// Workers that take no new VMs.
    pub paused: u64,
    /// Copies that the controller does not know.
    pub strays: u64,
    /// Each worker, in name order.
    pub workers: Vec<WorkerFigures>,
    /// The last number given to an event.
    pub last_event: EventNumber,
    /// The last number given to an audit record.
    pub last_audit: AuditNumber,
    /// Why nothing new is taken in; none while it is.
    pub full: Option<String>,
}

/// One worker in figures.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerFigures {
    /// Which.
    pub name: WorkerName,
    /// Whether it is heard.
    pub state: WorkerState,
    /// When it was last heard; none = not since the controller started.
    pub last_seen: Option<Timestamp>,
    /// VMs placed there.
    pub vms: u64,
    /// What these were given.
    pub used: Resources,
    /// What it offers.
    pub total: Resources,
}

impl Cluster {
    /// The cluster in figures. Costs a look at every VM and every worker.
    pub fn summary(&self) -> Summary {
        let zeros = |names: &[&'static str]| names.iter().map(|name| (*name, 0)).collect::<BTreeMap<_, _>>();
        let mut summary = Summary {
            vms: zeros(&[VmStatus::Pending, VmStatus::Running, VmStatus::Failed].map(VmStatus::as_str)),
            pending: zeros(&REASONS),
            states: zeros(&[WorkerState::Online, WorkerState::Unseen, WorkerState::Gone].map(name_of)),
            last_event: self.last_event,
            last_audit: self.last_audit,
            full: self.full.clone(),
            ..Summary::default()
        };
        for vm in self.vms.values() {
            *summary.vms.entry(vm.status.as_str()).or_default() += 1;
            match vm.status {
                VmStatus::Running => summary.ready += u64::from(vm.ready),
                VmStatus::Pending => *summary.pending.entry(self.reason(vm)).or_default() += 1,
                VmStatus::Failed | VmStatus::Unknown => {}
            }
        }
        for (name, entry) in &self.workers {
            *summary.states.entry(name_of(entry.state)).or_default() += 1;
            summary.paused += u64::from(entry.takes_nothing());
            summary.strays += count(entry.strays.len());
            summary.workers.push(WorkerFigures {
                name: name.clone(),
                state: entry.state,
                last_seen: entry.last_seen,
                vms: count(entry.vms.len()),
                used: self.scheduler.used(name).cloned().unwrap_or_default(),
                total: entry.record.info.resources.clone(),
            });
        }
        summary
    }

    /// What a pending VM waits for, as [`Cluster::explain`] says it in words.
    fn reason(&self, vm: &Vm) -> &'static str {
        let [worker, room, preparing, pause, earlier_copy, restored, off] = REASONS;
        let waiting = self.scheduler.is_waiting(vm.uid);
        match &vm.worker {
            _ if self.is_held(vm.uid) => restored,
            _ if vm.is_off() => off,
            None if waiting => worker,
            Some(_) if waiting => room,
            _ if self.held_back.contains(vm.uid) => pause,
            Some(_) => preparing,
            None => earlier_copy,
        }
    }
}

fn name_of(state: WorkerState) -> &'static str {
    match state {
        WorkerState::Online => "online",
        WorkerState::Unseen => "unseen",
        WorkerState::Gone => "gone",
        WorkerState::Unknown => "unknown",
    }
}

fn count(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
