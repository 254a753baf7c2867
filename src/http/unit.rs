//! Which systemd unit a caller belongs to, by the kernel's word about the process that connected.
//!
//! A process number says nothing once its process has ended: another may have it. So the number is tied to the
//! connection by the kernel's pidfd of the peer (Linux 6.5). Before that kernel the process must have been there for
//! [`LEAST_AGE`] when its connection was accepted. Whatever is read comes through one open directory of `/proc`, which
//! is of one process for good. Anything in doubt is no unit.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt::PeerPidfd};
use rustix::fs::{Mode, OFlags};
use rustix::time::{ClockId, clock_gettime};

use crate::access;

/// Where the kernel has no pidfd of a peer: how old a process must be, so that its number cannot have been left to it
/// by one that connected and ended while the connection waited to be accepted.
const LEAST_AGE: Duration = Duration::from_secs(1);

/// Length of the unit in which `/proc/<pid>/stat` tells times.
const TICK: Duration = Duration::from_millis(10);

/// Longest file of `/proc` that is read.
const MOST_BYTES: u64 = 64 * 1024;

/// The unit of the process that connected, which the kernel named `pid`, and was accepted at that time.
pub(super) fn of_peer(
    stream: &impl std::os::fd::AsFd,
    pid: i32,
    accepted: Instant,
) -> Option<String> {
    if pid <= 0 {
        return None;
    }
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let process = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty()).ok()?;
    let cgroup = read_in(&process, "cgroup")?;
    match getsockopt(stream, PeerPidfd) {
        // Still the peer's number, so it was when the directory was opened.
        Ok(pidfd) => is_still(&pidfd, pid)?,
        Err(Errno::ENOPROTOOPT) => {
            let age = age_at(&read_in(&process, "stat")?, since_boot()?)?;
            (age >= LEAST_AGE.saturating_add(accepted.elapsed())).then_some(())?;
        }
        Err(_) => return None,
    }
    access::unit_in_cgroup(&cgroup).map(str::to_owned)
}

/// Why no caller's unit can be told on this host, if so.
pub(super) fn cannot_be_told() -> Option<&'static str> {
    let pair = UnixStream::pair().ok()?;
    if let Err(err) = getsockopt(&pair.0, PeerPidfd)
        && err != Errno::ENOPROTOOPT
    {
        return Some("the kernel does not tell which process connected");
    }
    if std::fs::read("/proc/1/cgroup").is_err() {
        return Some("other users' processes are hidden in /proc (hidepid, ProtectProc)");
    }
    None
}

/// Whether the process of a pidfd is there, ended or not, under this number.
fn is_still(pidfd: &OwnedFd, pid: i32) -> Option<()> {
    let info = read(File::open(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd())).ok()?)?;
    let told: i32 = info
        .lines()
        .find_map(|line| line.strip_prefix("Pid:"))?
        .trim()
        .parse()
        .ok()?;
    (told == pid).then_some(())
}

fn read_in(process: &OwnedFd, name: &str) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(process, name, flags, Mode::empty()).ok()?;
    read(File::from(file))
}

fn read(file: File) -> Option<String> {
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn since_boot() -> Option<Duration> {
    let now = clock_gettime(ClockId::Boottime);
    Some(Duration::new(
        u64::try_from(now.tv_sec).ok()?,
        u32::try_from(now.tv_nsec).ok()?,
    ))
}

/// How old a process is at `now`, both since the machine's start, by its `/proc/<pid>/stat`.
fn age_at(stat: &str, now: Duration) -> Option<Duration> {
    // The second field is a name in parentheses that may hold anything; the start is the 22nd.
    let (_, rest) = stat.rsplit_once(')')?;
    let ticks: u32 = rest.split_ascii_whitespace().nth(19)?.parse().ok()?;
    now.checked_sub(TICK.checked_mul(ticks)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_is_counted_from_the_22nd_field_whatever_the_process_calls_itself() {
        let stat = "77 (a) b) 9) S 1 77 77 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 1500 1 2 3";
        assert_eq!(
            age_at(stat, Duration::from_secs(17)),
            Some(Duration::from_secs(2))
        );
        assert_eq!(age_at(stat, Duration::from_secs(14)), None);
        assert_eq!(age_at("77 (x) S", Duration::from_secs(14)), None);
    }

    #[test]
    fn a_pidfd_is_of_its_own_process_and_no_other() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let Ok(pidfd) = getsockopt(&ours, PeerPidfd) else {
            return; // an older kernel
        };
        let own = rustix::process::getpid().as_raw_nonzero().get();
        assert_eq!(is_still(&pidfd, own), Some(()));
        assert_eq!(is_still(&pidfd, own + 1), None);
    }
}
