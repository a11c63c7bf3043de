//! `orchard logs`: what a VM's startup script printed, out of the VM's events.

use std::collections::VecDeque;

use clap::{Args, Subcommand};

use super::client::Client;
use super::output::{self, DataArgs, Format};
use super::{events, follow, pairs};
use crate::bus::message::ListEvents;
use crate::bus::subject;
use crate::model::event::{Event, EventNumber, EventType};
use crate::model::{VmName, VmUid};

#[derive(Debug, Subcommand)]
pub(super) enum Logs {
    /// Show the output of a VM's startup script, oldest line first
    #[command(
        after_help = "Examples:\n  orchard logs vm build-1 --tail 20\n  orchard logs vm build-1 --follow\n  orchard logs vm build-1 -o wide   # with time and number"
    )]
    Vm(LogsArgs),
}

#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// The VM's name
    name: VmName,
    /// Only the last lines, so many
    #[arg(long, short = 'n', value_name = "N", value_parser = pairs::amount)]
    tail: Option<u64>,
    /// Go on with new lines as they come, until the VM is deleted
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    output: DataArgs,
}

pub(super) async fn run(command: Logs, client: &Client) -> anyhow::Result<()> {
    let Logs::Vm(arguments) = command;
    // Listening begins first, so that no line falls between the replay and the rest.
    let mut signals = match arguments.follow {
        true => Some(client.bus().subscribe(&subject::events_of_vm(&arguments.name)).await?),
        false => None,
    };
    let uid = client.vm(&arguments.name).await?.uid;
    let mut reader = Reader { client, uid, position: 0, deleted: false };
    match arguments.tail {
        Some(count) => {
            let mut last = VecDeque::new();
            while let Some(lines) = reader.page().await? {
                last.extend(lines);
                pairs::keep_last(&mut last, count);
            }
            print(&arguments, last)?;
        }
        None => print_rest(&arguments, &mut reader).await?,
    }
    let Some(signals) = signals.as_mut().filter(|_| !reader.deleted) else { return Ok(()) };
    let follow = follow::follow(signals, async || {
        print_rest(&arguments, &mut reader).await?;
        Ok(!reader.deleted)
    });
    client.until_refused(follow).await
}

/// Reads one VM's events page by page.
struct Reader<'a> {
    client: &'a Client,
    uid: VmUid,
    position: EventNumber,
    deleted: bool,
}

impl Reader<'_> {
    /// The log lines of the next page; none when there is nothing new.
    async fn page(&mut self) -> anyhow::Result<Option<Vec<Event>>> {
        let after = self.position;
        let page = self.client.call(&ListEvents { after, vm: Some(self.uid), ..ListEvents::default() }).await?;
        if after > 0
            && let Some(note) = events::trimmed(after, &page)
        {
            eprintln!("{note}");
        }
        self.position = page.next.max(after);
        self.deleted |= page.events.iter().any(|event| event.kind == EventType::Deleted);
        let lines = page.events.into_iter().filter(|event| event.number > after && event.kind == EventType::Log);
        Ok((self.position > after).then(|| lines.collect()))
    }
}

async fn print_rest(arguments: &LogsArgs, reader: &mut Reader<'_>) -> anyhow::Result<()> {
    while let Some(lines) = reader.page().await? {
        print(arguments, lines)?;
    }
    Ok(())
}

/// Log lines go out as they are, colours included: they are the output of the user's own script. Wide, each has its time and
/// number before it.
fn print(arguments: &LogsArgs, lines: impl IntoIterator<Item = Event>) -> Result<(), output::OutputError> {
    let show = |event: Event| match arguments.output.format() {
        Format::Wide => Ok(format!("{}  #{}  {}", event.time, event.number, event.message)),
        Format::Table | Format::Name => Ok(event.message),
        format => format.record(&event),
    };
    output::lines(lines.into_iter().map(show).collect::<Result<Vec<_>, _>>()?)
}
