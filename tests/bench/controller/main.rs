//! What the controller can do: places in a large fleet.
//!
//! `cargo bench --bench controller`
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, missing_docs)] // a bench that cannot run panics

mod scheduling;

fn main() {
    scheduling::run();
}
