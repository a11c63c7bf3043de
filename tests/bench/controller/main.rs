//! What the controller can do: places in a large fleet, stores before it answers, and carries two thousand workers.
//!
//! `cargo bench --bench controller`; behind `--` the themes to run, of `scheduling`, `durable` and `fleet`, and, only when
//! named, `return`. Each number is printed beside its target; one that is missed is said to be and ends nothing.
//!
//! # Results
//!
//! Two cores (virtual themselves), 24 GB, a disk that syncs 4 KiB in 0.13 ms. The machine was busy with other builds all the
//! time, at the load average that stands beside each number: those of a quiet one are still to be taken.
//!
//! | what | measured | target | load |
//! |---|---|---|---|
//! | one synced LMDB commit each, bare | 2,160/s, p50 0.41 ms, p99 1.3 ms | | 3 |
//! | the writer of the store, 64 callers | 22,600/s = 10.9x | 15x | 3 |
//! | the same | 14.9x | 15x | 13 |
//! | over the bus, 64 requests of one account | 5,263/s, which is what one account may do | | 3 |
//! | over the bus, 64 requests of 8 accounts | 3.0x | 4x | 13 |
//! | a lone create over the bus, p99 beyond that of a commit | 1.2 ms | 1 ms | 3 |
//! | 10,000 creates until all run | 8.5 s | 30 s | 8 |
//! | create to running in the full fleet | p50 4.3 ms, p90 26 ms, p99 47 ms | p99 20 ms | 9 |
//! | CPU of controller and broker while 2,000 workers only beat | 8 to 12 % of a core | 15 % | 7 to 14 |
//! | memory of both then | 261 to 273 MiB, of it 60 mapped files | 250 MiB | |
//! | memory with 2,000 workers and no VM | 168 MiB | | |
//! | an empty controller, from start to ready | 60 ms (130 ms before) | | 4 |
//! | with 10,000 VMs and 100,000 events, first answer | 277 to 370 ms, of it some 120 ms of CPU | 150 ms | 9 to 13 |
//! | the same with 2,000 workers at the door | 1.6 s | 150 ms | 16 |
//! | all 2,000 workers back | 48 s, 83 s | 5 s | 13, 16 |
//! | the same without VMs, since the mend told below | 15 s, 32 s | 5 s | 4 to 5 |
//! | first answer then, 2,000 workers at the door | 119 ms, 95 ms | 150 ms | 4 to 5 |
//! | VMs touched by that | none | none | |
//!
//! Where the time of a start goes, taken with 10,000 VMs that wait, 70 MiB of store and two compilers beside it, in all
//! 290 ms: looking through the pages 68 ms (one read of 4 KiB for each), counting the audit trail 15 ms, opening and decoding
//! the VMs 60 ms on two processors, `Cluster::load` 86 ms, and 50 ms of pause before the first connection to the bus, which
//! is gone since.
//!
//! All workers have one address here, so that the broker lets 256 of them begin at a time. Their return was slow because
//! most handshakes came to nothing on a busy machine: of the TLS ones more ended after the three seconds that strangers of
//! a crowded network have than came in, and of those with the relay nearly all were refused, as there was no session yet.
//! Since then workers leave the relay alone until it can know them, and ask at once behind a new connection. What
//! limits it now is the two processors: the return of 2,000 took 8 to 14 s of the controller and 11 to 20 s of the workers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)] // a bench that cannot run panics

mod durable;
mod fleet;
mod ground;
mod scheduling;
mod workers;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(dir) = fleet::is_role(&arguments) {
        return workers::be(dir);
    }
    let named: Vec<&str> = arguments.iter().skip(1).map(String::as_str).filter(|word| !word.starts_with('-')).collect();
    let wanted = |theme: &str| named.is_empty() || named.contains(&theme);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    if wanted("scheduling") {
        scheduling::run();
    }
    if wanted("durable") {
        runtime.block_on(durable::run());
    }
    if wanted("fleet") {
        runtime.block_on(fleet::run());
    }
    if named.contains(&"return") {
        runtime.block_on(fleet::come_back());
    }
}
