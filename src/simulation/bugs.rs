//! The proof that the simulation finds what it is for: bugs that the system before this one had, or that cost little to
//! make, planted one at a time in the real core (and one in the writer, whose work `controller` does here).
//!
//! What a run has printed (`cargo test --lib simulation::bugs -- --nocapture`), with how many seeds each took:
//!
//! | like | planted bug | seeds |
//! |---|---|---|
//! | C1 | a VM that fails again soon after its restart is never restarted | 30 |
//! | C3 | a report of an earlier attempt counts for the present one | 5 |
//! | C3 | a report counts for whatever VM has the name now | 25 |
//! | C3 | what is said in a session that is over is taken | 20 |
//! | C4 | a registration ends a pause | 1 |
//! | C5 | what a worker has left wraps around | 2 |
//! | C10 | a controller that starts takes absent workers for dead | 1 |
//! | C16 | the room of a deleted VM is given away while it still runs | 2 |
//! | C17 | VMs of a silent worker start elsewhere at once | 1 |
//! | – | a VM deleted while its worker is away is forgotten there | 1 |
//! | C22 | copies that the controller does not know are deleted | 13 |
//! | – | after a backup was restored VMs start without asking the workers what runs | 24 |
//! | – | after a backup was restored attempts are given out again | 87 |
//! | – | answers go out before what they say is durable | 1 |
//! | – | event numbers of a failed commit are not given again | 1 |
//! | – | a VM that is to be kept is replaced when its worker is gone | 1 |
//! | C10 | a controller that starts takes silent workers for gone at once | 1 |
//! | – | a VM is replaced when the lease is over by the controller's clock | 3 |
//! | – | the worker counts its lease from the answer | 14 |
//! | – | the worker starts by a new lease what was ordered under the one before | 1078 |
//! | – | a VM that is moved starts elsewhere while it still runs | 5 |
//! | C3 | a report of an earlier boot counts for the present one | 32 |
//! | C2 | a VM that starts over has not all that it was changed to | 5 |
//! | – | a create that comes again is done again | 8 |
//! | C36 | an assignment that was lost is not sent again | 1 |

use std::fmt::Write as _;

use super::{number, run};
use crate::model::planted::{Bug, plant};

/// The bugs, what of the list of known weaknesses each is like, and what is wrong.
const BUGS: [(Bug, &str, &str); 25] = [
    (Bug::RestartDeadEnd, "C1", "a VM that fails again soon after its restart is never restarted"),
    (Bug::StaleAttempt, "C3", "a report of an earlier attempt counts for the present one"),
    (Bug::NameNotUid, "C3", "a report counts for whatever VM has the name now"),
    (Bug::StaleSession, "C3", "what is said in a session that is over is taken"),
    (Bug::PauseUndone, "C4", "a registration ends a pause"),
    (Bug::Wrap, "C5", "what a worker has left wraps around"),
    (Bug::RestartFailsVms, "C10", "a controller that starts takes absent workers for dead"),
    (Bug::FreedTooSoon, "C16", "the room of a deleted VM is given away while it still runs"),
    (Bug::ReplacedTooSoon, "C17", "VMs of a silent worker start elsewhere at once"),
    (Bug::DeleteForgets, "–", "a VM deleted while its worker is away is forgotten there"),
    (Bug::UnknownDeleted, "C22", "copies that the controller does not know are deleted"),
    (Bug::RestoredPlacesAtOnce, "–", "after a backup was restored VMs start without asking the workers what runs"),
    (Bug::RestoredAttemptsAgain, "–", "after a backup was restored attempts are given out again"),
    (Bug::AnswerBeforeCommit, "–", "answers go out before what they say is durable"),
    (Bug::EventSkipped, "–", "event numbers of a failed commit are not given again"),
    (Bug::KeepReplaced, "–", "a VM that is to be kept is replaced when its worker is gone"),
    (Bug::GoneAtStart, "C10", "a controller that starts takes silent workers for gone at once"),
    (Bug::NoMargin, "–", "a VM is replaced when the lease is over by the controller's clock"),
    (Bug::LeaseFromAnswer, "–", "the worker counts its lease from the answer"),
    (Bug::StaleOrder, "–", "the worker starts by a new lease what was ordered under the one before"),
    (Bug::DrainedTooSoon, "–", "a VM that is moved starts elsewhere while it still runs"),
    (Bug::StaleBoot, "C3", "a report of an earlier boot counts for the present one"),
    (Bug::UpdateLost, "C2", "a VM that starts over has not all that it was changed to"),
    (Bug::KeyIgnored, "–", "a create that comes again is done again"),
    (Bug::NotResent, "C36", "an assignment that was lost is not sent again"),
];
/// Seeds that each may take, unless `ORCHARD_SIM_BOUND` says otherwise. `ORCHARD_SIM_BUG` picks one of them.
const BOUND: u64 = 2_000;

#[test]
fn every_planted_bug_is_found() {
    let mut table = String::from("\n| like | planted bug | seeds | found as |\n|---|---|---|---|\n");
    let mut missed = Vec::new();
    let (only, bound) = (std::env::var("ORCHARD_SIM_BUG").ok(), number("ORCHARD_SIM_BOUND").unwrap_or(BOUND));
    let wanted = |bug: &Bug| only.as_ref().is_none_or(|only| *only == format!("{bug:?}"));
    for (bug, like, what) in BUGS.into_iter().filter(|(bug, ..)| wanted(bug)) {
        plant(Some(bug));
        let found = (1..=bound).find_map(|seed| run(seed, false).err());
        plant(None);
        match found {
            Some(failure) => {
                let sound = run(failure.seed, false);
                assert!(sound.is_ok(), "seed {} fails without {bug:?}, too: {sound:?}", failure.seed);
                let _ = writeln!(table, "| {like} | {what} | {} | {} |", failure.seed, failure.what);
            }
            None => missed.push(bug),
        }
    }
    println!("{table}");
    assert!(missed.is_empty(), "not found in {bound} seeds: {missed:?}");
}
