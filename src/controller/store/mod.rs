//! The LMDB environment: typed tables, opened once, read by anyone, written by [`writer`] alone.
//!
//! LMDB over a log-structured store: one file, readers that never block, a commit that is one `fdatasync`, nothing to
//! repair after a crash. On Apple systems the LMDB that heed builds syncs with `F_FULLFSYNC`, which forces the drive.
//! The map is opened far larger than it will get: it is address space, not memory or disk, so it need never be resized.

mod error;
mod history;
pub mod seal;
mod tables;
mod upgrade;
pub mod writer;

use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;

use heed::{Env, RoTxn, RwTxn};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

pub use self::error::{OpenError, StoreError};
use self::history::vm_event_key;
pub use self::history::{Page, Room};
use self::seal::Seal;
use self::tables::{
    AUDIT_PUBLISHED_KEY, LAST_AUDIT_KEY, LAST_EVENT_KEY, PLAIN_SCHEMA, PUBLISHED_KEY, SCHEMA, Table, Tables, VMS, all,
    copy_key, decode, put_or_delete,
};
use super::cluster::{Changes, Cluster, Records};
use crate::identity;
use crate::model::audit::AuditNumber;
use crate::model::event::{EventNumber, EventObject};

/// Address space for the map: events of years fit.
const MAP_SIZE: usize = if cfg!(target_pointer_width = "64") { 64 << 30 } else { 1 << 30 };

/// Up to which numbers things have been published, as far as was noted: later ones may have been, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Events.
    pub events: EventNumber,
    /// Audit records.
    pub audit: AuditNumber,
}

/// The open store. Cheap to clone; the last clone closes it and lets the next process in.
#[derive(Clone, Debug)]
pub struct Store {
    env: Env,
    tables: Tables,
    seal: Arc<Seal>,
    _lock: Arc<File>,
    #[cfg(test)]
    spoilt: Arc<std::sync::atomic::AtomicBool>,
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
        let lock = File::create(folder.join("controller.lock")).map_err(folder_error)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse(folder.to_owned())),
            Err(TryLockError::Error(source)) => return Err(folder_error(source)),
        }
        let path = folder.join("db");
        identity::make_private_dir(&path).map_err(folder_error)?;
        let open = || tables::open(&path, MAP_SIZE).map_err(|source| database_error(source.into()));
        let (env, tables) = open()?;
        let found = tables.schema(&env).map_err(database_error)?;
        if found > SCHEMA {
            return Err(OpenError::Newer { path: folder.to_owned(), found });
        }
        // A key is made only where nothing can be lost for want of the right one.
        let sealed = found > PLAIN_SCHEMA && has_records(&env, tables.vms).map_err(database_error)?;
        let seal = Seal::load(folder, !sealed)?;
        let (env, tables) = if found == PLAIN_SCHEMA {
            env.prepare_for_closing().wait();
            upgrade::from_plain(folder, MAP_SIZE, &seal).map_err(database_error)?;
            tracing::info!("the stored VMs are sealed with {} from now on; back it up", seal::KEY_FILE);
            open()?
        } else {
            (env, tables)
        };
        Ok(Self {
            env,
            tables,
            seal: seal.into(),
            _lock: lock.into(),
            #[cfg(test)]
            spoilt: Arc::default(),
        })
    }

    /// Reads everything the core needs.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] names the record.
    pub fn records(&self) -> Result<Records, StoreError> {
        #[cfg(test)]
        self.fail_if_spoilt()?;
        let txn = self.env.read_txn()?;
        let tables = &self.tables;
        Ok(Records {
            vms: self.all_sealed(&txn, tables.vms, VMS)?,
            workers: all(&txn, tables.workers, "workers")?,
            leaving: all(&txn, tables.leaving, "leaving")?,
            accounts: all(&txn, tables.accounts, "accounts")?,
            joins: all(&txn, tables.joins, "joins")?,
            keys: all(&txn, tables.keys, "worker-keys")?,
            last_event: tables.number(&txn, LAST_EVENT_KEY)?,
            last_audit: tables.number(&txn, LAST_AUDIT_KEY)?,
        })
    }

    /// How far publishing had come.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn published(&self) -> Result<Published, StoreError> {
        let txn = self.env.read_txn()?;
        let number = |key| self.tables.number(&txn, key);
        Ok(Published { events: number(PUBLISHED_KEY)?, audit: number(AUDIT_PUBLISHED_KEY)? })
    }

    /// Stores the newest form of all that `changes` names, in one transaction that is durable on return.
    ///
    /// # Errors
    /// [`StoreError`]; then nothing of it is stored.
    pub fn commit(&self, cluster: &Cluster, changes: &Changes, published: Published) -> Result<(), StoreError> {
        #[cfg(test)]
        self.fail_if_spoilt()?;
        let mut txn = self.env.write_txn()?;
        let tables = &self.tables;
        for uid in &changes.vms {
            self.put_sealed_or_delete(&mut txn, tables.vms, VMS, uid.0.as_bytes(), cluster.vm_record(*uid))?;
        }
        for name in &changes.workers {
            put_or_delete(&mut txn, tables.workers, name.as_str().as_bytes(), cluster.worker_record(name))?;
        }
        for id in &changes.leaving {
            put_or_delete(&mut txn, tables.leaving, &copy_key(*id), cluster.leaving_record(*id))?;
        }
        for name in &changes.accounts {
            put_or_delete(&mut txn, tables.accounts, name.as_str().as_bytes(), cluster.account_record(name))?;
        }
        for id in &changes.joins {
            put_or_delete(&mut txn, tables.joins, id.as_str().as_bytes(), cluster.join_record(id))?;
        }
        for name in &changes.keys {
            put_or_delete(&mut txn, tables.keys, name.as_str().as_bytes(), cluster.key_record(name))?;
        }
        for event in &changes.events {
            tables.events.put(&mut txn, &event.number.to_be_bytes(), &rmp_serde::to_vec_named(event)?)?;
            if let EventObject::Vm { uid, .. } = &event.object {
                tables.events_of_vm.put(&mut txn, &vm_event_key(*uid, event.number), &[])?;
            }
        }
        for record in &changes.audit {
            tables.audit.put(&mut txn, &record.number.to_be_bytes(), &rmp_serde::to_vec_named(record)?)?;
        }
        self.prune(&mut txn, cluster.last_event())?;
        self.prune_audit(&mut txn, cluster.last_audit())?;
        tables.put_number(&mut txn, LAST_EVENT_KEY, cluster.last_event())?;
        tables.put_number(&mut txn, PUBLISHED_KEY, published.events)?;
        tables.put_number(&mut txn, LAST_AUDIT_KEY, cluster.last_audit())?;
        tables.put_number(&mut txn, AUDIT_PUBLISHED_KEY, published.audit)?;
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

fn has_records(env: &Env, table: Table) -> Result<bool, StoreError> {
    let txn = env.read_txn()?;
    Ok(table.first(&txn)?.is_some())
}

#[cfg(test)]
mod tests;
