//! The file that tells other programs where a server listens. Written by `broker`, for whoever starts one on port 0.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;

use crate::cli::files::Explain as _;
use crate::identity;

/// There from [`PortsFile::publish`] until it is dropped: as long as clients can connect, and no longer.
pub(super) struct PortsFile {
    path: PathBuf,
    contents: String,
}

impl PortsFile {
    /// Puts `client`, which the caller listens on, into the file at `path`, in place of what an earlier run may have left
    /// there.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn publish(path: PathBuf, client: SocketAddr) -> anyhow::Result<Self> {
        let contents = format!("{}\n", serde_json::json!({ "client": client.to_string() }));
        identity::write_private(&path, contents.as_bytes())
            .at(&path)
            .with_context(|| format!("cannot write the ports file {}", path.display()))?;
        Ok(Self { path, contents })
    }

    /// Whether the file is still the one that was written: another server may have its own in its place. As long as the
    /// address is ours, nobody else's file can say the same.
    fn is_ours(&self) -> bool {
        let expected = |about: &fs::Metadata| about.is_file() && about.len() == self.contents.len() as u64;
        fs::symlink_metadata(&self.path).is_ok_and(|about| expected(&about))
            && fs::read(&self.path).is_ok_and(|found| found == self.contents.as_bytes())
    }
}

impl Drop for PortsFile {
    fn drop(&mut self) {
        if self.is_ours() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_file_that_was_written_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ports.json");
        fs::write(&path, "left by an earlier run").unwrap();
        let publish = |port| PortsFile::publish(path.clone(), SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
        let first = publish(4222);
        assert_eq!(fs::read_to_string(&path).unwrap(), "{\"client\":\"127.0.0.1:4222\"}\n");
        let second = publish(4223);
        drop(first);
        assert!(fs::read_to_string(&path).unwrap().contains("4223"), "another server's");
        drop(second);
        assert!(!path.exists());
        drop(publish(4222));
        assert!(!path.exists());
    }
}
