//! `orchard events`: what happened, in order and without gaps, and what happens from now on.
//!
//! Following is [`crate::client::events`].

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::client::Client;
use super::output::{self, Format, OutputArgs, Tone};
use super::pairs;
use crate::bus::message::{EventPage, GetWorker, ListEvents};
use crate::client::events::{self, EventsError, Told};
use crate::client::order::EventOrder;
use crate::model::error::{ApiError, ErrorCode};
use crate::model::event::{Event, EventFilter, EventNumber, EventObject, EventType};
use crate::model::{VmName, WorkerName};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  orchard events                        # all that is kept
  orchard events --tail 20              # the last that are kept
  orchard events --follow --vm build-1  # from now on, of one VM
  orchard events --follow --after 120   # from #121 on, then live
  orchard events --type failed,stray --worker mini-1
  orchard events -f -o json | jq .      # one JSON object a line
  orchard events --type failed -q       # names of the VMs that failed

The name of an event is that of its VM or worker.")]
pub(super) struct EventsArgs {
    /// Go on with new events as they happen
    #[arg(long, short)]
    follow: bool,
    /// Begin after this number [default: all events, or with --follow only new ones]
    #[arg(long, value_name = "NUMBER")]
    after: Option<EventNumber>,
    /// Begin with the last events that are kept, so many
    #[arg(long, short = 'n', value_name = "N", value_parser = pairs::amount)]
    tail: Option<u64>,
    /// Only events of VMs of this name
    #[arg(long, value_name = "NAME")]
    vm: Option<VmName>,
    /// Only events of this worker and of VMs on it
    #[arg(long, value_name = "NAME")]
    worker: Option<WorkerName>,
    /// Only events of these types, such as failed
    #[arg(long = "type", value_name = "TYPE,…", value_delimiter = ',', value_parser = event_type())]
    types: Vec<EventType>,
    #[command(flatten)]
    output: OutputArgs,
}

impl EventsArgs {
    fn request(&self, after: EventNumber) -> ListEvents {
        let Self { vm, worker, types, .. } = self;
        ListEvents { after, limit: 0, vm: None, name: vm.clone(), worker: worker.clone(), types: types.clone() }
    }

    /// What is asked for; applied here, too, to what comes over the bus and from a controller that knows no filter.
    fn filter(&self) -> EventFilter {
        EventFilter { uid: None, vm: self.vm.clone(), worker: self.worker.clone(), types: self.types.clone() }
    }
}

/// Reads the name of a type.
fn event_type() -> impl TypedValueParser<Value = EventType> {
    PossibleValuesParser::new(EventType::ALL.iter().map(|kind| kind.as_str()))
        .map(|text| EventType::ALL.iter().copied().find(|kind| kind.as_str() == text).unwrap_or(EventType::Unknown))
}

pub(super) async fn run(arguments: EventsArgs, client: &Client) -> anyhow::Result<()> {
    note_unknown(&arguments, client).await;
    match arguments.follow {
        true => client.until_refused(follow(&arguments, client)).await,
        false => replay(&arguments, client).await.map(drop),
    }
}

/// Says so when there is no such VM or worker now: its name may be mistyped, and then nothing would ever be shown. There may have
/// been one, or be one later, so this is no failure.
async fn note_unknown(arguments: &EventsArgs, client: &Client) {
    let then = if arguments.follow { "waiting for one" } else { "what is kept of an earlier one is shown" };
    let missing = |error: &ApiError| error.code == ErrorCode::NotFound;
    if let Some(name) = &arguments.vm
        && client.vm(name).await.is_err_and(|error| missing(&error))
    {
        eprintln!("no VM named {name} is known now; {then}");
    }
    if let Some(name) = &arguments.worker
        && client.call(&GetWorker { name: name.clone() }).await.is_err_and(|error| missing(&error))
    {
        eprintln!("no worker named {name} is known now; {then}");
    }
}

/// Prints what is kept; yields the number of the last event there is.
async fn replay(arguments: &EventsArgs, client: &Client) -> anyhow::Result<EventNumber> {
    let mut order = EventOrder::after(arguments.after.unwrap_or(0));
    let filter = arguments.filter();
    let mut kept = VecDeque::new();
    loop {
        let after = order.position();
        let page = client.call(&arguments.request(after)).await?;
        if let Some(note) = trimmed(after, &page).filter(|_| arguments.tail.is_none()) {
            eprintln!("{note}");
        }
        let last = page.last;
        let events = order.page(page)?;
        match arguments.tail {
            Some(count) => {
                kept.extend(events.into_iter().filter(|event| filter.matches(event)));
                pairs::keep_last(&mut kept, count);
            }
            None => print(arguments, events)?,
        }
        // A page that does not advance would be asked for again for ever.
        if order.position() >= last || order.position() == after {
            print(arguments, kept.into())?;
            return Ok(order.position());
        }
    }
}

async fn follow(arguments: &EventsArgs, client: &Client) -> anyhow::Result<()> {
    let after = match arguments.tail {
        Some(_) => Some(replay(arguments, client).await?),
        None => arguments.after,
    };
    let mut events = client.events(arguments.filter(), after).await?;
    loop {
        match events.next().await.map_err(plain)? {
            Told::Events(events) => print(arguments, events)?,
            Told::Trimmed(numbers) => eprintln!("{}", not_kept(&numbers)),
            Told::Waiting(error) => eprintln!("waiting for the controller: {error}"),
        }
    }
}

/// What to tell when events between `after` and the page are no longer kept.
pub(super) fn trimmed(after: EventNumber, page: &EventPage) -> Option<String> {
    events::trimmed(after, page).map(|numbers| not_kept(&numbers))
}

fn not_kept(numbers: &RangeInclusive<EventNumber>) -> String {
    format!("events #{} to #{} are no longer kept", numbers.start(), numbers.end())
}

/// The error itself, which says more to whoever decides on the exit code.
fn plain(error: EventsError) -> anyhow::Error {
    match error {
        EventsError::Api(error) => error.into(),
        EventsError::History(error) => error.into(),
    }
}

fn print(arguments: &EventsArgs, events: Vec<Event>) -> Result<(), output::OutputError> {
    let filter = arguments.filter();
    let wanted = |event: &&Event| filter.matches(event);
    let colours = output::Screen::of_stdout().colours;
    let show = |event: &Event| match arguments.output.format() {
        Format::Table | Format::Wide => Ok(describe(event, colours)),
        Format::Name => Ok(match &event.object {
            EventObject::Vm { name, .. } => name.to_string(),
            EventObject::Worker { name } => name.to_string(),
            EventObject::Unknown => event.object.to_string(),
        }),
        format => format.record(event),
    };
    output::lines(events.iter().filter(wanted).map(show).collect::<Result<Vec<_>, _>>()?)
}

/// An event as a line for people, its kind in the colour of what it tells.
fn describe(event: &Event, colours: bool) -> String {
    let object = &event.object;
    let message = match (&event.worker, event.message.as_str()) {
        (Some(worker), "") => format!("on {worker}"),
        (_, message) => output::clean(message),
    };
    let kind = event.kind.as_str();
    let kind = match Tone::of(kind).filter(|_| colours) {
        Some(tone) => tone.paint(kind),
        None => kind.to_owned(),
    };
    let line = format!("{}  #{}  {object}  {kind}  {message}", event.time, event.number);
    line.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;
    use crate::model::event::EventType;

    #[test]
    fn an_event_is_one_line_whatever_its_message_holds() {
        let event = Event {
            number: 7,
            time: Timestamp::from_millis(1_700_000_000_123),
            kind: EventType::Failed,
            object: EventObject::Vm {
                name: "a".parse().unwrap(),
                uid: "7f1c3f2e-6d0b-4b58-9d3e-3a3a4d0f2b11".parse().unwrap(),
                attempt: 0,
            },
            message: "no\nimage\u{7}".into(),
            worker: Some("w".parse().unwrap()),
            stream: None,
            said_at: None,
        };
        assert_eq!(describe(&event, false), "2023-11-14T22:13:20.123Z  #7  vm/a  failed  no image\\u{7}");
        let coloured = "2023-11-14T22:13:20.123Z  #7  vm/a  \u{1b}[31mfailed\u{1b}[0m  no image\\u{7}";
        assert_eq!(describe(&event, true), coloured);
        let placed = Event { kind: EventType::Scheduled, message: String::new(), ..event };
        for colours in [false, true] {
            assert_eq!(describe(&placed, colours), "2023-11-14T22:13:20.123Z  #7  vm/a  scheduled  on w");
        }
    }

    #[test]
    fn a_reader_is_told_what_is_no_longer_kept() {
        let page = |first_kept, last| EventPage { events: Vec::new(), next: last, last, first_kept };
        assert_eq!(trimmed(0, &page(5, 9)).as_deref(), Some("events #1 to #4 are no longer kept"));
        assert_eq!(trimmed(4, &page(5, 9)), None);
        assert_eq!(trimmed(0, &page(1, 0)), None);
        assert_eq!(trimmed(0, &page(0, 0)), None);
    }
}
