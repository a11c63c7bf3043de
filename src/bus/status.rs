//! Payloads by which operators see how the controller is doing. Pure.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::message::{ApiCall, api_call};
use crate::model::Timestamp;

/// `controller.status`: how the controller is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GetStatus {}
api_call!(GetStatus => ControllerStatus, "controller", "status");

/// What the controller says of itself to its operators. Times since its start are by its monotonic clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ControllerStatus {
    /// Its release.
    pub version: String,
    /// When it was started, by its clock on the wall.
    pub started: Timestamp,
    /// For how long it has run, in seconds.
    pub uptime_s: u64,
    /// What an operator should look at; empty when all is well.
    pub warnings: Vec<String>,
    /// The database.
    pub store: StoreStatus,
    /// Events of VMs and workers.
    pub events: FeedStatus,
    /// The audit trail.
    pub audit: FeedStatus,
    /// What waits.
    pub queues: QueueStatus,
    /// How time passes for the cluster, and what the scheduler does.
    pub scheduler: SchedulerStatus,
    /// VMs by status.
    pub vms: BTreeMap<String, u64>,
    /// Workers.
    pub workers: WorkersStatus,
    /// The embedded broker; none when the bus is a NATS server of the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker: Option<BrokerStatus>,
    /// Sessions into VMs and hosts.
    pub tunnel: TunnelStatus,
    /// Requests.
    pub requests: RequestStatus,
}

/// The database.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StoreStatus {
    /// The version of its form.
    pub schema: u32,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Bytes that it may have.
    pub map_bytes: u64,
    /// Bytes free on its disk; none when that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_free_bytes: Option<u64>,
    /// The size of that disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// Commits since the start.
    pub commits: u64,
    /// Commits that failed.
    pub commit_failures: u64,
    /// Of a hundred commits, 99 took at most so long, in microseconds; none without commits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commit_p99_us: Option<u64>,
}

/// Things that have numbers and are published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct FeedStatus {
    /// The lowest number still kept; 0 = none is.
    pub first: u64,
    /// The highest number given.
    pub last: u64,
    /// How many are stored and not published on the bus yet.
    pub unpublished: u64,
}

/// What waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct QueueStatus {
    /// Steps that wait for the writer of the database.
    pub writer: u64,
    /// How many may.
    pub writer_capacity: u64,
    /// Requests being worked on.
    pub requests: u64,
}

/// How time passes for the cluster, and what the scheduler does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SchedulerStatus {
    /// How long ago the last pass over the cluster began, in milliseconds; there are four a second.
    pub last_pass_ms: u64,
    /// VMs placed since the start.
    pub placements: u64,
    /// When the last of them was; none since the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_placement: Option<Timestamp>,
    /// Pending VMs by what they wait for: worker, room, preparing, pause, earlier-copy, restored or off.
    pub pending: BTreeMap<String, u64>,
}

/// The workers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct WorkersStatus {
    /// How many there are by state: online, unseen or gone.
    pub states: BTreeMap<String, u64>,
    /// Those whose VMs can be reached over the tunnel now.
    pub connectable: u64,
    /// Those that take no new VMs, as somebody paused or drained them.
    pub paused: u64,
    /// Copies on them that the controller does not know.
    pub strays: u64,
}

/// The embedded broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct BrokerStatus {
    /// Clients connected.
    pub connections: u64,
    /// Their subscriptions.
    pub subscriptions: u64,
    /// Messages published since the start.
    pub messages_in: u64,
    /// Messages delivered.
    pub messages_out: u64,
    /// Clients cut off because they did not read.
    pub slow_consumers: u64,
}

/// Sessions into VMs and hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TunnelStatus {
    /// Open now.
    pub open: u64,
    /// Opened since the start.
    pub opened: u64,
    /// Broken off.
    pub broken: u64,
    /// Those whose worker or guest could not be reached.
    pub failed: u64,
}

/// Requests of accounts, workers and machines that join, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RequestStatus {
    /// Answered, in whatever way.
    pub answered: u64,
    /// Of these, answered that something on the controller's side stands in the way.
    pub failed: u64,
    /// Of a hundred, 99 took at most so long, in microseconds; none without requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<u64>,
}
