//! Whose a copy's folder is: which process runs on the disk, and that there is never a second one.
//!
//! Whoever runs on the disk holds a lock on `qemu.log`: QEMU inherits it with its output and has it until its very end,
//! whatever becomes of the worker and of the note of its process. So none is overlooked and started a second time, also not
//! one that was started in the instant in which its worker was killed.

use std::fs::File;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use tokio::time::Instant;

use super::super::RuntimeError;
use super::super::process::Process;
use super::folder::{Folder, PROCESS, QEMU_LOG, QMP_SOCKET};

/// How long a QEMU that was started a moment ago may take to open its control socket, by which it is known.
const APPEAR_LIMIT: Duration = Duration::from_secs(20);
/// How long somebody who only looks at the lock, or is about to be gone, may be in the way of taking it.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
/// How often both are tried.
const PAUSE: Duration = Duration::from_millis(20);

impl Folder {
    /// The copy's living process. Also finds one whose start was cut short before it was noted: by the lock that it holds,
    /// and by who listens on its control socket, which is waited for.
    pub async fn process(&self) -> Option<Process> {
        if let Some(process) = self.noted().await {
            return Some(process);
        }
        let deadline = Instant::now() + APPEAR_LIMIT;
        loop {
            // In this order: one that ends in between is not waited for.
            let held = self.is_held();
            let found = match self.listener().await {
                None if held => self.holder().await,
                listener => listener,
            };
            if let Some(process) = found {
                let _ = self.write_process(&process);
                return Some(process);
            }
            if !held || Instant::now() > deadline {
                return None;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The process that was noted at its start, if it lives.
    pub async fn noted(&self) -> Option<Process> {
        let process = self.read::<Process>(PROCESS)?;
        process.alive().await.then_some(process)
    }

    /// Who listens on the control socket.
    pub async fn listener(&self) -> Option<Process> {
        let stream = self.connect(QMP_SOCKET).await.ok()?;
        Process::of(stream.peer_cred().ok()?.pid()?).await
    }

    /// The process whose output is the log that is locked, found among all there are.
    #[cfg(target_os = "linux")]
    async fn holder(&self) -> Option<Process> {
        let log = std::fs::canonicalize(self.file(QEMU_LOG)).ok()?;
        for entry in std::fs::read_dir("/proc").ok()?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // A child of this process that does not run its own program yet has it, too, by another number.
            if std::fs::read_link(entry.path().join("fd/1")).is_ok_and(|output| output == log) {
                return Process::of(pid).await;
            }
        }
        None
    }

    /// Where the system does not tell, its control socket is waited for.
    #[cfg(not(target_os = "linux"))]
    async fn holder(&self) -> Option<Process> {
        None
    }

    /// Whether some process has the folder's lock.
    pub fn is_held(&self) -> bool {
        let Ok(log) = File::open(self.file(QEMU_LOG)) else { return false };
        matches!(flock(&log, FlockOperation::NonBlockingLockShared), Err(rustix::io::Errno::WOULDBLOCK))
    }

    /// Waits for a moment until no process has the lock; whether it is so. The threads of a process that was killed may hold
    /// it a little longer than the process is seen.
    pub async fn released(&self) -> bool {
        let deadline = Instant::now() + LOCK_LIMIT;
        while self.is_held() {
            if Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(PAUSE).await;
        }
        true
    }

    /// Opens and empties QEMU's log, with the folder's lock on it: whatever process is given this file to write to holds
    /// the lock for as long as it lives.
    ///
    /// # Errors
    /// [`RuntimeError::State`] when another process has it; whatever the file system says.
    pub async fn hold(&self) -> Result<File, RuntimeError> {
        let path = self.file(QEMU_LOG);
        let what = || format!("cannot write {}", path.display());
        let log = File::options().append(true).create(true).open(&path).map_err(RuntimeError::io(what()))?;
        let deadline = Instant::now() + LOCK_LIMIT;
        loop {
            match flock(&log, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => tokio::time::sleep(PAUSE).await,
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(RuntimeError::State(format!(
                        "a process that was started on this VM's disk still has {}; a second one is not started",
                        path.display()
                    )));
                }
                Err(error) => return Err(RuntimeError::io(what())(error.into())),
            }
        }
        log.set_len(0).map_err(RuntimeError::io(what()))?;
        Ok(log)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::FoundState;
    use super::*;
    use crate::model::CopyId;

    #[tokio::test]
    async fn a_process_holds_the_folder_from_its_start_until_its_end_and_no_second_one_gets_it() {
        let dir = tempfile::tempdir().unwrap();
        let id = CopyId { uid: "00000000-0000-7000-8000-000000000001".parse().unwrap(), attempt: 7 };
        let folder = Folder::of(dir.path(), id);
        folder.make().unwrap();
        assert!(!folder.is_held());
        let log = folder.hold().await.unwrap();
        // What a worker that is killed right after the start leaves: a process, and no note of it.
        let mut child = std::process::Command::new("sleep").arg("1000").stdout(log).spawn().unwrap();
        assert!(folder.is_held());
        assert_eq!(folder.state().await, FoundState::Running);
        assert!(matches!(folder.hold().await, Err(RuntimeError::State(_))));
        if cfg!(target_os = "linux") {
            assert_eq!(folder.process().await.unwrap().pid.cast_unsigned(), child.id());
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What another test is just starting holds what this process had open, until it runs its own program.
        let free = async {
            while folder.is_held() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), free)
            .await
            .expect("it is held although its process has ended");
        folder.hold().await.unwrap();
    }
}
