//! What the API says and does about placing: explanations, and workers that take no new VMs.

use super::Context;
use crate::bus::message::Done;
use crate::bus::placing::{ExplainVm, Explained, PauseWorker, ResumeWorker};
use crate::model::error::ApiError;
use crate::model::{AccountName, WorkerName};

pub(super) async fn explain(context: &Context, _: AccountName, request: ExplainVm) -> Result<Explained, ApiError> {
    context.writer.submit(move |step| step.cluster.explain(&request.name)).await
}

pub(super) async fn pause(context: &Context, _: AccountName, request: PauseWorker) -> Result<Done, ApiError> {
    set_paused(context, request.name, true).await
}

pub(super) async fn resume(context: &Context, _: AccountName, request: ResumeWorker) -> Result<Done, ApiError> {
    set_paused(context, request.name, false).await
}

async fn set_paused(context: &Context, worker: WorkerName, paused: bool) -> Result<Done, ApiError> {
    context.writer.submit(move |step| step.cluster.set_paused(&worker, paused, step.now, step.changes)).await?;
    Ok(Done {})
}
