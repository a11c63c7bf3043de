//! The `orchard` binary: arguments, tracing, run the command, exit code. Nothing else.

use std::process::ExitCode;

use clap::Parser as _;
use orchard::cli::{self, Arguments};
use orchard::trace;
use orchard::trace::export::{self, Exporter};
use tokio::runtime::Handle;
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt as _, FilterFn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer};

/// A controller makes and drops many small things for each request, on several threads: a quarter of its time was the
/// system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Libraries that log what goes through them, with the passwords and tokens in it, when asked for all they have.
const TALKATIVE: &[&str] = &["async_nats", "russh"];

fn main() -> ExitCode {
    cli::answer_shell();
    let arguments = Arguments::parse();
    let result = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => {
            let exporter = log_and_trace(&arguments, runtime.handle());
            let result = match arguments.is_traced() {
                true => {
                    let span = tracing::info_span!(target: trace::TARGET, "orchard", otel.name = arguments.name());
                    runtime.block_on(trace::run_apart(span, trace::of_environment(), cli::run(arguments)))
                }
                false => runtime.block_on(cli::run(arguments)),
            };
            if let Some(exporter) = exporter {
                exporter.finish();
            }
            // A thread that still waits for standard input must not hold the process back.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(anyhow::Error::new(error).context("cannot start the runtime")),
    };
    ExitCode::from(result.unwrap_or_else(|error| cli::report(&error)))
}

/// Has lines go to standard error, and traces to where the environment says, if it does.
fn log_and_trace(arguments: &Arguments, runtime: &Handle) -> Option<Exporter> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(arguments.log_filter()));
    let service = arguments.service();
    match export::start(service, runtime) {
        // What is not wanted in the log is wanted in a trace.
        Some((exporter, traces)) => {
            let lines = lines().with_filter(filter.and(FilterFn::new(is_safe)));
            tracing_subscriber::registry().with(traces).with(lines).init();
            Some(exporter)
        }
        None => {
            tracing_subscriber::registry().with(filter).with(FilterFn::new(is_safe)).with(lines()).init();
            None
        }
    }
}

/// What writes events as lines.
fn lines<S: Subscriber + for<'span> LookupSpan<'span>>() -> impl Layer<S> {
    let colours = cli::colours_on_stderr();
    tracing_subscriber::fmt::layer().with_writer(|| cli::Log).with_ansi(colours).with_target(false)
}

/// Whether an event may be logged at all, whatever `RUST_LOG` says.
fn is_safe(event: &Metadata<'_>) -> bool {
    *event.level() != Level::TRACE || !TALKATIVE.iter().any(|library| event.target().starts_with(library))
}
