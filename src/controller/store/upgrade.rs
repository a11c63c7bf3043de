//! From an older schema to the present one, before the store is used. Called by the store while it opens.
//!
//! Everything is written anew into a database of its own, in one transaction, which then takes the old one's place by one
//! rename: a crash at any moment leaves the one or the other, and no page of the new file ever held what is to be hidden
//! (rewriting records where they are would leave plain text in free pages and in the slack of used ones).

use std::fs;
use std::path::Path;

use heed::types::Bytes;
use heed::{CommitOrAbort, Env};

use super::StoreError;
use super::seal::Seal;
use super::tables::{META, SCHEMA, SCHEMA_KEY, VMS, open_env};

/// Name of LMDB's file in its folder.
const DATA_FILE: &str = "data.mdb";
/// The tables of schema 1.
const PLAIN_TABLES: &[&str] =
    &[META, VMS, "workers", "leaving", "events", "events-of-vm", "accounts", "joins", "worker-keys"];
/// Where the new database grows until it is whole, beside the old one.
const NEW_FOLDER: &str = "db.new";

/// Brings the database in `folder`/db from schema 1 (VMs in plain text) to [`SCHEMA`].
///
/// # Errors
/// [`StoreError`]; the old database is as it was then.
pub(super) fn from_plain(folder: &Path, map_size: usize, seal: &Seal) -> Result<(), StoreError> {
    let io = |error| StoreError::Lmdb(heed::Error::Io(error));
    let (old, new) = (folder.join("db"), folder.join(NEW_FOLDER));
    if new.exists() {
        // Of an attempt that did not get to its end.
        fs::remove_dir_all(&new).map_err(io)?;
    }
    crate::identity::make_private_dir(&new).map_err(io)?;
    reached("begun");
    let (from, to) = (open_env(&old, map_size)?, open_env(&new, map_size)?);
    copy(&from, &to, seal)?;
    reached("copied");
    to.force_sync()?;
    // Both are mapped: neither may be when the files change places.
    from.prepare_for_closing().wait();
    to.prepare_for_closing().wait();
    reached("closed");
    fs::rename(new.join(DATA_FILE), old.join(DATA_FILE)).map_err(io)?;
    reached("renamed");
    crate::identity::sync_folder(&old).map_err(io)?;
    fs::remove_dir_all(&new).map_err(io)
}

fn copy(from: &Env, to: &Env, seal: &Seal) -> Result<(), StoreError> {
    to.create_databases_and_commit(to.write_txn()?, |target, write| {
        from.open_databases_and_commit(from.read_txn()?, |source, read| {
            for name in PLAIN_TABLES {
                let Some(old) = source.open_database::<Bytes, Bytes>(read, Some(name))? else { continue };
                let new = target.create_database::<Bytes, Bytes>(write, Some(name))?;
                for entry in old.iter(read)? {
                    let (key, value) = entry?;
                    reached("copying");
                    match *name == VMS {
                        true => new.put(write, key, &seal.seal(VMS, key, value)?)?,
                        false => new.put(write, key, value)?,
                    }
                }
                if *name == META {
                    new.put(write, SCHEMA_KEY.as_bytes(), &rmp_serde::to_vec(&SCHEMA)?)?;
                }
            }
            Ok::<_, StoreError>(CommitOrAbort::<(), ()>::Commit(()))
        })?;
        Ok::<_, StoreError>(CommitOrAbort::<(), ()>::Commit(()))
    })?;
    Ok(())
}

#[cfg(not(test))]
fn reached(_: &str) {}

/// Where a test wants the process to be killed.
#[cfg(test)]
pub(super) const KILL_AT: &str = "ORCHARD_TEST_KILL_UPGRADE_AT";

/// Kills the process, as a loss of power would, if a test wants that here.
#[cfg(test)]
fn reached(place: &str) {
    if std::env::var(KILL_AT).is_ok_and(|wanted| wanted == place) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}
