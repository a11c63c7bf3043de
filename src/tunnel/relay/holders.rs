//! Has workers end the exec sessions of accounts that may not connect any more, or have another token by now. Such a session runs on
//! without a stream that could be cut, so workers are asked who holds some: by the prober, when one says that anybody does.
//!
//! Nothing is remembered here. A worker that was away when the account lost its rights is asked as soon as it is back.

use quinn::Connection;
use tracing::info;

use super::session::{ask, not_understood};
use super::{Shared, reach};
use crate::model::WorkerName;
use crate::model::error::ApiError;
use crate::tunnel::exec::{Holder, MAX_HOLDERS};
use crate::tunnel::header::Frame;
use crate::tunnel::ticket::TargetKind;

/// The most pages that a worker is asked for: far more than it can hold sessions.
const MAX_PAGES: usize = 64;

/// Asks who holds sessions on the worker, and has those end that nobody may hold.
///
/// # Errors
/// When the worker does not answer; it is asked again soon.
pub(super) async fn review(shared: &Shared, link: &Connection, worker: &WorkerName) -> Result<(), ApiError> {
    let mut after = None;
    for _ in 0..MAX_PAGES {
        let asked = Frame::Holders { after: after.take() };
        let (mut stream, Frame::Held { holders }) = ask(shared, link, worker, &asked, reach::ANSWER).await? else {
            return Err(not_understood(worker));
        };
        stream.outgoing.finish();
        if holders.len() >= MAX_HOLDERS {
            after = holders.last().cloned();
        }
        for holder in holders.into_iter().filter(|holder| !may_hold(shared, holder)) {
            info!(account = %holder.account, %worker, "its exec sessions end: it may not connect any more");
            let (mut stream, _) = ask(shared, link, worker, &Frame::EndExecs(holder), reach::ANSWER).await?;
            stream.outgoing.finish();
        }
        if after.is_none() {
            break;
        }
    }
    Ok(())
}

/// Of a session that an earlier controller let begin it is not known by which token; the account's roles count alone then.
fn may_hold(shared: &Shared, holder: &Holder) -> bool {
    let Holder { account, since } = holder;
    shared.gate.permits(account, TargetKind::Vm).is_ok()
        && since.is_none_or(|since| shared.gate.token_since(account) == Some(since))
}
