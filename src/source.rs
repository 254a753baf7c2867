//! Postgres: where it is, connect, LISTEN, pull, load. All SQL is in this folder.
//!
//! One session per node. It pulls with one statement; what is larger is read in one repeatable-read transaction.
//! Nothing here decides what a pull means: that is `change`.

mod document;
pub mod inspect;
pub mod migrate;
mod shown;
mod sql;
mod target;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt, future, pin_mut, stream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{AsyncMessage, Client, Statement};
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use crate::change::{Changed, Header, Identity, Key, Start};
use crate::row::DocHash;

pub use document::Columns;
pub use target::{Role, Target, TargetError};

/// Rows in one message to the writer; bounds the memory of a load together with [`BYTES_PER_CHUNK`].
const ROWS_PER_CHUNK: usize = 512;
/// Bytes in one message to the writer, but for one row that is larger alone.
const BYTES_PER_CHUNK: usize = 1 << 20;
/// Names in one query of a load.
const NAMES_PER_QUERY: usize = 5000;

/// Why Postgres did not answer.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Not reached: name, TCP.
    #[error("cannot connect to {place}: {what}")]
    Connect {
        /// Hosts without user or password.
        place: String,
        /// The chain of causes.
        what: String,
    },
    /// Reached, and not proved to be the server that is meant; nothing secret was sent.
    #[error("no trusted connection to {place}: {what}")]
    Untrusted {
        /// Hosts without user or password.
        place: String,
        /// What is wrong with it and what to do.
        what: String,
    },
    /// Reached and refused: password, role, database, number of connections.
    #[error("{place} refused this node: {what}")]
    Rejected {
        /// Hosts without user or password.
        place: String,
        /// What Postgres said and what to do.
        what: String,
    },
    /// The database is no UTF-8 database.
    #[error("the database's encoding is {0}; sidetone needs UTF8")]
    Encoding(String),
    /// The schema `sidetone` is not there.
    #[error(
        "the schema sidetone is not in the database; run `sidetone migrate` as the owner of the tables"
    )]
    NoSchema,
    /// No complete answer in time: the connection is taken for dead.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The connection ended.
    #[error("connection lost: {0}")]
    Lost(String),
    /// Postgres refused a statement.
    #[error("{doing}: {what}")]
    Statement {
        /// What was tried.
        doing: &'static str,
        /// What Postgres said.
        what: String,
    },
    /// An answer was not of the form asked for.
    #[error("{doing}: unexpected answer: {what}")]
    Shape {
        /// What was tried.
        doing: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// The one who wanted the rows is gone.
    #[error("nobody takes the rows any more")]
    NobodyReads,
    /// Several servers stand behind the URL, and this is not the one that was meant.
    #[error("another server than the one that rows are read from")]
    OtherServer,
}

impl SourceError {
    fn of(doing: &'static str, err: &tokio_postgres::Error) -> Self {
        match err.as_db_error() {
            None => Self::Lost(chain(err)),
            Some(db)
                if *db.code() == SqlState::ADMIN_SHUTDOWN
                    || *db.code() == SqlState::CRASH_SHUTDOWN =>
            {
                Self::Lost(db.message().to_owned())
            }
            Some(db) => Self::Statement {
                doing,
                what: format!("{} (SQLSTATE {})", db.message(), db.code().code()),
            },
        }
    }

    /// Whether servers were reached and none of them takes writes.
    #[must_use]
    pub fn only_standby(&self) -> bool {
        matches!(self, Self::Connect { what, .. } if what.contains("does not allow writes"))
    }

    /// Whether there was no connection to speak of, or none any more: it costs the server nothing to be asked again.
    #[must_use]
    pub fn is_of_the_connection(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Untrusted { .. } | Self::Timeout(_) | Self::Lost(_) => {
                true
            }
            // The server is starting or stopping, and says so before it asks for a password.
            Self::Rejected { what, .. } => what.contains("57P03"),
            _ => false,
        }
    }

    fn shape(doing: &'static str, what: impl std::fmt::Display) -> Self {
        Self::Shape {
            doing,
            what: what.to_string(),
        }
    }
}

/// An error with its causes on one line.
fn chain(err: &(dyn std::error::Error + 'static)) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        let more = err.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = err.source();
    }
    text
}

/// A row as it comes: its key and its document.
#[derive(Debug, Clone)]
pub enum Row {
    /// A number in the columns of its document.
    Columns(Columns),
    /// A number.
    Number {
        /// Its tenant.
        tenant: Uuid,
        /// The column `e164`.
        e164: String,
        /// The document.
        document: String,
    },
    /// A tenant with everything but its numbers.
    Tenant {
        /// Its id.
        id: Uuid,
        /// The document.
        document: String,
    },
}

impl Row {
    fn bytes(&self) -> usize {
        match self {
            Self::Columns(row) => row.bytes(),
            Self::Number { document, .. } | Self::Tenant { document, .. } => document.len(),
        }
    }
}

/// What one pull brought.
#[derive(Debug)]
pub struct Pulled {
    /// Snapshot, identity and the rest.
    pub header: Header,
    /// Every key that changed since the cursor, or the first fifty thousand rows of the log.
    pub changed: Vec<Changed>,
    /// Whether `changed` is all and `rows` holds the rows of its numbers and tenants.
    pub complete: bool,
    /// The rows of those keys that still exist.
    pub rows: Vec<Row>,
}

/// Doorbells: a cell, never a queue.
#[derive(Debug, Default)]
pub struct Doorbell {
    ring: Notify,
    newest: AtomicU64,
    count: AtomicU64,
}

impl Doorbell {
    /// Waits for a ring since the last time this returned.
    pub async fn rung(&self) {
        self.ring.notified().await;
    }

    /// The highest transaction id that rang, 0 for none. A payload is never trusted further than "pull again".
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.newest.load(Ordering::Acquire)
    }

    /// Takes the number of rings since the last call.
    #[must_use]
    pub fn take_count(&self) -> u64 {
        self.count.swap(0, Ordering::AcqRel)
    }

    /// Whether it rang since [`Self::take_count`].
    #[must_use]
    pub fn rang(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Forgets the highest transaction id: it never became visible.
    pub fn forget(&self, xid: u64) {
        let _ = self
            .newest
            .compare_exchange(xid, 0, Ordering::AcqRel, Ordering::Acquire);
    }

    fn push(&self, payload: &str) {
        if let Ok(xid) = payload.parse::<u64>() {
            self.newest.fetch_max(xid, Ordering::AcqRel);
        }
        self.count.fetch_add(1, Ordering::AcqRel);
        self.ring.notify_one();
    }
}

/// One connection to Postgres.
pub struct Session {
    client: Client,
    driver: JoinHandle<()>,
    ended: CancellationToken,
    doorbell: Arc<Doorbell>,
    loaded: AtomicU64,
    pull: Option<Statement>,
    held: Option<Vec<String>>,
    statement_timeout: Duration,
    /// Postgres's version.
    pub server_version: String,
    /// Connected to a standby: no LISTEN there.
    pub recovery: bool,
    /// Whether texts are ordered by their bytes where nothing else is said.
    orders_by_bytes: bool,
    /// The server that the session was opened with.
    pub identity: Identity,
    backend_pid: i32,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Session {
    /// Connects and makes sure that the session can be used. Every step together takes at most `connect_timeout`.
    ///
    /// # Errors
    /// [`SourceError`]: not reached, refused, wrong encoding, no schema, too slow.
    pub async fn open(
        target: &Target,
        role: Role,
        held: Option<Vec<String>>,
    ) -> Result<Self, SourceError> {
        let limit = target.connect_timeout;
        tokio::time::timeout(limit, Self::connect(target, role, held))
            .await
            .unwrap_or(Err(SourceError::Timeout(limit)))
    }

    async fn connect(
        target: &Target,
        role: Role,
        held: Option<Vec<String>>,
    ) -> Result<Self, SourceError> {
        let (client, mut connection) = target
            .tokio(role)
            .connect(target.tls.clone())
            .await
            .map_err(|err| {
                let said = err.as_db_error().map(|db| (db.code().code(), db.message()));
                target::failure(&target.place, &err, said)
            })?;
        let doorbell = Arc::new(Doorbell::default());
        let ended = CancellationToken::new();
        let driver = {
            let doorbell = Arc::clone(&doorbell);
            let guard: DropGuard = ended.clone().drop_guard();
            tokio::spawn(async move {
                let _guard = guard;
                let messages = stream::poll_fn(move |cx| connection.poll_message(cx));
                pin_mut!(messages);
                loop {
                    match messages.try_next().await {
                        Ok(Some(AsyncMessage::Notification(note)))
                            if note.channel() == "sidetone" =>
                        {
                            doorbell.push(note.payload());
                        }
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(err) => {
                            tracing::debug!(error = %chain(&err), "connection to Postgres ended");
                            break;
                        }
                    }
                }
            })
        };
        let mut session = Self {
            client,
            driver,
            ended,
            doorbell,
            loaded: AtomicU64::new(0),
            pull: None,
            held,
            statement_timeout: target.statement_timeout,
            server_version: String::new(),
            recovery: false,
            orders_by_bytes: false,
            identity: Identity::default(),
            backend_pid: 0,
        };
        session.check().await?;
        Ok(session)
    }

    async fn check(&mut self) -> Result<(), SourceError> {
        const DOING: &str = "checking the session";
        let row = self
            .client
            .query_typed_one(sql::SESSION, &[])
            .await
            .map_err(|err| SourceError::of(DOING, &err))?;
        let read = |err: tokio_postgres::Error| SourceError::shape(DOING, chain(&err));
        self.server_version = row.try_get(0).map_err(read)?;
        let encoding: String = row.try_get(1).map_err(read)?;
        self.backend_pid = row.try_get(3).map_err(read)?;
        self.identity = parse(DOING, &row.try_get::<_, String>(4).map_err(read)?)?;
        self.recovery = self.identity.recovery;
        self.orders_by_bytes = row.try_get(5).map_err(read)?;
        if encoding != "UTF8" {
            return Err(SourceError::Encoding(encoding));
        }
        if !row.try_get::<_, bool>(2).map_err(read)? {
            return Err(SourceError::NoSchema);
        }
        let pull = self
            .client
            .prepare(sql::PULL)
            .await
            .map_err(|err| SourceError::of("preparing the pull", &err))?;
        self.pull = Some(pull);
        Ok(())
    }

    /// Asks for doorbells.
    ///
    /// # Errors
    /// [`SourceError::Statement`] where the server refuses (a standby, a damaged queue): poll instead.
    pub async fn listen(&self) -> Result<(), SourceError> {
        self.client
            .batch_execute("listen sidetone")
            .await
            .map_err(|err| SourceError::of("LISTEN", &err))
    }

    /// Statements are planned once; after this, once more. A log that was empty then may be long by now.
    ///
    /// # Errors
    /// [`SourceError`] as for every statement.
    pub async fn plan_anew(&self) -> Result<(), SourceError> {
        self.run("discard plans").await
    }

    /// Whether doorbells still reach this very session.
    ///
    /// # Errors
    /// [`SourceError`] as for every statement.
    pub async fn still_listens(&self) -> Result<bool, SourceError> {
        const DOING: &str = "checking LISTEN";
        let row = self
            .client
            .query_typed_one(sql::LISTENING, &[])
            .await
            .map_err(|err| SourceError::of(DOING, &err))?;
        let read = |err: tokio_postgres::Error| SourceError::shape(DOING, chain(&err));
        Ok(row.try_get::<_, i32>(0).map_err(read)? == self.backend_pid
            && row.try_get::<_, bool>(1).map_err(read)?)
    }

    /// How far the primary has written its log.
    ///
    /// # Errors
    /// [`SourceError`] as for every statement.
    pub async fn written(&self) -> Result<u64, SourceError> {
        const DOING: &str = "asking how far the log is written";
        let row = self
            .client
            .query_typed_one(sql::WRITTEN, &[])
            .await
            .map_err(|err| SourceError::of(DOING, &err))?;
        let wal: i64 = row
            .try_get(0)
            .map_err(|err| SourceError::shape(DOING, chain(&err)))?;
        Ok(wal.unsigned_abs())
    }

    /// How far a standby has replayed the primary's log, and how long ago the newest transaction among that was
    /// committed there; the latter unknown where none was replayed since the standby started.
    ///
    /// # Errors
    /// [`SourceError`] as for every statement.
    pub async fn replayed(&self) -> Result<(u64, Option<Duration>), SourceError> {
        const DOING: &str = "asking how far the log is replayed";
        let row = self
            .client
            .query_typed_one(sql::REPLAYED, &[])
            .await
            .map_err(|err| SourceError::of(DOING, &err))?;
        let read = |err: tokio_postgres::Error| SourceError::shape(DOING, chain(&err));
        let wal: Option<i64> = row.try_get(0).map_err(read)?;
        let age: Option<i64> = row.try_get(1).map_err(read)?;
        Ok((
            wal.unwrap_or(0).unsigned_abs(),
            age.map(|ms| Duration::from_millis(ms.unsigned_abs())),
        ))
    }

    /// Where doorbells arrive.
    #[must_use]
    pub fn doorbell(&self) -> Arc<Doorbell> {
        Arc::clone(&self.doorbell)
    }

    /// Ends when the connection does.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// What committed since the cursor, with its rows, as of one snapshot, in one round trip.
    ///
    /// # Errors
    /// [`SourceError`] as for every statement. The caller sets the limit of time.
    pub async fn pull(&self, start: &Start, keys: usize) -> Result<Pulled, SourceError> {
        const DOING: &str = "pull";
        let Some(statement) = &self.pull else {
            return Err(SourceError::shape(DOING, "not prepared"));
        };
        let (xid, also) = start_params(start);
        let keys = i64::try_from(keys).unwrap_or(i64::MAX);
        let rows = self
            .client
            .query_raw(statement, slice(&[&xid, &also, &self.held, &keys]))
            .await
            .map_err(|err| SourceError::of(DOING, &err))?;
        pin_mut!(rows);
        let mut header = None;
        let mut pulled = (Vec::new(), Vec::new());
        while let Some(row) = rows
            .try_next()
            .await
            .map_err(|err| SourceError::of(DOING, &err))?
        {
            let read = |err: tokio_postgres::Error| SourceError::shape(DOING, chain(&err));
            let (part, key, document): (i32, String, String) = (
                row.try_get(0).map_err(read)?,
                row.try_get(1).map_err(read)?,
                row.try_get(2).map_err(read)?,
            );
            match part {
                0 => header = Some((key == "whole", parse::<Header>(DOING, &document)?)),
                1 => {
                    let (id, age_us): (String, u64) = parse(DOING, &document)?;
                    pulled.0.push(Changed {
                        key: Key::read(&key, &id),
                        age: Duration::from_micros(age_us),
                    });
                }
                2 => {
                    let (tenant, e164) = key
                        .split_once(' ')
                        .ok_or_else(|| SourceError::shape(DOING, "number without tenant"))?;
                    pulled.1.push(Row::Number {
                        tenant: uuid(DOING, tenant)?,
                        e164: e164.to_owned(),
                        document,
                    });
                }
                _ => pulled.1.push(Row::Tenant {
                    id: uuid(DOING, &key)?,
                    document,
                }),
            }
        }
        let (complete, header) = header.ok_or_else(|| SourceError::shape(DOING, "no header"))?;
        Ok(Pulled {
            header,
            changed: pulled.0,
            complete,
            rows: pulled.1,
        })
    }

    /// Begins a longer look: everything read until [`Session::end`] is of one snapshot, the one in the header.
    ///
    /// # Errors
    /// [`SourceError`] as for every statement.
    pub async fn begin(&self) -> Result<Header, SourceError> {
        const DOING: &str = "beginning a snapshot";
        self.run("begin isolation level repeatable read, read only")
            .await?;
        let row = self
            .limit(self.client.query_typed_one(sql::HEADER, &[]), DOING)
            .await?;
        parse(
            DOING,
            &row.try_get::<_, String>(0)
                .map_err(|err| SourceError::shape(DOING, chain(&err)))?,
        )
    }

    /// Ends it.
    ///
    /// # Errors
    /// [`SourceError`] as for every statement.
    pub async fn end(&self) -> Result<(), SourceError> {
        self.run("commit").await
    }

    /// The keys that changed since the cursor, in the snapshot begun.
    ///
    /// # Errors
    /// [`SourceError`] as for every statement.
    pub async fn keys(&self, start: &Start) -> Result<Vec<Changed>, SourceError> {
        const DOING: &str = "reading the change log";
        let (xid, also) = start_params(start);
        let statement = self.limit(self.client.prepare(sql::KEYS), DOING).await?;
        let rows = self
            .limit(self.client.query(&statement, &[&xid, &also]), DOING)
            .await?;
        rows.iter()
            .map(|row| {
                let read = |err: tokio_postgres::Error| SourceError::shape(DOING, chain(&err));
                let (kind, id, age): (String, String, i64) = (
                    row.try_get(0).map_err(read)?,
                    row.try_get(1).map_err(read)?,
                    row.try_get(2).map_err(read)?,
                );
                Ok(Changed {
                    key: Key::read(&kind, &id),
                    age: Duration::from_micros(age.unsigned_abs()),
                })
            })
            .collect()
    }

    /// Hash of every held tenant, and where `numbers` are asked for count and hash of its numbers, in the snapshot begun.
    ///
    /// # Errors
    /// [`SourceError`] as for every statement.
    pub async fn digests(
        &self,
        numbers: bool,
        mut each: impl FnMut(Uuid, TenantDigest),
    ) -> Result<(), SourceError> {
        const DOING: &str = "reading hashes";
        let queries = [(sql::TENANT_DIGESTS, false), (sql::NUMBER_DIGESTS, true)];
        for (query, numbers) in queries.into_iter().take(if numbers { 2 } else { 1 }) {
            let statement = self.limit(self.client.prepare(query), DOING).await?;
            let rows = self
                .limit(
                    self.client.query_raw(&statement, slice(&[&self.held])),
                    DOING,
                )
                .await?;
            pin_mut!(rows);
            while let Some(row) = self.limit(rows.try_next(), DOING).await? {
                let read = |err: tokio_postgres::Error| SourceError::shape(DOING, chain(&err));
                let hash = |text: String| {
                    DocHash::from_hex(&text).ok_or_else(|| SourceError::shape(DOING, "no SHA-256"))
                };
                let id: Uuid = row.try_get(0).map_err(read)?;
                let digest = if numbers {
                    let count: i64 = row.try_get(1).map_err(read)?;
                    TenantDigest::Numbers {
                        count: count.unsigned_abs(),
                        hash: hash(row.try_get(2).map_err(read)?)?,
                    }
                } else {
                    TenantDigest::Rows(hash(row.try_get(1).map_err(read)?)?)
                };
                each(id, digest);
            }
        }
        Ok(())
    }

    /// How many rows the load under way has brought so far.
    #[must_use]
    pub fn loaded(&self) -> u64 {
        self.loaded.load(Ordering::Acquire)
    }

    const LOADING: &str = "loading rows";

    /// Streams rows of the snapshot begun to whoever writes them, tenants first.
    ///
    /// # Errors
    /// [`SourceError::NobodyReads`] when the writer gave up, else as for every statement.
    pub async fn load(&self, what: &Load, to: &mpsc::Sender<Vec<Row>>) -> Result<(), SourceError> {
        self.loaded.store(0, Ordering::Release);
        let mut chunk = Chunk::default();
        match what {
            Load::Everything => {
                self.tenants(sql::ALL_TENANTS, None, &mut chunk, to).await?;
                self.all_numbers(&mut chunk, to).await?;
            }
            Load::AllNumbers { tenants } => {
                self.tenants(sql::TENANTS, Some(tenants), &mut chunk, to)
                    .await?;
                self.all_numbers(&mut chunk, to).await?;
            }
            Load::Some {
                tenants,
                numbers_of,
                numbers,
            } => {
                self.tenants(sql::TENANTS, Some(tenants), &mut chunk, to)
                    .await?;
                self.numbers(&sql::NUMBERS_OF, Some(numbers_of), &mut chunk, to)
                    .await?;
                self.numbers(&sql::NUMBERS, Some(numbers), &mut chunk, to)
                    .await?;
            }
        }
        chunk.send(to, &self.loaded).await
    }

    /// All tenants, or these.
    async fn tenants(
        &self,
        query: &str,
        names: Option<&[Uuid]>,
        chunk: &mut Chunk,
        to: &mpsc::Sender<Vec<Row>>,
    ) -> Result<(), SourceError> {
        if names.is_some_and(<[Uuid]>::is_empty) {
            return Ok(());
        }
        let statement = self
            .limit(self.client.prepare(query), Self::LOADING)
            .await?;
        self.ask(&statement, Form::Tenants, names, chunk, to).await
    }

    async fn all_numbers(
        &self,
        chunk: &mut Chunk,
        to: &mpsc::Sender<Vec<Row>>,
    ) -> Result<(), SourceError> {
        let query = if self.orders_by_bytes {
            &sql::ALL_NUMBERS_AS_INDEXED
        } else {
            &sql::ALL_NUMBERS
        };
        self.numbers::<Uuid>(query, None, chunk, to).await
    }

    /// All numbers, or those named, in the form that costs less.
    async fn numbers<T: ToSql + Sync>(
        &self,
        query: &sql::Numbers,
        names: Option<&[T]>,
        chunk: &mut Chunk,
        to: &mpsc::Sender<Vec<Row>>,
    ) -> Result<(), SourceError> {
        if names.is_some_and(<[T]>::is_empty) {
            return Ok(());
        }
        let columns = self
            .limit(self.client.prepare(query.columns), Self::LOADING)
            .await?;
        let (statement, form) = if document::is_of_the_model(&columns) {
            (columns, Form::Columns)
        } else {
            let documents = self.client.prepare(query.documents);
            let documents = self.limit(documents, Self::LOADING).await?;
            (documents, Form::Documents)
        };
        self.ask(&statement, form, names, chunk, to).await
    }

    /// Asks once, or once for so many names each.
    async fn ask<T: ToSql + Sync>(
        &self,
        statement: &Statement,
        form: Form,
        names: Option<&[T]>,
        chunk: &mut Chunk,
        to: &mpsc::Sender<Vec<Row>>,
    ) -> Result<(), SourceError> {
        let Some(names) = names else {
            let params: [&(dyn ToSql + Sync); 1] = [&self.held];
            let rows = self.client.query_raw(statement, slice(&params));
            let rows = self.limit(rows, Self::LOADING).await?;
            return self.stream(rows, form, chunk, to).await;
        };
        for list in names.chunks(NAMES_PER_QUERY) {
            let params: [&(dyn ToSql + Sync); 2] = [&list, &self.held];
            let rows = self.client.query_raw(statement, slice(&params));
            let rows = self.limit(rows, Self::LOADING).await?;
            self.stream(rows, form, chunk, to).await?;
        }
        Ok(())
    }

    async fn stream(
        &self,
        rows: tokio_postgres::RowStream,
        form: Form,
        chunk: &mut Chunk,
        to: &mpsc::Sender<Vec<Row>>,
    ) -> Result<(), SourceError> {
        const DOING: &str = Session::LOADING;
        pin_mut!(rows);
        let mut text = String::new();
        // What is here already is taken without a timer for each row.
        let mut rows = rows.ready_chunks(ROWS_PER_CHUNK);
        while let Some(ready) = self.limit(rows.next().map(Ok), DOING).await? {
            for row in ready {
                let row = row.map_err(|err| SourceError::of(DOING, &err))?;
                if chunk.push(row_of(&row, form, &mut text)?) {
                    chunk.send(to, &self.loaded).await?;
                }
            }
        }
        Ok(())
    }

    /// Held tenants that are not active, as Postgres has them now, and which server says so.
    ///
    /// # Errors
    /// [`SourceError`] as for every statement.
    pub async fn not_active(&self) -> Result<(Identity, BTreeSet<Uuid>), SourceError> {
        const DOING: &str = "asking which tenants are not active";
        let held = (&self.held as &(dyn ToSql + Sync), Type::TEXT_ARRAY);
        let row = self
            .limit(self.client.query_typed_one(sql::NOT_ACTIVE, &[held]), DOING)
            .await?;
        let read = |err: tokio_postgres::Error| SourceError::shape(DOING, chain(&err));
        let identity: String = row.try_get(0).map_err(read)?;
        let tenants: Vec<Uuid> = row.try_get(1).map_err(read)?;
        Ok((parse(DOING, &identity)?, tenants.into_iter().collect()))
    }

    /// The id of a tenant by slug or id, as Postgres has it now.
    ///
    /// # Errors
    /// [`SourceError`] as for every statement.
    pub async fn tenant_id(&self, slug_or_id: &str) -> Result<Option<Uuid>, SourceError> {
        const DOING: &str = "looking for a tenant";
        let rows = self
            .limit(
                self.client
                    .query_typed(sql::TENANT_ID, &[(&slug_or_id, Type::TEXT)]),
                DOING,
            )
            .await?;
        rows.first()
            .map(|row| {
                row.try_get(0)
                    .map_err(|err| SourceError::shape(DOING, chain(&err)))
            })
            .transpose()
    }

    /// Deletes old rows of the change log; how many.
    ///
    /// # Errors
    /// [`SourceError`] as for every statement.
    pub async fn prune(&self) -> Result<i64, SourceError> {
        const DOING: &str = "pruning the change log";
        let row = self
            .limit(self.client.query_typed_one(sql::PRUNE, &[]), DOING)
            .await?;
        row.try_get(0)
            .map_err(|err| SourceError::shape(DOING, chain(&err)))
    }

    async fn run(&self, statement: &'static str) -> Result<(), SourceError> {
        self.limit(self.client.batch_execute(statement), statement)
            .await
    }

    /// Every wait for the server ends: the server's own limit first, ours soon after.
    async fn limit<T>(
        &self,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
        doing: &'static str,
    ) -> Result<T, SourceError> {
        let limit = self
            .statement_timeout
            .saturating_add(Duration::from_secs(2));
        match future::select(
            std::pin::pin!(work),
            std::pin::pin!(tokio::time::sleep(limit)),
        )
        .await
        {
            future::Either::Left((done, _)) => done.map_err(|err| SourceError::of(doing, &err)),
            future::Either::Right(_) => Err(SourceError::Timeout(limit)),
        }
    }
}

/// What a comparison reads of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TenantDigest {
    /// Hash of the tenant's document.
    Rows(DocHash),
    /// Its numbers.
    Numbers {
        /// How many.
        count: u64,
        /// Hash of their hashes in byte order of the numbers.
        hash: DocHash,
    },
}

/// What is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Load {
    /// All tenants and numbers held, the numbers in byte order.
    Everything,
    /// All numbers held, in byte order, and what is named.
    AllNumbers {
        /// Tenants, without their numbers.
        tenants: Vec<Uuid>,
    },
    /// What is named.
    Some {
        /// Tenants, without their numbers.
        tenants: Vec<Uuid>,
        /// All numbers of these tenants.
        numbers_of: Vec<Uuid>,
        /// Single numbers.
        numbers: Vec<String>,
    },
}

/// What the columns of an answer are.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// Id and document of tenants.
    Tenants,
    /// Tenant, number and document of numbers.
    Documents,
    /// The columns that a number's document is made of.
    Columns,
}

/// A row of an answer. What stands in `text` is lost.
fn row_of(row: &tokio_postgres::Row, form: Form, text: &mut String) -> Result<Row, SourceError> {
    let read = |err: tokio_postgres::Error| SourceError::shape(Session::LOADING, chain(&err));
    Ok(match form {
        Form::Columns => Row::Columns(Columns::of(row, text).map_err(read)?),
        Form::Documents => Row::Number {
            tenant: row.try_get(0).map_err(read)?,
            e164: row.try_get(1).map_err(read)?,
            document: row.try_get(2).map_err(read)?,
        },
        Form::Tenants => Row::Tenant {
            id: row.try_get(0).map_err(read)?,
            document: row.try_get(1).map_err(read)?,
        },
    })
}

/// Rows on their way to the writer.
#[derive(Default)]
struct Chunk {
    rows: Vec<Row>,
    bytes: usize,
}

impl Chunk {
    /// Whether it is time to send.
    fn push(&mut self, row: Row) -> bool {
        self.bytes = self.bytes.saturating_add(row.bytes());
        self.rows.push(row);
        self.rows.len() >= ROWS_PER_CHUNK || self.bytes >= BYTES_PER_CHUNK
    }

    async fn send(
        &mut self,
        to: &mpsc::Sender<Vec<Row>>,
        sent: &AtomicU64,
    ) -> Result<(), SourceError> {
        self.bytes = 0;
        let rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return Ok(());
        }
        sent.fetch_add(u64::try_from(rows.len()).unwrap_or(0), Ordering::AcqRel);
        to.send(rows).await.map_err(|_| SourceError::NobodyReads)
    }
}

fn start_params(start: &Start) -> (String, Vec<String>) {
    (
        start.xid.to_string(),
        start.also.iter().map(ToString::to_string).collect(),
    )
}

fn slice<'a>(
    params: &'a [&'a (dyn ToSql + Sync)],
) -> impl ExactSizeIterator<Item = &'a dyn ToSql> + 'a {
    params.iter().map(|param| *param as _)
}

fn parse<T: serde::de::DeserializeOwned>(
    doing: &'static str,
    text: &str,
) -> Result<T, SourceError> {
    serde_json::from_str(text).map_err(|err| SourceError::shape(doing, err))
}

fn uuid(doing: &'static str, text: &str) -> Result<Uuid, SourceError> {
    Uuid::parse_str(text).map_err(|err| SourceError::shape(doing, err))
}

/// One number with its tenant, as Postgres has them now.
#[derive(Debug)]
pub struct OneNumber {
    /// Its tenant.
    pub tenant: Uuid,
    /// The number's document.
    pub number_document: String,
    /// The tenant's document; `None` where the row is not there.
    pub tenant_document: Option<String>,
}

/// Asks Postgres for single numbers while the replica is still empty. A few connections of its own, closed after.
#[derive(Debug, Clone)]
pub struct ReadThrough {
    pool: sqlx::PgPool,
    held: Option<Vec<String>>,
}

impl ReadThrough {
    /// Connects at the first question.
    #[must_use]
    pub fn new(target: &Target, held: Option<Vec<String>>) -> Self {
        let pool = sqlx::postgres::PgPoolOptions::new()
            .max_connections(4)
            .acquire_timeout(Duration::from_secs(2))
            .idle_timeout(Duration::from_secs(30))
            .connect_lazy_with(
                target
                    .sqlx(Role::Any)
                    .options([("statement_timeout", "2000")]),
            );
        Self { pool, held }
    }

    /// One number; `None` when Postgres has no such number.
    ///
    /// # Errors
    /// [`sqlx::Error`] when Postgres does not answer within two seconds or refuses.
    pub async fn number(&self, e164: &str) -> Result<Option<OneNumber>, sqlx::Error> {
        let found: Option<(Uuid, String, Option<String>)> = sqlx::query_as(sql::ONE_NUMBER)
            .bind(e164)
            .bind(&self.held)
            .fetch_optional(&self.pool)
            .await?;
        Ok(
            found.map(|(tenant, number_document, tenant_document)| OneNumber {
                tenant,
                number_document,
                tenant_document,
            }),
        )
    }

    /// Gives the connections back.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}
