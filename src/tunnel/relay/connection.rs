//! One connection, from its handshake to its end. Its first header says whether a worker or a client has come.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quinn::{Connection, Incoming};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, info};

use super::{Note, NoteEvent, Shared, client};
use crate::model::WorkerName;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::network::Place;
use crate::tunnel::MAX_SESSIONS;
use crate::tunnel::endpoint::widen;
use crate::tunnel::header::{Frame, WorkerHello};
use crate::tunnel::proof::Exported;
use crate::tunnel::reason::{self, Reason};
use crate::tunnel::stream::TunnelStream;

/// How long a connection from a network that is crowded with strangers may last before it has proven who it is: those who
/// stay silent there soon make room.
const CROWDED_TIMEOUT: Duration = Duration::from_secs(3);

/// How long a refused worker may take to read why.
const REFUSAL_LINGER: Duration = Duration::from_secs(2);

/// How long a worker whose control stream has ended may take to close the connection with a reason.
const FAREWELL_LINGER: Duration = Duration::from_millis(200);

/// Streams a worker may open: the one over which it proves itself.
const WORKER_STREAMS: u32 = 1;

/// Serves what `incoming` becomes; `place` is its place among the strangers of its network.
pub(super) async fn serve(incoming: Incoming, place: Place, shared: Arc<Shared>) {
    let crowded = shared.unproven.is_crowded(incoming.remote_address().ip());
    let patience = if crowded { CROWDED_TIMEOUT } else { shared.limits.unproven };
    let deadline = Instant::now() + patience.min(shared.limits.unproven);
    let handshake = Counted::one(&shared.handshakes);
    let config = shared.configs.towards(incoming.remote_address().ip());
    let connecting = match incoming.accept_with(config) {
        Ok(connecting) => connecting,
        Err(error) => return debug!(%error, "a tunnel handshake did not begin"),
    };
    let connection = match timeout_at(deadline, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return debug!(%error, "a tunnel handshake failed"),
        Err(_) => return debug!("a tunnel handshake took too long"),
    };
    drop(handshake);
    let first = timeout_at(deadline, async {
        let mut stream = TunnelStream::new(&connection, connection.accept_bi().await.ok()?, shared.configs.turns());
        match stream.read_frame().await {
            Ok(frame) => Some((stream, frame)),
            Err(error) => {
                debug!(%error, "a tunnel connection opened with nonsense");
                None
            }
        }
    })
    .await;
    match first {
        Ok(Some((stream, Frame::WorkerHello(hello)))) => worker(&connection, stream, hello, place, &shared).await,
        Ok(Some((stream, Frame::Open { ticket, resume }))) => {
            client::serve(connection, (stream, ticket, resume), (deadline, place), shared).await;
        }
        Ok(Some((stream, _))) => {
            stream.refuse(out_of_order()).await;
            let _ = timeout(REFUSAL_LINGER, connection.closed()).await;
            connection.close(Reason::Protocol.code(), b"");
        }
        Ok(None) => connection.close(Reason::Protocol.code(), b""),
        Err(_) => connection.close(Reason::Unauthenticated.code(), b""),
    }
}

/// Counts one up while it lives.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn one(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn out_of_order() -> ApiError {
    ApiError::new(ErrorCode::Invalid, "a tunnel stream begins with worker-hello or open".to_owned())
}

/// Serves a worker's connection. Its first stream stays open: the worker sends another hello over it when its session
/// was renewed, and the sessions of its users go on.
async fn worker(connection: &Connection, mut control: TunnelStream, hello: WorkerHello, place: Place, shared: &Shared) {
    let name = hello.worker.clone();
    if let Err(refusal) = admit(connection, &hello, shared) {
        return refuse_worker(connection, control, &name, refusal).await;
    }
    drop(place);
    // As many as the relay may come to open.
    widen(connection, WORKER_STREAMS, MAX_SESSIONS);
    // Before it is told: an admitted worker is connected. Its rights may have gone meanwhile, when there was no connection
    // to close yet.
    let up = LinkUp::new(&name, connection, shared);
    if let Err(refusal) = admit(connection, &hello, shared) {
        drop(up);
        return refuse_worker(connection, control, &name, refusal).await;
    }
    drop(hello);
    if control.write_frame(&Frame::Admitted {}).await.is_err() {
        return;
    }
    info!(worker = %name, "the worker is connected");
    if let Some(refusal) = renewals(connection, &mut control, &name, shared).await {
        return refuse_worker(connection, control, &name, refusal).await;
    }
    // The news of why usually follows the end of the control stream at once.
    if timeout(FAREWELL_LINGER, connection.closed()).await.is_err() {
        // Only then: closing a closed connection would overwrite the peer's reason.
        connection.close(Reason::Protocol.code(), b"");
    }
    let why = connection.close_reason().map_or_else(String::new, |error| reason::describe(&error));
    info!(worker = %name, %why, "the worker's connection has ended");
}

/// Takes further hellos until the control stream ends, or one is to be refused.
async fn renewals(
    connection: &Connection,
    control: &mut TunnelStream,
    name: &WorkerName,
    shared: &Shared,
) -> Option<ApiError> {
    loop {
        let next = match control.read_frame().await {
            Ok(Frame::WorkerHello(next)) if next.worker == *name => next,
            Ok(_) => return Some(out_of_order()),
            Err(_) => return None,
        };
        if let Err(refusal) = admit(connection, &next, shared) {
            return Some(refusal);
        }
        if control.write_frame(&Frame::Admitted {}).await.is_err() {
            return None;
        }
    }
}

fn admit(connection: &Connection, hello: &WorkerHello, shared: &Shared) -> Result<(), ApiError> {
    let admitted = Exported::of(connection).and_then(|exported| shared.gate.admit(hello, exported));
    admitted.inspect_err(|why| {
        let event = NoteEvent::WorkerRefused(&hello.worker, why);
        shared.gate.note(Note { peer: connection.remote_address(), grant: None, event });
    })
}

async fn refuse_worker(connection: &Connection, control: TunnelStream, name: &WorkerName, why: ApiError) {
    info!(worker = %name, %why, "refused a worker's tunnel connection");
    control.refuse(why).await;
    let _ = timeout(REFUSAL_LINGER, connection.closed()).await;
    connection.close(Reason::Unauthenticated.code(), b"");
}

/// The worker counts as connected while this lives, however its task ends.
struct LinkUp<'a> {
    worker: &'a WorkerName,
    connection: &'a Connection,
    shared: &'a Shared,
}

impl<'a> LinkUp<'a> {
    fn new(worker: &'a WorkerName, connection: &'a Connection, shared: &'a Shared) -> Self {
        shared.links.up(worker, connection);
        Self { worker, connection, shared }
    }
}

impl Drop for LinkUp<'_> {
    fn drop(&mut self) {
        self.shared.links.down(self.worker, self.connection);
    }
}
