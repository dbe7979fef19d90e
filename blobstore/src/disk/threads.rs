//! The operating system's files: positioned reads and writes on the calling thread.
//!
//! This is the reference back end; whoever wants several operations under way calls it from several threads. What must
//! stay true:
//!
//! - Everything is reached through one descriptor of the store's folder, taken at open. When the file system is unmounted
//!   under a running store, the bare mount point below is never written to.
//! - A failed flush is reported once and never tried again here: after it the kernel calls dirty pages clean.
//! - [`Access::Direct`] falls back to the page cache where the file system cannot do it, and the disk remembers that. It does not
//!   conclude so from a request that is not aligned: then "past the page cache" would look at the page cache from there on.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{self, Advice, AtFlags, Dir, FallocateFlags, FileType, FlockOperation, Mode, OFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::mapping::Mapping;
use super::{Access, Counters, DIRECT_ALIGN_BYTES, Disk, File, Lock, LockError, NotDurable};
use crate::error::is_without_files;

/// The store belongs to its user alone: blobs may be private images.
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;

/// Name of the lock file. It is this module's own and never listed.
const LOCK_NAME: &str = "LOCK";

/// Most of what a holder wrote of itself is read back; a lock file that someone filled with more is cut.
const HOLDER_BYTES_MAX: usize = 256;

/// Unit, in bytes, of the zeros written where a file system cannot reserve space.
const ZEROS_BYTES: usize = 256 * 1024;

/// Magic numbers of the file systems that write over zeros in place, ext4 and XFS, as `statfs` gives them.
const WRITE_IN_PLACE: [u64; 2] = [0xef53, 0x5846_5342];

/// A folder of the operating system that holds one store.
pub struct ThreadsDisk {
    root: OwnedFd,
    /// Files are opened for reading only, and nothing is made or removed.
    read_only: bool,
    shared: Arc<Shared>,
    /// Folders whose names this process has made durable; a folder that an earlier process made may not be.
    durable_folders: Mutex<HashSet<String>>,
    /// The few folders right below the store's, open: their flush must not fail for want of a descriptor (L-19).
    kept_folders: Mutex<HashMap<String, Arc<OwnedFd>>>,
}

/// What files and their disk have in common.
#[derive(Debug, Default)]
struct Shared {
    flushes: AtomicU64,
    written_bytes: AtomicU64,
    ring_written_bytes: AtomicU64,
    read_bytes: AtomicU64,
    /// Set once the file system refused `O_DIRECT`.
    direct_refused: AtomicBool,
}

pub(super) struct ThreadsFile {
    file: Arc<OwnedFd>,
    name: String,
    writable: bool,
    /// Whether a write with `RWF_DSYNC` has succeeded: from then on no error of one says that the kernel does not know it.
    has_written_durably: AtomicBool,
    shared: Arc<Shared>,
}

/// The flock lives as long as its descriptor.
#[derive(Debug)]
struct ThreadsLock {
    _file: OwnedFd,
}

impl Lock for ThreadsLock {}

impl fmt::Debug for ThreadsDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadsDisk").field("read_only", &self.read_only).finish_non_exhaustive()
    }
}

impl fmt::Debug for ThreadsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadsFile").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ThreadsDisk {
    /// Opens the existing folder `root`.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`; whatever the operating system says.
    pub fn open(root: &Path) -> io::Result<ThreadsDisk> {
        Self::at(root, false)
    }

    /// Opens the existing folder `root` and never changes anything in it, whatever the file system would allow.
    ///
    /// # Errors
    /// As [`ThreadsDisk::open`].
    pub fn open_read_only(root: &Path) -> io::Result<ThreadsDisk> {
        Self::at(root, true)
    }

    /// Opens the folder `root`, making it and its parents (mode 0700, durably) where they do not exist.
    ///
    /// # Errors
    /// Whatever the operating system says.
    pub fn open_or_create(root: &Path) -> io::Result<ThreadsDisk> {
        make_root(root)?;
        Self::at(root, false)
    }

    fn at(root: &Path, read_only: bool) -> io::Result<ThreadsDisk> {
        let root = retry(|| fs::open(root, folder_flags(), Mode::empty()))?;
        Ok(ThreadsDisk {
            root,
            read_only,
            shared: Arc::default(),
            durable_folders: Mutex::new(HashSet::new()),
            kept_folders: Mutex::default(),
        })
    }

    fn folder_to_sync(&self, folder: &str) -> io::Result<Arc<OwnedFd>> {
        if folder.contains('/') {
            return Ok(Arc::new(self.open_folder(folder)?));
        }
        let mut kept = lock(&self.kept_folders);
        if let Some(known) = kept.get(folder) {
            return Ok(Arc::clone(known));
        }
        let opened = Arc::new(self.open_folder(folder)?);
        kept.insert(folder.to_owned(), Arc::clone(&opened));
        Ok(opened)
    }

    fn file(
        &self,
        file: OwnedFd,
        name: &str,
        access: Access,
        writable: bool,
    ) -> io::Result<Arc<ThreadsFile>> {
        if access == Access::Direct && !self.shared.direct_refused.load(Ordering::Relaxed) {
            // Asked for after the open: an open with both O_CREAT and O_DIRECT may leave a file behind when it fails.
            match fs::fcntl_setfl(&file, OFlags::DIRECT) {
                Ok(()) => {}
                Err(Errno::INVAL) => self.shared.direct_refused.store(true, Ordering::Relaxed),
                Err(error) => return Err(error.into()),
            }
        }
        let file = Arc::new(file);
        Ok(Arc::new(ThreadsFile {
            file,
            name: name.to_owned(),
            writable,
            has_written_durably: AtomicBool::new(false),
            shared: Arc::clone(&self.shared),
        }))
    }

    /// As [`Disk::create`].
    pub(super) fn create_file(
        &self,
        name: &str,
        len_bytes: u64,
        access: Access,
    ) -> io::Result<Arc<ThreadsFile>> {
        self.refuse_when_read_only()?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = retry(|| fs::openat(&self.root, name, flags, Mode::from_raw_mode(FILE_MODE)))?;
        let file = reserve(&made, len_bytes).and_then(|()| self.file(made, name, access, true));
        if file.is_err() {
            // The first error is the one to report: a name that stays behind is found as an orphan.
            let _ = fs::unlinkat(&self.root, name, AtFlags::empty());
        }
        file
    }

    /// As [`Disk::open`].
    pub(super) fn open_file(&self, name: &str, access: Access) -> io::Result<Arc<ThreadsFile>> {
        let open = |flags| {
            retry(|| fs::openat(&self.root, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()))
        };
        let (file, writable) = if self.read_only {
            (open(OFlags::RDONLY)?, false)
        } else {
            match open(OFlags::RDWR) {
                Ok(file) => (file, true),
                Err(Errno::ROFS) => (open(OFlags::RDONLY)?, false),
                Err(error) => return Err(error.into()),
            }
        };
        if FileType::from_raw_mode(retry(|| fs::fstat(&file))?.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is not a file")));
        }
        self.file(file, name, access, writable)
    }

    fn refuse_when_read_only(&self) -> io::Result<()> {
        if self.read_only { Err(Errno::ROFS.into()) } else { Ok(()) }
    }

    fn open_folder(&self, folder: &str) -> io::Result<OwnedFd> {
        let path = if folder.is_empty() { "." } else { folder };
        Ok(retry(|| fs::openat(&self.root, path, folder_flags(), Mode::empty()))?)
    }
}

impl Disk for ThreadsDisk {
    fn create(&self, name: &str, len_bytes: u64, access: Access) -> io::Result<Arc<dyn File>> {
        Ok(self.create_file(name, len_bytes, access)?)
    }

    fn open(&self, name: &str, access: Access) -> io::Result<Arc<dyn File>> {
        Ok(self.open_file(name, access)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.refuse_when_read_only()?;
        Ok(retry(|| fs::unlinkat(&self.root, name, AtFlags::empty()))?)
    }

    fn list(&self, folder: &str) -> io::Result<Vec<String>> {
        let opened = match self.open_folder(folder) {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in Dir::read_from(&opened)? {
            let entry = entry?;
            // The engine's names are ASCII; a name that is not even UTF-8 is nobody's business here.
            let Ok(name) = entry.file_name().to_str() else { continue };
            let mut kind = entry.file_type();
            if kind == FileType::Unknown {
                kind = match fs::statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                    Err(Errno::NOENT) => continue,
                    Err(error) => return Err(error.into()),
                };
            }
            if kind == FileType::RegularFile && !(folder.is_empty() && name == LOCK_NAME) {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn create_dir(&self, folder: &str) -> io::Result<()> {
        let mut parent = "";
        for (at, _) in folder.match_indices('/').chain(std::iter::once((folder.len(), ""))) {
            let path = &folder[..at];
            if path.is_empty() || lock(&self.durable_folders).contains(path) {
                parent = path;
                continue;
            }
            let exists = fs::statat(&self.root, path, AtFlags::empty())
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
            if !exists {
                self.refuse_when_read_only()?;
                match retry(|| fs::mkdirat(&self.root, path, Mode::from_raw_mode(FOLDER_MODE))) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            // Also when it exists: the process that made it may have been killed before its flush.
            // What it says does not matter: a failed flush is never one of those errors that heal.
            let flushed = self.sync_dir(parent);
            flushed.map_err(|error| {
                // Unless there was none, for want of a descriptor.
                if is_without_files(&error) {
                    error
                } else {
                    io::Error::other(format!("flushing the folder above: {error}"))
                }
            })?;
            lock(&self.durable_folders).insert(path.to_owned());
            parent = path;
        }
        Ok(())
    }

    fn sync_dir(&self, folder: &str) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        let opened = self.folder_to_sync(folder)?;
        let synced = fs::fsync(&*opened);
        self.shared.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(synced?)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = retry(|| fs::fstatvfs(&self.root))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn lock(&self, owner: &str) -> Result<Box<dyn Lock>, LockError> {
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(FILE_MODE);
        let opened = if self.read_only {
            Err(Errno::ROFS)
        } else {
            retry(|| fs::openat(&self.root, LOCK_NAME, flags | OFlags::RDWR | OFlags::CREATE, mode))
        };
        let (file, writable) = match opened {
            Ok(file) => (file, true),
            // On a read-only file system the lock file is locked as it is, and without one the folder itself.
            Err(Errno::ROFS) => {
                match retry(|| fs::openat(&self.root, LOCK_NAME, flags | OFlags::RDONLY, Mode::empty())) {
                    Ok(file) => (file, false),
                    Err(Errno::NOENT) => (self.open_folder("")?, false),
                    Err(error) => return Err(io::Error::from(error).into()),
                }
            }
            Err(error) => return Err(io::Error::from(error).into()),
        };
        match retry(|| fs::flock(&file, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(LockError::Held { holder: holder(&file) }),
            Err(error) => return Err(io::Error::from(error).into()),
        }
        if writable {
            let text = format!("process {} ({owner})\n", std::process::id());
            retry(|| fs::ftruncate(&file, 0)).map_err(io::Error::from)?;
            write_all(&file, text.as_bytes(), 0)?;
        }
        Ok(Box::new(ThreadsLock { _file: file }))
    }

    fn counters(&self) -> Counters {
        Counters {
            flushes: self.shared.flushes.load(Ordering::Relaxed),
            written_bytes: self.shared.written_bytes.load(Ordering::Relaxed),
            ring_written_bytes: self.shared.ring_written_bytes.load(Ordering::Relaxed),
            read_bytes: self.shared.read_bytes.load(Ordering::Relaxed),
        }
    }
}

impl ThreadsFile {
    /// Another descriptor of the open file, for whoever writes to it in another way; it shares the flags.
    #[cfg(feature = "uring")]
    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.refuse_when_read_only()?;
        self.file.try_clone()
    }

    /// Counts what a ring wrote.
    #[cfg(feature = "uring")]
    pub(super) fn count_ring_written(&self, bytes: u64) {
        self.shared.written_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.shared.ring_written_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn refuse_when_read_only(&self) -> io::Result<()> {
        if self.writable { Ok(()) } else { Err(Errno::ROFS.into()) }
    }

    /// Runs `transfer`; when it is refused with `O_DIRECT`, goes on through the page cache. A file system that accepted the flag
    /// at open may refuse it now. What is not aligned, as the rest of a file that was cut short, says nothing of the file system.
    fn direct_or_cached<T>(
        &self,
        is_aligned: bool,
        mut transfer: impl FnMut() -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        match retry(&mut transfer) {
            Err(Errno::INVAL) if fs::fcntl_getfl(&self.file)?.contains(OFlags::DIRECT) => {
                fs::fcntl_setfl(&self.file, OFlags::empty())?;
                if is_aligned {
                    self.shared.direct_refused.store(true, Ordering::Relaxed);
                }
                Ok(retry(transfer)?)
            }
            result => Ok(result?),
        }
    }
}

impl File for ThreadsFile {
    fn read_at(&self, buffer: &mut [u8], offset_bytes: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset_bytes + done as u64;
            let rest = &mut buffer[done..];
            let read = self
                .direct_or_cached(is_aligned(rest, at), || rustix::io::pread(&self.file, &mut *rest, at))?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            done += read;
        }
        self.shared.read_bytes.fetch_add(done as u64, Ordering::Relaxed);
        Ok(())
    }

    fn read_vectored_at(&self, buffers: &mut [IoSliceMut<'_>], offset_bytes: u64) -> io::Result<()> {
        let mut buffers = buffers;
        let mut at = offset_bytes;
        IoSliceMut::advance_slices(&mut buffers, 0);
        while !buffers.is_empty() {
            let are_aligned = buffers.iter().all(|buffer| is_aligned(buffer, at));
            let read = self.direct_or_cached(are_aligned, || rustix::io::preadv(&self.file, buffers, at))?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            IoSliceMut::advance_slices(&mut buffers, read);
            at += read as u64;
        }
        self.shared.read_bytes.fetch_add(at - offset_bytes, Ordering::Relaxed);
        Ok(())
    }

    fn will_read(&self, offset_bytes: u64, len_bytes: u64) {
        // Without the hint the reads are slower, not wrong.
        let _ = fs::fadvise(&self.file, offset_bytes, NonZeroU64::new(len_bytes), Advice::WillNeed);
    }

    fn map(&self) -> Option<Mapping> {
        // Whoever goes past the page cache wants to know what is on the disk.
        if fs::fcntl_getfl(&self.file).ok()?.contains(OFlags::DIRECT) {
            return None;
        }
        Mapping::new(&self.file, self.len_bytes().ok()?).ok()
    }

    fn write_at(&self, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
        self.refuse_when_read_only()?;
        let mut done = 0;
        while done < bytes.len() {
            let at = offset_bytes + done as u64;
            let rest = &bytes[done..];
            let written =
                self.direct_or_cached(is_aligned(rest, at), || rustix::io::pwrite(&self.file, rest, at))?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            done += written;
            self.shared.written_bytes.fetch_add(written as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    fn write_durably_at(&self, bytes: &[u8], offset_bytes: u64) -> Result<(), NotDurable> {
        self.refuse_when_read_only().map_err(NotDurable::Write)?;
        let mut done = 0;
        while done < bytes.len() {
            let (at, rest) = (offset_bytes + done as u64, &bytes[done..]);
            let written = rustix::io::pwritev2(&self.file, &[IoSlice::new(rest)], at, ReadWriteFlags::DSYNC);
            match written {
                Ok(0) => return Err(NotDurable::Write(io::ErrorKind::WriteZero.into())),
                Ok(written) => {
                    self.has_written_durably.store(true, Ordering::Relaxed);
                    self.shared.flushes.fetch_add(1, Ordering::Relaxed);
                    self.shared.written_bytes.fetch_add(written as u64, Ordering::Relaxed);
                    done += written;
                }
                // Refused before anything was done: with O_DIRECT on this file system, or with flags by this kernel or a sandbox. Once
                // it worked, a device that takes no flush any more answers the same.
                Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM)
                    if !self.has_written_durably.load(Ordering::Relaxed) =>
                {
                    self.write_at(rest, at).map_err(NotDurable::Write)?;
                    return self.sync().map_err(NotDurable::Flush);
                }
                // It may be what the flush said, as of any one, so that it is not tried again, not even on EINTR.
                Err(error) => {
                    self.shared.flushes.fetch_add(1, Ordering::Relaxed);
                    return Err(NotDurable::Flush(error.into()));
                }
            }
        }
        Ok(())
    }

    fn share_from(&self, source: &std::fs::File, len_bytes: u64, offset_bytes: u64) -> io::Result<()> {
        self.refuse_when_read_only()?;
        let (mut from, mut to) = (0, offset_bytes);
        while from < len_bytes {
            let len = usize::try_from(len_bytes - from).unwrap_or(usize::MAX);
            let copied =
                retry(|| fs::copy_file_range(source, Some(&mut from), &self.file, Some(&mut to), len));
            match copied {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(copied) => {
                    self.shared.written_bytes.fetch_add(copied as u64, Ordering::Relaxed);
                }
                // Of another file system, or of one that cannot.
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    return Err(io::ErrorKind::Unsupported.into());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.refuse_when_read_only()?;
        // Not retried, not even on EINTR: whatever it returned, the kernel may have dropped the error already.
        let synced = fs::fdatasync(&self.file);
        self.shared.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(synced?)
    }

    fn allocate(&self, len_bytes: u64) -> io::Result<()> {
        self.refuse_when_read_only()?;
        reserve(&self.file, len_bytes)
    }

    fn truncate(&self, len_bytes: u64) -> io::Result<()> {
        self.refuse_when_read_only()?;
        Ok(retry(|| fs::ftruncate(&self.file, len_bytes))?)
    }

    fn len_bytes(&self) -> io::Result<u64> {
        length(&self.file)
    }

    fn gains_from_zeros(&self) -> bool {
        retry(|| fs::fstatfs(&self.file))
            .is_ok_and(|stat| u64::try_from(stat.f_type).is_ok_and(|kind| WRITE_IN_PLACE.contains(&kind)))
    }
}

/// Whether a transfer between `buffer` and `offset_bytes` is one that [`Access::Direct`] allows.
fn is_aligned(buffer: &[u8], offset_bytes: u64) -> bool {
    buffer.len().is_multiple_of(DIRECT_ALIGN_BYTES)
        && offset_bytes.is_multiple_of(DIRECT_ALIGN_BYTES as u64)
        && buffer.as_ptr().align_offset(DIRECT_ALIGN_BYTES) == 0
}

fn folder_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC
}

/// Calls again while a signal interrupts.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn length(file: &OwnedFd) -> io::Result<u64> {
    let size = retry(|| fs::fstat(file))?.st_size;
    u64::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

fn write_all(file: &OwnedFd, bytes: &[u8], offset_bytes: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match retry(|| rustix::io::pwrite(file, &bytes[done..], offset_bytes + done as u64))? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            written => done += written,
        }
    }
    Ok(())
}

/// Reserves space up to `len_bytes` and makes the file at least that long.
fn reserve(file: &OwnedFd, len_bytes: u64) -> io::Result<()> {
    if len_bytes == 0 {
        return Ok(());
    }
    match retry(|| fs::fallocate(file, FallocateFlags::empty(), 0, len_bytes)) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            // As posix_fallocate does: without written zeros, a full disk would show only in the middle of a batch.
            let zeros = vec![0; ZEROS_BYTES];
            let mut at = length(file)?;
            while at < len_bytes {
                let len = usize::try_from(len_bytes - at).map_or(ZEROS_BYTES, |left| left.min(ZEROS_BYTES));
                write_all(file, &zeros[..len], at)?;
                at += len as u64;
            }
            Ok(())
        }
        result => Ok(result?),
    }
}

/// What the holder of the lock wrote of itself.
fn holder(file: &OwnedFd) -> String {
    let mut bytes = [0; HOLDER_BYTES_MAX];
    // Between flock and its note there is a moment, and a folder locked in place of a file has no note at all.
    let read = retry(|| rustix::io::pread(file, &mut bytes, 0)).unwrap_or(0);
    let text = String::from_utf8_lossy(&bytes[..read]);
    let text = text.trim_matches(|c: char| c.is_whitespace() || c.is_control());
    if text.is_empty() { "another process".to_owned() } else { text.to_owned() }
}

/// Refuses to let root work in the folder of another user, as offline commands are about to: what root makes there its owner cannot open
/// any more, and where its owner puts a link root would follow.
///
/// # Errors
/// `PermissionDenied`, with what to do.
pub fn require_own(root: &Path) -> io::Result<()> {
    let owner = fs::stat(root)?.st_uid;
    if owner == 0 || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let path = root.display();
    let message = format!(
        "{path} belongs to user {owner}, not to root: run this as that user, as by `runuser -u NAME -- ...`, so that what it writes \
         is that user's"
    );
    Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
}

/// Makes `root` and its parents durably.
fn make_root(root: &Path) -> io::Result<()> {
    if root.is_dir() {
        return Ok(());
    }
    let parent = match root.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    make_root(parent)?;
    match retry(|| fs::mkdir(root, Mode::from_raw_mode(FOLDER_MODE))) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let parent = retry(|| fs::open(parent, folder_flags(), Mode::empty()))?;
    Ok(fs::fsync(&parent)?)
}

#[cfg(test)]
mod tests;
