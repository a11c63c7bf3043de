//! Payloads that concern the settings of the whole cluster. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::message::{ApiCall, api_call};
use crate::model::settings::{ClusterSettings, HostDirPolicy, Profile};

/// `cluster-settings.get`: the settings in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GetSettings {}
api_call!(GetSettings => ClusterSettings, "cluster-settings", "get");

/// `cluster-settings.set`: others; what is absent stays. Yields those in force from now on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SetSettings {
    /// Where VMs go.
    #[serde(default, rename = "schedulerProfile")]
    pub profile: Option<Profile>,
    /// Virtual cores for each real one.
    #[serde(default, rename = "cpuOvercommit")]
    pub cpu_overcommit: Option<u64>,
    /// In place of all policies there are.
    #[serde(default, rename = "hostDirPolicies")]
    pub host_dir_policies: Option<Vec<HostDirPolicy>>,
    /// Policies to add to them.
    #[serde(default, rename = "addHostDirPolicies")]
    pub add_host_dir_policies: Vec<HostDirPolicy>,
}
api_call!(SetSettings => ClusterSettings, "cluster-settings", "set");
