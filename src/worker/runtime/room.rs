//! Room on the worker's disk, for every runtime that keeps images: looked at before and while much is written, so that one
//! image or one suspended guest does not take the last of it from VMs that run, whose guests would stand still.

use std::io;
use std::path::Path;

use super::RuntimeError;

/// What is left to the VMs that run, in bytes.
pub const RESERVE: u64 = 1 << 30;

/// How many bytes may still be written in a folder's file system, and how many there are; `None` when it does not say.
pub fn of(folder: &Path) -> Option<(u64, u64)> {
    let about = rustix::fs::statvfs(folder).ok()?;
    Some((about.f_bavail.saturating_mul(about.f_frsize), about.f_blocks.saturating_mul(about.f_frsize)))
}

/// Whether `bytes` more may be written in `folder`.
///
/// # Errors
/// [`RuntimeError::State`] with what is free and what is needed.
pub fn check(folder: &Path, bytes: u64, what: &str) -> Result<(), RuntimeError> {
    match of(folder) {
        Some((free, _)) if free < bytes.saturating_add(RESERVE) => Err(full(folder, free, bytes, what)),
        _ => Ok(()),
    }
}

fn full(folder: &Path, free: u64, bytes: u64, what: &str) -> RuntimeError {
    let needs = if bytes == 0 { String::new() } else { format!(" needs {} and", megabytes(bytes)) };
    RuntimeError::State(format!(
        "the disk of the worker is full: {what}{needs} must leave {} free, and {} are free in {}; delete VMs or images \
         there, or add a disk",
        megabytes(RESERVE),
        megabytes(free),
        folder.display()
    ))
}

/// A failure to write: that the disk is full is said as such.
pub fn explain(folder: &Path, what: &str, error: io::Error) -> RuntimeError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            full(folder, of(folder).map_or(0, |(free, _)| free), 0, what)
        }
        _ => RuntimeError::io(format!("cannot write {what} in {}", folder.display()))(error),
    }
}

/// An amount of bytes for people.
pub fn megabytes(bytes: u64) -> String {
    let tenths = bytes / 100_000;
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_said_with_what_is_free_and_what_is_needed() {
        let dir = tempfile::tempdir().unwrap();
        check(dir.path(), 0, "the image").unwrap();
        let error = check(dir.path(), u64::MAX / 2, "the image").unwrap_err().to_string();
        assert!(error.contains("is full") && error.contains("the image needs") && error.contains("free in"), "{error}");
        let full = |kind| explain(dir.path(), "the image", io::Error::from(kind)).to_string().contains("is full");
        assert!(full(io::ErrorKind::StorageFull) && full(io::ErrorKind::QuotaExceeded));
        assert!(!full(io::ErrorKind::PermissionDenied));
    }
}
