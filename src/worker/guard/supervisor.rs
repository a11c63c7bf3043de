//! Starts the guard's process and sees, from the worker, that it is there for as long as there is a replaceable copy.
//! Whether it is there is told by the lock of its folder, which it takes once it is able to end VMs; whether it goes on, by
//! [`beat`](super::beat).

use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::beat::{Beat, HUNG, Listener};
use super::notes::Notes;
use crate::identity::folder::{self, Holder, LockError};
use crate::worker::companion::CompanionCommand;
use crate::worker::runtime::tool;

/// How often it is looked for.
const PERIOD: Duration = Duration::from_secs(1);
/// How often while it is being started.
const START_PAUSE: Duration = Duration::from_millis(50);
/// How long it has until it watches: it asks the hypervisor's tools for their versions, which takes seconds on a busy host.
const START_LIMIT: Duration = Duration::from_secs(20);
/// The longest pause before it is tried again.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// How much of its log an error shows.
const LOG_TAIL: u64 = 1024;
/// What it and its starter write.
pub(super) const LOG: &str = "guard.log";

#[derive(Debug)]
pub(in crate::worker) struct Supervisor {
    /// None = there is none, and none is needed.
    needed: bool,
    command: Option<CompanionCommand>,
    state: watch::Sender<State>,
    wanted: Notify,
}

/// How long a hung guard has to end once it was killed: one that waits for a dead disk cannot.
const END_LIMIT: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Not needed so far.
    Idle,
    Watches,
    Failed(String),
}

impl Supervisor {
    /// Of guards that `command` starts. `needed`: VMs would outlive the worker.
    pub(in crate::worker) fn new(command: Option<CompanionCommand>, needed: bool) -> Self {
        Self { needed, command, state: watch::Sender::new(State::Idle), wanted: Notify::new() }
    }

    /// Has it looked for at once.
    pub(super) fn wake(&self) {
        self.wanted.notify_one();
    }

    /// Returns once a guard watches. A copy must have been marked before. Cancel safe.
    ///
    /// # Errors
    /// Why there is none, for people.
    pub(super) async fn ready(&self) -> Result<(), String> {
        if !self.needed {
            return Ok(());
        }
        let mut state = self.state.subscribe();
        // What failed a while ago says nothing of now.
        self.state.send_if_modified(|state| {
            let failed = matches!(state, State::Failed(_));
            if failed {
                *state = State::Idle;
            }
            failed
        });
        self.wake();
        let settled = state.wait_for(|state| *state != State::Idle);
        match tokio::time::timeout(START_LIMIT + PERIOD, settled).await.map(|state| state.map(|state| state.clone())) {
            Ok(Ok(State::Watches)) => Ok(()),
            Ok(Ok(State::Failed(why))) => Err(why),
            Ok(Ok(State::Idle) | Err(_)) | Err(_) => Err("it does not start in time".to_owned()),
        }
    }

    /// For the worker's life.
    pub(super) async fn run(&self, notes: &Notes) {
        if !self.needed {
            return std::future::pending().await;
        }
        let mut pause = PERIOD;
        let mut listener = Listener::default();
        loop {
            let needed = notes.marked().map_or(true, |marked| !marked.is_empty());
            let state = match needed {
                false => State::Idle,
                true => {
                    self.see_to_it(notes.folder(), &mut listener).await.map_or_else(State::Failed, |()| State::Watches)
                }
            };
            match &state {
                State::Failed(why) => {
                    tracing::error!("there is no guard for VMs that may be replaced: {why}");
                    pause = pause.saturating_mul(2).min(MAX_PAUSE);
                }
                State::Idle | State::Watches => pause = PERIOD,
            }
            self.state.send_replace(state);
            // Cancel safe: both are only reasons to look again.
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.wanted.notified() => {}
            }
        }
    }

    async fn see_to_it(&self, folder: &Path, listener: &mut Listener) -> Result<(), String> {
        if let Some(guard) = watching(folder)?
            && !end_if_hung(guard, folder, listener).await?
        {
            return Ok(());
        }
        let Some(command) = &self.command else { return Err("this worker has no program to start as one".to_owned()) };
        let log = folder.join(LOG);
        let mut child = command.start(&log)?;
        let deadline = Instant::now() + START_LIMIT;
        while Instant::now() < deadline {
            if watching(folder)?.is_some() {
                tracing::info!(pid = child.id(), "a guard watches over the VMs that may be replaced");
                return Ok(());
            }
            if let Ok(Some(status)) = child.try_wait() {
                return Err(format!("it ended at once ({status}): {}", tool::tail(&log, LOG_TAIL)));
            }
            tokio::time::sleep(START_PAUSE).await;
        }
        let _ = child.start_kill();
        Err(format!("it does not watch within {} s: {}", START_LIMIT.as_secs(), tool::tail(&log, LOG_TAIL)))
    }
}

/// The guard that has the folder's lock; `None` = there is none.
fn watching(folder: &Path) -> Result<Option<Holder>, String> {
    match folder::try_lock(folder) {
        // Free again at once; a guard that starts just now tries for longer than this takes.
        Ok(_) => Ok(None),
        // A child that this process is just starting holds what this process had open, until it runs its own program.
        Err(LockError::InUse { holder, .. }) => Ok((holder != Holder(Some(std::process::id()))).then_some(holder)),
        Err(error @ LockError::Io { .. }) => Err(error.to_string()),
    }
}

/// Kills the guard if it is hung; whether it was, and is no more.
///
/// # Errors
/// It is hung and cannot be ended: for people.
async fn end_if_hung(guard: Holder, folder: &Path, listener: &mut Listener) -> Result<bool, String> {
    let Holder(Some(pid)) = guard else { return Ok(false) };
    // Where this process cannot write either, the disk is what stands still.
    if !listener.is_hung(pid, Beat::read(folder), Instant::now()) || !is_writable(folder) {
        return Ok(false);
    }
    tracing::warn!(pid, "the guard has not moved for {} s; it is killed, and another started", HUNG.as_secs());
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let killed = process.ok_or(Errno::SRCH).and_then(|process| kill_process(process, Signal::KILL));
    killed.map_err(|error| format!("the guard, process {pid}, hangs and cannot be killed: {error}"))?;
    let deadline = Instant::now() + END_LIMIT;
    while watching(folder)? == Some(guard) {
        if Instant::now() >= deadline {
            return Err(format!("the guard, process {pid}, hangs and does not end although it was killed"));
        }
        tokio::time::sleep(START_PAUSE).await;
    }
    Ok(true)
}

fn is_writable(folder: &Path) -> bool {
    let probe = folder.join("probe");
    let written = std::fs::write(&probe, "x");
    let _ = std::fs::remove_file(&probe);
    written.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_needs_a_guard_is_told_of_a_look_after_that_and_of_none_before() {
        let supervisor = Supervisor::new(None, true);
        let looks = |found: State| {
            let supervisor = &supervisor;
            async move {
                supervisor.wanted.notified().await;
                supervisor.state.send_replace(found);
            }
        };
        supervisor.state.send_replace(State::Failed("half a minute ago".to_owned()));
        let (ready, ()) = tokio::join!(supervisor.ready(), looks(State::Watches));
        assert_eq!(ready, Ok(()));
        supervisor.state.send_replace(State::Failed("earlier".to_owned()));
        let (ready, ()) = tokio::join!(supervisor.ready(), looks(State::Failed("now".to_owned())));
        assert_eq!(ready, Err("now".to_owned()));
    }
}
