//! A worker: a host that runs VMs and dials out to the controller.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::resources::{Labels, Resources};
use super::vm::{Arch, Os, RuntimeKind};
use super::{Timestamp, WorkerName};

/// What a worker says of itself when it registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerInfo {
    /// Its name in the cluster.
    pub name: WorkerName,
    /// Identity of the host, so that two machines cannot share a name by accident.
    pub machine_id: String,
    /// Host operating system.
    pub os: Os,
    /// Host architecture.
    pub arch: Arch,
    /// What runs its VMs.
    pub runtime: RuntimeKind,
    /// What it offers.
    #[serde(default)]
    pub resources: Resources,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
    /// CPU cores of a VM that asks for none.
    #[serde(rename = "defaultCPU")]
    pub default_cpu: u64,
    /// Memory in MiB of a VM that asks for none.
    #[serde(rename = "defaultMemory")]
    pub default_memory: u64,
    /// The worker's release.
    #[serde(default)]
    pub version: String,
}

/// How the controller sees a worker's liveness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(transform = super::schema::open_enum)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// It was heard of a short while ago.
    Online,
    /// Nothing was heard for longer than that. Its VMs are left alone: silence is not death.
    Unseen,
    /// Its lease is certainly over: it runs none of those VMs any more that may be started elsewhere.
    Gone,
    /// One of a newer release.
    #[serde(other)]
    Unknown,
}

/// How busy a worker's host is, as it last said. What it could not find out is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HostLoad {
    /// How much of its processors was in use, in thousandths of all of them: on Linux since the time before, on macOS the load
    /// average of a minute for each processor, at most 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_permille: Option<u64>,
    /// Its memory, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<u64>,
    /// How much of that can be had without swapping, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_available_mib: Option<u64>,
    /// The file system with the VMs' disks, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u64>,
    /// What is free of it for the worker's user, in MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_free_mib: Option<u64>,
}

/// A worker as the controller keeps it in LMDB.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Worker {
    /// What it said of itself.
    #[serde(flatten)]
    pub info: WorkerInfo,
    /// When it first registered.
    #[serde(rename = "createdAt")]
    pub created_at: Timestamp,
    /// No new VMs are placed on it.
    #[serde(default)]
    pub scheduling_paused: bool,
    /// It shall be rid of its VMs, and takes no new ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
    /// The longest lease that it may hold, in milliseconds; a controller that was started with shorter ones goes by this until
    /// the worker certainly has one of those.
    #[serde(default, rename = "leaseMs", skip_serializing_if = "is_zero")]
    pub lease_ms: u64,
}

fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// A worker is to be rid of its VMs: for an upgrade, or to be taken away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Drain {
    /// When that was asked for.
    pub began: Timestamp,
    /// Seconds from then after which the VMs that are still there start over elsewhere; none = they are waited for.
    #[serde(default, rename = "deadlineSeconds", skip_serializing_if = "Option::is_none")]
    pub deadline_s: Option<u64>,
    /// Nothing runs there any more.
    #[serde(default)]
    pub done: bool,
}

/// A worker's data path, from the controller's end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DataPath {
    /// Where its packets come from: address and UDP port, perhaps of a NAT.
    pub address: String,
    /// Round-trip time in microseconds, smoothed.
    pub rtt_us: u64,
    /// Packets sent to the worker over this connection.
    pub sent: u64,
    /// Of these, packets lost.
    pub lost: u64,
    /// Seconds that the connection has lasted.
    pub age_s: u64,
    /// Seconds since the worker last answered over it; none = not yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_s: Option<u64>,
    /// How often it has connected, this time included, since it was last away for an hour or the controller started.
    pub connects: u64,
}

/// A worker as readers see it: the record, with what is only known while the controller runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerView {
    /// The record.
    #[serde(flatten)]
    pub worker: Worker,
    /// Liveness.
    pub state: WorkerState,
    /// Whether its data path (QUIC) is up, apart from the heartbeat.
    pub connectable: bool,
    /// Why it is not, for people; empty when it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub not_connectable_because: String,
    /// How that path is; only in the answer about one worker, and none without a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<DataPath>,
    /// When it was last heard of; none = not since the controller started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Timestamp>,
    /// How busy its host is; none while that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<HostLoad>,
    /// What its VMs take.
    pub used: Resources,
    /// How many VMs are placed on it.
    pub vms: u64,
    /// How many stray copies it has told of: on its machine, and wished for by nobody.
    #[serde(default)]
    pub strays: u64,
}

/// A worker of tests within the crate: a Linux machine called `name` with `cores` and `memory` MiB.
#[cfg(test)]
pub(crate) fn sample(name: &str, cores: u64, memory: u64) -> WorkerInfo {
    use super::resources::{LOGICAL_CORES, MEMORY_MIB};
    WorkerInfo {
        name: name.parse().unwrap(),
        machine_id: name.into(),
        os: Os::Linux,
        arch: Arch::Amd64,
        runtime: RuntimeKind::Synthetic,
        resources: [(LOGICAL_CORES, cores), (MEMORY_MIB, memory)].into(),
        labels: Labels::new(),
        default_cpu: 4,
        default_memory: 1_024,
        version: String::new(),
    }
}
