//! Payloads that change a VM while it lives. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::message::{ApiCall, api_call};
use crate::model::VmName;
use crate::model::vm::{Arch, OnUnseen, Os, PowerState, RestartPolicy, RuntimeKind, Vm};

/// `vm.update`: changes what a VM shall be. Answered with the VM as it then is.
///
/// Only what is named changes, so that two who change different things at the same time do not undo each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct UpdateVm {
    /// Which VM.
    pub name: VmName,
    /// Only if its generation is this one: nobody has changed it since the asker looked.
    #[serde(default, rename = "ifGeneration", skip_serializing_if = "Option::is_none")]
    pub if_generation: Option<u64>,
    /// What to change.
    #[serde(default)]
    pub change: SpecChange,
}
api_call!(UpdateVm => Vm, "vm", "update");

/// What may be changed; none = left as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SpecChange {
    /// Cannot change; whoever sends a whole specification sends it, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub os: Option<Os>,
    /// Cannot change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arch: Option<Arch>,
    /// Cannot change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<RuntimeKind>,
    /// Whether it shall run.
    #[serde(rename = "powerState", skip_serializing_if = "Option::is_none")]
    pub power_state: Option<PowerState>,
    /// Whether it can be suspended; once it can, it stays so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspendable: Option<bool>,
    /// What happens on failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,
    /// What happens when its worker is not heard of any more.
    #[serde(rename = "onUnseen", skip_serializing_if = "Option::is_none")]
    pub on_unseen: Option<OnUnseen>,
    /// Who is placed first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// Seconds from its creation after which it deletes itself; 0 = never.
    #[serde(rename = "ttl", skip_serializing_if = "Option::is_none")]
    pub ttl_s: Option<u64>,
    /// Whether Softnet isolates its network; with a list that is not empty it does anyhow. It boots again for a change of this
    /// and of the two lists, if it runs.
    #[serde(rename = "netSoftnet", skip_serializing_if = "Option::is_none")]
    pub net_softnet: Option<bool>,
    /// Networks that it may reach all the same, all of them.
    #[serde(rename = "netSoftnetAllow", skip_serializing_if = "Option::is_none")]
    pub net_softnet_allow: Option<Vec<String>>,
    /// Networks that it may not reach, all of them.
    #[serde(rename = "netSoftnetBlock", skip_serializing_if = "Option::is_none")]
    pub net_softnet_block: Option<Vec<String>>,
}
