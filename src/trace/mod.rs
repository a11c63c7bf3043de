//! Which trace a piece of work belongs to: W3C trace context, handed on from the command line through controller and worker
//! to the commands of the runtime, and exported where the standard `OTEL_*` variables ask for it ([`export`]).
//!
//! Nobody needs to export for a trace to be handed on: a context that comes in goes out again. Without one, and without
//! exporting, nothing is made, kept or sent.

pub mod export;
pub mod parent;
mod under_way;

use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry::trace::{SpanContext, TraceContextExt, TraceState};
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

pub use self::parent::TraceParent;
pub use self::under_way::UnderWay;

/// What spans are of that belong to traces.
pub const TARGET: &str = "orchard::trace";
/// The header of a message on the bus that carries a context, and the variable of a process, in capitals.
pub const TRACEPARENT: &str = "traceparent";
/// The variable.
const VARIABLE: &str = "TRACEPARENT";

/// Whether spans are exported.
static EXPORTS: AtomicBool = AtomicBool::new(false);

tokio::task_local! {
    /// The context of the work at hand.
    static CARRIED: TraceParent;
}

/// Whether spans are exported by this process, so that it is worth making them.
pub fn exports() -> bool {
    EXPORTS.load(Ordering::Relaxed)
}

/// The context of the work at hand; none when it belongs to no trace.
pub fn current() -> Option<TraceParent> {
    CARRIED.try_with(|carried| *carried).ok()
}

/// Whether there is a trace, or one may begin here.
pub fn is_wanted() -> bool {
    exports() || current().is_some()
}

/// What the environment of this process says of the trace that it belongs to.
pub fn of_environment() -> Option<TraceParent> {
    std::env::var(VARIABLE).ok().and_then(|text| TraceParent::parse(&text))
}

/// The variable for a process that is started for the work at hand.
pub fn environment() -> Option<(&'static str, String)> {
    current().map(|carried| (VARIABLE, carried.to_string()))
}

/// Does `work` within `span`, as a part of the trace that `parent` belongs to; without one, as what the span is a part of.
/// Cancel safe if that is.
pub async fn run<T>(span: Span, parent: Option<TraceParent>, work: impl Future<Output = T>) -> T {
    match begin(&span, parent) {
        Some(here) => CARRIED.scope(here, work.instrument(span)).await,
        None => work.instrument(span).await,
    }
}

/// The same for a whole process: its tasks are no part of `span`, which has ended when this returns. Those that are stopped then
/// may live on for a moment, and would keep it from being exported.
pub async fn run_apart<T>(span: Span, parent: Option<TraceParent>, work: impl Future<Output = T>) -> T {
    let done = match begin(&span, parent) {
        Some(here) => CARRIED.scope(here, work).await,
        None => work.await,
    };
    drop(span);
    done
}

/// Makes `span` a part of the trace that `parent` belongs to, and yields what is to be handed on.
pub fn begin(span: &Span, parent: Option<TraceParent>) -> Option<TraceParent> {
    if !exports() {
        return parent;
    }
    if let Some(parent) = parent {
        let remote = SpanContext::new(parent.trace, parent.span, parent.flags, true, TraceState::NONE);
        // Without the exporter's layer there is nothing to tell.
        let _ = span.set_parent(opentelemetry::Context::new().with_remote_span_context(remote));
    }
    let context = span.context();
    TraceParent::of(context.span().span_context()).or(parent)
}
