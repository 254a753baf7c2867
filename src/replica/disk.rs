//! The file under the storage engine, and what is left of it when the disk takes nothing any more.
//!
//! The engine gives up on a file for good after one failed write, reads included. So a file that cannot be written is
//! opened again as it stands, and whatever the engine itself wants to write into it stays in memory: rows are read as of
//! the last commit, and nothing is promised that is not on disk, for no batch is applied to such a file.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use redb::StorageBackend;

const PAGE: u64 = 4096;
/// What must fit before a full disk is taken for one with room again.
const PROBE: usize = 256 << 10;

/// Why the disk took nothing any more: the first error.
pub(super) type Trouble = Arc<OnceLock<String>>;

/// A file as the engine sees it.
#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    /// What is written stays here, where the file itself is only read.
    over: Option<Mutex<Over>>,
    trouble: Trouble,
}

#[derive(Debug, Default)]
struct Over {
    length: u64,
    pages: BTreeMap<u64, Vec<u8>>,
}

impl Disk {
    /// For reading and writing; made if missing.
    pub(super) fn writable(path: &Path) -> io::Result<(Self, Trouble)> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        Ok(Self::on(file, None))
    }

    /// For reading alone: the file stays as it is.
    pub(super) fn read_only(path: &Path) -> io::Result<(Self, Trouble)> {
        let file = File::open(path)?;
        let over = Over {
            length: file.metadata()?.len(),
            pages: BTreeMap::new(),
        };
        Ok(Self::on(file, Some(Mutex::new(over))))
    }

    fn on(file: File, over: Option<Mutex<Over>>) -> (Self, Trouble) {
        let trouble = Trouble::default();
        let disk = Self {
            file,
            over,
            trouble: Arc::clone(&trouble),
        };
        (disk, trouble)
    }

    /// After the first error nothing is written any more: somebody else may have opened the file since.
    fn takes(&self) -> io::Result<()> {
        match self.trouble.get() {
            Some(why) => Err(io::Error::other(why.clone())),
            None => Ok(()),
        }
    }

    fn kept<T>(&self, done: io::Result<T>) -> io::Result<T> {
        if let Err(err) = &done {
            let _ = self.trouble.set(err.to_string());
        }
        done
    }
}

impl Over {
    fn read(&self, file: &File, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset.saturating_add(length(out.len())) > self.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        by_page(offset, out.len(), |page, start, range| {
            let Some(to) = out.get_mut(range) else {
                return Ok(());
            };
            let read;
            let from = match self.pages.get(&page) {
                Some(kept) => kept,
                None => {
                    read = page_of(file, page)?;
                    &read
                }
            };
            to.iter_mut()
                .zip(from.iter().skip(start))
                .for_each(|(to, from)| *to = *from);
            Ok(())
        })
    }

    fn write(&mut self, file: &File, offset: u64, data: &[u8]) -> io::Result<()> {
        self.length = self.length.max(offset.saturating_add(length(data.len())));
        by_page(offset, data.len(), |page, start, range| {
            let kept = match self.pages.entry(page) {
                Entry::Occupied(kept) => kept.into_mut(),
                Entry::Vacant(free) => free.insert(page_of(file, page)?),
            };
            let from = data.get(range).unwrap_or_default();
            kept.iter_mut()
                .skip(start)
                .zip(from)
                .for_each(|(to, from)| *to = *from);
            Ok(())
        })
    }
}

fn lock(over: &Mutex<Over>) -> MutexGuard<'_, Over> {
    over.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As much of the page as the file has, zeros after that.
fn page_of(file: &File, page: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(PAGE).unwrap_or_default()];
    let mut had = 0;
    while let Some(rest) = bytes.get_mut(had..).filter(|rest| !rest.is_empty()) {
        let at = page.saturating_mul(PAGE).saturating_add(length(had));
        match file.read_at(rest, at)? {
            0 => break,
            more => had = had.saturating_add(more),
        }
    }
    Ok(bytes)
}

fn length(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// Calls `each` with every page that a stretch of bytes touches, where in the page it begins, and its bytes there.
fn by_page(
    mut offset: u64,
    bytes: usize,
    mut each: impl FnMut(u64, usize, std::ops::Range<usize>) -> io::Result<()>,
) -> io::Result<()> {
    let mut done = 0;
    while done < bytes {
        let start = offset.checked_rem(PAGE).unwrap_or_default();
        let room = usize::try_from(PAGE.saturating_sub(start)).unwrap_or_default();
        let end = done.saturating_add(room).min(bytes);
        each(
            offset.checked_div(PAGE).unwrap_or_default(),
            usize::try_from(start).unwrap_or_default(),
            done..end,
        )?;
        offset = offset.saturating_add(length(end.saturating_sub(done)));
        done = end;
    }
    Ok(())
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        match &self.over {
            Some(over) => Ok(lock(over).length),
            None => self.kept(self.file.metadata().map(|found| found.len())),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.kept(match &self.over {
            Some(over) => lock(over).read(&self.file, offset, out),
            None => self.file.read_exact_at(out, offset),
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match &self.over {
            Some(over) => {
                lock(over).length = len;
                Ok(())
            }
            None => self.kept(self.takes().and_then(|()| self.file.set_len(len))),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        match &self.over {
            Some(_) => Ok(()),
            None => self.kept(self.takes().and_then(|()| self.file.sync_data())),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.kept(match &self.over {
            Some(over) => lock(over).write(&self.file, offset, data),
            None => self
                .takes()
                .and_then(|()| self.file.write_all_at(data, offset)),
        })
    }
}

/// Whether the directory takes writes, tried with a small file.
pub(super) fn has_room(dir: &Path) -> io::Result<()> {
    let path = dir.join("room");
    let tried = File::create(&path).and_then(|mut file| {
        file.write_all(&vec![0x5a; PROBE])?;
        file.sync_all()
    });
    let removed = std::fs::remove_file(&path);
    tried.and(removed)
}

#[cfg(test)]
mod tests {
    use redb::StorageBackend as _;

    use super::*;

    #[test]
    fn a_file_that_is_only_read_shows_what_was_written_over_it_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let before: Vec<u8> = (0..10_000_u32).map(|i| i.to_le_bytes()[0]).collect();
        std::fs::write(&path, &before).unwrap();
        let (disk, _) = Disk::read_only(&path).unwrap();
        let mut expected = before.clone();
        for (at, bytes) in [(0, 1), (4090, 20), (8192, 1808), (9_999, 5000), (3, 9000)] {
            let data = vec![0xab; bytes];
            disk.write(at as u64, &data).unwrap();
            expected.resize(expected.len().max(at + bytes), 0);
            expected[at..at + bytes].copy_from_slice(&data);
            let mut read = vec![0; expected.len()];
            disk.read(0, &mut read).unwrap();
            assert!(read == expected, "at {at}");
        }
        assert_eq!(disk.len().unwrap(), expected.len() as u64);
        assert!(disk.read(expected.len() as u64, &mut [0]).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_trouble_whether_it_is_written_or_only_read() {
        // A directory opens as a file does, and does not read as one.
        let dir = tempfile::tempdir().unwrap();
        let (disk, trouble) = Disk::read_only(dir.path()).unwrap();
        lock(disk.over.as_ref().unwrap()).length = PAGE;
        assert!(disk.read(0, &mut [0]).is_err());
        assert!(trouble.get().is_some());
    }

    #[test]
    fn after_an_error_nothing_is_written_to_a_file_that_others_may_have_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, _) = Disk::writable(&dir.path().join("file")).unwrap();
        disk.write(0, b"before").unwrap();
        assert!(disk.read(3, &mut [0; 9]).is_err());
        assert!(disk.write(0, b"after!").is_err() && disk.set_len(1).is_err());
        assert!(disk.sync_data().is_err());
        let mut is = [0; 6];
        disk.read(0, &mut is).unwrap();
        assert_eq!(&is, b"before");
    }
}
