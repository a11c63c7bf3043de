//! A runtime whose commands are counted, timed and traced; all else is that of the one inside.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;

use super::meters::{Command, Meters};
use super::runtime::{CachedImage, CopySpec, Exit, Found, GuestStream, Progress, Runtime, RuntimeError};
use crate::model::vm::RuntimeKind;
use crate::model::{CopyId, VmUid};
use crate::trace::{self, UnderWay};

/// See the module.
#[derive(Debug)]
pub(super) struct Measured {
    inner: Arc<dyn Runtime>,
    meters: Arc<Meters>,
    traces: Arc<UnderWay<VmUid>>,
}

impl Measured {
    /// `inner`, of which `meters` tell, and which works for `traces`.
    pub(super) fn new(inner: Arc<dyn Runtime>, meters: Arc<Meters>, traces: Arc<UnderWay<VmUid>>) -> Self {
        Self { inner, meters, traces }
    }

    /// Runs one command. Cancel safe if that is.
    async fn run<T>(
        &self,
        command: Command,
        work: impl Future<Output = Result<T, RuntimeError>> + Send,
    ) -> Result<T, RuntimeError> {
        let underway = self.meters.commands.begin(command);
        let result = work.await;
        underway.ended(&result);
        result
    }

    /// The same for a copy, as a part of the trace of the request for its VM.
    async fn run_for<T>(
        &self,
        id: CopyId,
        command: Command,
        work: impl Future<Output = Result<T, RuntimeError>> + Send,
    ) -> Result<T, RuntimeError> {
        let Some(parent) = self.traces.of(&id.uid) else { return self.run(command, work).await };
        let name = format!("runtime {}", command.as_str());
        let span = tracing::info_span!(target: trace::TARGET, "runtime", otel.name = name, copy = %id);
        trace::run(span, Some(parent), self.run(command, work)).await
    }
}

#[async_trait]
impl Runtime for Measured {
    fn kind(&self) -> RuntimeKind {
        self.inner.kind()
    }

    fn boot_permits(&self) -> usize {
        self.inner.boot_permits()
    }

    fn outlives_worker(&self) -> bool {
        self.inner.outlives_worker()
    }

    async fn list(&self) -> Result<Vec<Found>, RuntimeError> {
        let listed = self.run(Command::List, self.inner.list()).await;
        self.meters.lists.store(listed.is_ok(), Ordering::Relaxed);
        listed
    }

    async fn create(&self, copy: &CopySpec, progress: &Progress) -> Result<(), RuntimeError> {
        self.run_for(copy.id, Command::Create, self.inner.create(copy, progress)).await
    }

    async fn start(&self, copy: &CopySpec) -> Result<(), RuntimeError> {
        self.run_for(copy.id, Command::Start, self.inner.start(copy)).await
    }

    async fn booted(&self, id: CopyId) {
        self.inner.booted(id).await;
    }

    async fn wait_exit(&self, id: CopyId) -> Exit {
        self.inner.wait_exit(id).await
    }

    async fn stop(&self, id: CopyId, grace: Duration) -> Result<(), RuntimeError> {
        self.run_for(id, Command::Stop, self.inner.stop(id, grace)).await
    }

    async fn kill(&self, id: CopyId) -> Result<(), RuntimeError> {
        self.run_for(id, Command::Kill, self.inner.kill(id)).await
    }

    async fn suspend(&self, id: CopyId, progress: &Progress) -> Result<(), RuntimeError> {
        self.run_for(id, Command::Suspend, self.inner.suspend(id, progress)).await
    }

    async fn delete(&self, id: CopyId) -> Result<(), RuntimeError> {
        self.run_for(id, Command::Delete, self.inner.delete(id)).await
    }

    async fn cached_images(&self) -> Result<Vec<CachedImage>, RuntimeError> {
        self.run(Command::Images, self.inner.cached_images()).await
    }

    async fn pull(&self, image: &str, progress: &Progress) -> Result<(), RuntimeError> {
        let began = tokio::time::Instant::now();
        let pulled = self.run(Command::Pull, self.inner.pull(image, progress)).await;
        if pulled.is_ok() {
            self.meters.pull.took(began.elapsed());
        }
        pulled
    }

    async fn prune_images(&self, keep_free: u64) -> Result<Vec<String>, RuntimeError> {
        self.run(Command::Prune, self.inner.prune_images(keep_free)).await
    }

    async fn image_fqn(&self, id: CopyId) -> Option<String> {
        self.inner.image_fqn(id).await
    }

    async fn address(&self, id: CopyId) -> Result<IpAddr, RuntimeError> {
        self.inner.address(id).await
    }

    async fn dial(&self, id: CopyId, port: u16) -> Result<GuestStream, RuntimeError> {
        self.inner.dial(id, port).await
    }
}
