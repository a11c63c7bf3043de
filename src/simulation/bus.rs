//! The bus: carries messages late, in another order, twice or not at all.
//!
//! What clients ask is carried at most once: a `vm.delete` that came again an hour later would rightly delete the VM that
//! has the name then. A create that bears a key may come twice. What workers say carries uid, attempt and session, and must
//! survive everything.

use super::clock::Millis;
use super::dice::Dice;
use super::world::{Event, World};
use crate::bus::life::UpdateVm;
use crate::bus::log::LogLines;
use crate::bus::message::{Assignment, CreateVm, Heartbeat, Hello, Report};
use crate::model::VmName;
use crate::model::error::ApiError;
use crate::model::vm::Vm;

/// The number of a request; its answer bears the same.
pub(super) type Call = u64;

/// What workers ask.
#[derive(Clone, Debug)]
pub(super) enum WorkerCall {
    Hello(Hello),
    Heartbeat(Heartbeat),
    Report(Report),
    Log(LogLines),
}

/// What clients ask.
#[derive(Clone, Debug)]
pub(super) enum ApiCall {
    Create(Box<CreateVm>),
    Update(Box<UpdateVm>),
    Delete(VmName),
    Pause(usize, bool),
    Drain(usize, Option<u64>),
    DeleteWorker(usize),
    /// The same machine becomes a worker again, with a token made for that.
    Rejoin(usize),
}

/// What the controller answers.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    Welcome(Assignment),
    Ack { tell_all: bool },
    Created(Box<Vm>),
    Done,
}

pub(super) type Answer = Result<Reply, ApiError>;

/// Anything on its way.
#[derive(Clone, Debug)]
pub(super) enum Message {
    /// From the worker process `life` on host `host`.
    FromWorker {
        host: usize,
        life: u64,
        call: Call,
        body: WorkerCall,
    },
    FromClient {
        call: Call,
        body: ApiCall,
    },
    ToWorker {
        host: usize,
        life: u64,
        call: Call,
        answer: Answer,
    },
    Assign {
        host: usize,
        part: Assignment,
    },
    ToClient {
        call: Call,
        answer: Answer,
    },
}

/// How bad the network is, in times per thousand and milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weather {
    pub(super) lost: u64,
    pub(super) doubled: u64,
    pub(super) late: u64,
    pub(super) how_late: Millis,
}

/// A message is never later than this: who waits for longer knows that nothing of it is still under way.
pub(super) const LATEST: Millis = 20_000;

impl Weather {
    /// When copies of a message arrive: none, one or two times.
    fn delays(self, dice: &mut Dice, may_double: bool) -> Vec<Millis> {
        if dice.chance(self.lost) {
            return Vec::new();
        }
        let copies = if may_double && dice.chance(self.doubled) { 2 } else { 1 };
        (0..copies).map(|_| dice.delay(8, self.late, self.how_late.max(8))).collect()
    }
}

impl World {
    pub(super) fn send(&mut self, message: Message) {
        if self.is_cut(&message) {
            return;
        }
        let may_double = match &message {
            Message::FromClient { body: ApiCall::Create(request), .. } => request.key.is_some(),
            Message::FromClient { .. } | Message::ToClient { .. } => false,
            Message::FromWorker { .. } | Message::ToWorker { .. } | Message::Assign { .. } => true,
        };
        for delay in self.weather.delays(&mut self.dice, may_double) {
            self.agenda.after(delay, Event::Arrives(message.clone()));
        }
    }

    /// Hands over what has arrived; a partition swallows also what was under way.
    pub(super) fn arrives(&mut self, message: Message) {
        if self.is_cut(&message) {
            return;
        }
        match message {
            Message::FromWorker { host, life, call, body } => self.hear_worker(host, life, call, body),
            Message::FromClient { call, body } => self.hear_client(call, body),
            Message::ToWorker { host, life, call, answer } => self.worker_hears(host, life, call, answer),
            Message::Assign { host, part } => self.worker_assigned(host, part),
            Message::ToClient { call, answer } => self.client_hears(call, answer),
        }
    }

    fn is_cut(&self, message: &Message) -> bool {
        if self.bus_cut_until > self.agenda.now() {
            return true;
        }
        match message {
            Message::FromWorker { host, .. } | Message::ToWorker { host, .. } | Message::Assign { host, .. } => {
                self.hosts[*host].cut_until > self.agenda.now() || self.hosts[*host].asleep_until > 0
            }
            Message::FromClient { .. } | Message::ToClient { .. } => false,
        }
    }
}
