//! The node's own copy of the rows and the cursor, on disk, in one transactional file.
//!
//! Always true: a batch and its cursor are one commit, so that a crash leaves the old rows with the old cursor or the
//! new with the new. Every record is sealed and bound to its key; a record that does not open is told, never
//! answered from. One process per directory.
//!
//! Tables: `numbers` e164 → tenant ‖ sealed [`NumberRecord`]; `tenants` id → sealed [`TenantRecord`]; `index`
//! tenant ‖ e164 → hash, for comparisons; `faulty` e164 of quarantined numbers; `meta` format, wrapped data key, cursor.

mod stamp;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageError,
    TableDefinition,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::admit::{self, AdmissionLimits};
use crate::change::{self, Cursor};
use crate::number::E164;
use crate::row::{DocHash, Fault, NumberRecord, Reason, Table, TenantRecord};
use crate::seal::{DataKey, Keyring, WrappedKey};
use crate::source::{Row, TenantDigest};

const NUMBERS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("numbers");
const TENANTS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("tenants");
const INDEX: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("index");
const FAULTY: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("faulty");
const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");

/// Raised when what stands in the file is read in another way.
const FORMAT: u32 = 1;
/// Pages kept in memory by the storage engine; profiles have a cache of their own.
const PAGE_CACHE: usize = 32 << 20;
/// Damaged files kept for whoever wants to know why.
const KEPT_ASIDE: usize = 2;

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
    #[error("replica {path}: cannot be opened")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
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

/// What happened while opening, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// As it was left.
    Kept,
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
    /// Numbers that changed. For a first copy: too many to name, then `everything` is set.
    pub numbers: BTreeSet<E164>,
    /// More changed than is named.
    pub everything: bool,
    /// What is wrong now with numbers that are or were faulty.
    pub faults: Vec<(E164, Vec<Fault>)>,
    /// What was held back.
    pub held: Option<HeldLoss>,
    /// The first differences, for a report.
    pub differences: Vec<(Key, What)>,
}

/// What differed.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    db: Database,
    key: DataKey,
    stamp: stamp::StampFile,
    file: PathBuf,
    _lock: File,
}

impl std::fmt::Debug for Replica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replica")
            .field("file", &self.file)
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
        let existed = file.exists();
        let open = |err| ReplicaError::Open {
            path: file.clone(),
            source: err,
        };
        let stamp = stamp::StampFile::open(&dir.join("level")).map_err(open)?;
        let why = match Self::try_open(&file, keyring)? {
            Ok((db, key)) => {
                let opened = if existed { Opened::Kept } else { Opened::New };
                return Ok((
                    Self {
                        db,
                        key,
                        stamp,
                        file,
                        _lock: lock,
                    },
                    opened,
                ));
            }
            Err(why) => why,
        };
        let to = set_aside(&file).map_err(open)?;
        match Self::try_open(&file, keyring)? {
            Ok((db, key)) => Ok((
                Self {
                    db,
                    key,
                    stamp,
                    file,
                    _lock: lock,
                },
                Opened::SetAside { to, why },
            )),
            Err(why) => Err(ReplicaError::Storage {
                doing: "beginning a new file",
                what: why,
            }),
        }
    }

    /// The outer error stops the daemon, the inner one says why the file is of no use.
    fn try_open(
        file: &Path,
        keyring: &Keyring,
    ) -> Result<Result<(Database, DataKey), String>, ReplicaError> {
        // The engine may panic on a damaged file that its checks do not catch.
        let tried = catch_unwind(AssertUnwindSafe(|| {
            let db = Database::builder()
                .set_cache_size(PAGE_CACHE)
                .set_check_integrity_on_open(true)
                .create(file)
                .map_err(OpenFailure::Database)?;
            let key = Self::prepare(&db, file, keyring)?;
            Ok((db, key))
        }));
        let failure = match tried {
            Ok(Ok(opened)) => return Ok(Ok(opened)),
            Ok(Err(failure)) => failure,
            Err(_) => return Ok(Err("the storage engine panicked on it".to_owned())),
        };
        let path = || file.to_path_buf();
        match failure {
            OpenFailure::Database(DatabaseError::DatabaseAlreadyOpen) => {
                Err(ReplicaError::InUse { path: path() })
            }
            OpenFailure::Database(DatabaseError::Storage(StorageError::Io(err)))
                if !is_damage(&err) =>
            {
                Err(ReplicaError::Open {
                    path: path(),
                    source: err,
                })
            }
            OpenFailure::Database(err) => Ok(Err(err.to_string())),
            OpenFailure::Replica(err @ ReplicaError::Format { .. }) => Err(err),
            OpenFailure::Replica(err) => Ok(Err(err.to_string())),
            OpenFailure::Keys => Ok(Err(
                "it is sealed with keys that the keyring no longer has".to_owned()
            )),
        }
    }

    /// Format and data key, made for a new file.
    fn prepare(db: &Database, file: &Path, keyring: &Keyring) -> Result<DataKey, OpenFailure> {
        let txn = tried!("preparing", db.begin_write())?;
        let key = {
            let mut meta = tried!("preparing", txn.open_table(META))?;
            let format =
                tried!("reading the format", meta.get("format"))?.map(|v| v.value().to_vec());
            match format {
                None => {
                    let key = DataKey::generate().map_err(|_| ReplicaError::Seal)?;
                    tried!(
                        "preparing",
                        meta.insert("format", FORMAT.to_le_bytes().as_slice())
                    )?;
                    write_keys(&mut meta, &key, keyring)?;
                    key
                }
                Some(bytes) => {
                    let found = bytes.try_into().map(u32::from_le_bytes).unwrap_or(u32::MAX);
                    if found != FORMAT {
                        return Err(ReplicaError::Format {
                            path: file.to_path_buf(),
                            found,
                        }
                        .into());
                    }
                    let wrapped = tried!("reading the data key", meta.get("keys"))?
                        .map(|v| v.value().to_vec());
                    let wrapped: Vec<WrappedKey> = wrapped
                        .and_then(|json| serde_json::from_slice(&json).ok())
                        .unwrap_or_default();
                    DataKey::unwrap(&wrapped, keyring).ok_or(OpenFailure::Keys)?
                }
            }
        };
        for table in [NUMBERS, TENANTS, INDEX, FAULTY] {
            tried!("preparing", txn.open_table(table))?;
        }
        tried!("preparing", txn.commit())?;
        Ok(key)
    }

    /// Wraps the data key under the keys of another keyring, so that any of them opens the replica from now on.
    ///
    /// # Errors
    /// [`ReplicaError`] when it cannot be written; then the old keys still open it.
    pub fn rewrap(&self, keyring: &Keyring) -> Result<(), ReplicaError> {
        let txn = tried!("changing keys", self.db.begin_write())?;
        {
            let mut meta = tried!("changing keys", txn.open_table(META))?;
            write_keys(&mut meta, &self.key, keyring)?;
        }
        tried!("changing keys", txn.commit())
    }

    /// The cursor of the last batch; `None` before the first complete copy.
    ///
    /// # Errors
    /// [`ReplicaError::Storage`]. A cursor that cannot be read counts as none.
    pub fn cursor(&self) -> Result<Option<Cursor>, ReplicaError> {
        let txn = tried!("reading the cursor", self.db.begin_read())?;
        let meta = tried!("reading the cursor", txn.open_table(META))?;
        let cursor = tried!("reading the cursor", meta.get("cursor"))?;
        Ok(cursor.and_then(|json| serde_json::from_slice(json.value()).ok()))
    }

    /// Whether the replica holds a complete copy, however old.
    ///
    /// # Errors
    /// [`ReplicaError::Storage`].
    pub fn is_complete(&self) -> Result<bool, ReplicaError> {
        let txn = tried!("reading the cursor", self.db.begin_read())?;
        let meta = tried!("reading the cursor", txn.open_table(META))?;
        Ok(tried!("reading the cursor", meta.get("cursor"))?.is_some())
    }

    /// Keeps a cursor that moved although no row changed.
    ///
    /// # Errors
    /// [`ReplicaError::Storage`].
    pub fn keep_cursor(&self, cursor: &Cursor) -> Result<(), ReplicaError> {
        let txn = tried!("keeping the cursor", self.db.begin_write())?;
        {
            let mut meta = tried!("keeping the cursor", txn.open_table(META))?;
            write_cursor(&mut meta, cursor)?;
        }
        tried!("keeping the cursor", txn.commit())
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

    /// A moment of the replica: everything read through it is of one commit.
    ///
    /// # Errors
    /// [`ReplicaError::Storage`].
    pub fn view(&self) -> Result<View<'_>, ReplicaError> {
        let txn = tried!("reading", self.db.begin_read())?;
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
            bytes: std::fs::metadata(&self.file).map_or(0, |file| file.len()),
        })
    }

    /// Applies a batch with its cursor as one commit. `around` is called with what changed, right before the commit
    /// and again after it: whatever was built from the old rows must not be answered from in between.
    /// Blocking; to be called by one thread at a time.
    ///
    /// # Errors
    /// [`ReplicaError`]; then nothing was changed.
    pub fn apply(
        &self,
        mut incoming: Incoming,
        terms: &Terms,
        mut around: impl FnMut(&Applied),
    ) -> Result<(Applied, Cursor), ReplicaError> {
        let txn = tried!("writing", self.db.begin_write())?;
        let (applied, next) = {
            let mut writer = Writer {
                numbers: tried!("writing", txn.open_table(NUMBERS))?,
                tenants: tried!("writing", txn.open_table(TENANTS))?,
                index: tried!("writing", txn.open_table(INDEX))?,
                faulty: tried!("writing", txn.open_table(FAULTY))?,
                key: &self.key,
                terms,
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
            while let Some(rows) = incoming.rows.blocking_recv() {
                rows.into_iter().try_for_each(|row| writer.take(row))?;
            }
            let mut next = incoming
                .next
                .blocking_recv()
                .map_err(|_| ReplicaError::Abandoned)?;
            let applied = writer.finish(before)?;
            next.held = applied.held.is_some() || (next.held && !terms.settles_held);
            let mut meta = tried!("writing", txn.open_table(META))?;
            write_cursor(&mut meta, &next)?;
            (applied, next)
        };
        around(&applied);
        let committed = tried!("committing", txn.commit());
        around(&applied);
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

    /// What a comparison needs of every tenant, as [`crate::source::Session::digests`] reads it of Postgres.
    ///
    /// # Errors
    /// [`ReplicaError`] when it cannot be read.
    pub fn digests(&self) -> Result<BTreeMap<Uuid, Hashes>, ReplicaError> {
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

/// What is compared of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hashes {
    /// Of the tenant's document; `None` where there is none, or it no longer opens.
    pub rows: Option<DocHash>,
    /// How many numbers it has.
    pub count: u64,
    /// Of the hashes of its numbers, in their byte order.
    pub numbers: DocHash,
}

/// The tenants and tenants' numbers that differ, from the hashes of both sides.
#[derive(Debug, Default)]
pub struct Comparison {
    here: BTreeMap<Uuid, Hashes>,
    seen_rows: BTreeSet<Uuid>,
    seen_numbers: BTreeSet<Uuid>,
    /// What differs.
    pub cover: Cover,
    /// Tenants compared.
    pub tenants: u64,
    /// Numbers compared.
    pub numbers: u64,
    /// Whether any tenant of Postgres is known here.
    pub common: bool,
}

impl Comparison {
    /// Begins with what is here.
    #[must_use]
    pub fn new(here: BTreeMap<Uuid, Hashes>) -> Self {
        Self {
            here,
            ..Self::default()
        }
    }

    /// Takes one hash of Postgres.
    pub fn take(&mut self, id: Uuid, digest: TenantDigest) {
        let here = self.here.get(&id);
        match digest {
            TenantDigest::Rows(hash) => {
                self.tenants = self.tenants.saturating_add(1);
                self.seen_rows.insert(id);
                self.common |= here.is_some();
                if here.and_then(|here| here.rows) != Some(hash) {
                    self.cover.tenants.insert(id);
                }
            }
            TenantDigest::Numbers { count, hash } => {
                self.numbers = self.numbers.saturating_add(count);
                self.seen_numbers.insert(id);
                if here.is_none_or(|here| (here.count, here.numbers) != (count, hash)) {
                    self.cover.numbers_of.insert(id);
                }
            }
        }
    }

    /// Adds what is here and not in Postgres.
    #[must_use]
    pub fn finish(mut self) -> Self {
        for (id, here) in &self.here {
            if !self.seen_rows.contains(id) && here.rows.is_some() {
                self.cover.tenants.insert(*id);
            }
            if !self.seen_numbers.contains(id) && here.count > 0 {
                self.cover.numbers_of.insert(*id);
            }
        }
        self.common |= self.here.is_empty();
        self
    }
}

type WriteTable<'t> = redb::Table<'t, &'static [u8], &'static [u8]>;

/// One batch being written.
struct Writer<'t, 'r> {
    numbers: WriteTable<'t>,
    tenants: WriteTable<'t>,
    index: WriteTable<'t>,
    faulty: WriteTable<'t>,
    key: &'r DataKey,
    terms: &'r Terms,
    applied: Applied,
    /// The tenant whose numbers come now, and those that came.
    group: Option<(Uuid, BTreeSet<String>)>,
    finished: BTreeSet<Uuid>,
    seen_tenants: BTreeSet<Uuid>,
    seen_numbers: BTreeSet<String>,
    /// Numbers that are to go, with the tenant they must still belong to then.
    gone: BTreeSet<(Option<Uuid>, String)>,
}

impl Writer<'_, '_> {
    fn take(&mut self, row: Row) -> Result<(), ReplicaError> {
        self.applied.read = self.applied.read.saturating_add(1);
        match row {
            Row::Tenant { id, document } => self.tenant(id, &document),
            Row::Number {
                tenant,
                e164,
                document,
            } => self.number(tenant, &e164, &document),
        }
    }

    fn tenant(&mut self, id: Uuid, document: &str) -> Result<(), ReplicaError> {
        if self.terms.cover.tenants.contains(&id) {
            self.seen_tenants.insert(id);
        }
        let was = match tried!(
            "reading a tenant",
            self.tenants.get(id.as_bytes().as_slice())
        )? {
            Some(value) => Some(open_tenant(self.key, id, value.value())),
            None => None,
        };
        if let Some(Ok(was)) = &was
            && was.hash == DocHash::of(document)
        {
            return Ok(());
        }
        let what = if was.is_some() {
            What::Different
        } else {
            What::Missing
        };
        let was = was.and_then(Result::ok);
        let limits = &self.terms.limits;
        let record = unpanicked(|| admit::tenant(id, document, was.as_ref(), limits))
            .unwrap_or_else(|| TenantRecord {
                hash: DocHash::of(document),
                bundle: was
                    .as_ref()
                    .map(|was| was.bundle.clone())
                    .unwrap_or_default(),
                faults: vec![poison(Table::Tenants, id.to_string(), was.is_some())],
            });
        let json = serde_json::to_vec(&record).map_err(|_| ReplicaError::Seal)?;
        let sealed = self
            .key
            .seal(&tenant_aad(id), &json)
            .map_err(|_| ReplicaError::Seal)?;
        tried!(
            "writing a tenant",
            self.tenants
                .insert(id.as_bytes().as_slice(), sealed.as_slice())
        )?;
        self.applied.tenants.insert(id);
        self.wrote(Key::Tenant(id), what, None);
        Ok(())
    }

    fn number(&mut self, tenant: Uuid, e164: &str, document: &str) -> Result<(), ReplicaError> {
        self.saw_number(tenant, e164)?;
        let hash = DocHash::of(document);
        let was = match tried!("reading a number", self.numbers.get(e164.as_bytes()))? {
            Some(value) => Some(open_number(self.key, e164, value.value())),
            None => None,
        };
        if let Some(Ok(was)) = &was
            && was.tenant == tenant
            && was.record.hash == hash
        {
            return Ok(());
        }
        let what = if was.is_some() {
            What::Different
        } else {
            What::Missing
        };
        // Last good is of the same key: a number that moved to another tenant does not take its old row along.
        let was_good = was.and_then(Result::ok);
        if let Some(was) = &was_good
            && was.tenant != tenant
        {
            tried!(
                "writing a number",
                self.index.remove(index_key(was.tenant, e164).as_slice())
            )?;
        }
        let previous = was_good
            .as_ref()
            .filter(|was| was.tenant == tenant)
            .map(|was| &was.record);
        let record = unpanicked(|| admit::number(e164, document, previous)).unwrap_or_else(|| {
            NumberRecord {
                hash,
                row: previous.and_then(|was| was.row.clone()),
                faults: vec![poison(
                    Table::TenantPhoneNumbers,
                    e164.to_owned(),
                    previous.is_some(),
                )],
            }
        });
        let json = serde_json::to_vec(&record).map_err(|_| ReplicaError::Seal)?;
        let sealed = self
            .key
            .seal(&number_aad(tenant, e164), &json)
            .map_err(|_| ReplicaError::Seal)?;
        let mut value = Vec::with_capacity(sealed.len().saturating_add(16));
        value.extend_from_slice(tenant.as_bytes());
        value.extend_from_slice(&sealed);
        tried!(
            "writing a number",
            self.numbers.insert(e164.as_bytes(), value.as_slice())
        )?;
        tried!(
            "writing a number",
            self.index
                .insert(index_key(tenant, e164).as_slice(), hash.0.as_slice())
        )?;
        self.faults(e164, record.faults)?;
        self.changed_number(e164);
        self.wrote(Key::Number(e164.to_owned()), what, Some(tenant));
        Ok(())
    }

    /// Keeps account of which numbers of a tenant came, tenant by tenant.
    fn saw_number(&mut self, tenant: Uuid, e164: &str) -> Result<(), ReplicaError> {
        if self.terms.cover.numbers.contains(e164) {
            self.seen_numbers.insert(e164.to_owned());
        }
        match &mut self.group {
            Some((of, seen)) if *of == tenant => {
                seen.insert(e164.to_owned());
            }
            _ => {
                self.close_group()?;
                if self.terms.cover.numbers_of.contains(&tenant) && !self.finished.contains(&tenant)
                {
                    self.group = Some((tenant, BTreeSet::from([e164.to_owned()])));
                }
            }
        }
        Ok(())
    }

    fn close_group(&mut self) -> Result<(), ReplicaError> {
        if let Some((tenant, seen)) = self.group.take() {
            self.numbers_gone(tenant, &seen)?;
            self.finished.insert(tenant);
        }
        Ok(())
    }

    /// Numbers of a tenant that are here and did not come.
    fn numbers_gone(&mut self, tenant: Uuid, seen: &BTreeSet<String>) -> Result<(), ReplicaError> {
        let first = index_key(tenant, "");
        for entry in tried!("reading numbers", self.index.range(first.as_slice()..))? {
            let (key, _) = tried!("reading numbers", entry)?;
            match split_index(key.value()) {
                Some((of, e164)) if of == tenant => {
                    if !seen.contains(e164) {
                        self.gone.insert((Some(tenant), e164.to_owned()));
                    }
                }
                _ => break,
            }
        }
        Ok(())
    }

    fn finish(mut self, before: (u64, u64)) -> Result<Applied, ReplicaError> {
        self.close_group()?;
        let none = BTreeSet::new();
        let cover = &self.terms.cover;
        let mut gone_tenants = Vec::new();
        for id in cover.tenants.difference(&self.seen_tenants.clone()) {
            if tried!(
                "reading a tenant",
                self.tenants.get(id.as_bytes().as_slice())
            )?
            .is_some()
            {
                gone_tenants.push(*id);
                // No number answers without its tenant; one that moved on belongs to another by now.
                self.numbers_gone(*id, &none)?;
            }
        }
        for id in cover.numbers_of.difference(&self.finished.clone()) {
            self.numbers_gone(*id, &none)?;
        }
        for e164 in cover.numbers.difference(&self.seen_numbers.clone()) {
            self.gone.insert((None, e164.clone()));
        }
        let gone = self.still_there()?;
        let lost = (count(gone_tenants.len()), count(gone.len()));
        let held = change::holds_loss(lost.0, before.0, self.terms.hold_percent)
            || change::holds_loss(lost.1, before.1, self.terms.hold_percent);
        if held && !self.terms.accept_loss {
            self.applied.held = Some(HeldLoss {
                tenants: lost.0,
                numbers: lost.1,
            });
            return Ok(self.applied);
        }
        for (tenant, e164) in gone {
            tried!("removing a number", self.numbers.remove(e164.as_bytes()))?;
            tried!(
                "removing a number",
                self.index.remove(index_key(tenant, &e164).as_slice())
            )?;
            self.faults(&e164, Vec::new())?;
            self.changed_number(&e164);
            self.removed(Key::Number(e164), Some(tenant));
        }
        for id in gone_tenants {
            tried!(
                "removing a tenant",
                self.tenants.remove(id.as_bytes().as_slice())
            )?;
            self.applied.tenants.insert(id);
            self.removed(Key::Tenant(id), None);
        }
        Ok(self.applied)
    }

    /// The numbers that are to go and are here, under the tenant they are to go from.
    fn still_there(&mut self) -> Result<BTreeSet<(Uuid, String)>, ReplicaError> {
        let mut there = BTreeSet::new();
        for (from, e164) in std::mem::take(&mut self.gone) {
            let tenant = match tried!("reading a number", self.numbers.get(e164.as_bytes()))? {
                Some(value) => value
                    .value()
                    .get(..16)
                    .and_then(|id| Uuid::from_slice(id).ok()),
                None => None,
            };
            match (tenant, from) {
                (Some(tenant), None) => {
                    there.insert((tenant, e164));
                }
                (Some(tenant), Some(from)) if tenant == from => {
                    there.insert((tenant, e164));
                }
                // It moved on: only its old place in the index goes.
                (_, Some(from)) => {
                    tried!(
                        "removing a number",
                        self.index.remove(index_key(from, &e164).as_slice())
                    )?;
                }
                (None, None) => {}
            }
        }
        Ok(there)
    }

    fn faults(&mut self, e164: &str, faults: Vec<Fault>) -> Result<(), ReplicaError> {
        let was_faulty = tried!("reading faults", self.faulty.get(e164.as_bytes()))?.is_some();
        if faults.is_empty() && !was_faulty {
            return Ok(());
        }
        if faults.is_empty() {
            tried!("writing faults", self.faulty.remove(e164.as_bytes()))?;
        } else {
            tried!(
                "writing faults",
                self.faulty.insert(e164.as_bytes(), [].as_slice())
            )?;
        }
        self.applied
            .faults
            .extend(e164.parse().ok().map(|number| (number, faults)));
        Ok(())
    }

    fn changed_number(&mut self, e164: &str) {
        if self.applied.numbers.len() < NAMED {
            self.applied.numbers.extend(e164.parse::<E164>().ok());
        } else {
            self.applied.everything = true;
        }
    }

    fn wrote(&mut self, key: Key, what: What, tenant: Option<Uuid>) {
        self.applied.written = self.applied.written.saturating_add(1);
        self.report(key, what, tenant);
    }

    fn removed(&mut self, key: Key, tenant: Option<Uuid>) {
        self.applied.removed = self.applied.removed.saturating_add(1);
        self.report(key, What::Surplus, tenant);
    }

    fn report(&mut self, key: Key, what: What, tenant: Option<Uuid>) {
        let told = &self.terms.told;
        let was_told = match &key {
            Key::Tenant(id) => told.tenants.contains(id),
            Key::Number(e164) => {
                told.numbers.contains(e164)
                    || tenant.is_some_and(|id| told.numbers_of.contains(&id))
            }
        };
        if !was_told {
            self.applied.untold = self.applied.untold.saturating_add(1);
        }
        if self.applied.differences.len() < REPORTED {
            self.applied.differences.push((key, what));
        }
    }
}

/// Poison stays in its row, even one that we do not foresee.
fn unpanicked<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}

fn poison(table: Table, key: String, last_good: bool) -> Fault {
    let detail =
        "reading the row failed in a way that is an error of sidetone; please report it".to_owned();
    Fault {
        table,
        key,
        reason: Reason::Malformed,
        detail,
        last_good,
    }
}

fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
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

fn number_aad(tenant: Uuid, e164: &str) -> Vec<u8> {
    [b"number".as_slice(), tenant.as_bytes(), e164.as_bytes()].concat()
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
    let (tenant, sealed) = value.split_at_checked(16).ok_or_else(wrong)?;
    let tenant = Uuid::from_slice(tenant).map_err(|_| wrong())?;
    let json = key
        .open(&number_aad(tenant, e164), sealed)
        .map_err(|_| wrong())?;
    let record = serde_json::from_slice(&json).map_err(|_| wrong())?;
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
    Replica(ReplicaError),
    Keys,
}

impl From<ReplicaError> for OpenFailure {
    fn from(err: ReplicaError) -> Self {
        Self::Replica(err)
    }
}

/// Whether an error of the file is one of its content, not of the disk or of rights.
fn is_damage(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData
    )
}

/// Makes the directory, and refuses one that others can write or read.
fn safe_directory(dir: &Path) -> Result<(), ReplicaError> {
    let open = |source| ReplicaError::Open {
        path: dir.to_path_buf(),
        source,
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(open)?;
    let found = std::fs::metadata(dir).map_err(open)?;
    let not_safe = |what: String| ReplicaError::Unsafe {
        path: dir.to_path_buf(),
        what,
    };
    let me = rustix::process::geteuid().as_raw();
    if found.uid() != me {
        return Err(not_safe(format!(
            "belongs to uid {}, not to this process's {me}",
            found.uid()
        )));
    }
    if found.permissions().mode() & 0o077 != 0 {
        return Err(not_safe(format!(
            "mode {:04o} lets others in",
            found.permissions().mode() & 0o7777
        )));
    }
    Ok(())
}

/// Whether a running daemon holds the replica in this directory.
#[must_use]
pub fn in_use(dir: &Path) -> bool {
    let locked = |lock: File| matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock));
    File::open(dir.join("lock")).is_ok_and(locked)
}

/// Held for the life of the process; the kernel lets go of it however the process ends.
fn lock_directory(dir: &Path) -> Result<File, ReplicaError> {
    let open = |source| ReplicaError::Open {
        path: dir.to_path_buf(),
        source,
    };
    let lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join("lock"))
        .map_err(open)?;
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(ReplicaError::InUse {
            path: dir.to_path_buf(),
        }),
        Err(err) => Err(open(err.into())),
    }
}

/// Renames a file that is of no use, and removes older ones of its kind.
fn set_aside(file: &Path) -> io::Result<PathBuf> {
    let now = jiff::Timestamp::now()
        .strftime("%Y%m%dT%H%M%S%3fZ")
        .to_string();
    let to = file.with_extension(format!("damaged-{now}"));
    std::fs::rename(file, &to)?;
    let Some(dir) = file.parent() else {
        return Ok(to);
    };
    File::open(dir)?.sync_all()?;
    let mut aside: Vec<PathBuf> = std::fs::read_dir(dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|ext| ext.to_string_lossy().starts_with("damaged-"))
        })
        .collect();
    aside.sort();
    let surplus = aside.len().saturating_sub(KEPT_ASIDE);
    aside
        .iter()
        .take(surplus)
        .try_for_each(std::fs::remove_file)?;
    Ok(to)
}
