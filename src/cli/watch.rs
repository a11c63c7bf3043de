//! `orchard list … --watch`: a list that is kept up to date. On a terminal its table is drawn over; elsewhere, and as data,
//! what changes is printed as it does. What the bus delivers is a signal to ask again, and it is asked every few seconds
//! anyhow, so that nothing is missed whatever breaks meanwhile.

mod changes;
mod drawing;

use std::time::Duration;

use clap::Args;
use futures_util::stream::{self, SelectAll};
use futures_util::{FutureExt as _, StreamExt as _};
use serde::Serialize;
use tokio::time::Instant;

use self::changes::{Change, Known};
use self::drawing::Drawing;
use super::client::Client;
use super::output::{self, Format, OutputArgs, OutputError, Screen, Table};
use super::rows;
use crate::bus::subject;
use crate::client::events::SILENCE;
use crate::client::is_passing;
use crate::model::error::ApiError;
use crate::model::vm::Vm;
use crate::model::worker::WorkerView;
use crate::model::{Clock, Timestamp};

/// The pause between two looks, however much happens; longer where a look takes long, so that a large cluster is not kept
/// busy by those who watch it.
const PAUSE: Duration = Duration::from_millis(250);
/// How many times as long as a look the pause after it is.
const REST: u32 = 4;

/// The option of lists that can go on.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct WatchArgs {
    /// Go on until Ctrl-C: a terminal shows the list as it is, elsewhere each row is printed again when it changes; with
    /// -o json as {"type": "ADDED|MODIFIED|DELETED", "object": …}, one a line
    #[arg(long, short)]
    pub(super) watch: bool,
}

/// What can be watched.
trait Watched: Serialize {
    /// What tells it from all others over its whole life.
    fn key(&self) -> String;
    fn name(&self) -> String;
    /// The same without what changes all the time, and is no news.
    fn calm(&self) -> Self;
    fn table(items: &[Self], now: Timestamp, wide: bool) -> Table
    where
        Self: Sized;
}

impl Watched for Vm {
    fn key(&self) -> String {
        format!("{}/{}", self.name, self.uid)
    }

    fn name(&self) -> String {
        self.name.to_string()
    }

    fn calm(&self) -> Self {
        Self { log_lines: 0, ..self.clone() }
    }

    fn table(items: &[Self], now: Timestamp, wide: bool) -> Table {
        rows::vm::list(items, now, wide)
    }
}

impl Watched for WorkerView {
    fn key(&self) -> String {
        self.name()
    }

    fn name(&self) -> String {
        self.worker.info.name.to_string()
    }

    fn calm(&self) -> Self {
        Self { last_seen: self.last_seen.map(|_| Timestamp::default()), load: None, path: None, ..self.clone() }
    }

    fn table(items: &[Self], now: Timestamp, wide: bool) -> Table {
        rows::worker::list(items, now, wide)
    }
}

/// Shows all VMs until it is dropped, or the account is let in no more.
pub(super) async fn vms(client: &Client, output: OutputArgs) -> anyhow::Result<()> {
    let list = async || Ok(client.vms().await?);
    client.until_refused(watch(client, output, &["vm"], list)).await
}

/// The same with all workers, which change with their VMs.
pub(super) async fn workers(client: &Client, output: OutputArgs) -> anyhow::Result<()> {
    let list = async || Ok(client.workers().await?);
    client.until_refused(watch(client, output, &["worker", "vm"], list)).await
}

async fn watch<T: Watched>(
    client: &Client,
    output: OutputArgs,
    kinds: &[&str],
    list: impl AsyncFn() -> anyhow::Result<Vec<T>>,
) -> anyhow::Result<()> {
    // Listening begins first, so that nothing falls between a look and the next.
    let mut signals = Vec::new();
    for kind in kinds {
        signals.push(client.bus().subscribe(&subject::events_of_kind(kind)).await?);
    }
    let mut signals = stream::select_all(signals);
    let mut view = View::new(output.format());
    loop {
        let began = Instant::now();
        match list().await {
            Ok(items) => view.show(items, Clock::start().now().wall)?,
            Err(error) => match error.downcast_ref() {
                Some(passing) if is_passing(passing) => view.away(passing)?,
                _ => return Err(error),
            },
        }
        tokio::time::sleep(PAUSE.max(began.elapsed() * REST)).await;
        signal(&mut signals).await;
    }
}

/// Returns when there may be something new.
async fn signal(signals: &mut SelectAll<async_nats::Subscriber>) {
    match tokio::time::timeout(SILENCE, signals.next()).await {
        // One look answers all that are here already.
        Ok(Some(_)) => while let Some(Some(_)) = signals.next().now_or_never() {},
        // The subscriptions are over: go on by asking alone.
        Ok(None) => tokio::time::sleep(SILENCE).await,
        Err(_) => {}
    }
}

/// What the reader has before them.
enum View<T> {
    /// A table that is drawn over.
    InPlace { wide: bool, items: Vec<T>, drawing: Drawing },
    /// Lines, one after the other.
    Lines { format: Format, known: Known<T>, widths: Option<Vec<usize>>, away: bool },
}

impl<T: Watched> View<T> {
    fn new(format: Format) -> Self {
        match format {
            Format::Table | Format::Wide if Screen::of_stdout().can_move => {
                View::InPlace { wide: format == Format::Wide, items: Vec::new(), drawing: Drawing::default() }
            }
            format => View::Lines { format, known: Known::default(), widths: None, away: false },
        }
    }

    fn show(&mut self, now_there: Vec<T>, now: Timestamp) -> Result<(), OutputError> {
        match self {
            View::InPlace { wide, items, drawing } => {
                *items = now_there;
                draw(items, *wide, drawing, None, now)
            }
            View::Lines { format, known, widths, away } => {
                *away = false;
                let format = *format;
                let changes = known.changes(now_there, |item| gist(item, format))?;
                output::lines(told(&changes, format, widths, now)?)
            }
        }
    }

    /// Tells that the controller does not answer; what was seen last stays.
    fn away(&mut self, error: &ApiError) -> Result<(), OutputError> {
        let note = format!("waiting for the controller: {}", output::clean(&error.message));
        match self {
            View::InPlace { wide, items, drawing } => {
                draw(items, *wide, drawing, Some(note), Clock::start().now().wall)?;
            }
            View::Lines { away, .. } => {
                if !std::mem::replace(away, true) {
                    eprintln!("{note}");
                }
            }
        }
        Ok(())
    }
}

fn draw<T: Watched>(
    items: &[T],
    wide: bool,
    drawing: &mut Drawing,
    note: Option<String>,
    now: Timestamp,
) -> Result<(), OutputError> {
    let screen = Screen::of_stdout();
    let table = T::table(items, now, wide);
    let table = if wide { table.whole() } else { table };
    let lines = table.lines(screen, &table.widths(screen)).collect();
    output::raw(&drawing.over(lines, note, screen))
}

/// What of `item` is news when it changes. No time has passed in it, so that ages do not count.
fn gist<T: Watched>(item: &T, format: Format) -> Result<String, OutputError> {
    let calm = [item.calm()];
    match format {
        Format::Table | Format::Wide | Format::Name => {
            let table = T::table(&calm, Timestamp::default(), format == Format::Wide);
            Ok(table.cells().concat().join("\n"))
        }
        _ => Ok(serde_json::to_string(&calm)?),
    }
}

/// One change, for programs.
#[derive(Debug, Serialize)]
struct Record<'a, T> {
    #[serde(rename = "type")]
    kind: &'static str,
    object: &'a T,
}

/// Changes as lines. The columns of a table are as wide as they ever were.
fn told<T: Watched>(
    changes: &[Change<T>],
    format: Format,
    widths: &mut Option<Vec<usize>>,
    now: Timestamp,
) -> Result<Vec<String>, OutputError> {
    let wide = format == Format::Wide;
    match format {
        Format::Table | Format::Wide => {
            let mut all: Option<Table> = None;
            for change in changes {
                let mut table = T::table(std::slice::from_ref(change.item()), now, wide);
                if matches!(change, Change::Deleted(_)) {
                    table.mark("deleted");
                }
                all = Some(match all {
                    Some(all) => all.below(table.without_titles()),
                    None => table,
                });
            }
            let is_first = widths.is_none();
            let all = all.unwrap_or_else(|| T::table(&[], now, wide));
            let before = widths.take().unwrap_or_default();
            let padded = before.into_iter().chain(std::iter::repeat(0));
            let widths =
                widths.insert(all.widths(Screen::PLAIN).into_iter().zip(padded).map(|(a, b)| a.max(b)).collect());
            Ok(all.lines(Screen::PLAIN, widths).skip(usize::from(!is_first)).collect())
        }
        Format::Name => Ok(changes.iter().map(|change| change.item().name()).collect()),
        format => {
            let record = |change: &Change<T>| format.record(&Record { kind: change.kind(), object: change.item() });
            changes.iter().map(record).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::list::tests::{vm, worker};
    use super::*;
    use crate::model::vm::VmStatus;

    fn lines<T: Watched>(view: &mut View<T>, items: Vec<T>, now: i64) -> Vec<String> {
        let View::Lines { format, known, widths, .. } = view else { panic!("no terminal") };
        let changes = known.changes(items, |item| gist(item, *format)).unwrap();
        told(&changes, *format, widths, Timestamp::from_millis(now)).unwrap()
    }

    fn piped<T>(format: Format) -> View<T> {
        View::Lines { format, known: Known::default(), widths: None, away: false }
    }

    #[test]
    fn a_pipe_gets_the_list_and_then_the_rows_that_change() {
        let mut view = piped(Format::Table);
        let (a, b) = (vm("a", VmStatus::Pending), vm("b-long", VmStatus::Running));
        let first = lines(&mut view, vec![a.clone(), b.clone()], 60_000);
        assert_eq!(first.len(), 3);
        assert!(first[0].starts_with("Name    Created ") && first[1].starts_with("a       1 minute ago"), "{first:?}");
        assert_eq!(lines(&mut view, vec![a.clone(), b.clone()], 120_000), Vec::<String>::new(), "ages are no news");
        let run = vm("a", VmStatus::Running);
        let changed = lines(&mut view, vec![run.clone(), b], 120_000);
        assert_eq!(changed, ["a       2 minutes ago  /images/tiny.qcow2  running  Never (0 restarts)"]);
        let gone = lines(&mut view, vec![run], 120_000);
        assert_eq!(gone, ["b-long  2 minutes ago  /images/tiny.qcow2  deleted  Never (0 restarts)"]);
    }

    #[test]
    fn an_empty_list_shows_its_titles_once() {
        let mut view = piped::<Vm>(Format::Wide);
        assert_eq!(lines(&mut view, Vec::new(), 0).len(), 1);
        assert!(lines(&mut view, Vec::new(), 0).is_empty());
    }

    #[test]
    fn heartbeats_are_no_news_of_a_worker() {
        for format in [Format::Table, Format::Wide, Format::Json] {
            let mut view = piped(format);
            lines(&mut view, vec![worker("w")], 60_000);
            let mut later = worker("w");
            later.last_seen = Some(Timestamp::from_millis(58_000));
            later.load = None;
            assert!(lines(&mut view, vec![later.clone()], 60_000).is_empty());
            later.worker.scheduling_paused = true;
            assert_eq!(lines(&mut view, vec![later], 60_000).len(), 1);
        }
    }

    #[test]
    fn programs_are_told_what_happened() {
        let mut view = piped(Format::Json);
        let a = vm("a", VmStatus::Pending);
        let mut anew = a.clone();
        anew.uid = "00000000-0000-0000-0000-000000000001".parse().unwrap();
        let first = lines(&mut view, vec![a], 0);
        assert!(first[0].starts_with(r#"{"type":"ADDED","object":{"name":"a","#), "{first:?}");
        let then = lines(&mut view, vec![anew.clone()], 0);
        assert!(then[0].starts_with(r#"{"type":"DELETED""#) && then[1].starts_with(r#"{"type":"ADDED""#), "{then:?}");
        anew.ready = true;
        assert!(lines(&mut view, vec![anew], 0)[0].starts_with(r#"{"type":"MODIFIED""#));
        let mut names = piped(Format::Name);
        assert_eq!(lines(&mut names, vec![vm("a", VmStatus::Pending), vm("b", VmStatus::Pending)], 0), ["a", "b"]);
        assert_eq!(lines(&mut names, vec![vm("a", VmStatus::Pending), vm("b", VmStatus::Failed)], 0), ["b"]);
    }
}
