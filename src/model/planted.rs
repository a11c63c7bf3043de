//! Bugs that the simulation must find, planted where they once were or could be. Nothing of this is in the program:
//! outside unit tests [`planted`] is a constant.

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// Whatever a worker says in a session that is over is taken.
    StaleSession,
    /// A report of an earlier attempt counts for the present one.
    StaleAttempt,
    /// A report counts for whatever VM has the name now.
    NameNotUid,
    /// What a worker has left wraps around when it offers less than is in use.
    Wrap,
    /// A VM that fails again soon after its restart is never restarted.
    RestartDeadEnd,
    /// A controller that starts takes workers that have not registered yet for dead.
    RestartFailsVms,
    /// VMs of a silent worker are started elsewhere at once.
    ReplacedTooSoon,
    /// Answers go out before what they say is durable.
    AnswerBeforeCommit,
    /// After a commit that failed its event numbers are not given again.
    EventSkipped,
    /// A VM that is deleted while its worker is away is forgotten there.
    DeleteForgets,
    /// A registration ends a pause.
    PauseUndone,
    /// An assignment that was lost is not sent again.
    NotResent,
    /// The room of a deleted VM is given away while it still runs.
    FreedTooSoon,
    /// Copies that the controller does not know are deleted.
    UnknownDeleted,
    /// VMs that are to be kept are replaced like the others.
    KeepReplaced,
    /// A controller that starts takes workers that it has not heard of for gone as soon as time passes.
    GoneAtStart,
    /// The worker counts its lease from the answer to its message instead of from the sending of it.
    LeaseFromAnswer,
    /// The worker starts what it was told to in a session whose lease was over, once it has a new lease.
    StaleOrder,
    /// A VM that is moved away starts elsewhere while it still runs where it was.
    DrainedTooSoon,
    /// What is gone is replaced when the lease is over by the controller's clock, with nothing for clocks that differ and for
    /// the time it takes to stop VMs.
    NoMargin,
    /// After a backup was restored VMs are placed without waiting for what the workers have.
    RestoredPlacesAtOnce,
    /// After a backup was restored attempts are given out that were given out before.
    RestoredAttemptsAgain,
    /// A report of an earlier boot counts for the present one.
    StaleBoot,
    /// A VM that starts over has the specification with which it was made.
    UpdateLost,
    /// A request that comes again is done again.
    KeyIgnored,
}

/// Whether this thread runs with `bug`.
#[cfg(not(test))]
pub const fn planted(_: Bug) -> bool {
    false
}

#[cfg(test)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Whether this thread runs with `bug`.
#[cfg(test)]
pub fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Lets this thread run with a bug, or without.
#[cfg(test)]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}
