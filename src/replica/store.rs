//! The storage engine with its file, opened again where a write failed: for reading at once, for writing when the disk
//! takes writes again.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, TryLockError};

use redb::{Database, DatabaseError, ReadTransaction, ReadableDatabase, WriteTransaction};

use super::ReplicaError;
use super::disk::{Disk, Trouble, has_room};

/// Pages kept in memory by the storage engine; profiles have a cache of their own.
const PAGE_CACHE: usize = 32 << 20;

/// A file that the engine took.
pub(super) struct Open {
    pub(super) db: Database,
    trouble: Trouble,
    /// Why nothing can be written, where that is so.
    closed: Option<String>,
}

/// Why the engine did not take a file.
pub(super) enum NotOpen {
    Database(DatabaseError),
    /// The engine may panic on a damaged file that its checks do not catch.
    Panicked,
}

impl Open {
    /// Opens a file, made if missing. `checked`: every page is read and its checksum verified, as after somebody else
    /// may have had the file.
    pub(super) fn writable(path: &Path, checked: bool) -> Result<Self, NotOpen> {
        let disk = Disk::writable(path).map_err(|err| NotOpen::Database(err.into()))?;
        Self::on(disk, checked, None)
    }

    /// Opens a file that cannot be written, for the reason given.
    pub(super) fn read_only(path: &Path, checked: bool, why: String) -> Result<Self, NotOpen> {
        let disk = Disk::read_only(path).map_err(|err| NotOpen::Database(err.into()))?;
        Self::on(disk, checked, Some(why))
    }

    fn on(
        (disk, trouble): (Disk, Trouble),
        checked: bool,
        closed: Option<String>,
    ) -> Result<Self, NotOpen> {
        let opened = catch_unwind(AssertUnwindSafe(|| {
            Database::builder()
                .set_cache_size(PAGE_CACHE)
                .set_check_integrity_on_open(checked)
                .create_with_backend(disk)
        }));
        Ok(Self {
            db: opened
                .map_err(|_| NotOpen::Panicked)?
                .map_err(NotOpen::Database)?,
            trouble,
            closed,
        })
    }
}

/// The replica's file, in whatever way it can be used now.
pub(super) struct Store {
    path: PathBuf,
    open: RwLock<Open>,
    writing: Mutex<()>,
}

impl Store {
    pub(super) fn new(path: PathBuf, open: Open) -> Self {
        Self {
            path,
            open: RwLock::new(open),
            writing: Mutex::new(()),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// One commit as it stands.
    pub(super) fn read(&self) -> Result<ReadTransaction, ReplicaError> {
        if self.trouble().is_some() {
            // Poisoned: by a writer that panicked and is gone.
            let alone = match self.writing.try_lock() {
                Ok(alone) => Some(alone),
                Err(TryLockError::Poisoned(alone)) => Some(alone.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            };
            if alone.is_some() {
                self.go_on_reading();
            }
        }
        tried!("reading", self.open().db.begin_read())
    }

    fn open(&self) -> RwLockReadGuard<'_, Open> {
        self.open.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody waits while the engine lets go of what was open.
    fn replace(&self, open: Open) {
        let mut now = self.open.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *now, open);
        drop(now);
        drop(before);
    }

    /// Writes by this, one at a time. What failed for the disk's sake is told as such, and reading goes on.
    pub(super) fn write<T>(
        &self,
        work: impl FnOnce(WriteTransaction) -> Result<T, ReplicaError>,
    ) -> Result<T, ReplicaError> {
        let _one_at_a_time: MutexGuard<'_, ()> =
            self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.go_on_reading();
        self.go_on_writing()?;
        let txn = tried!("writing", self.open().db.begin_write());
        let done = txn.and_then(work);
        match (done, self.trouble()) {
            (Err(_), Some(why)) => {
                self.go_on_reading();
                Err(self.closed(why))
            }
            (done, _) => done,
        }
    }

    fn trouble(&self) -> Option<String> {
        self.open().trouble.get().cloned()
    }

    fn closed(&self, what: String) -> ReplicaError {
        ReplicaError::Closed {
            path: self.path.clone(),
            what,
        }
    }

    /// After an error of the disk: the file as of its last commit. Nobody may be writing; what the engine still wants
    /// to write into the file is refused by now.
    fn go_on_reading(&self) {
        let Some(why) = self.trouble() else { return };
        if let Ok(open) = Open::read_only(&self.path, false, why) {
            self.replace(open);
        }
    }

    /// Where nothing could be written: whether it can be by now.
    fn go_on_writing(&self) -> Result<(), ReplicaError> {
        let Some(why) = self.open().closed.clone() else {
            return Ok(());
        };
        let dir = self.path.parent().unwrap_or(&self.path);
        has_room(dir).map_err(|err| self.closed(err.to_string()))?;
        let writable = Open::writable(&self.path, false).map_err(|_| self.closed(why))?;
        self.replace(writable);
        tracing::info!(path = %self.path.display(), "the replica can be written again");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_writer_that_panicked_readers_still_open_a_failed_file_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let opened = Open::writable(&path, false).unwrap_or_else(|_| panic!("a new file"));
        let store = Store::new(path, opened);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            store.write(|_| -> Result<(), ReplicaError> { panic!("of the test") })
        }));
        assert!(panicked.is_err());
        let spoilt = store.open().trouble.set("of the test".to_owned());
        spoilt.unwrap();
        store.read().unwrap();
        assert_eq!(store.trouble(), None);
    }
}
