//! `orchard version`: the release of this program, and of the controller that it talks to.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::client::Client;
use super::output::{self, DataArgs};
use crate::bus::message::GetInfo;
use crate::config::context::ContextError;

/// How long the controller has to answer, the way there included.
const DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchard version
  orchard version --client
  orchard version -o json | jq -r .controller

Where a controller is known (`orchard context list`, or ORCHARD_URL) but does not answer
within 10 s, the exit code is 1, and the release of this program is printed all the same.")]
pub(super) struct VersionArgs {
    /// Only the release of this program; no controller is asked
    #[arg(long, conflicts_with = "controller")]
    client: bool,
    /// Fail, too, when no controller is known that could be asked
    #[arg(long)]
    controller: bool,
    #[command(flatten)]
    output: DataArgs,
}

/// Both releases.
#[derive(Debug, Serialize)]
struct Versions {
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    controller: Option<String>,
}

pub(super) async fn run<F: Future<Output = anyhow::Result<Client>>>(
    arguments: VersionArgs,
    connect: impl FnOnce() -> F,
) -> anyhow::Result<()> {
    let asked = match arguments.client {
        true => Ok(None),
        false => ask(connect).await.map(Some),
    };
    match asked {
        Ok(controller) => show(controller, arguments.output),
        Err(error) if is_unknown(&error) && arguments.controller => Err(error),
        Err(error) if is_unknown(&error) => {
            show(None, arguments.output)?;
            eprintln!("no controller was asked: {}", output::clean(&format!("{error:#}")));
            Ok(())
        }
        Err(error) => {
            show(None, arguments.output)?;
            Err(error.context("the controller's release is not known (`orchard version --client` does not ask)"))
        }
    }
}

async fn ask<F: Future<Output = anyhow::Result<Client>>>(connect: impl FnOnce() -> F) -> anyhow::Result<String> {
    let asked = async { Ok(connect().await?.call(&GetInfo {}).await?.version) };
    let late = || anyhow::anyhow!("the controller did not answer within {} s", DEADLINE.as_secs());
    tokio::time::timeout(DEADLINE, asked).await.map_err(|_| late())?
}

/// Whether there was nobody to ask.
fn is_unknown(error: &anyhow::Error) -> bool {
    let no_default = |error: &&ContextError| matches!(error, ContextError::NoDefault);
    error.downcast_ref().filter(no_default).is_some()
}

fn show(controller: Option<String>, output: DataArgs) -> anyhow::Result<()> {
    let versions = Versions { version: env!("CARGO_PKG_VERSION"), controller };
    if output.format().is_data() {
        return Ok(output.format().data(&versions)?);
    }
    let own = format!("orchard {}", versions.version);
    let controller = versions.controller.map(|version| format!("controller {}", output::clean(&version)));
    Ok(output::lines([own].into_iter().chain(controller))?)
}
