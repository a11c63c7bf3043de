//! A guest's memory in a file beside its disk: written when it is suspended, read when it goes on. Called by `vm.rs`.
//!
//! QEMU sends the memory over a Unix socket and the worker writes the file, so QEMU needs no right to start programs, and a
//! release without the `file:` address (before 8.2) will do. The guest stands still from before the first byte, so disk and
//! memory are of one moment.
//!
//! The file is there under its name only when it is whole and on the disk. It is removed before the guest moves again: memory
//! that is older than the disk would destroy what is on it. So a worker that dies anywhere in between leaves either a guest
//! that can be let go on ([`thaw`]), or a file to start from.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::super::{Progress, RuntimeError, room};
use super::folder::Folder;
use super::qmp::Qmp;
use crate::identity::sync_folder;

/// The memory.
const STATE: &str = "suspend.state";
/// The same while it is being written.
const PART: &str = "suspend.state.part";
/// Memory that could not be read, kept until the next time.
const BROKEN: &str = "suspend.broken";
/// See [`Saved`].
const ABOUT: &str = "suspend.json";
/// What the memory goes over.
const SOCKET: &str = "memory.sock";
/// See [`Run`].
const RUN: &str = "run.json";

/// All of it together; 64 GiB take some minutes on a plain disk.
const TOTAL_LIMIT: Duration = Duration::from_secs(30 * 60);
/// A transfer of which nothing moves for so long is given up.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// How long QEMU may take between two states of a transfer that is over, or is to end.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);
/// How often its state is asked for.
const PAUSE: Duration = Duration::from_millis(50);
/// How often progress is told.
const PROGRESS_PERIOD: Duration = Duration::from_secs(1);
/// What is read at once.
const BLOCK: usize = 1 << 20;
/// What is written, for people.
const WHAT: &str = "the guest's memory";
/// After how many bytes the room on the disk is looked at.
const LOOK_EVERY: u64 = 64 << 20;

/// The command line of the process that runs, for a suspension later.
#[derive(Debug, Serialize, Deserialize)]
struct Run {
    args: Vec<String>,
}

/// What a suspended guest needs to go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The command line that it ran with.
    pub args: Vec<String>,
    /// The machine's versioned name, such as `pc-q35-7.2`: the plain one stands for another machine after an upgrade of QEMU.
    pub machine: String,
    /// Size of the memory's file.
    bytes: u64,
}

/// Why memory could not be loaded.
#[derive(Debug)]
pub enum LoadError {
    /// It never can.
    Broken(String),
    /// It could not this time.
    Failed(RuntimeError),
}

impl From<RuntimeError> for LoadError {
    fn from(error: RuntimeError) -> Self {
        LoadError::Failed(error)
    }
}

/// Notes the command line of a process that is about to start.
///
/// # Errors
/// Whatever the file system says.
pub fn note_run(folder: &Folder, args: &[String]) -> Result<(), RuntimeError> {
    folder.write(RUN, &Run { args: args.to_vec() })
}

/// What was suspended here; none = a start begins with the disk.
pub fn saved(folder: &Folder) -> Option<Saved> {
    folder.file(STATE).exists().then(|| {
        // Unreadable, it is as broken as a file that is cut off.
        folder.read(ABOUT).unwrap_or(Saved { args: Vec::new(), machine: String::new(), bytes: 0 })
    })
}

/// Removes the memory, if there is any.
///
/// # Errors
/// Whatever the file system says.
pub fn discard(folder: &Folder) -> Result<(), RuntimeError> {
    for name in [STATE, PART, BROKEN, ABOUT, SOCKET] {
        remove(&folder.file(name))?;
    }
    sync(folder)
}

/// Puts memory that cannot be loaded out of the way, so that the next start begins with the disk.
///
/// # Errors
/// Whatever the file system says.
pub fn set_aside(folder: &Folder) -> Result<(), RuntimeError> {
    let path = folder.file(STATE);
    let moved = std::fs::rename(&path, folder.file(BROKEN));
    moved.map_err(RuntimeError::io(format!("cannot rename {}", path.display())))?;
    sync(folder)
}

/// How many bytes the memory of a guest needs at the least, as far as a try to suspend it has shown; 0 = nothing is known.
#[derive(Debug, Default)]
pub struct Need(AtomicU64);

impl Need {
    /// There was no room for more than `written`.
    fn more_than(&self, written: u64) {
        self.0.store(written.saturating_add(LOOK_EVERY), Ordering::Relaxed);
    }
}

/// Stops the guest and writes its memory. On return the file is there and on the disk, and the guest must not move any more:
/// QEMU is to be ended. After an error the guest goes on. It is not stopped for what does not fit, as far as that can be
/// known before: whoever tries again and again would stop it again and again.
///
/// # Errors
/// Why it cannot be suspended.
pub async fn freeze(folder: &Folder, qmp: &Qmp, need: &Need, progress: &Progress) -> Result<(), RuntimeError> {
    let args = match folder.read::<Run>(RUN) {
        Some(run) => run.args,
        None => {
            return Err(RuntimeError::State(
                "it was started by a release of Orchard that could not suspend; stop it and start it once".to_owned(),
            ));
        }
    };
    if args.iter().any(|word| word == "-virtfs") {
        return Err(RuntimeError::State(
            "QEMU cannot suspend a VM that has host directories; stop it instead, or create it without".to_owned(),
        ));
    }
    let machine = qmp.execute("qom-get", json!({ "path": "/machine", "property": "type" })).await?;
    let machine = machine.as_str().unwrap_or_default().trim_end_matches("-machine").to_owned();
    discard(folder)?;
    room::check(folder.path(), need.0.load(Ordering::Relaxed), WHAT)?;
    let written = match timeout(TOTAL_LIMIT, write(folder, qmp, need, progress)).await {
        Ok(written) => written,
        Err(_) => {
            let minutes = TOTAL_LIMIT.as_secs() / 60;
            Err(RuntimeError::Timeout(format!("its memory was not written within {minutes} minutes")))
        }
    };
    let kept = written.and_then(|bytes| {
        folder.write(ABOUT, &Saved { args, machine, bytes })?;
        let moved = std::fs::rename(folder.file(PART), folder.file(STATE));
        moved.map_err(RuntimeError::io("cannot keep the memory"))?;
        sync(folder)
    });
    if let Err(error) = kept {
        if let Err(worse) = thaw(folder, qmp).await {
            return Err(RuntimeError::State(format!("{error}; and the guest stands still since: {worse}")));
        }
        return Err(error);
    }
    Ok(())
}

async fn write(folder: &Folder, qmp: &Qmp, need: &Need, progress: &Progress) -> Result<u64, RuntimeError> {
    let path = folder.file(PART);
    let io = |what: &'static str| RuntimeError::io(format!("{what} {}", folder.path().display()));
    let listener = folder.listen(SOCKET).map_err(io("cannot make a socket in"))?;
    qmp.execute("stop", json!({})).await?;
    // 0 = as fast as it goes.
    qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": 0 })).await?;
    qmp.execute("migrate", json!({ "uri": format!("unix:{SOCKET}") })).await?;
    let accepted = timeout(SETTLE_LIMIT, listener.accept()).await;
    let accepted = accepted.map_err(|_| RuntimeError::Timeout("QEMU does not send the guest's memory".to_owned()))?;
    let (mut stream, _) = accepted.map_err(io("cannot take the memory in"))?;
    let mut options = tokio::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&path).await;
    let mut file = file.map_err(io("cannot write the memory in"))?;
    file.set_max_buf_size(BLOCK);
    let mut block = vec![0; BLOCK];
    let (mut bytes, mut looked, mut told) = (0u64, 0u64, Instant::now());
    progress.say("writing the memory");
    loop {
        let read = timeout(STALL_LIMIT, stream.read(&mut block)).await.map_err(|_| {
            let seconds = STALL_LIMIT.as_secs();
            RuntimeError::Timeout(format!(
                "QEMU has sent nothing more of the memory for {seconds} s, after {bytes} bytes"
            ))
        })?;
        let count = read.map_err(io("cannot take the memory in"))?;
        let Some(data) = block.get(..count).filter(|data| !data.is_empty()) else { break };
        let wrote = file.write_all(data).await;
        wrote.map_err(|error| full(folder, need, bytes, error))?;
        bytes += data.len() as u64;
        if bytes - looked >= LOOK_EVERY {
            looked = bytes;
            room::check(folder.path(), 0, WHAT).inspect_err(|_| need.more_than(bytes))?;
        }
        if told.elapsed() >= PROGRESS_PERIOD {
            told = Instant::now();
            progress.say(said(&qmp.execute("query-migrate", json!({})).await?, bytes));
        }
    }
    ended(qmp).await?;
    let synced = async { file.flush().await.and(file.sync_all().await) };
    synced.await.map_err(|error| full(folder, need, bytes, error))?;
    if bytes == 0 {
        return Err(RuntimeError::Tool("QEMU sent nothing of the guest's memory".to_owned()));
    }
    Ok(bytes)
}

/// A failure to write after `bytes`; if for want of room, that is kept in mind.
fn full(folder: &Folder, need: &Need, bytes: u64, error: std::io::Error) -> RuntimeError {
    let explained = room::explain(folder.path(), WHAT, error);
    if matches!(explained, RuntimeError::State(_)) {
        need.more_than(bytes);
    }
    explained
}

/// Waits until a transfer that has sent all is over.
async fn ended(qmp: &Qmp) -> Result<(), RuntimeError> {
    let deadline = Instant::now() + SETTLE_LIMIT;
    loop {
        let about = qmp.execute("query-migrate", json!({})).await?;
        match about.get("status").and_then(Value::as_str).unwrap_or_default() {
            "completed" => return Ok(()),
            status @ ("failed" | "cancelled" | "none" | "") => {
                let why = about.get("error-desc").and_then(Value::as_str).unwrap_or(status);
                return Err(RuntimeError::Tool(format!("QEMU could not send the guest's memory: {why}")));
            }
            status if Instant::now() > deadline => {
                return Err(RuntimeError::Timeout(format!("QEMU has sent the memory and does not end: {status}")));
            }
            _ => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// Lets a guest go on that was stopped to be suspended. Its file is removed first.
///
/// # Errors
/// When it still stands still.
pub async fn thaw(folder: &Folder, qmp: &Qmp) -> Result<(), RuntimeError> {
    let deadline = Instant::now() + SETTLE_LIMIT;
    // Says nothing when there is none.
    let _ = qmp.execute("migrate_cancel", json!({})).await;
    loop {
        let about = qmp.execute("query-migrate", json!({})).await?;
        let over = matches!(
            about.get("status").and_then(Value::as_str).unwrap_or("none"),
            "none" | "completed" | "failed" | "cancelled"
        );
        if over || Instant::now() > deadline {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    discard(folder)?;
    qmp.execute("cont", json!({})).await?;
    Ok(())
}

/// Gives the memory to a QEMU that was started to go on with it, and lets the guest run. The file is gone then.
///
/// # Errors
/// [`LoadError::Broken`] when it never can be loaded.
pub async fn load(folder: &Folder, qmp: &Qmp) -> Result<(), LoadError> {
    let saved = saved(folder).ok_or_else(|| LoadError::Broken("there is none".to_owned()))?;
    check_whole(folder, &saved)?;
    match timeout(TOTAL_LIMIT, send(folder, qmp)).await {
        Ok(sent) => sent?,
        Err(_) => {
            let minutes = TOTAL_LIMIT.as_secs() / 60;
            return Err(RuntimeError::Timeout(format!("its memory was not loaded within {minutes} minutes")).into());
        }
    }
    discard(folder)?;
    qmp.execute("cont", json!({})).await?;
    Ok(())
}

/// Whether the memory's file is what was written.
///
/// # Errors
/// [`LoadError::Broken`] with what was found.
pub fn check_whole(folder: &Folder, saved: &Saved) -> Result<(), LoadError> {
    let found = std::fs::metadata(folder.file(STATE)).map_err(RuntimeError::io("cannot read the memory"))?.len();
    if saved.args.is_empty() || saved.machine.is_empty() {
        return Err(LoadError::Broken(format!("{ABOUT} cannot be read")));
    }
    if found != saved.bytes {
        return Err(LoadError::Broken(format!("its file has {found} bytes, and {} were written", saved.bytes)));
    }
    Ok(())
}

async fn send(folder: &Folder, qmp: &Qmp) -> Result<(), LoadError> {
    let io = |what: &'static str| RuntimeError::io(format!("{what} {}", folder.path().display()));
    let mut file = tokio::fs::File::open(folder.file(STATE)).await.map_err(io("cannot read the memory in"))?;
    // Refused when an earlier worker asked for it and died: then it listens already.
    if let Err(error) = qmp.execute("migrate-incoming", json!({ "uri": format!("unix:{SOCKET}") })).await {
        tracing::debug!(%error, "QEMU may wait for the memory already");
    }
    let mut stream = folder.connect(SOCKET).await.map_err(io("QEMU does not take the memory in"))?;
    let mut block = vec![0; BLOCK];
    let mut refused = None;
    loop {
        let count = file.read(&mut block).await.map_err(io("cannot read the memory in"))?;
        let Some(data) = block.get(..count).filter(|data| !data.is_empty()) else { break };
        match timeout(STALL_LIMIT, stream.write_all(data)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                refused = Some(error);
                break;
            }
            Err(_) => {
                let seconds = STALL_LIMIT.as_secs();
                return Err(RuntimeError::Timeout(format!("QEMU has taken nothing more of it for {seconds} s")).into());
            }
        }
    }
    let _ = stream.shutdown().await;
    if let Some(error) = refused {
        return Err(LoadError::Broken(format!("QEMU took only a part of it ({error})")));
    }
    let deadline = Instant::now() + SETTLE_LIMIT;
    loop {
        match status(qmp).await {
            Ok(status) if status != "inmigrate" => return Ok(()),
            Ok(_) if Instant::now() > deadline => {
                return Err(RuntimeError::Timeout("QEMU has all of it and does not go on".to_owned()).into());
            }
            Ok(_) => tokio::time::sleep(PAUSE).await,
            Err(error @ RuntimeError::Timeout(_)) => return Err(error.into()),
            // It ends at once when it cannot make sense of it.
            Err(_) => return Err(LoadError::Broken("QEMU cannot make sense of it".to_owned())),
        }
    }
}

/// What QEMU says that the guest does.
///
/// # Errors
/// As [`Qmp::execute`].
pub async fn status(qmp: &Qmp) -> Result<String, RuntimeError> {
    let about = qmp.execute("query-status", json!({})).await?;
    Ok(about.get("status").and_then(Value::as_str).unwrap_or_default().to_owned())
}

fn said(about: &Value, bytes: u64) -> String {
    let of = |name: &str| about.get("ram").and_then(|ram| ram.get(name)).and_then(Value::as_u64);
    let percent = of("total")
        .zip(of("remaining"))
        .filter(|(total, _)| *total > 0)
        .map(|(total, remaining)| u128::from(total.saturating_sub(remaining)) * 100 / u128::from(total));
    let bytes = room::megabytes(bytes);
    percent.map_or_else(
        || format!("writing the memory: {bytes}"),
        |percent| format!("writing the memory: {percent} % ({bytes} so far)"),
    )
}

fn remove(path: &Path) -> Result<(), RuntimeError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(RuntimeError::io(format!("cannot remove {}", path.display()))(error))
        }
        _ => Ok(()),
    }
}

fn sync(folder: &Folder) -> Result<(), RuntimeError> {
    match sync_folder(folder.path()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        synced => synced.map_err(RuntimeError::io(format!("cannot sync {}", folder.path().display()))),
    }
}

#[cfg(test)]
mod tests;
