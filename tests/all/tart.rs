//! The Tart and Vetu runtimes against a stand-in for the tools, `tests/fixtures/tools/standin.sh`.

mod calls;
mod cases;
mod cluster;
mod failures;
pub mod guest;
pub mod host;
mod life;
mod process;
mod spool;
