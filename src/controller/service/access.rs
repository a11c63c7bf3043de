//! Service accounts and bootstrap tokens: secrets are made here and shown once, in the answer; only their hashes go on.

use super::Context;
use super::api::page;
use crate::bus::access::{
    AccountPage, CreateAccount, CreateJoinToken, DeleteAccount, DeleteJoinToken, GetAccount, JoinTokenPage,
    ListAccounts, ListJoinTokens, NewJoinToken, NewToken, RotateAccount, UpdateAccount,
};
use crate::bus::message::{Done, MAX_PAGE};
use crate::controller::store::writer::Writer;
use crate::identity::{self, hash_of};
use crate::model::AccountName;
use crate::model::account::{AccountView, JoinId};
use crate::model::error::{ApiError, ErrorCode};

pub(super) async fn create(context: &Context, _: AccountName, request: CreateAccount) -> Result<NewToken, ApiError> {
    let token = request.token.clone().unwrap_or_else(identity::new_token);
    let hash = hash_of(token.expose());
    let made =
        context.writer.submit(move |step| step.cluster.create_account(&request, hash, step.now, step.changes)).await?;
    Ok(NewToken { account: made, token })
}

pub(super) async fn get(context: &Context, _: AccountName, request: GetAccount) -> Result<AccountView, ApiError> {
    context.writer.submit(move |step| step.cluster.account(&request.name)).await
}

pub(super) async fn list(context: &Context, _: AccountName, request: ListAccounts) -> Result<AccountPage, ApiError> {
    let limit = page(request.limit, MAX_PAGE);
    let read = context.writer.submit(move |step| Ok(step.cluster.accounts(request.after.as_ref(), limit)));
    let (accounts, more) = read.await?;
    Ok(AccountPage { accounts, more })
}

pub(super) async fn update(context: &Context, _: AccountName, request: UpdateAccount) -> Result<AccountView, ApiError> {
    context.writer.submit(move |step| step.cluster.update_account(&request, step.now, step.changes)).await
}

pub(super) async fn rotate(context: &Context, _: AccountName, request: RotateAccount) -> Result<NewToken, ApiError> {
    let token = identity::new_token();
    let hash = hash_of(token.expose());
    let rotate = move |step: &mut crate::controller::store::writer::Step<'_>| {
        step.cluster.rotate_account(&request.name, hash, step.now, step.changes)
    };
    let account = context.writer.submit(rotate).await?;
    Ok(NewToken { account, token })
}

pub(super) async fn delete(context: &Context, _: AccountName, request: DeleteAccount) -> Result<Done, ApiError> {
    context.writer.submit(move |step| step.cluster.delete_account(&request.name, step.changes)).await?;
    Ok(Done {})
}

pub(super) async fn create_join_token(
    context: &Context,
    by: AccountName,
    request: CreateJoinToken,
) -> Result<NewJoinToken, ApiError> {
    if !context.workers_have_keys {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            "this controller uses a NATS server of its operator, who lets workers in there; a bootstrap token opens nothing",
        ));
    }
    new_join_token(&context.writer, &context.bus, by, request).await
}

pub(super) async fn list_join_tokens(
    context: &Context,
    _: AccountName,
    request: ListJoinTokens,
) -> Result<JoinTokenPage, ApiError> {
    let limit = page(request.limit, MAX_PAGE);
    let read = context.writer.submit(move |step| Ok(step.cluster.join_tokens(request.after.as_ref(), limit)));
    let (tokens, more) = read.await?;
    Ok(JoinTokenPage { tokens, more })
}

pub(super) async fn delete_join_token(
    context: &Context,
    _: AccountName,
    request: DeleteJoinToken,
) -> Result<Done, ApiError> {
    context.writer.submit(move |step| step.cluster.delete_join_token(&request.id, step.changes)).await?;
    Ok(Done {})
}

/// Makes a join token on behalf of `by`; what the audit trail says of it is the matter of whoever gives the `writer`.
pub(in crate::controller) async fn new_join_token(
    writer: &Writer,
    bus: &super::BusAddress,
    by: AccountName,
    request: CreateJoinToken,
) -> Result<NewJoinToken, ApiError> {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| ApiError::new(ErrorCode::Internal, format!("the system gives no random bytes: {error}")))?;
    let (id, secret) = (JoinId::new(bytes), identity::new_token());
    let made = (id, hash_of(secret.expose()));
    let token =
        writer.submit(move |step| step.cluster.create_join_token(by, request, made, step.now, step.changes)).await?;
    Ok(NewJoinToken {
        id: token.id.into(),
        secret,
        expires_at: token.expires_at,
        bus_url: bus.url.clone(),
        fingerprint: bus.fingerprint.map(|fingerprint| fingerprint.to_string()),
    })
}
