//! What the API says and does about the whole cluster: its settings, and copies that nobody wishes for.

use super::Context;
use super::api::page;
use crate::bus::message::{Done, MAX_PAGE};
use crate::bus::settings::{GetSettings, SetSettings};
use crate::bus::strays::{DeleteStray, ListStrays, StrayPage};
use crate::model::AccountName;
use crate::model::error::ApiError;
use crate::model::settings::ClusterSettings;

pub(super) async fn get(context: &Context, _: AccountName, _: GetSettings) -> Result<ClusterSettings, ApiError> {
    context.writer.submit(|step| Ok(step.cluster.settings_record().clone())).await
}

pub(super) async fn set(context: &Context, _: AccountName, request: SetSettings) -> Result<ClusterSettings, ApiError> {
    context.writer.submit(move |step| step.cluster.set_settings(request, step.changes)).await
}

pub(super) async fn list_strays(context: &Context, _: AccountName, request: ListStrays) -> Result<StrayPage, ApiError> {
    let limit = page(request.limit, MAX_PAGE);
    let ListStrays { worker, after, .. } = request;
    let read = context.writer.submit(move |step| Ok(step.cluster.strays(worker.as_ref(), after.as_ref(), limit)));
    let (strays, more) = read.await?;
    Ok(StrayPage { strays, more })
}

pub(super) async fn delete_stray(context: &Context, _: AccountName, request: DeleteStray) -> Result<Done, ApiError> {
    let DeleteStray { name, copy } = request;
    context.writer.submit(move |step| step.cluster.delete_stray(&name, copy, step.now, step.changes)).await?;
    Ok(Done {})
}
