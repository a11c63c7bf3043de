//! How fast the tunnel is, client → relay → worker → guest, beside relays of the same shape: plain TCP, TLS on both hops,
//! WebSockets over TLS on both hops. And what sessions cost.
//!
//! `cargo bench --bench tunnel`; behind `--` the themes to run, of `paths`, `one` (all parts on one processor) and `sessions`.
//! Only ratios of one run mean anything. Every part has a runtime with one thread of its own, as it would have a process.
//!
//! # Results
//!
//! Two cores, virtual themselves, nothing else running; loopback. Ratios to the TLS relay unless it says otherwise; such a ratio
//! varies by a tenth from run to run.
//!
//! | what | measured | target |
//! |---|---|---|
//! | bulk up and down | 1.25x, 1.12x (1,001 and 953 MB/s) with 0.90 of its CPU; another run 1.25x, 1.04x | 1.0x |
//! | bulk with packets for Ethernet, up and down | 0.49x to 0.53x, 0.46x to 0.48x (420 and 410 MB/s) with 2.15 of its CPU | 0.5x |
//! | bulk up and down, to the WebSocket relay | 1.55x to 1.64x, 1.23x to 1.28x | 1.5x |
//! | the plain TCP relay, up and down | 1.40x, 1.26x | |
//! | one byte there and back, all on one processor, p50 | 1.59x (55 us) | 1.7x |
//! | first byte of a new session, guest within the worker | p50 365 us, p99 0.50 to 0.57 ms | p99 1 ms |
//! | memory of the controller for each of 5,000 idle sessions | 7.2 KiB | 8 KiB |
//! | growth of its memory by 10,000 sessions more | none | 512 KiB |
//!
//! What made the difference, by `perf`:
//!
//! * The relay joins the pieces that arrive together: quinn-proto looks for the contents of each packet from the first piece that
//!   is not acknowledged on. The worker writes them to the guest in one call. Bulk was 0.76x to 0.84x, and then 0.85x to 0.96x.
//! * Over loopback packets have 21,000 bytes and streams a window of 4 MiB: 1.06 of the CPU became 0.88. Packets of 65,000 bytes
//!   and 8 MiB gave 1.29x and 1.25x (and 1.6x of the WebSocket relay), but finding out that they pass costs each connection 3 ms.
//! * What is left: a fifth goes to sending UDP, a sixth to AES-GCM, a seventh to copies (quinn's from the socket's buffer and into
//!   packets are not to be had without), a tenth to waking the other core. With Ethernet's packets most is for each packet.
//! * Down is slower than up, as the guest's kernel sends 64 KiB at a time and a worker writes up to 32 pieces in one call; to read
//!   from the guest in 128, 256 or 512 KiB at a time made no difference.
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
