//! Lines of a startup script on the worker's disk until the controller has them: one file for each boot of a copy, written at
//! its end and sent from its beginning. Called by `worker::logs`, which knows when.
//!
//! A line of JSON for each, with its number: a worker that was killed sends again what stands there, and the controller
//! leaves out what it has. Nothing is synced. What a killed worker wrote is there; what was written last before its host
//! crashed may not be, and half a line at the end counts as none.
//!
//! What cannot be written, as the disk is full, is held in memory behind what stands in the file, and the log says so.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bus::log::{LogLine, MAX_LOG_BATCH, MAX_LOG_LINE};
use crate::model::event::LogStream;
use crate::model::{Boot, CopyId, Timestamp};

/// Which boot of which copy.
pub(super) type LogKey = (CopyId, Boot);

/// How a spool file's name ends.
const ENDING: &str = ".lines";
/// Bytes that are read at once. More than the longest line takes, of which each byte may be escaped to six.
const CHUNK: usize = 256 * 1024;
const _: () = assert!(CHUNK > 6 * MAX_LOG_LINE + 1024);
/// From this size on, a file whose lines are all acknowledged is cut to nothing; smaller ones are not worth the call.
const CUT_AT: u64 = 64 * 1024;

/// One line as it stands in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    #[serde(rename = "n")]
    number: u64,
    #[serde(rename = "t")]
    time: Timestamp,
    #[serde(rename = "s")]
    stream: LogStream,
    #[serde(rename = "x")]
    text: String,
}

impl Line {
    fn to_send(&self) -> LogLine {
        LogLine { stream: self.stream, text: self.text.clone(), time: Some(self.time) }
    }
}

/// Lines that follow each other, to be sent together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    /// Number of the first.
    pub(super) first: u64,
    /// At most [`MAX_LOG_BATCH`].
    pub(super) lines: Vec<LogLine>,
    /// Where the file goes on behind them; none = they are in memory.
    end: Option<u64>,
}

/// The lines of one boot that are not acknowledged yet.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    /// None when it could not be made.
    file: Option<File>,
    /// Bytes of whole lines in it.
    size: u64,
    /// Where the first line begins that is not acknowledged.
    read: u64,
    /// Number of the next line that comes.
    next: u64,
    /// What could not be written; newer than all in the file.
    memory: VecDeque<Line>,
    /// The log says already that the disk does not take it.
    complained: bool,
    /// It was removed, and takes nothing any more.
    removed: bool,
}

impl LogFile {
    /// A file for the lines of a boot that begins.
    pub(super) fn begin(folder: &Path, key: LogKey) -> Self {
        let path = path(folder, key);
        let mut new = Self::of(path);
        new.make();
        new
    }

    fn of(path: PathBuf) -> Self {
        let memory = VecDeque::new();
        Self { path, file: None, size: 0, read: 0, next: 0, memory, complained: false, removed: false }
    }

    /// What an earlier process of the worker has left at `path`: all whole lines of it.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub(super) fn adopt(path: PathBuf) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(&path)?;
        let (mut size, mut next) = (0, 0);
        let mut reader = BufReader::new(&file);
        let mut raw = Vec::new();
        while reader.read_until(b'\n', &mut raw)? > 0 {
            let Some(line) = decode(&raw).filter(|line| line.number >= next) else { break };
            size += length(&raw);
            next = line.number.saturating_add(1);
            raw.clear();
        }
        file.set_len(size)?;
        Ok(Self { file: Some(file), size, next, ..Self::of(path) })
    }

    /// Bytes on the disk.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Lines that are in memory alone.
    pub(super) fn in_memory(&self) -> usize {
        self.memory.len()
    }

    /// Takes lines in: into the file, or into memory if that cannot be written.
    pub(super) fn append(&mut self, lines: Vec<(LogStream, String)>, time: Timestamp) {
        if self.removed {
            return;
        }
        if self.memory.is_empty() {
            let Err(error) = self.write(&lines, time) else { return };
            self.complain(&error, time);
        }
        for (stream, text) in lines {
            self.remember(stream, text, time);
        }
    }

    fn write(&mut self, lines: &[(LogStream, String)], time: Timestamp) -> io::Result<()> {
        if self.file.is_none() {
            self.make();
        }
        let file = self.file.as_ref().ok_or_else(|| io::Error::other("it cannot be made"))?;
        let mut bytes = Vec::new();
        let mut next = self.next;
        for (stream, text) in lines {
            serde_json::to_writer(&mut bytes, &Line { number: next, time, stream: *stream, text: text.clone() })?;
            bytes.push(b'\n');
            next = next.saturating_add(1);
        }
        if let Err(error) = file.write_all_at(&bytes, self.size) {
            // Half of it may be there, and would be in the way of what is written next.
            let _ = file.set_len(self.size);
            return Err(error);
        }
        (self.size, self.next) = (self.size.saturating_add(length(&bytes)), next);
        Ok(())
    }

    fn make(&mut self) {
        let made = File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(&self.path);
        match made {
            Ok(file) => self.file = Some(file),
            Err(error) => tracing::warn!("cannot make {}: {error}", self.path.display()),
        }
    }

    fn complain(&mut self, error: &io::Error, time: Timestamp) {
        tracing::warn!("cannot keep log lines in {}: {error}", self.path.display());
        if !std::mem::replace(&mut self.complained, true) {
            let what = format!(
                "[orchard: the worker's disk does not take the lines that follow ({error}); until the controller has them, \
                 they are in the worker's memory alone]"
            );
            self.remember(LogStream::System, what, time);
        }
    }

    fn remember(&mut self, stream: LogStream, text: String, time: Timestamp) {
        self.memory.push_back(Line { number: self.next, time, stream, text });
        self.next = self.next.saturating_add(1);
    }

    /// What to send next; none when all is acknowledged.
    pub(super) fn batch(&mut self, now: Timestamp) -> Option<Batch> {
        if self.read < self.size {
            match self.batch_of_file() {
                Ok(batch) => return Some(batch),
                Err(error) => self.lose(&error, now),
            }
        }
        let first = self.memory.front()?.number;
        let mut room = CHUNK;
        let fits = |line: &&Line| {
            let bytes = line.text.len();
            let fits = bytes <= room;
            room = room.saturating_sub(bytes);
            fits
        };
        let lines = self.memory.iter().take(MAX_LOG_BATCH).take_while(fits).map(Line::to_send).collect();
        Some(Batch { first, lines, end: None })
    }

    fn batch_of_file(&self) -> io::Result<Batch> {
        let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let left = usize::try_from(self.size.saturating_sub(self.read)).unwrap_or(CHUNK);
        let mut bytes = vec![0; left.min(CHUNK)];
        file.read_exact_at(&mut bytes, self.read)?;
        let (mut first, mut lines, mut end) = (None, Vec::new(), self.read);
        for raw in bytes.split_inclusive(|byte| *byte == b'\n').take(MAX_LOG_BATCH) {
            let Some(line) = decode(raw) else { break };
            let first = *first.get_or_insert(line.number);
            if line.number != first.saturating_add(length(&lines)) {
                // What is missing in between does not make others of these.
                break;
            }
            lines.push(line.to_send());
            end += length(raw);
        }
        let first = first.ok_or(io::ErrorKind::InvalidData)?;
        Ok(Batch { first, lines, end: Some(end) })
    }

    /// The file cannot be read, so what is in it is lost; what follows is not.
    fn lose(&mut self, error: &io::Error, now: Timestamp) {
        tracing::error!("log lines are lost, as {} cannot be read: {error}", self.path.display());
        let what = format!("[orchard: lines are lost here, as the worker cannot read them from its disk: {error}]");
        let number = self.memory.front().map_or(self.next, |line| line.number.saturating_sub(1));
        self.next = self.next.max(number.saturating_add(1));
        self.memory.push_front(Line { number, time: now, stream: LogStream::System, text: what });
        self.cut();
    }

    /// The controller has `batch`, which was the newest given out.
    pub(super) fn acknowledge(&mut self, batch: &Batch) {
        match batch.end {
            Some(end) => self.read = self.read.max(end),
            None => drop(self.memory.drain(..batch.lines.len().min(self.memory.len()))),
        }
        if self.read >= self.size && self.size >= CUT_AT {
            self.cut();
        }
    }

    fn cut(&mut self) {
        if let Some(file) = &self.file
            && let Err(error) = file.set_len(0)
        {
            // It is written over from its beginning; what is behind that counts as torn.
            tracing::debug!("cannot cut {}: {error}", self.path.display());
        }
        (self.size, self.read) = (0, 0);
    }

    /// Removes the file; what is in it is not wanted any more.
    pub(super) fn remove(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
        (self.file, self.size, self.read) = (None, 0, 0);
        self.memory.clear();
        self.removed = true;
    }
}

/// The spool files in `folder`, with what they are of.
///
/// # Errors
/// Whatever the file system says.
pub(super) fn left_in(folder: &Path) -> io::Result<Vec<(LogKey, PathBuf)>> {
    let mut left = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        match path.file_name().and_then(|name| key_of(name.to_str()?)) {
            Some(key) => left.push((key, path)),
            None => tracing::warn!("{} is none of Orchard's, and is left alone", path.display()),
        }
    }
    left.sort_unstable();
    Ok(left)
}

fn path(folder: &Path, (id, boot): LogKey) -> PathBuf {
    folder.join(format!("{id}.{boot}{ENDING}"))
}

fn key_of(name: &str) -> Option<LogKey> {
    let (copy, boot) = name.strip_suffix(ENDING)?.rsplit_once('.')?;
    let (uid, attempt) = copy.rsplit_once('-')?;
    Some((CopyId { uid: uid.parse().ok()?, attempt: attempt.parse().ok()? }, boot.parse().ok()?))
}

fn decode(raw: &[u8]) -> Option<Line> {
    serde_json::from_slice(raw.strip_suffix(b"\n")?).ok()
}

fn length<T>(of: &[T]) -> u64 {
    u64::try_from(of.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
