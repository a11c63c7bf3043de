//! What machines say that want to be workers.

use super::Context;
use crate::broker::auth::nkey;
use crate::bus::access::{Join, Joined};
use crate::bus::message::{Answer, decode, encode};
use crate::bus::subject;
use crate::model::account::JoinId;
use crate::model::audit::{AuditType, Deed, Outcome};
use crate::model::error::{ApiError, ErrorCode};

/// Answers one request of a machine that logged in with the secret of the token `id` from `address`.
pub(super) async fn handle(
    context: &Context,
    id: JoinId,
    payload: &[u8],
    address: String,
) -> Result<Vec<u8>, ApiError> {
    encode(&Answer::from(join(context, id, decode(payload)?, address).await))
}

async fn join(context: &Context, id: JoinId, request: Join, address: String) -> Result<Joined, ApiError> {
    if !nkey::is_public_key(&request.public_key) {
        let shown: String = request.public_key.chars().take(64).collect();
        let what = format!("{shown:?} is not the public half of a user's nkey (U and 55 more letters and digits)");
        return Err(ApiError::new(ErrorCode::Invalid, what));
    }
    let user = subject::join_user(&id);
    let deed = Deed {
        kind: AuditType::Join,
        address,
        account: user,
        verb: "join".to_owned(),
        target: request.worker.to_string(),
        outcome: Outcome::Done,
        message: format!("key {}", request.public_key),
        request: String::new(),
    };
    let writer = context.writer.audited(deed.clone());
    let joined = writer.submit(move |step| step.cluster.join(&id, request, step.now, step.changes)).await;
    if let Err(error) = joined {
        // A machine is refused for many reasons; all of them are worth a look.
        context.auditor.record(Deed { outcome: Outcome::Refused, message: error.to_string(), ..deed });
        return Err(error);
    }
    Ok(Joined {})
}
