//! Runs a short-lived tool (`qemu-img`, `tart`, …) to its end: with a deadline, its output captured and bounded, its
//! process group killed when the deadline passes or the caller goes away.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

use super::RuntimeError;

/// How much of each output stream is kept: enough for `tart list` of thousands of VMs, and bounded.
const MAX_OUTPUT: u64 = 4 << 20;

/// How long the output is waited for once the tool itself has ended.
const LEFTOVER_LIMIT: Duration = Duration::from_secs(5);

/// Kills the tool's process group unless it ended by itself.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// Runs `program` with `args` in `cwd` and yields what it wrote to its standard output.
///
/// Cancel safe: a dropped call kills the tool and what it started.
///
/// # Errors
/// [`RuntimeError::Tool`] when it cannot be run or fails, with the first line it wrote about it;
/// [`RuntimeError::Timeout`] after `limit`.
pub async fn run<S: AsRef<OsStr>>(
    program: &Path,
    args: &[S],
    cwd: Option<&Path>,
    limit: Duration,
) -> Result<String, RuntimeError> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    if let Some(cwd) = cwd {
        command.current_dir(cwd);
    }
    let mut child = command.spawn().map_err(|error| cannot_run(program, &error))?;
    let mut group = Group(child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw));
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let finish = async {
        let output = async { tokio::join!(capture(out), capture(err)) };
        let mut output = std::pin::pin!(output);
        // A child of the tool's own may hold the pipes open for as long as it likes.
        tokio::select! {
            (out, err) = &mut output => (child.wait().await, out, err),
            status = child.wait() => {
                let (out, err) = tokio::time::timeout(LEFTOVER_LIMIT, output).await.unwrap_or_default();
                (status, out, err)
            }
        }
    };
    let what = || {
        let args: Vec<_> = args.iter().map(|a| a.as_ref().to_string_lossy()).collect();
        format!("{} {}", program.display(), args.join(" "))
    };
    let Ok((status, out, err)) = tokio::time::timeout(limit, finish).await else {
        return Err(RuntimeError::Timeout(format!("{} did not end within {} s", what(), limit.as_secs())));
    };
    group.0 = None;
    let status = status.map_err(|error| cannot_run(program, &error))?;
    if status.success() {
        return Ok(out);
    }
    let said = first_line(&err).or_else(|| first_line(&out)).unwrap_or("it said nothing");
    Err(RuntimeError::Tool(format!("{} failed ({status}): {said}", what())))
}

fn cannot_run(program: &Path, error: &io::Error) -> RuntimeError {
    let program = program.display();
    RuntimeError::Tool(match error.kind() {
        io::ErrorKind::NotFound => format!("{program} is not installed, or not on the worker's PATH: install it"),
        _ => format!("cannot run {program}: {error}"),
    })
}

fn first_line(text: &str) -> Option<&str> {
    text.lines().map(str::trim).find(|line| !line.is_empty())
}

/// Reads to the end, keeping the first [`MAX_OUTPUT`] bytes.
async fn capture(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let mut kept = Vec::new();
    let _ = (&mut stream).take(MAX_OUTPUT).read_to_end(&mut kept).await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&kept).into_owned()
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
    async fn the_first_line_of_a_failure_is_told() {
        assert_eq!(sh("echo fine", LIMIT).await.unwrap(), "fine\n");
        let error = sh("echo out; printf '\\n  why\\nmore\\n' >&2; exit 3", LIMIT).await.unwrap_err();
        assert!(matches!(&error, RuntimeError::Tool(text) if text.ends_with("exit status: 3): why")), "{error}");
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
        let error = sh(&script, Duration::from_millis(500)).await.unwrap_err();
        assert!(matches!(error, RuntimeError::Timeout(_)), "{error}");
        let pid: i32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        if let Some(process) = super::super::process::Process::of(pid).await {
            assert!(process.gone_within(LIMIT).await);
        }
    }

    #[tokio::test]
    async fn endless_output_is_cut_off() {
        let out = sh("head -c 9000000 /dev/zero", LIMIT).await.unwrap();
        assert_eq!(out.len() as u64, MAX_OUTPUT);
    }
}
