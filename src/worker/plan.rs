//! The table that decides: wish × what is seen → the next step for one copy. Pure and total.
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
    /// Nothing of it shall be left.
    Absent,
    /// The controller did not name it.
    Unknown,
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
    /// It ran once and does not run now, and nobody saw how it ended.
    Ended,
    /// It failed, certainly does not run, and that was reported.
    Failed,
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
    /// Stop the process.
    Stop,
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
pub fn step(wish: Wish, seen: Seen) -> Step {
    if planted(Bug::UnknownDeleted) && wish == Wish::Unknown {
        return step(Wish::Absent, seen);
    }
    match (wish, seen) {
        (Wish::Run, Seen::Missing | Seen::Incomplete) => Step::Create,
        (Wish::Run, Seen::Created) => Step::Start,
        (Wish::Run, Seen::Running) => Step::Watch,
        // Starting it again would hide a crash from the restart policy, and a guest that switched itself off would
        // come back for ever.
        (Wish::Run, Seen::Ended) => Step::ReportEnded,
        (Wish::Run, Seen::Failed) => Step::Rest,

        (Wish::Keep, Seen::Running) => Step::Stop,
        (Wish::Keep, Seen::Missing | Seen::Incomplete | Seen::Created | Seen::Ended | Seen::Failed) => Step::Rest,

        (Wish::Absent, Seen::Missing) => Step::ReportAbsent,
        (Wish::Absent, Seen::Incomplete | Seen::Created | Seen::Running | Seen::Ended | Seen::Failed) => Step::Delete,

        (Wish::Unknown, Seen::Missing) => Step::Forget,
        (Wish::Unknown, Seen::Incomplete | Seen::Created | Seen::Running | Seen::Ended | Seen::Failed) => {
            Step::ReportStray
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WISHES: [Wish; 4] = [Wish::Run, Wish::Keep, Wish::Absent, Wish::Unknown];
    const SEEN: [Seen; 6] = [Seen::Missing, Seen::Incomplete, Seen::Created, Seen::Running, Seen::Ended, Seen::Failed];

    /// What is seen after a step that went well; `None` where the task waits or ends.
    fn after(step: Step) -> Option<Seen> {
        match step {
            Step::Create => Some(Seen::Created),
            Step::Start => Some(Seen::Running),
            Step::ReportEnded => Some(Seen::Failed),
            Step::Stop => Some(Seen::Ended),
            Step::Delete => Some(Seen::Missing),
            Step::Watch | Step::ReportAbsent | Step::ReportStray | Step::Forget | Step::Rest => None,
        }
    }

    #[test]
    fn every_pair_leads_to_rest_within_three_steps() {
        for wish in WISHES {
            for start in SEEN {
                let mut seen = start;
                let mut steps = 0;
                while let Some(next) = after(step(wish, seen)) {
                    seen = next;
                    steps += 1;
                    assert!(steps <= 3, "{wish:?} from {start:?} goes in circles");
                }
            }
        }
    }

    #[test]
    fn nothing_is_removed_or_stopped_unless_it_was_asked_for() {
        for wish in [Wish::Run, Wish::Unknown] {
            for seen in SEEN {
                assert!(!matches!(step(wish, seen), Step::Delete | Step::Stop), "{wish:?} {seen:?}");
            }
        }
        assert!(SEEN.into_iter().all(|seen| step(Wish::Keep, seen) != Step::Delete));
    }

    #[test]
    fn absence_is_reported_only_when_nothing_is_there() {
        for wish in WISHES {
            for seen in SEEN {
                assert_eq!(step(wish, seen) == Step::ReportAbsent, wish == Wish::Absent && seen == Seen::Missing);
            }
        }
    }
}
