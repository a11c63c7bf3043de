//! Which worker is connected, by which connection. The newest connection of a worker is the one that counts.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quinn::Connection;

use super::Gatekeeper;
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
}

pub(super) struct Links {
    gate: Arc<dyn Gatekeeper>,
    links: Mutex<HashMap<WorkerName, Link>>,
}

enum Link {
    Up { connection: Connection, since: Instant },
    Down { since: Instant, why: String },
}

impl Links {
    pub(super) fn new(gate: Arc<dyn Gatekeeper>) -> Self {
        Self { gate, links: Mutex::default() }
    }

    /// The connection becomes the worker's; an older one is closed.
    pub(super) fn up(&self, worker: &WorkerName, connection: &Connection) {
        let mut links = self.lock();
        links.retain(|_, link| !matches!(link, Link::Down { since, .. } if since.elapsed() > REMEMBERED));
        let link = Link::Up { connection: connection.clone(), since: Instant::now() };
        if let Some(Link::Up { connection: older, .. }) = links.insert(worker.clone(), link) {
            older.close(Reason::Replaced.code(), b"");
        }
        self.gate.link_changed(worker, true);
    }

    /// The connection has ended; nothing happens if it is not the worker's any more.
    pub(super) fn down(&self, worker: &WorkerName, connection: &Connection) {
        let mut links = self.lock();
        let ours = matches!(links.get(worker), Some(Link::Up { connection: kept, .. })
            if kept.stable_id() == connection.stable_id());
        if ours {
            let why = connection.close_reason().map_or_else(|| "unknown".to_owned(), |e| reason::describe(&e));
            links.insert(worker.clone(), Link::Down { since: Instant::now(), why });
            self.gate.link_changed(worker, false);
        }
    }

    /// The worker's living connection.
    pub(super) fn get(&self, worker: &WorkerName) -> Result<Connection, ApiError> {
        let missing = |what: &str| {
            ApiError::new(
                ErrorCode::Unavailable,
                format!("worker {worker} is not connected to the tunnel endpoint ({what})"),
            )
        };
        match self.lock().get(worker) {
            Some(Link::Up { connection, .. }) => match connection.close_reason() {
                None => Ok(connection.clone()),
                Some(error) => Err(missing(&format!("its connection has just ended: {}", reason::describe(&error)))),
            },
            Some(Link::Down { since, why }) => {
                Err(missing(&format!("its connection ended {} s ago: {why}", since.elapsed().as_secs())))
            }
            None => {
                Err(missing("it has not been since the controller started; is UDP from it to the controller allowed?"))
            }
        }
    }

    pub(super) fn info(&self, worker: &WorkerName) -> Option<LinkInfo> {
        match self.lock().get(worker) {
            Some(Link::Up { connection, since }) if connection.close_reason().is_none() => {
                let path = connection.stats().path;
                Some(LinkInfo {
                    address: connection.remote_address(),
                    rtt: path.rtt,
                    sent: path.sent_packets,
                    lost: path.lost_packets,
                    age: since.elapsed(),
                })
            }
            _ => None,
        }
    }

    /// Closes the worker's connection, if it has one.
    pub(super) fn disconnect(&self, worker: &WorkerName, reason: Reason) {
        if let Some(Link::Up { connection, .. }) = self.lock().get(worker) {
            connection.close(reason.code(), b"");
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<WorkerName, Link>> {
        // Nothing panics while it is held but the gate, and the map is whole even then.
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
