//! How soon a VM starts over, or boots again, after a failure. Pure; called wherever one is counted (`vm`, `power`,
//! `replace`), and for what is left of a pause when the state is loaded.
//!
//! The first restart in a row comes at once, each further one after a longer pause. A VM that ran for long before it failed
//! begins anew.

use std::time::Duration;

use super::Cluster;
use crate::model::vm::Vm;
use crate::model::{Now, Timestamp, VmUid};

/// The pause before the second restart in a row; doubled for each further one. The first comes at once.
const RESTART_PAUSE: Duration = Duration::from_secs(5);
/// The longest pause between restarts: a broken image costs little, a mended one is noticed soon.
const MAX_RESTART_PAUSE: Duration = Duration::from_secs(300);
/// A VM that ran this long has proved itself: its next failure counts as the first again.
const PROVEN_AFTER: Duration = Duration::from_secs(600);

/// Counts a failure of `vm`, while its record is still that of the copy which failed; yields the pause before the restart.
pub(super) fn count_failure(vm: &mut Vm, now: Timestamp) -> Duration {
    let proven = runs_since(vm).is_some_and(|since| since.until(now) >= PROVEN_AFTER);
    let earlier = if proven { 0 } else { vm.quick_failures };
    vm.quick_failures = earlier.saturating_add(1);
    vm.restarted_at = Some(now);
    restart_pause(earlier)
}

/// Since when the process that failed may have run; none = it never did. One that booted again from its disk after a failure
/// has run since then at most, however long ago its copy was begun.
fn runs_since(vm: &Vm) -> Option<Timestamp> {
    if vm.boot == 0 { vm.started_at } else { vm.restarted_at.max(vm.started_at) }
}

/// What is left of the pause before the restart that `vm` waits for, as far as its record tells: for a controller that has
/// itself been started anew.
pub(super) fn pause_left(vm: &Vm, now: Timestamp) -> Duration {
    let Some((restarted, earlier)) = vm.restarted_at.zip(vm.quick_failures.checked_sub(1)) else {
        return Duration::ZERO;
    };
    restart_pause(earlier).saturating_sub(restarted.until(now))
}

/// The pause before a restart, after `quick` failures in a row before this one.
fn restart_pause(quick: u32) -> Duration {
    match quick.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => RESTART_PAUSE.saturating_mul(1 << doublings.min(16)).min(MAX_RESTART_PAUSE),
    }
}

impl Cluster {
    /// Has a VM start over after `pause`: if it needs a worker and there is no pause, it waits for one at once.
    pub(super) fn go_on_after(&mut self, uid: VmUid, pause: Duration, now: Now) {
        if pause.is_zero() {
            self.consider(uid);
        } else {
            self.scheduler.withdraw(uid);
            self.held_back.insert(uid, now.mono.saturating_add(pause));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::vm::VmSpec;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn vm(boot: u32, started: Option<i64>, restarted: Option<i64>) -> Vm {
        let uid = VmUid(uuid::Uuid::nil());
        let vm = Vm::requested("a".parse().unwrap(), uid, at(0), VmSpec::default());
        Vm { boot, started_at: started.map(at), restarted_at: restarted.map(at), quick_failures: 3, ..vm }
    }

    #[test]
    fn restarts_come_at_once_then_ever_later_up_to_a_bound() {
        let pauses: Vec<_> = (0..9).map(|quick| restart_pause(quick).as_secs()).collect();
        assert_eq!(pauses, [0, 5, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(restart_pause(u32::MAX), MAX_RESTART_PAUSE);
    }

    #[test]
    fn what_ran_for_long_begins_anew_and_nothing_else_does() {
        for (vm, proven) in [
            (vm(0, None, Some(0)), false), // was prepared for long, and never ran
            (vm(0, Some(401), Some(0)), false),
            (vm(0, Some(400), Some(390)), true),
            (vm(2, Some(0), Some(401)), false), // its copy is old, its process is not
            (vm(2, Some(0), Some(400)), true),
            (vm(2, Some(0), None), true), // booted again, though not after a failure
        ] {
            let mut counted = vm.clone();
            let pause = count_failure(&mut counted, at(1000));
            let (quick, wait) = if proven { (1, 0) } else { (4, 20) };
            assert_eq!((counted.quick_failures, pause.as_secs()), (quick, wait), "{vm:?}");
            assert_eq!(counted.restarted_at, Some(at(1000)));
            assert_eq!(pause_left(&counted, at(1003)), pause.saturating_sub(Duration::from_secs(3)));
        }
    }
}
