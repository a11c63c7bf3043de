//! A client's connection: every stream brings its own ticket and is served in its own task.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quinn::Connection;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{Instrument, Span, debug};

use super::accounts::Seat;
use super::{Note, NoteEvent, Shared, session};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::network::Place;
use crate::model::secret::Secret;
use crate::tunnel::allowance::{Allowance, FIRST_STREAMS, Room};
use crate::tunnel::endpoint::widen;
use crate::tunnel::header::{Frame, Resume};
use crate::tunnel::reason::Reason;
use crate::tunnel::stream::TunnelStream;
use crate::tunnel::{DRAIN, HEADER_DEADLINE};

struct Client {
    connection: Connection,
    shared: Arc<Shared>,
    /// A ticket was accepted.
    proven: AtomicBool,
    /// Its place among the strangers of its network; then among the connections of the first account.
    place: Mutex<Standing>,
    /// For what its sessions send.
    room: Mutex<Room>,
}

enum Standing {
    Stranger { _place: Place },
    Of { _seat: Seat },
}

/// Serves the connection, whose first stream has brought `ticket`, until it ends, and then for [`DRAIN`] what is still
/// to be delivered. Without an accepted ticket it ends at `deadline`.
pub(super) async fn serve(
    connection: Connection,
    (first, ticket, resume): (TunnelStream, Secret, Option<Resume>),
    (deadline, place): (Instant, Place),
    shared: Arc<Shared>,
) {
    let client = Arc::new(Client {
        connection: connection.clone(),
        shared,
        proven: AtomicBool::new(false),
        place: Mutex::new(Standing::Stranger { _place: place }),
        room: Mutex::new(Room::new()),
    });
    let mut sessions = JoinSet::new();
    let mut allowance = Allowance::up_to(client.shared.limits.sessions_per_client);
    sessions.spawn(client.clone().open(first, ticket, resume).instrument(Span::current()));
    let mut deadline = deadline;
    loop {
        // All arms are cancel safe; nothing is awaited in their bodies.
        tokio::select! {
            stream = connection.accept_bi() => match stream {
                Ok(halves) => {
                    let stream = TunnelStream::new(&connection, halves, client.shared.configs.turns());
                    sessions.spawn(client.clone().take(stream).instrument(Span::current()));
                    // Strangers have what they were given.
                    if client.proven.load(Ordering::Relaxed) {
                        allowance.fit(sessions.len(), &connection);
                    }
                }
                Err(error) => {
                    debug!(%error, "the client's connection has ended");
                    break;
                }
            },
            Some(_) = sessions.join_next() => {
                if sessions.is_empty() && client.proven.load(Ordering::Relaxed) {
                    deadline = Instant::now() + client.shared.limits.idle_client;
                }
            }
            () = sleep_until(deadline) => match (client.proven.load(Ordering::Relaxed), sessions.is_empty()) {
                (true, false) => deadline = Instant::now() + client.shared.limits.idle_client,
                (true, true) => {
                    connection.close(Reason::Idle.code(), b"");
                    break;
                }
                (false, _) => {
                    connection.close(Reason::Unauthenticated.code(), b"");
                    break;
                }
            }
        }
    }
    let _ = timeout(DRAIN, async { while sessions.join_next().await.is_some() {} }).await;
}

impl Client {
    /// A further stream: reads its header first.
    async fn take(self: Arc<Self>, mut stream: TunnelStream) {
        let refusal = match timeout(HEADER_DEADLINE, stream.read_frame()).await {
            Ok(Ok(Frame::Open { ticket, resume })) => return self.open(stream, ticket, resume).await,
            Ok(Ok(_)) => ApiError::new(ErrorCode::Invalid, "a client's tunnel stream begins with open"),
            Ok(Err(error)) => error.into(),
            Err(_) => {
                ApiError::new(ErrorCode::Timeout, format!("no ticket came within {} s", HEADER_DEADLINE.as_secs()))
            }
        };
        stream.refuse(refusal).await;
    }

    async fn open(self: Arc<Self>, stream: TunnelStream, ticket: Secret, resume: Option<Resume>) {
        let peer = self.connection.remote_address();
        let gate = &self.shared.gate;
        let grant = match gate.redeem(ticket.expose()) {
            Ok(grant) => grant,
            Err(refusal) => {
                gate.note(Note { peer, grant: None, event: NoteEvent::Refused(&refusal) });
                return stream.refuse(refusal).await;
            }
        };
        drop(ticket);
        let entry = match self.shared.enter(&grant) {
            Ok(entry) => entry,
            Err(refusal) => {
                gate.note(Note { peer, grant: Some(&grant), event: NoteEvent::Refused(&refusal) });
                return stream.refuse(refusal).await;
            }
        };
        if !self.proven.load(Ordering::Relaxed) {
            match self.shared.accounts.sit(&grant.account) {
                Ok(seat) => *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Standing::Of { _seat: seat },
                Err(refusal) => {
                    gate.note(Note { peer, grant: Some(&grant), event: NoteEvent::Refused(&refusal) });
                    return stream.refuse(refusal).await;
                }
            }
            self.proven.store(true, Ordering::Relaxed);
            // Others may have come first.
            let room = self.room();
            widen(&self.connection, FIRST_STREAMS.min(self.shared.limits.sessions_per_client), room.granted());
        }
        let _seated = Seated::new(&self);
        session::run(&self.shared, (stream, resume), &grant, entry, peer).await;
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        // Nothing panics while it is held.
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// There is room for what one session sends while this lives.
struct Seated<'a>(&'a Client);

impl<'a> Seated<'a> {
    fn new(client: &'a Client) -> Self {
        client.room().enter(&client.connection);
        Self(client)
    }
}

impl Drop for Seated<'_> {
    fn drop(&mut self) {
        self.0.room().leave();
    }
}
