//! What the API says and does about placing: explanations, and workers that take no new VMs or are to be rid
//! of those they have.

use super::Context;
use crate::bus::message::Done;
use crate::bus::placing::{DrainWorker, ExplainVm, Explained, PauseWorker, ResumeWorker};
use crate::model::error::ApiError;
use crate::model::{AccountName, WorkerName};

pub(super) async fn explain(context: &Context, _: AccountName, request: ExplainVm) -> Result<Explained, ApiError> {
    context.writer.submit(move |step| step.cluster.explain(&request.name, step.now)).await
}

pub(super) async fn pause(context: &Context, _: AccountName, request: PauseWorker) -> Result<Done, ApiError> {
    set_paused(context, request.name, true).await
}

pub(super) async fn resume(context: &Context, _: AccountName, request: ResumeWorker) -> Result<Done, ApiError> {
    set_paused(context, request.name, false).await
}

pub(super) async fn drain(context: &Context, _: AccountName, request: DrainWorker) -> Result<Done, ApiError> {
    let DrainWorker { name, deadline_s } = request;
    let drained =
        context.writer.submit(move |step| step.cluster.drain_worker(&name, deadline_s, step.now, step.changes));
    drained.await?;
    Ok(Done {})
}

async fn set_paused(context: &Context, worker: WorkerName, paused: bool) -> Result<Done, ApiError> {
    context.writer.submit(move |step| step.cluster.set_paused(&worker, paused, step.now, step.changes)).await?;
    Ok(Done {})
}
