//! Which worker is connected, by which connection, and whether it answers. The newest connection of a worker is the one that
//! counts.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quinn::Connection;

use super::reach::{Next, Reach};
use crate::model::WorkerName;
use crate::model::error::{ApiError, ErrorCode};
use crate::tunnel::reason::{self, Reason};

/// How long it is remembered why a worker's connection ended. Bounds what deleted workers leave behind.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// What is known of a worker's connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// Where it comes from.
    pub address: SocketAddr,
    /// Round-trip time, smoothed.
    pub rtt: Duration,
    /// Packets sent to the worker.
    pub sent: u64,
    /// Of these, packets lost.
    pub lost: u64,
    /// How long it has lasted.
    pub age: Duration,
    /// How long ago the worker last answered over it; none = not yet.
    pub proven: Option<Duration>,
    /// How often the worker has connected, this time included, since it was last away for an hour.
    pub connects: u64,
}

#[derive(Default)]
pub(super) struct Links(Mutex<HashMap<WorkerName, Link>>);

struct Link {
    state: State,
    connects: u64,
}

enum State {
    Up { connection: Connection, since: Instant, reach: Reach },
    Down { since: Instant, why: String },
}

impl Links {
    /// The connection becomes the worker's; an older one is closed.
    pub(super) fn up(&self, worker: &WorkerName, connection: &Connection) {
        let mut links = self.lock();
        links.retain(|_, link| !matches!(link.state, State::Down { since, .. } if since.elapsed() > REMEMBERED));
        let since = Instant::now();
        let state = State::Up { connection: connection.clone(), since, reach: Reach::new(since) };
        let connects = links.get(worker).map_or(0, |link| link.connects).saturating_add(1);
        if let Some(Link { state: State::Up { connection: older, .. }, .. }) =
            links.insert(worker.clone(), Link { state, connects })
        {
            older.close(Reason::Replaced.code(), b"");
        }
    }

    /// The connection has ended; nothing happens if it is not the worker's any more.
    pub(super) fn down(&self, worker: &WorkerName, connection: &Connection) {
        let mut links = self.lock();
        let Some(link) = links.get_mut(worker) else { return };
        if matches!(&link.state, State::Up { connection: kept, .. } if kept.stable_id() == connection.stable_id()) {
            let why = connection.close_reason().map_or_else(|| "unknown".to_owned(), |e| reason::describe(&e));
            link.state = State::Down { since: Instant::now(), why };
        }
    }

    /// Looks whether anything has come over each connection; yields those that are to be asked now, `most` of them.
    pub(super) fn look(&self, most: usize) -> Vec<(WorkerName, Connection)> {
        let now = Instant::now();
        let mut asked = Vec::new();
        for (worker, link) in self.lock().iter_mut() {
            let State::Up { connection, reach, .. } = &mut link.state else { continue };
            if reach.look(connection.stats().udp_rx.datagrams, now) == Next::Ask && asked.len() < most {
                reach.ask(now);
                asked.push((worker.clone(), connection.clone()));
            }
        }
        asked
    }

    /// All are to be asked at the next look.
    pub(super) fn ask_all(&self) {
        for link in self.lock().values_mut() {
            if let State::Up { reach, .. } = &mut link.state {
                reach.ask_again();
            }
        }
    }

    /// What came of asking the worker over the connection.
    pub(super) fn answered(&self, worker: &WorkerName, of: &Connection, answer: Result<(), String>) {
        if let Some(Link { state: State::Up { connection, reach, .. }, .. }) = self.lock().get_mut(worker)
            && connection.stable_id() == of.stable_id()
        {
            reach.answered(answer, Instant::now());
        }
    }

    /// The worker's living connection, if it answers over it.
    pub(super) fn answering(&self, worker: &WorkerName) -> Result<Connection, ApiError> {
        let connection = self.get(worker)?;
        if let Some(Link { state: State::Up { reach, .. }, .. }) = self.lock().get(worker)
            && let Some((since, why)) = reach.failing()
        {
            let seconds = since.elapsed().as_secs();
            let what = format!("worker {worker} does not answer over the tunnel, for {seconds} s now: {why}");
            return Err(ApiError::new(ErrorCode::Unavailable, what));
        }
        Ok(connection)
    }

    /// The worker's living connection, whether it answers over it or not.
    pub(super) fn get(&self, worker: &WorkerName) -> Result<Connection, ApiError> {
        let missing = |what: &str| {
            ApiError::new(
                ErrorCode::Unavailable,
                format!("worker {worker} is not connected to the tunnel endpoint ({what})"),
            )
        };
        match self.lock().get(worker).map(|link| &link.state) {
            Some(State::Up { connection, .. }) => match connection.close_reason() {
                None => Ok(connection.clone()),
                Some(error) => Err(missing(&format!("its connection has just ended: {}", reason::describe(&error)))),
            },
            Some(State::Down { since, why }) => {
                Err(missing(&format!("its connection ended {} s ago: {why}", since.elapsed().as_secs())))
            }
            None => {
                Err(missing("it has not been since the controller started; is UDP from it to the controller allowed?"))
            }
        }
    }

    pub(super) fn info(&self, worker: &WorkerName) -> Option<LinkInfo> {
        match self.lock().get(worker) {
            Some(Link { state: State::Up { connection, since, reach }, connects })
                if connection.close_reason().is_none() =>
            {
                let path = connection.stats().path;
                Some(LinkInfo {
                    address: connection.remote_address(),
                    rtt: path.rtt,
                    sent: path.sent_packets,
                    lost: path.lost_packets,
                    age: since.elapsed(),
                    proven: reach.proven().map(|at| at.elapsed()),
                    connects: *connects,
                })
            }
            _ => None,
        }
    }

    /// Closes the worker's connection, if it has one.
    pub(super) fn disconnect(&self, worker: &WorkerName, reason: Reason) {
        if let Some(Link { state: State::Up { connection, .. }, .. }) = self.lock().get(worker) {
            connection.close(reason.code(), b"");
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<WorkerName, Link>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
