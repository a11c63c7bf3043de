//! Whether a QEMU still answers. One that has not for minutes runs no guest that anybody could use, and holds its disk: it
//! is killed, and the VM's restart policy says what follows. [`watch`] is started by `vm.rs` for each VM that runs; one that
//! a new worker cannot even connect to is judged by [`Unreached`], for `mod.rs`.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use super::super::RuntimeError;
use super::super::process::Process;
use super::folder::{Folder, VNC_SOCKET};
use super::qmp::Qmp;
use super::suspend;

/// How often QEMU is asked.
const PERIOD: Duration = Duration::from_secs(15);
/// For how long it may not answer. A host's disk that hangs for a while stops QEMU for as long, and nothing is lost by that.
pub const HUNG_AFTER: Duration = Duration::from_secs(300);

/// How long the VM's screen may take to greet; QEMU's main loop does it, and takes as long for anything else.
const GREETING_LIMIT: Duration = Duration::from_secs(10);

/// What follows from an answer that did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It is worth a line in the log.
    Silent,
    /// It was said already.
    StillSilent,
    /// It is to be killed.
    Hung,
}

/// For how long QEMU has not answered. Pure.
#[derive(Clone, Copy, Debug, Default)]
struct Health {
    silent_since: Option<Duration>,
}

impl Health {
    /// It answered; whether it had not before.
    fn heard(&mut self) -> bool {
        self.silent_since.take().is_some()
    }

    /// It did not answer by `now`.
    fn silent(&mut self, now: Duration, limit: Duration) -> Verdict {
        match self.silent_since {
            None => {
                self.silent_since = Some(now);
                Verdict::Silent
            }
            Some(since) if now.saturating_sub(since) >= limit => Verdict::Hung,
            Some(_) => Verdict::StillSilent,
        }
    }
}

/// Asks for as long as the connection lives; kills a process that has not answered for `limit`, and then says in `hung` why.
pub async fn watch(name: String, qmp: Arc<Qmp>, process: Process, limit: Duration, hung: Arc<OnceLock<String>>) {
    let period = PERIOD.min(limit / 2);
    let (mut health, began) = (Health::default(), Instant::now());
    loop {
        tokio::time::sleep(period).await;
        let error = match suspend::status(&qmp).await {
            Ok(status) => {
                if health.heard() {
                    tracing::info!(vm = name, "QEMU answers again");
                }
                if status == "io-error" {
                    // The host's disk was full, most likely. What the guest wrote waits and is tried again by this.
                    tracing::warn!(
                        vm = name,
                        "the guest stands still as the worker's disk failed or is full; trying again"
                    );
                    let _ = qmp.execute("cont", json!({})).await;
                }
                continue;
            }
            Err(RuntimeError::State(_)) => return,
            Err(error) => error,
        };
        // Whoever stopped it, to look at it, will let it go on.
        if is_stopped(process.pid) {
            continue;
        }
        match health.silent(began.elapsed(), limit) {
            Verdict::Silent => tracing::warn!(vm = name, pid = process.pid, %error, "QEMU does not answer"),
            Verdict::StillSilent => {}
            Verdict::Hung => {
                let why = format!("QEMU did not answer for {} s and was killed", limit.as_secs());
                tracing::error!(vm = name, pid = process.pid, "{why}");
                let _ = hung.set(why);
                return process.signal(Signal::KILL).await;
            }
        }
    }
}

/// A process that an earlier worker started and that cannot be connected to: for how long that has been so.
#[derive(Debug)]
pub struct Unreached {
    health: Health,
    began: Instant,
}

impl Unreached {
    /// From now on.
    pub fn new() -> Self {
        Self { health: Health::default(), began: Instant::now() }
    }

    /// It could not be reached, by `error`. Kills it if it has not answered for `limit`, and then says why.
    pub async fn again(
        &mut self,
        error: &RuntimeError,
        folder: &Folder,
        process: &Process,
        limit: Duration,
    ) -> Option<String> {
        let silent = match error {
            RuntimeError::Timeout(_) => true,
            // So many connections wait to be accepted that no other can: the same, seen earlier.
            RuntimeError::Io { source, .. } => source.kind() == std::io::ErrorKind::WouldBlock,
            _ => false,
        };
        // What another program that holds the control socket's one place looks like, the VM's screen tells apart.
        if !silent || is_stopped(process.pid) || greets(folder).await {
            self.health.heard();
            return None;
        }
        if self.health.silent(self.began.elapsed(), limit) != Verdict::Hung {
            return None;
        }
        let why = format!("QEMU did not answer a new worker for {} s and was killed", limit.as_secs());
        tracing::error!(vm = %folder.path().display(), pid = process.pid, "{why}");
        process.signal(Signal::KILL).await;
        Some(why)
    }
}

/// Whether QEMU still welcomes those who want to see the VM's screen, of whom it takes several.
async fn greets(folder: &Folder) -> bool {
    let greeting = async { folder.connect(VNC_SOCKET).await?.read_u8().await };
    matches!(tokio::time::timeout(GREETING_LIMIT, greeting).await, Ok(Ok(_)))
}

/// Whether a signal or a debugger has stopped a process.
fn is_stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().next());
    matches!(state, Some("T" | "t"))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::UnixStream;

    use super::*;
    use crate::task;

    const LIMIT: Duration = Duration::from_secs(300);

    #[test]
    fn only_a_long_silence_without_a_word_counts_as_hung() {
        let at = Duration::from_secs;
        let mut health = Health::default();
        assert!(!health.heard());
        assert_eq!(health.silent(at(10), LIMIT), Verdict::Silent);
        assert_eq!(health.silent(at(309), LIMIT), Verdict::StillSilent);
        assert!(health.heard());
        assert_eq!(health.silent(at(400), LIMIT), Verdict::Silent);
        assert_eq!(health.silent(at(700), LIMIT), Verdict::Hung);
    }

    /// A control socket that answers the first `answers` commands.
    async fn qmp(answers: usize) -> (Arc<Qmp>, task::Task) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let qemu = task::spawn(async move {
            let (read, mut write) = theirs.into_split();
            let mut read = BufReader::new(read).lines();
            write.write_all(b"{\"QMP\":{}}\n").await.unwrap();
            for _ in 0..answers {
                let line = read.next_line().await.unwrap().unwrap();
                let command: serde_json::Value = serde_json::from_str(&line).unwrap();
                let answer = format!("{{\"return\":{{\"status\":\"running\"}},\"id\":{}}}\n", command["id"]);
                write.write_all(answer.as_bytes()).await.unwrap();
            }
            while let Ok(Some(_)) = read.next_line().await {}
        });
        (Arc::new(Qmp::open(ours).await.unwrap()), qemu)
    }

    #[tokio::test(start_paused = true)]
    async fn a_qemu_that_answers_no_more_is_killed_after_a_while_and_it_is_said_why() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).await.unwrap();
        let (qmp, _qemu) = qmp(5).await;
        let (hung, began) = (Arc::new(OnceLock::new()), Instant::now());
        watch("vm".into(), qmp, process, LIMIT, hung.clone()).await;
        assert!(began.elapsed() > LIMIT + 4 * PERIOD, "it was killed too soon: {:?}", began.elapsed());
        assert!(hung.get().unwrap().contains("300 s"));
        assert!(!child.wait().unwrap().success());
    }

    /// A folder of a VM, and a process in the place of its QEMU.
    async fn unreached(dir: &tempfile::TempDir) -> (Folder, std::process::Child, Process) {
        let id = "00000000-0000-7000-8000-000000000001".parse().unwrap();
        let folder = Folder::of(dir.path(), crate::model::CopyId { uid: id, attempt: 0 });
        folder.make().unwrap();
        let child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).await.unwrap();
        (folder, child, process)
    }

    fn silent() -> RuntimeError {
        RuntimeError::Timeout("no greeting".into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_qemu_that_hung_before_its_new_worker_came_is_killed_after_the_same_while() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, mut child, process) = unreached(&dir).await;
        let (mut unreached, began) = (Unreached::new(), Instant::now());
        let full = || RuntimeError::io("cannot reach it")(std::io::ErrorKind::WouldBlock.into());
        let mut tries = 0;
        let why = loop {
            tokio::time::sleep(Duration::from_secs(10)).await;
            tries += 1;
            let error = if tries < 3 { silent() } else { full() };
            if let Some(why) = unreached.again(&error, &folder, &process, LIMIT).await {
                break why;
            }
        };
        assert!(began.elapsed() >= LIMIT && why.contains("300 s"), "{why} {:?}", began.elapsed());
        assert!(!child.wait().unwrap().success());
    }

    #[tokio::test]
    async fn a_qemu_that_somebody_else_talks_to_or_that_refuses_is_not_killed() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, mut child, process) = unreached(&dir).await;
        let screen = folder.listen(VNC_SOCKET).unwrap();
        let screen = task::spawn(async move {
            while let Ok((mut stream, _)) = screen.accept().await {
                let _ = stream.write_all(b"RFB 003.008\n").await;
            }
        });
        let mut unreached = Unreached::new();
        for _ in 0..3 {
            assert_eq!(unreached.again(&silent(), &folder, &process, Duration::ZERO).await, None);
        }
        screen.abort().await;
        let refused = RuntimeError::Tool("it greets otherwise".into());
        for error in [silent(), refused, silent()] {
            assert_eq!(unreached.again(&error, &folder, &process, Duration::ZERO).await, None);
        }
        assert!(process.alive().await);
        assert!(unreached.again(&silent(), &folder, &process, Duration::ZERO).await.is_some());
        assert!(!child.wait().unwrap().success());
    }

    #[tokio::test(start_paused = true)]
    async fn the_watch_ends_with_the_connection_and_kills_nothing() {
        let process = Process::of(i32::try_from(std::process::id()).unwrap()).await.unwrap();
        let (qmp, qemu) = qmp(2).await;
        qemu.abort().await;
        let hung = Arc::new(OnceLock::new());
        watch("vm".into(), qmp, process, LIMIT, hung.clone()).await;
        assert_eq!(hung.get(), None);
    }
}
