//! What `orchard top` asks of the cluster: each in a task of its own, which tells what came of it as an [`Event`]. The bus is the
//! same that the other commands use.

use std::io;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::mpsc::Sender;
use tokio::time::{sleep, timeout};

use super::state::{Event, Notice, Snapshot};
use super::text::Ticket;
use crate::bus::message::GetInfo;
use crate::cli::connect::Place;
use crate::client::events::{EventsError, Told};
use crate::client::{Client, is_passing};
use crate::model::error::{ApiError, ErrorCode};
use crate::model::event::{EventFilter, EventNumber, EventType};
use crate::model::{VmName, VmUid};
use crate::task::{self, Task};

/// How long all pages of the lists may take: for as long what is shown is of before.
const LIST_WITHIN: Duration = Duration::from_secs(10);
/// The same for a description, which logs in anew.
const DESCRIBE_WITHIN: Duration = Duration::from_secs(30);
/// Of what has happened before, so many events are shown.
const BACK: EventNumber = 100;
/// The pause before events are asked for anew.
const AGAIN: Duration = Duration::from_secs(1);

/// The cluster as it is asked; dropping it ends whatever it is at.
#[derive(Debug)]
pub(super) struct Cluster {
    client: Client,
    told: Sender<Event>,
    context: Option<String>,
    _feed: Task,
    listing: Option<Task>,
    reading: Option<Task>,
    deleting: Vec<Task>,
}

impl Cluster {
    /// Begins to bring what happens. `context` is the one that `client` was found by, for commands that do the same.
    pub(super) fn new(client: Client, context: Option<String>, told: Sender<Event>) -> Self {
        let feed = task::spawn(feed(client.clone(), told.clone()));
        Self { client, told, context, _feed: feed, listing: None, reading: None, deleting: Vec::new() }
    }

    /// Asks for all VMs and workers.
    pub(super) fn list(&mut self) {
        let (client, told) = (self.client.clone(), self.told.clone());
        self.listing = Some(task::spawn(async move {
            let late = |_| Err(ApiError::new(ErrorCode::Timeout, "the controller does not answer in time".to_owned()));
            let listed = timeout(LIST_WITHIN, snapshot(&client)).await.unwrap_or_else(late);
            let _ = told.send(Event::Listed(listed)).await; // nobody is there to be told
        }));
    }

    /// Brings what `orchard get` says of something.
    pub(super) fn describe(&mut self, ticket: Ticket, place: &Place) {
        let command = match place {
            Place::Vm(name) => self.command(&["get", "vm", name.as_str()]),
            Place::Worker(name) => self.command(&["get", "worker", name.as_str()]),
        };
        let told = self.told.clone();
        self.reading = Some(task::spawn(async move {
            let _ = told.send(Event::Lines(ticket, run(command).await)).await;
        }));
    }

    /// Brings the lines of a VM's startup script, and those that come.
    pub(super) fn follow(&mut self, ticket: Ticket, uid: VmUid) {
        let (client, told) = (self.client.clone(), self.told.clone());
        self.reading = Some(task::spawn(async move {
            let filter = EventFilter { types: vec![EventType::Log], ..EventFilter::of(uid) };
            let error = match lines(&client, filter, ticket, &told).await {
                EventsError::Api(error) => error.to_string(),
                EventsError::History(error) => error.to_string(),
            };
            let _ = told.send(Event::Lines(ticket, vec![format!("error: {error}")])).await;
        }));
    }

    /// Brings nothing more of what was asked for last by the two above.
    pub(super) fn stop_reading(&mut self) {
        self.reading = None;
    }

    /// Deletes a VM.
    pub(super) fn delete(&mut self, name: VmName) {
        let (client, told) = (self.client.clone(), self.told.clone());
        self.deleting.retain(|task| !task.is_finished());
        self.deleting.push(task::spawn(async move {
            let notice = match client.delete_vm(&name).await {
                Ok(()) => Notice { text: format!("VM {name} is deleted"), bad: false },
                Err(error) => Notice { text: format!("cannot delete VM {name}: {error}"), bad: true },
            };
            let _ = told.send(Event::Told(notice)).await;
        }));
    }

    /// A shell at `place`, which takes the terminal.
    pub(super) fn ssh(&self, place: &Place) -> io::Result<Command> {
        match place {
            Place::Vm(name) => self.command(&["ssh", "vm", name.as_str()]),
            Place::Worker(name) => self.command(&["ssh", "worker", name.as_str()]),
        }
    }

    /// This program itself, for the same controller.
    fn command(&self, words: &[&str]) -> io::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        if let Some(context) = &self.context {
            command.args(["--context", context]);
        }
        command.args(words).kill_on_drop(true);
        Ok(command)
    }
}

async fn snapshot(client: &Client) -> Result<Snapshot, ApiError> {
    let (vms, workers) = tokio::try_join!(client.vms(), client.workers())?;
    Ok(Snapshot { vms, workers })
}

/// Brings the last events and those that happen, for ever, or until that is refused.
async fn feed(client: Client, told: Sender<Event>) {
    let mut after = None;
    loop {
        let error = match happenings(&client, &mut after, &told).await {
            Err(EventsError::Api(error)) => error,
            // It runs on other data now: begin anew.
            Ok(()) | Err(EventsError::History(_)) => {
                after = None;
                ApiError::new(ErrorCode::Unavailable, "the controller runs on other data now".to_owned())
            }
        };
        let passing = is_passing(&error);
        if told.send(Event::Away(error)).await.is_err() || !passing {
            return;
        }
        sleep(AGAIN).await;
    }
}

/// Ends well when nobody is told any more.
async fn happenings(client: &Client, after: &mut Option<EventNumber>, told: &Sender<Event>) -> Result<(), EventsError> {
    let from = match after {
        Some(number) => *number,
        None => client.call(&GetInfo {}).await?.last_event.saturating_sub(BACK),
    };
    // Lines of scripts are many, and stand in their VM's log.
    let types = EventType::ALL.iter().copied().filter(|kind| *kind != EventType::Log).collect();
    let mut events = client.events(EventFilter { types, ..EventFilter::default() }, Some(from)).await?;
    loop {
        let event = match events.next().await? {
            Told::Events(events) => Event::Happened(events),
            Told::Waiting(error) => Event::Away(error),
            Told::Trimmed(_) => continue,
        };
        if told.send(event).await.is_err() {
            return Ok(());
        }
        *after = Some(events.position());
    }
}

/// Brings lines for ever, or until the error that is yielded.
async fn lines(client: &Client, filter: EventFilter, ticket: Ticket, told: &Sender<Event>) -> EventsError {
    let mut events = match client.events(filter, Some(0)).await {
        Ok(events) => events,
        Err(error) => return error.into(),
    };
    loop {
        let lines = match events.next().await {
            Ok(Told::Events(events)) => events.into_iter().map(|event| event.message).collect(),
            Ok(Told::Waiting(_) | Told::Trimmed(_)) => continue,
            Err(error) => return error,
        };
        if told.send(Event::Lines(ticket, lines)).await.is_err() {
            return ApiError::new(ErrorCode::Unavailable, "nobody reads it".to_owned()).into();
        }
    }
}

/// What a command prints, or why it does not.
async fn run(command: io::Result<Command>) -> Vec<String> {
    let ran = match command {
        Ok(mut command) => timeout(DESCRIBE_WITHIN, command.output()).await,
        Err(error) => Ok(Err(error)),
    };
    let printed = match ran {
        Ok(Ok(output)) => [output.stdout, output.stderr].concat(),
        Ok(Err(error)) => format!("cannot ask for it: {error}").into_bytes(),
        Err(_) => b"there was no answer in time".to_vec(),
    };
    String::from_utf8_lossy(&printed).lines().map(str::to_owned).collect()
}
