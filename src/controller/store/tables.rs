//! The LMDB environment and its tables: how both are opened, and how records get in and out of a table.

use std::io::ErrorKind;
use std::path::Path;

use heed::types::{Bytes, Str};
use heed::{CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, PutFlags, RoTxn, RwTxn};
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::Digest as _;

use super::StoreError;
use crate::controller::cluster::SpentKey;
use crate::model::{ClusterId, CopyId};

/// The version of what the tables hold; raised with every change that an older release cannot read, and with each new word of what
/// clients read as `unknown` (roles, runtimes): an older release would write it back so.
///
/// 1: VMs in plain text. 2: VMs are sealed. 3: copies are known by `attemptsFrom` and `restart_count` of their VM together,
/// what is held since a restored backup, the cluster's settings, VMs bound to a worker.
pub(in crate::controller) const SCHEMA: u32 = 3;

/// The schema before VMs were sealed.
pub(super) const PLAIN_SCHEMA: u32 = 1;

/// Readers at once. LMDB's own default of 126 is less than the threads that answer requests for events (512, each of
/// which keeps its place for as long as it lives): those beyond would be refused.
const MAX_READERS: u32 = 1_024;

/// Tables that there may be: more than there are, as each costs a few bytes only.
const MAX_TABLES: u32 = 32;

/// The table whose values are sealed.
pub(super) const VMS: &str = "vms";
/// Another one: images may hold who fetches them.
pub(super) const PULLS: &str = "pulls";
/// The table of what is no record.
pub(super) const META: &str = "meta";

pub(super) const SCHEMA_KEY: &str = "schema";
pub(super) const LAST_EVENT_KEY: &str = "last-event";
pub(super) const PUBLISHED_KEY: &str = "published";
pub(super) const LAST_AUDIT_KEY: &str = "last-audit";
/// What tells this cluster's numbers from those of all others.
pub(super) const CLUSTER_KEY: &str = "cluster";
/// What is known of the last restoring.
pub(super) const RESTORED_KEY: &str = "restored";
/// The settings of the cluster.
pub(super) const SETTINGS_KEY: &str = "settings";
pub(super) const AUDIT_PUBLISHED_KEY: &str = "audit-published";

pub(super) type Table = Database<'static, Bytes, Bytes>;

/// The tables, as LMDB opened them.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    pub(super) meta: Database<'static, Str, Bytes>,
    pub(super) vms: Table,
    pub(super) workers: Table,
    pub(super) leaving: Table,
    pub(super) given_up: Table,
    pub(super) spent: Table,
    pub(super) pulls: Table,
    pub(super) events: Table,
    pub(super) events_of_vm: Table,
    pub(super) audit: Table,
    /// The numbers of the records there, by whose room they take.
    pub(super) audit_of: Table,
    pub(super) accounts: Table,
    pub(super) joins: Table,
    pub(super) keys: Table,
}

/// Threads that open records, or look through pages, at the same time: beyond, the disk is what they wait for.
pub(super) const MOST_AT_ONCE: usize = 4;
/// Records that are worth a thread of their own.
const LEAST_SHARE: usize = 512;

/// The least map that is worth having: some 100,000 small VMs.
const LEAST_MAP: usize = 256 << 20;

/// Opens the LMDB environment in `folder`, which must be of mode 0700 and locked by this process, with `map_size` bytes of
/// address space; with less, down to [`LEAST_MAP`], where there is not so much to be had.
pub(super) fn open_env(folder: &Path, map_size: usize) -> Result<Env, heed::Error> {
    let env = open_as_large_as_may_be(folder, map_size, EnvFlags::empty())?;
    make_whole(&env, folder)?;
    Ok(env)
}

/// The same to read only, which other processes may do at any time.
pub(super) fn open_to_read(folder: &Path) -> Result<Env, heed::Error> {
    open_as_large_as_may_be(folder, super::Bounds::default().map_size, EnvFlags::READ_ONLY)
}

fn open_as_large_as_may_be(folder: &Path, map_size: usize, flags: EnvFlags) -> Result<Env, heed::Error> {
    let mut size = map_size;
    loop {
        match open_mapped(folder, size, flags) {
            Err(heed::Error::Io(error)) if error.kind() == ErrorKind::OutOfMemory && size / 2 >= LEAST_MAP => size /= 2,
            // What is left is for everything else in this process.
            Ok(env) if size < map_size && size / 2 >= LEAST_MAP => {
                env.prepare_for_closing().wait();
                let env = open_mapped(folder, size / 2, flags)?;
                tracing::warn!(
                    "the address space of this process is limited; the database may take {} MiB",
                    size >> 21
                );
                return Ok(env);
            }
            opened => return opened,
        }
    }
}

#[allow(unsafe_code)] // LMDB maps the file; our lock keeps every other process from changing it
fn open_mapped(folder: &Path, map_size: usize, flags: EnvFlags) -> Result<Env, heed::Error> {
    let mut options = EnvOpenOptions::new();
    options.map_size(map_size).max_dbs(MAX_TABLES).max_readers(MAX_READERS);
    // SAFETY: the file lies in a folder of mode 0700 that only one process, which has locked it, changes; it truncates
    // nothing that is mapped, and each is opened once at a time. No flag but READ_ONLY is ever given.
    unsafe {
        options.flags(flags);
        options.open(folder)
    }
}

/// Has the file be as long as LMDB believes, so that reading what was cut off is an error and not the end of the process:
/// beyond the end of a file the system answers with a signal. The last pages of a sound file may be missing, too, as LMDB
/// does not write those that nothing needs.
fn make_whole(env: &Env, folder: &Path) -> Result<(), heed::Error> {
    let pages = u64::try_from(env.info().last_page_number).unwrap_or(0).saturating_add(1);
    let wanted = pages.saturating_mul(env.unnamed_database_stat().page_size.into());
    let path = folder.join("data.mdb");
    if std::fs::metadata(&path)?.len() < wanted {
        std::fs::File::options().write(true).open(&path)?.set_len(wanted)?;
    }
    Ok(())
}

/// The same with its tables, which are made if there are none.
pub(super) fn open(folder: &Path, map_size: usize) -> Result<(Env, Tables), heed::Error> {
    let env = open_env(folder, map_size)?;
    let wtxn = env.write_txn()?;
    let tables = env.create_databases_and_commit(wtxn, |open, wtxn| {
        let meta = open.create_database::<Str, Bytes>(wtxn, Some(META))?;
        let mut table = |name| open.create_database::<Bytes, Bytes>(wtxn, Some(name));
        let objects = (table(VMS)?, table("workers")?, table("leaving")?, table("given-up")?, table("spent-keys")?);
        let pulls = table(PULLS)?;
        let told = (table("events")?, table("events-of-vm")?, table("audit")?, table("audit-of")?);
        let access = (table("accounts")?, table("joins")?, table("worker-keys")?);
        Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit((meta, objects, told, access, pulls)))
    })?;
    let CommitOrAbort::Commit((meta, objects, told, access, pulls)) = tables else {
        return Err(heed::Error::Io(std::io::Error::other("no tables")));
    };
    let ((vms, workers, leaving, given_up, spent), (events, events_of_vm, audit, audit_of)) = (objects, told);
    let (accounts, joins, keys) = access;
    Ok((
        env,
        Tables {
            meta,
            vms,
            workers,
            leaving,
            given_up,
            spent,
            pulls,
            events,
            events_of_vm,
            audit,
            audit_of,
            accounts,
            joins,
            keys,
        },
    ))
}

impl Tables {
    /// The schema of what is stored; a new store gets the current one.
    pub(super) fn schema(&self, env: &Env) -> Result<u32, StoreError> {
        let mut txn = env.write_txn()?;
        if let Some(bytes) = self.meta.get(&txn, SCHEMA_KEY)? {
            return decode(META, SCHEMA_KEY.as_bytes(), bytes);
        }
        self.meta.put(&mut txn, SCHEMA_KEY, &rmp_serde::to_vec(&SCHEMA)?)?;
        txn.commit()?;
        Ok(SCHEMA)
    }

    /// Which cluster this is; one that has no name yet gets one for ever. Earlier releases pass it over.
    pub(super) fn cluster(&self, env: &Env) -> Result<ClusterId, StoreError> {
        let mut txn = env.write_txn()?;
        if let Some(bytes) = self.meta.get(&txn, CLUSTER_KEY)? {
            return decode(META, CLUSTER_KEY.as_bytes(), bytes);
        }
        let id = ClusterId(uuid::Uuid::new_v4());
        self.put_record(&mut txn, CLUSTER_KEY, &id)?;
        txn.commit()?;
        Ok(id)
    }

    /// Notes that what is stored is of the present schema.
    pub(super) fn stamp(&self, env: &Env) -> Result<(), StoreError> {
        let mut txn = env.write_txn()?;
        self.meta.put(&mut txn, SCHEMA_KEY, &rmp_serde::to_vec(&SCHEMA)?)?;
        Ok(txn.commit()?)
    }

    /// A record that is kept under `key`; its default if none is.
    pub(super) fn record<T: DeserializeOwned + Default>(
        &self,
        txn: &RoTxn<'_>,
        key: &'static str,
    ) -> Result<T, StoreError> {
        self.meta.get(txn, key)?.map_or_else(|| Ok(T::default()), |bytes| decode(META, key.as_bytes(), bytes))
    }

    /// Keeps it.
    pub(super) fn put_record<T: Serialize>(
        &self,
        txn: &mut RwTxn<'_>,
        key: &'static str,
        record: &T,
    ) -> Result<(), StoreError> {
        Ok(self.meta.put(txn, key, &rmp_serde::to_vec_named(record)?)?)
    }

    /// A number that is kept under `key`; 0 if none is.
    pub(super) fn number(&self, txn: &RoTxn<'_>, key: &'static str) -> Result<u64, StoreError> {
        self.meta.get(txn, key)?.map_or(Ok(0), |bytes| decode(META, key.as_bytes(), bytes))
    }

    /// Keeps it.
    pub(super) fn put_number(&self, txn: &mut RwTxn<'_>, key: &'static str, number: u64) -> Result<(), StoreError> {
        Ok(self.meta.put(txn, key, &rmp_serde::to_vec(&number)?)?)
    }

    /// Bytes of the map that are in use; what was freed can be used again and does not count.
    pub(super) fn used(&self, txn: &RoTxn<'_>) -> Result<u64, StoreError> {
        let others = [
            self.vms,
            self.workers,
            self.leaving,
            self.given_up,
            self.spent,
            self.pulls,
            self.events,
            self.events_of_vm,
            self.audit,
            self.audit_of,
            self.accounts,
            self.joins,
            self.keys,
        ];
        let mut used = self.meta.stat(txn)?.non_free_page_size();
        for table in others {
            used = used.saturating_add(table.stat(txn)?.non_free_page_size());
        }
        Ok(u64::try_from(used).unwrap_or(u64::MAX))
    }
}

pub(super) fn copy_key(id: CopyId) -> Vec<u8> {
    [id.uid.0.as_bytes().as_slice(), &id.attempt.to_be_bytes()].concat()
}

/// Keys are bounded, and LMDB takes 511 bytes: the digest, as accounts may have long names, too.
pub(super) fn spent_key((account, key): &SpentKey) -> Vec<u8> {
    let account = account.as_ref().map_or("", |account| account.as_str());
    // No account's name holds the separator.
    sha2::Sha256::digest([account.as_bytes(), b"\0", key.as_bytes()].concat()).to_vec()
}

pub(super) fn decode<T: DeserializeOwned>(table: &'static str, key: &[u8], bytes: &[u8]) -> Result<T, StoreError> {
    let key_text = || data_encoding::HEXLOWER.encode(key);
    rmp_serde::from_slice(bytes).map_err(|source| StoreError::Damaged { table, key: key_text(), source })
}

/// Every record of a table whose values are plain.
pub(super) fn all<T: DeserializeOwned>(
    txn: &RoTxn<'_>,
    table: Table,
    name: &'static str,
) -> Result<Vec<T>, StoreError> {
    read_all(txn, table, |key, bytes| decode(name, key, bytes))
}

/// Every record of a table, each as `read` makes it of its key and value.
pub(super) fn read_all<T>(
    txn: &RoTxn<'_>,
    table: Table,
    read: impl Fn(&[u8], &[u8]) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let mut found = Vec::new();
    for entry in table.iter(txn)? {
        let (key, bytes) = entry?;
        found.push(read(key, bytes)?);
    }
    Ok(found)
}

/// The same on several processors, for records that take work to open, in their order.
pub(super) fn read_all_at_once<T: Send>(
    txn: &RoTxn<'_>,
    table: Table,
    read: impl Fn(&[u8], &[u8]) -> Result<T, StoreError> + Sync,
) -> Result<Vec<T>, StoreError> {
    let entries = table.iter(txn)?.collect::<Result<Vec<_>, _>>()?;
    let readers = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_AT_ONCE);
    let share = entries.len().div_ceil(readers).max(LEAST_SHARE);
    let mut found = Vec::with_capacity(entries.len());
    std::thread::scope(|scope| {
        let shares = entries.chunks(share).map(|share| {
            scope.spawn(|| share.iter().map(|(key, bytes)| read(key, bytes)).collect::<Result<Vec<T>, StoreError>>())
        });
        // All of them begin before the first is waited for.
        for share in shares.collect::<Vec<_>>() {
            let share = share.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            found.append(&mut share?);
        }
        Ok(found)
    })
}

/// Stores `record`, made in `buffer`, under `number`, which is above all numbers there: LMDB fills its pages to the last
/// byte then. Where it is not above all after all, it is stored where it belongs.
pub(super) fn append<T: Serialize>(
    table: Table,
    txn: &mut RwTxn<'_>,
    number: u64,
    record: &T,
    buffer: &mut Vec<u8>,
) -> Result<(), StoreError> {
    buffer.clear();
    rmp_serde::encode::write_named(buffer, record)?;
    let key = number.to_be_bytes();
    match table.put_with_flags(txn, PutFlags::APPEND, &key, buffer) {
        Err(heed::Error::Mdb(heed::MdbError::KeyExist)) => Ok(table.put(txn, &key, buffer)?),
        done => Ok(done?),
    }
}

/// Stores `record` under `key`; without one, what is stored there goes.
pub(super) fn put_or_delete<T: Serialize>(
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
