//! A Postgres server of its own in a directory of its own: for the demo, and for tests.
//!
//! It listens on a Unix socket alone. Nothing of it stays behind, however its owner ends: a watchdog waits on a pipe that
//! the kernel closes with the owner. As root, which Postgres refuses to run as, the server runs as an unprivileged user.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// Longest time for the server to start or to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// The name of the superuser.
pub const SUPERUSER: &str = "postgres";

/// The oldest major version that will do.
const OLDEST: u32 = 13;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No programs.
    #[error(
        "no PostgreSQL {OLDEST} or newer (initdb, postgres) in {looked}; install it (Debian: apt install postgresql) or \
         name the directory of its programs with --pg-bin or SIDETONE_PG_BIN"
    )]
    NoPrograms {
        /// Where they were looked for.
        looked: String,
    },
    /// No user to run the server as.
    #[error(
        "Postgres does not run as root, and there is neither a user postgres nor a user nobody; run this as another user"
    )]
    NoUser,
    /// The directory.
    #[error("{}: cannot be made", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program did not start.
    #[error("{}: cannot be started", program.display())]
    Start {
        /// Which.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// `initdb` failed.
    #[error("initdb failed ({status}): {said}")]
    Initdb {
        /// How.
        status: ExitStatus,
        /// Its last words.
        said: String,
    },
    /// The server ended or did not become ready.
    #[error("postgres did not become ready: {said}")]
    NotReady {
        /// Its last words.
        said: String,
    },
}

/// The server programs, and who may run them: Postgres refuses to run as root.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Their directory.
    pub bin: PathBuf,
    /// Their major version.
    pub major: u32,
    /// Whom they run as, when we are root: user and group.
    pub account: Option<(u32, u32)>,
}

impl Programs {
    /// Those in the directory named, else the first of `PATH`, else the newest that Debian's packages install.
    ///
    /// # Errors
    /// When there are none, or nobody to run them.
    pub fn find(named: Option<&Path>) -> Result<Self, ClusterError> {
        let looked = named.map_or_else(
            || "PATH or /usr/lib/postgresql/*/bin".to_owned(),
            |dir| dir.display().to_string(),
        );
        let places = named.map_or_else(places, |dir| vec![dir.to_owned()]);
        let (major, bin) = places
            .into_iter()
            .filter(|dir| dir.join("initdb").is_file())
            .find_map(|dir| Some((major(&dir).filter(|major| *major >= OLDEST)?, dir)))
            .ok_or(ClusterError::NoPrograms { looked })?;
        let account = if rustix::process::geteuid().is_root() {
            Some(account()?)
        } else {
            None
        };
        Ok(Self {
            bin,
            major,
            account,
        })
    }

    /// A program, or one of `PATH` where it is not among them, to be run in `dir` as the unprivileged user: in a group
    /// of its own, so that Ctrl-C does not reach it, and without our environment, in which libpq would find settings.
    #[must_use]
    pub fn command(&self, name: &str, dir: &Path) -> Command {
        let beside = self.bin.join(name);
        let is_beside = beside.exists();
        let mut command = Command::new(if is_beside {
            beside.as_path()
        } else {
            Path::new(name)
        });
        command
            .current_dir(dir)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .process_group(0)
            .stdin(Stdio::null());
        if is_beside {
            // For programs that are not installed but unpacked somewhere.
            command.env("LD_LIBRARY_PATH", self.bin.join("../lib"));
        }
        if let Some((uid, gid)) = self.account {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Makes a directory that the programs can use and nobody else can.
    ///
    /// # Errors
    /// What the system said.
    pub fn make_dir(&self, dir: &Path) -> io::Result<()> {
        fs::DirBuilder::new().mode(0o700).create(dir)?;
        match self.account {
            Some((uid, gid)) => std::os::unix::fs::chown(dir, Some(uid), Some(gid)),
            None => Ok(()),
        }
    }
}

fn places() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut packaged: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            Some((
                entry.file_name().to_str()?.parse().ok()?,
                entry.path().join("bin"),
            ))
        })
        .collect();
    packaged.sort();
    std::env::split_paths(&path)
        .chain(packaged.into_iter().rev().map(|(_, dir)| dir))
        .collect()
}

fn major(bin: &Path) -> Option<u32> {
    let output = Command::new(bin.join("postgres"))
        .arg("--version")
        .env("LD_LIBRARY_PATH", bin.join("../lib"))
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    let version = said
        .split(' ')
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    version
        .split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

/// The user that Debian's packages make for the server, else the one that owns nothing.
fn account() -> Result<(u32, u32), ClusterError> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    ["postgres", "nobody"]
        .iter()
        .find_map(|name| ids(&passwd, name))
        .ok_or(ClusterError::NoUser)
}

fn ids(passwd: &str, name: &str) -> Option<(u32, u32)> {
    let line = passwd
        .lines()
        .find(|line| line.split(':').next() == Some(name))?;
    let mut ids = line.split(':').skip(2).map(|id| id.parse().ok());
    Some((ids.next()??, ids.next()??))
}

/// `$1` is the directory. QUIT is Postgres's immediate shutdown; what is still there after 8 s gets KILL.
const WATCHDOG: &str = r#"
trap '' HUP INT TERM
while read -r _; do :; done
inside() {
    ls -l /proc/[0-9]*/cwd 2>/dev/null |
        awk -v dir=" -> $1/" 'index($0 "/", dir) { sub(".*/proc/", ""); sub("/.*", ""); print }'
}
pids=$(inside "$1")
[ -z "$pids" ] || { kill -CONT $pids; kill -QUIT $pids; } 2>/dev/null
n=0
while [ -n "$(inside "$1")" ] && [ $n -lt 80 ]; do sleep 0.1; n=$((n + 1)); done
pids=$(inside "$1")
[ -z "$pids" ] || kill -KILL $pids 2>/dev/null
rm -rf -- "$1"
"#;

/// Ends whatever works in a directory, and removes it, once its owner is gone: finished, panicked or killed.
#[derive(Debug)]
pub struct Watchdog {
    dir: PathBuf,
    /// Its standard input is the pipe whose end it waits for.
    child: Child,
}

impl Watchdog {
    /// Over a new directory. Others may pass through it, and see what they are allowed to.
    ///
    /// # Errors
    /// When directory or watchdog cannot be made.
    pub fn over_new_dir(prefix: &str) -> Result<Self, ClusterError> {
        let usual = std::env::temp_dir();
        // A socket's path has at most 107 bytes.
        let base = if usual.as_os_str().len() > 50 {
            PathBuf::from("/tmp")
        } else {
            usual
        };
        let failed = |source| ClusterError::Directory {
            path: base.clone(),
            source,
        };
        let dir = tempfile::Builder::new()
            .prefix(prefix)
            .tempdir_in(&base)
            .map_err(failed)?;
        // The watchdog compares it with what the kernel calls it.
        let path = dir.path().canonicalize().map_err(failed)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o711)).map_err(failed)?;
        let child = Command::new("/bin/sh")
            .args(["-c", WATCHDOG, "sidetone-watchdog"])
            .arg(&path)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|source| ClusterError::Start {
                program: "/bin/sh".into(),
                source,
            })?;
        // From here on it is the watchdog's to remove.
        let _ = dir.keep();
        Ok(Self { dir: path, child })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // What could be waited for has ended or was told to.
        let _ = self.child.wait();
    }
}

/// A running server; it and its directory go when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    server: Child,
    programs: Programs,
    // Dropped last: it removes what the server has left.
    watchdog: Watchdog,
}

impl Cluster {
    /// Makes a cluster and starts its server.
    ///
    /// # Errors
    /// [`ClusterError`]; then nothing is left.
    pub fn start(programs: Programs) -> Result<Self, ClusterError> {
        let watchdog = Watchdog::over_new_dir("sidetone-demo-")?;
        let home = watchdog.dir().join("pg");
        let failed = |source| ClusterError::Directory {
            path: home.clone(),
            source,
        };
        programs.make_dir(&home).map_err(failed)?;
        initdb(&programs, &home)?;
        let log = fs::File::create(home.join("log")).map_err(failed)?;
        let server = programs
            .command("postgres", &home)
            .arg("-D")
            .arg(home.join("data"))
            .arg("-k")
            .arg(&home)
            // No crash of the machine is to be survived.
            .args([
                "-c",
                "listen_addresses=",
                "-c",
                "fsync=off",
                "-c",
                "shared_buffers=16MB",
                "-c",
                "max_connections=50",
            ])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|source| ClusterError::Start {
                program: programs.bin.join("postgres"),
                source,
            })?;
        let mut cluster = Self {
            server,
            programs,
            watchdog,
        };
        cluster.wait_until_ready()?;
        Ok(cluster)
    }

    /// The directory that goes with the cluster; there is room in it for whatever else should go.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.watchdog.dir()
    }

    /// Where the server's socket is.
    #[must_use]
    pub fn socket_dir(&self) -> PathBuf {
        self.dir().join("pg")
    }

    /// What runs.
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// How a user reaches a database of it.
    #[must_use]
    pub fn url(&self, user: &str, database: &str) -> String {
        format!(
            "postgres://{user}@{}/{database}",
            self.socket_dir().to_string_lossy().replace('/', "%2F")
        )
    }

    /// The server writes `ready` into the eighth line of its pid file, which is what pg_ctl waits for.
    fn wait_until_ready(&mut self) -> Result<(), ClusterError> {
        let pid_file = self.socket_dir().join("data/postmaster.pid");
        let since = Instant::now();
        while since.elapsed() < PATIENCE {
            let said = fs::read_to_string(&pid_file).unwrap_or_default();
            if said
                .lines()
                .nth(7)
                .is_some_and(|state| state.trim() == "ready")
            {
                return Ok(());
            }
            if !matches!(self.server.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let said =
            last_words(&fs::read_to_string(self.socket_dir().join("log")).unwrap_or_default());
        Err(ClusterError::NotReady { said })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // INT is what `pg_ctl -m fast` sends.
        if let Some(pid) = i32::try_from(self.server.id()).ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, Signal::INT);
        }
        let since = Instant::now();
        while since.elapsed() < PATIENCE && matches!(self.server.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        // Nothing here is worth a clean stop; after one, there is nobody to kill.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn initdb(programs: &Programs, home: &Path) -> Result<(), ClusterError> {
    let output = programs
        .command("initdb", home)
        .arg("-D")
        .arg(home.join("data"))
        .args([
            "-U",
            SUPERUSER,
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-locale",
            "--no-sync",
        ])
        .output()
        .map_err(|source| ClusterError::Start {
            program: programs.bin.join("initdb"),
            source,
        })?;
    if output.status.success() {
        return Ok(());
    }
    Err(ClusterError::Initdb {
        status: output.status,
        said: last_words(&String::from_utf8_lossy(&output.stderr)),
    })
}

fn last_words(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    match lines.get(lines.len().saturating_sub(3)..) {
        Some(last) if !last.is_empty() => last.join("; "),
        _ => "it said nothing".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_its_whole_name() {
        let passwd = "root:x:0:0::/root:/bin/sh\npostgres2:x:7:7::/:/bin/sh\npostgres:x:101:104::/:/bin/sh\n";
        assert_eq!(ids(passwd, "postgres"), Some((101, 104)));
        assert_eq!(ids(passwd, "nobody"), None);
    }

    #[test]
    fn missing_programs_are_told_with_the_package_that_holds_them() {
        let empty = tempfile::tempdir().unwrap();
        let err = Programs::find(Some(empty.path())).unwrap_err();
        assert!(err.to_string().contains("apt install postgresql"), "{err}");
    }

    #[test]
    fn a_cluster_starts_and_leaves_nothing_behind() {
        let cluster = Cluster::start(Programs::find(None).unwrap()).unwrap();
        let dir = cluster.dir().to_owned();
        assert!(cluster.socket_dir().join(".s.PGSQL.5432").exists());
        drop(cluster);
        assert!(!dir.exists());
    }

    #[test]
    fn the_watchdog_stops_the_server_of_an_owner_that_was_killed() {
        let mut cluster = Cluster::start(Programs::find(None).unwrap()).unwrap();
        let dir = cluster.dir().to_owned();
        // What the kernel does when the owner is killed.
        drop(cluster.watchdog.child.stdin.take());
        cluster.watchdog.child.wait().unwrap();
        assert!(!dir.exists());
        let since = Instant::now();
        while matches!(cluster.server.try_wait(), Ok(None)) {
            assert!(since.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
