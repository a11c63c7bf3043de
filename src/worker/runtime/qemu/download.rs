//! Downloads an image, over as many connections as it takes: what has arrived is kept in `KEY.part`, also when the worker ends
//! or the VM is not wanted any more, and the next request asks for the rest only, on condition that it is still the same
//! file (`If-Range`). Called by `image.rs`, once at a time for an address.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{StatusCode, Url};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::super::fetches::Turn;
use super::super::{Progress, RuntimeError, room};
use super::fetch::{chain, told};
use crate::identity::write_private;

/// How often in a row a request may bring nothing new.
const TRIES: u32 = 6;
/// The pause before the second try; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// A server that sends less than [`SLOW_BYTES`] in this time is left, and asked again: another of its machines may do better.
const SLOW_TIME: Duration = Duration::from_secs(300);
/// Less is no download: a hundredth of what the slowest lines of today carry.
const SLOW_BYTES: u64 = 1 << 20;
/// How long a server may take to say whether it has another version.
const ASK_LIMIT: Duration = Duration::from_secs(30);
/// After how many bytes the room on the disk is looked at.
const LOOK_EVERY: u64 = 64 << 20;
/// What is read of a file, and written to it, at once.
const BLOCK: usize = 1 << 20;

/// A download that has begun, perhaps long ago.
#[derive(Debug)]
pub struct Download {
    folder: PathBuf,
    data: PathBuf,
    note: PathBuf,
    /// Held by each write, also by one that goes on for a moment after its download was cancelled.
    turn: Turn,
}

/// What the bytes in `KEY.part` are the beginning of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Version {
    /// What the server calls it: a strong entity tag or a date. None = it cannot be told from another.
    validator: Option<String>,
    total: Option<u64>,
}

/// What has arrived of a version.
struct Arrived {
    version: Version,
    bytes: u64,
    hasher: Sha256,
}

/// A file that has arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    /// In lower-case hex.
    pub sha256: String,
    /// What the server calls this version of it; none = it cannot be told from another.
    pub validator: Option<String>,
}

impl Whole {
    fn of(arrived: Arrived) -> Self {
        Self { sha256: HEXLOWER.encode(&arrived.hasher.finalize()), validator: arrived.version.validator }
    }
}

/// How a request went that did not bring all of it.
enum Trouble {
    /// Another may do better.
    Again(String),
    /// So it may, but what this one brought is as good as nothing.
    Slow(String),
    /// None will.
    Final(RuntimeError),
}

impl Download {
    /// That of the address with this key, of which there is one at a time: whose `turn` it is.
    pub fn of(folder: &Path, key: &str, turn: Turn) -> Self {
        let (data, note) = (folder.join(format!("{key}.part")), folder.join(format!("{key}.part.json")));
        Self { folder: folder.to_owned(), data, note, turn }
    }

    /// The file, once it is whole.
    pub fn path(&self) -> &Path {
        &self.data
    }

    /// Forgets what has arrived.
    pub fn discard(&self) {
        let _ = std::fs::remove_file(&self.data);
        let _ = std::fs::remove_file(&self.note);
    }

    /// Brings all of it into the file. `make_room` is told how many bytes are still to come, if that is
    /// known. Cancel safe: what has arrived stays for the next.
    ///
    /// # Errors
    /// [`RuntimeError::Image`] naming `shown`; [`RuntimeError::Io`] or [`RuntimeError::State`] when the disk fails or is
    /// full.
    pub async fn run(
        &self,
        client: &reqwest::Client,
        url: &Url,
        shown: &str,
        progress: &Progress,
        make_room: &(dyn Fn(u64) -> Result<(), RuntimeError> + Sync),
    ) -> Result<Whole, RuntimeError> {
        let mut arrived = self.arrived().await;
        if arrived.bytes > 0 && arrived.version.total == Some(arrived.bytes) {
            return Ok(Whole::of(arrived));
        }
        let (mut furthest, mut failed) = (arrived.bytes, 0);
        loop {
            let trouble = match self.request(client, url, progress, &mut arrived, make_room).await {
                Ok(()) => return Ok(Whole::of(arrived)),
                Err(trouble) => trouble,
            };
            let moved = arrived.bytes > furthest && !matches!(trouble, Trouble::Slow(_));
            let why = match trouble {
                Trouble::Again(why) | Trouble::Slow(why) => why,
                Trouble::Final(RuntimeError::Image(why)) => {
                    return Err(RuntimeError::Image(format!("cannot download {shown}: {why}")));
                }
                Trouble::Final(error) => return Err(error),
            };
            failed = if moved { 1 } else { failed + 1 };
            furthest = furthest.max(arrived.bytes);
            if failed >= TRIES {
                let of = arrived.version.total.map(|total| format!(" of {total}")).unwrap_or_default();
                return Err(RuntimeError::Image(format!(
                    "cannot download {shown}: {why}; {furthest}{of} bytes had arrived, and {TRIES} tries brought no more to speak of"
                )));
            }
            tracing::info!(image = shown, bytes = arrived.bytes, why, "the download broke off and is tried again");
            progress.say(format!(
                "{}; it broke off and is tried again: {why}",
                told("downloading", arrived.bytes, arrived.version.total)
            ));
            tokio::time::sleep(FIRST_PAUSE * 2u32.pow(failed.saturating_sub(1).min(TRIES))).await;
        }
    }

    async fn request(
        &self,
        client: &reqwest::Client,
        url: &Url,
        progress: &Progress,
        arrived: &mut Arrived,
        make_room: &(dyn Fn(u64) -> Result<(), RuntimeError> + Sync),
    ) -> Result<(), Trouble> {
        let again = |error: reqwest::Error| Trouble::Again(chain(&error.without_url()));
        let mut request = client.get(url.clone());
        if let Some(validator) = arrived.version.validator.as_deref().filter(|_| arrived.bytes > 0)
            && let Ok(validator) = HeaderValue::from_str(validator)
        {
            request =
                request.header(header::RANGE, format!("bytes={}-", arrived.bytes)).header(header::IF_RANGE, validator);
        }
        let mut answer = request.send().await.map_err(|error| match error.is_builder() || error.is_redirect() {
            true => Trouble::Final(RuntimeError::Image(chain(&error.without_url()))),
            false => again(error),
        })?;
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => {
                let (start, total) = content_range(answer.headers()).unwrap_or((u64::MAX, None));
                let same = total.is_none() || arrived.version.total.is_none() || total == arrived.version.total;
                if start != arrived.bytes || arrived.bytes == 0 || !same {
                    self.restart(arrived, Version::default())?;
                    return Err(Trouble::Again("the server sent another part than it was asked for".to_owned()));
                }
            }
            StatusCode::OK => {
                let version = Version { validator: validator(answer.headers()), total: answer.content_length() };
                self.restart(arrived, version)?;
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                self.restart(arrived, Version::default())?;
                return Err(Trouble::Again("the server has less than has arrived already".to_owned()));
            }
            status if status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429) => {
                return Err(Trouble::Again(format!("the server answered {status}")));
            }
            status => return Err(Trouble::Final(RuntimeError::Image(format!("the server answered {status}")))),
        }
        if let Some(total) = arrived.version.total {
            make_room(total.saturating_sub(arrived.bytes)).map_err(Trouble::Final)?;
        }
        let full = |error| Trouble::Final(room::explain(&self.folder, "the image", error));
        let (mut looked, mut waiting) = (arrived.bytes, Vec::with_capacity(BLOCK));
        let mut pace = Pace { since: Instant::now(), bytes: arrived.bytes };
        let outcome = loop {
            let chunk = match answer.chunk().await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break Ok(()),
                Err(error) => break Err(again(error)),
            };
            waiting.extend_from_slice(&chunk);
            let bytes = arrived.bytes.saturating_add(waiting.len() as u64);
            if arrived.version.total.is_some_and(|total| bytes > total) {
                self.restart(arrived, Version::default())?;
                return Err(Trouble::Again("the server sent more than it had announced".to_owned()));
            }
            progress.say(told("downloading", bytes, arrived.version.total));
            if pace.is_too_slow(bytes, Instant::now()) {
                let minutes = SLOW_TIME.as_secs() / 60;
                break Err(Trouble::Slow(format!(
                    "less than {} came in {minutes} minutes",
                    room::megabytes(SLOW_BYTES)
                )));
            }
            if waiting.len() >= BLOCK {
                self.append(arrived, &mut waiting).await.map_err(full)?;
            }
            if arrived.bytes - looked >= LOOK_EVERY {
                looked = arrived.bytes;
                room::check(&self.folder, 0, "the image").map_err(Trouble::Final)?;
            }
        };
        self.append(arrived, &mut waiting).await.map_err(full)?;
        outcome?;
        if arrived.version.total.is_some_and(|total| total != arrived.bytes) {
            return Err(Trouble::Again(format!("it ended early, after {} bytes", arrived.bytes)));
        }
        let data = self.data.clone();
        self.blocking(move || File::open(data)?.sync_all()).await.map_err(full)
    }

    /// Writes what waits.
    async fn append(&self, arrived: &mut Arrived, waiting: &mut Vec<u8>) -> io::Result<()> {
        let (bytes, data) = (std::mem::replace(waiting, Vec::with_capacity(BLOCK)), self.data.clone());
        let (count, mut hasher) = (bytes.len() as u64, arrived.hasher.clone());
        arrived.hasher = self
            .blocking(move || {
                File::options().append(true).open(data)?.write_all(&bytes)?;
                hasher.update(&bytes);
                Ok(hasher)
            })
            .await?;
        arrived.bytes = arrived.bytes.saturating_add(count);
        Ok(())
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let turn = self.turn.clone();
        let done = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(turn);
            result
        });
        done.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    /// Begins from nothing.
    fn restart(&self, arrived: &mut Arrived, version: Version) -> Result<(), Trouble> {
        let failed = |error| Trouble::Final(room::explain(&self.folder, "the image", error));
        // The note first: bytes without one are of no use, and bytes of one version must never go on as another.
        let _ = std::fs::remove_file(&self.note);
        File::create(&self.data).map_err(failed)?;
        if version.validator.is_some() {
            let text = serde_json::to_vec(&version).unwrap_or_default();
            write_private(&self.note, &text).map_err(failed)?;
        }
        *arrived = Arrived { version, bytes: 0, hasher: Sha256::new() };
        Ok(())
    }

    /// What an earlier try has left.
    async fn arrived(&self) -> Arrived {
        let note = std::fs::read(&self.note).ok();
        let version = note.and_then(|note| serde_json::from_slice::<Version>(&note).ok());
        let data = self.data.clone();
        let read = self.blocking(move || {
            let (mut hasher, mut bytes) = (Sha256::new(), 0u64);
            let mut file = File::options().read(true).append(true).open(data)?;
            let mut block = vec![0; BLOCK];
            loop {
                if bytes.is_multiple_of(LOOK_EVERY) {
                    // It is of use again: see leftovers.rs.
                    file.set_modified(SystemTime::now())?;
                }
                match file.read(&mut block)? {
                    0 => return Ok((bytes, hasher)),
                    count => {
                        hasher.update(block.get(..count).unwrap_or_default());
                        bytes += count as u64;
                    }
                }
            }
        });
        match (version, read.await) {
            (Some(version), Ok((bytes, hasher))) => Arrived { version, bytes, hasher },
            _ => {
                self.discard();
                Arrived { version: Version::default(), bytes: 0, hasher: Sha256::new() }
            }
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // What cannot be gone on with only takes room.
        if !self.note.exists() {
            let _ = std::fs::remove_file(&self.data);
        }
    }
}

/// Whether the server says that it still has the version with this validator. False when it does not say, for whatever
/// reason: who then asks for all of it learns why.
pub async fn is_current(client: &reqwest::Client, url: &Url, validator: &str) -> bool {
    let condition = if validator.starts_with('"') { header::IF_NONE_MATCH } else { header::IF_MODIFIED_SINCE };
    let answer = client.get(url.clone()).header(condition, validator).send();
    let answer = tokio::time::timeout(ASK_LIMIT, answer).await;
    matches!(answer, Ok(Ok(answer)) if answer.status() == StatusCode::NOT_MODIFIED)
}

/// How much came since when.
struct Pace {
    since: Instant,
    bytes: u64,
}

impl Pace {
    /// Whether the time is over in which more should have come than up to `bytes`.
    fn is_too_slow(&mut self, bytes: u64, now: Instant) -> bool {
        if now.duration_since(self.since) < SLOW_TIME {
            return false;
        }
        let came = bytes.saturating_sub(self.bytes);
        *self = Self { since: now, bytes };
        came < SLOW_BYTES
    }
}

/// By what a later request can ask for the rest of this file and no other: a strong entity tag, or else the date. A weak tag
/// may stand for files that differ.
fn validator(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    match text(header::ETAG) {
        Some(tag) if tag.starts_with('"') => Some(tag),
        _ => text(header::LAST_MODIFIED),
    }
}

/// Where a part begins, and how long the whole is.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (part, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let start = part.split_once('-')?.0.trim().parse().ok()?;
    match total.trim() {
        "*" => Some((start, None)),
        total => Some((start, Some(total.parse().ok()?))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(header::HeaderName, &str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn only_what_tells_two_files_apart_is_used_to_ask_for_the_rest() {
        let date = (header::LAST_MODIFIED, "Mon, 23 Nov 2026 00:00:00 GMT");
        assert_eq!(validator(&headers(&[(header::ETAG, "\"a\""), date.clone()])).unwrap(), "\"a\"");
        assert_eq!(validator(&headers(&[(header::ETAG, "W/\"a\""), date.clone()])).unwrap(), date.1);
        assert_eq!(validator(&headers(&[(header::ETAG, "W/\"a\"")])), None);
    }

    #[test]
    fn a_trickle_is_too_slow_and_a_slow_line_is_not() {
        let start = Instant::now();
        let mut pace = Pace { since: start, bytes: 5 };
        assert!(!pace.is_too_slow(5, start + SLOW_TIME / 2));
        assert!(!pace.is_too_slow(5 + SLOW_BYTES, start + SLOW_TIME));
        assert!(!pace.is_too_slow(5 + SLOW_BYTES, start + SLOW_TIME * 3 / 2), "counted anew");
        assert!(pace.is_too_slow(4 + SLOW_BYTES * 2, start + SLOW_TIME * 2));
    }

    #[test]
    fn parts_are_read_and_nonsense_is_none() {
        let read = |text: &str| content_range(&headers(&[(header::CONTENT_RANGE, text)]));
        assert_eq!(read("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(read("bytes 5-9/*"), Some((5, None)));
        for nonsense in ["", "bytes */10", "5-9/10", "bytes 5-9", "bytes x-9/10", "bytes 5-9/banana", "bytes -5-9/10"] {
            assert_eq!(read(nonsense), None, "{nonsense}");
        }
    }
}
