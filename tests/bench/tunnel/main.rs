//! How fast the tunnel is, client → relay → worker → guest, beside relays of the same shape: plain TCP, TLS on both hops,
//! WebSockets over TLS on both hops. And what sessions cost.
//!
//! `cargo bench --bench tunnel`; behind `--` the themes to run, of `paths`, `one` (all parts on one processor) and `sessions`.
//! Only ratios of one run mean anything. Every part has a runtime with one thread of its own, as it would have a process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)] // a failed bench panics

mod figures;
mod ground;
mod paths;
mod sessions;

use std::process::Command;

use orchard::identity::tls;
use rustix::thread::{CpuSet, sched_setaffinity};

/// The program's own, so that what runs in this process is as in that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The word that binds this program to one processor.
const ON_ONE: &str = "on-one-processor";

fn main() {
    tls::install_provider();
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    match words.first().map(String::as_str) {
        Some(sessions::ROLE) => return sessions::be_the_relay(),
        Some(ON_ONE) => {
            let mut one = CpuSet::new();
            one.set(0);
            // Before there is any thread but this.
            sched_setaffinity(None, &one).unwrap();
            return figures::run_on_one();
        }
        _ => {}
    }
    let wanted = |theme: &str| words.is_empty() || words.iter().any(|word| word == theme);
    if wanted("paths") {
        figures::run();
    }
    if wanted("one") {
        let status = Command::new(std::env::current_exe().unwrap()).arg(ON_ONE).status().unwrap();
        assert!(status.success(), "{status}");
    }
    if wanted("sessions") {
        sessions::run();
    }
}
