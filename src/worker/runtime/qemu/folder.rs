//! What lies on disk for one copy, and nothing about running it: `DATA/vms/<uid>-<attempt>/` with
//!
//! | file | what |
//! |---|---|
//! | `vm.json` | the [`Record`]; written before anything else, so that an interrupted creation is seen as one |
//! | `disk.qcow2` | overlay on an image in `DATA/images` |
//! | `process.json` | the process of the last start ([`Process`]) |
//! | `qemu.pid` | written by QEMU and removed by it when it ends in order: left over means it crashed |
//! | `qmp.sock`, `vnc.sock` | control and screen |
//! | `qemu.log`, `console.log` | QEMU's own output of the last start; the guest's serial console |
//! | `efi-vars.fd` | the variables of a guest with UEFI |
//! | `seed.img` | who the guest's user is, for cloud-init (seed.rs) |
//! | `suspend.state`, `suspend.json` | the memory of a suspended guest, and what it needs to go on (suspend.rs) |

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};

use super::super::{FoundState, RuntimeError};
use crate::identity::{make_private_dir, write_private};
use crate::model::{CopyId, VmName};
use crate::worker::runtime::process::Process;
use crate::worker::unix_socket;

/// The overlay.
pub const DISK: &str = "disk.qcow2";
/// What a UEFI keeps of its own.
pub const EFI_VARS: &str = "efi-vars.fd";
/// What cloud-init reads.
pub const SEED: &str = "seed.img";
/// QEMU's control socket.
pub const QMP_SOCKET: &str = "qmp.sock";
/// The screen.
pub const VNC_SOCKET: &str = "vnc.sock";
/// QEMU's own pid file.
pub const PID_FILE: &str = "qemu.pid";
/// The guest's serial console.
pub const CONSOLE_LOG: &str = "console.log";
/// What QEMU itself wrote.
pub const QEMU_LOG: &str = "qemu.log";
const RECORD: &str = "vm.json";
/// The process of the last start.
pub const PROCESS: &str = "process.json";

/// `vm.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Which copy.
    pub id: CopyId,
    /// The VM's name.
    pub name: VmName,
    /// Cores at creation; a start may give others.
    pub cpu: u64,
    /// MiB at creation; a start may give others.
    pub memory: u64,
    /// Network address.
    pub mac: String,
    /// File name in `DATA/images` that the overlay stands on.
    pub image: String,
    /// Where that came from, without anything secret; empty in records of earlier releases.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Whether the overlay is complete.
    pub created: bool,
    /// Whether a process was ever started on it. The first records do not say, and what may hold something that a guest
    /// wrote is never made anew.
    #[serde(default = "may_be")]
    pub started: bool,
}

fn may_be() -> bool {
    true
}

/// The folder of one copy, whether it exists or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folder(PathBuf);

impl Folder {
    /// Under `vms`.
    pub fn of(vms: &Path, id: CopyId) -> Self {
        Self(vms.join(format!("{}-{}", id.uid.0.simple(), id.attempt)))
    }

    /// The copy that a folder name stands for; `None` for names that Orchard did not give.
    pub fn parse_name(name: &str) -> Option<CopyId> {
        let (uid, attempt) = name.split_once('-')?;
        let id = CopyId { uid: uid.parse().ok()?, attempt: attempt.parse().ok()? };
        (format!("{}-{}", id.uid.0.simple(), id.attempt) == name).then_some(id)
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Whether there is anything.
    pub fn exists(&self) -> bool {
        self.0.exists()
    }

    /// Makes the folder for its owner alone: whoever reaches the sockets in it owns the guest.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn make(&self) -> Result<(), RuntimeError> {
        make_private_dir(&self.0).map_err(RuntimeError::io(format!("cannot make {}", self.0.display())))
    }

    /// `vm.json`; `None` when it is missing or unreadable.
    pub fn record(&self) -> Option<Record> {
        self.read(RECORD)
    }

    /// Replaces `vm.json`, whole.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn write_record(&self, record: &Record) -> Result<(), RuntimeError> {
        self.write(RECORD, record)
    }

    /// Notes the process of this start.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn write_process(&self, process: &Process) -> Result<(), RuntimeError> {
        self.write(PROCESS, process)
    }

    /// Whether a process was noted since the last start began.
    pub fn was_started(&self) -> bool {
        self.file(PROCESS).exists()
    }

    /// Takes the note of a start back that failed.
    pub fn forget_process(&self) {
        let _ = std::fs::remove_file(self.file(PROCESS));
    }

    /// What an onlooker sees.
    pub async fn state(&self) -> FoundState {
        match self.record() {
            // Whatever it is, nothing else may run on the disk.
            _ if self.noted().await.is_some() || self.is_held() => FoundState::Running,
            _ if self.listener().await.is_some() => FoundState::Running,
            Some(record) if record.created && record.started => FoundState::Stopped,
            // That its record cannot be read now does not make its disk one that was never used.
            None if self.file(RECORD).exists() && self.file(DISK).exists() => FoundState::Stopped,
            _ => FoundState::Incomplete,
        }
    }

    /// Removes what the last run left and would mislead the next. Only with the lock.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn clear_run(&self) -> Result<(), RuntimeError> {
        for name in [QMP_SOCKET, VNC_SOCKET, PID_FILE, PROCESS, CONSOLE_LOG] {
            match std::fs::remove_file(self.file(name)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(RuntimeError::io(format!("cannot remove {}", self.file(name).display()))(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes all of it, the record first: what is left by an interruption counts as incomplete.
    ///
    /// # Errors
    /// Whatever the file system says, except that nothing is there.
    pub async fn remove(&self) -> Result<(), RuntimeError> {
        let path = self.0.clone();
        let removed = tokio::task::spawn_blocking(move || {
            let _ = std::fs::remove_file(path.join(RECORD));
            std::fs::remove_dir_all(&path)
        });
        match removed.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(RuntimeError::io(format!("cannot remove {}", self.0.display()))(error))
            }
            _ => Ok(()),
        }
    }

    /// Connects to a Unix socket in the folder, however deep the folder lies where the system allows it.
    ///
    /// # Errors
    /// Whatever the system says; a path that is too long is named as such.
    pub async fn connect(&self, socket: &str) -> io::Result<UnixStream> {
        unix_socket::connect(&self.0, socket).await
    }

    /// Listens on a Unix socket in the folder, in the place of what is there.
    ///
    /// # Errors
    /// As for [`Folder::connect`].
    pub fn listen(&self, socket: &str) -> io::Result<UnixListener> {
        unix_socket::listen(&self.0, socket)
    }

    /// Reads a file of JSON; `None` when it is missing or unreadable.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&std::fs::read(self.file(name)).ok()?).ok()
    }

    /// Replaces a file of JSON, whole.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn write(&self, name: &str, value: &impl Serialize) -> Result<(), RuntimeError> {
        let what = || format!("cannot write {}", self.file(name).display());
        let text = serde_json::to_vec_pretty(value).map_err(|e| RuntimeError::io(what())(io::Error::other(e)))?;
        write_private(&self.file(name), &text).map_err(RuntimeError::io(what()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> CopyId {
        CopyId { uid: "00000000-0000-7000-8000-000000000001".parse().unwrap(), attempt: 7 }
    }

    #[test]
    fn folder_names_are_read_back_and_foreign_ones_ignored() {
        let folder = Folder::of(Path::new("/v"), id());
        let name = folder.path().file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(Folder::parse_name(&name), Some(id()));
        for foreign in
            ["x", "", "lost+found", "00000000000070008000000000000001-007", "00000000000070008000000000000001"]
        {
            assert_eq!(Folder::parse_name(foreign), None, "{foreign:?}");
        }
    }

    #[tokio::test]
    async fn a_folder_is_incomplete_until_its_record_says_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::of(dir.path(), id());
        folder.make().unwrap();
        assert_eq!(folder.state().await, FoundState::Incomplete);
        let mut record = Record {
            id: id(),
            name: "a".parse().unwrap(),
            cpu: 1,
            memory: 128,
            mac: "52:54:00:00:00:01".into(),
            image: "sha256-x".into(),
            source: String::new(),
            created: false,
            started: false,
        };
        folder.write_record(&record).unwrap();
        assert_eq!(folder.state().await, FoundState::Incomplete);
        record.created = true;
        folder.write_record(&record).unwrap();
        assert_eq!(folder.state().await, FoundState::Incomplete, "it never ran");
        record.started = true;
        folder.write_record(&record).unwrap();
        assert_eq!((folder.state().await, folder.record()), (FoundState::Stopped, Some(record)));
        std::fs::write(folder.file(RECORD), "{").unwrap();
        assert_eq!(folder.state().await, FoundState::Incomplete);
        std::fs::write(folder.file(DISK), "").unwrap();
        assert_eq!(folder.state().await, FoundState::Stopped, "its disk is there, whatever it is");
        folder.remove().await.unwrap();
        folder.remove().await.unwrap();
        assert!(!folder.exists());
    }

    /// These texts are never changed: VMs of workers that were updated stand on such.
    #[tokio::test]
    async fn what_the_first_release_left_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::of(dir.path(), id());
        folder.make().unwrap();
        let record = r#"{
  "id": { "uid": "00000000-0000-7000-8000-000000000001", "attempt": 7 },
  "name": "build-1", "cpu": 2, "memory": 2048, "mac": "52:54:00:00:00:01",
  "image": "sha256-00.qcow2", "created": true
}"#;
        std::fs::write(folder.file(RECORD), record).unwrap();
        assert_eq!(folder.state().await, FoundState::Stopped, "its disk is one to boot from");
        let read = folder.record().unwrap();
        assert_eq!((read.id, read.name.as_str(), read.cpu, read.memory), (id(), "build-1", 2, 2048));
        assert_eq!((read.image.as_str(), read.source.as_str()), ("sha256-00.qcow2", ""));
        std::fs::write(folder.file(RECORD), record.replace("true", "false")).unwrap();
        assert_eq!(folder.state().await, FoundState::Incomplete);

        // A process that still runs is found by what was noted of it, and one that has its pid since is not.
        std::fs::write(folder.file(RECORD), record).unwrap();
        let me = Process::of(i32::try_from(std::process::id()).unwrap()).await.unwrap();
        let note = serde_json::to_value(&me).unwrap();
        let started = note["started"].as_str().unwrap();
        let noted = |started: &str| format!(r#"{{ "pid": {}, "started": "{started}" }}"#, me.pid);
        std::fs::write(folder.file(PROCESS), noted(started)).unwrap();
        assert_eq!((folder.state().await, folder.process().await), (FoundState::Running, Some(me.clone())));
        std::fs::write(folder.file(PROCESS), noted("earlier")).unwrap();
        assert_eq!(folder.state().await, FoundState::Stopped);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_socket_in_a_very_deep_folder_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(150));
        let folder = Folder::of(&deep, id());
        folder.make().unwrap();
        let short = std::fs::File::open(folder.path()).unwrap();
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}/{QMP_SOCKET}", short.as_raw_fd());
        let listener = tokio::net::UnixListener::bind(path).unwrap();
        folder.connect(QMP_SOCKET).await.unwrap();
        listener.accept().await.unwrap();
    }
}
