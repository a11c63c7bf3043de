//! Keeps the logs of processes that outlive the worker from growing for ever: QEMU's, and those of `tart run` and
//! `vetu run`, to which guests write what their serial console shows.

use std::convert::Infallible;
use std::fs::{File, metadata};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The size at which a log is emptied: a guest may write to its serial console for years.
pub const MAX_LOG: u64 = 8 << 20;
/// How often the size of the logs is looked at.
const PERIOD: Duration = Duration::from_secs(30);

/// Empties logs that have grown too large, those that an earlier worker left so at once. Who writes appends, and so goes on
/// at the new end. Never returns. Cancel safe.
pub async fn keep(logs: &[PathBuf]) -> Infallible {
    loop {
        for log in logs {
            empty_if_large(log);
        }
        tokio::time::sleep(PERIOD).await;
    }
}

fn empty_if_large(log: &Path) {
    if metadata(log).is_ok_and(|about| about.len() > MAX_LOG)
        && let Err(error) = File::options().write(true).open(log).and_then(|file| file.set_len(0))
    {
        tracing::warn!(%error, path = %log.display(), "cannot empty a log that has grown too large");
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_log_that_is_too_large_is_emptied_at_once_and_whenever_it_is_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = File::options().append(true).create(true).open(&path).unwrap();
        let len = || metadata(&path).unwrap().len();
        log.set_len(MAX_LOG + 1).unwrap();
        let logs = [dir.path().join("none"), path.clone()];
        let mut kept = Box::pin(keep(&logs));
        for _ in 0..3 {
            let _ = tokio::time::timeout(PERIOD, &mut kept).await;
            assert_eq!(len(), 0);
            log.write_all(b"more").unwrap();
            assert_eq!(len(), 4, "it goes on at the new end");
            log.set_len(MAX_LOG + 1).unwrap();
        }
        log.set_len(MAX_LOG).unwrap();
        let _ = tokio::time::timeout(3 * PERIOD, &mut kept).await;
        assert_eq!(len(), MAX_LOG);
    }
}
