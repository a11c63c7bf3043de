//! One running VM: its process and its control connection. Made by a start and by an adoption alike, after which nobody
//! can tell the two apart.

use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::super::process::Process;
use super::super::{Exit, Progress, RuntimeError, log_bound, tool};
use super::folder::{CONSOLE_LOG, Folder, PID_FILE, QEMU_LOG, QMP_SOCKET};
use super::health;
use super::qmp::{Qmp, Shutdown};
use super::suspend::{self, LoadError};
use super::usernet::{self, Forward, Forwards};
use crate::task::{self, Task};

/// A fresh QEMU opens its control socket within some 40 ms; a loaded host may need seconds.
const SOCKET_LIMIT: Duration = Duration::from_secs(20);
/// How often the control socket is tried.
const SOCKET_PAUSE: Duration = Duration::from_millis(20);
/// How long a process that closed its control socket has to be gone.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);
/// A power button pressed before the guest listens is lost, so it is pressed again.
const POWERDOWN_PAUSE: Duration = Duration::from_secs(3);
/// How long QEMU has to end after `quit` (it takes some 30 ms).
const QUIT_LIMIT: Duration = Duration::from_secs(5);
/// How long the system has to end a killed process: long only when its disk hangs.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// A connect to QEMU's own listener on the loopback address.
const DIAL_LIMIT: Duration = Duration::from_secs(5);
/// Between two connects to QEMU's listeners. These have a backlog of one: in a burst the system lets further connects
/// succeed that QEMU never sees, and such a connection hangs until its client speaks, which SSH clients do not.
const DIAL_PAUSE: Duration = Duration::from_millis(20);
/// A started guest that has not switched its network on by then has a network card that does not tell.
const BOOT_LIMIT: Duration = Duration::from_secs(60);
/// For an adopted guest the event has most likely passed.
const ADOPTED_BOOT_LIMIT: Duration = Duration::from_secs(10);
/// How much of QEMU's own output an exit report shows.
const LOG_TAIL: u64 = 2048;

/// How a machine comes to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// It boots from its disk.
    Boot,
    /// It goes on where it was suspended.
    Resume,
    /// It runs already.
    Adopt,
}

/// A VM that runs, or ran a moment ago.
#[derive(Debug)]
pub struct Machine {
    folder: Folder,
    process: Process,
    qmp: Arc<Qmp>,
    forwards: Mutex<Forwards>,
    /// When the next connect to one of the forwards may begin.
    next_dial: Mutex<Instant>,
    boot_limit: Duration,
    /// Why it was killed, if that was as it did not answer.
    hung: Arc<OnceLock<String>>,
    /// What its memory needs on the disk, once that was too much.
    need: suspend::Need,
    _logs: Task,
    _health: Task,
}

impl Machine {
    /// Connects to the process of a folder, waiting until its control socket is there.
    ///
    /// # Errors
    /// When the process ends instead (with what it wrote), or does not answer.
    pub async fn connect(folder: Folder, process: Process, begin: Begin) -> Result<Self, RuntimeError> {
        let deadline = Instant::now() + SOCKET_LIMIT;
        let stream = loop {
            match folder.connect(QMP_SOCKET).await {
                Ok(stream) => break stream,
                Err(_) if !process.alive().await => return Err(did_not_start(&folder)),
                Err(error) if Instant::now() > deadline => {
                    return Err(RuntimeError::io("cannot reach QEMU's control socket")(error));
                }
                Err(_) => tokio::time::sleep(SOCKET_PAUSE).await,
            }
        };
        let qmp = match Qmp::open(stream).await {
            Ok(qmp) => qmp,
            // QEMU opens the socket before it has looked at all of its command line.
            Err(_) if process.gone_within(SETTLE_LIMIT).await => return Err(did_not_start(&folder)),
            Err(error) => return Err(error),
        };
        match begin {
            Begin::Boot => {}
            Begin::Resume => resumed(&folder, &process, suspend::load(&folder, &qmp).await).await?,
            Begin::Adopt => match suspend::status(&qmp).await?.as_str() {
                // An earlier worker died while it let a suspended guest go on.
                "inmigrate" => resumed(&folder, &process, suspend::load(&folder, &qmp).await).await?,
                // The same while it suspended it, or a moment later.
                "paused" | "postmigrate" | "finish-migrate" => {
                    tracing::info!(vm = %folder.path().display(), "the guest stands still since an earlier worker ended");
                    suspend::thaw(&folder, &qmp).await?;
                }
                _ => {}
            },
        }
        let logs = [CONSOLE_LOG, QEMU_LOG].map(|name| folder.file(name));
        let logs = task::spawn(async move { match log_bound::keep(&logs).await {} });
        let mut forwards = Forwards::default();
        if begin == Begin::Adopt {
            match qmp.monitor("info usernet").await {
                Ok(listed) => forwards.replace(usernet::parse(&listed)),
                // Others are made as they are needed; those that there are only take room.
                Err(error) => tracing::warn!(vm = %folder.path().display(), %error, "cannot see QEMU's forwards"),
            }
        }
        let boot_limit = match begin {
            Begin::Boot => BOOT_LIMIT,
            Begin::Resume => Duration::ZERO,
            Begin::Adopt => ADOPTED_BOOT_LIMIT,
        };
        let (qmp, hung) = (Arc::new(qmp), Arc::default());
        let name = folder.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let health =
            task::spawn(health::watch(name, qmp.clone(), process.clone(), health::HUNG_AFTER, Arc::clone(&hung)));
        Ok(Self {
            folder,
            process,
            qmp,
            forwards: Mutex::new(forwards),
            next_dial: Mutex::new(Instant::now()),
            boot_limit,
            hung,
            need: suspend::Need::default(),
            _logs: logs,
            _health: health,
        })
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Whether commands can still be given.
    pub fn connected(&self) -> bool {
        !self.qmp.seen().borrow().closed
    }

    /// Waits for the guest's network, QEMU's end or the limit.
    pub async fn booted(&self) {
        let mut seen = self.qmp.seen();
        let up = seen.wait_for(|seen| seen.network_up || seen.closed);
        let _ = tokio::time::timeout(self.boot_limit, up).await;
    }

    /// Waits for the end of the process and tells how it came.
    pub async fn wait_exit(&self) -> Exit {
        self.process.gone().await;
        // All that QEMU sent before its end is in the socket by now; the task reads it up to the end.
        let mut seen = self.qmp.seen();
        let _ = tokio::time::timeout(QUIT_LIMIT, seen.wait_for(|seen| seen.closed)).await;
        if let Some(why) = self.hung.get() {
            return Exit::Crashed(why.clone());
        }
        let shutdown = seen.borrow().shutdown.clone();
        exit_of(&self.folder, shutdown)
    }

    /// Presses the power button until the guest is off or `grace` is over, then ends QEMU, gently and at last not.
    ///
    /// # Errors
    /// When the process withstands even that.
    pub async fn stop(&self, grace: Duration) -> Result<(), RuntimeError> {
        let deadline = Instant::now() + grace;
        while Instant::now() < deadline {
            if let Err(error) = self.qmp.execute("system_powerdown", json!({})).await {
                tracing::debug!(%error, "the power button could not be pressed");
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.process.gone_within(left.min(POWERDOWN_PAUSE)).await {
                return Ok(());
            }
        }
        self.quit().await
    }

    async fn quit(&self) -> Result<(), RuntimeError> {
        // The connection may close before the answer.
        let _ = tokio::time::timeout(QUIT_LIMIT, self.qmp.execute("quit", json!({}))).await;
        if self.process.gone_within(QUIT_LIMIT).await {
            return Ok(());
        }
        kill(&self.process).await
    }

    /// Freezes the guest into a file beside its disk and ends QEMU.
    ///
    /// # Errors
    /// Why not; the guest goes on then.
    pub async fn suspend(&self, progress: &Progress) -> Result<(), RuntimeError> {
        suspend::freeze(&self.folder, &self.qmp, &self.need, progress).await?;
        // What is left of the process does nothing any more, however it ends.
        self.quit().await
    }

    /// Connects to a TCP port of the guest through a forward, which is made at the first use.
    ///
    /// QEMU accepts the connection itself: a port on which the guest does not listen shows as an immediate end of the
    /// stream, not as a refusal here.
    ///
    /// # Errors
    /// When QEMU cannot make the forward, or has ended.
    pub async fn dial(&self, guest: u16) -> Result<TcpStream, RuntimeError> {
        let host = self.forward(guest).await?;
        let connect = async {
            let mut next = self.next_dial.lock().await;
            tokio::time::sleep_until(*next).await;
            let connected = TcpStream::connect((Ipv4Addr::LOCALHOST, host)).await;
            *next = Instant::now() + DIAL_PAUSE;
            connected
        };
        match tokio::time::timeout(DIAL_LIMIT, connect).await {
            Ok(Ok(stream)) => {
                let _ = stream.set_nodelay(true);
                Ok(stream)
            }
            Ok(Err(error)) => Err(RuntimeError::Refused(format!("QEMU's forward to port {guest}: {error}"))),
            Err(_) => Err(RuntimeError::Timeout(format!("QEMU's forward to port {guest} does not answer"))),
        }
    }

    async fn forward(&self, guest: u16) -> Result<u16, RuntimeError> {
        let mut forwards = self.forwards.lock().await;
        if let Some(host) = forwards.host_port(guest) {
            return Ok(host);
        }
        if let Some(old) = forwards.evict() {
            self.qmp.monitor(&usernet::remove_command(old.host)).await?;
        }
        let answer = self.qmp.monitor(&usernet::add_command(guest)).await?;
        let listed = usernet::parse(&self.qmp.monitor("info usernet").await?);
        let Some(forward) = listed.iter().find(|f: &&Forward| f.guest == guest) else {
            let said = answer.trim();
            return Err(RuntimeError::Tool(format!("QEMU made no forward to port {guest}: {said}")));
        };
        forwards.add(*forward);
        Ok(forward.host)
    }
}

/// What became of the memory of a suspended guest. If the guest does not run, its process is ended, as it never will.
async fn resumed(folder: &Folder, process: &Process, loaded: Result<(), LoadError>) -> Result<(), RuntimeError> {
    let error = match loaded {
        Ok(()) => return Ok(()),
        Err(LoadError::Failed(error)) => error,
        Err(LoadError::Broken(why)) => {
            let _ = process.gone_within(SETTLE_LIMIT).await;
            let said = tool::tail(&folder.file(QEMU_LOG), LOG_TAIL);
            broken(folder, format!("{why} {said}"))?
        }
    };
    kill(process).await?;
    folder.forget_process();
    Err(error)
}

/// Puts memory away that cannot be loaded.
///
/// # Errors
/// When that fails.
pub fn broken(folder: &Folder, why: String) -> Result<RuntimeError, RuntimeError> {
    suspend::set_aside(folder)?;
    Ok(RuntimeError::State(format!(
        "the memory of the suspended VM cannot be loaded: {}; its disk is as it was, and the next start boots from it",
        why.trim()
    )))
}

fn did_not_start(folder: &Folder) -> RuntimeError {
    RuntimeError::Tool(format!("QEMU did not start: {}", tool::tail(&folder.file(QEMU_LOG), LOG_TAIL)))
}

/// Ends a process that no longer answers, or need not be asked.
///
/// # Errors
/// When it is still there long after.
pub async fn kill(process: &Process) -> Result<(), RuntimeError> {
    process.signal(Signal::KILL).await;
    if process.gone_within(KILL_LIMIT).await {
        return Ok(());
    }
    let seconds = KILL_LIMIT.as_secs();
    Err(RuntimeError::Timeout(format!("QEMU process {} is still there {seconds} s after it was killed", process.pid)))
}

/// How a process that is gone ended: by its own last words if they were heard, else by what it left.
pub fn exit_of(folder: &Folder, shutdown: Option<Shutdown>) -> Exit {
    if !folder.exists() {
        return Exit::Crashed("there is nothing of the VM on this host".to_owned());
    }
    if !folder.was_started() {
        return Exit::Crashed("the VM was not started".to_owned());
    }
    let crashed = folder.file(PID_FILE).exists();
    verdict(shutdown, crashed, &tool::tail(&folder.file(QEMU_LOG), LOG_TAIL))
}

/// QEMU writes this to its log when a signal ends it, in order.
const BY_SIGNAL: &str = "terminating on signal";

fn verdict(shutdown: Option<Shutdown>, pid_file_left: bool, log: &str) -> Exit {
    let with_log =
        |what: String| Exit::Crashed(if log.is_empty() { what } else { format!("{what}; its last words: {log}") });
    match shutdown {
        Some(Shutdown { guest: true, reason }) if reason != "guest-panic" => Exit::PoweredOff,
        Some(Shutdown { guest: true, .. }) => with_log("the guest's kernel panicked".to_owned()),
        Some(Shutdown { reason, .. }) => with_log(format!("QEMU was ended from outside the guest ({reason})")),
        None if pid_file_left => with_log("QEMU crashed or was killed".to_owned()),
        None if log.contains(BY_SIGNAL) => with_log("QEMU was ended by a signal".to_owned()),
        None => Exit::PoweredOff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_off_is_told_from_a_crash() {
        let said = |guest, reason: &str| Some(Shutdown { guest, reason: reason.into() });
        assert_eq!(verdict(said(true, "guest-shutdown"), false, ""), Exit::PoweredOff);
        assert_eq!(verdict(None, false, "some warning"), Exit::PoweredOff);
        for (shutdown, left, log) in [
            (None, true, "assertion failed"),
            (None, false, "qemu: terminating on signal 15 from pid 1"),
            (said(false, "host-qmp-quit"), false, ""),
            (said(true, "guest-panic"), false, ""),
        ] {
            match verdict(shutdown, left, log) {
                Exit::Crashed(text) => assert!(text.contains(log), "{text}"),
                Exit::PoweredOff => panic!("taken for a power-off: {left} {log:?}"),
            }
        }
    }
}
