//! The host under a synthetic worker: what is on its "disk", which "processes" run, and the levers by which tests let
//! things go wrong. It outlives the worker that uses it, as a real host does. No task or thread per VM.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::super::{CopySpec, Exit, Found, FoundState, RuntimeError};
use super::behaviour::{Behaviour, Dice, Step};
use super::images::Images;
use super::ledger::Ledger;
use crate::model::{CopyId, image};

/// One synthetic host.
#[derive(Debug)]
pub struct SyntheticHost {
    state: Mutex<State>,
    ledger: Arc<Ledger>,
    /// The images that were fetched.
    pub(super) images: Images,
    /// Serving tasks of the connections into guests.
    pub(super) connections: Mutex<JoinSet<()>>,
    /// Cancelled when the host goes: the parent of every process's token.
    power: CancellationToken,
}

#[derive(Debug)]
struct State {
    behaviour: Behaviour,
    dice: Dice,
    failures: HashMap<Step, VecDeque<String>>,
    copies: BTreeMap<CopyId, Copy>,
}

#[derive(Debug)]
struct Copy {
    spec: CopySpec,
    complete: bool,
    started: bool,
    /// Its memory is kept.
    frozen: bool,
    /// The newest, also after its end.
    process: Option<Arc<Process>>,
    /// The guest's identity, made when first needed and kept as on a disk.
    server: Arc<OnceLock<Arc<russh::server::Config>>>,
}

impl Copy {
    fn running(&self) -> bool {
        self.process.as_ref().is_some_and(|process| !process.gone.is_cancelled())
    }
}

/// A process of a copy.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) gone: CancellationToken,
    exit: OnceLock<Exit>,
    /// When the guest answers; none = never.
    booted_at: Option<Instant>,
}

impl Process {
    pub(super) async fn exited(&self) -> Exit {
        self.gone.cancelled().await;
        let unknown = || Exit::Crashed("the synthetic host was switched off".to_owned());
        self.exit.get().cloned().unwrap_or_else(unknown)
    }

    /// Returns when the guest answers or the process is gone.
    pub(super) async fn booted(&self) {
        match self.booted_at {
            Some(at) => tokio::select! { () = tokio::time::sleep_until(at) => {}, () = self.gone.cancelled() => {} },
            None => self.gone.cancelled().await,
        }
    }

    pub(super) fn answers(&self) -> bool {
        !self.gone.is_cancelled() && self.booted_at.is_some_and(|at| at <= Instant::now())
    }
}

/// What is needed to serve a connection into a copy.
pub(super) struct Guest {
    pub(super) spec: CopySpec,
    pub(super) process: Arc<Process>,
    pub(super) server: Arc<OnceLock<Arc<russh::server::Config>>>,
}

impl Default for SyntheticHost {
    fn default() -> Self {
        Self::new(Behaviour::default(), 0, Arc::default())
    }
}

impl SyntheticHost {
    /// A host that behaves so, draws its random delays from `seed` and counts in `ledger`.
    pub fn new(behaviour: Behaviour, seed: u64, ledger: Arc<Ledger>) -> Self {
        let state = State { behaviour, dice: Dice::new(seed), failures: HashMap::new(), copies: BTreeMap::new() };
        let (connections, power) = (Mutex::default(), CancellationToken::new());
        Self { state: Mutex::new(state), ledger, images: Images::default(), connections, power }
    }

    /// What was counted.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// How it behaves at present.
    pub fn behaviour(&self) -> Behaviour {
        self.lock().behaviour.clone()
    }

    /// Changes how it behaves from now on; a step under way goes on as it began.
    pub fn adjust(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.lock().behaviour);
    }

    /// Lets the next `times` steps of this kind fail with `message`. For [`Step::Boot`]: those guests never answer.
    pub fn fail_next(&self, step: Step, times: usize, message: &str) {
        self.lock().failures.entry(step).or_default().extend(std::iter::repeat_n(message.to_owned(), times));
    }

    /// Ends the process of a running copy as if it had crashed; false when it does not run.
    pub fn crash(&self, id: CopyId, text: &str) -> bool {
        self.end(id, Exit::Crashed(text.to_owned()))
    }

    /// Lets the guest switch itself off; false when it does not run.
    pub fn power_off(&self, id: CopyId) -> bool {
        self.end(id, Exit::PoweredOff)
    }

    /// Ends every process, as a reboot of the host does; the disks stay.
    pub fn reboot(&self) {
        for found in self.found() {
            self.crash(found.id, "the host was rebooted");
        }
    }

    /// What is on the host.
    pub fn found(&self) -> Vec<Found> {
        let state = |copy: &Copy| match (copy.running(), copy.complete && copy.started) {
            (true, _) => FoundState::Running,
            (false, true) => FoundState::Stopped,
            (false, false) => FoundState::Incomplete,
        };
        let lock = self.lock();
        let found = |(id, copy): (&CopyId, &Copy)| Found { id: *id, name: copy.spec.name.clone(), state: state(copy) };
        lock.copies.iter().map(found).collect()
    }

    /// The images that copies were made from.
    pub(super) fn images_in_use(&self) -> BTreeSet<String> {
        self.lock().copies.values().map(|copy| image::shown(&copy.spec.spec.image)).collect()
    }

    /// Lets `step` take its time, then fail if it is to fail. Cancel safe.
    pub(super) async fn take(&self, step: Step) -> Result<(), RuntimeError> {
        let (length, deadline, failure) = {
            let state = &mut *self.lock();
            let failure = state.failures.get_mut(&step).and_then(VecDeque::pop_front);
            (state.behaviour.length(step, &mut state.dice), state.behaviour.deadline, failure)
        };
        match length {
            Some(length) if length <= deadline => sleep_unless_zero(length).await,
            _ => {
                sleep(deadline).await;
                return Err(RuntimeError::Timeout(format!("the step {step:?} did not end within {deadline:?}")));
            }
        }
        match (failure, step) {
            (None, _) => Ok(()),
            (Some(message), Step::Create | Step::Pull) => Err(RuntimeError::Image(message)),
            (Some(message), _) => Err(RuntimeError::Tool(message)),
        }
    }

    /// Begins a creation: what is there of an earlier one goes.
    pub(super) fn begin(&self, spec: &CopySpec) -> Result<(), RuntimeError> {
        let mut state = self.lock();
        if state.copies.get(&spec.id).is_some_and(Copy::running) {
            return Err(RuntimeError::State(format!("VM {} runs already, so it cannot be created", spec.name)));
        }
        let copy = Copy {
            spec: spec.clone(),
            complete: false,
            started: false,
            frozen: false,
            process: None,
            server: Arc::default(),
        };
        state.copies.insert(spec.id, copy);
        drop(state);
        self.ledger.created();
        Ok(())
    }

    pub(super) fn complete(&self, id: CopyId) -> Result<(), RuntimeError> {
        self.lock().copies.get_mut(&id).ok_or(RuntimeError::NotFound)?.complete = true;
        Ok(())
    }

    /// Starts the process, with what the guest is given now.
    pub(super) fn run(&self, spec: &CopySpec) -> Result<(), RuntimeError> {
        let state = &mut *self.lock();
        if let Some(most) = state.behaviour.max_running
            && state.copies.values().filter(|copy| copy.running()).count() >= most
        {
            return Err(RuntimeError::Tool(format!("the host runs {most} VMs already and cannot run more")));
        }
        let never = state.failures.get_mut(&Step::Boot).and_then(VecDeque::pop_front).is_some();
        let boot = state.behaviour.length(Step::Boot, &mut state.dice).filter(|_| !never);
        let copy = state.copies.get_mut(&spec.id).ok_or(RuntimeError::NotFound)?;
        if copy.running() {
            return Err(RuntimeError::State(format!("VM {} runs already", spec.name)));
        }
        if !copy.complete {
            return Err(RuntimeError::State(format!("VM {} is not completely created", spec.name)));
        }
        copy.spec = spec.clone();
        copy.started = true;
        // One that goes on where it was need not boot.
        let boot = if std::mem::take(&mut copy.frozen) { Some(Duration::ZERO) } else { boot };
        copy.process = Some(Arc::new(Process {
            gone: self.power.child_token(),
            exit: OnceLock::new(),
            booted_at: boot.map(|length| Instant::now() + length),
        }));
        self.ledger.started(spec.id.uid);
        Ok(())
    }

    /// The newest process of a copy, running or not.
    pub(super) fn process(&self, id: CopyId) -> Option<Arc<Process>> {
        self.lock().copies.get(&id)?.process.clone()
    }

    pub(super) fn exists(&self, id: CopyId) -> bool {
        self.lock().copies.contains_key(&id)
    }

    pub(super) fn guest(&self, id: CopyId) -> Result<Guest, RuntimeError> {
        let state = self.lock();
        let copy = state.copies.get(&id).ok_or(RuntimeError::NotFound)?;
        let not_running = || RuntimeError::Refused(format!("VM {} does not run", copy.spec.name));
        let process = copy.process.clone().filter(|_| copy.running()).ok_or_else(not_running)?;
        Ok(Guest { spec: copy.spec.clone(), process, server: copy.server.clone() })
    }

    /// Ends the process and keeps its memory; nothing if it does not run.
    pub(super) fn freeze(&self, id: CopyId) {
        if self.end(id, Exit::PoweredOff)
            && let Some(copy) = self.lock().copies.get_mut(&id)
        {
            copy.frozen = true;
        }
    }

    /// Drops its memory, if it is kept.
    pub(super) fn thaw(&self, id: CopyId) {
        if let Some(copy) = self.lock().copies.get_mut(&id) {
            copy.frozen = false;
        }
    }

    /// Whether a copy's memory is kept.
    pub fn is_frozen(&self, id: CopyId) -> bool {
        self.lock().copies.get(&id).is_some_and(|copy| copy.frozen)
    }

    pub(super) fn remove(&self, id: CopyId) {
        self.crash(id, "it was deleted");
        self.lock().copies.remove(&id);
    }

    /// From now on only good for being deleted.
    pub(super) fn spoil(&self, id: CopyId) {
        self.crash(id, "it was deleted");
        if let Some(copy) = self.lock().copies.get_mut(&id) {
            copy.complete = false;
        }
    }

    pub(super) fn end(&self, id: CopyId, exit: Exit) -> bool {
        let state = self.lock();
        let running = state.copies.get(&id).filter(|copy| copy.running());
        let Some(process) = running.and_then(|copy| copy.process.as_ref()) else { return false };
        self.ledger.ended(id.uid);
        let _ = process.exit.set(exit); // first, so that whoever sees the end can read it
        process.gone.cancel();
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for SyntheticHost {
    fn drop(&mut self) {
        self.power.cancel();
    }
}

async fn sleep_unless_zero(length: Duration) {
    if !length.is_zero() {
        sleep(length).await;
    }
}
