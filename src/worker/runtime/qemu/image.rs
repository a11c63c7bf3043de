//! The image store, `DATA/images`: each image once, by digest, read-only, so that no base ever changes under the VMs
//! that stand on it.
//!
//! An image is brought in at its first use. A second use of the same web address, or of a local file that has not
//! changed since (device, inode, size and times), finds it by its entry and costs a few milliseconds. Two at once for
//! the same source share one download: the second waits for the first, and takes over if that is cancelled.

use std::collections::HashMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::super::{Progress, RuntimeError, tool};
use super::fetch::{self, Part};
use super::source::{Format, HEADER_LEN, Place, Source, inspect};
use crate::identity::{make_private_dir, write_private};

/// `qemu-img info` reads a header; a loaded host or a slow disk may take seconds.
const INFO_LIMIT: Duration = Duration::from_secs(30);

/// An image in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Its file in the store: `sha256-HEX.qcow2` or `….raw`.
    pub file: String,
    /// Its form.
    pub format: Format,
    /// The size of the disk it holds, in bytes.
    pub size: u64,
}

/// What a source was found to be when it was brought in.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    /// For people who look.
    source: String,
    sha256: String,
    file: String,
    size: u64,
    /// Of a local file: tells whether it is still the same.
    stamp: Option<String>,
}

/// The store.
#[derive(Debug)]
pub struct Images {
    folder: PathBuf,
    qemu_img: PathBuf,
    allowed: Option<PathBuf>,
    client: reqwest::Client,
    busy: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
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
        let ours = format!("{}-", std::process::id());
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if tidy && name.ends_with(".part") && !name.starts_with(&ours) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(Self { folder, qemu_img, allowed, client: fetch::client()?, busy: Mutex::default() })
    }

    /// The image that a user's text names, brought in if it is not here. Cancel safe.
    ///
    /// # Errors
    /// [`RuntimeError::Image`] when it cannot be had or used.
    pub async fn get(&self, text: &str, progress: &Progress) -> Result<Image, RuntimeError> {
        let source = Source::parse(text)?;
        let stamp = match &source.place {
            Place::File(path) => Some(self.stamp(path)?),
            Place::Web(_) => None,
        };
        let key = match &source.place {
            Place::File(path) => HEXLOWER.encode(&Sha256::digest(path.as_os_str().as_encoded_bytes())),
            Place::Web(url) => HEXLOWER.encode(&Sha256::digest(url.as_str().as_bytes())),
        };
        let turn = self.turn(&key);
        let _turn = match turn.try_lock() {
            Ok(turn) => turn,
            Err(_) => {
                progress.say("waiting for the image, which is on its way for another VM");
                turn.lock().await
            }
        };
        let entry_path = self.folder.join(format!("{key}.json"));
        if let Some(image) = self.known(&entry_path, &source, stamp.as_deref()) {
            return Ok(image);
        }
        let part = Part::new(&self.folder);
        let sha256 = match &source.place {
            Place::File(path) => {
                let sha256 = fetch::copy(path.clone(), &part, progress).await?;
                if Some(self.stamp(path)?) != stamp {
                    let shown = source.shown();
                    return Err(RuntimeError::Image(format!("image {shown} changed while it was read; try again")));
                }
                sha256
            }
            Place::Web(url) => fetch::download(&self.client, url, &source.shown(), &part, progress).await?,
        };
        if let Some(wanted) = &source.sha256
            && *wanted != sha256
        {
            let shown = source.shown();
            return Err(RuntimeError::Image(format!("image {shown} has SHA-256 {sha256}, not {wanted} as asked for")));
        }
        progress.say("checking the image");
        let (format, size) = self.check(part.path(), &source.shown()).await?;
        let file = format!("sha256-{sha256}.{}", format.as_str());
        let target = self.folder.join(&file);
        if !target.exists() {
            let keep = std::fs::set_permissions(part.path(), std::fs::Permissions::from_mode(0o444))
                .and_then(|()| std::fs::rename(part.path(), &target));
            keep.map_err(RuntimeError::io(format!("cannot keep {}", target.display())))?;
        }
        let entry = Entry { source: source.shown(), sha256, file: file.clone(), size, stamp };
        let text = serde_json::to_vec_pretty(&entry).unwrap_or_default();
        write_private(&entry_path, &text)
            .map_err(RuntimeError::io(format!("cannot write {}", entry_path.display())))?;
        Ok(Image { file, format, size })
    }

    fn turn(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = busy.get(key).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        busy.insert(key.to_owned(), Arc::downgrade(&turn));
        turn
    }

    fn known(&self, entry: &Path, source: &Source, stamp: Option<&str>) -> Option<Image> {
        let entry: Entry = serde_json::from_slice(&std::fs::read(entry).ok()?).ok()?;
        let same =
            entry.stamp.as_deref() == stamp && source.sha256.as_ref().is_none_or(|wanted| *wanted == entry.sha256);
        let format = if entry.file.ends_with(".raw") { Format::Raw } else { Format::Qcow2 };
        (same && self.folder.join(&entry.file).exists()).then_some(Image { file: entry.file, format, size: entry.size })
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
