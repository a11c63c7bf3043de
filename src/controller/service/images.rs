//! What the API says and does about images.

use super::Context;
use super::api::page;
use crate::bus::images::{
    CancelPull, GetPull, HeldPage, ImagePage, ListHeldImages, ListImages, ListPulls, PullImage, PullPage, PullProgress,
    PullView,
};
use crate::bus::message::{Done, MAX_PAGE};
use crate::model::AccountName;
use crate::model::error::ApiError;
use crate::model::image::PullId;

pub(super) async fn list(context: &Context, _: AccountName, request: ListImages) -> Result<ImagePage, ApiError> {
    let limit = page(request.limit, MAX_PAGE);
    let read = context.writer.submit(move |step| Ok(step.cluster.images(request.after.as_deref(), limit)));
    let (images, more) = read.await?;
    Ok(ImagePage { images, more })
}

pub(super) async fn list_held(
    context: &Context,
    _: AccountName,
    request: ListHeldImages,
) -> Result<HeldPage, ApiError> {
    let limit = page(request.limit, MAX_PAGE);
    let ListHeldImages { worker, image, after, .. } = request;
    let read = context.writer.submit(move |step| {
        if let Some(worker) = &worker {
            step.cluster.worker(worker)?;
        }
        Ok(step.cluster.held_images((worker.as_ref(), image.as_deref()), after.as_ref(), limit))
    });
    let (images, more) = read.await?;
    Ok(HeldPage { images, more })
}

pub(super) async fn pull(context: &Context, by: AccountName, request: PullImage) -> Result<PullView, ApiError> {
    let id = PullId(uuid::Uuid::now_v7());
    context.writer.submit(move |step| step.cluster.pull_image(Some(by), request, id, step.now, step.changes)).await
}

pub(super) async fn cancel(context: &Context, _: AccountName, request: CancelPull) -> Result<Done, ApiError> {
    context.writer.submit(move |step| step.cluster.cancel_pull(&request.image, step.changes)).await?;
    Ok(Done {})
}

pub(super) async fn list_pulls(context: &Context, _: AccountName, _: ListPulls) -> Result<PullPage, ApiError> {
    context.writer.submit(move |step| Ok(PullPage { pulls: step.cluster.pull_views() })).await
}

pub(super) async fn get_pull(context: &Context, _: AccountName, request: GetPull) -> Result<PullProgress, ApiError> {
    let limit = page(request.limit, MAX_PAGE);
    let GetPull { id, after, .. } = request;
    context.writer.submit(move |step| step.cluster.pull_progress(id, after.as_ref(), limit)).await
}
