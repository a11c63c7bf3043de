//! Who may use the tunnel: workers by the secret of their session, clients by tickets for one stream.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use super::audit::Auditor;
use crate::identity::same_secret;
use crate::model::audit::{AuditType, Deed, Outcome};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::secret::Secret;
use crate::model::{AccountName, Clock, SessionId, WorkerName};
use crate::tunnel::header::WorkerHello;
use crate::tunnel::proof::{self, Exported};
use crate::tunnel::relay::{Gatekeeper, Note, NoteEvent};
use crate::tunnel::ticket::{Grant, TicketError, Tickets};

/// Tickets that may wait to be used at once, over all accounts: at 30 s each, hundreds of new sessions a second.
const MAX_TICKETS: usize = 16_384;

/// What the gate asks of those who know accounts and workers. Answered at once, from memory.
pub(super) trait Rights: Send + Sync + 'static {
    /// The key with which `worker` must sign.
    fn worker_key(&self, worker: &WorkerName) -> WorkerKey;

    /// Whether `account` may open connections into VMs now.
    ///
    /// # Errors
    /// The refusal that it is told.
    fn may_connect(&self, account: &AccountName) -> Result<(), ApiError>;
}

/// How a worker proves itself besides the secret of its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum WorkerKey {
    /// With this nkey (`U…`).
    Known(String),
    /// Not at all: it never joined.
    None,
}

/// For as long as there is one token for all: everybody who got a ticket may use it.
pub(super) struct Everybody;

impl Rights for Everybody {
    fn worker_key(&self, _: &WorkerName) -> WorkerKey {
        WorkerKey::None
    }

    fn may_connect(&self, _: &AccountName) -> Result<(), ApiError> {
        Ok(())
    }
}

/// Shared by the API, which hands out, and the relay, which asks.
pub(super) struct Gate {
    clock: Clock,
    tickets: Mutex<Tickets>,
    sessions: RwLock<HashMap<WorkerName, (SessionId, Secret)>>,
    links: RwLock<HashSet<WorkerName>>,
    rights: Arc<dyn Rights>,
    auditor: Auditor,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl Gate {
    pub(super) fn new(clock: Clock, rights: Arc<dyn Rights>, auditor: Auditor) -> Self {
        Self {
            clock,
            tickets: Mutex::new(Tickets::new(MAX_TICKETS)),
            sessions: RwLock::default(),
            links: RwLock::default(),
            rights,
            auditor,
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

    /// Lets `worker` open no data path any more until it registers again. Its living one is another matter.
    pub(super) fn close_session(&self, worker: &WorkerName) {
        self.sessions.write().unwrap_or_else(PoisonError::into_inner).remove(worker);
    }

    /// Whether the worker's data path is up.
    pub(super) fn is_linked(&self, worker: &WorkerName) -> bool {
        self.links.read().unwrap_or_else(PoisonError::into_inner).contains(worker)
    }
}

impl Gatekeeper for Gate {
    fn admit(&self, hello: &WorkerHello, exported: Exported) -> Result<(), ApiError> {
        let worker = &hello.worker;
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        let known = sessions.get(worker).is_some_and(|(open, expected)| {
            *open == hello.session && same_secret(expected.expose(), hello.secret.expose())
        });
        drop(sessions);
        if !known {
            return Err(ApiError::new(
                ErrorCode::Unauthenticated,
                format!("worker {worker} has no such session: register first"),
            ));
        }
        match self.rights.worker_key(worker) {
            WorkerKey::Known(key) => proof::verify(&key, exported, hello),
            // Only on an outside nats-server, whose operator says who is `worker/NAME` there: the secret, which went
            // to that user alone, must do.
            WorkerKey::None => Ok(()),
        }
    }

    fn permits(&self, account: &AccountName) -> Result<(), ApiError> {
        self.rights.may_connect(account)
    }

    fn note(&self, note: Note<'_>) {
        self.auditor.record(deed_of(&note));
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

/// What the audit trail says of a stream.
fn deed_of(note: &Note<'_>) -> Deed {
    let (kind, outcome, message) = match note.event {
        NoteEvent::Refused(why) => (AuditType::TunnelOpened, Outcome::Refused, why.to_string()),
        NoteEvent::Failed(why) => (AuditType::TunnelOpened, Outcome::Failed, why.to_string()),
        NoteEvent::Opened => (AuditType::TunnelOpened, Outcome::Done, String::new()),
        NoteEvent::Closed { to_vm, from_vm, lasted, broken } => {
            let end = broken.map_or_else(String::new, |reason| format!("; {reason}"));
            let seconds = lasted.as_secs_f64();
            let message = format!("{to_vm} bytes to the VM, {from_vm} bytes from it, {seconds:.3} s{end}");
            (AuditType::TunnelClosed, Outcome::Done, message)
        }
    };
    Deed {
        kind,
        account: note.grant.map_or_else(String::new, |grant| grant.account.to_string()),
        address: note.peer.to_string(),
        verb: "connect.open".to_owned(),
        target: note.grant.map_or_else(String::new, |grant| format!("{}:{}", grant.vm, grant.port)),
        outcome,
        message,
    }
}
