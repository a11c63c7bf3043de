//! Payloads that concern where VMs go: why a VM is where it is or nowhere, and workers that take no new ones or are
//! to be rid of those they have. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::message::{ApiCall, Done, api_call};
use crate::model::vm::VmStatus;
use crate::model::{VmName, WorkerName};

/// `vm.explain`: why a VM is on its worker, or what keeps it from being placed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExplainVm {
    /// Which VM.
    pub name: VmName,
}
api_call!(ExplainVm => Explained, "vm", "explain");

/// What the scheduler has to say of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explained {
    /// The VM.
    pub name: VmName,
    /// Where it stands.
    pub status: VmStatus,
    /// The worker it is placed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerName>,
    /// In words: why there, or why nowhere.
    pub reason: String,
    /// Workers there are now.
    pub workers: u64,
    /// Those that could take such a VM now.
    pub fitting: u64,
    /// What keeps the others from it, each worker counted for the first thing.
    pub obstacles: Vec<Obstacle>,
}

/// What keeps some workers from taking a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Obstacle {
    /// In words that go behind "workers".
    pub what: String,
    /// How many.
    pub workers: u64,
}

/// `worker.pause`: no new VMs are placed there; those that are there go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PauseWorker {
    /// Which worker.
    pub name: WorkerName,
}
api_call!(PauseWorker => Done, "worker", "pause");

/// `worker.resume`: the end of a pause or a drain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResumeWorker {
    /// Which worker.
    pub name: WorkerName,
}
api_call!(ResumeWorker => Done, "worker", "resume");

/// `worker.drain`: no new VMs are placed there; those that are there end by themselves, or, after the deadline, start over
/// elsewhere. Asked for again it counts anew, with the new deadline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DrainWorker {
    /// Which worker.
    pub name: WorkerName,
    /// Seconds until the VMs that are still there are moved; 0 = at once, none = never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_s: Option<u64>,
}
api_call!(DrainWorker => Done, "worker", "drain");
