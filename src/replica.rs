//! The node's own copy of the rows and the cursor, on disk, in one transactional file.
//!
//! Always true: a batch and its cursor are one commit, so that a crash leaves the old rows with the old cursor or the
//! new with the new. Every record is sealed and bound to its key; a record that does not open is told, never
//! answered from. One process per directory.
//!
//! Tables: `numbers` e164 → tenant ‖ hash ‖ sealed [`NumberRecord`]; `tenants` id → sealed [`TenantRecord`]; `index`
//! tenant ‖ e164 → hash, for comparisons; `faulty` e164 of quarantined numbers; `meta` format, wrapped data key, cursor.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageError,
    TableDefinition, WriteTransaction,
};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::admit::{self, AdmissionLimits};
use crate::change::{self, Cursor};
use crate::number::E164;
use crate::row::{DocHash, Fault, NumberRecord, TenantRecord};
use crate::seal::{DataKey, Keyring, WrappedKey};
use crate::source::Row;

const NUMBERS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("numbers");
const TENANTS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("tenants");
const INDEX: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("index");
const FAULTY: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("faulty");
const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");

/// Raised when what stands in the file is read in another way. 2: numbers in the form of [`plain`]. 3: their hash stands
/// before the sealed record.
const FORMAT: u32 = 3;
/// The oldest format that is read; the first batch raises it.
const OLDEST: u32 = 1;

/// Why the replica cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// Another process has it.
    #[error("replica {path}: in use by another process; stop it or change replica.dir")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// Others could read or replace it.
    #[error("replica {path}: {what}; chmod 0700 and chown it to the daemon's user")]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// Written by a later version.
    #[error(
        "replica {path}: format {found}, this version reads {FORMAT}; run the version that wrote it, or with Postgres up remove the file to copy everything anew"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The directory or file cannot be read or written.
    #[error(
        "replica {path}: cannot be opened; make room on the disk, and make the directory and its files this user's and writable"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing can be written.
    #[error(
        "replica {path}: cannot be written ({what}); answers go on from the rows that are there; make room on the disk or make it writable again, and changes are applied within seconds"
    )]
    Closed {
        /// The file.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// The storage engine failed.
    #[error("replica: {doing}: {what}")]
    Storage {
        /// What was tried.
        doing: &'static str,
        /// What the engine said.
        what: String,
    },
    /// A record is not what was written there.
    #[error("replica: the record of {key} does not open; it is read anew when Postgres is reached")]
    Record {
        /// Number or tenant.
        key: String,
    },
    /// Sealing failed.
    #[error("replica: cannot seal a record")]
    Seal,
    /// The rows stopped coming before the end.
    #[error("the load was abandoned; nothing was changed")]
    Abandoned,
}

impl ReplicaError {
    fn storage(doing: &'static str) -> impl Fn(redb::Error) -> Self {
        move |err| Self::Storage {
            doing,
            what: err.to_string(),
        }
    }
}

/// Shortens `map_err` for the engine's many error types.
macro_rules! tried {
    ($doing:literal, $result:expr) => {
        $result
            .map_err(redb::Error::from)
            .map_err(ReplicaError::storage($doing))
    };
}

mod compare;
mod directory;
mod disk;
mod ordered;
mod plain;
mod stamp;
mod store;
mod suspect;
mod writer;

pub use compare::{Comparison, Hashes};
pub use directory::in_use;
use directory::{lock_directory, safe_directory, set_aside};
use ordered::Here;
use store::{NotOpen, Open, Store};
use suspect::Marker;
pub(crate) use suspect::{Hand, InHand, Version};
use writer::{Index, Writer};
pub(crate) use writer::{poison, unpanicked};

/// What happened while opening, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// As it was left.
    Kept,
    /// As it was left, and nothing can be written.
    ReadOnly {
        /// Why.
        why: String,
    },
    /// There was none.
    New,
    /// Damaged or sealed with unknown keys: set aside, and a new one begun.
    SetAside {
        /// Where the old file is now.
        to: PathBuf,
        /// What was wrong with it.
        why: String,
    },
}

/// A set of keys. A batch speaks for one: what is among them and does not come is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cover {
    /// Tenants.
    pub tenants: BTreeSet<Uuid>,
    /// All numbers of these tenants. Their rows come in the order of tenant and number.
    pub numbers_of: BTreeSet<Uuid>,
    /// Single numbers.
    pub numbers: BTreeSet<String>,
    /// All numbers there are. Their rows come in byte order, and no other number is named.
    pub all_numbers: bool,
}

impl Cover {
    /// Whether it names this row.
    fn covers(&self, key: &Key) -> bool {
        match key {
            Key::Tenant(id) => self.tenants.contains(id),
            Key::Number(e164) => self.all_numbers || self.numbers.contains(e164),
        }
    }
}

/// How a batch is applied.
#[derive(Debug, Clone)]
pub struct Terms {
    /// What the batch speaks for.
    pub cover: Cover,
    /// What the change log names since the cursor: a difference elsewhere went unnoticed.
    pub told: Cover,
    /// Limits on rows.
    pub limits: AdmissionLimits,
    /// A loss of more than this percentage is held back.
    pub hold_percent: u8,
    /// Unless an operator accepted it.
    pub accept_loss: bool,
    /// The batch compares everything: what was held before and is not a loss any more is held no longer.
    pub settles_held: bool,
    /// Rows that an earlier process had in hand when it died are tried again, not held.
    pub tries_suspects: bool,
}

/// A loss that was not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldLoss {
    /// Tenants.
    pub tenants: u64,
    /// Numbers.
    pub numbers: u64,
}

/// What a batch did.
#[derive(Debug, Default)]
pub struct Applied {
    /// Rows that came.
    pub read: u64,
    /// Rows that differed and were written.
    pub written: u64,
    /// Rows removed.
    pub removed: u64,
    /// Rows written or removed that no row of the change log had named.
    pub untold: u64,
    /// Tenants whose rows changed.
    pub tenants: BTreeSet<Uuid>,
    /// Numbers that changed, as far as they are named: `all_numbers`.
    pub numbers: BTreeSet<E164>,
    /// Tenants that got, lost or changed a number.
    pub owners: BTreeSet<Uuid>,
    /// More numbers changed than are named.
    pub all_numbers: bool,
    /// What is wrong now with numbers that are or were faulty.
    pub faults: Vec<(E164, Vec<Fault>)>,
    /// What was held back.
    pub held: Option<HeldLoss>,
    /// The first differences, for a report.
    pub differences: Vec<(Key, What)>,
}

/// Which row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// A tenant's rows.
    Tenant(Uuid),
    /// A number.
    Number(String),
}

/// In which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Not here.
    Missing,
    /// Here and different.
    Different,
    /// Here and not in Postgres.
    Surplus,
}

/// Numbers named in [`Applied::numbers`] and differences in a report; beyond, only counts.
const NAMED: usize = 10_000;
const REPORTED: usize = 100;

/// Where rows come from: chunks, then the cursor once all came. Without the cursor nothing is committed.
#[derive(Debug)]
pub struct Incoming {
    /// Rows.
    pub rows: mpsc::Receiver<Vec<Row>>,
    /// The cursor that the rows lead to.
    pub next: oneshot::Receiver<Cursor>,
}

impl Incoming {
    /// Rows that are all here.
    #[must_use]
    pub fn whole(rows: Vec<Row>, next: Cursor) -> Self {
        let (send_rows, take_rows) = mpsc::channel(1);
        let (send_next, take_next) = oneshot::channel();
        let _ = send_rows.try_send(rows);
        let _ = send_next.send(next);
        Self {
            rows: take_rows,
            next: take_next,
        }
    }
}

/// A number's record with the tenant it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundNumber {
    /// Its tenant.
    pub tenant: Uuid,
    /// What is kept of it.
    pub record: NumberRecord,
}

/// Rows and cursor on disk.
pub struct Replica {
    store: Store,
    key: DataKey,
    stamp: stamp::StampFile,
    marker: Marker,
    _lock: File,
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replica")
            .field("file", &self.store.path())
            .finish_non_exhaustive()
    }
}

impl Replica {
    /// Opens the replica of a directory, made if missing. A file that is damaged, or sealed with keys that the keyring
    /// no longer has, is set aside and a new one begun: Postgres has every row.
    ///
    /// # Errors
    /// [`ReplicaError`]: in use, unsafe directory, later format, disk.
    pub fn open(dir: &Path, keyring: &Keyring) -> Result<(Self, Opened), ReplicaError> {
        safe_directory(dir)?;
        let lock = lock_directory(dir)?;
        let file = dir.join("replica.redb");
        let open = |err| ReplicaError::Open {
            path: file.clone(),
            source: err,
        };
        let stamp = stamp::StampFile::open(&dir.join("level")).map_err(open)?;
        let marker = Marker::open(&dir.join("in-hand"));
        let begin = || Self::begin(&file, keyring);
        let ((store, key), opened) = if file.exists() {
            match Self::try_open(&file, keyring)? {
                Ok((store, key, None)) => ((store, key), Opened::Kept),
                Ok((store, key, Some(why))) => ((store, key), Opened::ReadOnly { why }),
                Err(why) => {
                    let to = set_aside(&file).map_err(open)?;
                    (begin()?, Opened::SetAside { to, why })
                }
            }
        } else {
            (begin()?, Opened::New)
        };
        let replica = Self {
            store: Store::new(file, store),
            key,
            stamp,
            marker,
            _lock: lock,
        };
        Ok((replica, opened))
    }

    /// A new file. It gets its name when it is whole: what a death leaves half made is begun again.
    fn begin(file: &Path, keyring: &Keyring) -> Result<(Open, DataKey), ReplicaError> {
        let open = |source| ReplicaError::Open {
            path: file.to_path_buf(),
            source,
        };
        let half = file.with_extension("begun");
        match std::fs::remove_file(&half) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(open(err)),
            _ => {}
        }
        let begun = Open::writable(&half, false).map_err(OpenFailure::from);
        let begun = begun.and_then(|store| {
            let key = Self::prepare(&store.db, keyring)?;
            Ok((store, key))
        });
        let (store, key) = match begun {
            Ok(begun) => begun,
            Err(failure) => return Err(failure.into_error(file)),
        };
        std::fs::rename(&half, file).map_err(open)?;
        if let Some(dir) = file.parent() {
            File::open(dir)
                .and_then(|dir| dir.sync_all())
                .map_err(open)?;
        }
        Ok((store, key))
    }

    /// The outer error stops the daemon, the inner one says why the file is of no use. With the file and its key, why
    /// nothing can be written to it.
    #[allow(clippy::type_complexity)]
    fn try_open(
        file: &Path,
        keyring: &Keyring,
    ) -> Result<Result<(Open, DataKey, Option<String>), String>, ReplicaError> {
        let mut closed = None;
        let opened = Open::writable(file, true).or_else(|failure| match failure {
            NotOpen::Database(DatabaseError::Storage(StorageError::Io(err)))
                if !is_damage(&err) =>
            {
                closed = Some(err.to_string());
                Open::read_only(file, true, err.to_string())
            }
            failure => Err(failure),
        });
        let tried = opened.map_err(OpenFailure::from).and_then(|store| {
            let read = || Self::read_key(&store.db, file, keyring);
            let key = catch_unwind(AssertUnwindSafe(read)).map_err(|_| OpenFailure::Panicked)??;
            Ok((store, key, closed))
        });
        match tried {
            Ok(opened) => Ok(Ok(opened)),
            Err(OpenFailure::Database(DatabaseError::Storage(StorageError::Io(err))))
                if !is_damage(&err) =>
            {
                Err(
                    OpenFailure::Database(DatabaseError::Storage(StorageError::Io(err)))
                        .into_error(file),
                )
            }
            Err(OpenFailure::Replica(err @ ReplicaError::Format { .. })) => Err(err),
            Err(failure) => Ok(Err(failure.why())),
        }
    }

    /// Tables, format and data key of a new file.
    fn prepare(db: &Database, keyring: &Keyring) -> Result<DataKey, OpenFailure> {
        let txn = tried!("preparing", db.begin_write())?;
        let key = DataKey::generate().map_err(|_| ReplicaError::Seal)?;
        {
            let mut meta = tried!("preparing", txn.open_table(META))?;
            write_format(&mut meta)?;
            write_keys(&mut meta, &key, keyring)?;
        }
        for table in [NUMBERS, TENANTS, INDEX, FAULTY] {
            tried!("preparing", txn.open_table(table))?;
        }
        tried!("preparing", txn.commit())?;
        Ok(key)
    }

    /// The data key of a file of our format.
    fn read_key(db: &Database, file: &Path, keyring: &Keyring) -> Result<DataKey, OpenFailure> {
        let txn = tried!("reading the format", db.begin_read())?;
        let meta = tried!("reading the format", txn.open_table(META))?;
        let format = tried!("reading the format", meta.get("format"))?.map(|v| v.value().to_vec());
        let found = format
            .and_then(|bytes| bytes.try_into().ok())
            .map_or(u32::MAX, u32::from_le_bytes);
        if !(OLDEST..=FORMAT).contains(&found) {
            return Err(ReplicaError::Format {
                path: file.to_path_buf(),
                found,
            }
            .into());
        }
        let wrapped = read_keys(&meta)?;
        for table in [NUMBERS, TENANTS, INDEX, FAULTY] {
            tried!("opening the tables", txn.open_table(table))?;
        }
        DataKey::unwrap(&wrapped, keyring).ok_or(OpenFailure::Keys)
    }

    /// Wraps the data key under the keys of this keyring where it is wrapped under others: a key that came into the ring
    /// while no daemon ran opens the replica when it is the only one left, and one that went opens it no more.
    ///
    /// # Errors
    /// [`ReplicaError`] when it cannot be written; then the old keys still open it.
    pub fn fit_to(&self, keyring: &Keyring) -> Result<(), ReplicaError> {
        let wrapped = {
            let txn = self.store.read()?;
            read_keys(&tried!("reading the data key", txn.open_table(META))?)?
        };
        if DataKey::is_wrapped_under(&wrapped, keyring) {
            return Ok(());
        }
        self.rewrap(keyring)
    }

    /// Wraps the data key under the keys of another keyring, so that any of them opens the replica from now on.
    ///
    /// # Errors
    /// [`ReplicaError`] when it cannot be written; then the old keys still open it.
    pub fn rewrap(&self, keyring: &Keyring) -> Result<(), ReplicaError> {
        self.store.write(|txn| {
            {
                let mut meta = tried!("changing keys", txn.open_table(META))?;
                write_keys(&mut meta, &self.key, keyring)?;
            }
            tried!("changing keys", txn.commit())
        })
    }

    /// The cursor of the last batch; `None` before the first complete copy.
    ///
    /// # Errors
    /// [`ReplicaError::Storage`]. A cursor that cannot be read counts as none.
    pub fn cursor(&self) -> Result<Option<Cursor>, ReplicaError> {
        let txn = self.store.read()?;
        let meta = tried!("reading the cursor", txn.open_table(META))?;
        let cursor = tried!("reading the cursor", meta.get("cursor"))?;
        Ok(cursor.and_then(|json| serde_json::from_slice(json.value()).ok()))
    }

    /// Whether the replica holds a complete copy, however old.
    ///
    /// # Errors
    /// [`ReplicaError::Storage`].
    pub fn is_complete(&self) -> Result<bool, ReplicaError> {
        let txn = self.store.read()?;
        let meta = tried!("reading the cursor", txn.open_table(META))?;
        Ok(tried!("reading the cursor", meta.get("cursor"))?.is_some())
    }

    /// Keeps a cursor that moved although no row changed.
    ///
    /// # Errors
    /// [`ReplicaError::Storage`].
    pub fn keep_cursor(&self, cursor: &Cursor) -> Result<(), ReplicaError> {
        self.store.write(|txn| {
            {
                let mut meta = tried!("keeping the cursor", txn.open_table(META))?;
                write_cursor(&mut meta, cursor)?;
            }
            tried!("keeping the cursor", txn.commit())
        })
    }

    /// Level was proved at this time since boot.
    ///
    /// # Errors
    /// When the file cannot be written; the node then looks older after a restart, never younger.
    pub fn stamp_level(&self, proven: Duration) -> io::Result<()> {
        self.stamp.write(proven)
    }

    /// How long ago level was proved, by this process or an earlier one.
    #[must_use]
    pub fn level_age(&self) -> Option<Duration> {
        self.stamp.age()
    }

    /// Work on a row that may be deadly: the next process knows it if this one dies.
    pub(crate) fn take_in_hand(&self, hand: Hand, what: InHand) {
        self.marker.take(hand, what);
    }

    /// Whether each of so many rows is to be taken in hand by itself.
    pub(crate) fn names_each(&self, hand: Hand, rows: usize) -> bool {
        self.marker.names_each(hand, rows)
    }

    /// Rows that an earlier process had in hand when it died, and that are to be tried once more.
    #[must_use]
    pub fn on_trial(&self) -> Vec<Key> {
        self.marker
            .on_trial()
            .into_iter()
            .map(|row| row.key)
            .collect()
    }

    /// The row was looked at after a start, and the process lives.
    pub(crate) fn looked_at(&self, row: &Version) {
        self.marker.looked_at(row);
    }

    /// Rows that processes died on, whether they are tried again or not.
    pub(crate) fn suspects(&self) -> Vec<Key> {
        let convicted = self.marker.convicted().into_iter().map(|(row, _)| row.key);
        self.on_trial().into_iter().chain(convicted).collect()
    }

    /// A record as it was found: one that is set aside, with nothing known against its row, is tried again.
    pub(crate) fn found(&self, row: Version, faults: &[Fault]) {
        if admit::is_set_aside(faults) {
            self.marker.is_aside(row);
        }
    }

    /// A batch is in force and what is made of it too.
    pub(crate) fn survived(&self, terms: &Terms) {
        self.marker.done(terms);
    }

    /// Puts the predecessors of rows in force that processes died on again and again, or nothing where they go on dying.
    ///
    /// # Errors
    /// [`ReplicaError`]; then nothing was changed.
    pub(crate) fn set_convicted_aside(&self) -> Result<(), ReplicaError> {
        let convicted = self.marker.convicted();
        if convicted.is_empty() {
            return Ok(());
        }
        self.store.write(|txn| self.write_aside(txn, convicted))
    }

    fn write_aside(
        &self,
        txn: WriteTransaction,
        convicted: Vec<(Version, bool)>,
    ) -> Result<(), ReplicaError> {
        for (Version { key, hash }, hopeless) in convicted {
            match key {
                Key::Tenant(id) => {
                    let mut tenants = tried!("setting a row aside", txn.open_table(TENANTS))?;
                    let was = tried!("setting a row aside", tenants.get(id.as_bytes().as_slice()))?
                        .and_then(|value| open_tenant(&self.key, id, value.value()).ok());
                    let Some(was) = was.filter(|was| was.hash == hash) else {
                        continue;
                    };
                    let record = admit::tenant_set_aside(id, hash, (!hopeless).then_some(&was));
                    let sealed = seal(&self.key, &tenant_aad(id), &record)?;
                    tried!(
                        "setting a row aside",
                        tenants.insert(id.as_bytes().as_slice(), sealed.as_slice())
                    )?;
                }
                Key::Number(e164) => {
                    let mut numbers = tried!("setting a row aside", txn.open_table(NUMBERS))?;
                    let was = tried!("setting a row aside", numbers.get(e164.as_bytes()))?
                        .and_then(|value| open_number(&self.key, &e164, value.value()).ok());
                    let Some(was) = was.filter(|was| was.record.hash == hash) else {
                        continue;
                    };
                    let kept = (!hopeless).then_some(&was.record);
                    let record = admit::number_set_aside(&e164, hash, kept);
                    let value = number_value(&self.key, was.tenant, &e164, &record)?;
                    tried!(
                        "setting a row aside",
                        numbers.insert(e164.as_bytes(), value.as_slice())
                    )?;
                    let mut faulty = tried!("setting a row aside", txn.open_table(FAULTY))?;
                    tried!(
                        "setting a row aside",
                        faulty.insert(e164.as_bytes(), [].as_slice())
                    )?;
                }
            }
        }
        {
            let mut meta = tried!("setting a row aside", txn.open_table(META))?;
            write_format(&mut meta)?;
        }
        tried!("setting a row aside", txn.commit())
    }

    /// A moment of the replica: everything read through it is of one commit.
    ///
    /// # Errors
    /// [`ReplicaError::Storage`].
    pub fn view(&self) -> Result<View<'_>, ReplicaError> {
        let txn = self.store.read()?;
        Ok(View {
            numbers: tried!("reading", txn.open_table(NUMBERS))?,
            tenants: tried!("reading", txn.open_table(TENANTS))?,
            index: tried!("reading", txn.open_table(INDEX))?,
            faulty: tried!("reading", txn.open_table(FAULTY))?,
            key: &self.key,
        })
    }

    /// Tenants, numbers, and bytes of the file.
    ///
    /// # Errors
    /// [`ReplicaError::Storage`].
    pub fn size(&self) -> Result<Size, ReplicaError> {
        let view = self.view()?;
        Ok(Size {
            tenants: tried!("counting", view.tenants.len())?,
            numbers: tried!("counting", view.numbers.len())?,
            bytes: std::fs::metadata(self.store.path()).map_or(0, |file| file.len()),
        })
    }

    /// Applies a batch with its cursor as one commit. `around` is called with what changed right before the commit, and
    /// what it returns is dropped right after, whatever became of the commit: what was built from the old rows must not
    /// be answered from in between.
    /// Blocking; to be called by one thread at a time.
    ///
    /// # Errors
    /// [`ReplicaError`]; then nothing was changed.
    pub fn apply<G>(
        &self,
        incoming: Incoming,
        terms: &Terms,
        around: impl FnOnce(&Applied) -> G,
    ) -> Result<(Applied, Cursor), ReplicaError> {
        let done = self
            .store
            .write(|txn| self.write_batch(txn, incoming, terms, around));
        if done.is_err() {
            self.marker.take(Hand::Applying, InHand::Nothing);
        }
        done
    }

    fn write_batch<G>(
        &self,
        txn: WriteTransaction,
        mut incoming: Incoming,
        terms: &Terms,
        around: impl FnOnce(&Applied) -> G,
    ) -> Result<(Applied, Cursor), ReplicaError> {
        self.marker.take(Hand::Applying, InHand::Rows);
        let (applied, next) = std::thread::scope(|beside| {
            let mut writer = Writer {
                numbers: tried!("writing", txn.open_table(NUMBERS))?,
                tenants: tried!("writing", txn.open_table(TENANTS))?,
                index: Index::Here(tried!("writing", txn.open_table(INDEX))?),
                beside,
                faulty: tried!("writing", txn.open_table(FAULTY))?,
                key: &self.key,
                marker: &self.marker,
                names_each: false,
                terms,
                here: None,
                numbers_to_put: Vec::new(),
                index_to_put: Vec::new(),
                at_peace: !self.marker.knows_any(),
                usual: admit::Usual::default(),
                applied: Applied::default(),
                group: None,
                finished: BTreeSet::new(),
                seen_tenants: BTreeSet::new(),
                seen_numbers: BTreeSet::new(),
                gone: BTreeSet::new(),
            };
            let before = (
                tried!("counting", writer.tenants.len())?,
                tried!("counting", writer.numbers.len())?,
            );
            if terms.cover.all_numbers {
                writer.here = Some(Here::new(&self.view()?.numbers)?);
            }
            while let Some(rows) = incoming.rows.blocking_recv() {
                writer.chunk(rows)?;
            }
            let mut next = incoming
                .next
                .blocking_recv()
                .map_err(|_| ReplicaError::Abandoned)?;
            let applied = writer.finish(before)?;
            next.held = applied.held.is_some() || (next.held && !terms.settles_held);
            let mut meta = tried!("writing", txn.open_table(META))?;
            write_cursor(&mut meta, &next)?;
            write_format(&mut meta)?;
            Ok::<_, ReplicaError>((applied, next))
        })?;
        self.marker.take(Hand::Applying, InHand::Nothing);
        let changing = around(&applied);
        let committed = tried!("committing", txn.commit());
        drop(changing);
        committed.map(|()| (applied, next))
    }
}

/// How much the replica holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Tenants.
    pub tenants: u64,
    /// Numbers.
    pub numbers: u64,
    /// Size of the file.
    pub bytes: u64,
}

type ReadTable = redb::ReadOnlyTable<&'static [u8], &'static [u8]>;

/// The replica as of one commit.
pub struct View<'r> {
    numbers: ReadTable,
    tenants: ReadTable,
    index: ReadTable,
    faulty: ReadTable,
    key: &'r DataKey,
}

impl View<'_> {
    /// A number.
    ///
    /// # Errors
    /// [`ReplicaError`] when it cannot be read or does not open.
    pub fn number(&self, e164: &str) -> Result<Option<FoundNumber>, ReplicaError> {
        let Some(value) = tried!("reading a number", self.numbers.get(e164.as_bytes()))? else {
            return Ok(None);
        };
        open_number(self.key, e164, value.value()).map(Some)
    }

    /// A tenant.
    ///
    /// # Errors
    /// [`ReplicaError`] when it cannot be read or does not open.
    pub fn tenant(&self, id: Uuid) -> Result<Option<TenantRecord>, ReplicaError> {
        let Some(value) = tried!(
            "reading a tenant",
            self.tenants.get(id.as_bytes().as_slice())
        )?
        else {
            return Ok(None);
        };
        open_tenant(self.key, id, value.value()).map(Some)
    }

    /// The number that comes after another one, the first after the last; none where there is none.
    ///
    /// # Errors
    /// [`ReplicaError::Storage`].
    pub fn number_after(&self, number: &str) -> Result<Option<String>, ReplicaError> {
        let after = (Bound::Excluded(number.as_bytes()), Bound::Unbounded);
        let mut next = tried!("reading numbers", self.numbers.range::<&[u8]>(after))?.next();
        if next.is_none() {
            next = tried!("reading numbers", self.numbers.iter())?.next();
        }
        let Some((number, _)) = tried!("reading numbers", next.transpose())? else {
            return Ok(None);
        };
        Ok(std::str::from_utf8(number.value()).ok().map(str::to_owned))
    }

    /// Whether a tenant is there.
    ///
    /// # Errors
    /// [`ReplicaError::Storage`].
    pub fn has_tenant(&self, id: Uuid) -> Result<bool, ReplicaError> {
        Ok(tried!(
            "reading a tenant",
            self.tenants.get(id.as_bytes().as_slice())
        )?
        .is_some())
    }

    /// Ids of all tenants.
    ///
    /// # Errors
    /// [`ReplicaError::Storage`].
    pub fn tenant_ids(&self) -> Result<Vec<Uuid>, ReplicaError> {
        let mut ids = Vec::new();
        for entry in tried!("reading tenants", self.tenants.iter())? {
            let (id, _) = tried!("reading tenants", entry)?;
            ids.extend(Uuid::from_slice(id.value()).ok());
        }
        Ok(ids)
    }

    /// Numbers whose newest row is quarantined.
    ///
    /// # Errors
    /// [`ReplicaError::Storage`].
    pub fn faulty_numbers(&self) -> Result<Vec<String>, ReplicaError> {
        let mut numbers = Vec::new();
        for entry in tried!("reading faults", self.faulty.iter())? {
            let (number, _) = tried!("reading faults", entry)?;
            numbers.extend(std::str::from_utf8(number.value()).ok().map(str::to_owned));
        }
        Ok(numbers)
    }

    /// Whether so many numbers are named, by themselves or by their tenants, that [all are read](change::reads_all).
    ///
    /// # Errors
    /// [`ReplicaError::Storage`].
    pub fn is_most(&self, cover: &Cover) -> Result<bool, ReplicaError> {
        let held = tried!("counting", self.numbers.len())?;
        let mut named = u64::try_from(cover.numbers.len()).unwrap_or(u64::MAX);
        for tenant in &cover.numbers_of {
            let first = index_key(*tenant, "");
            for entry in tried!("counting", self.index.range(first.as_slice()..))? {
                let (key, _) = tried!("counting", entry)?;
                if change::reads_all(named, held) || !key.value().starts_with(tenant.as_bytes()) {
                    break;
                }
                named = named.saturating_add(1);
            }
        }
        Ok(change::reads_all(named, held))
    }

    /// What a comparison needs of every tenant, as [`crate::source::Session::digests`] reads it of Postgres.
    ///
    /// # Errors
    /// [`ReplicaError`] when it cannot be read.
    pub fn digests(&self, numbers: bool) -> Result<BTreeMap<Uuid, Hashes>, ReplicaError> {
        const DOING: &str = "reading hashes";
        let mut all = BTreeMap::new();
        for entry in tried!("reading hashes", self.tenants.iter())? {
            let (id, value) = tried!("reading hashes", entry)?;
            let id = Uuid::from_slice(id.value()).map_err(|err| ReplicaError::Storage {
                doing: DOING,
                what: err.to_string(),
            })?;
            // A record that no longer opens counts as different, and is so read anew.
            let hash = open_tenant(self.key, id, value.value())
                .ok()
                .map(|record| record.hash);
            all.insert(
                id,
                Hashes {
                    rows: hash,
                    count: 0,
                    numbers: DocHash::of(""),
                },
            );
        }
        if !numbers {
            return Ok(all);
        }
        let mut running: Option<(Uuid, u64, digest::Context)> = None;
        let close = |all: &mut BTreeMap<Uuid, Hashes>,
                     done: Option<(Uuid, u64, digest::Context)>| {
            if let Some((id, count, context)) = done {
                let mut hash = [0; 32];
                hash.iter_mut()
                    .zip(context.finish().as_ref())
                    .for_each(|(to, from)| *to = *from);
                let entry = all.entry(id).or_insert(Hashes {
                    rows: None,
                    count: 0,
                    numbers: DocHash(hash),
                });
                (entry.count, entry.numbers) = (count, DocHash(hash));
            }
        };
        for entry in tried!("reading hashes", self.index.iter())? {
            let (key, value) = tried!("reading hashes", entry)?;
            let Some((id, _)) = split_index(key.value()) else {
                continue;
            };
            if running.as_ref().is_none_or(|(of, ..)| *of != id) {
                close(&mut all, running.take());
            }
            let (_, count, context) =
                running.get_or_insert_with(|| (id, 0, digest::Context::new(&digest::SHA256)));
            *count = count.saturating_add(1);
            context.update(value.value());
        }
        close(&mut all, running.take());
        Ok(all)
    }
}

/// The wrapped data key; nothing where it cannot be read.
fn read_keys(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Vec<WrappedKey>, ReplicaError> {
    let keys = tried!("reading the data key", meta.get("keys"))?;
    Ok(keys
        .and_then(|json| serde_json::from_slice(json.value()).ok())
        .unwrap_or_default())
}

fn write_keys(
    meta: &mut redb::Table<'_, &'static str, &'static [u8]>,
    key: &DataKey,
    keyring: &Keyring,
) -> Result<(), ReplicaError> {
    let wrapped = key.wrap(keyring).map_err(|_| ReplicaError::Seal)?;
    let json = serde_json::to_vec(&wrapped).map_err(|_| ReplicaError::Seal)?;
    tried!("writing the data key", meta.insert("keys", json.as_slice())).map(|_| ())
}

fn write_format(
    meta: &mut redb::Table<'_, &'static str, &'static [u8]>,
) -> Result<(), ReplicaError> {
    let format = FORMAT.to_le_bytes();
    tried!(
        "writing the format",
        meta.insert("format", format.as_slice())
    )
    .map(|_| ())
}

fn write_cursor(
    meta: &mut redb::Table<'_, &'static str, &'static [u8]>,
    cursor: &Cursor,
) -> Result<(), ReplicaError> {
    let json = serde_json::to_vec(cursor).map_err(|err| ReplicaError::Storage {
        doing: "writing the cursor",
        what: err.to_string(),
    })?;
    tried!("writing the cursor", meta.insert("cursor", json.as_slice())).map(|_| ())
}

fn seal(key: &DataKey, aad: &[u8], record: &impl Serialize) -> Result<Vec<u8>, ReplicaError> {
    let json = serde_json::to_vec(record).map_err(|_| ReplicaError::Seal)?;
    key.seal(aad, &json).map_err(|_| ReplicaError::Seal)
}

/// Stands between tenant and hash; before format 3 the sealed record stood here, which begins with another byte.
const WITH_HASH: u8 = 2;

/// What stands in `numbers`: the tenant, the hash of the newest document, then the sealed record.
fn number_value(
    key: &DataKey,
    tenant: Uuid,
    e164: &str,
    record: &NumberRecord,
) -> Result<Vec<u8>, ReplicaError> {
    let aad = number_aad(tenant, e164, Some(record.hash));
    let plain = match plain::write(e164, record) {
        Some(bytes) => bytes,
        None => serde_json::to_vec(record).map_err(|_| ReplicaError::Seal)?,
    };
    let mut value = Vec::with_capacity(plain.len().saturating_add(96));
    value.extend_from_slice(tenant.as_bytes());
    value.push(WITH_HASH);
    value.extend_from_slice(&record.hash.0);
    key.seal_onto(&aad, &plain, &mut value)
        .map_err(|_| ReplicaError::Seal)?;
    Ok(value)
}

/// Tenant, hash where it stands there, and the sealed record.
fn split_number(value: &[u8]) -> Option<(Uuid, Option<DocHash>, &[u8])> {
    let (tenant, rest) = value.split_first_chunk::<16>()?;
    let tenant = Uuid::from_bytes(*tenant);
    match rest.split_first()? {
        (&WITH_HASH, rest) => {
            let (hash, sealed) = rest.split_first_chunk::<32>()?;
            Some((tenant, Some(DocHash(*hash)), sealed))
        }
        _ => Some((tenant, None, rest)),
    }
}

/// The tenant of what stands in `numbers`.
fn owner(value: &[u8]) -> Option<Uuid> {
    split_number(value).map(|(tenant, ..)| tenant)
}

fn number_aad(tenant: Uuid, e164: &str, hash: Option<DocHash>) -> SmallVec<[u8; 96]> {
    let mut aad = SmallVec::from_slice(b"number");
    aad.extend_from_slice(tenant.as_bytes());
    aad.extend_from_slice(e164.as_bytes());
    aad.extend_from_slice(hash.as_ref().map_or([].as_slice(), |hash| &hash.0));
    aad
}

fn tenant_aad(id: Uuid) -> Vec<u8> {
    [b"tenant".as_slice(), id.as_bytes()].concat()
}

fn index_key(tenant: Uuid, e164: &str) -> Vec<u8> {
    [tenant.as_bytes().as_slice(), e164.as_bytes()].concat()
}

fn split_index(key: &[u8]) -> Option<(Uuid, &str)> {
    let (tenant, e164) = key.split_at_checked(16)?;
    Some((
        Uuid::from_slice(tenant).ok()?,
        std::str::from_utf8(e164).ok()?,
    ))
}

fn open_number(key: &DataKey, e164: &str, value: &[u8]) -> Result<FoundNumber, ReplicaError> {
    let wrong = || ReplicaError::Record {
        key: e164.to_owned(),
    };
    let (tenant, hash, sealed) = split_number(value).ok_or_else(wrong)?;
    let bytes = key
        .open(&number_aad(tenant, e164, hash), sealed)
        .map_err(|_| wrong())?;
    let record = if plain::is_plain(&bytes) {
        plain::read(e164, hash, &bytes).ok_or_else(wrong)?
    } else {
        serde_json::from_slice(&bytes).map_err(|_| wrong())?
    };
    Ok(FoundNumber { tenant, record })
}

fn open_tenant(key: &DataKey, id: Uuid, value: &[u8]) -> Result<TenantRecord, ReplicaError> {
    let wrong = || ReplicaError::Record {
        key: id.to_string(),
    };
    let json = key.open(&tenant_aad(id), value).map_err(|_| wrong())?;
    serde_json::from_slice(&json).map_err(|_| wrong())
}

/// Why a file is not opened as it stands.
enum OpenFailure {
    Database(DatabaseError),
    Panicked,
    Replica(ReplicaError),
    Keys,
}

impl OpenFailure {
    fn why(&self) -> String {
        match self {
            Self::Database(err) => err.to_string(),
            Self::Panicked => "the storage engine panicked on it".to_owned(),
            Self::Replica(err) => err.to_string(),
            Self::Keys => "it is sealed with keys that the keyring no longer has".to_owned(),
        }
    }

    fn into_error(self, file: &Path) -> ReplicaError {
        match self {
            Self::Replica(err) => err,
            Self::Database(DatabaseError::Storage(StorageError::Io(source))) => {
                ReplicaError::Open {
                    path: file.to_path_buf(),
                    source,
                }
            }
            failure => ReplicaError::Storage {
                doing: "opening the file",
                what: failure.why(),
            },
        }
    }
}

impl From<ReplicaError> for OpenFailure {
    fn from(err: ReplicaError) -> Self {
        Self::Replica(err)
    }
}

impl From<NotOpen> for OpenFailure {
    fn from(failure: NotOpen) -> Self {
        match failure {
            NotOpen::Database(err) => Self::Database(err),
            NotOpen::Panicked => Self::Panicked,
        }
    }
}

/// Whether an error of the file is one of its content, not of the disk or of rights.
fn is_damage(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Identity;
    use crate::sample::{
        ACME, ACME_NUMBER, KEYRING, LIMITS, admit_number, number_document, tenant_document, uuid,
    };

    #[test]
    fn a_convicted_row_is_set_aside_though_the_file_must_be_opened_for_writing_first() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("replica");
        let (replica, _) = Replica::open(&dir, &KEYRING).unwrap();
        let mut document = tenant_document(ACME);
        for model in ["first", "second"] {
            document["settings"]["model"] = model.into();
            apply(&replica, document.to_string());
        }
        let convicted = format!(
            r#"{{"suspects":[{{"row":{{"key":{{"tenant":"{ACME}"}},"hash":"{}"}},"deaths":2}}]}}"#,
            String::from(DocHash::of(&document.to_string()))
        );
        let Replica {
            store,
            key,
            stamp,
            _lock,
            ..
        } = replica;
        let path = store.path().to_path_buf();
        drop(store);
        std::fs::write(dir.join("in-hand"), convicted + "\n").unwrap();
        let only_read = Open::read_only(&path, false, "of the test".to_owned());
        let replica = Replica {
            store: Store::new(path, only_read.unwrap_or_else(|_| panic!("it opens"))),
            key,
            stamp,
            marker: Marker::open(&dir.join("in-hand")),
            _lock,
        };
        replica.set_convicted_aside().unwrap();
        let record = replica.view().unwrap().tenant(uuid(ACME)).unwrap().unwrap();
        assert!(admit::is_set_aside(&record.faults));
        assert_eq!(record.bundle.settings.unwrap().model, "first");
    }

    #[test]
    fn a_file_of_a_format_before_is_read_compared_and_raised_by_the_next_batch() {
        let document = number_document(ACME_NUMBER).to_string();
        let record = admit_number(&number_document(ACME_NUMBER));
        let mut plain = plain::write(ACME_NUMBER, &record).unwrap();
        plain[0] = 1;
        plain.splice(1..1, record.hash.0);
        let json = serde_json::to_vec(&record).unwrap();
        for (old, bytes) in [(1, json), (2, plain)] {
            let scratch = tempfile::tempdir().unwrap();
            let dir = scratch.path().join("replica");
            let (replica, _) = Replica::open(&dir, &KEYRING).unwrap();
            apply(&replica, tenant_document(ACME).to_string());
            let aad = number_aad(uuid(ACME), ACME_NUMBER, None);
            let sealed = replica.key.seal(&aad, &bytes).unwrap();
            let value = [uuid(ACME).as_bytes().as_slice(), &sealed].concat();
            let written = replica.store.write(|txn| {
                let mut numbers = txn.open_table(NUMBERS).unwrap();
                numbers
                    .insert(ACME_NUMBER.as_bytes(), value.as_slice())
                    .unwrap();
                let mut meta = txn.open_table(META).unwrap();
                let format: u32 = old;
                meta.insert("format", format.to_le_bytes().as_slice())
                    .unwrap();
                drop((numbers, meta));
                txn.commit().unwrap();
                Ok(())
            });
            written.unwrap();
            drop(replica);
            let (replica, opened) = Replica::open(&dir, &KEYRING).unwrap();
            assert_eq!(opened, Opened::Kept);
            let found = replica.view().unwrap().number(ACME_NUMBER).unwrap();
            assert_eq!(found.unwrap().record, record);
            assert_eq!(format(&replica), old);
            let applied = all_numbers(&replica, &[(ACME_NUMBER, &document)]);
            assert_eq!((applied.written, applied.removed), (0, 0));
            assert_eq!(format(&replica), FORMAT);
        }
    }

    #[test]
    fn all_numbers_may_come_in_any_order_and_those_that_do_not_come_go() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("replica");
        let (replica, _) = Replica::open(&dir, &KEYRING).unwrap();
        apply(&replica, tenant_document(ACME).to_string());
        let documents: Vec<(String, String)> = (0..12)
            .map(|n| {
                let e164 = format!("+1415555{n:04}");
                let mut document = number_document(ACME_NUMBER);
                document["e164"] = e164.as_str().into();
                (e164, document.to_string())
            })
            .collect();
        let rows = |which: &[usize], label: &str| -> Vec<(String, String)> {
            let named = which.iter().map(|n| documents[*n].clone());
            let old = format!("\"label\":{}", number_document(ACME_NUMBER)["label"]);
            named
                .map(|(e164, text)| (e164, text.replace(&old, &format!("\"label\":\"{label}\""))))
                .collect()
        };
        // In order, all of it new; some new and some changed; out of order, and some of them twice; none.
        for (which, label, changed) in [
            (&[0, 1, 2, 4, 5, 6, 8, 9][..], "a", (8, 0)),
            (&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11], "a", (3, 0)),
            (&[0, 2, 4, 6, 8], "b", (5, 6)),
            (&[8, 3, 4, 3, 0, 6, 0, 10, 2], "b", (2, 0)),
            (&[], "", (0, 7)),
        ] {
            let rows = rows(which, label);
            let came: Vec<(&str, &str)> = rows.iter().map(|(n, d)| (&**n, &**d)).collect();
            let applied = all_numbers(&replica, &came);
            let expected: BTreeMap<&str, DocHash> =
                came.iter().map(|(n, d)| (*n, DocHash::of(d))).collect();
            assert_eq!((applied.written, applied.removed), changed, "{which:?}");
            let view = replica.view().unwrap();
            let mut indexed = Vec::new();
            view.each_number_of(uuid(ACME), |e164, hash, _| {
                indexed.push((e164.to_owned(), hash.to_vec()));
            })
            .unwrap();
            let right = expected
                .iter()
                .map(|(n, hash)| ((*n).to_owned(), hash.0.to_vec()));
            assert_eq!(indexed, right.collect::<Vec<_>>(), "{which:?}");
            for (e164, _) in &documents {
                let found = view.number(e164).unwrap().map(|found| found.record.hash);
                assert_eq!(found, expected.get(e164.as_str()).copied(), "{e164}");
            }
            assert_eq!(
                view.numbers.len().unwrap(),
                u64::try_from(expected.len()).unwrap()
            );
        }
    }

    fn all_numbers(replica: &Replica, rows: &[(&str, &str)]) -> Applied {
        let cover = Cover {
            all_numbers: true,
            ..Cover::default()
        };
        let rows = rows.iter().map(|(e164, document)| Row::Number {
            tenant: uuid(ACME),
            e164: (*e164).to_owned(),
            document: (*document).to_owned(),
        });
        batch(replica, cover, rows.collect())
    }

    #[test]
    fn numbers_come_one_after_the_other_and_the_first_after_the_last() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join("replica");
        let (replica, _) = Replica::open(&dir, &KEYRING).unwrap();
        let after = |number: &str| replica.view().unwrap().number_after(number).unwrap();
        assert_eq!(after(""), None);
        let written = replica.store.write(|txn| {
            let mut numbers = txn.open_table(NUMBERS).unwrap();
            for number in ["+2", "+10", "+3"] {
                numbers.insert(number.as_bytes(), [].as_slice()).unwrap();
            }
            drop(numbers);
            txn.commit().unwrap();
            Ok(())
        });
        written.unwrap();
        let seen: Vec<_> = ["", "+10", "+2", "+3", "+11", "+4"].map(after).into();
        let expected =
            ["+10", "+2", "+3", "+10", "+2", "+10"].map(|number| Some(number.to_owned()));
        assert_eq!(seen, expected);
    }

    fn format(replica: &Replica) -> u32 {
        let txn = replica.store.read().unwrap();
        let meta = txn.open_table(META).unwrap();
        let format = meta.get("format").unwrap().unwrap();
        u32::from_le_bytes(format.value().try_into().unwrap())
    }

    fn apply(replica: &Replica, document: String) {
        let cover = Cover {
            tenants: BTreeSet::from([uuid(ACME)]),
            ..Cover::default()
        };
        // So many that a view does not have them all in memory when it is taken.
        let others = (0..100).map(|id| (Uuid::from_u128(id), String::new()));
        let rows = others.chain([(uuid(ACME), document)]);
        let rows = rows.map(|(id, document)| Row::Tenant { id, document });
        batch(replica, cover, rows.collect());
    }

    fn batch(replica: &Replica, cover: Cover, rows: Vec<Row>) -> Applied {
        let terms = Terms {
            told: cover.clone(),
            cover,
            limits: LIMITS,
            hold_percent: 100,
            accept_loss: false,
            settles_held: true,
            tries_suspects: false,
        };
        let next = Cursor {
            snapshot: "10:10:".parse().unwrap(),
            identity: Identity {
                system: "1".into(),
                started: "now".into(),
                recovery: false,
                database: 1,
            },
            tenants: None,
            held: false,
        };
        let done = replica.apply(Incoming::whole(rows, next), &terms, |_| ());
        done.unwrap().0
    }
}
