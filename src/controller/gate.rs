//! Who may use the tunnel: workers by the secret of their session, clients by tickets for one stream.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use super::audit::Auditor;
use super::auth::AccessView;
use crate::bus::connect::{OpenHost, OpenTunnel};
use crate::bus::message::ApiCall;
use crate::bus::subject;
use crate::identity::same_secret;
use crate::metrics::Counter;
use crate::model::access;
use crate::model::account::AccountView;
use crate::model::audit::{AuditType, Deed, Outcome};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::secret::Secret;
use crate::model::{AccountName, Clock, SessionId, Timestamp, WorkerName};
use crate::tunnel::Reason;
use crate::tunnel::header::{EXEC_PORT, WorkerHello};
use crate::tunnel::proof::{self, Exported};
use crate::tunnel::relay::{Gatekeeper, Note, NoteEvent};
use crate::tunnel::ticket::{Grant, Target, TargetKind, TicketError, Tickets};

/// Shared by the API, which hands out, and the relay, which asks.
pub(super) struct Gate {
    clock: Clock,
    tickets: Mutex<Tickets>,
    sessions: RwLock<HashMap<WorkerName, (SessionId, Secret)>>,
    /// The key with which each worker that is connected has proven itself.
    admitted: RwLock<HashMap<WorkerName, String>>,
    /// Since when each account has had the token that its tickets and sessions go by. It takes the place of the one before when those
    /// of that are cut, and no earlier: nothing that was begun in between may count as begun with the new one.
    tokens: RwLock<HashMap<AccountName, Timestamp>>,
    access: Arc<AccessView>,
    /// Whether every worker must have a key. On an outside nats-server none has: its operator says who is `worker/NAME`.
    workers_have_keys: bool,
    auditor: Auditor,
    traffic: Traffic,
}

/// What went through the tunnel since the start.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    pub(super) opened: Counter,
    pub(super) closed: Counter,
    /// Bytes of sessions that have ended.
    pub(super) to_vm: Counter,
    pub(super) from_vm: Counter,
    pub(super) broken: Counter,
    pub(super) failed: Counter,
    pub(super) refused: Counter,
}

impl Traffic {
    fn count(&self, event: &NoteEvent<'_>) {
        match event {
            NoteEvent::Refused(_) | NoteEvent::WorkerRefused(..) => self.refused.inc(),
            NoteEvent::Failed(_) => self.failed.inc(),
            NoteEvent::Opened => self.opened.inc(),
            NoteEvent::Closed { to_vm, from_vm, broken, .. } => {
                self.closed.inc();
                self.to_vm.add(*to_vm);
                self.from_vm.add(*from_vm);
                self.broken.add(u64::from(broken.is_some()));
            }
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl Gate {
    pub(super) fn new(clock: Clock, access: Arc<AccessView>, workers_have_keys: bool, auditor: Auditor) -> Self {
        Self {
            clock,
            tickets: Mutex::new(Tickets::default()),
            sessions: RwLock::default(),
            admitted: RwLock::default(),
            tokens: RwLock::default(),
            access,
            workers_have_keys,
            auditor,
            traffic: Traffic::default(),
        }
    }

    fn tickets(&self) -> MutexGuard<'_, Tickets> {
        // A panic while it was held cannot leave the table half changed in a way that admits anybody.
        self.tickets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What went through the tunnel since the start.
    pub(super) fn traffic(&self) -> &Traffic {
        &self.traffic
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

    /// The present token of `account` is the one that everything goes by from now on.
    pub(super) fn note_token(&self, account: &AccountName) {
        let since = self.access.account(account).map(|account| token_since(&account.view));
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        match since {
            Some(since) => tokens.insert(account.clone(), since),
            None => tokens.remove(account),
        };
    }

    /// No ticket of `account` is good any more.
    pub(super) fn revoke_tickets(&self, account: &AccountName) {
        self.tickets().revoke(account);
    }

    /// Lets `worker` open its data path with `secret` for as long as `session` is its newest.
    pub(super) fn open_session(&self, worker: WorkerName, session: SessionId, secret: Secret) {
        self.sessions.write().unwrap_or_else(PoisonError::into_inner).insert(worker, (session, secret));
    }

    /// What must become of the data path of `worker`, whose key may have come, gone or changed: the reason why it must be
    /// closed, if so. Its session is over then, too.
    pub(super) fn review(&self, worker: &WorkerName) -> Option<Reason> {
        let mut admitted = self.admitted.write().unwrap_or_else(PoisonError::into_inner);
        match self.access.worker_key(worker) {
            None => {
                admitted.remove(worker);
                self.sessions.write().unwrap_or_else(PoisonError::into_inner).remove(worker);
                Some(Reason::WorkerDeleted)
            }
            // The machine that has the new key opens a session and a data path of its own, or has done so already.
            Some(key) => admitted.get(worker).is_some_and(|with| *with != key).then(|| {
                admitted.remove(worker);
                Reason::Replaced
            }),
        }
    }

    /// Whether `worker` is known and has not registered since this start: it tries the session that it had before, and
    /// registers when that is refused. This is nothing to record.
    fn awaits(&self, worker: &WorkerName) -> bool {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        !sessions.contains_key(worker) && self.access.worker_key(worker).is_some()
    }

    /// Whether there is such a worker, whoever says that it is it.
    fn knows(&self, worker: &WorkerName) -> bool {
        let sessions = self.sessions.read().unwrap_or_else(PoisonError::into_inner);
        sessions.contains_key(worker) || self.access.worker_key(worker).is_some()
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
        match self.access.worker_key(worker) {
            Some(key) => {
                proof::verify(&key, exported, hello)?;
                self.admitted.write().unwrap_or_else(PoisonError::into_inner).insert(worker.clone(), key);
                Ok(())
            }
            None if self.workers_have_keys => Err(ApiError::new(
                ErrorCode::Unauthenticated,
                format!("worker {worker} was deleted; it must join again with a new bootstrap token"),
            )),
            // On an outside nats-server the secret, which only its user `worker/NAME` could be told, must do.
            None => Ok(()),
        }
    }

    fn permits(&self, account: &AccountName, to: TargetKind) -> Result<(), ApiError> {
        let (resource, verb) = verb_of(to);
        // By the same rule of the one table by which tickets are given out.
        match access::rule(resource, verb) {
            Some(verb) => self.access.authorise_verb(account, verb, self.clock.now().wall),
            None => Err(ApiError::new(ErrorCode::Forbidden, "nobody may connect")),
        }
    }

    fn token_since(&self, account: &AccountName) -> Option<Timestamp> {
        let noted = self.tokens.read().unwrap_or_else(PoisonError::into_inner).get(account).copied();
        noted.or_else(|| self.access.account(account).map(|account| token_since(&account.view)))
    }

    fn note(&self, note: Note<'_>) {
        self.traffic.count(&note.event);
        match note.event {
            NoteEvent::WorkerRefused(worker, _) if self.awaits(worker) => {}
            NoteEvent::WorkerRefused(worker, _) => self.auditor.record_login(deed_of(&note), self.knows(worker)),
            _ => self.auditor.record(deed_of(&note)),
        }
    }

    fn redeem(&self, ticket: &str) -> Result<Grant, ApiError> {
        let now = self.clock.now().mono;
        self.tickets().redeem(ticket, now).map_err(|error: TicketError| {
            ApiError::new(ErrorCode::Unauthenticated, format!("{error}; ask for a new ticket"))
        })
    }
}

/// Since when an account has had its token.
fn token_since(account: &AccountView) -> Timestamp {
    account.rotated_at.unwrap_or(account.created_at)
}

/// What the audit trail says of a stream.
fn deed_of(note: &Note<'_>) -> Deed {
    let (kind, outcome, message) = match note.event {
        NoteEvent::Refused(why) => (AuditType::TunnelOpened, Outcome::Refused, why.to_string()),
        NoteEvent::WorkerRefused(_, why) => (AuditType::LoginFailed, Outcome::Refused, why.to_string()),
        NoteEvent::Failed(why) => (AuditType::TunnelOpened, Outcome::Failed, why.to_string()),
        NoteEvent::Opened => (AuditType::TunnelOpened, Outcome::Done, String::new()),
        NoteEvent::Closed { to_vm, from_vm, lasted, broken } => {
            let end = broken.map_or_else(String::new, |reason| format!("; {reason}"));
            let seconds = lasted.as_secs_f64();
            let what = match note.grant.map(|grant| grant.target.kind()) {
                Some(TargetKind::Host) => "host",
                _ => "VM",
            };
            let message = format!("{to_vm} bytes to the {what}, {from_vm} bytes from it, {seconds:.3} s{end}");
            (AuditType::TunnelClosed, Outcome::Done, message)
        }
    };
    let (account, verb, target) = match (note.event, note.grant) {
        (NoteEvent::WorkerRefused(worker, _), _) => {
            (subject::worker_user(worker), "tunnel".to_owned(), worker.to_string())
        }
        (_, Some(grant)) => {
            let (resource, verb) = verb_of(grant.target.kind());
            (grant.account.to_string(), format!("{resource}.{verb}"), target_of(grant))
        }
        (_, None) => (String::new(), "connect.open".to_owned(), String::new()),
    };
    Deed { kind, account, address: note.peer.to_string(), verb, target, outcome, message, request: String::new() }
}

/// The verb by which tickets to targets of this kind are asked for.
fn verb_of(to: TargetKind) -> (&'static str, &'static str) {
    match to {
        TargetKind::Vm => (OpenTunnel::RESOURCE, OpenTunnel::VERB),
        TargetKind::Host => (OpenHost::RESOURCE, OpenHost::VERB),
    }
}

/// Where a stream leads: `VM:PORT`, `VM:exec` or `worker/NAME:PORT`.
fn target_of(grant: &Grant) -> String {
    match (&grant.target, grant.port) {
        (Target::Vm { name, .. }, EXEC_PORT) => format!("{name}:exec"),
        (_, port) => format!("{}:{port}", grant.place()),
    }
}
