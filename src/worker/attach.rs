//! Serves tunnel streams: connects each to the port of the copy that its header names.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;

use super::execs::Execs;
use super::runtime::{Runtime, RuntimeError};
use crate::duplex::BoxedStream;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::{AccountName, CopyId};
use crate::tunnel::worker::Attach;

/// Reaches the VMs of one runtime.
#[derive(Debug)]
pub(super) struct Attachments {
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) execs: Execs,
}

#[async_trait]
impl Attach for Attachments {
    async fn attach(&self, copy: CopyId, port: u16) -> Result<BoxedStream, ApiError> {
        let dialled = self.runtime.dial(copy, port).await;
        dialled.map_err(|error| refusal(&format!("cannot reach port {port} of the VM"), &error))
    }

    async fn locate(&self, copy: CopyId) -> Result<IpAddr, ApiError> {
        self.runtime.address(copy).await.map_err(|error| refusal("the VM's address is not known", &error))
    }

    async fn serve(&self, copy: CopyId, account: AccountName) -> Result<BoxedStream, ApiError> {
        Ok(self.execs.serve(copy, account))
    }
}

/// What the user is told of a runtime's failure.
pub(super) fn refusal(what: &str, error: &RuntimeError) -> ApiError {
    let code = match error {
        RuntimeError::NotFound => ErrorCode::NotFound,
        RuntimeError::Timeout(_) => ErrorCode::Timeout,
        RuntimeError::Refused(_) | RuntimeError::State(_) => ErrorCode::Unavailable,
        RuntimeError::Image(_) | RuntimeError::Tool(_) | RuntimeError::Io { .. } => ErrorCode::Internal,
    };
    ApiError::new(code, format!("{what}: {error}"))
}
