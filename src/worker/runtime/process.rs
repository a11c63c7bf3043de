//! A process that outlives the worker: found again by pid *and* start time, so that a reused pid fools nobody, watched
//! and ended the same way whether this worker process started it or an earlier one did.
//!
//! The runtimes start such a process with [`spawn_detached`] and keep its [`Process`] in a file beside the VM. It gets a
//! session of its own where the system has a tool for that (`setsid`), a process group of its own elsewhere: Ctrl-C in the
//! worker's terminal does not reach it, nor does the end of that terminal, and nothing ends it with the worker.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, test_kill_process, test_kill_process_group};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::task::JoinSet;

use crate::trace;

/// One process, told from all others that ever had its pid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The process id.
    pub pid: i32,
    /// When it started, as the system writes it; on Linux with the id of the boot.
    started: String,
}

/// How often a process is looked for where the system cannot tell of its end.
const POLL: Duration = Duration::from_millis(200);

impl Process {
    /// The living process with that pid; `None` when there is none, or only its unreaped remains.
    pub async fn of(pid: i32) -> Option<Self> {
        start_time(pid).await.ok().flatten().map(|started| Self { pid, started })
    }

    /// Whether it still lives, as far as can be told: while the system does not say (no descriptor is free, `ps` hangs)
    /// it does, as a VM that is taken for dead may be started once more elsewhere. A zombie does not.
    pub async fn alive(&self) -> bool {
        match start_time(self.pid).await {
            Ok(started) => started.as_deref() == Some(&self.started),
            Err(error) => {
                tracing::warn!(pid = self.pid, %error, "cannot tell whether a VM's process lives");
                true
            }
        }
    }

    /// Whether the pid is this process's for certain: what is signalled must be no other.
    async fn is_certainly_this(&self) -> bool {
        start_time(self.pid).await.is_ok_and(|started| started.as_deref() == Some(&self.started))
    }

    /// Sends a signal, unless the process is gone already.
    pub async fn signal(&self, signal: Signal) {
        let Some(pid) = Pid::from_raw(self.pid) else { return };
        #[cfg(target_os = "linux")]
        {
            // The handle is taken before the start time is checked: from then on no reuse of the pid can be hit.
            let Ok(handle) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { return };
            if self.is_certainly_this().await {
                let _ = rustix::process::pidfd_send_signal(&handle, signal);
            }
        }
        #[cfg(not(target_os = "linux"))]
        if self.is_certainly_this().await {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Sends a signal to all of the process's group, which [`spawn_detached`] made for it.
    pub async fn signal_group(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid)
            && self.is_certainly_this().await
        {
            let _ = rustix::process::kill_process_group(pid, signal);
        }
    }

    /// Waits until the process is certainly gone. Cancel safe.
    pub async fn gone(&self) {
        #[cfg(target_os = "linux")]
        if let Some(pid) = Pid::from_raw(self.pid)
            && let Ok(handle) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::NONBLOCK)
            && let Some(handle) = readiness(handle)
            && self.alive().await
        {
            let _ = handle.readable().await;
        }
        while self.alive().await {
            tokio::time::sleep(POLL).await;
        }
    }

    /// [`Process::gone`] within `limit`; whether it is.
    pub async fn gone_within(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.gone()).await.is_ok() || !self.alive().await
    }
}

impl Process {
    /// Ends the process and all of its group, and waits until they are gone; whether the process is, within `limit`.
    pub async fn kill_group(&self, limit: Duration) -> bool {
        self.signal_group(Signal::KILL).await;
        if !self.gone_within(limit).await {
            return false;
        }
        // What it started is somebody else's to take away, which may never be done; so this is no condition.
        let Some(group) = Pid::from_raw(self.pid) else { return true };
        let others = async {
            while test_kill_process_group(group).is_ok() {
                tokio::time::sleep(GROUP_POLL).await;
            }
        };
        let _ = tokio::time::timeout(GROUP_LIMIT, others).await;
        true
    }
}

/// How long the others of a killed process's group are waited for, and how often they are looked for.
const GROUP_LIMIT: Duration = Duration::from_secs(2);
const GROUP_POLL: Duration = Duration::from_millis(10);

/// Registers a process handle with the event loop: it becomes readable when the process ends.
#[cfg(target_os = "linux")]
fn readiness(handle: std::os::fd::OwnedFd) -> Option<tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>> {
    // Deprecated because a type other than OwnedFd could change its descriptor while registered; the replacement is
    // an unsafe function, which this crate forbids.
    #[allow(deprecated)]
    tokio::io::unix::AsyncFd::with_interest(handle, tokio::io::Interest::READABLE).ok()
}

/// When the process with that pid started; none when there is no such process, an error when that cannot be told.
#[cfg(target_os = "linux")]
async fn start_time(pid: i32) -> io::Result<Option<String>> {
    // Both files are answered by the kernel from memory: nothing here blocks.
    let Some(stat) = if_there(std::fs::read_to_string(format!("/proc/{pid}/stat")))? else { return Ok(None) };
    let boot = if_there(std::fs::read_to_string("/proc/sys/kernel/random/boot_id"))?.unwrap_or_default();
    Ok(parse_stat(&stat).map(|ticks| format!("{}/{ticks}", boot.trim())))
}

/// Only these two answers mean that there is nothing; any other means that it could not be looked.
#[cfg(target_os = "linux")]
fn if_there(read: io::Result<String>) -> io::Result<Option<String>> {
    match read {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lets a process open as many files as its hard limit allows; where that cannot be set, it stays as it is.
pub fn raise_file_limit(process: &Process) {
    #[cfg(target_os = "linux")]
    if let Some(pid) = Pid::from_raw(process.pid) {
        use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
        let maximum = getrlimit(Resource::Nofile).maximum;
        let _ = prlimit(Some(pid), Resource::Nofile, Rlimit { current: maximum, maximum });
    }
    #[cfg(not(target_os = "linux"))]
    let _ = process;
}

/// The start time out of `/proc/PID/stat`, unless the process is a zombie. The second field, the program's name, may
/// hold spaces and brackets; what follows the last bracket does not.
#[cfg(target_os = "linux")]
fn parse_stat(stat: &str) -> Option<&str> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    // Field 22 of the file; the state is field 3.
    fields.nth(18).filter(|_| !matches!(state, "Z" | "X" | "x"))
}

#[cfg(not(target_os = "linux"))]
async fn start_time(pid: i32) -> io::Result<Option<String>> {
    let pid = pid.to_string();
    let output = Command::new("ps").args(["-o", "stat=,lstart=", "-p", &pid]).env("LC_ALL", "C").output();
    let output = tokio::time::timeout(Duration::from_secs(5), output).await.map_err(io::Error::other)??;
    let text = String::from_utf8_lossy(&output.stdout);
    let found = text.trim().split_once(char::is_whitespace);
    Ok(found.filter(|(state, _)| !state.starts_with('Z')).map(|(_, started)| started.trim().to_owned()))
}

/// Collects the exits of this worker's children, so that none stays a zombie. Dropping it ends no process.
#[derive(Debug, Default)]
pub struct Reaper(JoinSet<()>);

/// Starts `program` in folder `cwd`, detached: `input` or none, output appended to `log`, a session or process group of its own.
///
/// # Errors
/// When it cannot be started, or is gone at once.
pub async fn spawn_detached(
    program: &Path,
    args: &[String],
    cwd: &Path,
    input: Option<OwnedFd>,
    log: File,
    reaper: &std::sync::Mutex<Reaper>,
) -> io::Result<Process> {
    let session = find(Path::new(SESSION_TOOL));
    let mut command = match (&session, find(program)) {
        // It becomes the program itself, under the same pid. In a group of its own it would start another process.
        (Some(tool), Some(program)) => {
            let mut command = Command::new(tool);
            command.arg(program);
            command
        }
        (None, Some(_)) => {
            let mut command = Command::new(program);
            command.process_group(0);
            command
        }
        (_, None) => return Err(io::Error::new(io::ErrorKind::NotFound, "it is not there, or not executable")),
    };
    prepare(&mut command);
    let input = input.map_or_else(Stdio::null, Stdio::from);
    let mut child = command.args(args).current_dir(cwd).stdin(input).stdout(log.try_clone()?).stderr(log).spawn()?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    // The pid cannot be reused before the reaper below has collected the child.
    let process = match pid {
        Some(pid) => Process::of(pid).await,
        None => None,
    };
    if session.is_some() {
        leads_its_group(process.as_ref()).await;
    }
    {
        let mut reaper = reaper.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        while reaper.0.try_join_next().is_some() {}
        reaper.0.spawn(async move {
            let _ = child.wait().await;
        });
    }
    process.ok_or_else(|| io::Error::other("the process ended at once"))
}

/// Runs the program that it is given in a new session.
const SESSION_TOOL: &str = "setsid";

/// How long a process may take to become the leader of its group, and how often that is looked at.
const LEAD_LIMIT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(2));

/// Waits until signals to the process's group would reach it. Asked is whether the group exists, not which group the
/// process is in: that it starts in may stand outside of a container's PID namespace, where it has no number.
async fn leads_its_group(process: Option<&Process>) {
    let Some(pid) = process.and_then(|process| Pid::from_raw(process.pid)) else { return };
    let led = async {
        while test_kill_process_group(pid).is_err() && test_kill_process(pid).is_ok() {
            tokio::time::sleep(LEAD_LIMIT.1).await;
        }
    };
    let _ = tokio::time::timeout(LEAD_LIMIT.0, led).await;
}

/// The file of a program: itself if it is a path, else on PATH.
fn find(program: &Path) -> Option<PathBuf> {
    let is_executable = |file: &Path| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::metadata(file).is_ok_and(|about| about.is_file() && about.permissions().mode() & 0o111 != 0)
    };
    if program.components().count() > 1 {
        return is_executable(program).then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| is_executable(file))
}

/// Takes from a command's environment what is meant for this program alone: its variables may hold tokens.
fn without_secrets(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"ORCHARD_") {
            command.env_remove(name);
        }
    }
}

/// Makes a command's environment that of a process of this worker's: see [`without_secrets`]; and it is told, as the W3C has
/// it, which trace it works for.
pub(super) fn prepare(command: &mut Command) {
    without_secrets(command);
    command.envs(trace::environment());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_start_time_is_found_behind_an_odd_program_name() {
        let stat = "42 (a) R (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20 21";
        assert_eq!(parse_stat(stat), Some("777"));
        assert_eq!(parse_stat(&stat.replace(") S", ") Z")), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_a_missing_process_counts_as_gone_and_not_one_that_could_not_be_looked_at() {
        let failed = |errno: rustix::io::Errno| if_there(Err(io::Error::from_raw_os_error(errno.raw_os_error())));
        assert_eq!(failed(rustix::io::Errno::NOENT).unwrap(), None);
        assert_eq!(failed(rustix::io::Errno::SRCH).unwrap(), None);
        for errno in [rustix::io::Errno::MFILE, rustix::io::Errno::NFILE, rustix::io::Errno::IO] {
            assert!(failed(errno).is_err(), "{errno}");
        }
    }

    #[tokio::test]
    async fn another_process_of_the_same_pid_is_not_taken_for_it() {
        let me = Process::of(i32::try_from(std::process::id()).unwrap()).await.unwrap();
        assert!(me.alive().await);
        let earlier = Process { started: "earlier".into(), ..me };
        assert!(!earlier.alive().await);
        earlier.signal(Signal::KILL).await;
        earlier.gone().await;
    }

    #[tokio::test]
    async fn a_detached_process_is_seen_to_end_and_leaves_no_zombie() {
        let dir = tempfile::tempdir().unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let reaper = std::sync::Mutex::default();
        let process =
            spawn_detached(Path::new("sleep"), &["1000".to_owned()], dir.path(), None, log, &reaper).await.unwrap();
        assert!(process.alive().await);
        let pid = Pid::from_raw(process.pid);
        assert_eq!(rustix::process::getpgid(pid).ok(), pid);
        if find(Path::new(SESSION_TOOL)).is_some() {
            assert_eq!(rustix::process::getsid(pid).ok(), pid);
        }
        process.signal(Signal::KILL).await;
        assert!(process.gone_within(Duration::from_secs(10)).await);
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_not_started() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("plain"), "").unwrap();
        for program in [PathBuf::from("no-such-program"), dir.path().join("none"), dir.path().join("plain")] {
            let log = File::create(dir.path().join("log")).unwrap();
            let error =
                spawn_detached(&program, &[], dir.path(), None, log, &std::sync::Mutex::default()).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{}", program.display());
        }
    }
}
