//! Throwaway Postgres clusters.
//!
//! Everything a test process starts lives below one directory, and every process in it works there. The demo's watchdog
//! ends whatever still works in that directory, and removes it, once the test process is finished, panicked or killed.
//! Durability is off: a killed server keeps its files, a killed machine would not.
#![allow(
    dead_code,
    reason = "a harness offers more than the tests of one day use"
)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::TcpListener;
use std::ops::Deref;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use rustix::process::{Pid, Signal};
use sidetone::cli::demo::cluster::{Programs, SUPERUSER, Watchdog};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{ConnectOptions as _, PgConnection};
use tokio_postgres::types::{FromSqlOwned, ToSql};
use tokio_postgres::{AsyncMessage, NoTls, Row};

/// How long a server may take to start, stop or answer before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const TEMPLATE: &str = "migrated_template";
const CERTIFICATE: &str = "server.crt";
const KEY: &str = "server.key";
const HBA: &str = "hba.conf";

/// The directory of this test process and what ends with it.
static ROOT: LazyLock<Watchdog> = LazyLock::new(|| Watchdog::over_new_dir("sidetone-it-").unwrap());

static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A new directory below the root, the test's own. A process started with it (or anything below) as its working
/// directory does not survive the test process.
pub(crate) fn scratch(name: &str) -> PathBuf {
    let dir = ROOT
        .dir()
        .join(format!("{name}{}", SERIAL.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir(&dir).unwrap();
    dir
}

static PROGRAMS: LazyLock<Programs> = LazyLock::new(|| {
    let named = std::env::var_os("SIDETONE_PG_BIN").map(PathBuf::from);
    Programs::find(named.as_deref())
        .unwrap_or_else(|err| panic!("{err}; or run scripts/ensure-postgres"))
});

/// A program of the server, working below the root.
fn program(name: &str) -> Command {
    PROGRAMS.command(name, ROOT.dir())
}

fn run(command: &mut Command) {
    let out = command.output().unwrap();
    assert!(
        out.status.success(),
        "{command:?}: {}{}",
        text(&out.stdout),
        text(&out.stderr)
    );
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a future from anywhere, inside a runtime or outside.
fn block_on<T: Send>(future: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(future)
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// How a cluster of a test's own differs from the shared one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    tcp: bool,
    settings: Vec<(String, String)>,
    files: Vec<(String, String)>,
}

impl Options {
    /// Listens on a free port of 127.0.0.1 too, the same one after every restart.
    pub(crate) fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// A line of postgresql.conf.
    pub(crate) fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// TLS, with a certificate and its key, both PEM.
    pub(crate) fn tls(mut self, certificate: &str, key: &str) -> Self {
        self.files.push((CERTIFICATE.into(), certificate.into()));
        self.files.push((KEY.into(), key.into()));
        self
    }

    /// Who may come over TCP and how: lines of pg_hba.conf. The Unix socket stays open to everybody.
    pub(crate) fn hba(mut self, lines: &str) -> Self {
        let local = "local all all trust\nlocal replication all trust";
        self.files.push((HBA.into(), format!("{local}\n{lines}\n")));
        self
    }
}

/// How a server is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Rolls back what runs and writes everything down.
    Fast,
    /// Drops everything; the next start recovers.
    Immediate,
}

/// A Postgres of this test process. Dropped, it is gone.
pub(crate) struct Cluster {
    dir: PathBuf,
    port: AtomicU16,
    options: Options,
    postmaster: Mutex<Option<Child>>,
}

impl Cluster {
    /// The one every test may use that does not stop it.
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| Self::own(Options::default()))
    }

    /// A running cluster for one test to break, with the role `sidetone` and a migrated template.
    pub(crate) fn own(options: Options) -> Self {
        let cluster = Self::stopped(options);
        run(Command::new("cp")
            .arg("-a")
            .arg(template())
            .arg(cluster.data()));
        cluster.start();
        cluster
    }

    /// A running cluster with a system identifier of its own (those of [`Cluster::own`] have one in common) and
    /// nothing in it.
    pub(crate) fn stranger(options: Options) -> Self {
        let cluster = Self::stopped(options);
        initdb(&cluster.data());
        cluster.start();
        cluster
    }

    /// A second cluster, stopped, with a copy of the files of this one, which must be stopped too.
    pub(crate) fn copy(&self) -> Self {
        assert!(
            self.postmaster.lock().unwrap().is_none(),
            "the files of a running server are no copy"
        );
        let copy = Self::stopped(self.options.clone());
        run(Command::new("cp")
            .arg("-a")
            .arg(self.data())
            .arg(copy.data()));
        copy
    }

    /// A standby that streams from this one, begun with a copy of its files taken while it runs: pg_basebackup wants to be
    /// of the server's version.
    pub(crate) fn standby(&self, options: Options) -> Self {
        let primary = format!(
            "host={} port={} user={SUPERUSER}",
            self.dir.display(),
            self.port()
        );
        let standby = Self::stopped(options.set("primary_conninfo", &primary));
        let (begin, end) = if self.major() >= 15 {
            ("pg_backup_start('copy', true)", "pg_backup_stop(false)")
        } else {
            (
                "pg_start_backup('copy', true, false)",
                "pg_stop_backup(false, false)",
            )
        };
        let label: String = block_on(async {
            let admin = self.admin().await;
            admin.sql(&format!("select {begin}")).await;
            // It complains of files that go away meanwhile; the log brings what the copy lacks.
            Command::new("cp")
                .arg("-a")
                .arg(self.data())
                .arg(standby.data())
                .output()
                .unwrap();
            admin.value(&format!("select labelfile from {end}")).await
        });
        let wal = fs::read_dir(standby.data().join("pg_wal")).unwrap();
        for entry in wal.flatten().filter(|entry| entry.path().is_file()) {
            fs::remove_file(entry.path()).unwrap();
        }
        fs::remove_file(standby.data().join("postmaster.pid")).unwrap();
        standby.put("data/backup_label", &label);
        standby.put("data/standby.signal", "");
        standby.start();
        standby
    }

    /// Why pg_dump, which comes from elsewhere, cannot read this server, if so.
    pub(crate) fn cannot_be_dumped(&self) -> Option<String> {
        let Ok(output) = program("pg_dump").arg("--version").output() else {
            return Some("there is no pg_dump".into());
        };
        let version = text(&output.stdout);
        let major = version
            .split(|c: char| !c.is_ascii_digit())
            .find_map(|digits| digits.parse::<u32>().ok());
        major.is_none_or(|major| major < self.major()).then(|| {
            format!(
                "{} reads no server of version {}",
                version.trim(),
                self.major()
            )
        })
    }

    fn stopped(options: Options) -> Self {
        let dir = ROOT
            .dir()
            .join(format!("pg{}", SERIAL.fetch_add(1, Ordering::Relaxed)));
        PROGRAMS.make_dir(&dir).unwrap();
        let cluster = Self {
            dir,
            port: AtomicU16::new(free_port()),
            options,
            postmaster: Mutex::new(None),
        };
        for (name, content) in &cluster.options.files {
            cluster.put(name, content);
        }
        cluster
    }

    /// A file beside the data directory that the server alone can read: it refuses a key that others can.
    fn put(&self, name: &str, content: &str) {
        let path = self.dir.join(name);
        let _ = fs::remove_file(&path);
        let mut file = File::options()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&path)
            .unwrap();
        file.write_all(content.as_bytes()).unwrap();
        if let Some((uid, gid)) = PROGRAMS.account {
            std::os::unix::fs::chown(&path, Some(uid), Some(gid)).unwrap();
        }
    }

    /// Another certificate and key for connections from now on; those that stand go on.
    pub(crate) async fn present(&self, certificate: &str, key: &str) {
        self.put(CERTIFICATE, certificate);
        self.put(KEY, key);
        let admin = self.admin().await;
        let before: String = admin.value("select pg_conf_load_time()::text").await;
        admin.sql("select pg_reload_conf()").await;
        // The postmaster reads the files after it was told, and a new backend has what it read.
        let deadline = Instant::now() + PATIENCE;
        while self
            .admin()
            .await
            .value::<String>("select pg_conf_load_time()::text")
            .await
            == before
        {
            assert!(Instant::now() < deadline, "the files are not read again");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Major version of the server.
    pub(crate) fn major(&self) -> u32 {
        PROGRAMS.major
    }

    /// Where the Unix socket is.
    pub(crate) fn socket_dir(&self) -> &Path {
        &self.dir
    }

    /// The data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The TCP port, if [`Options::tcp`], and in any case the number in the socket's name.
    pub(crate) fn port(&self) -> u16 {
        self.port.load(Ordering::Relaxed)
    }

    /// The server's log so far.
    pub(crate) fn log(&self) -> String {
        fs::read(self.dir.join("log"))
            .map(|bytes| text(&bytes))
            .unwrap_or_default()
    }

    /// Starts the server, on the same directory and port as before, and waits until it takes connections.
    pub(crate) fn start(&self) {
        if let Err(log) = self.try_start() {
            panic!("the server does not start: {log}");
        }
    }

    fn try_start(&self) -> Result<(), String> {
        let mut postmaster = self.postmaster.lock().unwrap();
        assert!(postmaster.is_none(), "already started");
        let first_time = !self.dir.join("log").exists();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut child = self.spawn();
            let ended = loop {
                if block_on(self.connect_as(SUPERUSER, "postgres")).is_ok() {
                    *postmaster = Some(child);
                    return Ok(());
                }
                if child.try_wait().unwrap().is_some() {
                    break self.log();
                }
                assert!(
                    Instant::now() < deadline,
                    "the server is not ready in time: {}",
                    self.log()
                );
                std::thread::sleep(Duration::from_millis(5));
            };
            // Between the choice of a port and its use somebody else can take it.
            if !(first_time
                && ended.contains("Address already in use")
                && Instant::now() < deadline)
            {
                return Err(ended);
            }
            self.port.store(free_port(), Ordering::Relaxed);
        }
    }

    fn spawn(&self) -> Child {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))
            .unwrap();
        let mut command = program("postgres");
        command
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(&self.dir)
            .arg("-p")
            .arg(self.port().to_string());
        let mut set = |name: &str, value: &str| {
            command.arg("-c").arg(format!("{name}={value}"));
        };
        set(
            "listen_addresses",
            if self.options.tcp { "127.0.0.1" } else { "" },
        );
        set("fsync", "off");
        set("full_page_writes", "off");
        set("max_connections", "200");
        set("max_prepared_transactions", "20");
        set("log_line_prefix", "%m [%p] %a ");
        for (name, _) in &self.options.files {
            let setting = match name.as_str() {
                CERTIFICATE => "ssl_cert_file",
                KEY => "ssl_key_file",
                _ => "hba_file",
            };
            set(setting, self.dir.join(name).to_str().unwrap());
            if name == KEY {
                set("ssl", "on");
            }
        }
        for (name, value) in &self.options.settings {
            set(name, value);
        }
        command
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// Stops the server and waits until it is gone.
    pub(crate) fn stop(&self, how: Stop) {
        let child = self.postmaster.lock().unwrap().take().expect("not started");
        assert!(end(child, how), "the server does not stop: {}", self.log());
    }

    /// Stops and starts on the same directory and port.
    pub(crate) fn restart(&self, how: Stop) {
        self.stop(how);
        self.start();
    }

    /// SIGKILL to every process of the server at once; waits until they are gone.
    pub(crate) fn kill(&self) {
        let mut child = self.postmaster.lock().unwrap().take().expect("not started");
        // The postmaster first, so that it starts nothing while its children are killed.
        signal(child.id(), Signal::KILL);
        child.wait().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "processes that cannot be killed: {left:?}"
            );
            for pid in left {
                signal(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// SIGSTOP to every process of the server: connections stay open and nothing answers.
    pub(crate) fn pause(&self) {
        let mut stopped = BTreeSet::new();
        // The postmaster may be starting somebody: until nobody new is seen.
        loop {
            let new: Vec<u32> = self.processes().difference(&stopped).copied().collect();
            if new.is_empty() {
                return;
            }
            for pid in new {
                signal(pid, Signal::STOP);
                stopped.insert(pid);
            }
        }
    }

    /// SIGCONT to every process of the server.
    pub(crate) fn resume(&self) {
        for pid in self.processes() {
            signal(pid, Signal::CONT);
        }
    }

    /// The server's processes: those that work in the data directory.
    pub(crate) fn processes(&self) -> BTreeSet<u32> {
        let data = self.data();
        fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|pid: &u32| {
                fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == data)
            })
            .collect()
    }

    /// A fresh migrated database.
    pub(crate) async fn database(&self) -> Db<'_> {
        self.create(&format!("template {TEMPLATE}")).await
    }

    /// A fresh database with nothing in it.
    pub(crate) async fn empty_database(&self) -> Db<'_> {
        self.create("template template0").await
    }

    /// As [`database`](Self::database), with another order of texts than the cluster's.
    pub(crate) async fn database_of_locale(&self, locale: &str) -> Db<'_> {
        let db = self
            .create(&format!("template template0 locale '{locale}'"))
            .await;
        db.migrate().await;
        db.sql(include_str!("../../deploy/sql/roles.sql")).await;
        db
    }

    async fn create(&self, options: &str) -> Db<'_> {
        let name = format!("t{}", SERIAL.fetch_add(1, Ordering::Relaxed));
        self.admin()
            .await
            .sql(&format!("create database {name} {options}"))
            .await;
        self.open(&name).await
    }

    /// A database that is there already, for example after a restart.
    pub(crate) async fn open(&self, name: &str) -> Db<'_> {
        let session = self.connect_as(SUPERUSER, name).await.unwrap();
        Db {
            cluster: self,
            name: name.into(),
            session,
        }
    }

    /// A superuser's session in database `postgres`.
    pub(crate) async fn admin(&self) -> Session {
        self.connect_as(SUPERUSER, "postgres").await.unwrap()
    }

    /// A session over the Unix socket.
    pub(crate) async fn connect_as(
        &self,
        role: &str,
        database: &str,
    ) -> Result<Session, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(&self.dir)
            .port(self.port())
            .user(role)
            .dbname(database)
            .application_name("test");
        Session::connect(&config).await
    }

    /// Over the Unix socket.
    pub(crate) fn url(&self, role: &str, database: &str) -> String {
        let dir = self.dir.to_str().unwrap().replace('/', "%2F");
        format!("postgresql://{role}@{dir}:{}/{database}", self.port())
    }

    /// Over TCP, plain.
    pub(crate) fn tcp_url(&self, role: &str, database: &str) -> String {
        assert!(
            self.options.tcp,
            "this cluster has no TCP port: Options::tcp"
        );
        format!(
            "postgresql://{role}@127.0.0.1:{}/{database}?sslmode=disable",
            self.port()
        )
    }

    async fn sqlx(&self, role: &str, database: &str) -> PgConnection {
        PgConnectOptions::new_without_pgpass()
            .socket(&self.dir)
            .port(self.port())
            .username(role)
            .database(database)
            .ssl_mode(PgSslMode::Disable)
            .connect()
            .await
            .unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Ok(Some(child)) = self.postmaster.get_mut().map(Option::take) {
            self.resume();
            end(child, Stop::Immediate);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Whether the server was gone in time.
fn end(mut child: Child, how: Stop) -> bool {
    signal(
        child.id(),
        match how {
            Stop::Fast => Signal::INT,
            Stop::Immediate => Signal::QUIT,
        },
    );
    let deadline = Instant::now() + PATIENCE;
    while !matches!(child.try_wait(), Ok(Some(_))) {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// The data directory every cluster begins with: made once, then copied, which is faster than initdb.
fn template() -> PathBuf {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    let made = MADE.get_or_init(|| {
        let cluster = Cluster::stopped(Options::default());
        initdb(&cluster.data());
        cluster.start();
        block_on(async {
            cluster
                .admin()
                .await
                .sql(&format!("create database {TEMPLATE}"))
                .await;
            let db = cluster.open(TEMPLATE).await;
            db.migrate().await;
            db.sql(include_str!("../../deploy/sql/roles.sql")).await;
        });
        cluster.stop(Stop::Fast);
        // Its files stay until the watchdog removes them.
        std::mem::ManuallyDrop::new(cluster).data()
    });
    made.clone()
}

fn initdb(data: &Path) {
    run(program("initdb").arg("-D").arg(data).args([
        "-U",
        SUPERUSER,
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--no-locale",
        "--no-sync",
    ]));
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    // It may have gone meanwhile.
    let _ = rustix::process::kill_process(pid, signal);
}

/// One connection that remembers what the server tells unasked.
pub(crate) struct Session {
    client: tokio_postgres::Client,
    told: Arc<Mutex<Told>>,
    driver: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Told {
    notifications: Vec<(String, String)>,
    notices: Vec<String>,
}

impl Session {
    /// Connects without TLS.
    pub(crate) async fn connect(
        config: &tokio_postgres::Config,
    ) -> Result<Self, tokio_postgres::Error> {
        let (client, mut connection) = config.connect(NoTls).await?;
        let told = Arc::new(Mutex::new(Told::default()));
        let ear = Arc::clone(&told);
        let driver = tokio::spawn(async move {
            let mut messages = futures_util::stream::poll_fn(move |cx| connection.poll_message(cx));
            while let Some(Ok(message)) = messages.next().await {
                let mut told = ear.lock().unwrap();
                match message {
                    AsyncMessage::Notification(n) => told
                        .notifications
                        .push((n.channel().into(), n.payload().into())),
                    AsyncMessage::Notice(n) => {
                        told.notices
                            .push(format!("{}: {}", n.severity(), n.message()))
                    }
                    _ => {}
                }
            }
        });
        Ok(Self {
            client,
            told,
            driver,
        })
    }

    /// Runs any number of statements; the test fails with the server's words if one fails.
    pub(crate) async fn sql(&self, sql: &str) {
        if let Err(err) = self.client.batch_execute(sql).await {
            panic!(
                "{}\n{}",
                words(&err),
                sql.get(..sql.len().min(500)).unwrap_or(sql)
            );
        }
    }

    /// Runs any number of statements. The error is the five-character code of Postgres and its message.
    pub(crate) async fn try_sql(&self, sql: &str) -> Result<(), String> {
        self.client
            .batch_execute(sql)
            .await
            .map_err(|err| words(&err))
    }

    /// All rows.
    pub(crate) async fn query(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Vec<Row> {
        self.client
            .query(sql, values)
            .await
            .unwrap_or_else(|err| panic!("{}\n{sql}", words(&err)))
    }

    /// The one row.
    pub(crate) async fn query_one(&self, sql: &str, values: &[&(dyn ToSql + Sync)]) -> Row {
        let mut rows = self.query(sql, values).await;
        assert_eq!(rows.len(), 1, "rows of {sql}");
        rows.remove(0)
    }

    /// The first column of the one row.
    pub(crate) async fn value<T: FromSqlOwned>(&self, sql: &str) -> T {
        self.query_one(sql, &[]).await.get(0)
    }

    /// The first column of all rows.
    pub(crate) async fn column<T: FromSqlOwned>(&self, sql: &str) -> Vec<T> {
        self.query(sql, &[])
            .await
            .iter()
            .map(|row| row.get(0))
            .collect()
    }

    /// `(channel, payload)` of every notification since the last call: all that were committed before this call.
    pub(crate) async fn notifications(&self) -> Vec<(String, String)> {
        self.sql("select 1").await;
        std::mem::take(&mut self.told.lock().unwrap().notifications)
    }

    /// `SEVERITY: message` of every notice since the last call.
    pub(crate) fn notices(&self) -> Vec<String> {
        std::mem::take(&mut self.told.lock().unwrap().notices)
    }

    /// The client itself, for transactions, COPY and the like.
    pub(crate) fn client(&mut self) -> &mut tokio_postgres::Client {
        &mut self.client
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Closes the connection now and not when the driver sees that the client is gone.
        self.driver.abort();
    }
}

fn words(err: &tokio_postgres::Error) -> String {
    match err.as_db_error() {
        Some(db) => format!(
            "{}: {}{}",
            db.code().code(),
            db.message(),
            db.where_().map(|at| format!(" ({at})")).unwrap_or_default()
        ),
        None => format!("{err}: {:?}", std::error::Error::source(err)),
    }
}

/// A database, and a superuser's session in it.
pub(crate) struct Db<'a> {
    cluster: &'a Cluster,
    name: String,
    session: Session,
}

impl Deref for Db<'_> {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

impl Db<'_> {
    /// The database's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Another session of the superuser.
    pub(crate) async fn session(&self) -> Session {
        self.session_as(SUPERUSER).await
    }

    /// A session of the role the daemon logs in with.
    pub(crate) async fn as_sidetone(&self) -> Session {
        self.session_as("sidetone").await
    }

    /// A session of any role.
    pub(crate) async fn session_as(&self, role: &str) -> Session {
        self.cluster.connect_as(role, &self.name).await.unwrap()
    }

    /// The daemon's URL, over the Unix socket.
    pub(crate) fn url(&self) -> String {
        self.cluster.url("sidetone", &self.name)
    }

    /// The daemon's URL, over TCP.
    pub(crate) fn tcp_url(&self) -> String {
        self.cluster.tcp_url("sidetone", &self.name)
    }

    /// A superuser's sqlx connection.
    pub(crate) async fn sqlx(&self) -> PgConnection {
        self.cluster.sqlx(SUPERUSER, &self.name).await
    }

    /// Runs the migrations of the program.
    pub(crate) async fn migrate(&self) {
        sidetone::source::migrate::run(&mut self.sqlx().await)
            .await
            .unwrap();
    }

    /// Inserts the platform's example rows; the credential's ciphertext is no real one.
    pub(crate) async fn load_example(&self) {
        self.load_example_sealed(|c| format!("sealed for {}/{}", c.provider, c.name))
            .await;
    }

    /// Inserts the platform's example rows with ciphertexts of the caller's.
    pub(crate) async fn load_example_sealed(
        &self,
        seal: impl Fn(&sidetone::example::Credential) -> String + Send,
    ) {
        sidetone::example::load(&mut self.sqlx().await, seal)
            .await
            .unwrap();
    }
}
