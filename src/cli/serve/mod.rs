//! The commands that serve until they are told to stop: `dev`, `controller run`, `worker run`, `broker run`. What they share is
//! here: start, announce, wait for a signal, stop.

/// Says something to whoever watches. That nobody reads standard error any more, as it goes into a pipe whose reader was
/// ended by the same Ctrl-C, is no reason to end otherwise than in order.
macro_rules! say {
    ($($what:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($what)*);
    }};
}

mod access;
mod as_user;
mod backup;
pub(super) mod broker;
pub(super) mod controller;
pub(super) mod dev;
pub(super) mod folder;
mod guard;
mod host;
mod notify;
mod parts;
mod ports;
mod reload;
pub(super) mod runtime;
mod session_keeper;
pub(super) mod signals;
mod watched;
pub(super) mod worker;

use std::sync::Arc;
use std::time::Duration;

use self::signals::Signals;
use super::FAILED;
use crate::metrics::Source;

/// How long an orderly stop may take before the process ends anyhow: nothing durable is lost by it.
const STOP_GRACE: Duration = Duration::from_secs(20);

/// Something that runs and can be stopped in order.
trait Running {
    /// Returns, with what to say of it, when it cannot go on: see [`ended`].
    async fn failed(&self) -> String;

    /// Stops it; VMs go on.
    async fn shutdown(self);

    /// Its parts, for those who watch them; see `watched`.
    fn sources(&self) -> Vec<Arc<dyn Source>> {
        Vec::new()
    }

    /// What to say when a signal tells it to stop.
    fn farewell(&self) -> &'static str {
        "stopping; VMs go on, but for synthetic ones, and the next start finds them again"
    }

    /// How long [`Running::stop`] may take.
    fn grace(&self) -> Duration {
        STOP_GRACE
    }

    /// Stops it as a signal has told, with whatever else it was asked to do then; whether all of that was done.
    async fn stop(self) -> bool
    where
        Self: Sized,
    {
        self.shutdown().await;
        true
    }
}

/// What to say of a part that has ended though it never should.
fn ended(part: &str) -> String {
    format!("{part} has ended unexpectedly; stopping, so that a supervisor can start all anew")
}

/// Starts something, announces it, waits for Ctrl-C or SIGTERM and stops it. A second signal stops at once. Yields the
/// exit code.
async fn until_stopped<R: Running>(
    start: impl Future<Output = anyhow::Result<R>>,
    announce: impl FnOnce(&R) -> anyhow::Result<()>,
) -> anyhow::Result<u8> {
    let mut signals = Signals::install()?;
    raise_file_limit();
    let running = tokio::select! {
        started = start => started?,
        name = signals.wait() => {
            say!("{name}: stopped before everything was up");
            return Ok(0);
        }
    };
    let announced = announce(&running);
    let mut told = false;
    if announced.is_ok() {
        notify::ready();
        tokio::select! {
            name = signals.wait() => {
                notify::stopping();
                say!("{name}: {}", running.farewell());
                told = true;
            }
            why = running.failed() => say!("error: {why}"),
        }
    }
    let grace = if told { running.grace() } else { STOP_GRACE };
    let stop = async {
        match told {
            true => running.stop().await,
            // It was not asked for, so nothing more is done than is needed.
            false => {
                running.shutdown().await;
                false
            }
        }
    };
    tokio::select! {
        stopped = tokio::time::timeout(grace, stop) => {
            announced?;
            match stopped {
                Ok(true) => Ok(0),
                Ok(false) => Ok(FAILED),
                Err(_) => {
                    say!("error: something does not stop within {grace:?}; ending anyhow");
                    Ok(FAILED)
                }
            }
        }
        name = signals.wait() => {
            say!("{name}: ending at once");
            Ok(FAILED)
        }
    }
}

/// Has the system keep no image of this process when it crashes: it holds the keys of the whole cluster.
fn no_core_dumps() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let limited = setrlimit(Resource::Core, none);
    // The limit does not count for a program that the kernel hands the image to.
    #[cfg(target_os = "linux")]
    let limited = limited.and(rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable));
    if let Err(error) = limited {
        tracing::debug!("cannot switch core dumps off: {error}");
    }
}

/// Lets this process open as many files as its user may: each worker, client and session holds one or two, and the
/// usual soft limit of 1,024 would be the first thing that a growing cluster meets.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!("cannot raise the limit of open files: {error}");
    }
}
