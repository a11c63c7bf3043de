//! The readiness probe: an open port says nothing (a hypervisor's port forward always accepts), only the `SSH-` line
//! of the guest's server counts. The worker calls it on a fresh stream at a time, before it logs in.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use super::SshError;

/// How long a probe waits at first: long enough for a busy guest, short enough that a connection whose first packet was lost
/// while the guest's network came up is given up for a new one.
pub const PROBE_WAIT: Duration = Duration::from_secs(1);

/// How long one waits at most: a guest that is emulated on a busy host may need seconds for its greeting.
const LONGEST_PROBE: Duration = Duration::from_secs(10);

/// Which part of the time for which a guest was waited a probe waits: one that is in vain makes it ready so much later at most.
const PROBE_PART: u32 = 10;

/// A server may say other lines first (RFC 4253, 4.2); one that says more than this is none.
const MAX_PREAMBLE: usize = 8 * 1024;

/// Reads until a line that starts with `SSH-`, at most `wait`. The stream is of no further use. Cancel safe.
///
/// # Errors
/// [`SshError::Closed`] when it ends before, [`SshError::Timeout`] after `wait`, [`SshError::Protocol`] when what
/// answers is no SSH server.
pub async fn probe(stream: &mut (impl AsyncRead + Unpin), wait: Duration) -> Result<(), SshError> {
    let read = async {
        let mut seen: Vec<u8> = Vec::new();
        let mut chunk = [0u8; 256];
        loop {
            let count = stream.read(&mut chunk).await.map_err(|_| SshError::Closed)?;
            if count == 0 {
                return Err(SshError::Closed);
            }
            seen.extend(chunk.iter().take(count));
            if seen.split(|byte| *byte == b'\n').any(|line| line.starts_with(b"SSH-")) {
                return Ok(());
            }
            if seen.len() > MAX_PREAMBLE {
                return Err(SshError::Protocol(russh::Error::Version));
            }
        }
    };
    timeout(wait, read).await.unwrap_or(Err(SshError::Timeout { what: "its SSH greeting", after: wait }))
}

/// How long the next probe of a guest waits that was waited for so long already. It grows with that, or a guest that is always
/// slower than one probe would never be found ready.
pub fn patience(waited: Duration) -> Duration {
    (waited / PROBE_PART).clamp(PROBE_WAIT, LONGEST_PROBE)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn probed(bytes: &[u8]) -> Result<(), SshError> {
        probe(&mut &*bytes, PROBE_WAIT).await
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_greeting_counts() {
        probed(b"SSH-2.0-x\r\n").await.unwrap();
        probed(b"welcome\r\nSSH-2.0-x\r\n").await.unwrap();
        assert!(matches!(probed(b"").await, Err(SshError::Closed)));
        assert!(matches!(probed(b"welcome SSH-2.0").await, Err(SshError::Closed)));
        assert!(matches!(probed(&[b'x'; 10_000]).await, Err(SshError::Protocol(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_port_is_given_up_after_the_wait() {
        let (mut near, _far) = tokio::io::duplex(64);
        assert!(matches!(probe(&mut near, PROBE_WAIT).await, Err(SshError::Timeout { .. })));
    }

    #[test]
    fn who_was_waited_for_longer_is_given_more_time_to_greet() {
        let given = |waited| patience(Duration::from_secs(waited)).as_secs();
        assert_eq!([0, 5, 10, 40, 100, 3_600].map(given), [1, 1, 1, 4, 10, 10]);
    }
}
