//! What the controller can do: places in a large fleet, stores before it answers, and carries two thousand workers.
//!
//! `cargo bench --bench controller`; behind `--` the themes to run, of `scheduling`, `durable` and `fleet`.
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
}
