//! Whether a QEMU still answers. One that has not for minutes runs no guest that anybody could use, and holds its disk: it
//! is killed, and the VM's restart policy says what follows. Started by `vm.rs` for each VM that runs.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tokio::time::Instant;

use super::super::RuntimeError;
use super::super::process::Process;
use super::qmp::Qmp;
use super::suspend;

/// How often QEMU is asked.
const PERIOD: Duration = Duration::from_secs(15);
/// For how long it may not answer. A host's disk that hangs for a while stops QEMU for as long, and nothing is lost by that.
pub const HUNG_AFTER: Duration = Duration::from_secs(300);

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
