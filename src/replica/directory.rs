//! The replica's directory: this user's alone, one process at a time, and what is of no use set aside in it.

use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::ReplicaError;

/// Damaged files kept for whoever wants to know why.
const KEPT_ASIDE: usize = 2;

/// Makes the directory, and refuses one that others can write or read.
pub(super) fn safe_directory(dir: &Path) -> Result<(), ReplicaError> {
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
pub(super) fn lock_directory(dir: &Path) -> Result<File, ReplicaError> {
    let open = |source| ReplicaError::Open {
        path: dir.to_path_buf(),
        source,
    };
    let lock = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join("lock"))
        .or_else(|err| File::open(dir.join("lock")).map_err(|_| err))
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
pub(super) fn set_aside(file: &Path) -> io::Result<PathBuf> {
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
