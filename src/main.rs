//! The `orchard` binary: arguments, tracing, run the command, exit code. Nothing else.

use std::io;
use std::process::ExitCode;

use clap::Parser as _;
use orchard::cli::{self, Arguments};
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// A controller makes and drops many small things for each request, on several threads: a quarter of its time was the
/// system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Libraries that log what goes through them, with the passwords and tokens in it, when asked for all they have.
const TALKATIVE: &[&str] = &["async_nats", "russh"];

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(arguments.log_filter()));
    let colours = cli::colours_on_stderr();
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(colours).with_target(false);
    tracing_subscriber::registry().with(filter).with(FilterFn::new(is_safe)).with(lines).init();
    let result = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let result = runtime.block_on(cli::run(arguments));
            // A thread that still waits for standard input must not hold the process back.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(anyhow::Error::new(error).context("cannot start the runtime")),
    };
    ExitCode::from(result.unwrap_or_else(|error| cli::report(&error)))
}

/// Whether an event may be logged at all, whatever `RUST_LOG` says.
fn is_safe(event: &Metadata<'_>) -> bool {
    *event.level() != Level::TRACE || !TALKATIVE.iter().any(|library| event.target().starts_with(library))
}
