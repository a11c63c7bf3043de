//! A runtime without guests, for scale and fault tests and for trying Orchard without a hypervisor. It is a peer of the
//! real ones: the same steps, states and errors, only its VMs are entries in a [`SyntheticHost`].
//!
//! Port 22 of a running VM is a real SSH server (`guest`) with a tiny shell (`shell`, `parse`); every other port
//! echoes. The host is kept in memory: it outlives a worker in the same process (`Synthetic::on` with the same host),
//! and ends with the process, so a worker process that restarts finds an empty host, as after a reboot with wiped disks.

pub mod behaviour;
mod guest;
pub mod host;
mod images;
pub mod ledger;
mod parse;
mod shell;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::timeout;

use self::behaviour::Step;
use self::host::SyntheticHost;
use super::fetches::Urgency;
use super::{CachedImage, CopySpec, Exit, Found, GuestStream, Progress, Runtime, RuntimeError};
use crate::model::vm::{ImagePullPolicy, RuntimeKind};
use crate::model::{CopyId, image};
use crate::ssh::cut::Cut;

/// The runtime of one worker on a synthetic host.
#[derive(Clone, Debug)]
pub struct Synthetic {
    host: Arc<SyntheticHost>,
}

impl Synthetic {
    /// A runtime on a host of its own, where everything succeeds at once.
    pub fn new() -> Self {
        Self::on(Arc::default())
    }

    /// A runtime on `host`, with whatever is there already.
    pub fn on(host: Arc<SyntheticHost>) -> Self {
        Self { host }
    }

    /// The host.
    pub fn host(&self) -> &Arc<SyntheticHost> {
        &self.host
    }
}

impl Default for Synthetic {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Runtime for Synthetic {
    fn kind(&self) -> RuntimeKind {
        RuntimeKind::Synthetic
    }

    fn boot_permits(&self) -> usize {
        self.host.behaviour().boot_permits
    }

    fn outlives_worker(&self) -> bool {
        false
    }

    async fn list(&self) -> Result<Vec<Found>, RuntimeError> {
        self.host.take(Step::List).await?;
        Ok(self.host.found())
    }

    async fn create(&self, copy: &CopySpec, progress: &Progress) -> Result<(), RuntimeError> {
        self.host.begin(copy)?;
        images::fetch(&self.host, (&copy.spec.image, Urgency::Needed), copy.spec.image_pull_policy, progress).await?;
        progress.say(format!("cloning {}", copy.spec.image));
        self.host.take(Step::Create).await?;
        self.host.complete(copy.id)
    }

    async fn start(&self, copy: &CopySpec) -> Result<(), RuntimeError> {
        self.host.take(Step::Start).await?;
        self.host.run(copy)
    }

    async fn booted(&self, id: CopyId) {
        if let Some(process) = self.host.process(id) {
            process.booted().await;
        }
    }

    async fn wait_exit(&self, id: CopyId) -> Exit {
        match self.host.process(id) {
            Some(process) => process.exited().await,
            None => Exit::Crashed("it never ran".to_owned()),
        }
    }

    async fn stop(&self, id: CopyId, grace: Duration) -> Result<(), RuntimeError> {
        let Some(process) = self.host.process(id) else { return Ok(()) };
        self.host.thaw(id);
        let asked = tokio::select! {
            biased; // not to ask one that is gone
            _ = process.exited() => return Ok(()),
            asked = timeout(grace, self.host.take(Step::Stop)) => asked,
        };
        let exit = match asked {
            Ok(Ok(())) => Exit::PoweredOff,
            Ok(Err(RuntimeError::Timeout(_))) | Err(_) => Exit::Crashed("it was killed after its grace".to_owned()),
            Ok(Err(error)) => return Err(error),
        };
        self.host.end(id, exit);
        Ok(())
    }

    async fn suspend(&self, id: CopyId, _progress: &Progress) -> Result<(), RuntimeError> {
        self.host.take(Step::Suspend).await?;
        self.host.freeze(id);
        Ok(())
    }

    async fn delete(&self, id: CopyId) -> Result<(), RuntimeError> {
        if self.host.exists(id) {
            self.host.spoil(id);
            self.host.take(Step::Delete).await?;
            self.host.remove(id);
        }
        Ok(())
    }

    async fn cached_images(&self) -> Result<Vec<CachedImage>, RuntimeError> {
        Ok(self.host.images.list(&self.host))
    }

    async fn pull(&self, image: &str, progress: &Progress) -> Result<(), RuntimeError> {
        images::fetch(&self.host, (image, Urgency::Ahead), ImagePullPolicy::Always, progress).await
    }

    async fn prune_images(&self, keep_free: u64) -> Result<Vec<String>, RuntimeError> {
        Ok(self.host.images.prune(&self.host, keep_free))
    }

    async fn image_fqn(&self, id: CopyId) -> Option<String> {
        let guest = self.host.guest(id).ok()?;
        let name = image::shown(&guest.spec.spec.image);
        Some(format!("{name}@{}", images::digest(&name)))
    }

    async fn address(&self, id: CopyId) -> Result<IpAddr, RuntimeError> {
        let guest = self.host.guest(id)?;
        match guest.process.answers() {
            true => Ok(IpAddr::from([192, 0, 2, 1])), // of the block kept for examples: there is no such guest
            false => Err(RuntimeError::Refused(format!("VM {} has no address yet", guest.spec.name))),
        }
    }

    async fn dial(&self, id: CopyId, port: u16) -> Result<GuestStream, RuntimeError> {
        let guest = self.host.guest(id)?;
        if !guest.process.answers() || self.host.behaviour().refused_ports.contains(&port) {
            return Err(RuntimeError::Refused(format!("VM {} refuses connections to port {port}", guest.spec.name)));
        }
        self.host.ledger().dialled();
        if port == SSH_PORT {
            return Ok(GuestStream::Inside(Box::new(guest::serve(&self.host, guest))));
        }
        // an echo that needs no task: what is written is what is read
        let (read, write) = tokio::io::simplex(STREAM_BUFFER);
        Ok(GuestStream::Inside(Box::new(Cut::new(tokio::io::join(read, write), &guest.process.gone))))
    }
}

/// The guest's SSH port.
const SSH_PORT: u16 = 22;
/// Bytes that a connection into a guest holds in each direction.
const STREAM_BUFFER: usize = 64 * 1024;

#[cfg(test)]
mod tests;
