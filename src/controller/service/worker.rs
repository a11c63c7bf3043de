//! What workers say: registration, leases, reports, log lines.

use super::Context;
use crate::bus::message::{
    Answer, Done, Heartbeat, Hello, LogLines, MAX_LOG_BATCH, MAX_LOG_LINE, Report, Welcome, decode, encode,
};
use crate::bus::parts;
use crate::bus::subject::WorkerVerb;
use crate::identity;
use crate::model::WorkerName;
use crate::model::error::{ApiError, ErrorCode};

/// Answers one message of `from`, whom the broker let speak under that name.
pub(super) async fn handle(
    context: &Context,
    from: WorkerName,
    verb: WorkerVerb,
    payload: &[u8],
) -> Result<Vec<u8>, ApiError> {
    match verb {
        WorkerVerb::Hello => encode(&Answer::from(hello(context, from, decode(payload)?).await)),
        WorkerVerb::Heartbeat => {
            let beat: Heartbeat = decode(payload)?;
            let ack =
                context.writer.submit(move |step| step.cluster.heartbeat(&from, &beat, step.now, step.changes)).await;
            encode(&Answer::from(ack))
        }
        WorkerVerb::Report => {
            let report: Report = decode(payload)?;
            let done =
                context.writer.submit(move |step| step.cluster.report(&from, report, step.now, step.changes)).await;
            encode(&Answer::from(done.map(|()| Done {})))
        }
        WorkerVerb::Log => {
            let log: LogLines = decode(payload)?;
            check_log(&log)?;
            let done = context.writer.submit(move |step| step.cluster.log(&from, log, step.now, step.changes)).await;
            encode(&Answer::from(done.map(|()| Done {})))
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
