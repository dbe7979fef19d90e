//! Getting files from one folder to another: a second name where that is enough and can be, else a copy.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use super::source::Pulse;
use crate::cli::Carry;
use crate::progress::Progress;

/// Carries files; remembers the folders that it made, to be flushed.
pub(crate) struct Carrier<'a> {
    /// How files get there from now on. Links become copies when the first one cannot be made.
    pub(crate) way: Carry,
    is_told: bool,
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    folders: BTreeSet<PathBuf>,
    progress: &'a Progress,
    pulse: Pulse,
}

/// Bytes of a file that are copied and flushed before somebody is told that the backup gets on.
const PIECE_BYTES: u64 = 256 << 20;

impl<'a> Carrier<'a> {
    /// One that links where it can, unless it was told how.
    pub(crate) fn new(told: Option<Carry>, progress: &'a Progress, pulse: Pulse) -> Carrier<'a> {
        Carrier {
            way: told.unwrap_or(Carry::Link),
            is_told: told.is_some(),
            files: 0,
            bytes: 0,
            folders: BTreeSet::new(),
            progress,
            pulse,
        }
    }

    /// Makes a folder with its parents, for us alone.
    ///
    /// # Errors
    /// Whatever the operating system says.
    pub(crate) fn folder(&mut self, path: &Path) -> io::Result<()> {
        if self.folders.contains(path) {
            return Ok(());
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        self.folders.insert(path.to_path_buf());
        if let Some(parent) = path.parent() {
            self.folders.insert(parent.to_path_buf());
        }
        Ok(())
    }

    /// Carries a file that is never written to again.
    ///
    /// # Errors
    /// Whatever the operating system says; `InvalidData` when it has another length than `len_bytes`.
    pub(crate) fn sealed(&mut self, from: &Path, to: &Path, len_bytes: Option<u64>) -> io::Result<()> {
        if self.way == Carry::Link {
            self.parent(to)?;
            match fs::hard_link(from, to) {
                Ok(()) => return self.check(to, len_bytes),
                Err(error) if !self.is_told && cannot_link(&error) => self.way = Carry::Copy,
                Err(error) => return Err(error),
            }
        }
        self.copy(from, to)?;
        self.check(to, len_bytes)
    }

    /// Carries a file that is written to later: always a copy.
    ///
    /// # Errors
    /// Whatever the operating system says.
    pub(crate) fn open(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.copy(from, to)?;
        self.check(to, None)
    }

    /// Writes a file, durably but for its name.
    ///
    /// # Errors
    /// Whatever the operating system says.
    pub(crate) fn write(&mut self, to: &Path, bytes: &[u8]) -> io::Result<()> {
        self.parent(to)?;
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(to)?;
        io::Write::write_all(&mut file, bytes)?;
        file.sync_all()
    }

    /// Makes the names of everything durable.
    ///
    /// # Errors
    /// Whatever the operating system says.
    pub(crate) fn flush(&self) -> io::Result<()> {
        // The deepest ones first, so that a name is durable before the folder that it is in.
        for folder in self.folders.iter().rev() {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    }

    fn parent(&mut self, to: &Path) -> io::Result<()> {
        to.parent().map_or(Ok(()), |parent| self.folder(parent))
    }

    fn copy(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.parent(to)?;
        let mut source = open_no_link(from)?;
        let mut target = File::options().write(true).create_new(true).mode(0o600).open(to)?;
        // In the kernel, and by sharing extents where the file system can.
        while io::copy(&mut (&mut source).take(PIECE_BYTES), &mut target)? == PIECE_BYTES {
            target.sync_data()?;
            self.pulse.beat()?;
        }
        target.sync_all()
    }

    fn check(&mut self, to: &Path, len_bytes: Option<u64>) -> io::Result<()> {
        let actual = fs::symlink_metadata(to)?.len();
        if len_bytes.is_some_and(|len_bytes| len_bytes != actual) {
            let message = format!("{} has {actual} bytes, not {}", to.display(), len_bytes.unwrap_or(0));
            return Err(io::Error::new(ErrorKind::InvalidData, message));
        }
        self.files += 1;
        self.bytes += actual;
        self.progress.advance(actual);
        self.pulse.beat()
    }
}

/// Opens a file to read it, and no symbolic link: a backup is of what lies in the data directory.
fn open_no_link(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW.bits();
    File::options().read(true).custom_flags(i32::try_from(flags).unwrap_or_default()).open(path)
}

/// Another file system, one without links, or a file with too many of them.
fn cannot_link(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::CrossesDevices
            | ErrorKind::TooManyLinks
            | ErrorKind::Unsupported
            | ErrorKind::PermissionDenied
    )
}
