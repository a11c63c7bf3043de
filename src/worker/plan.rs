//! The table that decides: wish × what is seen × what was before → the next step for one copy. Pure and total.
//!
//! Each step changes what is seen, so following the table always ends in a step that waits or in the end of the copy.

use crate::model::planted::{Bug, planted};

/// What the controller wishes for a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wish {
    /// It shall run.
    Run,
    /// It shall not run; its disk stays.
    Keep,
    /// It shall not run, and its memory is kept beside its disk.
    Suspend,
    /// Nothing of it shall be left.
    Absent,
    /// The controller did not name it.
    Unknown,
    /// It shall run, but its worker ends and takes its VMs with it.
    Halt,
}

/// What is seen of a copy on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Seen {
    /// Nothing.
    Missing,
    /// A creation that was interrupted, or a copy that never ran and whose making nobody watched.
    Incomplete,
    /// Made by this worker process, never started.
    Created,
    /// Its process runs.
    Running,
    /// It ran once and does not run now; if that was not wished, nobody saw how it ended.
    Ended,
    /// It failed, certainly does not run, and that was reported; its disk may be there.
    Failed,
    /// It could not be made, or its disk was lost, and that was reported.
    Unmade,
}

/// What counts of the past.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Past {
    /// The wish is for a later boot than the last that was begun, or failed to begin.
    pub newer: bool,
    /// The controller knows that it ran: if nothing of it is here, it was lost, and must not be made anew as if nothing had
    /// happened.
    pub ran: bool,
    /// This worker ended its process, in its present boot, as it was to end itself.
    pub halted: bool,
}

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Make disk and settings, from scratch.
    Create,
    /// Start the process.
    Start,
    /// Watch the running process and bring the guest up; report both.
    Watch,
    /// Report that it ended unseen.
    ReportEnded,
    /// Report that its worker has ended it, and that it may boot again.
    ReportHalted,
    /// Report that its disk is lost.
    ReportLost,
    /// Stop the process.
    Stop,
    /// Freeze the process into a file.
    Suspend,
    /// See to it that it stays off, report that it is, and wait for another wish.
    ReportStopped,
    /// Remove everything.
    Delete,
    /// Report that nothing is left; the copy's task ends.
    ReportAbsent,
    /// Report that it is here unasked, and leave it alone.
    ReportStray,
    /// Nothing to do and nothing to say; the copy's task ends.
    Forget,
    /// Wait for another wish.
    Rest,
}

/// Decides.
pub fn step(wish: Wish, seen: Seen, past: Past) -> Step {
    if planted(Bug::UnknownDeleted) && wish == Wish::Unknown {
        return step(Wish::Absent, seen, past);
    }
    match (wish, seen) {
        (Wish::Run, Seen::Missing | Seen::Incomplete) if past.ran => Step::ReportLost,
        (Wish::Run, Seen::Missing | Seen::Incomplete) => Step::Create,
        (Wish::Run, Seen::Created) => Step::Start,
        // What runs is of an earlier boot; once it has ended the next can begin.
        (Wish::Run, Seen::Running) if past.newer => Step::Stop,
        (Wish::Run, Seen::Running) => Step::Watch,
        (Wish::Run, Seen::Ended | Seen::Failed) if past.newer => Step::Start,
        (Wish::Run, Seen::Ended) if past.halted => Step::ReportHalted,
        // Starting it again would hide a crash from the restart policy, and a guest that switched itself off would
        // come back for ever.
        (Wish::Run, Seen::Ended) => Step::ReportEnded,
        (Wish::Run, Seen::Unmade) if past.newer && past.ran => Step::ReportLost,
        (Wish::Run, Seen::Unmade) if past.newer => Step::Create,
        (Wish::Run, Seen::Failed | Seen::Unmade) => Step::Rest,

        (Wish::Keep, Seen::Running) => Step::Stop,
        (Wish::Suspend, Seen::Running) => Step::Suspend,
        (
            Wish::Keep | Wish::Suspend,
            Seen::Missing | Seen::Incomplete | Seen::Created | Seen::Ended | Seen::Failed | Seen::Unmade,
        ) => Step::ReportStopped,

        (Wish::Halt, Seen::Running) => Step::Stop,
        (Wish::Halt, Seen::Ended) if past.halted => Step::ReportHalted,
        // How it ended is for the next process of the worker to say; that one also goes on with what was being made.
        (Wish::Halt, Seen::Missing | Seen::Incomplete | Seen::Created | Seen::Ended | Seen::Failed | Seen::Unmade) => {
            Step::Rest
        }

        (Wish::Absent, Seen::Missing) => Step::ReportAbsent,
        (
            Wish::Absent,
            Seen::Incomplete | Seen::Created | Seen::Running | Seen::Ended | Seen::Failed | Seen::Unmade,
        ) => Step::Delete,

        (Wish::Unknown, Seen::Missing) => Step::Forget,
        (
            Wish::Unknown,
            Seen::Incomplete | Seen::Created | Seen::Running | Seen::Ended | Seen::Failed | Seen::Unmade,
        ) => Step::ReportStray,
    }
}

/// What is seen of a copy once something else than a failure was told of it last: should it be wished for again, the failure
/// must be told again.
pub fn forgotten(seen: Seen) -> Seen {
    match seen {
        Seen::Failed => Seen::Ended,
        Seen::Unmade => Seen::Incomplete,
        Seen::Missing | Seen::Incomplete | Seen::Created | Seen::Running | Seen::Ended => seen,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WISHES: [Wish; 6] = [Wish::Run, Wish::Keep, Wish::Suspend, Wish::Absent, Wish::Unknown, Wish::Halt];
    const SEEN: [Seen; 7] =
        [Seen::Missing, Seen::Incomplete, Seen::Created, Seen::Running, Seen::Ended, Seen::Failed, Seen::Unmade];

    fn pasts() -> impl Iterator<Item = Past> {
        (0..8).map(|bits| Past { newer: bits & 1 != 0, ran: bits & 2 != 0, halted: bits & 4 != 0 })
    }

    fn every() -> impl Iterator<Item = (Wish, Seen, Past)> {
        let of = |wish| SEEN.into_iter().flat_map(move |seen| pasts().map(move |past| (wish, seen, past)));
        WISHES.into_iter().flat_map(of)
    }

    /// What is seen after a step that went well, and whether the boot that is wished for is still to begin; `None` where the
    /// task waits or ends.
    fn after(step: Step, past: Past) -> Option<(Seen, Past)> {
        let begun = Past { newer: false, ..past };
        match step {
            Step::Create => Some((Seen::Created, past)),
            Step::Start => Some((Seen::Running, begun)),
            Step::ReportEnded => Some((Seen::Failed, begun)),
            Step::ReportLost => Some((Seen::Unmade, begun)),
            Step::Stop | Step::Suspend => Some((Seen::Ended, past)),
            Step::Delete => Some((Seen::Missing, past)),
            Step::Watch | Step::ReportHalted | Step::ReportStopped | Step::ReportAbsent => None,
            Step::ReportStray | Step::Forget | Step::Rest => None,
        }
    }

    #[test]
    fn every_case_leads_to_rest_within_three_steps() {
        for (wish, start, before) in every() {
            let (mut seen, mut past, mut steps) = (start, before, 0);
            while let Some(next) = after(step(wish, seen, past), past) {
                (seen, past) = next;
                steps += 1;
                assert!(steps <= 3, "{wish:?} from {start:?} {before:?} goes in circles");
            }
        }
    }

    #[test]
    fn nothing_is_removed_or_stopped_unless_it_was_asked_for() {
        for (wish, seen, past) in every() {
            let next = step(wish, seen, past);
            assert_eq!(next == Step::Delete, wish == Wish::Absent && seen != Seen::Missing, "{wish:?} {seen:?}");
            let asked = match wish {
                Wish::Run => past.newer,
                Wish::Keep | Wish::Suspend | Wish::Halt => true,
                Wish::Absent | Wish::Unknown => false,
            };
            let ends = matches!(next, Step::Stop | Step::Suspend);
            assert_eq!(ends, asked && seen == Seen::Running, "{wish:?} {seen:?} {past:?}");
        }
    }

    #[test]
    fn absence_is_reported_only_when_nothing_is_there() {
        for (wish, seen, past) in every() {
            let absent = wish == Wish::Absent && seen == Seen::Missing;
            assert_eq!(step(wish, seen, past) == Step::ReportAbsent, absent);
        }
    }

    #[test]
    fn a_disk_that_was_lost_is_never_made_anew() {
        for (wish, seen, past) in every().filter(|(_, _, past)| past.ran) {
            assert_ne!(step(wish, seen, past), Step::Create, "{wish:?} {seen:?}");
        }
    }

    #[test]
    fn a_boot_that_has_ended_is_not_begun_again() {
        for (wish, seen, past) in every().filter(|(_, _, past)| !past.newer) {
            assert!(step(wish, seen, past) != Step::Start || seen == Seen::Created, "{wish:?} {seen:?}");
        }
    }

    #[test]
    fn only_what_does_not_run_is_said_to_be_off() {
        for (wish, seen, past) in every() {
            let off = matches!(wish, Wish::Keep | Wish::Suspend) && seen != Seen::Running;
            assert_eq!(step(wish, seen, past) == Step::ReportStopped, off);
        }
    }

    #[test]
    fn a_worker_that_ends_makes_and_starts_nothing_and_only_what_it_ended_is_said_to_be_so() {
        for (wish, seen, past) in every() {
            let next = step(wish, seen, past);
            if wish == Wish::Halt {
                assert!(matches!(next, Step::Stop | Step::ReportHalted | Step::Rest), "{seen:?} {past:?}: {next:?}");
            }
            assert!(next != Step::ReportHalted || past.halted && seen == Seen::Ended, "{wish:?} {seen:?} {past:?}");
        }
    }
}
