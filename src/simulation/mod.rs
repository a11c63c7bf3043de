//! Deterministic simulation of a whole cluster: the real core (`controller::cluster` with its scheduler) and the real
//! table of the worker (`worker::plan`, `bus::parts`), with a simulated bus, disk, runtimes and clock. One seed is one
//! run, and the same seed is always the same run, so whatever one finds can be looked at again.
//!
//! A module of the crate and not an integration test, as the bugs that prove its worth are planted in the core behind
//! `cfg(test)` (`model::planted`), which integration tests do not see.
//!
//! What happens: clients create and delete VMs, pause and drain workers (`client`); the controller's process applies batches
//! as the writer does (`controller`, `disk`); workers register, renew leases and report (`worker`), and bring their hosts to
//! what is wished (`fleet`, `host`); a guard there stops what may be replaced when the lease is over (`guard`). Meanwhile
//! things go wrong (`faults`): messages are lost, doubled and late, processes and machines die, disks fill, clocks jump,
//! backups are restored. After every step the invariants are checked against what really is (`invariants`); then faults
//! stop, and everything must become as it was wished in bounded time (`converge`).
//!
//! To see a failure again, with everything that happened:
//! `ORCHARD_SIM_SEED=17 cargo test --lib simulation::replay -- --nocapture`. How many seeds are tried:
//! `ORCHARD_SIM_SEEDS=2000`, beginning at `ORCHARD_SIM_FIRST`.

mod bugs;
mod bus;
mod client;
mod clock;
mod controller;
mod converge;
mod dice;
mod disk;
mod faults;
mod fleet;
mod guard;
mod host;
mod invariants;
mod script;
mod worker;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use self::world::{Failure, Stats};

/// Seeds tried when nobody says how many: CI tries more.
const SEEDS: u64 = 200;
/// Threads on which seeds are tried.
const THREADS: usize = 2;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// Runs a seed; a panic in the core is a failure like any other.
fn run(seed: u64, traced: bool) -> Result<Stats, Failure> {
    catch_unwind(AssertUnwindSafe(|| world::run(seed, traced))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        let what = format!("panicked: {}", text.unwrap_or_default());
        Err(Failure { seed, what, trace: String::new() })
    })
}

/// The end of a trace, which is what led to the failure.
fn end_of(trace: &str) -> String {
    let lines: Vec<&str> = trace.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

#[test]
fn whatever_goes_wrong_the_invariants_hold_and_everything_settles() {
    let (first, count) = (number("ORCHARD_SIM_FIRST").unwrap_or(1), number("ORCHARD_SIM_SEEDS").unwrap_or(SEEDS));
    let began = Instant::now();
    let (next, stop) = (AtomicU64::new(first), AtomicBool::new(false));
    let (failures, total) = (Mutex::new(Vec::new()), Mutex::new(Stats::default()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    match run(seed, false) {
                        Ok(stats) => total.lock().unwrap().add(stats),
                        Err(failure) => {
                            stop.store(true, Ordering::Relaxed);
                            failures.lock().unwrap().push(failure);
                        }
                    }
                }
            });
        }
    });
    let (failures, total) = (failures.into_inner().unwrap(), total.into_inner().unwrap());
    println!("{count} seeds in {:.1} s: {total}", began.elapsed().as_secs_f64());
    if let Some(failure) = failures.first() {
        let seed = failure.seed;
        let again =
            run(seed, true).err().map_or_else(|| "it does not happen again".to_owned(), |again| end_of(&again.trace));
        panic!(
            "seed {seed}: {}\n{again}\nTo see it all: ORCHARD_SIM_SEED={seed} cargo test --lib simulation::replay -- --nocapture",
            failure.what
        );
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 1..6 {
        let trace = |seed| world::run(seed, true).map_err(|failure| failure.trace);
        assert_eq!(trace(seed), trace(seed), "seed {seed}");
    }
}

/// Shows a run; does nothing unless asked.
#[test]
fn replay() {
    let Some(seed) = number("ORCHARD_SIM_SEED") else { return };
    match run(seed, true) {
        Ok(stats) => println!("seed {seed} goes well: {stats}"),
        Err(failure) => panic!("{}\nseed {seed}: {}", failure.trace, failure.what),
    }
}
