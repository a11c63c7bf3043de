//! Sends spans to a collector by OTLP, as protobuf over HTTP, where `OTEL_EXPORTER_OTLP_ENDPOINT` or
//! `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` says where that is. The other standard variables are heeded as well: headers,
//! time-outs, `OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_TRACES_SAMPLER`, `OTEL_BSP_…`, `OTEL_SDK_DISABLED`,
//! `OTEL_TRACES_EXPORTER=none`.
//!
//! Whoever starts the process calls [`start`] once, hangs the layer below its logs, and calls [`Exporter::finish`] at the end.
//! A collector that cannot be reached costs the spans and nothing else.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tokio::runtime::Handle;
use tracing::Metadata;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::{Layer, Registry};

use super::{EXPORTS, TARGET};
use crate::identity::tls;

/// Where to.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// How long the end of a process waits for what is still to be sent.
const FAREWELL: Duration = Duration::from_secs(3);
/// The longest answer that is read of a collector, in bytes.
const MOST_ANSWERED: usize = 64 * 1024;

/// Exports until it is finished.
#[derive(Debug)]
pub struct Exporter(SdkTracerProvider);

/// Whether the environment asks for traces.
pub fn is_asked_for() -> bool {
    let value = |name: &str| std::env::var(name).unwrap_or_default();
    let off = value("OTEL_SDK_DISABLED").eq_ignore_ascii_case("true") || value("OTEL_TRACES_EXPORTER") == "none";
    !off && ENDPOINTS.iter().any(|name| !value(name).is_empty())
}

/// Begins to export as the part `service`, if the environment asks for it, by tasks of `runtime`; and what makes spans of
/// those of this program. Nothing is exported when the collector's address makes no sense, which is told on standard error.
pub fn start(
    service: &'static str,
    runtime: &Handle,
) -> Option<(Exporter, impl Layer<Registry> + Send + Sync + use<>)> {
    if !is_asked_for() {
        return None;
    }
    let exporter = match exporter(runtime) {
        Ok(exporter) => exporter,
        Err(why) => {
            eprintln!("WARNING: no traces are exported: {why}");
            return None;
        }
    };
    let resource = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    let named = std::env::var("OTEL_SERVICE_NAME").is_ok_and(|name| !name.is_empty());
    let resource = if named { resource } else { resource.with_service_name(service) };
    let provider = SdkTracerProvider::builder().with_resource(resource.build()).with_batch_exporter(exporter).build();
    let layer = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("orchard"))
        .with_threads(false)
        .with_location(false)
        .with_tracked_inactivity(false)
        .with_filter(FilterFn::new(is_of_a_trace));
    EXPORTS.store(true, Ordering::Relaxed);
    Some((Exporter(provider), layer))
}

fn is_of_a_trace(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.target() == TARGET
}

fn exporter(runtime: &Handle) -> Result<SpanExporter, Box<dyn std::error::Error>> {
    tls::install_provider();
    let client = reqwest::Client::builder().user_agent(concat!("orchard/", env!("CARGO_PKG_VERSION"))).build()?;
    let client = Client { client, runtime: runtime.clone() };
    Ok(SpanExporter::builder().with_http().with_http_client(client).with_protocol(Protocol::HttpBinary).build()?)
}

impl Exporter {
    /// Sends what is left, for a few seconds at most. The runtime must still go on, and this not be one of its tasks.
    pub fn finish(self) {
        EXPORTS.store(false, Ordering::Relaxed);
        let _ = self.0.shutdown_with_timeout(FAREWELL);
    }
}

/// The library exports from a thread of its own, where our client has no runtime.
#[derive(Debug)]
struct Client {
    client: reqwest::Client,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request: reqwest::Request = request.try_into()?;
        let client = self.client.clone();
        self.runtime.spawn(send(client, request)).await?
    }
}

async fn send(client: reqwest::Client, request: reqwest::Request) -> Result<Response<Bytes>, HttpError> {
    let mut answer = client.execute(request).await?;
    let (status, headers) = (answer.status(), std::mem::take(answer.headers_mut()));
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if body.len() + chunk.len() > MOST_ANSWERED {
            return Err("the collector's answer is too long".into());
        }
        body.extend_from_slice(&chunk);
    }
    let mut response = Response::builder().status(status).body(Bytes::from(body))?;
    *response.headers_mut() = headers;
    Ok(response)
}
