//! The messages by which clients get tickets for the tunnel, and learn where things are. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::message::{ApiCall, api_call};
use crate::model::secret::Secret;
use crate::model::{Attempt, VmName, VmUid, WorkerName};

/// `connect.open`: a ticket for one tunnel stream to a port of a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OpenTunnel {
    /// Which VM.
    pub vm: VmName,
    /// TCP port in the guest; 0 = the exec sessions that the VM's worker holds.
    pub port: u16,
}
api_call!(OpenTunnel => TunnelTicket, "connect", "open");

/// Where and with what to open the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TunnelTicket {
    /// The tunnel endpoint.
    pub endpoint: TunnelEndpoint,
    /// Good for one stream, for a short time.
    pub ticket: Secret,
    /// Identity of the VM it leads to, so that a client can tell a new VM of the same name.
    pub uid: VmUid,
    /// Which start of it: each begins with a fresh disk, and so with new host keys. None from an older release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
}

/// `connect.host`: a ticket for one tunnel stream to a port of a worker's own machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OpenHost {
    /// Which worker.
    pub worker: WorkerName,
    /// TCP port of that machine's loopback address; never 0.
    pub port: u16,
}
api_call!(OpenHost => HostTicket, "connect", "host");

/// Where and with what to open the stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostTicket {
    /// The tunnel endpoint.
    pub endpoint: TunnelEndpoint,
    /// Good for one stream, for a short time.
    pub ticket: Secret,
    /// Identity of the machine it leads to, so that a client can tell another one of the same worker's name.
    pub machine_id: String,
}

/// `connect.address`: which address a VM has in its own network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GetAddress {
    /// Which VM.
    pub vm: VmName,
}
api_call!(GetAddress => VmAddress, "connect", "address");

/// Where a VM is, as its worker sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VmAddress {
    /// The guest's address, as text.
    pub ip: String,
    /// Identity of the VM that has it.
    pub uid: VmUid,
}

/// Where the QUIC tunnel endpoint is and how to know it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TunnelEndpoint {
    /// Host name or address; none = the host of the bus itself.
    #[serde(default)]
    pub host: Option<String>,
    /// UDP port.
    pub port: u16,
    /// SHA-256 of its certificate's DER form, in lower-case hex.
    pub fingerprint: String,
}
