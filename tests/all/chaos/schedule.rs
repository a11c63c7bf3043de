//! What is done to a cluster, and when; decided by a seed alone.

use std::time::Duration;

use crate::crash::load::Dice;

/// Workers in the world.
pub const WORKERS: usize = 2;
/// How long it is disturbed.
const LENGTH: Duration = Duration::from_secs(22);
/// The least and the most time between two deeds, and how long an outage lasts, in ms.
const PAUSE: (u64, u64) = (300, 1_800);
const OUTAGE: (u64, u64) = (200, 4_000);
/// One worker is out of reach for longer than its lease and its fence, so that its VMs start elsewhere.
const LONG: Duration = Duration::from_secs(18);
/// More failures of VMs than this, and pauses before restarts make the test long.
const MOST_VM_KILLS: usize = 4;

/// One thing that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    /// SIGKILL.
    KillWorker(usize),
    StartWorker(usize),
    /// SIGSTOP and SIGCONT.
    Freeze(usize),
    Thaw(usize),
    /// Its connections are closed, and new ones refused.
    Cut(usize),
    /// Nothing moves on its connections, and nobody says so.
    Silence(usize),
    MendLink(usize),
    KillController,
    StartController,
    /// SIGKILL to a VM's process, to what the worker started it by, or to both. Which VM depends on what runs.
    KillVm(Part, u64),
    /// Switched off, on, deleted, made.
    Stop(u64),
    Start(u64),
    Delete(u64),
    Create(u64),
}

/// Which of a VM's processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Guest,
    Wrapper,
    Both,
}

/// All deeds in the order of time. Each outage ends before the schedule does.
pub fn schedule(seed: u64) -> Vec<(Duration, Deed)> {
    let mut dice = Dice(seed);
    let mut deeds = Vec::new();
    let between = |dice: &mut Dice, (least, most): (u64, u64)| Duration::from_millis(least + dice.below(most - least));
    let unlucky = usize::try_from(dice.below(WORKERS as u64)).unwrap();
    let begin = between(&mut dice, (500, 2_500));
    let long = outage(&mut dice, unlucky);
    deeds.extend([(begin, long.0), (begin + LONG, long.1)]);
    let mut at = Duration::ZERO;
    let mut vm_kills = 0;
    while at < LENGTH {
        at += between(&mut dice, PAUSE);
        let until = at + between(&mut dice, OUTAGE);
        let number = dice.next();
        match dice.below(12) {
            0..=3 => {
                // The one that is away for long is left alone, or it would be back too soon.
                let (begins, ends) = outage(&mut dice, (unlucky + 1) % WORKERS);
                deeds.extend([(at, begins), (until, ends)]);
            }
            4 => deeds.extend([(at, Deed::KillController), (until, Deed::StartController)]),
            5..=7 if vm_kills < MOST_VM_KILLS => {
                vm_kills += 1;
                let part = [Part::Guest, Part::Wrapper, Part::Both][usize::try_from(dice.below(3)).unwrap()];
                deeds.push((at, Deed::KillVm(part, number)));
            }
            8 => deeds.extend([(at, Deed::Stop(number)), (until, Deed::Start(number))]),
            9 => deeds.push((at, Deed::Delete(number))),
            _ => deeds.push((at, Deed::Create(number))),
        }
    }
    deeds.sort_by_key(|(at, _)| *at);
    deeds
}

/// How an outage of a worker begins and ends.
fn outage(dice: &mut Dice, worker: usize) -> (Deed, Deed) {
    match dice.below(4) {
        0 => (Deed::KillWorker(worker), Deed::StartWorker(worker)),
        1 => (Deed::Freeze(worker), Deed::Thaw(worker)),
        2 => (Deed::Cut(worker), Deed::MendLink(worker)),
        _ => (Deed::Silence(worker), Deed::MendLink(worker)),
    }
}
