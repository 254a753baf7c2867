//! Sockets: taken over from systemd or made here, and what the kernel says of who connects.
//!
//! A socket of ours can be connected to only once its mode and group are as configured: the kernel refuses
//! until `listen`. A socket that somebody answers on is never removed, nor anything that is no socket.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::libc;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{UnixCredentials, getsockopt};
use rustix::fs::{FlockOperation, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use tokio::net::{TcpStream, UnixSocket, UnixStream};

use super::line::Stream;
use super::token::Gate;
use crate::access::{self, Names, Peer};
use crate::config::{AdminConfig, Config, FileMode, HttpConfig, Problem};

/// Connections that wait to be accepted, per listener; the kernel may allow fewer (`net.core.somaxconn`).
pub(super) const BACKLOG: u32 = 1024;

/// Most groups that are read from a socket.
const MOST_GROUPS: usize = 256;

/// Longest `/proc/<pid>/status` that is read.
const MOST_STATUS_BYTES: usize = 64 * 1024;

/// Why nothing can be answered at the configured place.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody answers there already.
    #[error("{key} {at}: in use by another process; stop it or choose another {what}")]
    InUse {
        /// The setting.
        key: &'static str,
        /// Its value.
        at: String,
        /// `path` or `port`.
        what: &'static str,
    },
    /// Something else stands there.
    #[error(
        "{key} {path}: something stands there that is no socket; remove it or choose another path"
    )]
    NoSocket {
        /// The setting.
        key: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// The directory lets anyone put a socket of their own in our place.
    #[error(
        "{key} {path}: anyone may write to its directory or one above; take that right away or choose another directory"
    )]
    OpenDirectory {
        /// The setting.
        key: &'static str,
        /// Its value.
        path: PathBuf,
    },
    /// The directory belongs to somebody who could put a socket of their own in our place.
    #[error(
        "{key} {path}: its directory belongs to user {owner}; give it to root or to the daemon's user, or choose another directory"
    )]
    ForeignDirectory {
        /// The setting.
        key: &'static str,
        /// Its value.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// No group of that name.
    #[error(
        "http.unix_group: no group {name:?} in /etc/group; create it, or name it by its number"
    )]
    NoGroup {
        /// The setting's value.
        name: String,
    },
    /// A step that the system refused.
    #[error("{key} {at}: cannot {step}")]
    System {
        /// The setting.
        key: &'static str,
        /// Its value.
        at: String,
        /// What was tried.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A socket of systemd's that cannot be used.
    #[error("socket {name:?} passed by systemd: {what}")]
    Passed {
        /// Its `FileDescriptorName`.
        name: String,
        /// What is wrong, and what to do.
        what: &'static str,
    },
    /// Access rules that name nobody.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Access(Vec<Problem>),
}

/// Where connections come from; nothing blocks on it.
#[derive(Debug)]
pub(super) enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// Where a caller connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// At this path.
    Unix(PathBuf),
    /// At this address.
    Tcp(SocketAddr),
}

/// A listening socket.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) listener: Listener,
    /// For people.
    pub(super) name: String,
    /// The group that may connect, where the socket's mode says so and lets nobody else in but its owner.
    pub(super) group: Option<u32>,
    /// Whether others than owner and group are kept out, so that a stranger who connected is of the group.
    closed_to_others: bool,
    owner: u32,
    /// What is asked of those who come in, TLS among it.
    pub(super) gate: Option<Arc<Gate>>,
    /// What is ours to remove at the end; nothing where systemd holds the socket.
    own: Mutex<Option<Own>>,
}

/// A socket's file that was made here, with the lock that says so.
#[derive(Debug)]
struct Own {
    path: PathBuf,
    inode: (u64, u64),
    _lock: File,
}

impl Drop for Own {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.inode)
        {
            // Nobody is told when this fails: the next start finds a socket on which nobody answers.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.listener {
            Listener::Unix(listener) => listener.as_fd(),
            Listener::Tcp(listener) => listener.as_fd(),
        }
    }
}

impl AsRawFd for Door {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl Door {
    /// Where one connects to it, if that can be told.
    pub(super) fn address(&self) -> Option<Address> {
        match &self.listener {
            Listener::Unix(listener) => {
                let address = listener.local_addr().ok()?;
                Some(Address::Unix(address.as_pathname()?.to_owned()))
            }
            Listener::Tcp(listener) => listener.local_addr().ok().map(Address::Tcp),
        }
    }

    /// Nobody can connect any more to a socket of ours; who did already can still be accepted.
    pub(super) fn refuse_new(&self) {
        let own = self
            .own
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .is_some();
        if let Listener::Unix(listener) = &self.listener
            && own
        {
            // Fails on a listener that is shut already.
            let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Read);
        }
    }

    /// A connection that waits to be accepted, if there is one.
    pub(super) fn waiting(&self) -> io::Result<Arrival> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let accepted = rustix::net::accept_with(self, flags)?;
        Ok(match &self.listener {
            Listener::Unix(_) => {
                let credentials = getsockopt(&accepted, PeerCredentials)
                    .map_err(|_| io::ErrorKind::ConnectionAborted)?;
                Arrival::Unix(accepted.into(), credentials)
            }
            Listener::Tcp(_) => Arrival::Tcp(accepted.into()),
        })
    }

    /// Who connected to a Unix socket, by the kernel's word. `with_groups` reads the supplementary groups too.
    pub(super) fn peer(&self, arrival: &Arrival, with_groups: bool) -> Option<Peer> {
        let Arrival::Unix(stream, credentials) = arrival else {
            return None;
        };
        let (uid, gid) = (credentials.uid(), credentials.gid());
        let pid = Some(credentials.pid()).filter(|pid| *pid > 0);
        let mut groups = Vec::new();
        if with_groups {
            match groups_at_connect(stream.as_fd())
                .or_else(|| pid.and_then(|pid| supplementary(pid, uid, gid)))
            {
                Some(read) => groups = read,
                // Where /proc is hidden: whom the kernel let in, and who is neither root nor the owner, is of the group.
                None if self.closed_to_others && uid != 0 && uid != self.owner => {
                    groups.extend(self.group)
                }
                None => {}
            }
        }
        Some(Peer {
            uid,
            gid,
            groups,
            pid,
            unit: None,
        })
    }
}

/// A connection that was just accepted, which the event loop does not know yet.
#[derive(Debug)]
pub(super) enum Arrival {
    /// With what the kernel says of who connected.
    Unix(std::os::unix::net::UnixStream, UnixCredentials),
    Tcp(std::net::TcpStream),
}

impl Arrival {
    /// For the event loop. Must be called within a runtime.
    pub(super) fn into_stream(self) -> io::Result<Stream> {
        Ok(match self {
            Self::Unix(stream, _) => Stream::Unix(UnixStream::from_std(stream)?),
            Self::Tcp(stream) => Stream::Tcp(TcpStream::from_std(stream)?),
        })
    }

    /// The user on the other end of a Unix socket.
    pub(super) fn user(&self) -> Option<u32> {
        match self {
            Self::Unix(_, credentials) => Some(credentials.uid()),
            Self::Tcp(_) => None,
        }
    }
}

impl AsFd for Arrival {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream, _) => stream.as_fd(),
            Self::Tcp(stream) => stream.as_fd(),
        }
    }
}

/// The supplementary groups that a peer had when it connected, where the kernel tells them (`SO_PEERGROUPS`, Linux 4.13)
/// and they are not too many.
fn groups_at_connect(socket: BorrowedFd<'_>) -> Option<Vec<u32>> {
    let mut groups = [0_u32; MOST_GROUPS];
    let mut bytes = libc::socklen_t::try_from(size_of_val(&groups)).ok()?;
    #[allow(unsafe_code)]
    // SAFETY: the kernel writes at most `bytes` bytes, which is how long `groups` is; any bytes are integers.
    let told = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut bytes,
        )
    };
    let count = usize::try_from(bytes).ok()? / size_of::<u32>();
    (told == 0).then_some(groups.get(..count)?.to_vec())
}

/// The supplementary groups of a process, if it is still the one that connected.
fn supplementary(pid: i32, uid: u32, gid: u32) -> Option<Vec<u32>> {
    use std::io::Read;
    let mut status = Vec::new();
    let most = u64::try_from(MOST_STATUS_BYTES).ok()?;
    File::open(format!("/proc/{pid}/status"))
        .ok()?
        .take(most)
        .read_to_end(&mut status)
        .ok()?;
    access::groups_in_status(&String::from_utf8_lossy(&status), uid, gid)
}

/// The sockets of both sides.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) call: Vec<Door>,
    pub(super) admin: Option<Door>,
    pub(super) admin_tcp: Option<Door>,
}

/// Takes what systemd passes and makes the rest.
pub(super) fn open(config: &Config, names: &Names) -> Result<Opened, BindError> {
    let mut opened = Opened {
        call: Vec::new(),
        admin: None,
        admin_tcp: None,
    };
    for (fd, name) in passed()? {
        let door = adopt(fd, &name)?;
        match (
            name.strip_suffix(".socket").unwrap_or(&name),
            &door.listener,
        ) {
            ("sidetone", _) => opened.call.push(door),
            ("sidetone-admin", Listener::Unix(_)) if opened.admin.is_none() => {
                opened.admin = Some(door)
            }
            ("sidetone-admin", _) => {
                return Err(BindError::Passed {
                    name,
                    what: "must be one Unix socket; see ListenStream in its unit",
                });
            }
            _ => {
                let what = "is not known by that name; set FileDescriptorName to sidetone or sidetone-admin";
                return Err(BindError::Passed { name, what });
            }
        }
    }
    tell_other_places(config, &opened);
    let has = |doors: &[Door], unix: bool| {
        doors
            .iter()
            .any(|door| matches!(door.listener, Listener::Unix(_)) == unix)
    };
    let HttpConfig {
        unix,
        unix_mode,
        unix_group,
        tcp,
        ..
    } = &config.http;
    if !unix.as_os_str().is_empty() && !has(&opened.call, true) {
        let group = match unix_group.as_str() {
            "" => None,
            name => Some(names.group(name).ok_or_else(|| BindError::NoGroup {
                name: name.to_owned(),
            })?),
        };
        opened
            .call
            .push(unix_door("http.unix", unix, *unix_mode, group, 0o755)?);
    }
    if !tcp.is_empty() && !has(&opened.call, false) {
        opened.call.push(tcp_door("http.tcp", tcp)?);
    }
    let AdminConfig {
        unix, unix_mode, ..
    } = &config.admin;
    if !unix.as_os_str().is_empty() && opened.admin.is_none() {
        let directory = if unix_mode.0 & 0o007 != 0 {
            0o755
        } else if unix_mode.0 & 0o070 != 0 {
            0o750
        } else {
            0o700
        };
        opened.admin = Some(unix_door("admin.unix", unix, *unix_mode, None, directory)?);
    }
    if !config.admin.tcp.is_empty() {
        let gate = Some(Arc::new(Gate::load(&config.admin)?));
        let door = tcp_door("admin.tcp", &config.admin.tcp)?;
        opened.admin_tcp = Some(Door { gate, ..door });
    }
    Ok(opened)
}

/// Settings that name another place than systemd's socket have no effect, which whoever changed them should hear.
fn tell_other_places(config: &Config, opened: &Opened) {
    let doors = opened.call.iter().map(|door| (door, &config.http.unix));
    let doors = doors.chain(opened.admin.iter().map(|door| (door, &config.admin.unix)));
    for (door, unix) in doors {
        let is_named = match door.address() {
            Some(Address::Unix(path)) => path == *unix,
            Some(Address::Tcp(address)) => config.http.tcp.parse() == Ok(address),
            None => true,
        };
        if !is_named {
            tracing::warn!(
                socket = door.name,
                "systemd passes a socket at another place than the settings name; its unit decides (systemctl edit sidetone.socket)"
            );
        }
    }
}

/// Makes a Unix socket at `path`.
fn unix_door(
    key: &'static str,
    path: &Path,
    mode: FileMode,
    group: Option<u32>,
    directory_mode: u32,
) -> Result<Door, BindError> {
    let at = || path.display().to_string();
    let system = |step| {
        move |source| BindError::System {
            key,
            at: path.display().to_string(),
            step,
            source,
        }
    };
    let errno = |step| move |err: rustix::io::Errno| system(step)(err.into());

    directory(key, path, directory_mode)?;
    let lock = lock(path).map_err(system("open its lock file"))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            return Err(BindError::InUse {
                key,
                at: at(),
                what: "path",
            });
        }
        Err(err) => return Err(errno("lock its lock file")(err)),
    }
    match fs::symlink_metadata(path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        Err(err) => return Err(system("look at what stands there")(err)),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(BindError::NoSocket {
                key,
                path: path.to_owned(),
            });
        }
        Ok(_) if is_answered(path).map_err(system("ask whether anybody answers there"))? => {
            return Err(BindError::InUse {
                key,
                at: at(),
                what: "path",
            });
        }
        Ok(_) => {
            fs::remove_file(path).map_err(system("remove the socket on which nobody answers"))?
        }
    }

    let socket = UnixSocket::new_stream().map_err(system("make a socket"))?;
    socket.bind(path).map_err(system("bind"))?;
    // From here on the file is ours to remove, but nobody can connect before `listen`.
    let file = fs::symlink_metadata(path).map_err(system("look at the new socket"))?;
    let own = Own {
        path: path.to_owned(),
        inode: (file.dev(), file.ino()),
        _lock: lock,
    };
    if let Some(group) = group {
        std::os::unix::fs::lchown(path, None, Some(group)).map_err(system(
            "give it to http.unix_group; is the daemon's user a member of it?",
        ))?;
    }
    fs::set_permissions(path, Permissions::from_mode(mode.0)).map_err(system("set its mode"))?;
    let file = fs::symlink_metadata(path).map_err(system("look at the new socket"))?;
    let listener = socket
        .listen(BACKLOG)
        .and_then(tokio::net::UnixListener::into_std);
    let listener = listener.map_err(system("listen"))?;
    Ok(Door {
        listener: Listener::Unix(listener),
        name: at(),
        group: (file.mode() & 0o020 != 0).then_some(file.gid()),
        closed_to_others: file.mode() & 0o002 == 0,
        owner: file.uid(),
        gate: None,
        own: Mutex::new(Some(own)),
    })
}

/// Makes the directory where it is missing, and refuses one in which anybody could put a socket in our place.
fn directory(key: &'static str, path: &Path, mode: u32) -> Result<(), BindError> {
    let system = |step| {
        move |source| BindError::System {
            key,
            at: path.display().to_string(),
            step,
            source,
        }
    };
    let Some(directory) = path.parent() else {
        return Ok(());
    };
    let found = match fs::metadata(directory) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .map_err(system("make its directory"))?;
            fs::set_permissions(directory, Permissions::from_mode(mode))
                .map_err(system("set its directory's mode"))?;
            fs::metadata(directory)
        }
        found => found,
    };
    let found = found.map_err(system("look at its directory"))?;
    let owner = found.uid();
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(BindError::ForeignDirectory {
            key,
            path: path.to_owned(),
            owner,
        });
    }
    // Whoever may write to one above could put another in its place.
    let real = fs::canonicalize(directory).map_err(system("look at its directory"))?;
    for above in real.ancestors() {
        let mode = fs::metadata(above)
            .map_err(system("look at the directories above"))?
            .mode();
        if mode & 0o002 != 0 && mode & 0o1000 == 0 {
            return Err(BindError::OpenDirectory {
                key,
                path: path.to_owned(),
            });
        }
    }
    Ok(())
}

/// The file beside a socket that its process holds locked. It stays: removing it would let two in.
fn lock(path: &Path) -> io::Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let flags = (OFlags::NOFOLLOW | OFlags::CLOEXEC).bits();
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(i32::try_from(flags).unwrap_or(0))
        .open(name)
}

/// Whether somebody listens on a socket. Never waits: a full backlog is somebody's.
fn is_answered(path: &Path) -> io::Result<bool> {
    use rustix::io::Errno;
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE | Errno::ACCESS) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(err) => Err(err.into()),
    }
}

fn tcp_door(key: &'static str, tcp: &str) -> Result<Door, BindError> {
    let system = |step| {
        move |source| BindError::System {
            key,
            at: tcp.to_owned(),
            step,
            source,
        }
    };
    let address: SocketAddr = tcp
        .parse()
        .map_err(|_| system("read the address")(io::ErrorKind::InvalidInput.into()))?;
    let socket = if address.is_ipv4() {
        tokio::net::TcpSocket::new_v4()
    } else {
        tokio::net::TcpSocket::new_v6()
    };
    let socket = socket.map_err(system("make a socket"))?;
    // A port that an earlier process just left can be taken again; one that is in use cannot.
    socket
        .set_reuseaddr(true)
        .map_err(system("set an option"))?;
    let in_use = |err: io::Error| match err.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse {
            key,
            at: tcp.to_owned(),
            what: "port",
        },
        _ => system("bind")(err),
    };
    socket.bind(address).map_err(in_use)?;
    let listener = socket
        .listen(BACKLOG)
        .and_then(tokio::net::TcpListener::into_std);
    let listener = listener.map_err(in_use)?;
    over_tcp(listener).map_err(system("set an option"))
}

fn over_tcp(listener: TcpListener) -> io::Result<Door> {
    let name = listener
        .local_addr()
        .map(|address| address.to_string())
        .unwrap_or_default();
    // Whatever it accepts has the option too.
    sockopt::set_tcp_nodelay(&listener, true)?;
    Ok(Door {
        listener: Listener::Tcp(listener),
        name,
        group: None,
        closed_to_others: false,
        owner: 0,
        gate: None,
        own: Mutex::default(),
    })
}

/// A socket that systemd holds.
pub(super) fn adopt(fd: OwnedFd, name: &str) -> Result<Door, BindError> {
    let wrong = |what| BindError::Passed {
        name: name.to_owned(),
        what,
    };
    let unusable = |_| wrong("cannot be used");
    if sockopt::socket_type(&fd) != Ok(SocketType::STREAM)
        || sockopt::socket_acceptconn(&fd) != Ok(true)
    {
        return Err(wrong(
            "is no listening stream socket; see ListenStream and Accept=no in its unit",
        ));
    }
    match sockopt::socket_domain(&fd) {
        Ok(AddressFamily::UNIX) => {
            let listener = UnixListener::from(fd);
            listener.set_nonblocking(true).map_err(unusable)?;
            let path = listener
                .local_addr()
                .ok()
                .and_then(|address| Some(address.as_pathname()?.to_owned()));
            let file = path.as_ref().and_then(|path| fs::metadata(path).ok());
            let mode = file.as_ref().map_or(0, MetadataExt::mode);
            Ok(Door {
                listener: Listener::Unix(listener),
                name: path
                    .map(|path| path.display().to_string())
                    .unwrap_or_default(),
                group: file
                    .as_ref()
                    .map(MetadataExt::gid)
                    .filter(|_| mode & 0o020 != 0),
                closed_to_others: file.is_some() && mode & 0o002 == 0,
                owner: file.as_ref().map_or(0, MetadataExt::uid),
                gate: None,
                own: Mutex::default(),
            })
        }
        Ok(AddressFamily::INET | AddressFamily::INET6) => {
            let listener = TcpListener::from(fd);
            listener.set_nonblocking(true).map_err(unusable)?;
            if !listener
                .local_addr()
                .is_ok_and(|address| address.ip().is_loopback())
            {
                return Err(wrong(
                    "is not at a loopback address; what stands there is answered without asking who calls",
                ));
            }
            over_tcp(listener).map_err(unusable)
        }
        _ => Err(wrong("is neither a Unix nor a TCP socket")),
    }
}

/// The sockets that systemd passed to this process, with their names. Given out once.
fn passed() -> Result<Vec<(OwnedFd, String)>, BindError> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let fds = sd_notify::listen_fds_with_names().map_err(|source| BindError::System {
        key: "sockets",
        at: "passed by systemd".to_owned(),
        step: "be taken over",
        source,
    })?;
    #[allow(unsafe_code)]
    let own = |fd| {
        // SAFETY: systemd opened these descriptors for this process and nothing else in it knows them: they are
        // claimed here, once per process (`TAKEN`), and `listen_fds_with_names` has just set a flag on each, so
        // that each is open.
        unsafe { OwnedFd::from_raw_fd(fd) }
    };
    Ok(fds.map(|(fd, name)| (own(fd), name)).collect())
}

/// What is wrong with the settings of this file on this host, for `check`.
pub(super) fn problems(config: &Config, names: &Names) -> Vec<Problem> {
    let name = &config.http.unix_group;
    if name.is_empty() || names.group(name).is_some() {
        return Vec::new();
    }
    let what = format!("no group {name:?} in /etc/group; create it, or name it by its number");
    vec![Problem {
        place: String::new(),
        key: "http.unix_group".to_owned(),
        what,
    }]
}
