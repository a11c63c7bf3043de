//! The image store, `DATA/images`: each image once, by digest, read-only, so that no base ever changes under the VMs
//! that stand on it.
//!
//! An image is brought in at its first use. A second use of the same web address, or of a local file that has not
//! changed since (device, inode, size and times), finds it by its entry and costs a few milliseconds; so does one whose
//! digest is asked for and known. Two at once for the same source share one download, and only a few are brought in at a
//! time (`runtime/fetches.rs`); who takes over one that was cancelled goes on where that was.
//!
//! When there is no room for another, those go that no VM's disk stands on and that were not used for longest (prune.rs).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::super::fetches::{Fetched, Fetches, Turn, Urgency};
use super::super::prune::{self, Cached};
use super::super::room::{self, megabytes};
use super::super::{Progress, RuntimeError, tool};
use super::download::{self, Download, Whole};
use super::fetch::{self, Part};
use super::folder::Folder;
use super::leftovers;
use super::source::{Format, HEADER_LEN, Place, Source, inspect};
use crate::identity::{make_private_dir, write_private};

/// `qemu-img info` reads a header; a loaded host or a slow disk may take seconds.
const INFO_LIMIT: Duration = Duration::from_secs(30);

/// An image in the store; while this is held it is not removed.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its file in the store: `sha256-HEX.qcow2` or `….raw`.
    pub file: String,
    /// Where it came from this time, as people may see it.
    pub source: String,
    /// Its form.
    pub format: Format,
    /// The size of the disk it holds, in bytes.
    pub size: u64,
    _hold: Arc<()>,
}

/// What a source was found to be when it was brought in.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    /// For people who look.
    source: String,
    sha256: String,
    /// The image's, in the same folder.
    pub(super) file: String,
    size: u64,
    /// Of a local file: tells whether it is still the same.
    stamp: Option<String>,
    /// Of a download: what the server called that version of it. Not in entries of earlier releases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    validator: Option<String>,
}

/// The store.
#[derive(Debug)]
pub struct Images {
    folder: PathBuf,
    qemu_img: PathBuf,
    allowed: Option<PathBuf>,
    /// Bytes of the disk to keep free where removing images helps.
    keep_free: u64,
    client: reqwest::Client,
    fetches: Fetches,
    /// Files about to be used by VMs whose records do not say so yet. Also taken by whoever removes files.
    held: Mutex<HashMap<String, Weak<()>>>,
}

impl Images {
    /// Opens the store, making it if need be; with `tidy`, partial files of other processes are removed. Local images are taken
    /// from the folder `allowed` only, or from anywhere.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn open(
        folder: PathBuf,
        qemu_img: PathBuf,
        allowed: Option<PathBuf>,
        tidy: bool,
    ) -> Result<Self, RuntimeError> {
        make_private_dir(&folder).map_err(RuntimeError::io(format!("cannot make {}", folder.display())))?;
        if tidy {
            leftovers::remove_begun(&folder, leftovers::PART_AGE);
            leftovers::remove_unfinished(&folder);
        }
        let (client, fetches) = (fetch::client()?, Fetches::default());
        Ok(Self { folder, qemu_img, allowed, keep_free: 0, client, fetches, held: Mutex::default() })
    }

    /// Has so many bytes of the disk be kept free when images are brought in, where removing others helps.
    #[must_use]
    pub fn keeping_free(self, keep_free: u64) -> Self {
        Self { keep_free, ..self }
    }

    /// The image that a user's text names, brought in if it is not here. Cancel safe.
    ///
    /// # Errors
    /// [`RuntimeError::Image`] when it cannot be had or used.
    pub async fn get(&self, text: &str, progress: &Progress) -> Result<Image, RuntimeError> {
        self.have(text, Urgency::Needed, false, progress).await
    }

    /// The same, but a web server is asked whether it has another by now under the same address.
    ///
    /// # Errors
    /// As for [`Images::get`]; also when the server cannot be asked.
    pub async fn get_newest(&self, text: &str, progress: &Progress) -> Result<Image, RuntimeError> {
        self.have(text, Urgency::Needed, true, progress).await
    }

    /// The same as [`Images::get`] ahead of need: VMs are not kept waiting by it.
    ///
    /// # Errors
    /// As for [`Images::get`].
    pub async fn pull(&self, text: &str, progress: &Progress) -> Result<Image, RuntimeError> {
        self.have(text, Urgency::Ahead, false, progress).await
    }

    async fn have(
        &self,
        text: &str,
        urgency: Urgency,
        newest: bool,
        progress: &Progress,
    ) -> Result<Image, RuntimeError> {
        let source = Source::parse(text)?;
        // A local file is looked at each time, and what has a certain digest never changes.
        let mut ask = newest && source.sha256.is_none() && matches!(source.place, Place::Web(_));
        let stamp = match &source.place {
            Place::File(path) => Some(self.stamp(path)?),
            Place::Web(_) => None,
        };
        let key = match &source.place {
            Place::File(path) => HEXLOWER.encode(&Sha256::digest(path.as_os_str().as_encoded_bytes())),
            Place::Web(url) => HEXLOWER.encode(&Sha256::digest(url.as_str().as_bytes())),
        };
        loop {
            if let Some(image) = self.at_hand(&key, &source, stamp.as_deref())
                && (!ask || self.is_newest(&key, &source).await)
            {
                return Ok(image);
            }
            let bring = |progress, turn| self.bring(&key, &source, (stamp.clone(), ask), progress, turn);
            if let Fetched::Here(image) = self.fetches.fetch((&key, urgency), progress, bring).await? {
                return Ok(image);
            }
            // What another call brought may be another version than is asked for here; but it is a new one.
            ask = false;
        }
    }

    /// The image, if it is here already.
    fn at_hand(&self, key: &str, source: &Source, stamp: Option<&str>) -> Option<Image> {
        self.known(&self.entry_path(key), source, stamp)
            .or_else(|| source.sha256.as_deref().and_then(|wanted| self.by_digest(wanted, source)))
    }

    fn entry_path(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.json"))
    }

    /// Whether the server of a web address still has what was brought from there.
    async fn is_newest(&self, key: &str, source: &Source) -> bool {
        let Place::Web(url) = &source.place else { return true };
        let validator = read_entry(&self.entry_path(key)).and_then(|entry| entry.validator);
        match validator {
            Some(validator) => download::is_current(&self.client, url, &validator).await,
            None => false,
        }
    }

    /// Brings it in, at most once at a time for a key: whose `turn` it is. `anew`: what is here is not good enough.
    async fn bring(
        &self,
        key: &str,
        source: &Source,
        (stamp, anew): (Option<String>, bool),
        progress: Progress,
        turn: Turn,
    ) -> Result<Image, RuntimeError> {
        // Another call may have been done with it just before this one came to wait.
        if !anew && let Some(image) = self.at_hand(key, source, stamp.as_deref()) {
            return Ok(image);
        }
        let entry_path = self.entry_path(key);
        match &source.place {
            Place::File(path) => {
                let part = Part::new(&self.folder);
                self.make_room(std::fs::metadata(path).map_or(0, |file| file.len()))?;
                let sha256 = fetch::copy(path.clone(), &part, &progress).await?;
                if Some(self.stamp(path)?) != stamp {
                    let shown = source.shown();
                    return Err(RuntimeError::Image(format!("image {shown} changed while it was read; try again")));
                }
                let whole = Whole { sha256, validator: None };
                self.keep(part.path(), &entry_path, source, whole, stamp, &progress).await
            }
            Place::Web(url) => {
                let download = Download::of(&self.folder, key, turn);
                let make_room = |bytes| self.make_room(bytes);
                let whole = download.run(&self.client, url, &source.shown(), &progress, &make_room).await?;
                let kept = self.keep(download.path(), &entry_path, source, whole, stamp, &progress).await;
                // Whatever it is, more of it would not help; and if it was kept, it has moved away.
                download.discard();
                kept
            }
        }
    }

    /// Checks what was brought in, and makes an image of the store of it.
    async fn keep(
        &self,
        part: &Path,
        entry_path: &Path,
        source: &Source,
        Whole { sha256, validator }: Whole,
        stamp: Option<String>,
        progress: &Progress,
    ) -> Result<Image, RuntimeError> {
        if let Some(wanted) = &source.sha256
            && *wanted != sha256
        {
            let shown = source.shown();
            return Err(RuntimeError::Image(format!("image {shown} has SHA-256 {sha256}, not {wanted} as asked for")));
        }
        progress.say("checking the image");
        let (format, size) = self.check(part, &source.shown()).await?;
        let file = format!("sha256-{sha256}.{}", format.as_str());
        let target = self.folder.join(&file);
        let hold = hold(&mut self.held(), &file);
        let image = Image { file: file.clone(), source: source.shown(), format, size, _hold: hold };
        if !target.exists() {
            let keep = std::fs::set_permissions(part, std::fs::Permissions::from_mode(0o444))
                .and_then(|()| std::fs::rename(part, &target));
            keep.map_err(RuntimeError::io(format!("cannot keep {}", target.display())))?;
        }
        let entry = Entry { source: source.shown(), sha256, file, size, stamp, validator };
        let text = serde_json::to_vec_pretty(&entry).unwrap_or_default();
        write_private(entry_path, &text).map_err(RuntimeError::io(format!("cannot write {}", entry_path.display())))?;
        Ok(image)
    }

    /// What the cache holds.
    ///
    /// # Errors
    /// When its folder cannot be read.
    pub fn list(&self) -> Result<Vec<Cached>, RuntimeError> {
        self.listed(&self.held())
    }

    fn listed(&self, held: &HashMap<String, Weak<()>>) -> Result<Vec<Cached>, RuntimeError> {
        let what = || format!("cannot list {}", self.folder.display());
        // In this order: whoever lets go of a file has written it into a record before.
        let held: BTreeSet<&str> =
            held.iter().filter(|(_, hold)| hold.strong_count() > 0).map(|(file, _)| file.as_str()).collect();
        let used = self.used();
        let mut found = BTreeMap::new();
        let (mut entries, read) = (Vec::new(), std::fs::read_dir(&self.folder).map_err(RuntimeError::io(what()))?);
        for path in read.flatten().map(|entry| entry.path()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let Ok(about) = std::fs::metadata(&path) else { continue };
            let seconds = since_epoch(&about);
            if name.starts_with("sha256-") {
                // When it cannot be known, each counts as in use.
                let in_use = held.contains(name.as_str()) || used.as_ref().is_none_or(|used| used.contains(&name));
                let bytes = about.blocks().saturating_mul(512);
                let image = Cached { file: name.clone(), sources: Vec::new(), bytes, last_used: seconds, in_use };
                found.insert(name, image);
            } else if let Some(entry) = read_entry(&path) {
                entries.push((entry, seconds));
            }
        }
        for (entry, seconds) in entries {
            if let Some(image) = found.get_mut(&entry.file) {
                image.last_used = image.last_used.max(seconds);
                image.sources.push(entry.source);
            }
        }
        Ok(found.into_values().collect())
    }

    /// Sees to it that `bytes` more can be brought in, and that as much stays free beside as the operator wants, if that
    /// can be had.
    fn make_room(&self, bytes: u64) -> Result<(), RuntimeError> {
        let least = bytes.saturating_add(room::RESERVE);
        let wished = bytes.saturating_add(self.keep_free.max(room::RESERVE));
        if room::of(&self.folder).is_some_and(|(free, _)| free < wished) {
            self.remove(|images, free| match prune::choose(images, free, wished) {
                // All of it is not to be had; what must be, perhaps.
                chosen if chosen.is_empty() => prune::choose(images, free, least),
                chosen => chosen,
            })?;
        }
        room::check(&self.folder, bytes, "the image")
    }

    /// Removes images that are not in use, those first that were not used for longest, until `keep_free` bytes are free or
    /// there are no more; yields what was removed, for people.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn prune(&self, keep_free: u64) -> Result<Vec<String>, RuntimeError> {
        if room::of(&self.folder).is_none_or(|(free, _)| free >= keep_free) {
            return Ok(Vec::new());
        }
        self.remove(|images, free| prune::choose_up_to(images, free, keep_free))
    }

    /// Removes those that `choose` names, out of all there are and what is free.
    fn remove(
        &self,
        choose: impl for<'a> FnOnce(&'a [Cached], u64) -> Vec<&'a Cached>,
    ) -> Result<Vec<String>, RuntimeError> {
        // They can be had again, and nobody misses them.
        if leftovers::remove_begun(&self.folder, leftovers::PART_AGE_IN_NEED) > 0 {
            tracing::info!("removed beginnings of downloads that nobody went on with, as the disk is short of room");
        }
        // Under the lock, so that nobody begins to use one of them meanwhile.
        let held = self.held();
        let Some((free, _)) = room::of(&self.folder) else { return Ok(Vec::new()) };
        let images = self.listed(&held)?;
        let mut removed = Vec::new();
        for image in choose(&images, free) {
            let (file, bytes) = (image.file.as_str(), megabytes(image.bytes));
            match std::fs::remove_file(self.folder.join(file)) {
                Ok(()) => removed.push(format!("{} ({bytes})", image.name())),
                Err(error) => tracing::warn!(file, %error, "cannot remove an image from the cache"),
            }
        }
        if !removed.is_empty() {
            leftovers::remove_entries(&self.folder);
            tracing::info!(images = removed.join(", "), "removed from the image cache, as the disk is short of room");
        }
        Ok(removed)
    }

    /// The files that VMs' disks stand on; `None` when that of some cannot be known.
    fn used(&self) -> Option<BTreeSet<String>> {
        let vms = self.folder.parent()?.join("vms");
        let mut used = BTreeSet::new();
        let entries = match std::fs::read_dir(&vms) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Some(used),
            // Not none, but not known: a disk would lose what it stands on.
            Err(_) => return None,
        };
        for entry in entries {
            let Some(id) = Folder::parse_name(&entry.ok()?.file_name().to_string_lossy()) else { continue };
            let folder = Folder::of(&vms, id);
            match folder.record() {
                Some(record) => drop(used.insert(record.image)),
                None if folder.file(super::folder::DISK).exists() => return None,
                None => {}
            }
        }
        Some(used)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<String, Weak<()>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, path: &Path, source: &Source, stamp: Option<&str>) -> Option<Image> {
        let entry = read_entry(path)?;
        let same =
            entry.stamp.as_deref() == stamp && source.sha256.as_ref().is_none_or(|wanted| *wanted == entry.sha256);
        if same { self.take(path, entry, source) } else { None }
    }

    /// An image known by its bytes, wherever it came from.
    fn by_digest(&self, sha256: &str, source: &Source) -> Option<Image> {
        let paths = std::fs::read_dir(&self.folder).ok()?.flatten().map(|entry| entry.path());
        let mut entries = paths.filter_map(|path| read_entry(&path).map(|entry| (path, entry)));
        let (path, entry) = entries.find(|(_, entry)| entry.sha256 == sha256)?;
        self.take(&path, entry, source)
    }

    /// The image of an entry, if it is still there; notes that it is used.
    fn take(&self, path: &Path, entry: Entry, source: &Source) -> Option<Image> {
        let mut held = self.held();
        if !self.folder.join(&entry.file).exists() {
            return None;
        }
        let touched =
            std::fs::File::options().append(true).open(path).and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = touched {
            tracing::debug!(%error, "cannot note that an image is used");
        }
        let format = if entry.file.ends_with(".raw") { Format::Raw } else { Format::Qcow2 };
        let hold = hold(&mut held, &entry.file);
        Some(Image { file: entry.file, source: source.shown(), format, size: entry.size, _hold: hold })
    }

    /// Tells one state of a local file from every other.
    fn stamp(&self, path: &Path) -> Result<String, RuntimeError> {
        let shown = path.display();
        let file = std::fs::metadata(path)
            .map_err(|error| RuntimeError::Image(format!("image {shown} cannot be read on this worker: {error}")))?;
        if !file.is_file() {
            return Err(RuntimeError::Image(format!("image {shown} is not a regular file")));
        }
        if let Some(allowed) = &self.allowed {
            let real = |path: &Path| std::fs::canonicalize(path).ok();
            if !real(path).zip(real(allowed)).is_some_and(|(path, allowed)| path.starts_with(allowed)) {
                let allowed = allowed.display();
                return Err(RuntimeError::Image(format!(
                    "image {shown} lies outside {allowed}, the only folder this worker takes local images from"
                )));
            }
        }
        let (modified, changed) = ((file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec()));
        Ok(format!("{}:{}:{}:{modified:?}:{changed:?}", file.dev(), file.ino(), file.len()))
    }

    /// The form of an image file and the size of the disk in it.
    async fn check(&self, file: &Path, shown: &str) -> Result<(Format, u64), RuntimeError> {
        use std::io::Read;
        let read = || -> std::io::Result<(Vec<u8>, u64)> {
            let file = std::fs::File::open(file)?;
            let len = file.metadata()?.len();
            let mut header = Vec::with_capacity(HEADER_LEN);
            file.take(HEADER_LEN as u64).read_to_end(&mut header)?;
            Ok((header, len))
        };
        let (header, len) = read().map_err(RuntimeError::io(format!("cannot read image {shown}")))?;
        let format = inspect(&header, len).map_err(|why| RuntimeError::Image(format!("image {shown} {why}")))?;
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let args = ["info", "--output=json", "-f", format.as_str(), name];
        let info = tool::run(&self.qemu_img, &args, Some(&self.folder), INFO_LIMIT).await;
        let info = info.map_err(|error| RuntimeError::Image(format!("image {shown} is damaged: {error}")))?;
        let info: serde_json::Value = serde_json::from_str(&info)
            .map_err(|error| RuntimeError::Tool(format!("qemu-img info answered with no JSON: {error}")))?;
        if info.get("backing-filename").is_some() {
            return Err(RuntimeError::Image(format!("image {shown} builds on another image; flatten it first")));
        }
        let size = info.get("virtual-size").and_then(serde_json::Value::as_u64);
        size.map(|size| (format, size))
            .ok_or_else(|| RuntimeError::Tool("qemu-img info told no virtual-size".to_owned()))
    }
}

/// Keeps a file from being removed for as long as what it yields lives.
fn hold(held: &mut HashMap<String, Weak<()>>, file: &str) -> Arc<()> {
    held.retain(|_, hold| hold.strong_count() > 0);
    if let Some(hold) = held.get(file).and_then(Weak::upgrade) {
        return hold;
    }
    let hold = Arc::new(());
    held.insert(file.to_owned(), Arc::downgrade(&hold));
    hold
}

pub(super) fn read_entry(path: &Path) -> Option<Entry> {
    path.extension().filter(|end| *end == "json")?;
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn since_epoch(about: &std::fs::Metadata) -> u64 {
    let time = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    time.map_or(0, |time| time.as_secs())
}
