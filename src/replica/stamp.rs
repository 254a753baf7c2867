//! When level was last proved, kept over restarts so that a node never calls itself younger than it is.
//!
//! Written at every proof without fsync: what a power cut takes makes the node look older, never younger.
//! Read by the clock since boot where the boot is the same one, which no clock correction moves; else by the wall clock.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::health::since_boot;

const LENGTH: usize = 16 + 8 + 8 + 8;

/// The file `level` of the replica's directory.
#[derive(Debug)]
pub(super) struct StampFile {
    file: File,
    boot: [u8; 16],
}

impl StampFile {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            // Where nothing can be written, an earlier proof still counts.
            .or_else(|err| File::open(path).map_err(|_| err))?;
        Ok(Self {
            file,
            boot: boot_id(),
        })
    }

    /// Level was proved at this time since boot.
    pub(super) fn write(&self, proven: Duration) -> io::Result<()> {
        let age = since_boot().saturating_sub(proven);
        let wall = wall().saturating_sub(age);
        self.file.write_all_at(&encode(&self.boot, proven, wall), 0)
    }

    /// How long ago level was proved; `None` when it never was or the file says nothing sure.
    pub(super) fn age(&self) -> Option<Duration> {
        let mut bytes = Vec::new();
        (&self.file)
            .take(u64::try_from(LENGTH).unwrap_or(u64::MAX))
            .read_to_end(&mut bytes)
            .ok()?;
        age(&bytes, &self.boot, since_boot(), wall())
    }
}

fn wall() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Sixteen bytes that differ after each boot; zero where the kernel does not tell.
fn boot_id() -> [u8; 16] {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .ok()
        .and_then(|text| uuid::Uuid::parse_str(text.trim()).ok())
        .map(uuid::Uuid::into_bytes)
        .unwrap_or_default()
}

fn millis(duration: Duration) -> [u8; 8] {
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX)
        .to_le_bytes()
}

fn encode(boot: &[u8; 16], proven: Duration, wall: Duration) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(LENGTH);
    bytes.extend_from_slice(boot);
    bytes.extend_from_slice(&millis(proven));
    bytes.extend_from_slice(&millis(wall));
    let sum = blake3::hash(&bytes);
    bytes.extend(sum.as_bytes().iter().take(8));
    bytes
}

fn age(bytes: &[u8], boot: &[u8; 16], boot_now: Duration, wall_now: Duration) -> Option<Duration> {
    let (body, sum) = bytes.split_at_checked(LENGTH.checked_sub(8)?)?;
    if blake3::hash(body).as_bytes().get(..8)? != sum {
        return None;
    }
    let number = |at: usize| -> Option<Duration> {
        let bytes: [u8; 8] = body.get(at..at.checked_add(8)?)?.try_into().ok()?;
        Some(Duration::from_millis(u64::from_le_bytes(bytes)))
    };
    let (proven, wall_then) = (number(16)?, number(24)?);
    if body.get(..16)? == boot && *boot != [0; 16] {
        return boot_now.checked_sub(proven);
    }
    // Another boot: at least this boot is between. A wall clock that went back says nothing more.
    Some(wall_now.checked_sub(wall_then)?.max(boot_now))
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn within_one_boot_the_wall_clock_does_not_matter() {
        let stamp = encode(&[1; 16], S(100), S(5000));
        assert_eq!(age(&stamp, &[1; 16], S(130), S(9)), Some(S(30)));
    }

    #[test]
    fn after_a_boot_the_age_is_at_least_the_uptime() {
        let stamp = encode(&[1; 16], S(100), S(5000));
        assert_eq!(age(&stamp, &[2; 16], S(20), S(6000)), Some(S(1000)));
        assert_eq!(age(&stamp, &[2; 16], S(20), S(5001)), Some(S(20)));
    }

    #[test]
    fn a_clock_that_went_back_or_a_damaged_stamp_says_nothing() {
        let mut stamp = encode(&[1; 16], S(100), S(5000));
        assert_eq!(age(&stamp, &[2; 16], S(20), S(4000)), None);
        stamp[20] ^= 1;
        assert_eq!(age(&stamp, &[1; 16], S(130), S(5030)), None);
        assert_eq!(age(&[], &[1; 16], S(130), S(5030)), None);
    }

    #[test]
    fn a_proof_is_read_back_as_an_age() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("level");
        assert_eq!(StampFile::open(&path).unwrap().age(), None);
        StampFile::open(&path)
            .unwrap()
            .write(since_boot().saturating_sub(S(7)))
            .unwrap();
        let age = StampFile::open(&path).unwrap().age().unwrap();
        assert!(age >= S(7) && age < S(60), "{age:?}");
    }
}
