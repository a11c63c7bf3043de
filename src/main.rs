//! The `orchard` binary: arguments, tracing, run the command, exit code. Nothing else.

use std::io::{self, IsTerminal as _};
use std::process::ExitCode;

use clap::Parser as _;
use orchard::cli::{self, Arguments};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(arguments.log_filter()));
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(colours)
        .with_target(false)
        .init();
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
