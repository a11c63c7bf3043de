//! The worker's side of its lease: takes renewals in, sees the end, and keeps the file by which the guard knows.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::clock::{self, Clock};
use super::end;
use super::notes::{FENCED_MESSAGE, Notes};
use super::supervisor::Supervisor;
use crate::model::{CopyId, SessionId};
use crate::worker::companion::CompanionCommand;
use crate::worker::lease::{LOOK, Lease, Moment, Written};
use crate::worker::runtime::Runtime;

/// Shared by all parts of the worker.
#[derive(Clone, Debug)]
pub(in crate::worker) struct Keeper(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    clock: Clock,
    /// The name of this start of the machine.
    boot: String,
    /// See [`Keeper::rebooted`].
    rebooted: bool,
    notes: Notes,
    lease: Mutex<Lease>,
    /// The session whose orders all copies have.
    ordered: Mutex<Option<SessionId>>,
    state: watch::Sender<State>,
    supervisor: Supervisor,
}

/// What is seen of the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) struct State {
    pub(super) valid: bool,
    /// See [`Lease::lapses`].
    pub(super) lapses: u64,
    /// The orders are of the session in which the lease is valid, so they were given under it.
    pub(super) may_begin: bool,
}

impl Keeper {
    /// That of a worker whose VMs run in `runtime`, with `guard` as the guard's program.
    pub(in crate::worker) async fn open(notes: Notes, guard: Option<CompanionCommand>, runtime: &dyn Runtime) -> Self {
        let supervisor = Supervisor::new(guard, runtime.outlives_worker());
        Self::new(notes, clock::boot_name().await, Clock::system(), supervisor)
    }

    /// Goes on with the lease that an earlier process of this worker had, if the machine was not started anew since.
    pub(super) fn new(notes: Notes, boot: String, clock: Clock, supervisor: Supervisor) -> Self {
        let rebooted = notes.written_lease().is_some_and(|lease| lease.until_in(&boot).is_none());
        let mut lease = match notes.lease(&boot) {
            Some(until) => Lease::restored(until, clock.now()),
            None => Lease::none(),
        };
        let state = State { valid: lease.look(clock.now()), lapses: lease.lapses(), may_begin: false };
        let state = watch::Sender::new(state);
        Self(Arc::new(Shared {
            clock,
            boot,
            rebooted,
            notes,
            lease: Mutex::new(lease),
            ordered: Mutex::default(),
            state,
            supervisor,
        }))
    }

    /// One that needs no guard, by the clock that tests may stop; it has no lease yet.
    #[cfg(test)]
    pub(in crate::worker) fn for_test(data_dir: &std::path::Path) -> Self {
        let notes = Notes::open(data_dir).unwrap();
        Self::new(notes, "test".to_owned(), Clock::of_test(), Supervisor::new(None, false))
    }

    /// That of the process after this one.
    #[cfg(test)]
    pub(super) fn for_test_after(&self, supervisor: Supervisor) -> Self {
        Self::new(self.notes().clone(), self.0.boot.clone(), self.0.clock.clone(), supervisor)
    }

    /// Whether the machine was started anew since a process of this worker last had a lease. For messages alone: one that was
    /// killed early may know nothing of it.
    pub(in crate::worker) fn rebooted(&self) -> bool {
        self.0.rebooted
    }

    pub(in crate::worker) fn notes(&self) -> &Notes {
        &self.0.notes
    }

    pub(super) fn supervisor(&self) -> &Supervisor {
        &self.0.supervisor
    }

    /// The moment to give to [`Keeper::renewed`], taken before a message is sent that renews the lease.
    pub(in crate::worker) fn now(&self) -> Moment {
        self.0.clock.now()
    }

    /// The controller has let the worker in, by a message that was sent at `sent`: the lease lasts for `length` from then on.
    pub(in crate::worker) fn granted(&self, session: SessionId, sent: Moment, length: Duration) {
        self.change(|lease, now| lease.grant(session, sent, length, now));
    }

    /// The controller has acknowledged a message of `session` that was sent at `sent`: the lease lasts for `length` from then
    /// on. False when it was over before; then only another session helps.
    pub(in crate::worker) fn renewed(&self, session: SessionId, sent: Moment, length: Duration) -> bool {
        self.change(|lease, now| lease.renew(session, sent, length, now))
    }

    fn change<T>(&self, change: impl Fn(&mut Lease, Moment) -> T) -> T {
        let mut renewed = *self.lease();
        change(&mut renewed, self.now());
        // The guard must never believe in an earlier end than this process does: it would end VMs whose worker, seeing
        // them end, takes it for a crash. Only one session at a time comes here.
        let written = Written { boot: self.0.boot.clone(), until: renewed.until() };
        if let Err(error) = self.0.notes.write_lease(&written) {
            tracing::warn!("cannot write the lease down, so VMs that may be replaced will be ended: {error}");
        }
        let changed = change(&mut self.lease(), self.now());
        self.look();
        changed
    }

    /// How the lease stands now.
    pub(super) fn look(&self) -> State {
        let state = {
            let mut lease = self.lease();
            let valid = lease.look(self.now());
            let may_begin = lease.session().is_some() && lease.session() == *self.ordered();
            State { valid, lapses: lease.lapses(), may_begin }
        };
        self.0.state.send_if_modified(|known| {
            let changed = *known != state;
            *known = state;
            changed
        });
        state
    }

    /// Every copy has the orders of `session`, or is about to get them before any others.
    pub(in crate::worker) fn has_ordered(&self, session: SessionId) {
        *self.ordered() = Some(session);
        self.look();
    }

    /// Waits until what was ordered may be begun, and yields how often the lease was over until then. What was ordered in
    /// an earlier session may since have been started elsewhere. Cancel safe.
    pub(super) async fn allowed(&self) -> u64 {
        let mut changes = self.changes();
        loop {
            let state = self.look();
            if state.may_begin {
                return state.lapses;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Tells of each change.
    pub(in crate::worker) fn changes(&self) -> watch::Receiver<State> {
        self.0.state.subscribe()
    }

    /// Looks at the clock for the worker's life.
    pub(in crate::worker) async fn run(self) {
        let mut was = self.look();
        loop {
            tokio::time::sleep(LOOK).await;
            let state = self.look();
            if was.valid && !state.valid {
                tracing::warn!("the lease is over: VMs that may be replaced are ended, all others are left alone");
            }
            was = state;
        }
    }

    /// Sees for the worker's life that there is a guard while one is needed.
    pub(in crate::worker) async fn keep_guard(self) {
        self.supervisor().run(self.notes()).await;
    }

    /// Ends what an earlier process has left running, once the lease is over: for a worker that has no assignment yet, and
    /// so leads no copy itself.
    pub(in crate::worker) async fn end_unled(&self, runtime: &Arc<dyn Runtime>) {
        if self.look().valid {
            return;
        }
        match self.notes().marked() {
            Ok(marked) if marked.is_empty() => {}
            Ok(marked) => drop(end::end_running(runtime, self.notes(), &marked, FENCED_MESSAGE).await),
            Err(error) => tracing::warn!("cannot see which VMs may be replaced: {error}"),
        }
    }

    /// Marks a copy; see [`Notes::mark`].
    pub(super) fn mark(&self, id: CopyId, replaceable: bool) -> io::Result<()> {
        self.notes().mark(id, replaceable)
    }

    fn ordered(&self) -> MutexGuard<'_, Option<SessionId>> {
        self.0.ordered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease(&self) -> MutexGuard<'_, Lease> {
        self.0.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
