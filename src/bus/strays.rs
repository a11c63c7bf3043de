//! Payloads that concern stray copies: what workers have found on their machines and nobody here wishes for. Pure.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::message::{ApiCall, Done, api_call};
use crate::model::{CopyId, WorkerName};

/// `worker.list-strays`: the stray copies that workers have told of since the controller started, by worker and copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListStrays {
    /// Only those of this worker.
    #[serde(default)]
    pub worker: Option<WorkerName>,
    /// Only those after this one.
    #[serde(default)]
    pub after: Option<(WorkerName, CopyId)>,
    /// At most so many; 0 = as many as fit a page.
    #[serde(default)]
    pub limit: u32,
}
api_call!(ListStrays => StrayPage, "worker", "list-strays");

/// A page of stray copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StrayPage {
    /// By worker and copy.
    pub strays: Vec<StrayView>,
    /// There are more: ask for those after the last one here.
    pub more: bool,
}

/// A stray copy as readers see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StrayView {
    /// Who has it.
    pub worker: WorkerName,
    /// Which copy.
    #[serde(flatten)]
    pub id: CopyId,
    /// The name of its VM there.
    pub name: String,
    /// Whether it ran when the worker told of it.
    pub running: bool,
    /// Somebody has asked for its deletion, which its worker has not confirmed yet.
    pub deleting: bool,
}

/// `worker.delete-stray`: the worker removes a stray copy, its disk included. Never one that a VM wants or may want.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeleteStray {
    /// Which worker has it.
    pub name: WorkerName,
    /// Which copy.
    pub copy: CopyId,
}
api_call!(DeleteStray => Done, "worker", "delete-stray");
