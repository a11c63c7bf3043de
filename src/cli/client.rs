//! The connection of client commands: what [`crate::client`] has not, as it is about terminals and exit codes.

use super::{Global, UsageError};
pub(super) use crate::client::Client;
use crate::client::find_target;
use crate::config::Home;
use crate::config::context::ContextError;
use crate::config::file::ContextFile;
use crate::model::error::{ApiError, ErrorCode};

impl Client {
    /// Finds the context and connects.
    pub(super) async fn connect(home: &Home, global: &Global) -> anyhow::Result<Self> {
        if let Some(warning) = ContextFile::new(home.clone()).exposure() {
            eprintln!("{warning}");
        }
        let target = find_target(home, global.context.as_deref()).map_err(|error| match error {
            ContextError::Io { .. } | ContextError::Syntax { .. } => {
                anyhow::Error::new(error).context("cannot find out which controller to use")
            }
            error if error.is_usage() => UsageError(error.to_string()).into(),
            error => error.into(),
        })?;
        let url = target.url.clone();
        Self::log_in(target).await.map_err(|error| match error.code {
            ErrorCode::Unauthenticated => {
                let how = "log in anew with `orchard context create";
                ApiError::new(error.code, format!("{error}; {how} {url} --force`")).into()
            }
            _ => error.into(),
        })
    }

    /// Tells, if that is so, what is left to do at the operator's own NATS server.
    pub(super) fn note_outside(&self, outside: bool, todo: &str) {
        if outside {
            let url = &self.target().url;
            eprintln!(
                "NOTE: the NATS server at {url} is not the controller's and decides by itself who gets in: {todo}"
            );
        }
    }

    /// Does what goes on for long, until its end or until the account is let in no more.
    pub(super) async fn until_refused(&self, work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
        tokio::select! {
            done = work => done,
            error = self.shut_out() => Err(error.into()),
        }
    }
}
