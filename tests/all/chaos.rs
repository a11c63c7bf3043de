//! Promise: whatever is killed, stopped or cut off, in whatever order, host and controller agree in the end, no VM ever ran
//! twice, every VM runs that should, no line of a log is there twice, and nothing is left of what was deleted.
//!
//! A controller and two workers as processes of their own, with the stand-in for Tart, go through a schedule that a seed
//! decides. `ORCHARD_CHAOS_SEED` repeats one, as well as processes let it be repeated.

pub mod link;
pub mod node;
mod schedule;
mod verdict;
mod world;

use std::time::Instant;

use self::schedule::{Deed, schedule};
use self::world::World;
use crate::harness::LIMIT;
use crate::wait::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_kills_and_cuts_in_any_order_host_and_controller_agree_and_nothing_is_leaked() {
    let seed = std::env::var("ORCHARD_CHAOS_SEED").map_or_else(|_| random(), |text| text.parse().unwrap());
    let schedule = schedule(seed);
    // Shown when the test fails.
    println!("ORCHARD_CHAOS_SEED={seed}");
    schedule.iter().for_each(|(at, deed)| println!("{:>6.1} s {deed:?}", at.as_secs_f32()));

    let mut world = World::start().await;
    let began = Instant::now();
    for (at, deed) in schedule {
        until("the time of the next deed", LIMIT, || async {
            world.no_vm_runs_twice();
            if began.elapsed() >= at { Ok(()) } else { Err(deed) }
        })
        .await;
        println!("{:>6.1} s does {deed:?}", began.elapsed().as_secs_f32());
        world.act(deed).await;
    }
    world.mend().await;
    world.agrees().await;
    world.logs_are_whole().await;
    world.delete_all().await;
    world.nothing_is_left().await;
}

fn random() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

/// What happens when nothing is disturbed is no matter of chance.
#[test]
fn a_seed_decides_the_schedule() {
    let text = |seed| format!("{:?}", schedule(seed));
    assert_eq!(text(7), text(7));
    assert_ne!(text(7), text(8));
    let ends = schedule(7).iter().any(|(_, deed)| matches!(deed, Deed::KillWorker(_)));
    assert!(ends || text(7).contains("Vm"), "nothing happens");
}
