//! The LMDB environment: typed tables, opened once, read by anyone, written by [`writer`] alone.
//!
//! LMDB over a log-structured store: one file, readers that never block, a commit that is one `fdatasync`, nothing to
//! repair after a crash. On Apple systems the LMDB that heed builds syncs with `F_FULLFSYNC`, which forces the drive.
//! The map is opened far larger than it will get: it is address space, not memory or disk, so it need never be resized.

mod history;
pub mod seal;
mod upgrade;
pub mod writer;

use std::path::{Path, PathBuf};

use heed::types::{Bytes, Str};
use heed::{CommitOrAbort, Database, Env, EnvOpenOptions, RoTxn, RwTxn};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use self::history::vm_event_key;
use self::seal::{KeyError, NotSealed, Seal};
use super::cluster::{Changes, Cluster, Records};
use crate::identity;
use crate::identity::folder::{self, FolderLock, LockError};
use crate::model::CopyId;
use crate::model::audit::AuditNumber;
use crate::model::event::{EventNumber, EventObject};

/// The version of what the tables hold; raised with every change that an older release cannot read.
pub const SCHEMA: u32 = 2;

/// The schema before VMs were sealed.
const PLAIN_SCHEMA: u32 = 1;

/// Address space for the map: events of years fit.
const MAP_SIZE: usize = if cfg!(target_pointer_width = "64") { 64 << 30 } else { 1 << 30 };
/// Readers at once. LMDB's own default of 126 is less than the threads that answer requests for events (512, each of
/// which keeps its place for as long as it lives): those beyond would be refused.
const MAX_READERS: u32 = 1_024;

/// Tables that there may be: more than there are, as each costs a few bytes only.
const MAX_TABLES: u32 = 32;

/// The table whose values are sealed.
const VMS: &str = "vms";
/// The table of what is no record.
const META: &str = "meta";

const SCHEMA_KEY: &str = "schema";
const LAST_EVENT_KEY: &str = "last-event";
const PUBLISHED_KEY: &str = "published";
const LAST_AUDIT_KEY: &str = "last-audit";
const AUDIT_PUBLISHED_KEY: &str = "audit-published";

/// Up to which numbers things have been published, as far as was noted: later ones may have been, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Events.
    pub events: EventNumber,
    /// Audit records.
    pub audit: AuditNumber,
}

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder cannot be made or entered.
    #[error("cannot use the data folder {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Another process has it, or it cannot be locked.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A newer release wrote it.
    #[error("the data folder {} was written by a newer release (schema {found}, this one knows up to {SCHEMA}); use that release, or another --data-dir", path.display())]
    Newer {
        /// The folder.
        path: PathBuf,
        /// Its schema.
        found: u32,
    },
    /// The key that opens its records.
    #[error("cannot open the stored records")]
    Key(#[from] KeyError),
    /// LMDB refuses it, or a record cannot be read.
    #[error("the database in {} cannot be read", path.display())]
    Database {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
}

/// Why reading or writing failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// LMDB or the system under it.
    #[error("the database failed")]
    Lmdb(#[from] heed::Error),
    /// A record is not what this release expects.
    #[error("record {key} of table {table} is damaged or of another release")]
    Damaged {
        /// Where.
        table: &'static str,
        /// Which.
        key: String,
        /// How.
        #[source]
        source: rmp_serde::decode::Error,
    },
    /// A record that should be sealed does not open.
    #[error("record {key} of table {table} cannot be read; restore database and key from one backup")]
    Sealed {
        /// Where.
        table: &'static str,
        /// Which.
        key: String,
        /// Why.
        #[source]
        source: NotSealed,
    },
    /// A record cannot be sealed.
    #[error("a record cannot be sealed")]
    Seal(#[from] KeyError),
    /// A record cannot be written as MessagePack.
    #[error("a record cannot be encoded")]
    Encode(#[from] rmp_serde::encode::Error),
}

type Table = Database<'static, Bytes, Bytes>;

/// The tables, as LMDB opened them.
struct Tables {
    meta: Database<'static, Str, Bytes>,
    vms: Table,
    workers: Table,
    leaving: Table,
    given_up: Table,
    events: Table,
    events_of_vm: Table,
    audit: Table,
    accounts: Table,
    joins: Table,
    keys: Table,
}

/// The open store. Cheap to clone; the last clone closes it and lets the next process in.
#[derive(Clone, Debug)]
pub struct Store {
    env: Env,
    meta: Database<'static, Str, Bytes>,
    vms: Table,
    workers: Table,
    leaving: Table,
    given_up: Table,
    events: Table,
    events_of_vm: Table,
    audit: Table,
    accounts: Table,
    joins: Table,
    keys: Table,
    seal: std::sync::Arc<Seal>,
    _lock: FolderLock,
    #[cfg(test)]
    spoilt: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl Store {
    /// Opens the store in `folder`, making it if there is none, and locks it against other processes.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was changed then.
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        let folder_error = |source| OpenError::Folder { path: folder.to_owned(), source };
        let database_error = |source: StoreError| OpenError::Database { path: folder.to_owned(), source };
        identity::make_private_dir(folder).map_err(folder_error)?;
        let lock = folder::lock(folder)?;
        let path = folder.join("db");
        identity::make_private_dir(&path).map_err(folder_error)?;
        let (env, tables) = Self::open_tables(&path).map_err(|source| database_error(source.into()))?;
        let found = schema(&env, tables.meta).map_err(database_error)?;
        if found > SCHEMA {
            return Err(OpenError::Newer { path: folder.to_owned(), found });
        }
        // A key is made only where nothing can be lost for want of the right one.
        let sealed = found > PLAIN_SCHEMA && has_records(&env, tables.vms).map_err(database_error)?;
        let seal = Seal::load(folder, !sealed)?;
        let (env, tables) = if found == PLAIN_SCHEMA {
            env.prepare_for_closing().wait();
            upgrade::from_plain(folder, &seal).map_err(database_error)?;
            tracing::info!("the stored VMs are sealed with {} from now on; back it up", seal::KEY_FILE);
            Self::open_tables(&path).map_err(|source| database_error(source.into()))?
        } else {
            (env, tables)
        };
        Ok(Self {
            env,
            meta: tables.meta,
            vms: tables.vms,
            workers: tables.workers,
            leaving: tables.leaving,
            given_up: tables.given_up,
            events: tables.events,
            events_of_vm: tables.events_of_vm,
            audit: tables.audit,
            accounts: tables.accounts,
            joins: tables.joins,
            keys: tables.keys,
            seal: seal.into(),
            _lock: lock,
            #[cfg(test)]
            spoilt: std::sync::Arc::default(),
        })
    }

    #[allow(unsafe_code)] // LMDB maps the file; our lock keeps every other process from changing it
    fn open_tables(path: &Path) -> Result<(Env, Tables), heed::Error> {
        let mut options = EnvOpenOptions::new();
        options.map_size(MAP_SIZE).max_dbs(MAX_TABLES).max_readers(MAX_READERS);
        // SAFETY: the file lies in a folder of mode 0700 that this process has locked exclusively, so nobody else
        // changes or truncates the mapped file, and it is opened once per `Store`.
        let env = unsafe { options.open(path)? };
        let wtxn = env.write_txn()?;
        let tables = env.create_databases_and_commit(wtxn, |open, wtxn| {
            let meta = open.create_database::<Str, Bytes>(wtxn, Some(META))?;
            let mut table = |name| open.create_database::<Bytes, Bytes>(wtxn, Some(name));
            let objects = (table(VMS)?, table("workers")?, table("leaving")?, table("given-up")?);
            let told = (table("events")?, table("events-of-vm")?, table("audit")?);
            let access = (table("accounts")?, table("joins")?, table("worker-keys")?);
            Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit((meta, objects, told, access)))
        })?;
        let CommitOrAbort::Commit((meta, objects, told, access)) = tables else {
            return Err(heed::Error::Io(std::io::Error::other("no tables")));
        };
        let ((vms, workers, leaving, given_up), (events, events_of_vm, audit)) = (objects, told);
        let (accounts, joins, keys) = access;
        Ok((env, Tables { meta, vms, workers, leaving, given_up, events, events_of_vm, audit, accounts, joins, keys }))
    }

    /// Reads everything the core needs.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] names the record.
    pub fn records(&self) -> Result<Records, StoreError> {
        #[cfg(test)]
        self.fail_if_spoilt()?;
        let txn = self.env.read_txn()?;
        Ok(Records {
            vms: self.all_sealed(&txn, self.vms, VMS)?,
            workers: all(&txn, self.workers, "workers")?,
            leaving: all(&txn, self.leaving, "leaving")?,
            given_up: all(&txn, self.given_up, "given-up")?,
            accounts: all(&txn, self.accounts, "accounts")?,
            joins: all(&txn, self.joins, "joins")?,
            keys: all(&txn, self.keys, "worker-keys")?,
            last_event: self.number(&txn, LAST_EVENT_KEY)?,
            last_audit: self.number(&txn, LAST_AUDIT_KEY)?,
        })
    }

    /// How far publishing had come.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn published(&self) -> Result<Published, StoreError> {
        let txn = self.env.read_txn()?;
        Ok(Published { events: self.number(&txn, PUBLISHED_KEY)?, audit: self.number(&txn, AUDIT_PUBLISHED_KEY)? })
    }

    fn number(&self, txn: &RoTxn<'_>, key: &'static str) -> Result<EventNumber, StoreError> {
        self.meta.get(txn, key)?.map_or(Ok(0), |bytes| decode("meta", key.as_bytes(), bytes))
    }

    /// Stores the newest form of all that `changes` names, in one transaction that is durable on return.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing of it is stored.
    pub fn commit(&self, cluster: &Cluster, changes: &Changes, published: Published) -> Result<(), StoreError> {
        #[cfg(test)]
        self.fail_if_spoilt()?;
        let mut txn = self.env.write_txn()?;
        for uid in &changes.vms {
            self.put_sealed_or_delete(&mut txn, self.vms, VMS, uid.0.as_bytes(), cluster.vm_record(*uid))?;
        }
        for name in &changes.workers {
            put_or_delete(&mut txn, self.workers, name.as_str().as_bytes(), cluster.worker_record(name))?;
        }
        for id in &changes.leaving {
            put_or_delete(&mut txn, self.leaving, &copy_key(*id), cluster.leaving_record(*id))?;
        }
        for id in &changes.given_up {
            put_or_delete(&mut txn, self.given_up, &copy_key(*id), cluster.given_up_record(*id))?;
        }
        for name in &changes.accounts {
            put_or_delete(&mut txn, self.accounts, name.as_str().as_bytes(), cluster.account_record(name))?;
        }
        for id in &changes.joins {
            put_or_delete(&mut txn, self.joins, id.as_str().as_bytes(), cluster.join_record(id))?;
        }
        for name in &changes.keys {
            put_or_delete(&mut txn, self.keys, name.as_str().as_bytes(), cluster.key_record(name))?;
        }
        for event in &changes.events {
            self.events.put(&mut txn, &event.number.to_be_bytes(), &rmp_serde::to_vec_named(event)?)?;
            if let EventObject::Vm { uid, .. } = &event.object {
                self.events_of_vm.put(&mut txn, &vm_event_key(*uid, event.number), &[])?;
            }
        }
        for record in &changes.audit {
            self.audit.put(&mut txn, &record.number.to_be_bytes(), &rmp_serde::to_vec_named(record)?)?;
        }
        self.prune(&mut txn, cluster.last_event())?;
        self.prune_audit(&mut txn, cluster.last_audit())?;
        self.meta.put(&mut txn, LAST_EVENT_KEY, &rmp_serde::to_vec(&cluster.last_event())?)?;
        self.meta.put(&mut txn, PUBLISHED_KEY, &rmp_serde::to_vec(&published.events)?)?;
        self.meta.put(&mut txn, LAST_AUDIT_KEY, &rmp_serde::to_vec(&cluster.last_audit())?)?;
        self.meta.put(&mut txn, AUDIT_PUBLISHED_KEY, &rmp_serde::to_vec(&published.audit)?)?;
        txn.commit()?;
        Ok(())
    }

    fn all_sealed<T: DeserializeOwned>(
        &self,
        txn: &RoTxn<'_>,
        table: Table,
        name: &'static str,
    ) -> Result<Vec<T>, StoreError> {
        let mut found = Vec::new();
        for entry in table.iter(txn)? {
            let (key, bytes) = entry?;
            let opened = self.seal.open(name, key, bytes).map_err(|source| StoreError::Sealed {
                table: name,
                key: data_encoding::HEXLOWER.encode(key),
                source,
            })?;
            found.push(decode(name, key, &opened)?);
        }
        Ok(found)
    }

    fn put_sealed_or_delete<T: Serialize>(
        &self,
        txn: &mut RwTxn<'_>,
        table: Table,
        name: &'static str,
        key: &[u8],
        record: Option<&T>,
    ) -> Result<(), StoreError> {
        match record {
            Some(record) => {
                let plain = Zeroizing::new(rmp_serde::to_vec_named(record)?);
                table.put(txn, key, &self.seal.seal(name, key, &plain)?)?;
            }
            None => drop(table.delete(txn, key)?),
        }
        Ok(())
    }

    /// Lets every reading of all and every commit fail, or no longer.
    #[cfg(test)]
    fn spoil(&self, spoilt: bool) {
        self.spoilt.store(spoilt, std::sync::atomic::Ordering::SeqCst);
    }

    #[cfg(test)]
    fn fail_if_spoilt(&self) -> Result<(), StoreError> {
        match self.spoilt.load(std::sync::atomic::Ordering::SeqCst) {
            true => Err(StoreError::Lmdb(heed::Error::Io(std::io::Error::other("spoilt")))),
            false => Ok(()),
        }
    }
}

/// The schema of what is stored; a new store gets the current one.
fn schema(env: &Env, meta: Database<'static, Str, Bytes>) -> Result<u32, StoreError> {
    let mut txn = env.write_txn()?;
    if let Some(bytes) = meta.get(&txn, SCHEMA_KEY)? {
        return decode("meta", SCHEMA_KEY.as_bytes(), bytes);
    }
    meta.put(&mut txn, SCHEMA_KEY, &rmp_serde::to_vec(&SCHEMA)?)?;
    txn.commit()?;
    Ok(SCHEMA)
}

fn has_records(env: &Env, table: Table) -> Result<bool, StoreError> {
    let txn = env.read_txn()?;
    Ok(table.first(&txn)?.is_some())
}

fn copy_key(id: CopyId) -> Vec<u8> {
    [id.uid.0.as_bytes().as_slice(), &id.attempt.to_be_bytes()].concat()
}

fn decode<T: DeserializeOwned>(table: &'static str, key: &[u8], bytes: &[u8]) -> Result<T, StoreError> {
    let key_text = || data_encoding::HEXLOWER.encode(key);
    rmp_serde::from_slice(bytes).map_err(|source| StoreError::Damaged { table, key: key_text(), source })
}

fn all<T: DeserializeOwned>(txn: &RoTxn<'_>, table: Table, name: &'static str) -> Result<Vec<T>, StoreError> {
    let mut found = Vec::new();
    for entry in table.iter(txn)? {
        let (key, bytes) = entry?;
        found.push(decode(name, key, bytes)?);
    }
    Ok(found)
}

fn put_or_delete<T: Serialize>(
    txn: &mut RwTxn<'_>,
    table: Table,
    key: &[u8],
    record: Option<&T>,
) -> Result<(), StoreError> {
    match record {
        Some(record) => table.put(txn, key, &rmp_serde::to_vec_named(record)?)?,
        None => drop(table.delete(txn, key)?),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
