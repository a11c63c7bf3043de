//! Who may use the tunnel: workers by the secret of their session, clients by tickets for one stream.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use crate::identity::same_secret;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::secret::Secret;
use crate::model::{Clock, SessionId, WorkerName};
use crate::tunnel::relay::Gatekeeper;
use crate::tunnel::ticket::{Grant, TicketError, Tickets};

/// Tickets that may wait to be used at once, over all accounts: at 30 s each, hundreds of new sessions a second.
const MAX_TICKETS: usize = 16_384;

/// Shared by the API, which hands out, and the relay, which asks.
#[derive(Debug)]
pub(super) struct Gate {
    clock: Clock,
    tickets: Mutex<Tickets>,
    sessions: RwLock<HashMap<WorkerName, (SessionId, Secret)>>,
    links: RwLock<HashSet<WorkerName>>,
}

impl Gate {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock,
            tickets: Mutex::new(Tickets::new(MAX_TICKETS)),
            sessions: RwLock::default(),
            links: RwLock::default(),
        }
    }

    fn tickets(&self) -> MutexGuard<'_, Tickets> {
        // A panic while it was held cannot leave the table half changed in a way that admits anybody.
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `ticket` good for one stream.
    pub(super) fn issue(&self, ticket: &Secret, grant: Grant, now: Duration, ttl: Duration) -> Result<(), ApiError> {
        self.tickets().issue(ticket, grant, now, ttl).map_err(|error| {
            ApiError::new(
                ErrorCode::LimitExceeded,
                format!("{error}: too many connections are being opened; try again in a moment"),
            )
        })
    }

    /// Lets `worker` open its data path with `secret` for as long as `session` is its newest.
    pub(super) fn open_session(&self, worker: WorkerName, session: SessionId, secret: Secret) {
        self.sessions.write().unwrap_or_else(PoisonError::into_inner).insert(worker, (session, secret));
    }

    /// Whether the worker's data path is up.
    pub(super) fn is_linked(&self, worker: &WorkerName) -> bool {
        self.links.read().unwrap_or_else(PoisonError::into_inner).contains(worker)
    }
}

impl Gatekeeper for Gate {
    fn admit(&self, worker: &WorkerName, session: SessionId, secret: &str) -> Result<(), ApiError> {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        match sessions.get(worker) {
            Some((open, expected)) if *open == session && same_secret(expected.expose(), secret) => Ok(()),
            _ => Err(ApiError::new(
                ErrorCode::Unauthenticated,
                format!("worker {worker} has no such session: register first"),
            )),
        }
    }

    fn redeem(&self, ticket: &str) -> Result<Grant, ApiError> {
        let now = self.clock.now().mono;
        self.tickets().redeem(ticket, now).map_err(|error: TicketError| {
            ApiError::new(ErrorCode::Unauthenticated, format!("{error}; ask for a new ticket"))
        })
    }

    fn link_changed(&self, worker: &WorkerName, up: bool) {
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        if up {
            links.insert(worker.clone());
        } else {
            links.remove(worker);
        }
    }
}
