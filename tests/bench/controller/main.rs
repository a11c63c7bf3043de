//! What the controller can do: places in a large fleet, stores before it answers, and carries two thousand workers.
//!
//! `cargo bench --bench controller`; behind `--` the themes to run, of `scheduling`, `durable` and `fleet`, and, only when
//! named, `return`. Each number is printed beside its target; one that is missed is said to be and ends nothing.
//!
//! # Results
//!
//! Two cores (virtual themselves, with neighbours: the disk's own commits vary by half within an hour), 24 GB, nothing else
//! running. Where there are two values, they are of two runs.
//!
//! | what | measured | target |
//! |---|---|---|
//! | one synced LMDB commit each, bare | 2,500 to 4,000/s, p50 0.24 to 0.38 ms, p99 0.4 to 0.8 ms | |
//! | the writer of the store, 64 callers | 41,000 to 72,000/s = 15.4x to 18.2x, at last 19.2x, 19.1x, 18.2x | 15x |
//! | over the bus, 64 requests of 8 accounts | 8,000 to 18,000/s = 3.5x to 4.6x, at last 5.1x, 4.9x, 4.8x | 4x |
//! | p99 of a lone create over the bus, beyond that of a commit | 0.49 ms to 1.8 ms, at last 0.58 ms, 0.60 ms, 0.55 ms | 1 ms |
//! | 10,000 creates until all run | 4.9 s to 18 s as the disk was, at last 5.8 s, 7.3 s | 30 s |
//! | create to running in the full fleet | p99 6.7 ms to 15 ms | p99 20 ms |
//! | CPU of controller and broker while 2,000 workers only beat | 8.4 % to 11.5 %, each data path looked at every 5 s | 15 % |
//! | memory of both then | 175 MiB | 250 MiB |
//! | memory with 2,000 workers and no VM | 96 MiB | |
//! | an empty controller, from start to ready | 17 ms | |
//! | with 10,000 VMs and 100,000 events, first answer, median | 84 ms, 85 ms | 150 ms |
//! | the same with 2,000 workers at the door | 217 ms, 290 ms | |
//! | all 2,000 workers back | 3.1 s, 5.0 s, 4.6 s | 5 s |
//! | VMs touched by that | none | none |
//!
//! What made the difference, each found with `perf`:
//!
//! * The writer applies what comes while it applies, so that 64 callers share one sync and not two; the file is lengthened
//!   before LMDB needs it; buffers live from batch to batch. From 9.9x.
//! * All workers have one address here, so that the broker lets 256 of them begin at a time, and what limits their return
//!   is the two processors. It took twice as much of them while quinn kept entries for
//!   8,192 streams of each connection and read 45 KB of padding, byte by byte, to find out how large packets may be.
//! * mimalloc in place of the system's allocator: a tenth less CPU, and less memory, once it keeps off huge pages, which had
//!   cost 40 MiB.
//! * Workers are of a network, by this machine's address in it. Over loopback, whose packets may have 21,000 bytes, quinn keeps a
//!   buffer of that size for each connection, and more for what comes in: 209 MiB for 2,000 workers, 291 MiB with their VMs.
//! * At a start VMs are boxed, pages are looked through on both processors, and the tunnel's socket is bound first: its 13 MiB
//!   of receive buffers were cleared by hand when loading had used that memory before (10 ms). They are 2.2 MiB by now.
//! * Reading pages in blocks before LMDB maps the file made a start slower by 80 ms, as trees lie scattered in it.
//!
//! Over the bus what limits is the processors: clients, broker, requests, and two events and an audit record published for
//! each create, take 150 us of CPU.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)] // a bench that cannot run panics

mod durable;
mod fleet;
mod ground;
mod scheduling;
mod workers;

/// The program's own, so that what runs in this process is as in that, the workers too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
