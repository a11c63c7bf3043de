//! The guard's process: looks at the clock, and ends what is replaceable once the worker's lease is over. Run by
//! `orchard worker guard`, which the worker starts.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::beat::{BEAT, Beat};
use super::clock::{self, Clock};
use super::end;
use super::notes::Notes;
use super::supervisor::LOG;
use crate::identity;
use crate::identity::folder::{self, FolderLock, LockError};
use crate::model::CopyId;
use crate::worker::companion;
use crate::worker::lease::{LOOK, Moment};
use crate::worker::runtime::Runtime;

/// For how long it stays when nothing is replaceable: the next copy may soon be made.
const LINGER: Duration = Duration::from_secs(60);
/// How long it tries to get the folder: the worker takes it for a moment to see whether anybody has it.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
/// After so many looks that found nothing to end, it looks at the host more seldom: a hypervisor's tool may have to be run for
/// each. A worker that goes on then, and finishes a start, fences by itself as well.
const CLEAN_LOOKS: u32 = 60;
/// How often then.
const SELDOM: Duration = Duration::from_secs(10);

/// What is noted of a copy that the guard ends.
const WHY: &str = "ended by the guard of its worker, whose process had not reached the controller for so long that the VM \
                   may be started elsewhere";

/// Why it does not watch.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// Its folder is not there, or not ours alone.
    #[error("cannot use {}, where the worker says what to guard", path.display())]
    Folder {
        /// The folder.
        path: std::path::PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The folder cannot be locked.
    #[error(transparent)]
    Lock(LockError),
}

/// Watches over the replaceable copies of the worker in `data_dir`; returns when there is nothing to watch over any more, or
/// another guard does so.
///
/// # Errors
/// [`WatchError`], before it watches.
pub async fn run(data_dir: &Path, runtime: Arc<dyn Runtime>) -> Result<(), WatchError> {
    let notes = Notes::of(data_dir);
    let unusable = |source| WatchError::Folder { path: notes.folder().to_owned(), source };
    std::fs::metadata(notes.folder()).map_err(unusable)?;
    identity::refuse_foreign(notes.folder()).map_err(unusable)?;
    let boot = clock::boot_name().await;
    let clock = Clock::system();
    let Some(lock) = lock(notes.folder()).await? else {
        tracing::info!("another guard watches already");
        return Ok(());
    };
    tracing::info!(data = %data_dir.display(), runtime = %runtime.kind(), "watching over the VMs that may be replaced");
    let folder = notes.folder().to_owned();
    let mut watch = Watch { notes, runtime, clock, boot, marked: BTreeSet::new(), until: None, clean: 0 };
    // Neither is cancelled before the process ends.
    tokio::select! {
        ended = watch.run(lock) => ended,
        never = beat(&folder) => match never {},
    }
}

/// Tells the worker that this process goes on. Apart from the look at the VMs, which a slow tool may hold up.
async fn beat(folder: &Path) -> std::convert::Infallible {
    let mut beat = Beat { pid: std::process::id(), number: 0 };
    loop {
        beat.number += 1;
        if let Err(error) = beat.write(folder) {
            tracing::debug!("cannot write that this guard goes on: {error}");
        }
        tokio::time::sleep(BEAT).await;
    }
}

struct Watch {
    notes: Notes,
    runtime: Arc<dyn Runtime>,
    clock: Clock,
    boot: String,
    /// As last read: a folder that cannot be read now says nothing about the VMs.
    marked: BTreeSet<CopyId>,
    until: Option<Moment>,
    /// Looks in a row that found nothing to end.
    clean: u32,
}

impl Watch {
    async fn run(&mut self, mut lock: FolderLock) -> Result<(), WatchError> {
        let mut needed = Instant::now();
        let mut looked = Instant::now();
        loop {
            self.read();
            if !self.marked.is_empty() {
                needed = Instant::now();
            } else if needed.elapsed() >= LINGER || !self.notes.folder().exists() {
                // Free first, then looked: a worker marks first and then looks whether it is free. So one of both sees.
                drop(lock);
                self.read();
                if self.marked.is_empty() {
                    tracing::info!("there is nothing to watch over any more");
                    return Ok(());
                }
                match self::lock(self.notes.folder()).await? {
                    Some(again) => lock = again,
                    None => return Ok(()),
                }
            }
            if self.is_over() && (self.clean < CLEAN_LOOKS || looked.elapsed() >= SELDOM) {
                looked = Instant::now();
                match end::end_running(&self.runtime, &self.notes, &self.marked, WHY).await {
                    0 => self.clean = self.clean.saturating_add(1),
                    _ => self.clean = 0,
                }
            }
            companion::bound_log(&self.notes.folder().join(LOG));
            tokio::time::sleep(LOOK).await;
        }
    }

    fn read(&mut self) {
        match self.notes.marked() {
            Ok(marked) => self.marked = marked,
            Err(error) => tracing::warn!("cannot see which VMs may be replaced: {error}"),
        }
        if let Some(until) = self.notes.lease(&self.boot) {
            self.until = Some(until);
        }
    }

    fn is_over(&mut self) -> bool {
        let over = !self.marked.is_empty() && self.until.is_none_or(|until| until <= self.clock.now());
        if !over {
            self.clean = 0;
        }
        over
    }
}

/// Takes hold of the folder; `None` when another guard has it.
async fn lock(folder: &Path) -> Result<Option<FolderLock>, WatchError> {
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match folder::try_lock(folder) {
            Ok(lock) => return Ok(Some(lock)),
            Err(LockError::InUse { .. }) if Instant::now() < deadline => tokio::time::sleep(LOOK / 10).await,
            Err(LockError::InUse { .. }) => return Ok(None),
            Err(error @ LockError::Io { .. }) => return Err(WatchError::Lock(error)),
        }
    }
}
