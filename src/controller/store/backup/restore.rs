//! Putting a backup in the place of a controller's data.
//!
//! Everything is laid ready in a folder beside what is there, checked as the controller itself would read it, and only then
//! declared to be what counts, by one rename to `restore.ready`. From that moment on whoever opens the data folder first brings it
//! to an end: what was there goes to [`REPLACED`], what is ready takes its place. So an interruption at any moment leaves the
//! old or the new, and never parts of both.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::form::{CopyError, FormError, Reading};
use super::{DATABASE, DATABASE_FILE, FILES};
use crate::controller::cluster::Restoration;
use crate::controller::store::tables::{LAST_AUDIT_KEY, LAST_EVENT_KEY, RESTORED_KEY};
use crate::controller::store::trail::{self, Kept};
use crate::controller::store::{OpenError, Store, StoreError};
use crate::identity::crash::point;
use crate::identity::folder::{self, LockError};
use crate::identity::{make_private_dir, refuse_foreign, sync_folder, write_private};
use crate::model::Timestamp;
use crate::model::audit::{AuditRecord, AuditType, CONTROLLER, Deed, Outcome};

/// Where things are laid ready.
const NEW: &str = "restore.new";
/// What it is called once it counts.
pub(super) const READY: &str = "restore.ready";
/// Where what was replaced goes; what an earlier restoring left there is removed.
pub const REPLACED: &str = "before-restore";
/// Beside the name of a file in [`READY`]: after restoring there is none.
const ABSENT: &str = ".absent";
/// How far numbers are moved on when the clock is of no help, as it stands before numbers that were given out.
const LEAP: u64 = 1 << 32;

/// Why nothing was restored; everything is as it was then.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The backup cannot be used.
    #[error("cannot restore {}", file.display())]
    Backup {
        /// Which.
        file: PathBuf,
        /// Why.
        source: FormError,
    },
    /// The folder cannot be used.
    #[error("cannot restore into {}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A controller runs there, or something else that has it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// There are data already.
    #[error("{} holds a controller's data already; --force replaces them", .0.display())]
    Occupied(PathBuf),
    /// The backup is whole, but the controller could not use it.
    #[error("the database of the backup {} cannot be used", file.display())]
    Unusable {
        /// Which.
        file: PathBuf,
        /// Why.
        source: Box<OpenError>,
    },
    /// The same for one of its records.
    #[error("the database of the backup {} cannot be read", file.display())]
    Unreadable {
        /// Which.
        file: PathBuf,
        /// Why.
        source: StoreError,
    },
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// When the backup was made.
    pub created: Timestamp,
    /// How many VMs it knows.
    pub vms: usize,
    /// How many workers.
    pub workers: usize,
    /// Where what was there before is now, if there was anything.
    pub replaced: Option<PathBuf>,
}

/// Puts the backup `file` into the data folder `folder`, which is made if it is not there; in the place of what is there if
/// `force` says so. Blocks.
///
/// # Errors
/// [`RestoreError`].
pub fn restore(file: &Path, folder: &Path, force: bool, now: Timestamp) -> Result<Restored, RestoreError> {
    let folder_error = |source| RestoreError::Folder { path: folder.to_owned(), source };
    let backup_error = |source| RestoreError::Backup { file: file.to_owned(), source };
    let backup = File::open(file).map_err(FormError::from).and_then(Reading::begin).map_err(backup_error)?;
    refuse_foreign(folder).map_err(folder_error)?;
    make_private_dir(folder).map_err(folder_error)?;
    let _lock = folder::lock(folder)?;
    finish(folder).map_err(folder_error)?;
    let occupied = names().any(|name| folder.join(name).symlink_metadata().is_ok());
    if occupied && !force {
        return Err(RestoreError::Occupied(folder.to_owned()));
    }
    let new = folder.join(NEW);
    let ready = lay_ready(backup, file, &new, now).and_then(|restored| {
        declare(folder, &new).map_err(folder_error)?;
        Ok(restored)
    });
    let restored = match ready {
        Ok(restored) => restored,
        Err(error) => {
            let _ = fs::remove_dir_all(&new);
            return Err(error);
        }
    };
    finish(folder).map_err(folder_error)?;
    Ok(Restored { replaced: occupied.then(|| folder.join(REPLACED)), ..restored })
}

/// Brings a restoring in `folder` to an end that was interrupted after it counted, and removes what one left that did not
/// get so far. Called with the folder's lock held, before anything else in it is looked at.
///
/// # Errors
/// Whatever the file system says; calling again goes on.
pub fn finish(folder: &Path) -> io::Result<()> {
    let (ready, replaced) = (folder.join(READY), folder.join(REPLACED));
    match fs::remove_dir_all(folder.join(NEW)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if !ready.exists() {
        return Ok(());
    }
    make_private_dir(&replaced)?;
    for name in names() {
        let (new, place) = (ready.join(name), folder.join(name));
        let absent = ready.join(format!("{name}{ABSENT}"));
        // One of both says that it is not done yet.
        if !new.exists() && !absent.exists() {
            continue;
        }
        if place.symlink_metadata().is_ok() {
            point()?;
            fs::rename(&place, replaced.join(name))?;
            sync_folder(folder)?;
        }
        point()?;
        match new.exists() {
            true => fs::rename(&new, &place)?,
            false => fs::remove_file(&absent)?,
        }
        sync_folder(folder)?;
    }
    sync_folder(&replaced)?;
    point()?;
    fs::remove_dir_all(&ready)?;
    sync_folder(folder)
}

/// The same for whoever does not have the folder's lock yet, and only if there is anything to do.
///
/// # Errors
/// [`RestoreError::Folder`], [`RestoreError::Lock`].
pub fn finish_interrupted(folder: &Path) -> Result<(), RestoreError> {
    if !folder.join(READY).exists() {
        return Ok(());
    }
    let _lock = folder::lock(folder)?;
    finish(folder).map_err(|source| RestoreError::Folder { path: folder.to_owned(), source })
}

/// Unpacks the backup into `new`, and checks it by using it.
fn lay_ready(backup: Reading, file: &Path, new: &Path, now: Timestamp) -> Result<Restored, RestoreError> {
    let folder_error = |source| RestoreError::Folder { path: new.to_owned(), source };
    let form_error = |source| RestoreError::Backup { file: file.to_owned(), source };
    let manifest = backup.manifest.clone();
    let database = new.join(DATABASE);
    make_private_dir(new).and_then(|()| make_private_dir(&database)).map_err(folder_error)?;
    point().map_err(folder_error)?;
    let mut data = super::open_new(&database.join(DATABASE_FILE)).map_err(folder_error)?;
    backup.copy_database(&mut data).map_err(|error| match error {
        CopyError::Form(source) => form_error(source),
        CopyError::Write(source) => folder_error(source),
    })?;
    data.sync_all().map_err(folder_error)?;
    drop(data);
    for name in FILES {
        if let Some(bytes) = manifest.files.get(*name) {
            write_private(&new.join(name), bytes).map_err(folder_error)?;
        }
    }
    let unreadable = |source| RestoreError::Unreadable { file: file.to_owned(), source };
    let store =
        Store::open(new).map_err(|source| RestoreError::Unusable { file: file.to_owned(), source: source.into() })?;
    let records = store.records().map_err(unreadable)?;
    let number = move |last: u64| {
        let micros = u64::try_from(now.as_millis()).unwrap_or(0).saturating_mul(1_000);
        micros.max(last.saturating_add(LEAP))
    };
    let restoration = Restoration::of(&records, manifest.created, now);
    store.count_on(number(records.last_event), number(records.last_audit), now, &restoration).map_err(unreadable)?;
    store.close();
    for left in ["serve.lock", "db/lock.mdb"] {
        fs::remove_file(new.join(left)).map_err(folder_error)?;
    }
    for name in names().filter(|name| !new.join(name).exists()) {
        write_private(&new.join(format!("{name}{ABSENT}")), b"").map_err(folder_error)?;
    }
    sync_folder(&database).and_then(|()| sync_folder(new)).map_err(folder_error)?;
    let (vms, workers) = (records.vms.len(), records.workers.len());
    Ok(Restored { created: manifest.created, vms, workers, replaced: None })
}

impl Store {
    /// Has numbers go on above `event` and `audit`, and records that, and from which backup, this was restored.
    fn count_on(&self, event: u64, audit: u64, now: Timestamp, of: &Restoration) -> Result<(), StoreError> {
        let created = of.backup;
        let mut txn = self.env.write_txn()?;
        let number = audit.saturating_add(1);
        let deed = Deed {
            kind: AuditType::Request,
            account: CONTROLLER.to_owned(),
            address: String::new(),
            verb: "controller.restore".to_owned(),
            target: String::new(),
            outcome: Outcome::Done,
            message: format!("from a backup of {created}; events go on from #{}", event.saturating_add(1)),
            request: String::new(),
        };
        let mut shares = trail::shares_in(&self.tables, &mut txn)?;
        let kept = Kept { records: self.bounds.audit, age: self.bounds.audit_age };
        let record = AuditRecord::new(number, now, deed);
        trail::append(&self.tables, (&mut txn, &mut Vec::new()), &mut shares, &[record], kept)?;
        self.tables.put_number(&mut txn, LAST_EVENT_KEY, event)?;
        self.tables.put_number(&mut txn, LAST_AUDIT_KEY, number)?;
        self.tables.put_record(&mut txn, RESTORED_KEY, of)?;
        Ok(txn.commit()?)
    }
}

/// Has what is laid ready count from now on.
fn declare(folder: &Path, new: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder.join(REPLACED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    sync_folder(folder)?;
    point()?;
    fs::rename(new, folder.join(READY))?;
    sync_folder(folder)
}

/// Everything that is replaced.
fn names() -> impl Iterator<Item = &'static str> {
    FILES.iter().copied().chain([DATABASE])
}
