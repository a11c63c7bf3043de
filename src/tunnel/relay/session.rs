//! One session: a client's stream whose ticket was accepted is joined to a stream on the worker's connection.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::time::timeout;
use tracing::{debug, info};

use super::accounts::Entry;
use super::{Note, NoteEvent, Shared};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::{CopyId, WorkerName};
use crate::tunnel::header::{EXEC_PORT, Frame};
use crate::tunnel::reason::{self, Reason};
use crate::tunnel::stream::TunnelStream;
use crate::tunnel::ticket::Grant;
use crate::tunnel::{OPEN_DEADLINE, splice};

/// Opens the worker's half, answers the client, and copies until the session ends or `entry` is cut.
pub(super) async fn run(
    shared: &Shared,
    mut client: TunnelStream,
    grant: &Grant,
    mut entry: Entry<'_>,
    peer: SocketAddr,
) {
    let Grant { account, vm, copy, worker, port } = grant;
    let note = |event: NoteEvent<'_>| shared.gate.note(Note { peer, grant: Some(grant), event });
    let asked = match *port {
        EXEC_PORT => Frame::Serve { copy: *copy, account: account.clone() },
        port => Frame::Attach { copy: *copy, port },
    };
    let answer = tokio::select! {
        answer = ask(shared, worker, &asked, OPEN_DEADLINE) => answer,
        reason = entry.cut() => Err(ApiError::new(ErrorCode::Unauthenticated, reason.to_string())),
    };
    let opened = match answer {
        Ok((stream, Frame::Opened {})) => Ok(stream),
        Ok((_, Frame::Refused(refusal))) => Err(refusal),
        Ok((mut stream, _)) => {
            stream.abort(Reason::Protocol);
            Err(not_understood(worker))
        }
        Err(refusal) => Err(refusal),
    };
    let stream = match opened {
        Ok(stream) => stream,
        Err(refusal) => {
            debug!(%account, %vm, %worker, port, %refusal, "a session could not be opened");
            note(NoteEvent::Failed(&refusal));
            return client.refuse(refusal).await;
        }
    };
    if client.write_frame(&Frame::Opened {}).await.is_err() {
        return;
    }
    let started = Instant::now();
    debug!(%account, %vm, %worker, port, "a session is open");
    note(NoteEvent::Opened);
    let traffic = splice::relay(client, stream, entry.cut()).await;
    note(NoteEvent::Closed {
        to_vm: traffic.forward,
        from_vm: traffic.back,
        lasted: started.elapsed(),
        broken: traffic.broken,
    });
    info!(
        %account, %vm, %worker, port,
        to_vm = traffic.forward,
        from_vm = traffic.back,
        ms = started.elapsed().as_millis(),
        broken = traffic.broken.map(tracing::field::display),
        "a session has ended"
    );
}

/// Asks the worker to answer over its data path.
pub(super) async fn probe(shared: &Shared, worker: &WorkerName, deadline: Duration) -> Result<Duration, ApiError> {
    let started = Instant::now();
    match ask(shared, worker, &Frame::Ping {}, deadline).await? {
        (mut stream, Frame::Pong {}) => {
            stream.outgoing.finish();
            Ok(started.elapsed())
        }
        _ => Err(not_understood(worker)),
    }
}

/// Asks the worker which address the guest of a copy has.
pub(super) async fn locate(shared: &Shared, worker: &WorkerName, copy: CopyId) -> Result<IpAddr, ApiError> {
    match ask(shared, worker, &Frame::Locate { copy }, OPEN_DEADLINE).await? {
        (mut stream, Frame::Located { ip }) => {
            stream.outgoing.finish();
            ip.parse().map_err(|_| not_understood(worker))
        }
        (_, Frame::Refused(refusal)) => Err(refusal),
        _ => Err(not_understood(worker)),
    }
}

/// Opens a stream to the worker, sends one header and yields the answer.
async fn ask(
    shared: &Shared,
    worker: &WorkerName,
    frame: &Frame,
    deadline: Duration,
) -> Result<(TunnelStream, Frame), ApiError> {
    let link = shared.links.get(worker)?;
    let broken = |what: &dyn std::fmt::Display| {
        ApiError::new(ErrorCode::Unavailable, format!("worker {worker} could not be asked over the tunnel: {what}"))
    };
    let asked = async {
        let (outgoing, incoming) = link.open_bi().await.map_err(|error| broken(&reason::describe(&error)))?;
        let mut stream = TunnelStream::new(outgoing, incoming);
        stream.write_frame(frame).await.map_err(|error| broken(&error))?;
        let answer = stream.read_frame().await.map_err(|error| broken(&error))?;
        Ok((stream, answer))
    };
    timeout(deadline, asked).await.unwrap_or_else(|_| {
        Err(ApiError::new(
            ErrorCode::Timeout,
            format!("worker {worker} did not answer over the tunnel within {} s", deadline.as_secs_f32()),
        ))
    })
}

fn not_understood(worker: &WorkerName) -> ApiError {
    ApiError::new(ErrorCode::Internal, format!("worker {worker} gave an answer that does not fit the question"))
}
