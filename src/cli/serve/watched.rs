//! `--listen-metrics`: what is served about a part that runs, beside it.

use std::net::SocketAddr;

use clap::Args;

use super::Running;
use crate::config::address::parse_listen;
use crate::metrics::server::{Door, Server};

#[derive(Clone, Copy, Debug, Default, Args)]
pub(super) struct WatchArgs {
    /// TCP address of metrics and health over HTTP, such as 127.0.0.1:9464; off without this
    ///
    /// GET /metrics has figures for Prometheus, /healthz says whether the process goes on, /readyz whether it
    /// does its work. Everybody who reaches the address can read them: use one of this machine, or see to it
    /// that only your collector gets there. Port 0 takes a free one, which is shown at the start.
    #[arg(long, value_name = "ADDR", value_parser = parse_listen)]
    listen_metrics: Option<SocketAddr>,
}

/// Something that runs, and what is served about it.
#[derive(Debug)]
pub(super) struct Watched<R> {
    pub(super) running: R,
    server: Option<Server>,
}

impl WatchArgs {
    /// Starts something once its address for metrics is taken, and serves what it tells from then on.
    pub(super) async fn start<R: Running>(
        self,
        start: impl Future<Output = anyhow::Result<R>>,
    ) -> anyhow::Result<Watched<R>> {
        let door = match self.listen_metrics {
            Some(address) => Some(Door::open(address).await?),
            None => None,
        };
        let running = start.await?;
        let server = door.map(|door| door.serve(running.sources()));
        Ok(Watched { running, server })
    }
}

impl<R> Watched<R> {
    /// Where its metrics are; none when they are off.
    pub(super) fn url(&self) -> Option<String> {
        self.server.as_ref().map(|server| format!("http://{}", server.address()))
    }

    /// The rest, without what was served about it.
    async fn unwatched(self) -> R {
        if let Some(server) = self.server {
            server.shutdown().await;
        }
        self.running
    }
}

impl<R: Running> Running for Watched<R> {
    async fn failed(&self) -> String {
        self.running.failed().await
    }

    async fn shutdown(self) {
        self.unwatched().await.shutdown().await;
    }

    fn farewell(&self) -> &'static str {
        self.running.farewell()
    }

    fn grace(&self) -> std::time::Duration {
        self.running.grace()
    }

    async fn stop(self) -> bool {
        self.unwatched().await.stop().await
    }
}
