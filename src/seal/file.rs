//! The keyring's file: who may read it is checked on the opened file, and it is replaced whole.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, OFlags, Uid};
use zeroize::Zeroizing;

use super::{Keyring, KeyringFault, into_text};

/// Most bytes of a keyring file.
const MAX_FILE_BYTES: usize = 64 * 1024;

/// Why a keyring file cannot be used or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// It cannot be opened.
    #[error(
        "keyring {path}: cannot be opened; make one with `sidetone keygen` or correct keys.file"
    )]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It cannot be read.
    #[error("keyring {path}: cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is a directory, a pipe, a device.
    #[error("keyring {path}: not a regular file; correct keys.file")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Its owner is someone else.
    #[error(
        "keyring {path}: owned by uid {owner}, neither root nor this process's uid {own}; chown it"
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who we are.
        own: u32,
    },
    /// Others than its owner may read or write it.
    #[error("keyring {path}: mode {mode:04o} lets others than its owner at it; chmod it to 0600")]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It is too long.
    #[error("keyring {path}: longer than {MAX_FILE_BYTES} bytes; correct keys.file")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// Its text is no keyring.
    #[error("keyring {path}: not a usable keyring")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with the text.
        source: KeyringFault,
    },
    /// A file is there already.
    #[error("keyring {path}: exists already; add a key to it with `--add` or choose another file")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// It has no place to stand in.
    #[error("keyring {path}: its directory is not there; make it first")]
    NoDirectory {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be written.
    #[error("keyring {path}: cannot be written")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Keyring {
    /// The keyring in the file at `path`, which only its owner may read.
    ///
    /// # Errors
    /// When the file cannot be read, others may read it, or its text is no keyring.
    pub fn load(path: &Path) -> Result<Self, KeyringError> {
        let text = read_keyring(path)?;
        Self::parse(&text).map_err(|source| content(path, source))
    }
}

/// The text of the keyring file at `path`, under the same checks as [`Keyring::load`].
///
/// # Errors
/// When the file cannot be read, or others than its owner may read or write it.
pub fn read_keyring(path: &Path) -> Result<Zeroizing<String>, KeyringError> {
    read(path, std::env::var_os("CREDENTIALS_DIRECTORY"))
}

fn read(path: &Path, credentials: Option<OsString>) -> Result<Zeroizing<String>, KeyringError> {
    // Without NONBLOCK a pipe in the file's place would hold us until someone writes to it.
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let mut file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
        .map_err(|source| KeyringError::Open {
            path: path.to_owned(),
            source,
        })?;
    let failed = |source| KeyringError::Read {
        path: path.to_owned(),
        source,
    };
    let facts = Facts::of(&file.metadata().map_err(failed)?);
    let refused = refused_bits(path, credentials);
    facts.check(path, rustix::process::geteuid().as_raw(), refused)?;

    // Room for one byte too many, and never grown: growing would leave copies of keys behind.
    let mut bytes = Zeroizing::new(vec![0; MAX_FILE_BYTES.saturating_add(1)]);
    let mut held = 0_usize;
    while let Some(room) = bytes.get_mut(held..).filter(|room| !room.is_empty()) {
        match file.read(room) {
            Ok(0) => break,
            Ok(more) => held = held.saturating_add(more),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) => return Err(failed(err)),
        }
    }
    if held > MAX_FILE_BYTES {
        return Err(KeyringError::TooLong {
            path: path.to_owned(),
        });
    }
    bytes.truncate(held);
    into_text(bytes).ok_or_else(|| content(path, KeyringFault::NotText))
}

/// What the checks look at, taken from the opened file.
#[derive(Clone, Copy)]
struct Facts {
    regular: bool,
    mode: u32,
    owner: u32,
    bytes: u64,
}

impl Facts {
    fn of(file: &Metadata) -> Self {
        Self {
            regular: file.is_file(),
            mode: file.mode() & 0o7777,
            owner: file.uid(),
            bytes: file.len(),
        }
    }

    fn check(self, path: &Path, own: u32, refused: u32) -> Result<(), KeyringError> {
        let path = || path.to_owned();
        if !self.regular {
            return Err(KeyringError::NotAFile { path: path() });
        }
        if self.owner != 0 && self.owner != own {
            let owner = self.owner;
            return Err(KeyringError::Owner {
                path: path(),
                owner,
                own,
            });
        }
        if self.mode & refused != 0 {
            let mode = self.mode;
            return Err(KeyringError::Mode { path: path(), mode });
        }
        if self.bytes > MAX_FILE_BYTES as u64 {
            return Err(KeyringError::TooLong { path: path() });
        }
        Ok(())
    }
}

/// Whether a file with a secret lets others at it than it may.
#[must_use]
pub fn lets_others_in(path: &Path, mode: u32) -> bool {
    mode & refused_bits(path, std::env::var_os("CREDENTIALS_DIRECTORY")) != 0
}

/// Whether a file is a credential of the service: it stays what it was when the service started.
#[must_use]
pub fn is_credential(path: &Path) -> bool {
    std::env::var_os("CREDENTIALS_DIRECTORY").is_some_and(|dir| is_inside(path, Path::new(&dir)))
}

/// Systemd gives a service its credentials through an access list, which shows as group bits.
fn refused_bits(path: &Path, credentials: Option<OsString>) -> u32 {
    if credentials.is_some_and(|dir| is_inside(path, Path::new(&dir))) {
        0o037
    } else {
        0o077
    }
}

fn is_inside(path: &Path, dir: &Path) -> bool {
    match (fs::canonicalize(path), fs::canonicalize(dir)) {
        (Ok(path), Ok(dir)) => path.starts_with(dir),
        _ => false,
    }
}

/// What [`write_keyring`] does about a file that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// Refuses to touch it.
    New,
    /// Replaces it, keeping its owner.
    Replace,
}

/// Writes the keyring `text` to `path` with mode 0600: whole or not at all, and on disk on return.
///
/// # Errors
/// When `text` is no keyring, when `path` exists and is not to be replaced (or does not and is), or
/// when the system refuses.
pub fn write_keyring(path: &Path, text: &str, write: Write) -> Result<(), KeyringError> {
    Keyring::parse(text).map_err(|source| content(path, source))?;
    replace(path, text, write).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => KeyringError::Exists {
            path: path.to_owned(),
        },
        io::ErrorKind::NotFound if write == Write::New => KeyringError::NoDirectory {
            path: path.to_owned(),
        },
        _ => KeyringError::Write {
            path: path.to_owned(),
            source,
        },
    })
}

fn replace(path: &Path, text: &str, write: Write) -> io::Result<()> {
    let path = match write {
        Write::New => path.to_owned(),
        // A link stays a link; what it leads to is replaced.
        Write::Replace => fs::canonicalize(path)?,
    };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".keyring-")
        .tempfile_in(dir)?;
    file.write_all(text.as_bytes())?;
    if write == Write::Replace {
        let (old, new) = (fs::metadata(&path)?, file.as_file().metadata()?);
        if (old.uid(), old.gid()) != (new.uid(), new.gid()) {
            let (owner, group) = (Uid::from_raw(old.uid()), Gid::from_raw(old.gid()));
            rustix::fs::fchown(file.as_file(), Some(owner), Some(group))?;
        }
    }
    file.as_file().sync_all()?;
    match write {
        Write::New => file.persist_noclobber(&path).map_err(|err| err.error)?,
        Write::Replace => file.persist(&path).map_err(|err| err.error)?,
    };
    File::open(dir)?.sync_all()
}

fn content(path: &Path, source: KeyringFault) -> KeyringError {
    KeyringError::Content {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const RING: &str =
        "seal = \"k1\"\n[open]\nk1 = \"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\"\n";

    struct Dir(tempfile::TempDir);

    impl Dir {
        fn new() -> Self {
            Self(tempfile::tempdir().expect("a directory"))
        }

        fn file(&self, text: &[u8], mode: u32) -> PathBuf {
            let path = self.0.path().join("keyring.toml");
            fs::write(&path, text).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("mode set");
            path
        }
    }

    #[test]
    fn a_file_only_its_owner_may_read_is_loaded() {
        let dir = Dir::new();
        let ring = Keyring::load(&dir.file(RING.as_bytes(), 0o600)).expect("loaded");
        assert_eq!(ring.seal_id(), "k1");
        Keyring::load(&dir.file(RING.as_bytes(), 0o400)).expect("loaded");
    }

    #[test]
    fn a_file_that_others_may_read_or_write_is_refused() {
        let dir = Dir::new();
        for mode in [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o440] {
            let err = Keyring::load(&dir.file(RING.as_bytes(), mode)).expect_err("refused");
            assert!(matches!(err, KeyringError::Mode { mode: told, .. } if told == mode));
            assert!(err.to_string().contains("keyring.toml: mode 0"), "{err}");
        }
    }

    #[test]
    fn a_systemd_credential_may_be_readable_by_its_group_but_not_more() {
        let dir = Dir::new();
        let credentials = || Some(dir.0.path().as_os_str().to_owned());
        let path = dir.file(RING.as_bytes(), 0o440);
        read(&path, credentials()).expect("inside the credentials directory");
        let elsewhere = Dir::new();
        let other = Some(elsewhere.0.path().as_os_str().to_owned());
        assert!(matches!(read(&path, other), Err(KeyringError::Mode { .. })));
        let around = dir
            .0
            .path()
            .join("../")
            .join(elsewhere.0.path().file_name().unwrap());
        let around = around.join("keyring.toml");
        elsewhere.file(RING.as_bytes(), 0o440);
        assert!(matches!(
            read(&around, credentials()),
            Err(KeyringError::Mode { .. })
        ));
        for mode in [0o460, 0o444, 0o450] {
            let path = dir.file(RING.as_bytes(), mode);
            assert!(matches!(
                read(&path, credentials()),
                Err(KeyringError::Mode { .. })
            ));
        }
    }

    #[test]
    fn a_file_belongs_to_root_or_to_us() {
        let mine = Facts {
            regular: true,
            mode: 0o600,
            owner: 70,
            bytes: 10,
        };
        let path = Path::new("/k");
        assert!(mine.check(path, 70, 0o077).is_ok());
        assert!(Facts { owner: 0, ..mine }.check(path, 70, 0o077).is_ok());
        let theirs = Facts { owner: 71, ..mine }.check(path, 70, 0o077);
        assert!(matches!(
            theirs,
            Err(KeyringError::Owner {
                owner: 71,
                own: 70,
                ..
            })
        ));
        // The owner is checked for a credential of systemd too.
        assert!(Facts { owner: 71, ..mine }.check(path, 70, 0o037).is_err());
    }

    #[test]
    fn only_a_regular_file_is_read_and_a_pipe_does_not_hold_us() {
        let dir = Dir::new();
        let err = Keyring::load(dir.0.path()).expect_err("a directory");
        assert!(matches!(err, KeyringError::NotAFile { .. }));
        let pipe = dir.0.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).expect("a pipe");
        assert!(matches!(
            Keyring::load(&pipe),
            Err(KeyringError::NotAFile { .. })
        ));
        let err = Keyring::load(&dir.0.path().join("none")).expect_err("no file");
        assert!(matches!(err, KeyringError::Open { .. }));
    }

    #[test]
    fn a_file_of_64_kib_is_read_and_a_longer_one_is_refused() {
        let dir = Dir::new();
        let fill = |bytes: usize| format!("{RING}{}", "#".repeat(bytes - RING.len()));
        Keyring::load(&dir.file(fill(64 * 1024).as_bytes(), 0o600)).expect("loaded");
        let err = Keyring::load(&dir.file(fill(64 * 1024 + 1).as_bytes(), 0o600));
        assert!(matches!(err, Err(KeyringError::TooLong { .. })));
    }

    #[test]
    fn text_that_is_no_keyring_is_told_with_its_path_and_the_cause() {
        use std::error::Error;
        let dir = Dir::new();
        let err = Keyring::load(&dir.file(b"seal = \"\xff\"", 0o600)).expect_err("refused");
        let cause = err.source().expect("a cause").to_string();
        assert_eq!(cause, KeyringFault::NotText.to_string());
        assert!(
            err.to_string()
                .ends_with("keyring.toml: not a usable keyring"),
            "{err}"
        );
    }

    #[test]
    fn a_new_keyring_is_written_for_its_owner_alone_and_overwrites_nothing() {
        let dir = Dir::new();
        let path = dir.0.path().join("keyring.toml");
        write_keyring(&path, RING, Write::New).expect("written");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        let other = Keyring::generate("k2").expect("a keyring");
        let err = write_keyring(&path, &other, Write::New).expect_err("it exists");
        assert!(matches!(err, KeyringError::Exists { .. }));
        assert_eq!(Keyring::load(&path).expect("loaded").seal_id(), "k1");
        assert_eq!(
            fs::read_dir(dir.0.path()).unwrap().count(),
            1,
            "no leftovers"
        );
    }

    #[test]
    fn a_keyring_is_replaced_behind_its_link_when_asked_for() {
        let dir = Dir::new();
        let path = dir.file(RING.as_bytes(), 0o600);
        let link = dir.0.path().join("link");
        symlink(&path, &link).expect("a link");
        let added = Keyring::add(&read_keyring(&link).expect("read"), "k2").expect("added");
        write_keyring(&link, &added, Write::Replace).expect("replaced");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(Keyring::load(&path).expect("loaded").seal_id(), "k2");
        let none = write_keyring(&dir.0.path().join("none"), &added, Write::Replace);
        assert!(matches!(none, Err(KeyringError::Write { .. })));
    }

    #[test]
    fn a_replaced_keyring_keeps_its_owner() {
        let dir = Dir::new();
        let path = dir.file(RING.as_bytes(), 0o600);
        // Only root can give a file away; anyone else keeps their own.
        let given = std::os::unix::fs::chown(&path, Some(70), Some(71)).is_ok();
        let old = fs::metadata(&path).unwrap();
        write_keyring(&path, RING, Write::Replace).expect("replaced");
        let new = fs::metadata(&path).unwrap();
        assert_eq!((new.uid(), new.gid()), (old.uid(), old.gid()));
        assert!(!given || new.uid() == 70);
        assert_ne!(new.ino(), old.ino(), "replaced, not overwritten");
    }

    #[test]
    fn what_is_no_keyring_is_not_written() {
        let dir = Dir::new();
        let path = dir.0.path().join("keyring.toml");
        let err = write_keyring(&path, "seal = 1", Write::New).expect_err("refused");
        assert!(matches!(err, KeyringError::Content { .. }));
        assert!(!path.exists());
    }
}
