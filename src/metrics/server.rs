//! Answers `GET /metrics`, `/healthz` and `/readyz` over HTTP, for scrapers, service managers and load balancers.
//!
//! Plain text without a login: it belongs on a loopback address, or behind something that asks who comes. One request for each
//! connection, within a deadline, and a few connections at once, so that strangers who find it cost little.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::Source;
use super::page::{self, Page};
use crate::task::{self, Task};

/// Connections at once; those beyond wait to be accepted. A scraper, a service manager and some people have far fewer.
const MAX_CONNECTIONS: usize = 32;
/// From its first byte to its end. Longer than all sources may take for their answers, and shorter than Prometheus waits.
const DEADLINE: Duration = Duration::from_secs(9);
/// How long a client may take to say what it wants.
const HEADER_DEADLINE: Duration = Duration::from_secs(3);
/// More than any scraper's request has.
const MAX_REQUEST: usize = 16 * 1024;
/// The pause after connections could not be accepted, as when there are no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// What is to be found where.
const INDEX: &str = "/metrics  figures, as OpenMetrics text\n/healthz  200 while the process goes on, 503 otherwise\n\
                     /readyz   200 while it does its work, 503 and the reasons otherwise\n";

/// The address cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for metrics on TCP {address} (another address is given with --listen-metrics)")]
pub struct BindError {
    /// What was asked for.
    pub address: SocketAddr,
    /// What the system said.
    pub source: io::Error,
}

/// An address that is taken; whoever connects waits until something is served there.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    address: SocketAddr,
}

impl Door {
    /// Takes `address` (port 0: a free one).
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn open(address: SocketAddr) -> Result<Self, BindError> {
        let failed = |source| BindError { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves what `sources` tell, until the server is dropped.
    pub fn serve(self, sources: Vec<Arc<dyn Source>>) -> Server {
        Server { address: self.address, accepting: task::spawn(accept(self.listener, sources.into())) }
    }
}

/// A running server; dropping it ends it with all its connections.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    accepting: Task,
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends it, and lets go of its sources but for those that are being asked.
    pub async fn shutdown(self) {
        self.accepting.abort().await;
    }
}

async fn accept(listener: TcpListener, sources: Arc<[Arc<dyn Source>]>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    while let Ok(permit) = room.clone().acquire_owned().await {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let sources = sources.clone();
                connections.spawn(async move {
                    let _permit = permit;
                    // One that is too slow, or goes away, is nobody's loss.
                    let _ = tokio::time::timeout(DEADLINE, serve(stream, &sources)).await;
                });
            }
            Err(error) => {
                tracing::debug!("a connection for metrics could not be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, sources: &[Arc<dyn Source>]) -> Result<(), hyper::Error> {
    let service = service_fn(move |request| async move { Ok::<_, Infallible>(answer(&request, sources).await) });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_DEADLINE)
        .max_buf_size(MAX_REQUEST)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn answer(request: &Request<Incoming>, sources: &[Arc<dyn Source>]) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        "/metrics" => metrics(sources).await,
        "/healthz" => health(sources.iter().filter_map(|source| source.alive().err()).collect()),
        "/readyz" => health(complaints(sources).await),
        "/" => plain(StatusCode::OK, INDEX),
        _ => plain(StatusCode::NOT_FOUND, format!("nothing is here; there are\n{INDEX}")),
    }
}

async fn metrics(sources: &[Arc<dyn Source>]) -> Response<Full<Bytes>> {
    let mut page = Page::default();
    for source in sources {
        source.scrape(&mut page).await;
    }
    let Ok(written) = page.write() else {
        return plain(StatusCode::INTERNAL_SERVER_ERROR, "the figures could not be written\n");
    };
    let mut response = Response::new(Full::from(written));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(page::CONTENT_TYPE));
    response
}

/// What keeps any of them from its work.
async fn complaints(sources: &[Arc<dyn Source>]) -> Vec<String> {
    let all = futures_util::future::join_all(sources.iter().map(|source| source.ready())).await;
    all.into_iter().filter_map(Result::err).flatten().collect()
}

fn health(complaints: Vec<String>) -> Response<Full<Bytes>> {
    match complaints.is_empty() {
        true => plain(StatusCode::OK, "ok\n"),
        false => plain(StatusCode::SERVICE_UNAVAILABLE, complaints.join("\n") + "\n"),
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

#[cfg(test)]
mod tests;
