//! Sessions that outlive the worker's process: a small process beside it, the session keeper, holds the connections into the
//! guests and the guests' ends of the sessions ([`crate::tunnel::resume::guest`]).
//!
//! | file | what |
//! |---|---|
//! | `starter` | the worker's side: has sessions opened and resumed, and starts the keeper when there is none |
//! | [`keeper`] | the keeper's process: `orchard worker session-keeper` |
//!
//! # Why a process of its own
//!
//! What a session has in flight lies in the kernel, in the TCP connection to the guest, and that goes with the process that
//! holds it. A worker is restarted and updated often; QEMU's end of that connection, which the worker's VMs bring along, cannot
//! be taken over by another process that comes later. So somebody must hold it who is not restarted: as little as
//! possible, so that it never need be. The keeper knows no controller, no runtime and no VM: it is handed a connected
//! socket and a name, and moves bytes between that and whichever Unix socket the worker has brought for that name last.
//!
//! The worker makes the connection, by whatever way its runtime needs (a forward of QEMU's, a guest's own address, a helper
//! that may reach it, a Unix socket), and hands the socket over. A guest within the worker's own process has none; its sessions
//! cannot be resumed, and end with it.
//!
//! # Between worker and keeper
//!
//! `DATA/sessions/v1/keeper.sock`, for the worker's user alone (the keeper asks the system who calls). What is said there are
//! the frames of [`header`](crate::tunnel::header): `attach`, with the guest's socket for a session that begins, is answered by
//! `opened` or `refused`; after `opened` come the session's own frames, of which the worker understands none. `forget` ends
//! a session whose account has lost its rights.
//!
//! A keeper of an earlier release goes on when the worker is updated. The messages keep their form; should that not do some
//! day, the folder gets another number, and another keeper runs beside the old one until that has nothing left to keep.
//!
//! # Bounds
//!
//! At most [`MAX_SESSIONS`](keeper::MAX_SESSIONS), and [`MAX_PER_COPY`](keeper::MAX_PER_COPY) into one VM, of at most twice
//! [`WINDOW`](crate::tunnel::resume::WINDOW) bytes each, and much less while they are idle. A session without a client is
//! kept for [`KEPT_FOR`](crate::tunnel::resume::KEPT_FOR), then its connection to the guest is closed. One that never had a
//! client, as the answer to its opening was lost, goes at once. The keeper itself ends a minute after its last session.
//!
//! # What is left
//!
//! * A client that is killed says no goodbye: what it ran in the guest goes on until its session is given up.
//! * Whoever kills the keeper ends the sessions in it. The worker starts another for the next session.
//! * A service manager must leave the keeper alone when it restarts the worker, as it must the VMs: `KillMode=process`.

pub mod keeper;
mod starter;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

pub(super) use self::starter::Sessions;
use crate::identity;
use crate::model::secret::Secret;

/// The keeper's socket in its folder.
const SOCKET: &str = "keeper.sock";

/// What it and its starter write.
const LOG: &str = "keeper.log";

/// The folder of the worker's keeper in `data_dir`.
fn folder_of(data_dir: &Path) -> PathBuf {
    data_dir.join("sessions").join("v1")
}

/// Makes it, closed to others, if it is not there.
fn make_folder(data_dir: &Path) -> io::Result<PathBuf> {
    let folder = folder_of(data_dir);
    for folder in [&data_dir.join("sessions"), &folder] {
        identity::refuse_link(folder)?;
        identity::make_private_dir(folder)?;
        identity::refuse_foreign(folder)?;
    }
    Ok(folder)
}

/// What a session is known by: its name need not be kept, and the time that it takes to find it says nothing about it.
type Key = [u8; 32];

fn key_of(session: &Secret) -> Key {
    Sha256::digest(session.expose().as_bytes()).into()
}
