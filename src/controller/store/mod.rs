//! The LMDB environment: typed tables, opened once, read by anyone, written by [`writer`] alone.
//!
//! LMDB over a log-structured store: one file, readers that never block, a commit that is one `fdatasync`, nothing to
//! repair after a crash. On Apple systems a plain sync leaves data in the drive's cache: there LMDB, as heed builds it, syncs
//! the pages with `F_FULLFSYNC`, but writes its meta page, with which a commit counts, through a file that is opened with
//! `O_DSYNC`, which does not force the drive. So after each commit the whole file is synced once more in that way
//! (`force_drive`), and only then is anything answered.
//! The map is opened far larger than it will get: it is address space, not memory or disk, so the file grows by itself up to
//! 64 GiB and the map need never be resized, which LMDB can only do while nothing is read. Where a process may not have so
//! much (a limit, 32 bits), it takes half of what there is; the rest stays for everything else, so growing later could not
//! get more.

mod ahead;
pub mod backup;
mod error;
mod history;
mod pages;
pub mod seal;
mod tables;
mod trail;
mod upgrade;
pub mod writer;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use heed::{Env, RoTxn, RwTxn};
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::ahead::Ahead;
pub use self::error::{OpenError, StoreError};
use self::history::vm_event_key;
pub use self::history::{Page, Retention, Room};
pub use self::pages::PagesError;
use self::seal::Seal;
pub(super) use self::tables::SCHEMA;
use self::tables::{
    AUDIT_PUBLISHED_KEY, LAST_AUDIT_KEY, LAST_EVENT_KEY, PLAIN_SCHEMA, PUBLISHED_KEY, PULLS, RESTORED_KEY,
    SETTINGS_KEY, Table, Tables, VMS, all, append, copy_key, decode, put_or_delete, read_all_at_once, spent_key,
};
use self::trail::Kept;
use super::cluster::{Changes, Cluster, Records};
use super::shares::Shares;
use crate::identity;
use crate::identity::folder::{self, FolderLock};
use crate::model::ClusterId;
use crate::model::audit::AuditNumber;
use crate::model::event::{EventNumber, EventObject};

/// From how much of the map in use on, in hundredths, nothing new is taken in: the rest is for what must go on, which is
/// reports of workers, deletions, and the audit trail.
pub(super) const FULL: u64 = 90;

/// What most records fit into, in bytes.
const RECORD: usize = 4 << 10;

/// How much the store may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of address space for the map.
    pub map_size: usize,
    /// Events that are kept; older ones go in the transactions that add newer ones.
    pub kept: Retention,
    /// Audit records that are kept, apart from events, so that neither can push out the other.
    pub audit: u64,
    /// How old an audit record may become.
    pub audit_age: Duration,
}

impl Default for Bounds {
    /// Events and audit records that take less than half of the map even when each is as long as it may be; audit records
    /// for somewhat longer than a year, so that one year can be compared with the one before.
    fn default() -> Self {
        Self {
            map_size: if cfg!(target_pointer_width = "64") { 64 << 30 } else { 1 << 30 },
            kept: Retention::default(),
            audit: 500_000,
            audit_age: Duration::from_secs(400 * 24 * 3600),
        }
    }
}

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
    bounds: Bounds,
    cluster: ClusterId,
    /// Bytes of the map in use after the last commit.
    used: Arc<AtomicU64>,
    /// Who holds how much of the audit trail; none after a commit that failed.
    shares: Arc<Mutex<Option<Shares<String>>>>,
    /// What the file is longer than it must be.
    ahead: Arc<Mutex<Ahead>>,
    _lock: FolderLock,
    #[cfg(test)]
    spoilt: Arc<std::sync::atomic::AtomicBool>,
}

impl Store {
    /// Opens the store in `folder`, making it if there is none, and locks it against other processes.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was changed then.
    pub fn open(folder: &Path) -> Result<Self, OpenError> {
        Self::open_with(folder, Bounds::default())
    }

    /// The same with other bounds.
    ///
    /// # Errors
    /// As for [`Store::open`].
    pub fn open_with(folder: &Path, bounds: Bounds) -> Result<Self, OpenError> {
        let folder_error = |source| OpenError::Folder { path: folder.to_owned(), source };
        let database_error = |source: StoreError| OpenError::database(folder, source);
        identity::make_private_dir(folder).map_err(folder_error)?;
        let lock = folder::lock(folder)?;
        backup::restore::finish(folder).map_err(folder_error)?;
        let path = folder.join("db");
        identity::make_private_dir(&path).map_err(folder_error)?;
        pages::check(&path.join("data.mdb")).map_err(|source| database_error(source.into()))?;
        let open = || tables::open(&path, bounds.map_size).map_err(|source| database_error(source.into()));
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
            upgrade::from_plain(folder, bounds.map_size, &seal).map_err(database_error)?;
            tracing::info!("the stored VMs are sealed with {} from now on; back it up", seal::KEY_FILE);
            open()?
        } else {
            (env, tables)
        };
        if found > PLAIN_SCHEMA && found < SCHEMA {
            // Its records are read as they are; from here on releases that would misread what is added leave it alone.
            tables.stamp(&env).map_err(database_error)?;
        }
        let cluster = tables.cluster(&env).map_err(database_error)?;
        // LMDB syncs what is in its file, and not that there is one.
        identity::sync_folder(&path).map_err(folder_error)?;
        let shares = trail::shares(&env, &tables).map_err(database_error)?;
        let page = env.unnamed_database_stat().page_size.into();
        let ahead = Ahead::open(&path.join("data.mdb"), page).map_err(folder_error)?;
        let used =
            env.read_txn().map_err(StoreError::from).and_then(|txn| tables.used(&txn)).map_err(database_error)?;
        // Fullness is of what could be had.
        let bounds = Bounds { map_size: env.info().map_size, ..bounds };
        Ok(Self {
            env,
            tables,
            seal: seal.into(),
            bounds,
            cluster,
            used: Arc::new(used.into()),
            shares: Arc::new(Mutex::new(Some(shares))),
            ahead: Arc::new(Mutex::new(ahead)),
            _lock: lock,
            #[cfg(test)]
            spoilt: Arc::default(),
        })
    }

    /// Closes it, of which this must be the last clone; its files may be moved on return.
    pub(super) fn close(self) {
        self.env.prepare_for_closing().wait();
    }

    /// Which cluster it is of: the same for as long as there is the store, in backups and after restoring one, too.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
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
            workers: read_all_at_once(&txn, tables.workers, |key, bytes| decode("workers", key, bytes))?,
            leaving: all(&txn, tables.leaving, "leaving")?,
            given_up: all(&txn, tables.given_up, "given-up")?,
            restored: tables.record(&txn, RESTORED_KEY)?,
            spent: all(&txn, tables.spent, "spent-keys")?,
            pulls: self.all_sealed(&txn, tables.pulls, PULLS)?,
            settings: tables.record(&txn, SETTINGS_KEY)?,
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
        self.try_commit(cluster, changes, published).map_err(|error| error.at(self.env.path()))
    }

    fn try_commit(&self, cluster: &Cluster, changes: &Changes, published: Published) -> Result<(), StoreError> {
        #[cfg(test)]
        self.fail_if_spoilt()?;
        let tables = &self.tables;
        // Taken out, and only put back when all is stored: after a failure they are counted anew.
        let mut held = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let mut shares = match held.take() {
            Some(shares) => shares,
            None => trail::shares(&self.env, tables)?,
        };
        // A backup that was killed while it read would keep all pages of its moment from being used anew.
        self.env.clear_stale_readers()?;
        let mut txn = self.env.write_txn()?;
        // One buffer for all of the many: thousands a second, each grown anew, would be a quarter of what a create costs.
        let mut buffer = Vec::with_capacity(RECORD);
        for uid in &changes.vms {
            let record = cluster.vm_record(*uid);
            self.put_sealed_or_delete(&mut txn, (tables.vms, VMS), uid.0.as_bytes(), record, &mut buffer)?;
        }
        for name in &changes.workers {
            put_or_delete(&mut txn, tables.workers, name.as_str().as_bytes(), cluster.worker_record(name))?;
        }
        for id in &changes.leaving {
            put_or_delete(&mut txn, tables.leaving, &copy_key(*id), cluster.leaving_record(*id))?;
        }
        for id in &changes.spent {
            put_or_delete(&mut txn, tables.spent, &spent_key(id), cluster.spent_record(id))?;
        }
        for id in &changes.pulls {
            let record = cluster.pull_record(*id);
            self.put_sealed_or_delete(&mut txn, (tables.pulls, PULLS), id.0.as_bytes(), record, &mut buffer)?;
        }
        for id in &changes.given_up {
            put_or_delete(&mut txn, tables.given_up, &copy_key(*id), cluster.given_up_record(*id))?;
        }
        if changes.restored {
            tables.put_record(&mut txn, RESTORED_KEY, cluster.restored_record())?;
        }
        if changes.settings {
            tables.put_record(&mut txn, SETTINGS_KEY, cluster.settings_record())?;
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
            append(tables.events, &mut txn, event.number, event, &mut buffer)?;
            if let EventObject::Vm { uid, .. } = &event.object {
                tables.events_of_vm.put(&mut txn, &vm_event_key(*uid, event.number), &[])?;
            }
        }
        let kept = Kept { records: self.bounds.audit, age: self.bounds.audit_age };
        trail::append(tables, (&mut txn, &mut buffer), &mut shares, &changes.audit, kept)?;
        self.prune(&mut txn, changes.events.last().map(|event| event.time), changes.events.len())?;
        tables.put_number(&mut txn, LAST_EVENT_KEY, cluster.last_event())?;
        tables.put_number(&mut txn, PUBLISHED_KEY, published.events)?;
        tables.put_number(&mut txn, LAST_AUDIT_KEY, cluster.last_audit())?;
        tables.put_number(&mut txn, AUDIT_PUBLISHED_KEY, published.audit)?;
        let used = tables.used(&txn)?;
        txn.commit()?;
        force_drive(&self.env)?;
        self.used.store(used, Ordering::Relaxed);
        *held = Some(shares);
        self.lengthen();
        Ok(())
    }

    /// Makes room for the next commits.
    fn lengthen(&self) {
        let last = self.env.info().last_page_number;
        self.ahead.lock().unwrap_or_else(PoisonError::into_inner).keep(last);
    }

    /// Bytes of the map in use after the last commit, and bytes that it has.
    pub fn size(&self) -> (u64, u64) {
        (self.used.load(Ordering::Relaxed), u64::try_from(self.bounds.map_size).unwrap_or(u64::MAX))
    }

    /// Why nothing new can be taken in, in words; `None` while it can.
    pub fn is_full(&self) -> Option<String> {
        let used = self.used.load(Ordering::Relaxed);
        (self.hundredths(used) >= FULL).then(|| {
            format!(
                "the controller's database is nearly full: {} of {} KiB are in use, and from {FULL} % on nothing new is \
                 taken; delete VMs that are not needed",
                used / 1024,
                self.bounds.map_size / 1024
            )
        })
    }

    /// How much of the map is in use, in hundredths, as `txn` sees it.
    fn fullness(&self, txn: &RoTxn<'_>) -> Result<u64, StoreError> {
        Ok(self.hundredths(self.tables.used(txn)?))
    }

    fn hundredths(&self, used: u64) -> u64 {
        let size = u64::try_from(self.bounds.map_size).unwrap_or(u64::MAX).max(1);
        used.saturating_mul(100) / size
    }

    fn all_sealed<T: DeserializeOwned + Send>(
        &self,
        txn: &RoTxn<'_>,
        table: Table,
        name: &'static str,
    ) -> Result<Vec<T>, StoreError> {
        read_all_at_once(txn, table, |key, bytes| {
            let opened = self.seal.open(name, key, bytes).map_err(|source| StoreError::Sealed {
                table: name,
                key: data_encoding::HEXLOWER.encode(key),
                source,
            })?;
            decode(name, key, &opened)
        })
    }

    fn put_sealed_or_delete<T: Serialize>(
        &self,
        txn: &mut RwTxn<'_>,
        (table, name): (Table, &'static str),
        key: &[u8],
        record: Option<&T>,
        buffer: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        match record {
            Some(record) => {
                buffer.clear();
                buffer.resize(seal::HEAD, 0);
                rmp_serde::encode::write_named(buffer, record)?;
                self.seal.seal_in_place(name, key, buffer)?;
                table.put(txn, key, buffer)?;
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

/// Has the drive itself write what LMDB has just committed; see the module.
#[cfg(target_os = "macos")]
fn force_drive(env: &Env) -> Result<(), StoreError> {
    // `F_FULLFSYNC` of LMDB's own file, whatever the flags of the environment.
    Ok(env.force_sync()?)
}

/// Elsewhere `fdatasync` and `O_DSYNC` do that already.
#[cfg(not(target_os = "macos"))]
#[allow(clippy::unnecessary_wraps)] // as on macOS
fn force_drive(_: &Env) -> Result<(), StoreError> {
    Ok(())
}

fn has_records(env: &Env, table: Table) -> Result<bool, StoreError> {
    let txn = env.read_txn()?;
    Ok(table.first(&txn)?.is_some())
}

#[cfg(test)]
mod older;
#[cfg(test)]
mod tests;
