//! Names that only the controller knows, asked of it within [`PATIENCE`]; when it does not answer in time there are none.

use std::time::Duration;

use super::line::Line;
use crate::bus::access::ListJoinTokens;
use crate::bus::images::ListPulls;
use crate::bus::strays::ListStrays;
use crate::cli::client::Client;
use crate::cli::{exec_session, list};
use crate::client::find_target;
use crate::config::Home;
use crate::model::WorkerName;
use crate::model::error::ApiError;

/// How long the user waits at most after Tab.
const PATIENCE: Duration = Duration::from_millis(900);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    Vms,
    Workers,
    Accounts,
    /// The ids of bootstrap tokens.
    Tokens,
    /// Stray copies of the worker that stands on the line.
    Strays,
    /// Images that were asked for ahead.
    Pulls,
    /// Exec sessions in the VM that stands on the line.
    Sessions,
}

/// The names, by the context that stands on the line, if one does.
pub(super) fn names(what: What, line: &Line) -> Vec<String> {
    let asked = async {
        let home = Home::locate().ok()?;
        let target = find_target(&home, line.value_of("--context").as_deref()).ok()?;
        let client = Client::log_in(target).await.ok()?;
        match what {
            What::Vms => vms(&client).await.ok(),
            What::Workers => workers(&client).await.ok(),
            What::Accounts => accounts(&client).await.ok(),
            What::Tokens => tokens(&client).await.ok(),
            What::Strays => strays(&client, line).await.ok(),
            What::Pulls => pulls(&client).await.ok(),
            What::Sessions => sessions(&client, line).await,
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let answer = runtime.ok().and_then(|runtime| {
        let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, asked).await.ok().flatten() });
        // A thread that still looks up an address must not hold the shell back.
        runtime.shutdown_background();
        answer
    });
    answer.unwrap_or_default()
}

async fn vms(client: &Client) -> Result<Vec<String>, ApiError> {
    Ok(client.vms().await?.into_iter().map(|vm| vm.name.into()).collect())
}

async fn workers(client: &Client) -> Result<Vec<String>, ApiError> {
    Ok(client.workers().await?.into_iter().map(|view| view.worker.info.name.into()).collect())
}

async fn accounts(client: &Client) -> Result<Vec<String>, ApiError> {
    Ok(client.accounts().await?.into_iter().map(|account| account.name.into()).collect())
}

/// Of the first page: nobody types one of more than that by hand.
async fn tokens(client: &Client) -> Result<Vec<String>, ApiError> {
    let page = client.call(&ListJoinTokens { after: None, limit: 0 }).await?;
    Ok(page.tokens.into_iter().map(|token| token.id.to_string()).collect())
}

/// Of the first page, likewise.
async fn strays(client: &Client, line: &Line) -> Result<Vec<String>, ApiError> {
    let page = client.call(&ListStrays { worker: None, after: None, limit: 0 }).await?;
    let there = |worker: &WorkerName| line.behind("stray").any(|word| word == worker.as_str());
    let strays = page.strays.into_iter().filter(|stray| there(&stray.worker));
    Ok(strays.map(|stray| list::show_copy(stray.id)).collect())
}

async fn pulls(client: &Client) -> Result<Vec<String>, ApiError> {
    let mut images: Vec<String> = client.call(&ListPulls {}).await?.pulls.into_iter().map(|pull| pull.image).collect();
    images.sort();
    images.dedup();
    Ok(images)
}

/// The VM may stand before the session or behind it, among options and their values.
async fn sessions(client: &Client, line: &Line) -> Option<Vec<String>> {
    let there = vms(client).await.ok()?;
    let words = line.behind("vm").take_while(|word| *word != "--");
    let name = words.into_iter().find(|word| there.iter().any(|vm| vm == word))?;
    let sessions = exec_session::sessions(client, name.parse().ok()?).await.ok()?;
    Some(sessions.into_iter().filter(|one| one.ended.is_none()).map(|one| one.session).collect())
}
