//! One session: a client's stream whose ticket was accepted is joined to a stream on the worker's connection.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use quinn::Connection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tracing::{debug, info};

use super::accounts::Entry;
use super::{Note, NoteEvent, Shared};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::{CopyId, WorkerName};
use crate::tunnel::OPEN_DEADLINE;
use crate::tunnel::header::{EXEC_PORT, Frame, Resume};
use crate::tunnel::reason::{self, Reason};
use crate::tunnel::splice::{self, Traffic};
use crate::tunnel::stream::TunnelStream;
use crate::tunnel::ticket::{Grant, Target};

/// The same for a client whose stream is of this process: `answer` is told whether the worker's half is open, and yields the
/// client's stream, unless that is gone.
pub(super) async fn join<S, F>(
    shared: &Shared,
    grant: &Grant,
    mut entry: Entry<'_>,
    peer: SocketAddr,
    answer: impl FnOnce(Result<(), ApiError>) -> F,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin,
    F: Future<Output = Option<S>>,
{
    let stream = match attach(shared, grant, &mut entry, peer, None).await {
        Ok((stream, _)) => stream,
        Err(refusal) => {
            answer(Err(refusal)).await;
            return;
        }
    };
    let Some(client) = answer(Ok(())).await else { return };
    let opened = Opened::now(shared, grant, peer);
    // Dropped half-way only to end the session: the worker's half is reset then.
    let traffic = tokio::select! {
        traffic = splice::guest(stream, client) => traffic,
        reason = entry.cut() => Traffic { broken: Some(reason), ..Traffic::default() },
    };
    // Seen from the worker's half: forward is what came from the VM.
    opened.ended(Traffic { forward: traffic.back, back: traffic.forward, ..traffic });
}

/// Opens the worker's half, answers the client, and copies until the session ends or `entry` is cut. Whether the session can
/// be `resume`d is a matter between the two: what they say of it is handed on.
pub(super) async fn run(
    shared: &Shared,
    (mut client, resume): (TunnelStream, Option<Resume>),
    grant: &Grant,
    mut entry: Entry<'_>,
    peer: SocketAddr,
) {
    let (stream, resumable) = match attach(shared, grant, &mut entry, peer, resume).await {
        Ok(attached) => attached,
        Err(refusal) => return client.refuse(refusal).await,
    };
    if client.write_frame(&Frame::Opened { resumable }).await.is_err() {
        return;
    }
    let opened = Opened::now(shared, grant, peer);
    opened.ended(splice::relay(client, stream, entry.cut()).await);
}

/// Opens the worker's half, and tells whether it can be resumed; a refusal is recorded.
async fn attach(
    shared: &Shared,
    grant: &Grant,
    entry: &mut Entry<'_>,
    peer: SocketAddr,
    resume: Option<Resume>,
) -> Result<(TunnelStream, bool), ApiError> {
    let Grant { account, target, worker, port, .. } = grant;
    let asked = match (target, *port) {
        // Those outlive their streams by themselves.
        (Target::Vm { copy, .. }, EXEC_PORT) => {
            Frame::Serve { copy: *copy, account: account.clone(), since: grant.since }
        }
        (Target::Vm { copy, .. }, port) => Frame::Attach { copy: *copy, port, resume },
        (Target::Host, port) => Frame::AttachHost { port, resume },
    };
    let answer = tokio::select! {
        answer = open(shared, worker, &asked) => answer,
        reason = entry.cut() => Err(ApiError::new(ErrorCode::Unauthenticated, reason.to_string())),
    };
    let attached = match answer {
        Ok((stream, Frame::Opened { resumable })) => Ok((stream, resumable)),
        // What an earlier release says to a question that it does not know.
        Ok((_, Frame::Refused(refusal))) if *target == Target::Host && refusal.code == ErrorCode::Invalid => {
            let why = format!("worker {worker} is of an earlier release, which lets nobody onto its host; update it");
            Err(ApiError::new(ErrorCode::UnknownVerb, why))
        }
        Ok((_, Frame::Refused(refusal))) => Err(refusal),
        Ok((mut stream, _)) => {
            stream.abort(Reason::Protocol);
            Err(not_understood(worker))
        }
        Err(refusal) => Err(refusal),
    };
    attached.inspect_err(|refusal| {
        debug!(%account, to = grant.place(), %worker, port, %refusal, "a session could not be opened");
        shared.gate.note(Note { peer, grant: Some(grant), event: NoteEvent::Failed(refusal) });
    })
}

/// A session for the record, from when both its halves are open.
struct Opened<'a> {
    shared: &'a Shared,
    grant: &'a Grant,
    peer: SocketAddr,
    since: Instant,
}

impl<'a> Opened<'a> {
    fn now(shared: &'a Shared, grant: &'a Grant, peer: SocketAddr) -> Self {
        let Grant { account, worker, port, .. } = grant;
        debug!(%account, to = grant.place(), %worker, port, "a session is open");
        shared.gate.note(Note { peer, grant: Some(grant), event: NoteEvent::Opened });
        Self { shared, grant, peer, since: Instant::now() }
    }

    /// `forward` in `traffic` is what went to the VM.
    fn ended(self, traffic: Traffic) {
        let Grant { account, worker, port, .. } = self.grant;
        let lasted = self.since.elapsed();
        let Traffic { forward: to_vm, back: from_vm, broken } = traffic;
        let event = NoteEvent::Closed { to_vm, from_vm, lasted, broken };
        self.shared.gate.note(Note { peer: self.peer, grant: Some(self.grant), event });
        let (ms, broken) = (lasted.as_millis(), broken.map(tracing::field::display));
        let to = self.grant.place();
        info!(%account, to, %worker, port, to_vm, from_vm, ms, broken, "a session has ended");
    }
}

/// Asks the worker to answer over its data path.
pub(super) async fn probe(shared: &Shared, worker: &WorkerName, deadline: Duration) -> Result<Duration, ApiError> {
    let started = Instant::now();
    ping(shared, &shared.links.get(worker)?, worker, deadline).await?;
    Ok(started.elapsed())
}

/// Asks over this connection; yields whether the worker holds exec sessions.
pub(super) async fn ping(
    shared: &Shared,
    link: &Connection,
    worker: &WorkerName,
    deadline: Duration,
) -> Result<bool, ApiError> {
    match ask(shared, link, worker, &Frame::Ping {}, deadline).await? {
        (mut stream, Frame::Pong { holds }) => {
            stream.outgoing.finish();
            Ok(holds)
        }
        _ => Err(not_understood(worker)),
    }
}

/// Asks for a stream to a guest, unless the worker is known not to answer.
async fn open(shared: &Shared, worker: &WorkerName, asked: &Frame) -> Result<(TunnelStream, Frame), ApiError> {
    ask(shared, &shared.links.answering(worker)?, worker, asked, OPEN_DEADLINE).await
}

/// Asks the worker which address the guest of a copy has.
pub(super) async fn locate(shared: &Shared, worker: &WorkerName, copy: CopyId) -> Result<IpAddr, ApiError> {
    match open(shared, worker, &Frame::Locate { copy }).await? {
        (mut stream, Frame::Located { ip }) => {
            stream.outgoing.finish();
            ip.parse().map_err(|_| not_understood(worker))
        }
        (_, Frame::Refused(refusal)) => Err(refusal),
        _ => Err(not_understood(worker)),
    }
}

/// Opens a stream to the worker, sends one header and yields the answer.
pub(super) async fn ask(
    shared: &Shared,
    link: &Connection,
    worker: &WorkerName,
    frame: &Frame,
    deadline: Duration,
) -> Result<(TunnelStream, Frame), ApiError> {
    let broken = |what: &dyn std::fmt::Display| {
        ApiError::new(ErrorCode::Unavailable, format!("worker {worker} could not be asked over the tunnel: {what}"))
    };
    let asked = async {
        let halves = link.open_bi().await.map_err(|error| broken(&reason::describe(&error)))?;
        let mut stream = TunnelStream::new(link, halves, shared.configs.turns());
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

pub(super) fn not_understood(worker: &WorkerName) -> ApiError {
    ApiError::new(ErrorCode::Internal, format!("worker {worker} gave an answer that does not fit the question"))
}
