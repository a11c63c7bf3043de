//! Runs a short-lived tool (`qemu-img`, `tart`, …) to its end: with a deadline, its output captured and bounded, its
//! process group killed when the deadline passes or the caller goes away.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

use super::RuntimeError;
use super::process::{Process, prepare};
use super::said::{self, Kept};
use crate::identity::write_private;
use crate::trace;

/// How long the output is waited for once the tool itself has ended.
const LEFTOVER_LIMIT: Duration = Duration::from_secs(5);
/// How long the end of a killed tool is waited for, so that it does not stay as a zombie.
const KILLED_LIMIT: Duration = Duration::from_secs(5);
/// How much is read of a tool's output at a time.
const CHUNK: usize = 8 * 1024;

/// Who is told each line of what a tool writes, as it comes.
pub type Listener<'a> = &'a mut (dyn FnMut(&str) + Send);

/// One call of a tool.
#[derive(Debug)]
pub struct Call<'a, S> {
    /// The tool; a bare name is looked up on PATH.
    pub program: &'a Path,
    /// Its arguments.
    pub args: &'a [S],
    /// The folder it runs in; none = the worker's own.
    pub cwd: Option<&'a Path>,
    /// How long it may take.
    pub limit: Duration,
    /// Where its process is noted while it runs: should the worker be killed meanwhile, the next can end it.
    pub note: Option<&'a Path>,
    /// Its standard input; none = there is none.
    pub input: Option<OwnedFd>,
}

/// What must not stay behind when a call is given up.
struct Running<'a> {
    group: Option<Pid>,
    note: Option<&'a Path>,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(pid) = self.group {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        if let Some(note) = self.note {
            let _ = std::fs::remove_file(note);
        }
    }
}

/// Runs `program` with `args` in `cwd` and yields what it wrote to its standard output.
///
/// Cancel safe: a dropped call kills the tool and what it started.
///
/// # Errors
/// [`RuntimeError::Tool`] when it cannot be run or fails, with the last lines it wrote; [`RuntimeError::Timeout`] after
/// `limit`, with the same.
pub async fn run<S: AsRef<OsStr>>(
    program: &Path,
    args: &[S],
    cwd: Option<&Path>,
    limit: Duration,
) -> Result<String, RuntimeError> {
    Call { program, args, cwd, limit, note: None, input: None }.run(&mut |_| {}).await
}

impl<S: AsRef<OsStr>> Call<'_, S> {
    /// Runs it to its end; `listener` is told each line that it writes to either stream.
    ///
    /// # Errors
    /// As [`run`]; and cancel safe like that.
    pub async fn run(self, listener: Listener<'_>) -> Result<String, RuntimeError> {
        let Some(here) = trace::current() else { return self.run_now(listener).await };
        let name = self.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // The first word is what is done; others may be anything.
        let verb = self.args.first().map(|verb| verb.as_ref().to_string_lossy().into_owned()).unwrap_or_default();
        let span = tracing::info_span!(target: trace::TARGET, "command", otel.name = name, verb);
        trace::run(span, Some(here), self.run_now(listener)).await
    }

    async fn run_now(mut self, listener: Listener<'_>) -> Result<String, RuntimeError> {
        let input = self.input.take().map_or_else(Stdio::null, Stdio::from);
        let mut command = Command::new(self.program);
        command.args(self.args).stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        prepare(&mut command);
        if let Some(cwd) = self.cwd {
            command.current_dir(cwd);
        }
        let mut child = command.spawn().map_err(|error| cannot_run(self.program, &error))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let mut running = Running { group: pid.and_then(Pid::from_raw), note: self.note };
        if let (Some(note), Some(pid)) = (self.note, pid)
            && let Some(process) = Process::of(pid).await
        {
            let text = serde_json::to_vec(&process).unwrap_or_default();
            write_private(note, &text).map_err(RuntimeError::io(format!("cannot write {}", note.display())))?;
        }
        let mut output = Output::default();
        let finished = tokio::time::timeout(self.limit, finish(&mut child, &mut output, listener)).await;
        let Ok(status) = finished else {
            drop(running);
            let _ = tokio::time::timeout(KILLED_LIMIT, child.wait()).await;
            let seconds = self.limit.as_secs_f32();
            return Err(RuntimeError::Timeout(match output.said() {
                Some(said) => format!("{} did not end within {seconds} s; it said: {said}", self.shown()),
                None => format!("{} did not end within {seconds} s and said nothing", self.shown()),
            }));
        };
        running.group = None;
        let status = status.map_err(|error| cannot_run(self.program, &error))?;
        if status.success() {
            return Ok(output.out.text());
        }
        let said = output.said().unwrap_or_else(|| "it said nothing".to_owned());
        Err(RuntimeError::Tool(format!("{} failed ({status}): {said}", self.shown())))
    }

    /// As somebody would type it.
    fn shown(&self) -> String {
        let args: Vec<_> = self.args.iter().map(|a| a.as_ref().to_string_lossy()).collect();
        format!("{} {}", self.program.display(), args.join(" "))
    }
}

/// What a tool has written so far.
#[derive(Default)]
struct Output {
    out: Kept,
    err: Kept,
}

impl Output {
    /// The lines that say why it failed.
    fn said(&self) -> Option<String> {
        said::lines(&self.err.text_with_end()).or_else(|| said::lines(&self.out.text_with_end()))
    }
}

/// Waits for the end of the tool and of its output.
async fn finish(child: &mut Child, output: &mut Output, listener: Listener<'_>) -> io::Result<ExitStatus> {
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let mut reading = std::pin::pin!(read_both(out, err, output, listener));
    // A child of the tool's own may hold the pipes open for as long as it likes.
    tokio::select! {
        () = &mut reading => child.wait().await,
        status = child.wait() => {
            let _ = tokio::time::timeout(LEFTOVER_LIMIT, reading).await;
            status
        }
    }
}

async fn read_both(
    mut out: Option<impl AsyncRead + Unpin>,
    mut err: Option<impl AsyncRead + Unpin>,
    output: &mut Output,
    listener: Listener<'_>,
) {
    let (mut from_out, mut from_err) = (vec![0; CHUNK], vec![0; CHUNK]);
    while out.is_some() || err.is_some() {
        // Cancel safe: what is read is kept at once.
        tokio::select! {
            count = read(&mut out, &mut from_out) => output.out.add(count, &from_out, listener),
            count = read(&mut err, &mut from_err) => output.err.add(count, &from_err, listener),
        }
    }
}

/// How much was read; after the end there is nothing more to come.
async fn read(stream: &mut Option<impl AsyncRead + Unpin>, into: &mut [u8]) -> usize {
    let Some(open) = stream else { return std::future::pending().await };
    let count = open.read(into).await.unwrap_or(0);
    if count == 0 {
        *stream = None;
    }
    count
}

fn cannot_run(program: &Path, error: &io::Error) -> RuntimeError {
    let program = program.display();
    RuntimeError::Tool(match error.kind() {
        io::ErrorKind::NotFound => format!("{program} is not installed, or not on the worker's PATH: install it"),
        io::ErrorKind::PermissionDenied => {
            format!("{program} cannot be run: it is not executable for the user that this worker runs as")
        }
        _ => format!("cannot run {program}: {error}"),
    })
}

/// The last `bytes` of a text file, whole lines where possible; empty when it cannot be read.
pub fn tail(path: &Path, bytes: u64) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(bytes);
        file.seek(SeekFrom::Start(start))?;
        let mut kept = Vec::new();
        file.take(bytes).read_to_end(&mut kept)?;
        Ok(kept)
    };
    String::from_utf8_lossy(&read().unwrap_or_default()).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(script: &str, limit: Duration) -> Result<String, RuntimeError> {
        run(Path::new("sh"), &["-c", script], None, limit).await
    }

    const LIMIT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn the_lines_of_a_failure_are_told() {
        assert_eq!(sh("echo fine", LIMIT).await.unwrap(), "fine\n");
        let error = sh("echo out; printf '\\n  why\\nmore\\n' >&2; exit 3", LIMIT).await.unwrap_err();
        assert!(matches!(&error, RuntimeError::Tool(text) if text.ends_with("exit status: 3): why | more")), "{error}");
    }

    #[tokio::test]
    async fn a_missing_tool_is_named() {
        let error = run(Path::new("no-such-tool"), &["x"], None, LIMIT).await.unwrap_err();
        assert!(error.to_string().contains("no-such-tool is not installed"), "{error}");
    }

    #[tokio::test]
    async fn a_tool_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", file.display());
        let error = sh(&script, Duration::from_secs(3)).await.unwrap_err();
        assert!(matches!(error, RuntimeError::Timeout(_)), "{error}");
        let pid: i32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        if let Some(process) = super::super::process::Process::of(pid).await {
            assert!(process.gone_within(LIMIT).await);
        }
    }

    #[tokio::test]
    async fn endless_output_is_cut_off() {
        let out = sh("head -c 9000000 /dev/zero", LIMIT).await.unwrap();
        assert_eq!(out.len(), said::MAX_OUTPUT);
    }

    #[tokio::test]
    async fn a_tool_that_hangs_is_told_of_with_what_it_said_and_leaves_no_zombie() {
        let script = "echo $$; echo half-way; sleep 1000";
        let error = sh(script, Duration::from_secs(3)).await.unwrap_err().to_string();
        assert!(error.contains("did not end within 3 s") && error.contains("half-way"), "{error}");
        let pid: i32 = error.split("said: ").nth(1).unwrap().split(" |").next().unwrap().parse().unwrap();
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it is reaped before the error is told");
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_kills_the_tool_and_removes_its_note() {
        let dir = tempfile::tempdir().unwrap();
        let note = dir.path().join("note");
        let args = ["-c", "echo begun; sleep 1000"];
        let call =
            Call { program: Path::new("sh"), args: &args, cwd: None, limit: LIMIT, note: Some(&note), input: None };
        let (begun, mut told) = tokio::sync::mpsc::channel(1);
        let process: Process = {
            let mut listener = |line: &str| drop(begun.try_send(line.to_owned()));
            tokio::select! {
                ended = call.run(&mut listener) => panic!("{ended:?}"),
                line = told.recv() => assert_eq!(line.as_deref(), Some("begun")),
            }
            // The call is gone, and its note with it.
            assert!(!note.exists());
            let found = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
                let line = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
                line.contains("echo begun; sleep 1000").then(|| entry.file_name().to_str()?.parse().ok())?
            });
            match found.collect::<Vec<i32>>().first() {
                Some(pid) => match Process::of(*pid).await {
                    Some(process) => process,
                    None => return,
                },
                None => return,
            }
        };
        assert!(process.gone_within(LIMIT).await);
    }

    #[tokio::test]
    async fn a_tool_that_may_not_be_run_or_was_killed_is_told_of_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tool");
        std::fs::write(&file, "").unwrap();
        let error = run(&file, &["x"], None, LIMIT).await.unwrap_err().to_string();
        assert!(error.contains("not executable"), "{error}");
        let error = sh("kill -9 $$", LIMIT).await.unwrap_err().to_string();
        assert!(error.contains("signal: 9") && error.ends_with("it said nothing"), "{error}");
    }
}
