//! What a worker counts of itself; atomics, read by whoever watches.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::metrics::page::Page;
use crate::metrics::{Counter, Histogram, QUICK, SLOW, names};

/// Figures since the start.
#[derive(Debug)]
pub(super) struct Meters {
    start: Instant,
    /// From a heartbeat to its answer.
    pub(super) heartbeat: Histogram,
    /// Heartbeats that were not answered in time.
    pub(super) heartbeat_failures: Counter,
    /// Registrations.
    pub(super) sessions: Counter,
    /// How long a look at the host took.
    pub(super) reconcile: Histogram,
    /// Looks at which the runtime did not list its VMs.
    pub(super) reconcile_failures: Counter,
    /// How long it took to fetch an image ahead of need.
    pub(super) pull: Histogram,
    /// What the runtime was asked for.
    pub(super) commands: Commands,
    /// The controller answered.
    pub(super) heard: Moment,
    /// The time between heartbeats, in milliseconds; 0 before the first session.
    pub(super) beat_every: AtomicU64,
    /// The reconciler went round once more.
    pub(super) turned: Moment,
    /// A look at the host was over.
    pub(super) reconciled: Moment,
    /// The runtime has listed its VMs when it was last asked.
    pub(super) lists: AtomicBool,
}

/// When something last happened.
#[derive(Debug, Default)]
pub(super) struct Moment(AtomicU64);

impl Default for Meters {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            heartbeat: Histogram::new(QUICK),
            heartbeat_failures: Counter::default(),
            sessions: Counter::default(),
            reconcile: Histogram::new(SLOW),
            reconcile_failures: Counter::default(),
            pull: Histogram::new(SLOW),
            commands: Commands::default(),
            heard: Moment::default(),
            beat_every: AtomicU64::new(0),
            turned: Moment::default(),
            reconciled: Moment::default(),
            lists: AtomicBool::new(false),
        }
    }
}

impl Meters {
    /// It happened just now.
    pub(super) fn note(&self, moment: &Moment) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        moment.0.store(now.max(1), Ordering::Relaxed);
    }

    /// How long ago it last happened; none = not yet.
    pub(super) fn age(&self, moment: &Moment) -> Option<Duration> {
        let at = moment.0.load(Ordering::Relaxed);
        (at > 0).then(|| self.start.elapsed().saturating_sub(Duration::from_millis(at)))
    }

    /// How long ago it last happened, or since the start.
    pub(super) fn age_or_all(&self, moment: &Moment) -> Duration {
        self.age(moment).unwrap_or_else(|| self.start.elapsed())
    }

    /// Puts what it has counted on a page.
    pub(super) fn write(&self, worker: &str, page: &mut Page) {
        page.put(&names::HEARTBEAT, &[worker], &self.heartbeat);
        page.put(&names::HEARTBEAT_FAILURES, &[worker], &self.heartbeat_failures);
        page.put(&names::WORKER_SESSIONS, &[worker], &self.sessions);
        page.put(&names::RECONCILE, &[worker], &self.reconcile);
        page.put(&names::RECONCILE_FAILURES, &[worker], &self.reconcile_failures);
        if let Some(age) = self.age(&self.reconciled) {
            page.gauge(&names::RECONCILED, &[worker], age.as_secs_f64());
        }
        page.put(&names::PULL, &[worker], &self.pull);
        self.commands.write(worker, page);
    }
}

/// What a runtime can be asked for, apart from what lasts as long as a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    List,
    Create,
    Start,
    Stop,
    Kill,
    Suspend,
    Delete,
    Pull,
    Images,
    Prune,
}

impl Command {
    const ALL: [(Command, &'static str); 10] = [
        (Command::List, "list"),
        (Command::Create, "create"),
        (Command::Start, "start"),
        (Command::Stop, "stop"),
        (Command::Kill, "kill"),
        (Command::Suspend, "suspend"),
        (Command::Delete, "delete"),
        (Command::Pull, "pull"),
        (Command::Images, "images"),
        (Command::Prune, "prune"),
    ];

    /// As people write it.
    pub(super) fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(command, _)| *command == self).map_or("", |(_, name)| name)
    }
}

/// Figures of each [`Command`].
#[derive(Debug)]
pub(super) struct Commands(Vec<CommandFigures>);

#[derive(Debug)]
struct CommandFigures {
    time: Histogram,
    failures: Counter,
    running: AtomicU64,
}

impl Default for Commands {
    fn default() -> Self {
        let figures =
            |_| CommandFigures { time: Histogram::new(SLOW), failures: Counter::default(), running: AtomicU64::new(0) };
        Self(Command::ALL.iter().map(figures).collect())
    }
}

impl Commands {
    /// One begins.
    pub(super) fn begin(&self, command: Command) -> Underway<'_> {
        let at = Command::ALL.iter().position(|(one, _)| *one == command);
        let figures = at.and_then(|at| self.0.get(at));
        if let Some(figures) = figures {
            figures.running.fetch_add(1, Ordering::Relaxed);
        }
        Underway { figures, since: Instant::now() }
    }

    fn write(&self, worker: &str, page: &mut Page) {
        for ((_, name), figures) in Command::ALL.iter().zip(&self.0) {
            page.put(&names::RUNTIME, &[worker, name], &figures.time);
            page.put(&names::RUNTIME_FAILURES, &[worker, name], &figures.failures);
            page.number(&names::RUNTIME_RUNNING, &[worker, name], figures.running.load(Ordering::Relaxed));
        }
    }
}

/// A command under way; one that is given up is not counted as done.
#[derive(Debug)]
pub(super) struct Underway<'a> {
    figures: Option<&'a CommandFigures>,
    since: Instant,
}

impl Underway<'_> {
    /// It is done, or has failed.
    pub(super) fn ended<T, E>(self, result: &Result<T, E>) {
        if let Some(figures) = self.figures {
            figures.time.took(self.since.elapsed());
            figures.failures.add(u64::from(result.is_err()));
        }
    }
}

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        if let Some(figures) = self.figures {
            figures.running.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_counted_when_they_end_and_shown_while_they_run() {
        let commands = Commands::default();
        let underway = commands.begin(Command::Start);
        let figures = &commands.0[2];
        assert_eq!(figures.running.load(Ordering::Relaxed), 1);
        underway.ended(&Err::<(), _>("no"));
        drop(commands.begin(Command::Start));
        assert_eq!(figures.running.load(Ordering::Relaxed), 0);
        assert_eq!((figures.time.read().count, figures.failures.get()), (1, 1));
        assert_eq!(Command::Start.as_str(), "start");
    }

    #[test]
    fn moments_have_an_age_once_they_were() {
        let meters = Meters::default();
        assert_eq!(meters.age(&meters.heard), None);
        meters.note(&meters.heard);
        assert!(meters.age(&meters.heard).unwrap() < Duration::from_secs(60));
    }
}
