//! Images: `orchard pull image`, `orchard list images` and `orchard list pulls`.

use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::time::Instant;

use super::client::Client;
use super::output::{self, Format, OutputArgs, Progress, Table};
use super::pairs;
use crate::bus::images::{
    CancelPull, GetPull, HeldView, ImageView, ListHeldImages, ListImages, ListPulls, MAX_PULL_TTL_S, PullImage,
    PullOnWorker, PullView,
};
use crate::config::duration;
use crate::model::error::ErrorCode;
use crate::model::image::{self, PullId, PullState, WorkerSelector};
use crate::model::vm::RuntimeKind;
use crate::model::{Timestamp, WorkerName};

/// How often it is asked how far the workers are.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// Workers named in a message; more help nobody.
const NAMED: usize = 5;

#[derive(Debug, Subcommand)]
pub(super) enum Pull {
    /// Have workers fetch an image before a VM needs it
    #[command(after_help = "\
Examples:
  orchard pull image ghcr.io/cirruslabs/macos-tahoe-base:latest --labels role=ci
  orchard pull image https://images.example.com/ci.qcow2 --wait --timeout 1h
  orchard pull image --cancel https://images.example.com/ci.qcow2

Meant are all workers that fit the options, those that are off included: they fetch it when they are
back, until the request expires. Two images at a time are fetched on a worker; one that a VM waits for,
too, is fetched once. Asking again for the same image and options begins anew, also where it failed.

Ctrl-C ends the waiting of --wait and nothing else; --cancel ends the request, and gives up what is
being fetched. `orchard list pulls` shows how far it is.")]
    Image(PullArgs),
}

#[derive(Debug, Args)]
pub(super) struct PullArgs {
    /// What to fetch, as in `orchard create vm --image`
    #[arg(value_parser = clap::builder::NonEmptyStringValueParser::new())]
    image: String,
    /// Only on workers with these labels
    #[arg(long, value_name = "K=V,…", value_delimiter = ',', value_parser = pairs::label)]
    labels: Vec<(String, String)>,
    /// Only on this worker
    #[arg(long, value_name = "NAME")]
    worker: Option<WorkerName>,
    /// Only on workers with this runtime: tart, vetu, qemu or synthetic
    #[arg(long, value_name = "RUNTIME", value_parser = pairs::one_of::<RuntimeKind>)]
    runtime: Option<RuntimeKind>,
    /// How long the request stands for workers that are off
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = life)]
    expires: Duration,
    /// Wait until every worker that is online has it; exit with 1 if one cannot fetch it
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_name = "DURATION", default_value = "1h", requires = "wait", value_parser = duration::parse)]
    timeout: Duration,
    /// End all requests for this image instead
    #[arg(long, conflicts_with_all = ["labels", "worker", "runtime", "wait", "expires"])]
    cancel: bool,
    #[command(flatten)]
    output: OutputArgs,
}

fn life(text: &str) -> Result<Duration, String> {
    duration::parse_life(text, Duration::from_secs(MAX_PULL_TTL_S))
}

#[derive(Debug, Args)]
pub(super) struct ListImagesArgs {
    /// Only this worker's
    #[arg(long, value_name = "NAME")]
    worker: Option<WorkerName>,
    #[command(flatten)]
    output: OutputArgs,
}

/// A request with all that its workers say.
#[derive(Debug, Serialize)]
struct Far {
    #[serde(flatten)]
    pull: PullView,
    #[serde(rename = "onWorkers")]
    on: Vec<PullOnWorker>,
}

pub(super) async fn pull(command: Pull, client: &Client) -> anyhow::Result<()> {
    let Pull::Image(arguments) = command;
    let PullArgs { image, labels, worker, runtime, expires, wait, timeout, cancel, output } = arguments;
    if cancel {
        client.call(&CancelPull { image: image.clone() }).await?;
        let image = image::shown(&image);
        match output.format() {
            Format::Table | Format::Wide => output::line(&format!("{image} is not fetched ahead any more"))?,
            Format::Name => output::line(&output::clean(&image))?,
            format => format.data(&serde_json::json!({"cancelled": image}))?,
        }
        return Ok(());
    }
    let labels = pairs::labels(labels).map_err(super::UsageError)?;
    let selector = WorkerSelector { labels, worker, runtime };
    let asked = client.call(&PullImage { image, selector, ttl_s: expires.as_secs() }).await?;
    let far = match wait {
        true => until_fetched(client, asked.id, timeout).await?,
        false => Far { on: Vec::new(), pull: asked },
    };
    let failed: Vec<&PullOnWorker> = far.on.iter().filter(|on| on.state == PullState::Failed).collect();
    match output.format() {
        format if format.is_data() && wait => format.data(&far)?,
        format if format.is_data() => format.data(&far.pull)?,
        _ if !failed.is_empty() => {}
        Format::Name => output::line(&output::clean(&far.pull.image))?,
        _ => output::line(&told(&far.pull, wait))?,
    }
    if !failed.is_empty() {
        let reasons: Vec<String> =
            failed.iter().take(NAMED).map(|on| format!("{}: {}", on.worker, on.message)).collect();
        let more = if failed.len() > NAMED { "; `orchard list pulls -o wide` shows the others" } else { "" };
        let (count, all) = (failed.len(), far.on.len());
        anyhow::bail!("{count} of {all} workers could not fetch {}: {}{more}", far.pull.image, reasons.join("; "));
    }
    Ok(())
}

/// What was achieved, for people.
fn told(pull: &PullView, waited: bool) -> String {
    let PullView { image, workers, done, offline, .. } = pull;
    let expires = pull.expires_at;
    let off = match offline {
        0 => String::new(),
        1 => format!("; 1 that is not online does when it is, until {expires}"),
        count => format!("; {count} that are not online do when they are, until {expires}"),
    };
    if waited {
        return format!("{image}: {done} of {workers} workers have it{off}");
    }
    format!(
        "{image} is fetched on {} workers{off}; `orchard list pulls` shows how far they are",
        workers.saturating_sub(*offline)
    )
}

/// Waits until each worker that is online has the image, or cannot have it.
async fn until_fetched(client: &Client, id: PullId, timeout: Duration) -> anyhow::Result<Far> {
    let deadline = Instant::now() + timeout;
    let mut progress = Progress::start();
    loop {
        let last = match far(client, id).await {
            Ok(far) if far.on.iter().all(|on| !on.online || is_settled(on)) => return Ok(far),
            Ok(far) => describe(&far),
            // Only losing the controller for a while is no reason to give up.
            Err(error) if matches!(error.code, ErrorCode::Unavailable | ErrorCode::Timeout) => error.to_string(),
            Err(error) => return Err(error).context("the request was not waited for to its end"),
        };
        progress.say(&last);
        if Instant::now() >= deadline {
            anyhow::bail!(
                "not all workers have it after {}; last: {last}; it goes on by itself, see `orchard list pulls`",
                duration::show(timeout)
            );
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

fn is_settled(on: &PullOnWorker) -> bool {
    matches!(on.state, PullState::Done | PullState::Failed)
}

/// How far all are, on one line.
fn describe(far: &Far) -> String {
    let done = far.on.iter().filter(|on| on.state == PullState::Done).count();
    let busy = far.on.iter().filter(|on| on.online && on.state == PullState::Pulling && !on.message.is_empty());
    let busy: Vec<String> = busy.take(NAMED).map(|on| format!("{}: {}", on.worker, on.message)).collect();
    let so_far = format!("{done} of {} workers have it", far.on.len());
    if busy.is_empty() { so_far } else { format!("{so_far}; {}", busy.join("; ")) }
}

async fn far(client: &Client, id: PullId) -> Result<Far, crate::model::error::ApiError> {
    let mut on: Vec<PullOnWorker> = Vec::new();
    loop {
        let after = on.last().map(|on| on.worker.clone());
        let page = client.call(&GetPull { id, after, limit: 0 }).await?;
        let more = page.more && !page.workers.is_empty();
        on.extend(page.workers);
        if !more {
            return Ok(Far { pull: page.pull, on });
        }
    }
}

pub(super) async fn list_pulls(output: OutputArgs, client: &Client, now: Timestamp) -> anyhow::Result<()> {
    let pulls = client.call(&ListPulls {}).await?.pulls;
    if matches!(output.format(), Format::Table | Format::Name) {
        let name = |pull: &PullView| output::clean(&pull.image);
        return Ok(output.items(&pulls, name, |pulls, _| pulls_table(pulls, now))?);
    }
    let mut all = Vec::new();
    for pull in pulls {
        match far(client, pull.id).await {
            Ok(far) => all.push(far),
            // It has ended since.
            Err(error) if error.code == ErrorCode::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(output.items(&all, |far| output::clean(&far.pull.image), |all, _| far_table(all))?)
}

fn pulls_table(pulls: &[PullView], now: Timestamp) -> Table {
    let mut table = Table::with_titles(["Image", "Asked for", "Workers", "Have it", "Failed", "Not online", "Expires"]);
    for pull in pulls {
        table.row([
            pull.image.clone(),
            output::ago(pull.created_at, now),
            pull.workers.to_string(),
            pull.done.to_string(),
            pull.failed.to_string(),
            pull.offline.to_string(),
            format!("in {}", duration::show(now.until(pull.expires_at))),
        ]);
    }
    table
}

fn far_table(all: &[Far]) -> Table {
    let mut table = Table::with_titles(["Image", "Worker", "State", "Message"]);
    for Far { pull, on } in all {
        for on in on {
            let state = match on.online || is_settled(on) {
                true => on.state.to_string(),
                false => format!("{}, not online", on.state),
            };
            table.row([pull.image.clone(), on.worker.to_string(), state, on.message.clone()]);
        }
    }
    table
}

pub(super) async fn list(arguments: ListImagesArgs, client: &Client, now: Timestamp) -> anyhow::Result<()> {
    let ListImagesArgs { worker, output } = arguments;
    if worker.is_none() && matches!(output.format(), Format::Table | Format::Name) {
        let all = all_images(client).await?;
        return Ok(output.items(&all, |image| output::clean(&image.image), |all, _| images_table(all, now))?);
    }
    let all = all_held(client, worker).await?;
    Ok(output.items(&all, |held| output::clean(&held.held.image), |all, _| held_table(all, now))?)
}

async fn all_images(client: &Client) -> anyhow::Result<Vec<ImageView>> {
    let mut all: Vec<ImageView> = Vec::new();
    loop {
        let after = all.last().map(|image| image.image.clone());
        let page = client.call(&ListImages { after, limit: 0 }).await?;
        let more = page.more && !page.images.is_empty();
        all.extend(page.images);
        if !more {
            return Ok(all);
        }
    }
}

async fn all_held(client: &Client, worker: Option<WorkerName>) -> anyhow::Result<Vec<HeldView>> {
    let mut all: Vec<HeldView> = Vec::new();
    loop {
        let after = all.last().map(|last| (last.worker.clone(), last.held.image.clone()));
        let request = ListHeldImages { worker: worker.clone(), image: None, after, limit: 0 };
        let page = client.call(&request).await?;
        let more = page.more && !page.images.is_empty();
        all.extend(page.images);
        if !more {
            return Ok(all);
        }
    }
}

fn images_table(images: &[ImageView], now: Timestamp) -> Table {
    let mut table = Table::with_titles(["Image", "Size", "Workers", "In use on", "Last used"]);
    for view in images {
        table.row([
            view.image.clone(),
            size(view.bytes),
            view.workers.to_string(),
            view.in_use.to_string(),
            used(view.last_used, now),
        ]);
    }
    table
}

fn held_table(images: &[HeldView], now: Timestamp) -> Table {
    let mut table = Table::with_titles(["Worker", "Image", "Size", "In use", "Last used", "Digest"]);
    for HeldView { worker, held } in images {
        table.row([
            worker.to_string(),
            held.image.clone(),
            size(held.bytes),
            held.in_use.to_string(),
            used(held.last_used, now),
            held.digest.clone().unwrap_or_default(),
        ]);
    }
    table
}

fn used(last: Option<Timestamp>, now: Timestamp) -> String {
    last.map_or_else(|| "not known".to_owned(), |last| output::ago(last, now))
}

/// An amount of bytes for people.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000_000 => format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10),
        _ => format!("{}.{} GB", bytes / 1_000_000_000, bytes / 100_000_000 % 10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::images::HeldImage;

    #[test]
    fn images_are_listed_with_their_size_and_workers() {
        let at = Timestamp::from_millis;
        let view =
            ImageView { image: "i".into(), bytes: 24_310_000_000, workers: 3, in_use: 1, last_used: Some(at(0)) };
        let text = images_table(&[view], at(60_000)).text(output::Screen::PLAIN);
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            ["Image  Size     Workers  In use on  Last used", "i      24.3 GB  3        1          1 minute ago"]
        );
        let held = HeldImage { image: "i".into(), bytes: 512_000, digest: None, last_used: None, in_use: true };
        let text = held_table(&[HeldView { worker: "w".parse().unwrap(), held }], at(0)).text(output::Screen::PLAIN);
        assert!(text.contains("w       i      0.5 MB  true    not known"), "{text}");
    }

    #[test]
    fn how_far_a_request_is_shows_on_one_line() {
        let on = |worker: &str, online, state, message: &str| PullOnWorker {
            worker: worker.parse().unwrap(),
            online,
            state,
            message: message.into(),
        };
        let pull = PullView {
            id: PullId(uuid::Uuid::nil()),
            image: "i".into(),
            selector: WorkerSelector::default(),
            created_at: Timestamp::from_millis(0),
            created_by: None,
            expires_at: Timestamp::from_millis(90_000),
            workers: 3,
            done: 1,
            failed: 0,
            offline: 1,
        };
        let far = Far {
            on: vec![
                on("a", true, PullState::Done, ""),
                on("b", true, PullState::Pulling, "downloading the image: 42 % (4.2 MB of 10.0 MB)"),
                on("c", false, PullState::Pulling, "long ago"),
            ],
            pull: pull.clone(),
        };
        assert_eq!(describe(&far), "1 of 3 workers have it; b: downloading the image: 42 % (4.2 MB of 10.0 MB)");
        assert!(
            told(&pull, true).starts_with("i: 1 of 3 workers have it; 1 that is not online"),
            "{}",
            told(&pull, true)
        );
        let text = far_table(&[far]).text(output::Screen::PLAIN);
        assert!(text.contains("c       pulling, not online  long ago"), "{text}");
        assert!(pulls_table(&[pull], Timestamp::from_millis(0)).text(output::Screen::PLAIN).contains("in 1m30s"));
    }
}
