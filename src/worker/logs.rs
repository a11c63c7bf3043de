//! Carries what startup scripts say from the guest to the controller, by way of the worker's disk: a script goes on while the
//! bus is away, and what a killed worker had not sent its successor sends. `bring_up` writes; a task of its own for each
//! boot reads the spool and sends it, also when the copy's own task is at something else by then.
//!
//! Bounded in each boot and in all; beyond that the script is held back, and no line is dropped.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::StartError;
use super::spool::{self, LogFile, LogKey};
use super::uplink::{LogAnswer, LogToCome, Uplink};
use crate::identity;
use crate::model::event::LogStream;
use crate::model::{Clock, CopyId};
use crate::task::{self, Task};

/// Bytes on the disk for one boot of a copy, after which its script is held back: some 100,000 ordinary lines. Up to one
/// write more can be there, and what is acknowledged is counted until all is.
const MAX_FILE: u64 = 16 * 1024 * 1024;
/// The same for all scripts of a worker together.
const MAX_ALL: u64 = 512 * 1024 * 1024;
/// Lines of one boot that the disk does not take, in memory.
const MAX_MEMORY: usize = 1_024;

/// The spool of a worker. Dropping the last of them ends the sending; what is unsent stays on the disk.
#[derive(Clone, Debug)]
pub(super) struct Logs(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    uplink: Uplink,
    clock: Clock,
    room: Arc<Room>,
    open: Mutex<BTreeMap<LogKey, Open>>,
}

#[derive(Debug)]
struct Open {
    log: Arc<Log>,
    carrier: Task,
}

/// Bytes on the disk, of all together; also says whenever anything there may have made room.
#[derive(Debug)]
struct Room(watch::Sender<u64>);

/// The log of one boot, shared by who writes and who sends.
#[derive(Debug)]
struct Log {
    key: LogKey,
    file: Mutex<LogFile>,
    room: Arc<Room>,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    /// How often something was written.
    written: u64,
    /// Nobody writes any more.
    ended: bool,
    /// Nothing is left to send, or to be wanted.
    over: bool,
}

/// Writes the lines of one boot. Dropping it ends the log; what is in it is sent all the same.
#[derive(Debug)]
pub(super) struct LogWriter {
    log: Arc<Log>,
    clock: Clock,
}

impl Logs {
    /// The spool in a worker's data folder; begins to send what an earlier process left there.
    ///
    /// # Errors
    /// [`StartError::Folder`].
    pub(super) fn open(data_dir: &Path, uplink: Uplink) -> Result<Self, StartError> {
        let folder = data_dir.join("logs");
        let error = |source| StartError::Folder { path: folder.clone(), source };
        identity::refuse_link(&folder).map_err(error)?;
        identity::make_private_dir(&folder).map_err(error)?;
        identity::refuse_foreign(&folder).map_err(error)?;
        let mut left = spool::left_in(&folder).map_err(error)?;
        left.sort_by_key(|(key, _)| *key);
        let (clock, room) = (Clock::start(), Arc::new(Room(watch::Sender::new(0))));
        let logs = Self(Arc::new(Shared { folder, uplink, clock, room, open: Mutex::default() }));
        for (key, path) in left {
            match LogFile::adopt(path) {
                Ok(file) => drop(LogWriter { log: logs.carry(key, file), clock }),
                Err(error) => tracing::error!(copy = %key.0, "cannot read log lines that were not sent: {error}"),
            }
        }
        Ok(logs)
    }

    /// The log of a boot whose script begins.
    pub(super) fn begin(&self, key: LogKey) -> LogWriter {
        // One that is being sent still is of a boot that the controller does not remember.
        self.end(|open| *open == key);
        let log = self.carry(key, LogFile::begin(&self.0.folder, key));
        LogWriter { log, clock: self.0.clock }
    }

    /// Returns once all lines of that boot are acknowledged, or not wanted. At once if there are none. Cancel safe.
    pub(super) async fn sent(&self, key: LogKey) {
        let state = self.all().get(&key).map(|open| open.log.state.subscribe());
        if let Some(mut state) = state {
            let _ = state.wait_for(|state| state.over).await;
        }
    }

    /// Removes all lines of a copy: it is gone, and so is whoever would read them.
    pub(super) fn forget(&self, id: CopyId) {
        self.end(|(copy, _)| *copy == id);
    }

    fn end(&self, which: impl Fn(&LogKey) -> bool) {
        let mut all = self.all();
        let keys: Vec<LogKey> = all.keys().filter(|key| which(key)).copied().collect();
        for Open { log, carrier } in keys.iter().filter_map(|key| all.remove(key)) {
            drop(carrier);
            log.give_up();
        }
    }

    fn carry(&self, key: LogKey, file: LogFile) -> Arc<Log> {
        let room = self.0.room.clone();
        room.0.send_modify(|all| *all = all.saturating_add(file.size()));
        let log = Arc::new(Log { key, file: Mutex::new(file), room, state: watch::Sender::default() });
        let (uplink, clock) = (self.0.uplink.clone(), self.0.clock);
        let to_come = uplink.log_to_come(key);
        let mut all = self.all();
        all.retain(|_, open| !open.carrier.is_finished());
        // Readers find the lines of one boot behind those of the boot before.
        let before = all.range((key.0, 0)..key).next_back().map(|(_, open)| open.log.state.subscribe());
        let sending = log.clone().send(uplink, clock, to_come);
        let carrier = task::spawn(async move {
            if let Some(mut before) = before {
                let _ = before.wait_for(|state| state.over).await;
            }
            sending.await;
        });
        all.insert(key, Open { log: log.clone(), carrier });
        log
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<LogKey, Open>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    /// Never held while anything is told to those who wait for room.
    fn file(&self) -> MutexGuard<'_, LogFile> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to the file, and tells those who wait what that means for them.
    fn with<T>(&self, work: impl FnOnce(&mut LogFile) -> T) -> T {
        let mut file = self.file();
        let before = file.size();
        let done = work(&mut file);
        let after = file.size();
        drop(file);
        self.room.0.send_modify(|all| *all = all.saturating_sub(before).saturating_add(after));
        done
    }

    fn has_room(&self, all: u64) -> bool {
        let file = self.file();
        file.in_memory() < MAX_MEMORY && file.size() < MAX_FILE && all < MAX_ALL
    }

    /// Sends until there is nothing to send and nobody writes. Cancel safe: what is unsent stays in the file.
    async fn send(self: Arc<Self>, uplink: Uplink, clock: Clock, _to_come: LogToCome) {
        let mut state = self.state.subscribe();
        loop {
            let ended = state.borrow_and_update().ended;
            let batch = self.with(|file| file.batch(clock.now().wall));
            match batch {
                Some(batch) => match uplink.send_log(self.key, &batch).await {
                    LogAnswer::Taken => self.with(|file| file.acknowledge(&batch)),
                    LogAnswer::Unwanted => break,
                },
                None if ended => break,
                None => {
                    let _ = state.changed().await;
                }
            }
        }
        self.give_up();
    }

    /// Nothing of it is sent any more; what a script still says is not wanted.
    fn give_up(&self) {
        self.with(LogFile::remove);
        self.state.send_modify(|state| state.over = true);
        // Who waits for room has it now.
        self.room.0.send_modify(|_| {});
    }
}

impl LogWriter {
    /// Writes lines, once there is room for them. Lines that nobody wants are dropped. Cancel safe: all or none are written.
    pub(super) async fn write(&self, lines: Vec<(LogStream, String)>) {
        let is_over = || self.log.state.borrow().over;
        let mut room = self.log.room.0.subscribe();
        let _ = room.wait_for(|all| is_over() || self.log.has_room(*all)).await;
        if is_over() {
            return;
        }
        let now = self.clock.now().wall;
        self.log.with(|file| file.append(lines, now));
        self.log.state.send_modify(|state| state.written = state.written.wrapping_add(1));
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        self.log.state.send_modify(|state| state.ended = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::VmUid;

    fn key(boot: u32) -> LogKey {
        (CopyId { uid: VmUid(uuid::Uuid::from_u128(7)), attempt: 3 }, boot)
    }

    fn files(data: &Path) -> usize {
        std::fs::read_dir(data.join("logs")).unwrap().count()
    }

    #[tokio::test(start_paused = true)]
    async fn a_script_is_held_back_once_its_spool_is_full_and_goes_on_when_its_copy_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::open(dir.path(), Uplink::unheard().await).unwrap();
        let writer = logs.begin(key(0));
        let line = (LogStream::Stdout, "x".repeat(8 * 1024));
        let mut written = 0u64;
        let held_back = async {
            loop {
                writer.write(vec![line.clone(); 64]).await;
                written += 64 * 8 * 1024;
            }
        };
        assert!(tokio::time::timeout(std::time::Duration::from_secs(60), held_back).await.is_err());
        let around = MAX_FILE - 1024 * 1024..MAX_FILE + 1024 * 1024;
        assert!(around.contains(&written), "{written}");
        assert_eq!(files(dir.path()), 1);
        logs.forget(key(0).0);
        assert_eq!((files(dir.path()), *logs.0.room.0.borrow()), (0, 0));
        writer.write(vec![line]).await;
        assert_eq!(files(dir.path()), 0, "nobody wants it");
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_process_could_not_send_the_next_has() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::open(dir.path(), Uplink::unheard().await).unwrap();
        for boot in [1, 2] {
            logs.begin(key(boot)).write(vec![(LogStream::Stderr, "said".to_owned())]).await;
        }
        let size = *logs.0.room.0.borrow();
        drop(logs);
        assert_eq!(files(dir.path()), 2);
        let next = Logs::open(dir.path(), Uplink::unheard().await).unwrap();
        assert_eq!(*next.0.room.0.borrow(), size);
        assert_eq!(next.all().keys().copied().collect::<Vec<_>>(), [key(1), key(2)]);
        let sent = tokio::time::timeout(std::time::Duration::from_secs(60), next.sent(key(1))).await;
        assert!(sent.is_err(), "nobody has acknowledged it");
        next.sent(key(9)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_log_without_lines_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::open(dir.path(), Uplink::unheard().await).unwrap();
        drop(logs.begin(key(0)));
        logs.sent(key(0)).await;
        assert_eq!(files(dir.path()), 0);
    }

    #[test]
    fn a_write_more_than_the_bound_is_little() {
        let most = crate::bus::log::MAX_LOG_BATCH * crate::bus::log::MAX_LOG_LINE * 6;
        assert!(most as u64 <= MAX_FILE);
    }
}
