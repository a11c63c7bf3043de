//! What the command line says, word for word: pinned in `tests/fixtures/output`, so that a change of it is a change that
//! somebody decided on. `ORCHARD_UPDATE_OUTPUT=1 cargo test --test all -- output::` writes these files anew.

mod colours;
mod errors;
mod forms;
mod golden;
mod help;
mod servers;
mod versions;
mod watch;
mod wrong_use;
