//! A Postgres server of its own in a directory of its own: for the demo, and for tests.
//!
//! It listens on a Unix socket alone. Nothing of it stays behind, however its owner ends: a small watchdog process waits
//! on a pipe that the kernel closes with the owner, then stops the server and removes the directory. As root, which
//! Postgres refuses to run as, the server runs as an unprivileged user.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// Longest time for the server to start or to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// The name of the superuser.
pub const SUPERUSER: &str = "postgres";

/// Waits until its standard input is closed, then stops the server last named on it and removes the directory.
const WATCHDOG: &str = r#"
trap '' HUP INT TERM
pid=
while read -r line; do pid=$line; done
if [ -n "$pid" ] && kill -QUIT "$pid" 2>/dev/null; then
    n=0
    while kill -0 "$pid" 2>/dev/null && [ "$n" -lt 100 ]; do sleep 0.05; n=$((n + 1)); done
    kill -KILL "$pid" 2>/dev/null
fi
n=0
while [ -e "$1" ] && [ "$n" -lt 20 ]; do rm -rf -- "$1" 2>/dev/null || sleep 0.1; n=$((n + 1)); done
"#;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No programs.
    #[error(
        "no Postgres server programs (initdb, postgres) in {looked}; install them (Debian: apt install postgresql) or \
         name their directory with --pg-bin or SIDETONE_PG_BIN"
    )]
    NoPrograms {
        /// Where they were looked for.
        looked: String,
    },
    /// No user to run the server as.
    #[error("Postgres does not run as root, and there is neither a user postgres nor a user nobody; run this as another user")]
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

/// A running server and its directory; both go when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    bin: PathBuf,
    user: Option<User>,
    server: Option<Child>,
    watchdog: Option<(Child, ChildStdin)>,
}

/// Whom the server runs as, when we are root.
#[derive(Debug, Clone, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
}

impl Cluster {
    /// Makes a cluster and starts its server with additional settings (`name=value`).
    ///
    /// # Errors
    /// [`ClusterError`]; then nothing is left.
    pub fn start(pg_bin: Option<&Path>, settings: &[&str]) -> Result<Self, ClusterError> {
        let bin = find(pg_bin)?;
        let user = if rustix::process::geteuid().is_root() { Some(unprivileged()?) } else { None };
        let dir = directory(user.is_some())?;
        let mut cluster = Self { dir, bin, user, server: None, watchdog: None };
        cluster.watch()?;
        cluster.initdb()?;
        cluster.run(settings)?;
        Ok(cluster)
    }

    /// The directory that goes with the cluster; there is room in it for whatever else should go.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the server's socket is.
    #[must_use]
    pub fn socket_dir(&self) -> PathBuf {
        self.dir.join("pg")
    }

    /// Where the programs are.
    #[must_use]
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// How a user reaches a database of it.
    #[must_use]
    pub fn url(&self, user: &str, database: &str) -> String {
        let socket = self.socket_dir();
        let host = percent_encoding::utf8_percent_encode(&socket.to_string_lossy(), percent_encoding::NON_ALPHANUMERIC).to_string();
        format!("postgres://{user}@{host}/{database}")
    }

    /// Stops the server, as `pg_ctl -m fast` does, and removes the directory.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            signal(&server, Signal::INT);
            if !ended(&mut server, PATIENCE) {
                // Nothing here is worth a clean stop.
                let _ = server.kill();
                let _ = server.wait();
            }
        }
        // What cannot be removed now the watchdog tries again.
        let _ = fs::remove_dir_all(&self.dir);
        if let Some((mut watchdog, mut pipe)) = self.watchdog.take() {
            let _ = pipe.write_all(b"\n");
            drop(pipe);
            let _ = watchdog.wait();
        }
    }

    fn data(&self) -> PathBuf {
        self.socket_dir().join("data")
    }

    fn log(&self) -> PathBuf {
        self.socket_dir().join("log")
    }

    fn watch(&mut self) -> Result<(), ClusterError> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", WATCHDOG, "sidetone-watchdog"]).arg(&self.dir).current_dir("/");
        // A group of its own: Ctrl-C in the terminal is meant for its owner.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let mut child = command.spawn().map_err(|source| ClusterError::Start { program: "/bin/sh".into(), source })?;
        self.watchdog = child.stdin.take().map(|pipe| (child, pipe));
        Ok(())
    }

    fn initdb(&self) -> Result<(), ClusterError> {
        let program = self.bin.join("initdb");
        let output = self
            .program(&program)
            .arg("--pgdata")
            .arg(self.data())
            .args(["--username", SUPERUSER, "--auth", "trust", "--encoding", "UTF8", "--no-locale", "--no-sync"])
            .output()
            .map_err(|source| ClusterError::Start { program, source })?;
        if output.status.success() {
            return Ok(());
        }
        Err(ClusterError::Initdb { status: output.status, said: last_words(&String::from_utf8_lossy(&output.stderr)) })
    }

    fn run(&mut self, settings: &[&str]) -> Result<(), ClusterError> {
        let program = self.bin.join("postgres");
        let log = fs::File::create(self.log()).map_err(|source| ClusterError::Directory { path: self.log(), source })?;
        let mut command = self.program(&program);
        command.arg("-D").arg(self.data()).arg("-k").arg(self.socket_dir());
        // Only what the directory's mode lets in gets this far; no crash of the machine is to be survived.
        for setting in ["listen_addresses=", "fsync=off", "shared_buffers=16MB", "max_connections=50"].iter().chain(settings) {
            command.arg("-c").arg(setting);
        }
        command.stdout(Stdio::null()).stderr(log);
        let child = command.spawn().map_err(|source| ClusterError::Start { program, source })?;
        let pid = child.id();
        self.server = Some(child);
        if let Some((_, pipe)) = &mut self.watchdog {
            writeln!(pipe, "{pid}").map_err(|source| ClusterError::Start { program: "/bin/sh".into(), source })?;
        }
        self.wait_until_ready()
    }

    /// The server writes `ready` into the eighth line of its pid file, which is what pg_ctl waits for.
    fn wait_until_ready(&mut self) -> Result<(), ClusterError> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let pid_file = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
            if pid_file.lines().nth(7).is_some_and(|state| state.trim() == "ready") {
                return Ok(());
            }
            if self.server.as_mut().is_none_or(|server| !matches!(server.try_wait(), Ok(None))) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let said = last_words(&fs::read_to_string(self.log()).unwrap_or_default());
        Err(ClusterError::NotReady { said })
    }

    /// A Postgres program: as the unprivileged user, in a group of its own, without libpq's environment.
    fn program(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir("/").stdin(Stdio::null()).process_group(0);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(name);
        }
        if let Some(user) = &self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

fn signal(child: &Child, signal: Signal) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It may have ended already.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn ended(child: &mut Child, within: Duration) -> bool {
    let until = Instant::now() + within;
    loop {
        if !matches!(child.try_wait(), Ok(None)) {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A new directory, in `/tmp` where the usual one is too deep for a socket's path of 107 bytes.
fn directory(root: bool) -> Result<PathBuf, ClusterError> {
    let usual = std::env::temp_dir();
    let base = if usual.as_os_str().len() > 60 { PathBuf::from("/tmp") } else { usual };
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ClusterError::Directory { path, source }
    };
    let dir = tempfile::Builder::new().prefix("sidetone-").tempdir_in(&base).map_err(failed(&base))?;
    let pg = dir.path().join("pg");
    fs::DirBuilder::new().mode(0o700).create(&pg).map_err(failed(&pg))?;
    if root {
        let user = unprivileged()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).map_err(failed(dir.path()))?;
        std::os::unix::fs::chown(&pg, Some(user.uid), Some(user.gid)).map_err(failed(&pg))?;
    }
    Ok(dir.keep())
}

/// The user that Debian's packages make for the server, else the one that owns nothing.
fn unprivileged() -> Result<User, ClusterError> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    ["postgres", "nobody"].iter().find_map(|name| user(&passwd, name)).ok_or(ClusterError::NoUser)
}

fn user(passwd: &str, name: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next() == Some(name);
        let mut ids = fields.skip(1).map(str::parse);
        match (found, ids.next(), ids.next()) {
            (true, Some(Ok(uid)), Some(Ok(gid))) => Some(User { uid, gid }),
            _ => None,
        }
    })
}

/// The directory named, or the first of `PATH`, or the newest that Debian's packages install.
fn find(pg_bin: Option<&Path>) -> Result<PathBuf, ClusterError> {
    let complete = |dir: &PathBuf| ["initdb", "postgres"].iter().all(|program| dir.join(program).is_file());
    if let Some(dir) = pg_bin {
        let dir = dir.to_owned();
        let looked = dir.display().to_string();
        return Some(dir).filter(complete).ok_or(ClusterError::NoPrograms { looked });
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut packaged: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    packaged.sort();
    std::env::split_paths(&path)
        .chain(packaged.into_iter().rev().map(|(_, dir)| dir))
        .find(complete)
        .ok_or_else(|| ClusterError::NoPrograms { looked: "PATH or /usr/lib/postgresql/*/bin".to_owned() })
}

fn last_words(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
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
        assert_eq!(user(passwd, "postgres"), Some(User { uid: 101, gid: 104 }));
        assert_eq!(user(passwd, "nobody"), None);
    }

    #[test]
    fn missing_programs_are_told_with_the_package_that_holds_them() {
        let empty = tempfile::tempdir().unwrap();
        let err = find(Some(empty.path())).unwrap_err();
        assert!(err.to_string().contains("apt install postgresql"), "{err}");
    }

    #[test]
    fn a_cluster_starts_and_leaves_nothing_behind() {
        let mut cluster = Cluster::start(None, &[]).unwrap();
        let dir = cluster.dir().to_owned();
        assert!(cluster.socket_dir().join(".s.PGSQL.5432").exists());
        cluster.stop();
        assert!(!dir.exists());
    }

    #[test]
    fn the_watchdog_cleans_up_when_its_owner_is_gone() {
        let mut cluster = Cluster::start(None, &[]).unwrap();
        let dir = cluster.dir().to_owned();
        let (mut watchdog, pipe) = cluster.watchdog.take().unwrap();
        // What the kernel does when the owner is killed.
        drop(pipe);
        watchdog.wait().unwrap();
        assert!(!dir.exists());
        assert!(ended(cluster.server.as_mut().unwrap(), PATIENCE));
    }
}
