//! What workers say: registration, leases, reports, log lines, images.

use super::Context;
use crate::bus::images::ImagesReport;
use crate::bus::log::{LogLines, MAX_LOG_BATCH, MAX_LOG_LINE};
use crate::bus::message::{Answer, Done, Heartbeat, Hello, Report, Welcome, decode, encode};
use crate::bus::parts;
use crate::bus::subject::{self, WorkerVerb};
use crate::identity;
use crate::model::WorkerName;
use crate::model::audit::{AuditType, Deed, Outcome};
use crate::model::error::{ApiError, ErrorCode};

/// Answers one message of `from`, whom the broker let speak under that name, from `address`.
pub(super) async fn handle(
    context: &Context,
    from: WorkerName,
    verb: WorkerVerb,
    (payload, address): (&[u8], &str),
) -> Result<Vec<u8>, ApiError> {
    let worker = from.clone();
    let answer = answer(context, from, verb, payload).await;
    let Err(error) = &answer else { return answer };
    if is_worth_a_look(context, &worker, verb, error).await {
        context.auditor.record(Deed {
            kind: AuditType::Request,
            account: subject::worker_user(&worker),
            address: address.to_owned(),
            verb: format!("worker.{}", verb.as_str()),
            target: worker.to_string(),
            outcome: Outcome::Refused,
            message: error.to_string(),
            request: String::new(),
        });
    }
    answer
}

/// Whether a refusal belongs into the audit trail: that of a registration always does, and when another process speaks for
/// a worker than the one whose session is open. After a restart of the controller no session is open, and every worker is
/// told so once: that is nothing.
async fn is_worth_a_look(context: &Context, worker: &WorkerName, verb: WorkerVerb, error: &ApiError) -> bool {
    match (verb, error.code) {
        (WorkerVerb::Hello, code) => code != ErrorCode::Unavailable && code != ErrorCode::Timeout,
        (_, ErrorCode::Unauthenticated) => {
            let worker = worker.clone();
            context.writer.submit(move |step| Ok(step.cluster.has_session(&worker))).await.unwrap_or(false)
        }
        _ => false,
    }
}

async fn answer(context: &Context, from: WorkerName, verb: WorkerVerb, payload: &[u8]) -> Result<Vec<u8>, ApiError> {
    match verb {
        WorkerVerb::Hello => encode(&Answer::Ok(hello(context, from, decode(payload)?).await?)),
        WorkerVerb::Heartbeat => {
            let beat: Heartbeat = decode(payload)?;
            let ack = context
                .writer
                .submit_renewal(move |step| step.cluster.heartbeat(&from, &beat, step.now, step.changes))
                .await;
            encode(&Answer::Ok(ack?))
        }
        WorkerVerb::Report => {
            let report: Report = decode(payload)?;
            let done =
                context.writer.submit(move |step| step.cluster.report(&from, report, step.now, step.changes)).await;
            done?;
            encode(&Answer::Ok(Done {}))
        }
        WorkerVerb::Images => {
            let report: ImagesReport = decode(payload)?;
            context.writer.submit(move |step| step.cluster.images_told(&from, report)).await?;
            encode(&Answer::Ok(Done {}))
        }
        WorkerVerb::Log => {
            let log: LogLines = decode(payload)?;
            check_log(&log)?;
            let done = context.writer.submit(move |step| step.cluster.log(&from, log, step.now, step.changes)).await;
            done?;
            encode(&Answer::Ok(Done {}))
        }
    }
}

async fn hello(context: &Context, from: WorkerName, hello: Hello) -> Result<Welcome, ApiError> {
    let session = hello.session;
    let name = from.clone();
    let must_have_key = context.workers_have_keys;
    let registered = context.writer.submit(move |step| {
        // What a worker said just before it was taken out of the cluster must not bring it back.
        if must_have_key && step.cluster.key_record(&name).is_none() {
            let what = format!("worker {name} was taken out of the cluster; it must join again");
            return Err(ApiError::new(ErrorCode::Unauthenticated, what));
        }
        step.cluster.hello(&name, hello, step.now, step.changes)
    });
    let assignment = registered.await?;
    // The first heartbeat will not know the revision of one in several parts, which sends them all.
    let first = parts::split(assignment)?.into_iter().next();
    let first = first.ok_or_else(|| ApiError::new(ErrorCode::Internal, "an assignment came to nothing"))?;
    let tunnel_secret = identity::new_token();
    context.gate.open_session(from, session, tunnel_secret.clone());
    let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Ok(Welcome {
        lease_ms: millis(context.timing.lease),
        heartbeat_ms: millis(context.timing.heartbeat),
        tunnel: context.tunnel.clone(),
        tunnel_secret,
        assignment: first,
    })
}

fn check_log(log: &LogLines) -> Result<(), ApiError> {
    let longest = log.lines.iter().map(|line| line.text.len()).max().unwrap_or(0);
    // Lossy decoding of bytes that are no UTF-8 can make a line three times as long.
    if log.lines.len() > MAX_LOG_BATCH || longest > 3 * MAX_LOG_LINE {
        return Err(ApiError::new(
            ErrorCode::LimitExceeded,
            format!(
                "{} log lines, the longest of {longest} bytes; at most {MAX_LOG_BATCH} of {MAX_LOG_LINE} are taken",
                log.lines.len()
            ),
        ));
    }
    Ok(())
}
