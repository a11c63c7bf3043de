//! Reads files again on request while signals go on being served: in a thread of its own, with a deadline. `broker` asks
//! for it on SIGHUP. Knows nothing of what is read.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until};

/// How long reading may take: files that a disk does not yield by then are as good as unreadable.
const DEADLINE: Duration = Duration::from_secs(10);

type Read<T> = Arc<dyn Fn() -> anyhow::Result<T> + Send + Sync>;

/// Reads one thing again and again, one reading at a time.
pub(super) struct Reloading<T> {
    read: Read<T>,
    running: Option<Running<T>>,
}

struct Running<T> {
    reading: JoinHandle<anyhow::Result<T>>,
    deadline: Instant,
    /// Whether the deadline is over, and has been told.
    late: bool,
    /// Asked for once more meanwhile: what this reading yields may be outdated.
    again: bool,
}

impl<T: Send + 'static> Reloading<T> {
    /// Reads nothing yet.
    pub(super) fn new(read: impl Fn() -> anyhow::Result<T> + Send + Sync + 'static) -> Self {
        Self { read: Arc::new(read), running: None }
    }

    /// Begins to read, or does so again once the reading that is under way has ended.
    pub(super) fn request(&mut self) {
        match &mut self.running {
            Some(running) => running.again = true,
            None => {
                let read = self.read.clone();
                let reading = spawn_blocking(move || read());
                self.running =
                    Some(Running { reading, deadline: Instant::now() + DEADLINE, late: false, again: false });
            }
        }
    }

    /// Waits for what was read last; forever, when nothing was asked for. What comes too late is dropped. Cancel safe.
    ///
    /// # Errors
    /// What reading says; that it has taken too long.
    pub(super) async fn next(&mut self) -> anyhow::Result<T> {
        loop {
            let Some(running) = &mut self.running else { return std::future::pending().await };
            tokio::select! {
                read = &mut running.reading => {
                    let (late, again) = (running.late, running.again);
                    self.running = None;
                    if again {
                        self.request();
                    } else if !late {
                        return read.context("reading was cut short")?;
                    }
                }
                () = sleep_until(running.deadline), if !running.late => {
                    running.late = true;
                    bail!("the files could not be read within {DEADLINE:?}");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    /// Readings that each end when they are sent a number, and yield it.
    fn readings() -> (Reloading<u32>, Sender<u32>) {
        let (sender, receiver) = channel();
        let receiver = Mutex::new(receiver);
        (Reloading::new(move || Ok(receiver.lock().unwrap().recv()?)), sender)
    }

    #[tokio::test]
    async fn a_request_during_a_reading_has_it_done_again() {
        let (mut reloading, sender) = readings();
        reloading.request();
        reloading.request();
        reloading.request();
        sender.send(1).unwrap();
        sender.send(2).unwrap();
        assert_eq!(reloading.next().await.unwrap(), 2);
        assert!(reloading.running.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reading_that_hangs_is_told_once_and_what_it_yields_is_dropped() {
        let (mut reloading, sender) = readings();
        reloading.request();
        let (late, ()) = tokio::join!(reloading.next(), tokio::time::advance(DEADLINE + Duration::from_secs(1)));
        assert!(late.unwrap_err().to_string().contains("10s"));
        reloading.request();
        sender.send(1).unwrap();
        sender.send(2).unwrap();
        assert_eq!(reloading.next().await.unwrap(), 2);
    }
}
