//! Serves tunnel streams: connects each to the port of the copy that its header names.

use std::sync::Arc;

use async_trait::async_trait;

use super::runtime::{Runtime, RuntimeError};
use crate::duplex::BoxedStream;
use crate::model::CopyId;
use crate::model::error::{ApiError, ErrorCode};
use crate::tunnel::worker::Attach;

/// Reaches the VMs of one runtime.
#[derive(Debug)]
pub(super) struct Attachments {
    pub(super) runtime: Arc<dyn Runtime>,
}

#[async_trait]
impl Attach for Attachments {
    async fn attach(&self, copy: CopyId, port: u16) -> Result<BoxedStream, ApiError> {
        let dialled = self.runtime.dial(copy, port).await;
        dialled.map_err(|error| {
            let code = match &error {
                RuntimeError::NotFound => ErrorCode::NotFound,
                RuntimeError::Timeout(_) => ErrorCode::Timeout,
                RuntimeError::Refused(_) | RuntimeError::State(_) => ErrorCode::Unavailable,
                RuntimeError::Image(_) | RuntimeError::Tool(_) | RuntimeError::Io { .. } => ErrorCode::Internal,
            };
            ApiError::new(code, format!("cannot reach port {port} of the VM: {error}"))
        })
    }
}
