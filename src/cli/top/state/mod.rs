//! What `orchard top` knows and how it goes on: each [`Event`] changes the [`State`] and yields what is to be done about it.
//! `mod.rs` brings the events and does the actions, `view.rs` shows the state. Pure.

mod shown;

use std::collections::VecDeque;
use std::time::Duration;

use crossterm::event::KeyEvent;

use super::cursor::{Cursor, Step};
use super::keys::{self, Key};
use super::text::{Text, Ticket};
use crate::cli::connect::Place;
use crate::client::is_passing;
use crate::model::error::ApiError;
use crate::model::event::{self, EventNumber, EventType};
use crate::model::vm::Vm;
use crate::model::worker::WorkerView;
use crate::model::{Now, VmName, VmUid, WorkerName};

pub(super) use self::shown::{object, vm_state};

/// Events that are kept; of these the oldest go first.
const MAX_FEED: usize = 500;
/// How often VMs and workers are asked for when no event says that something has changed: their load changes without one.
const PERIOD: Duration = Duration::from_secs(3);
/// The same while the controller does not answer.
const AWAY_PERIOD: Duration = Duration::from_secs(1);
/// The least pause between two questions, however much happens.
const PAUSE: Duration = Duration::from_millis(500);
/// Of the time, how little goes into asking: a long list is asked for less often.
const SHARE: u32 = 5;
/// How long what was done is told.
const NOTICE: Duration = Duration::from_secs(6);

/// What comes from outside.
#[derive(Debug)]
pub(super) enum Event {
    /// Somebody pressed a key.
    Key(KeyEvent),
    /// The terminal has this many columns and rows.
    Resized(u16, u16),
    /// Time passes.
    Tick,
    /// VMs and workers as they are now, or why they cannot be had.
    Listed(Result<Snapshot, ApiError>),
    /// Something happened in the cluster.
    Happened(Vec<event::Event>),
    /// No events come, for this reason, which may be over by itself.
    Away(ApiError),
    /// More of a text that is read.
    Lines(Ticket, Vec<String>),
    /// What came of something that was asked for.
    Told(Notice),
}

/// All VMs and workers, by name.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    pub(super) vms: Vec<Vm>,
    pub(super) workers: Vec<WorkerView>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// Ask for VMs and workers; [`Event::Listed`] answers.
    Refresh,
    /// Bring all there is to know of something, as [`Event::Lines`].
    Describe(Ticket, Place),
    /// Bring the lines of a VM's startup script, from now on, too.
    Follow(Ticket, VmUid),
    /// Bring nothing more of either.
    StopReading,
    /// Delete a VM; [`Event::Told`] says what came of it.
    Delete(VmName),
    /// Give the terminal to a shell there.
    Ssh(Place),
    /// Give the terminal to whoever had it before, until this is brought back.
    Suspend,
    /// End.
    Quit,
    /// End, as nothing more can be had.
    Fail(ApiError),
}

/// Something to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) text: String,
    pub(super) bad: bool,
}

/// A list on the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pane {
    Workers,
    Vms,
    Feed,
}

/// What lies over the panes and has the keys.
#[derive(Debug)]
pub(super) enum Over {
    Help,
    /// The filter is being typed; this is the one from before.
    Filter(String),
    /// Whether this VM shall be deleted.
    Confirm(VmName, VmUid),
    Text(Text),
}

/// Whether what is shown is true.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Link {
    /// Nothing was heard yet.
    Connecting,
    Live,
    /// Not since then, for this reason.
    Away(Duration, String),
}

/// When VMs and workers are asked for.
#[derive(Debug, Default)]
struct Asking {
    since: Option<Duration>,
    answered: Option<Duration>,
    took: Duration,
    /// Something has happened since.
    stale: bool,
}

/// All of it.
#[derive(Debug)]
pub(super) struct State {
    /// Who asks whom.
    pub(super) who: String,
    pub(super) now: Now,
    pub(super) link: Link,
    pub(super) focus: Pane,
    pub(super) filter: String,
    pub(super) over: Option<Over>,
    notice: Option<(Notice, Duration)>,
    all: Snapshot,
    feed: VecDeque<event::Event>,
    on_worker: Cursor<WorkerName>,
    on_vm: Cursor<VmName>,
    on_event: Cursor<EventNumber>,
    size: (u16, u16),
    tickets: Ticket,
    asking: Asking,
}

impl State {
    /// Nothing known yet.
    pub(super) fn new(who: String, size: (u16, u16), now: Now) -> Self {
        Self {
            who,
            now,
            link: Link::Connecting,
            focus: Pane::Vms,
            filter: String::new(),
            over: None,
            notice: None,
            all: Snapshot::default(),
            feed: VecDeque::new(),
            on_worker: Cursor::at_first(),
            on_vm: Cursor::at_first(),
            on_event: Cursor::at_end(),
            size,
            tickets: 0,
            asking: Asking::default(),
        }
    }

    /// Takes what has happened by `now`, and says what to do, in order.
    pub(super) fn on(&mut self, event: Event, now: Now) -> Vec<Action> {
        self.now = now;
        let mut actions = Vec::new();
        match event {
            Event::Key(key) => actions.extend(keys::read(&key).and_then(|key| self.key(key))),
            Event::Resized(columns, rows) => self.resize(columns, rows),
            Event::Tick => {}
            Event::Listed(listed) => actions.extend(self.listed(listed)),
            Event::Happened(events) => self.happened(events),
            Event::Away(error) if is_passing(&error) => self.lost(&error),
            Event::Away(error) => actions.push(Action::Fail(error)),
            Event::Lines(ticket, lines) => {
                if let Some(Over::Text(text)) = &mut self.over
                    && text.ticket == ticket
                {
                    text.add(lines);
                }
            }
            Event::Told(notice) => {
                self.asking.stale = true;
                self.tell(notice);
            }
        }
        if self.notice.as_ref().is_some_and(|(_, since)| now.mono.saturating_sub(*since) > NOTICE) {
            self.notice = None;
        }
        if self.is_due() {
            self.asking.since = Some(now.mono);
            self.asking.stale = false;
            actions.push(Action::Refresh);
        }
        actions
    }

    fn is_due(&self) -> bool {
        let Asking { since: None, answered, took, stale } = &self.asking else { return false };
        let Some(answered) = answered else { return true };
        let pause = match (&self.link, stale) {
            (Link::Away(..), _) => AWAY_PERIOD,
            (_, true) => PAUSE,
            (_, false) => PERIOD,
        };
        self.now.mono.saturating_sub(*answered) >= pause.max(took.saturating_mul(SHARE))
    }

    fn listed(&mut self, listed: Result<Snapshot, ApiError>) -> Option<Action> {
        let now = self.now.mono;
        self.asking.took = now.saturating_sub(self.asking.since.take().unwrap_or(now));
        self.asking.answered = Some(now);
        match listed {
            Ok(all) => {
                self.link = Link::Live;
                self.all = all;
                self.settle();
                None
            }
            Err(error) if is_passing(&error) => {
                self.lost(&error);
                None
            }
            Err(error) => Some(Action::Fail(error)),
        }
    }

    fn lost(&mut self, error: &ApiError) {
        if !matches!(self.link, Link::Away(..)) {
            self.link = Link::Away(self.now.mono, error.message.clone());
        }
        self.asking.stale = true;
    }

    fn happened(&mut self, events: Vec<event::Event>) {
        self.asking.stale = true;
        self.feed.extend(events.into_iter().filter(|event| event.kind != EventType::Log));
        let excess = self.feed.len().saturating_sub(MAX_FEED);
        self.feed.drain(..excess);
        self.settle();
    }

    /// Every cursor stays on what it stands on.
    fn settle(&mut self) {
        let (workers, vms, events) = (self.worker_keys(), self.vm_keys(), self.event_keys());
        self.on_worker.settle(&workers);
        self.on_vm.settle(&vms);
        self.on_event.settle(&events);
    }

    /// The terminal has so many columns and rows.
    pub(super) fn resize(&mut self, columns: u16, rows: u16) {
        self.size = (columns, rows);
        let window = self.window();
        if let Some(Over::Text(text)) = &mut self.over {
            text.resize(window);
        }
    }

    /// Tells something for a while.
    pub(super) fn tell(&mut self, notice: Notice) {
        self.notice = Some((notice, self.now.mono));
    }

    fn hint(&mut self, text: String) -> Option<Action> {
        self.tell(Notice { text, bad: false });
        None
    }

    fn key(&mut self, key: Key) -> Option<Action> {
        if key == Key::Interrupt {
            return Some(Action::Quit);
        }
        if key == Key::Suspend {
            return Some(Action::Suspend);
        }
        match (&mut self.over, key) {
            (None, key) => return self.pane_key(key),
            (Some(Over::Help), _) => self.over = None,
            (Some(Over::Text(_)), Key::Escape | Key::Char('q') | Key::Enter) => {
                self.over = None;
                return Some(Action::StopReading);
            }
            (Some(Over::Text(text)), key) => {
                if let Some(step) = keys::step(key) {
                    text.scroll(step);
                }
            }
            (Some(Over::Confirm(name, uid)), Key::Char('y' | 'Y')) => {
                let (name, uid) = (name.clone(), *uid);
                self.over = None;
                return self.delete(name, uid);
            }
            (Some(Over::Confirm(..)), Key::Escape | Key::Char('n' | 'N' | 'q')) => self.over = None,
            (Some(Over::Confirm(..)), _) => {}
            (Some(Over::Filter(before)), key) => {
                match keys::typed(&mut self.filter, key) {
                    keys::Typing::GoesOn => {}
                    keys::Typing::Done => self.over = None,
                    keys::Typing::Cancelled => {
                        self.filter = std::mem::take(before);
                        self.over = None;
                    }
                }
                self.settle();
            }
        }
        None
    }

    fn pane_key(&mut self, key: Key) -> Option<Action> {
        if let Some(step) = keys::step(key) {
            self.go(step);
            return None;
        }
        match key {
            Key::Next => self.focus = self.focus.next(),
            Key::Previous => self.focus = self.focus.next().next(),
            Key::Char('q') => return Some(Action::Quit),
            Key::Char('?' | 'h') => self.over = Some(Over::Help),
            Key::Char('/') => self.over = Some(Over::Filter(self.filter.clone())),
            Key::Escape => {
                self.filter.clear();
                self.settle();
            }
            Key::Char('d') | Key::Enter => {
                let place = self.selected()?;
                let ticket = self.ticket();
                self.over = Some(Over::Text(Text::description(ticket, place.to_string(), self.window())));
                return Some(Action::Describe(ticket, place));
            }
            Key::Char('s') => return self.selected().map(Action::Ssh),
            Key::Char('l') => match self.selected()? {
                Place::Vm(name) => return self.follow(&name),
                Place::Worker(name) => return self.hint(format!("worker {name} has no log here; VMs have")),
            },
            Key::Char('x') => match self.selected()? {
                Place::Vm(name) => match self.vm(&name) {
                    Some(uid) => self.over = Some(Over::Confirm(name, uid)),
                    None => return self.hint(format!("VM {name} is not there any more")),
                },
                Place::Worker(name) => {
                    return self.hint(format!("only VMs are deleted here; see `orchard delete worker {name}`"));
                }
            },
            Key::Go(_) | Key::Backspace | Key::Clear | Key::Char(_) | Key::Interrupt | Key::Suspend => {}
        }
        None
    }

    fn go(&mut self, step: Step) {
        match self.focus {
            Pane::Workers => self.on_worker.go(&self.worker_keys(), step),
            Pane::Vms => self.on_vm.go(&self.vm_keys(), step),
            Pane::Feed => self.on_event.go(&self.event_keys(), step),
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        self.tickets
    }

    fn follow(&mut self, name: &VmName) -> Option<Action> {
        let Some(uid) = self.vm(name) else { return self.hint(format!("VM {name} is not there any more")) };
        let ticket = self.ticket();
        self.over = Some(Over::Text(Text::log(ticket, format!("log of VM {name}"), self.window())));
        Some(Action::Follow(ticket, uid))
    }

    /// The VM is asked for by its name: it must be the one that was confirmed.
    fn delete(&mut self, name: VmName, uid: VmUid) -> Option<Action> {
        match self.vm(&name) {
            Some(now) if now == uid => Some(Action::Delete(name)),
            Some(_) => self.hint(format!("VM {name} was made anew meanwhile, and is not deleted")),
            None => self.hint(format!("VM {name} is not there any more")),
        }
    }

    fn vm(&self, name: &VmName) -> Option<VmUid> {
        self.all.vms.iter().find(|vm| vm.name == *name).map(|vm| vm.uid)
    }
}

impl Pane {
    fn next(self) -> Self {
        match self {
            Pane::Workers => Pane::Vms,
            Pane::Vms => Pane::Feed,
            Pane::Feed => Pane::Workers,
        }
    }
}

#[cfg(test)]
mod tests;
