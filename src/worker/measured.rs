//! A runtime whose commands are counted and timed; all else is that of the one inside.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;

use super::meters::{Command, Meters};
use super::runtime::{CachedImage, CopySpec, Exit, Found, GuestStream, Progress, Runtime, RuntimeError};
use crate::model::CopyId;
use crate::model::vm::RuntimeKind;

/// See the module.
#[derive(Debug)]
pub(super) struct Measured {
    inner: Arc<dyn Runtime>,
    meters: Arc<Meters>,
}

impl Measured {
    /// `inner`, of which `meters` tell.
    pub(super) fn new(inner: Arc<dyn Runtime>, meters: Arc<Meters>) -> Self {
        Self { inner, meters }
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
        self.run(Command::Create, self.inner.create(copy, progress)).await
    }

    async fn start(&self, copy: &CopySpec) -> Result<(), RuntimeError> {
        self.run(Command::Start, self.inner.start(copy)).await
    }

    async fn booted(&self, id: CopyId) {
        self.inner.booted(id).await;
    }

    async fn wait_exit(&self, id: CopyId) -> Exit {
        self.inner.wait_exit(id).await
    }

    async fn stop(&self, id: CopyId, grace: Duration) -> Result<(), RuntimeError> {
        self.run(Command::Stop, self.inner.stop(id, grace)).await
    }

    async fn kill(&self, id: CopyId) -> Result<(), RuntimeError> {
        self.run(Command::Kill, self.inner.kill(id)).await
    }

    async fn suspend(&self, id: CopyId, progress: &Progress) -> Result<(), RuntimeError> {
        self.run(Command::Suspend, self.inner.suspend(id, progress)).await
    }

    async fn delete(&self, id: CopyId) -> Result<(), RuntimeError> {
        self.run(Command::Delete, self.inner.delete(id)).await
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
