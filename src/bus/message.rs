//! Every payload on the bus, and the codec. Pure.
//!
//! MessagePack with field names; unknown fields are ignored and new ones have defaults, so releases may differ. An API
//! verb is a type that names its request and its reply ([`ApiCall`]); the CLI and the controller share it.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::connect::TunnelEndpoint;
use super::images::DesiredPull;
use crate::model::access::Roles;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::event::{Event, EventNumber, EventType};
use crate::model::secret::Secret;
use crate::model::vm::{Vm, VmSpec};
use crate::model::worker::{HostLoad, WorkerInfo, WorkerView};
use crate::model::{Attempt, Boot, CopyId, SessionId, VmName, VmUid, WorkerName};

/// Encodes a payload.
///
/// # Errors
/// [`ErrorCode::Internal`]; does not happen for the types here.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ApiError> {
    rmp_serde::to_vec_named(message)
        .map_err(|error| ApiError::new(ErrorCode::Internal, format!("cannot encode a message: {error}")))
}

/// Decodes a payload.
///
/// # Errors
/// [`ErrorCode::Invalid`] with what was expected.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, ApiError> {
    rmp_serde::from_slice(payload).map_err(|error| {
        ApiError::new(
            ErrorCode::Invalid,
            format!("the payload of {} bytes is not what was expected: {error}", payload.len()),
        )
    })
}

/// What a request is answered with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Answer<T> {
    /// Done; durable if it changed anything.
    Ok(T),
    /// Refused or failed.
    Error(ApiError),
}

impl<T> From<Result<T, ApiError>> for Answer<T> {
    fn from(result: Result<T, ApiError>) -> Self {
        match result {
            Ok(value) => Answer::Ok(value),
            Err(error) => Answer::Error(error),
        }
    }
}

impl<T> From<Answer<T>> for Result<T, ApiError> {
    fn from(answer: Answer<T>) -> Self {
        match answer {
            Answer::Ok(value) => Ok(value),
            Answer::Error(error) => Err(error),
        }
    }
}

/// A verb of the API: its place in the subject and the types of both directions.
pub trait ApiCall: Serialize + DeserializeOwned + JsonSchema + Send + 'static {
    /// The resource token of the subject.
    const RESOURCE: &'static str;
    /// The verb token of the subject.
    const VERB: &'static str;
    /// What a successful call yields.
    type Reply: Serialize + DeserializeOwned + JsonSchema + Send + 'static;
}

macro_rules! api_call {
    ($request:ty => $reply:ty, $resource:literal, $verb:literal) => {
        impl ApiCall for $request {
            const RESOURCE: &'static str = $resource;
            const VERB: &'static str = $verb;
            type Reply = $reply;
        }
    };
}

pub(super) use api_call;

/// The reply of verbs that have nothing to tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Done {}

/// `vm.create`: a new VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CreateVm {
    /// Its name, free among live VMs.
    pub name: VmName,
    /// What it shall be.
    pub spec: VmSpec,
    /// Names this request among all of the asker: should it come again, it is answered with the same VM. At most
    /// [`MAX_KEY`] bytes.
    #[serde(default, rename = "idempotencyKey", skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// The longest key of a request, in bytes: more than a random one needs.
pub const MAX_KEY: usize = 128;

api_call!(CreateVm => Vm, "vm", "create");

/// `vm.get`: one VM by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GetVm {
    /// Its name.
    pub name: VmName,
}
api_call!(GetVm => Vm, "vm", "get");

/// `vm.list`: all VMs, in name order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListVms {
    /// Only names after this one.
    #[serde(default)]
    pub after: Option<VmName>,
    /// At most so many; 0 or more than [`MAX_PAGE`] = [`MAX_PAGE`].
    #[serde(default)]
    pub limit: u32,
}
api_call!(ListVms => VmPage, "vm", "list");

/// The most items in one page: keeps a reply of large specifications below the broker's payload limit.
pub const MAX_PAGE: u32 = 500;

/// A page of VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmPage {
    /// In name order.
    pub vms: Vec<Vm>,
    /// There are more: ask for those after the last one here.
    pub more: bool,
}

/// `vm.delete`: the VM and its disk; the name is free at once, the resources when the worker has confirmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeleteVm {
    /// Its name.
    pub name: VmName,
}
api_call!(DeleteVm => Done, "vm", "delete");

/// `worker.list`: all workers, in name order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListWorkers {
    /// Only names after this one.
    #[serde(default)]
    pub after: Option<WorkerName>,
    /// At most so many; 0 or more than [`MAX_PAGE`] = [`MAX_PAGE`].
    #[serde(default)]
    pub limit: u32,
}
api_call!(ListWorkers => WorkerPage, "worker", "list");

/// A page of workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WorkerPage {
    /// In name order.
    pub workers: Vec<WorkerView>,
    /// There are more: ask for those after the last one here.
    #[serde(default)]
    pub more: bool,
}

/// `worker.get`: one worker by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GetWorker {
    /// Its name.
    pub name: WorkerName,
}
api_call!(GetWorker => WorkerView, "worker", "get");

/// `event.list`: stored events in order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListEvents {
    /// Only numbers above this one.
    #[serde(default)]
    pub after: EventNumber,
    /// At most so many; 0 or more than [`MAX_EVENT_PAGE`] = [`MAX_EVENT_PAGE`].
    #[serde(default)]
    pub limit: u32,
    /// Only events of this VM.
    #[serde(default)]
    pub vm: Option<VmUid>,
    /// Only events of VMs of this name. This and what follows was not known to earlier releases, which send more then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<VmName>,
    /// Only events of this worker, and of VMs on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker: Option<WorkerName>,
    /// Only events of these types; all if there is none. Types of a newer release fit nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<EventType>,
}
api_call!(ListEvents => EventPage, "event", "list");

/// The most events in one page.
pub const MAX_EVENT_PAGE: u32 = 500;

/// A page of events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventPage {
    /// In number order.
    pub events: Vec<Event>,
    /// The last number that was looked at: ask for those after it to go on. Equal to `last` at the end.
    pub next: EventNumber,
    /// The highest number given out so far.
    pub last: EventNumber,
    /// The lowest number still kept.
    pub first_kept: EventNumber,
}

/// `controller.info`: what answers here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GetInfo {}
api_call!(GetInfo => ControllerInfo, "controller", "info");

/// What the controller says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ControllerInfo {
    /// Its release.
    pub version: String,
    /// The highest event number given out so far.
    pub last_event: EventNumber,
    /// What the asker may do; none from a release that does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<Roles>,
    /// Whether the bus is a NATS server of the operator, which decides by itself who gets in.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub outside_bus: bool,
}

/// A worker registers: the first message of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Hello {
    /// The session that begins; later messages carry it.
    pub session: SessionId,
    /// The worker.
    pub info: WorkerInfo,
    /// Tells where its process runs from any other place where a copy of its data folder could be used at the same time;
    /// processes that follow each other on one folder name the same place. As [`crate::model::place::Place`] is written;
    /// older workers name one hash. Empty = not known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub place: String,
    /// Its operator wants copies gone that nobody knows here, so many seconds after they were told of in this session; none =
    /// they are left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete_unknown_s: Option<u64>,
}

/// The session is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Welcome {
    /// How long the lease lasts without renewal, in milliseconds.
    pub lease_ms: u64,
    /// How often to renew it, in milliseconds.
    pub heartbeat_ms: u64,
    /// Where to open the data path.
    pub tunnel: TunnelEndpoint,
    /// What opens it, during this session.
    pub tunnel_secret: Secret,
    /// What to run; only its first part when it has several, and the first heartbeat brings them all.
    pub assignment: Assignment,
}

/// A worker renews its lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Heartbeat {
    /// The session.
    pub session: SessionId,
    /// The assignment that is being worked on.
    pub revision: u64,
    /// Whether all that was found on the host has been told, and acknowledged, in this session; none from an older release,
    /// which does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub told: Option<bool>,
    /// How busy its host is; only in some heartbeats, as it costs more to tell than it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<HostLoad>,
    /// What it takes the controller to know of its copies, as in `bus::inventory`; none while anything is still to be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<u64>,
}

/// The lease is renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HeartbeatAck {
    /// The revision that should be worked on; a higher one than sent is on its way.
    pub revision: u64,
    /// What the controller knows is something else than what the worker takes it to know: all is to be told once more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tell_all: bool,
}

/// All copies that concern one worker. Level-triggered: the newest replaces all before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Assignment {
    /// The worker's session it is meant for.
    pub session: SessionId,
    /// Grows by each change within a session.
    pub revision: u64,
    /// The copies. One that is on the host but not here is unknown to the controller and left alone.
    pub copies: Vec<DesiredCopy>,
    /// Images to fetch; a request that is not here is over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pulls: Vec<DesiredPull>,
    /// Which part of it this is, counting from 0; see `bus::parts`.
    #[serde(default)]
    pub part: u32,
    /// In how many parts it comes; nothing of it counts before all are there.
    #[serde(default = "one")]
    pub parts: u32,
}

fn one() -> u32 {
    1
}

/// What shall become of one copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DesiredCopy {
    /// The VM's name.
    pub name: VmName,
    /// Which VM.
    pub uid: VmUid,
    /// Which start of it.
    pub attempt: Attempt,
    /// Which start of its disk the wish is about. A process of an earlier one is ended before it runs, and what is reported
    /// of an earlier one means nothing.
    #[serde(default)]
    pub boot: Boot,
    /// The wish.
    pub want: Want,
}

impl DesiredCopy {
    /// Its identity.
    pub fn id(&self) -> CopyId {
        CopyId { uid: self.uid, attempt: self.attempt }
    }
}

/// The wish for one copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Want {
    /// It shall run.
    Run(Box<RunSpec>),
    /// It shall not run, but its disk stays.
    Keep,
    /// It shall not run, and its memory is kept in a file beside its disk.
    Suspend,
    /// Nothing of it shall be left.
    Absent,
}

/// Everything needed to run a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunSpec {
    /// What the user asked for, secrets included.
    pub spec: VmSpec,
    /// The generation of that.
    pub generation: u64,
    /// CPU cores to give.
    pub cpu: u64,
    /// Memory to give, in MiB.
    pub memory: u64,
    /// It ran already in this attempt: if nothing of it is on the host now it is lost, and must not be made anew as if
    /// nothing had happened.
    #[serde(default)]
    pub ran: bool,
}

/// A worker tells what became of a copy; acknowledged once durable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// The session.
    pub session: SessionId,
    /// Which VM.
    pub uid: VmUid,
    /// Which start of it.
    pub attempt: Attempt,
    /// Which boot of it; see [`DesiredCopy::boot`].
    #[serde(default)]
    pub boot: Boot,
    /// What is the case.
    pub observation: Observation,
}

/// What a worker sees of a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Observation {
    /// It is being prepared.
    Preparing {
        /// How far.
        message: String,
    },
    /// Its process runs.
    Running {
        /// How far the guest is.
        message: String,
        /// The guest answered and its script ended well.
        ready: bool,
        /// The generation in effect.
        generation: u64,
        /// Which image it was made from, by its digest, where its runtime knows that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image_fqn: Option<String>,
    },
    /// It does not run any more and will not by itself; certain, not guessed.
    Failed {
        /// Why.
        message: String,
        /// Its disk is there, and it booted from it once: it can do so again.
        #[serde(default)]
        disk: bool,
        /// Its worker ended it, in order, as it was to end itself: no failure of the VM. Not known to earlier releases, for
        /// which it has failed.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        halted: bool,
    },
    /// It does not run, as was wished; its disk is there if it ever ran. Certain, not guessed.
    Stopped {
        /// How it ended.
        message: String,
    },
    /// The worker stopped it because its lease was over; certain, not guessed.
    Fenced {
        /// What happened.
        message: String,
    },
    /// Nothing of it is left on the host.
    Absent,
    /// It is on the host although the controller did not name it; it was left alone.
    Stray {
        /// The name it bears there.
        name: String,
        /// Whether it runs; none from an older release, which does not say.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        running: Option<bool>,
    },
}
