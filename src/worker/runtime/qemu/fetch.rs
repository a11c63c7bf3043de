//! Brings the bytes of an image into a file of our own by copy (or reflink) from a path, hashing them on the way; and what
//! `download.rs`, which brings them from a web address, has in common with that. Called by `image.rs`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use super::super::room::{self, megabytes};
use super::super::{Progress, RuntimeError};

/// A name server, network or web server that does not let us connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// A download of which nothing has arrived for so long is given up.
const STALL_LIMIT: Duration = Duration::from_secs(60);
/// What is read from a file at once.
const BLOCK: usize = 256 << 10;

/// A file being written; removed when dropped, unless it has been renamed away.
#[derive(Debug)]
pub struct Part(PathBuf);

static PARTS: AtomicU64 = AtomicU64::new(0);

impl Part {
    /// A name of its own in `folder`, by the process that it is of.
    pub fn new(folder: &Path) -> Self {
        let number = PARTS.fetch_add(1, Ordering::Relaxed);
        Self(folder.join(format!("{}-{number}.part", std::process::id())))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The web client for images.
///
/// # Errors
/// When the system's certificates cannot be used.
pub fn client() -> Result<reqwest::Client, RuntimeError> {
    // Only the first call in a process has an effect, and nothing else than this provider is ever installed.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    reqwest::Client::builder()
        .connect_timeout(CONNECT_LIMIT)
        .read_timeout(STALL_LIMIT)
        .user_agent(concat!("orchard/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| RuntimeError::Image(format!("cannot fetch images: {}", chain(&error))))
}

/// Copies a file into `part`; yields the SHA-256 of the copy. Cancel safe: the copying thread stops soon after.
///
/// # Errors
/// [`RuntimeError::Io`] of either file.
pub async fn copy(from: PathBuf, part: &Part, progress: &Progress) -> Result<String, RuntimeError> {
    struct Stop(Arc<AtomicBool>);
    impl Drop for Stop {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = Stop(Arc::default());
    let (stopped, progress, to) = (stop.0.clone(), progress.clone(), part.path().to_owned());
    let copied = tokio::task::spawn_blocking(move || copy_blocking(&from, &to, &stopped, &progress));
    copied.await.unwrap_or_else(|error| Err(RuntimeError::io("the copy of the image")(io::Error::other(error))))
}

fn copy_blocking(from: &Path, to: &Path, stop: &AtomicBool, progress: &Progress) -> Result<String, RuntimeError> {
    let mut source = File::open(from).map_err(io_error(from))?;
    let total = source.metadata().map_err(io_error(from))?.len();
    let mut target = File::options().read(true).write(true).create_new(true).open(to).map_err(io_error(to))?;
    // On file systems that can share blocks the copy takes no time and no space; then the hash is read from the copy,
    // which nobody else can change.
    let shared = reflink(&target, &source);
    let mut hasher = Sha256::new();
    let mut block = vec![0; BLOCK];
    let mut done = 0u64;
    loop {
        if stop.load(Ordering::Relaxed) {
            let _ = std::fs::remove_file(to); // made after its Part was dropped, perhaps
            return Err(RuntimeError::State("the creation was cancelled".to_owned()));
        }
        let read = if shared { target.read(&mut block) } else { source.read(&mut block) };
        let bytes = match read {
            Ok(0) => break,
            Ok(count) => block.get(..count).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(io_error(from)(error)),
        };
        hasher.update(bytes);
        done += bytes.len() as u64;
        if !shared {
            let skip = bytes.iter().all(|byte| *byte == 0); // holes stay holes
            let step = i64::try_from(bytes.len()).unwrap_or(0);
            let wrote = if skip { target.seek(SeekFrom::Current(step)).map(drop) } else { target.write_all(bytes) };
            wrote.map_err(|error| room::explain(to, "the image", error))?;
        }
        progress.say(told("importing", done, Some(total)));
    }
    target.set_len(done).and_then(|()| target.sync_all()).map_err(io_error(to))?;
    Ok(HEXLOWER.encode(&hasher.finalize()))
}

fn reflink(target: &File, source: &File) -> bool {
    #[cfg(target_os = "linux")]
    return rustix::fs::ioctl_ficlone(target, source).is_ok();
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (target, source);
        false
    }
}

/// How far it is, for people.
pub fn told(doing: &str, done: u64, total: Option<u64>) -> String {
    match total.filter(|total| *total > 0) {
        Some(total) => {
            let percent = u128::from(done) * 100 / u128::from(total);
            format!("{doing} the image: {percent} % ({} of {})", megabytes(done), megabytes(total))
        }
        None => format!("{doing} the image: {}", megabytes(done)),
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> RuntimeError {
    RuntimeError::io(path.display().to_string())
}

/// An error with its causes: reqwest's own text says only that something failed.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
