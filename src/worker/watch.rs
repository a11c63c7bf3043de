//! The worker as those see it who watch it: its figures, whether it goes on, and whether it does its work.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::connection::State;
use async_trait::async_trait;

use super::meters::Meters;
use super::uplink::Uplink;
use crate::bus::client::Bus;
use crate::metrics::page::Page;
use crate::metrics::{Source, names};
use crate::model::{Timestamp, WorkerName};

/// The reconciler goes round every few seconds, and waits for the runtime's list meanwhile, whose tool may take its minute.
const MOST_BETWEEN_TURNS: Duration = Duration::from_secs(180);
/// Heartbeats that may go unanswered until the worker counts as unheard: the one on its way, and two that were lost.
const BEATS: u32 = 3;

/// What there is to look at.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) name: WorkerName,
    pub(super) started: Timestamp,
    pub(super) bus: Bus,
    pub(super) uplink: Uplink,
    pub(super) meters: Arc<Meters>,
}

impl Watch {
    fn is_connected(&self) -> bool {
        self.bus.raw().connection_state() == State::Connected
    }

    fn has_session(&self) -> bool {
        self.uplink.sessions().borrow().is_some()
    }

    /// For how long the controller has not answered, if that is longer than it may be.
    fn silence(&self) -> Option<Duration> {
        let every = Duration::from_millis(self.meters.beat_every.load(Ordering::Relaxed));
        let silent = self.meters.age_or_all(&self.meters.heard);
        (silent > every.saturating_mul(BEATS)).then_some(silent)
    }

    fn complaints(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let name = &self.name;
        if !self.is_connected() {
            reasons.push(format!("worker {name} is not connected to the bus"));
        }
        match (self.has_session(), self.silence()) {
            (false, _) => reasons.push(format!("worker {name} is not registered with the controller")),
            (true, Some(silent)) => {
                reasons.push(format!("worker {name} has heard nothing of the controller for {} s", silent.as_secs()));
            }
            (true, None) => {}
        }
        if !self.meters.lists.load(Ordering::Relaxed) {
            reasons.push(format!("the runtime of worker {name} does not list its VMs"));
        }
        reasons
    }
}

/// Whether a worker goes on that last looked at its host so long ago.
///
/// # Errors
/// What only starting it again mends.
fn goes_on(name: &WorkerName, silent: Duration) -> Result<(), String> {
    match silent > MOST_BETWEEN_TURNS {
        true => Err(format!("worker {name} has not looked at its host for {} s", silent.as_secs())),
        false => Ok(()),
    }
}

#[async_trait]
impl Source for Watch {
    async fn scrape(&self, page: &mut Page) {
        let name = self.name.as_str();
        let part = format!("worker/{name}");
        page.number(&names::BUILD, &[&part, env!("CARGO_PKG_VERSION")], 1);
        page.gauge(&names::STARTED, &[&part], self.started.as_millis() as f64 / 1e3);
        page.number(&names::READY, &[&part], self.complaints().is_empty().into());
        page.number(&names::WORKER_SESSION, &[name], self.has_session().into());
        page.number(&names::WORKER_BUS, &[name], self.is_connected().into());
        for (state, count) in self.uplink.states() {
            page.number(&names::WORKER_COPIES, &[name, state], count);
        }
        self.meters.write(name, page);
    }

    fn alive(&self) -> Result<(), String> {
        goes_on(&self.name, self.meters.age_or_all(&self.meters.turned))
    }

    async fn ready(&self) -> Result<(), Vec<String>> {
        let reasons = self.complaints();
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_does_not_go_on_says_so() {
        let name = "w".parse().unwrap();
        assert_eq!(goes_on(&name, MOST_BETWEEN_TURNS), Ok(()), "its runtime's tool takes its time");
        let late = goes_on(&name, MOST_BETWEEN_TURNS + Duration::from_secs(1));
        assert_eq!(late, Err("worker w has not looked at its host for 181 s".into()));
    }
}
